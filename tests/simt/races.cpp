// Two threads at one byte of shared memory without a barrier between: seen whatever order they ran in.
//
// Kernels compiled with -fsanitize=thread call the functions below at every access; ThreadSanitizer itself is not
// linked. Each warp has a clock that moves at every barrier and sync_warp, and knows the clocks of the others as of the
// last barrier it shared with them. A shuffle orders nothing.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "executor.h"

namespace simt {

namespace {

constexpr int kMostWarps = 32, kNobody = -1, kSeveral = -2;

struct Access {
  int thread = kNobody;
  unsigned clock = 0;
};

unsigned known[kMostWarps][kMostWarps];  // what a warp knows of the clock of another; of itself: its own
std::vector<Access> writes;              // the last one, of each byte
std::vector<Access> reads;               // the last one of each warp, of each byte
int warps = 0;

bool before(int warp, const Access& earlier, int thread) {
  if (earlier.thread == kNobody || earlier.thread == thread) return true;
  const int other = earlier.thread / kLanes;
  return other == warp ? earlier.clock < known[warp][warp] : earlier.clock <= known[warp][other];
}

}  // namespace

void start_clocks(int warps_of_block) {
  warps = warps_of_block;
  for (int warp = 0; warp < warps; ++warp)
    for (int other = 0; other < warps; ++other) known[warp][other] = warp == other;
  writes.clear();
  reads.clear();
}

void move_clocks(const std::vector<int>& threads) {
  bool there[kMostWarps] = {};
  unsigned joined[kMostWarps] = {};
  for (int thread : threads) there[thread / kLanes] = true;
  for (int warp = 0; warp < warps; ++warp)
    for (int other = 0; there[warp] && other < warps; ++other)
      joined[other] = std::max(joined[other], known[warp][other]);
  for (int warp = 0; warp < warps; ++warp) {
    if (!there[warp]) continue;
    std::copy(joined, joined + warps, known[warp]);
    ++known[warp][warp];
  }
}

void note_access(const void* address, size_t bytes, bool is_write) {
  const int thread = running_thread();
  const size_t offset = static_cast<const char*>(address) - shared_memory();
  if (thread < 0 || offset >= shared_size()) return;
  if (writes.empty()) {
    writes.resize(shared_size());
    reads.resize(shared_size() * warps);
  }
  const int warp = thread / kLanes;
  const Access now = {thread, known[warp][warp]};
  for (size_t byte = offset; byte < std::min(offset + bytes, shared_size()); ++byte) {
    const char* const does = is_write ? "writes" : "reads";
    if (!before(warp, writes[byte], thread))
      fail("%s byte %zu of shared memory, which thread %d wrote, with no barrier between", does, byte,
           writes[byte].thread);
    if (is_write) {
      for (int other = 0; other < warps; ++other) {
        const Access& read = reads[byte * warps + other];
        const bool by_many = read.thread == kSeveral;  // of this warp, or of another
        if (by_many ? !before(warp, {other * kLanes, read.clock}, kNobody) : !before(warp, read, thread))
          fail("writes byte %zu of shared memory, which warp %d read, with no barrier between", byte, other);
      }
      writes[byte] = now;
    } else {
      Access& read = reads[byte * warps + warp];
      const bool others = read.clock == now.clock && read.thread != thread && read.thread != kNobody;
      read = {others ? kSeveral : thread, now.clock};
    }
  }
}

}  // namespace simt

// What GCC calls. Names and types are those of ThreadSanitizer's runtime.
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}
// Of a reference count in the bindings.
unsigned __tsan_atomic32_fetch_add(volatile void* at, unsigned value, int order) {
  return __atomic_fetch_add(static_cast<volatile unsigned*>(at), value, order);
}
void __tsan_read_range(void* at, long bytes) { simt::note_access(at, bytes, false); }
void __tsan_write_range(void* at, long bytes) { simt::note_access(at, bytes, true); }
#define ACCESS(bytes)                                                        \
  void __tsan_read##bytes(void* at) { simt::note_access(at, bytes, false); } \
  void __tsan_write##bytes(void* at) { simt::note_access(at, bytes, true); }
#define UNALIGNED(bytes)                                                               \
  void __tsan_unaligned_read##bytes(void* at) { simt::note_access(at, bytes, false); } \
  void __tsan_unaligned_write##bytes(void* at) { simt::note_access(at, bytes, true); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16) UNALIGNED(2) UNALIGNED(4) UNALIGNED(8) UNALIGNED(16)
}
