// Runs the kernels of csrc/cuda on the host: a fibre for every thread of a block, one block after another.
//
// Between two meetings (barriers, shuffles, products of a warp) the warps run in random order, and so do the lanes of
// each, so that what only a missing barrier would order comes out differently from one launch to the next. In every
// other block a warp goes as far as it can before another one starts. The order is drawn from a counter: a process that
// does the same things meets the same orders.
#include "executor.h"

#include <cuda_runtime.h>
#include <sys/mman.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "queue.h"

#if !defined(__x86_64__)
#error "the host executor switches stacks in x86-64 assembly"
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#define __sanitizer_start_switch_fiber(save, bottom, size)
#define __sanitizer_finish_switch_fiber(save, bottom, size)
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Keeps the registers that a call keeps and the stack pointer at *from, and goes on where `to` was kept.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

namespace simt {

namespace {

constexpr int kMostThreads = 1024, kBarriers = 16;
constexpr size_t kStack = 256 << 10, kPage = 4096;
constexpr size_t kMostShared = 227 << 10, kWithoutAsking = 48 << 10, kGuard = 64 << 10;
constexpr unsigned char kPoison = 0xff;  // NaN in every floating format, -1 in every integer

struct Fibre {
  uint3 index;
  char* stack = nullptr;
  void* sp = nullptr;
  void* fake_stack = nullptr;  // of ASan
  bool runnable = false, done = false;
  const char* waits_for = nullptr;
  Queue copies, products;
  const void* parked_at = nullptr;
};

struct Meeting {
  const char* purpose = nullptr;
  std::vector<int> threads;
};

struct Warp {
  Meeting meeting;
  void* own[kLanes];
};

struct Block {
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  Meeting barriers[kBarriers];
  int threads = 0, running = -1;
  const std::function<void()>* body = nullptr;
  void* scheduler_sp = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  bool failed = false;
};

Block block;
char* arena = nullptr;  // guard, shared memory, guard
size_t shared_bytes = 0;
std::string error;
std::map<const void*, int> allowed;
std::mutex one_launch;
std::minstd_rand dice;
unsigned launches = 0;

Fibre& self() { return block.fibres[block.running]; }

/// Back to the scheduler; returns when this thread is picked again.
void yield() {
  Fibre& fibre = self();
  __sanitizer_start_switch_fiber(fibre.done ? nullptr : &fibre.fake_stack, block.scheduler_stack,
                                 block.scheduler_stack_size);
  simt_switch(&fibre.sp, block.scheduler_sp);
  __sanitizer_finish_switch_fiber(fibre.fake_stack, nullptr, nullptr);
}

void entry() {
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_size);
  (*block.body)();
  self().done = true;
  self().runnable = false;
  yield();
  abort();
}

void resume(int thread) {
  Fibre& fibre = block.fibres[thread];
  block.running = thread;
  threadIdx = fibre.index;
  __sanitizer_start_switch_fiber(&block.scheduler_fake_stack, fibre.stack, kStack);
  simt_switch(&block.scheduler_sp, fibre.sp);
  __sanitizer_finish_switch_fiber(block.scheduler_fake_stack, nullptr, nullptr);
  block.running = -1;
}

void start(Fibre& fibre, int thread) {
  if (fibre.stack == nullptr) {
    char* pages = static_cast<char*>(
        mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (pages == MAP_FAILED) abort();
    mprotect(pages, kPage, PROT_NONE);
    fibre.stack = pages + kPage;
  }
  void** top = reinterpret_cast<void**>(fibre.stack + kStack);
  *--top = nullptr;                              // where entry would return to, and alignment
  *--top = reinterpret_cast<void*>(&entry);      // where the first switch returns to
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // registers
  fibre.sp = top;
  fibre.fake_stack = nullptr;
  fibre.index = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
  fibre.done = false;
  fibre.runnable = true;
  fibre.waits_for = nullptr;
  fibre.copies.clear();
  fibre.products.clear();
  fibre.parked_at = nullptr;
}

void release(Meeting& meeting) {
  for (int thread : meeting.threads) block.fibres[thread].runnable = true;
  meeting.threads.clear();
  meeting.purpose = nullptr;
}

void report_standstill() {
  int done = 0;
  std::map<std::string, int> waiting;  // where, and one of the threads
  for (int t = 0; t < block.threads; ++t) {
    done += block.fibres[t].done;
    if (!block.fibres[t].done) waiting[block.fibres[t].waits_for] = t;
  }
  char text[128];
  snprintf(text, sizeof(text), "block (%u, %u, %u) stands still: %d of %d threads have returned", blockIdx.x,
           blockIdx.y, blockIdx.z, done, block.threads);
  error = text;
  for (const auto& [where, thread] : waiting) error += ", thread " + std::to_string(thread) + " waits at " + where;
  block.failed = true;
}

void run_block() {
  memset(shared_memory(), kPoison, shared_bytes);
  for (int t = 0; t < block.threads; ++t) start(block.fibres[t], t);
  for (Warp& warp : block.warps) warp.meeting = {};
  start_clocks(block.threads / kLanes);
  for (Meeting& meeting : block.barriers) meeting = {};
  const int warps = block.threads / kLanes;
  const bool far = dice() % 2;
  int picked = 0;
  while (!block.failed) {
    const int first = far ? picked : static_cast<int>(dice() % warps);
    picked = -1;
    bool all_done = true;
    for (int i = 0; i < warps && picked < 0; ++i) {
      const int warp = (first + i) % warps;
      for (int lane = 0; lane < kLanes && picked < 0; ++lane) {
        const Fibre& fibre = block.fibres[warp * kLanes + lane];
        all_done = all_done && fibre.done;
        if (fibre.runnable) picked = warp;
      }
    }
    if (picked < 0) {
      if (!all_done) report_standstill();
      return;
    }
    const int begin = static_cast<int>(dice() % kLanes), step = static_cast<int>(dice() % kLanes) | 1;
    for (int i = 0; i < kLanes && !block.failed; ++i) {
      const int thread = picked * kLanes + (begin + i * step) % kLanes;
      if (block.fibres[thread].runnable) resume(thread);
    }
  }
}

/// One more thread that waits at a barrier. The last one lets all go.
void arrive_at(int number, int threads, int thread) {
  if (number < 0 || number >= kBarriers) fail("barrier %d does not exist", number);
  const size_t needed = threads == 0 ? block.threads : threads;
  if (needed % kLanes != 0 || needed > static_cast<size_t>(block.threads)) fail("a barrier of %d threads", threads);
  Meeting& meeting = block.barriers[number];
  meeting.threads.push_back(thread);
  if (meeting.threads.size() < needed) return;
  move_clocks(meeting.threads);
  release(meeting);
}

cudaError_t refuse(const std::string& why) {
  error = why;
  return cudaErrorInvalidConfiguration;
}

/// After a failure frames were left behind, with what ASan keeps unreadable in them.
void forget_frames() {
  for (Fibre& fibre : block.fibres)
    if (fibre.stack != nullptr) ASAN_UNPOISON_MEMORY_REGION(fibre.stack, kStack);
  block.failed = false;
}

}  // namespace

char* shared_memory() { return arena + kGuard; }
size_t shared_size() { return shared_bytes; }
int running_thread() { return block.running; }

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  char where[128];
  snprintf(where, sizeof(where), "block (%u, %u, %u), thread %d: ", blockIdx.x, blockIdx.y, blockIdx.z, block.running);
  error = std::string(where) + text;
  block.failed = true;
  yield();
  abort();
}

