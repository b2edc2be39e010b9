// One table, best first. A new instruction set is a row here and a file beside baseline.cpp.
#include "isa.h"

#include <torch/csrc/stable/library.h>

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <string>

#include "../../checks.h"
#include "cpuid.h"

namespace modernbert_fast::cpu {

namespace {

template <class... Names>
bool has(Names... names) {
  return (cpu_has(names) && ...);
}

#if defined(MODERNBERT_FAST_EMULATE)
constexpr bool kEmulate = true;  // rows above avx2 are compiled without their instructions
#else
constexpr bool kEmulate = false;
#endif

#if defined(__x86_64__)

bool has_avx512() { return has("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma", "f16c"); }

/// Linux gives a process the state of AMX's tiles when it asks.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#endif

const Isa kTable[] = {
#if defined(__x86_64__)
    {"amx",
     [] {
       return kEmulate ||
              (has_avx512() && has("avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16") && may_use_tiles());
     },
     amx::kLoops},
    {"avx512bf16", [] { return kEmulate || (has_avx512() && has("avx512_bf16", "avx512_vnni")); }, avx512bf16::kLoops},
    {"avx512", [] { return kEmulate || has_avx512(); }, avx512::kLoops},
    {"avx2", [] { return has("avx2", "fma", "f16c"); }, avx2::kLoops},
#endif
    {"baseline", [] { return true; }, baseline::kLoops},
};

std::string names() {
  std::string text;
  for (const Isa& row : kTable) text += std::string(text.empty() ? "" : ", ") + row.name;
  return text;
}

const Isa& choose() {
  const char* forced = std::getenv("MODERNBERT_FAST_ISA");
  for (const Isa& row : kTable) {
    if (forced == nullptr || *forced == '\0') {
      if (row.supported()) return row;
    } else if (std::string(forced) == row.name) {
      check(row.supported(), "MODERNBERT_FAST_ISA=", forced,
            ": this processor or operating system does not support it");
      return row;
    }
  }
  fail<std::invalid_argument>("MODERNBERT_FAST_ISA=", forced, " is not one of ", names());
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

static std::string cpu_isa() { return isa().name; }

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&modernbert_fast::cpu::cpu_isa));
}
