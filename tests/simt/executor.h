// What instructions of a warp ask of the executor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace simt {

constexpr int kLanes = 32;

/// The shared memory that the launch asked for: NaN and poison when a block starts, unreadable beyond its size.
char* shared_memory();
size_t shared_size();
/// Ends the launch with an error unless [address, address + bytes) lies inside and is aligned.
void check_shared(const void* address, size_t bytes, const char* what, int alignment = 16);

/// All lanes of the warp meet, each with something of its own; the last to come runs `together` on all of it.
/// Lanes that meet for different purposes, or never, end the launch with an error. It orders no memory.
void meet(const char* purpose, void* own, void (*together)(void* const* of_lanes));
/// The lanes of the warp meet, and what each wrote is there for the others.
void warp_barrier();
/// `threads` threads of the block meet at a barrier; 0 is all of them.
void barrier(int number, int threads);

/// Asynchronous copies of the thread that runs: the target holds poison until the wait that brings the bytes.
void copy_later(void* to, const void* from, int valid);
void commit_copies();
void wait_for_copies(int pending_groups);

/// Waits until some other thread wakes those that wait at this address.
void park(const char* purpose, const void* at);
void wake(const void* at);

/// Products of a warpgroup: this thread's part is done when it waits for its group, and no earlier.
void multiply_later(std::function<void()> work);
void commit_products();
void wait_for_products(int pending_groups);

/// Which thread of the block runs; -1 between kernels.
int running_thread();

// races.cpp: a block starts; those threads have met at a barrier; the thread that runs touches memory of any kind.
void start_clocks(int warps_of_block);
void move_clocks(const std::vector<int>& threads);
void note_access(const void* address, size_t bytes, bool is_write);

/// Ends the launch: the words reach Python as RuntimeError.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace simt
