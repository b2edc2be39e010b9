// csrc/cuda/hopper.cuh for the host: copies land when somebody waits for their barrier, products are done when their
// warpgroup waits for them, and neither a moment earlier.
#pragma once

#include <instructions.cuh>
#include <launch.cuh>
#include <map>
#include <vector>

namespace modernbert_fast::cuda {

constexpr int kWarpgroup = 128;

// ---- barriers in shared memory ----

using Barrier = uint64_t;

struct BarrierState {
  uint64_t phase : 1, arrivals : 15, missing : 16, bytes : 32;  // missing arrivals and bytes of this phase
};

/// Changes the state; a phase that is complete flips, and those who wait look again.
template <class Change>
inline void change_barrier(Barrier* barrier, const Change& change) {
  simt::check_shared(barrier, sizeof(*barrier), "a barrier", 8);
  BarrierState state = bits_as<BarrierState>(*barrier);
  change(state);
  if (state.missing == 0 && state.bytes == 0) {
    state.phase ^= 1;
    state.missing = state.arrivals;
    simt::wake(barrier);
  }
  *barrier = bits_as<Barrier>(state);
}

struct TileCopy {
  char* to;
  std::vector<unsigned char> bytes;
};
inline std::map<Barrier*, std::vector<TileCopy>> tiles_in_flight;

inline void land(Barrier* barrier) {
  std::vector<TileCopy> copies;
  copies.swap(tiles_in_flight[barrier]);
  for (const TileCopy& copy : copies) {
    memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
    change_barrier(barrier, [&](BarrierState& state) { state.bytes -= copy.bytes.size(); });
  }
}

inline void barrier_init(Barrier* barrier, int arrivals) {
  simt::check_shared(barrier, sizeof(*barrier), "a barrier", 8);
  tiles_in_flight[barrier].clear();
  *barrier = bits_as<Barrier>(BarrierState{0, static_cast<uint64_t>(arrivals), static_cast<uint64_t>(arrivals), 0});
}
inline void barrier_init_done() {}
inline void barrier_arrive(Barrier* barrier) {
  change_barrier(barrier, [](BarrierState& state) { --state.missing; });
}
inline void barrier_expect(Barrier* barrier, int bytes) {
  change_barrier(barrier, [&](BarrierState& state) { --state.missing, state.bytes += bytes; });
}
inline void barrier_wait(Barrier* barrier, int parity) {
  land(barrier);
  while (static_cast<int>(bits_as<BarrierState>(*barrier).phase) == parity) {
    simt::park("barrier_wait", barrier);
    land(barrier);
  }
}

template <int kRegisters>
inline void shrink_registers() {}
template <int kRegisters>
inline void grow_registers() {}

// ---- tiles ----

struct TileMap {
  const char* data;
  int64_t rows, heads, stride_t, stride_h;  // strides in bytes
  int box_rows;
};

template <class T>
TileMap tile_map(const void* data, int64_t rows, int64_t heads, int64_t stride_t, int64_t stride_h, int box_rows) {
  constexpr int64_t kBytes = sizeof(T);
  if (reinterpret_cast<uintptr_t>(data) % 16 || stride_t * kBytes % 16 || stride_h * kBytes % 16 || stride_t <= 0 ||
      stride_h <= 0 || box_rows > 256)
    throw std::runtime_error("CUDA: no tensor map for these strides");
  return {static_cast<const char*>(data), rows, heads, stride_t * kBytes, stride_h * kBytes, box_rows};
}

inline int place_in_tile(int row, int piece) { return row * 128 + (piece ^ (row % 8)) * 16; }

inline void copy_tile(void* to, const TileMap& tiles, int row, int head, Barrier* barrier) {
  const size_t bytes = tiles.box_rows * 128;
  simt::check_shared(to, bytes, "copy_tile", 1024);
  TileCopy copy = {static_cast<char*>(to), std::vector<unsigned char>(bytes)};
  for (int r = 0; r < tiles.box_rows; ++r) {
    if (row + r < 0 || row + r >= tiles.rows || head < 0 || head >= tiles.heads) continue;
    const char* from = tiles.data + (row + r) * tiles.stride_t + head * tiles.stride_h;
    for (int i = 0; i < 128; ++i) copy.bytes[place_in_tile(r, i / 16) + i % 16] = from[i];  // each read is checked
  }
  memset(to, 0xff, bytes);
  tiles_in_flight[barrier].push_back(std::move(copy));
  simt::wake(barrier);  // those who wait have it land
}

inline void fence_for_products() {}

// ---- products of a warpgroup ----

/// On the host a factor is an offset into shared memory, in units of 16 bytes as on the GPU.
inline uint64_t factor_in_tile(const void* from) {
  simt::check_shared(from, 64 * 128, "a factor", 1024);
  return (static_cast<const char*>(from) - simt::shared_memory()) / 16;
}

inline void products_begin() {}
inline void products_commit() { simt::commit_products(); }
template <int kPending>
inline void products_wait() {
  simt::wait_for_products(kPending);
}
template <int kEights>
inline void products_settle(float (&)[kEights][4]) {}

/// The element (row, column) of the tile that `factor` points into: bits of the address permute each other, as the
/// multiplier reads it.
template <class T>
inline float element_of_tile(uint64_t factor, int row, int column) {
  const uint64_t address = factor * 16 + row * 128 + column * 2;
  T element;
  memcpy(&element, simt::shared_memory() + (address ^ (address >> 7 & 7) << 4), sizeof(element));
  return to_float(element);
}

/// A thread's part of d (16 rows of its warp, 8 kEights columns) (+)= a b, b given by its elements (k, column).
template <class T, int kEights, class Element>
inline void multiply_later(float (&d)[kEights][4], const uint32_t (&a)[4], bool adds, const Element& b) {
  struct Own {
    const uint32_t* a;
    float A[2][16];  // rows g and g + 8
  } own = {a, {}};
  simt::meet("a product", &own, [](void* const* of_lanes) {
    for (int lane = 0; lane < kWarp; ++lane)
      for (int i = 0; i < 4; ++i)
        for (int t = 0; t < 4; ++t) {
          const float2 pair = unpack_2<T>(static_cast<const Own*>(of_lanes[lane / 4 * 4 + t])->a[i]);
          float* row = static_cast<Own*>(of_lanes[lane])->A[i % 2] + i / 2 * 8 + 2 * t;
          row[0] = pair.x, row[1] = pair.y;
        }
  });
  const int t = lane_of_thread() % 4;
  simt::multiply_later([&d, own, adds, b, t] {
    for (int i = 0; i < kEights; ++i)
      for (int j = 0; j < 4; ++j) {
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += own.A[j / 2][k] * b(k, 8 * i + 2 * t + j % 2);
        d[i][j] = adds ? d[i][j] + sum : sum;
      }
  });
}

template <class T, int kEights>
inline void multiply_by_rows(float (&d)[kEights][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
  multiply_later<T>(d, a, adds, [b](int k, int column) { return element_of_tile<T>(b, column, k); });
}

template <class T, int kEights>
inline void multiply_by_columns(float (&d)[kEights][4], const uint32_t (&a)[4], uint64_t b) {
  multiply_later<T>(d, a, true, [b](int k, int column) { return element_of_tile<T>(b, k, column); });
}

}  // namespace modernbert_fast::cuda