void check_shared(const void* address, size_t bytes, const char* what, int alignment) {
  const ptrdiff_t offset = static_cast<const char*>(address) - shared_memory();
  if (offset < 0 || offset + bytes > shared_bytes)
    fail("%s reaches byte %td of %zu bytes of shared memory", what, offset, shared_bytes);
  if (offset % alignment != 0)
    fail("%s at byte %td of shared memory, which is not a multiple of %d", what, offset, alignment);
}

void meet(const char* purpose, void* own, void (*together)(void* const* of_lanes)) {
  const int thread = block.running;
  Warp& warp = block.warps[thread / kLanes];
  if (warp.meeting.purpose != nullptr && strcmp(warp.meeting.purpose, purpose) != 0)
    fail("is at %s, lanes of its warp at %s", purpose, warp.meeting.purpose);
  warp.meeting.purpose = purpose;
  warp.meeting.threads.push_back(thread);
  warp.own[thread % kLanes] = own;
  self().runnable = false;
  self().waits_for = purpose;
  if (warp.meeting.threads.size() == kLanes) {
    together(warp.own);
    release(warp.meeting);
  }
  yield();
}

void barrier(int number, int threads) {
  self().runnable = false;
  self().waits_for = number == 0 ? "sync_block" : "sync_threads";
  arrive_at(number, threads, block.running);
  yield();
}

