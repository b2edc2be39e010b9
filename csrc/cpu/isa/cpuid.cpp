#include "cpuid.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace modernbert_fast::cpu {

#if defined(__x86_64__)

namespace {

enum Register { kEax, kEbx, kEcx, kEdx };

// State components the operating system must save (bits of XCR0).
constexpr uint64_t kYmm = 0x6;
constexpr uint64_t kZmm = 0xe6;
constexpr uint64_t kTile = 0x60000;

uint64_t saved_state() {
  uint32_t eax, ebx, ecx, edx;
  __cpuid(1, eax, ebx, ecx, edx);
  constexpr uint32_t kOsxsave = 1u << 27;
  if (!(ecx & kOsxsave)) return 0;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return (uint64_t{edx} << 32) | eax;
}

bool probe(uint32_t leaf, uint32_t subleaf, Register reg, int bit, uint64_t state) {
  uint32_t out[4];
  if (!__get_cpuid_count(leaf, subleaf, &out[kEax], &out[kEbx], &out[kEcx], &out[kEdx])) return false;
  return (out[reg] >> bit & 1) && (saved_state() & state) == state;
}

}  // namespace

const CpuFlag* cpu_flags(size_t* count) {
  static const CpuFlag flags[] = {
      {"avx", probe(1, 0, kEcx, 28, kYmm)},        {"f16c", probe(1, 0, kEcx, 29, kYmm)},
      {"fma", probe(1, 0, kEcx, 12, kYmm)},        {"avx2", probe(7, 0, kEbx, 5, kYmm)},
      {"avx_vnni", probe(7, 1, kEax, 4, kYmm)},    {"avx512f", probe(7, 0, kEbx, 16, kZmm)},
      {"avx512dq", probe(7, 0, kEbx, 17, kZmm)},   {"avx512bw", probe(7, 0, kEbx, 30, kZmm)},
      {"avx512vl", probe(7, 0, kEbx, 31, kZmm)},   {"avx512_vnni", probe(7, 0, kEcx, 11, kZmm)},
      {"avx512_bf16", probe(7, 1, kEax, 5, kZmm)}, {"avx512_fp16", probe(7, 0, kEdx, 23, kZmm)},
      {"amx_tile", probe(7, 0, kEdx, 24, kTile)},  {"amx_int8", probe(7, 0, kEdx, 25, kTile)},
      {"amx_bf16", probe(7, 0, kEdx, 22, kTile)},  {"amx_fp16", probe(7, 1, kEax, 21, kTile)},
  };
  *count = sizeof(flags) / sizeof(flags[0]);
  return flags;
}

#else

const CpuFlag* cpu_flags(size_t* count) {
  *count = 0;
  return nullptr;
}

#endif

bool cpu_has(const char* name) {
  size_t count;
  const CpuFlag* flags = cpu_flags(&count);
  for (size_t i = 0; i < count; ++i)
    if (strcmp(flags[i].name, name) == 0) return flags[i].present;
  return false;
}

}  // namespace modernbert_fast::cpu