void warp_barrier() {
  meet("sync_warp", nullptr, [](void* const*) { move_clocks({block.running}); });
}

void park(const char* purpose, const void* at) {
  self().runnable = false;
  self().waits_for = purpose;
  self().parked_at = at;
  yield();
}

void wake(const void* at) {
  for (int t = 0; t < block.threads; ++t) {
    Fibre& fibre = block.fibres[t];
    if (fibre.done || fibre.parked_at != at) continue;
    fibre.parked_at = nullptr;
    fibre.runnable = true;
  }
}

void copy_later(void* to, const void* from, int valid) {
  if (valid < 0 || valid > 16) fail("cp_async_16 of %d bytes", valid);
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("cp_async_16 from an address that is no multiple of 16");
  check_shared(to, 16, "cp_async_16");
  std::array<unsigned char, 16> copied = {};
  const unsigned char* bytes = static_cast<const unsigned char*>(from);
  for (int i = 0; i < valid; ++i) copied[i] = bytes[i];  // each read is checked
  note_access(to, 16, true);
  memset(to, kPoison, 16);
  self().copies.add([to, copied] {
    note_access(to, 16, true);
    memcpy(to, copied.data(), 16);
  });
}
void commit_copies() { self().copies.commit(); }
void wait_for_copies(int pending_groups) { self().copies.wait(pending_groups); }

void multiply_later(std::function<void()> work) { self().products.add(std::move(work)); }
void commit_products() { self().products.commit(); }
void wait_for_products(int pending_groups) { self().products.wait(pending_groups); }

cudaError_t allow_shared(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > kMostShared) return refuse("no GPU has so much shared memory");
  allowed[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const auto [x, y, z] = config.blockDim;
  const size_t threads = static_cast<size_t>(x) * y * z;
  const auto found = allowed.find(kernel);
  if (threads == 0 || threads > kMostThreads || threads % kLanes) return refuse("blocks must be whole warps");
  if (config.gridDim.y > 65535 || config.gridDim.z > 65535 || config.gridDim.x > 0x7fffffff ||
      config.gridDim.x * config.gridDim.y * config.gridDim.z == 0)
    return refuse("no such grid");
  if (config.dynamicSmemBytes >
      (found == allowed.end() ? kWithoutAsking : std::max<size_t>(found->second, kWithoutAsking)))
    return refuse("more shared memory than the kernel was allowed");

  if (arena == nullptr) {
    arena = static_cast<char*>(aligned_alloc(1024, kGuard + kMostShared + kGuard));
    ASAN_POISON_MEMORY_REGION(arena, kGuard + kMostShared + kGuard);
  }
  shared_bytes = config.dynamicSmemBytes;
  ASAN_UNPOISON_MEMORY_REGION(shared_memory(), shared_bytes);
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  block.threads = static_cast<int>(threads);
  block.body = &body;
  if (block.fibres.size() < threads) block.fibres.resize(threads);
  block.warps.resize(threads / kLanes);
  dice.seed(++launches);

  const unsigned count = gridDim.x * gridDim.y * gridDim.z;
  const bool backwards = dice() % 2;
  for (unsigned i = 0; i < count && !block.failed; ++i) {
    const unsigned b = backwards ? count - 1 - i : i;
    blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / (gridDim.x * gridDim.y)};
    run_block();
  }
  ASAN_POISON_MEMORY_REGION(shared_memory(), kMostShared);
  if (!block.failed) return cudaSuccess;
  forget_frames();
  return cudaErrorLaunchFailure;
}

}  // namespace simt

const char* cudaGetErrorString(cudaError_t code) { return code == cudaSuccess ? "no error" : simt::error.c_str(); }
