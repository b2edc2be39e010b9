// What every CPU binding needs between torch's tensors and the loops' pointers.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <new>
#include <optional>
#include <thread>
#include <vector>

#include "../checks.h"
#include "../checks/attention.h"
#include "../tensors.h"
#include "dtype.h"
#include "rope.h"

namespace modernbert_fast::cpu {

/// cu_seqlens (B + 1,) int32, contiguous, after a check that it rises from 0 to total.
inline Tensor checked_bounds(const Tensor& cu_seqlens, int64_t total) {
  check_dim(cu_seqlens, "cu_seqlens", 1);
  check_dtype(cu_seqlens, "cu_seqlens", {ScalarType::Int});
  const int64_t B = cu_seqlens.size(0) - 1;
  check(B >= 0, "cu_seqlens must be (B + 1,), got ", cu_seqlens);
  Tensor bounds = as_contiguous(cu_seqlens);
  const int32_t* start = static_cast<const int32_t*>(bounds.const_data_ptr());
  check(start[0] == 0, "cu_seqlens must start at 0, got ", start[0]);
  for (int64_t b = 0; b < B; ++b)
    check(start[b] <= start[b + 1], "cu_seqlens must not decrease: cu_seqlens[", b + 1, "] = ", start[b + 1], " after ",
          start[b]);
  check(start[B] == total, "cu_seqlens must end at total = ", total, ", got ", start[B]);
  return bounds;
}

inline DType loop_dtype(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kHalf;
    default: return DType::kFloat;
  }
}

constexpr int64_t kLarge = 4 << 20;  // bytes

/// Asks for huge pages. glibc maps a block beyond 32 MiB afresh each time, and the top of its heap comes and goes; the
/// kernel then clears it page by page at the first touch: up to a quarter of the time of the product that fills it
/// (docs/decisions/0008).
inline void want_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  if (bytes <= kLarge) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#else
  (void)data, (void)bytes;
#endif
}

/// Uninitialised and contiguous. The C function takes a third of the time of torch::stable::new_empty.
inline Tensor new_tensor(const int64_t* sizes, int64_t dim, ScalarType dtype) {
  std::vector<int64_t> strides(dim, 1);
  for (int64_t axis = dim - 1; axis > 0; --axis) strides[axis - 1] = strides[axis] * std::max<int64_t>(sizes[axis], 1);
  int64_t bytes = dtype == ScalarType::Float ? 4 : dtype == ScalarType::Char ? 1 : 2;  // dtypes that are ever large
  for (int64_t axis = 0; axis < dim; ++axis) bytes *= sizes[axis];
  const int32_t dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, sizes, strides.data(), dtype_code, aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  want_huge_pages(tensor.mutable_data_ptr(), bytes);
  return tensor;
}

inline Tensor new_tensor(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return new_tensor(sizes.begin(), static_cast<int64_t>(sizes.size()), dtype);
}

/// The rotary arguments of a call on qkv (T, 3, H, D), checked.
class RotaryTables {
 public:
  RotaryTables(const Tensor& qkv, const Tensor& positions, const Tensor& cos, const Tensor& sin)
      : cos_(as_contiguous(cos)), sin_(as_contiguous(sin)) {
    check_rotary(qkv, positions, cos, sin);
    const int64_t P = cos.size(0);
    if (positions.scalar_type() == ScalarType::Int)
      read_positions<int32_t>(positions, P);
    else
      read_positions<int64_t>(positions, P);
  }
  Rotary get() const {
    return {positions_.data(), static_cast<const float*>(cos_.const_data_ptr()),
            static_cast<const float*>(sin_.const_data_ptr()), cos_.size(1)};
  }

 private:
  template <class Int>
  void read_positions(const Tensor& positions, int64_t P) {
    const Tensor contiguous = as_contiguous(positions);
    const Int* const position = static_cast<const Int*>(contiguous.const_data_ptr());
    positions_.assign(position, position + contiguous.size(0));
    for (size_t t = 0; t < positions_.size(); ++t)
      check_index(positions_[t] >= 0 && positions_[t] < P, "positions[", t, "] = ", positions_[t], " is outside [0, ",
                  P, ")");
  }
  std::vector<int64_t> positions_;
  Tensor cos_, sin_;
};

/// Whether x is so large that what is written first is gone from the caches before anyone reads it.
inline bool outgrows_caches(const Tensor& x) {
  // Half of the last-level cache that one core of a Zen reaches. Asking the system is no help: it adds up the caches
  // of cores that do not share them.
  constexpr int64_t kBytes = 16 << 20;
  return x.numel() * static_cast<int64_t>(x.element_size()) > kBytes;
}

/// Uninitialised floats on a cache line boundary: scratch of one thread, for as long as the object lives.
/// Each thread keeps one block of up to 4 MiB for the next call: the system would take it back and clear it page by
/// page.
class Scratch {
 public:
  explicit Scratch(index_t count) : own_(count > kKept || kept().lent) {
    if (own_) {
      data_ = allocate(count);
      return;
    }
    Kept& block = kept();
    if (block.count < count) {
      release(block.data);
      block.data = nullptr;  // allocate may throw
      block.count = 0;
      block.data = allocate(count);
      block.count = count;
    }
    block.lent = true;
    data_ = block.data;
  }
  ~Scratch() { own_ ? release(data_) : void(kept().lent = false); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* get() const { return data_; }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr index_t kKept = -1;  // a block of just the right size each time, so that no overrun stays inside it
#else
  static constexpr index_t kKept = 1 << 20;  // floats
#endif
  struct Kept {
    float* data = nullptr;
    index_t count = 0;
    bool lent = false;
    ~Kept() { release(data); }
  };
  static Kept& kept() {
    static thread_local Kept block;
    return block;
  }
  static float* allocate(index_t count) {
    float* const data = static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t{64}));
    want_huge_pages(data, count * static_cast<int64_t>(sizeof(float)));
    return data;
  }
  static void release(float* data) { ::operator delete(data, std::align_val_t{64}); }

  bool own_;
  float* data_;
};

#if defined(__SANITIZE_THREAD__)

/// torch::stable::parallel_for on threads of our own. ThreadSanitizer does not see the barriers of torch's OpenMP: on
/// its threads every right access would be reported, and silencing those would silence the wrong ones too.
/// Pieces are as small as they can be, so that small tests use every thread.
template <class Body>
void parallel_for(index_t begin, index_t end, index_t /*grain*/, const Body& body) {
  constexpr index_t kThreads = 4;
  const index_t step = std::max<index_t>(1, (end - begin + kThreads - 1) / kThreads);
  std::vector<std::thread> threads;
  for (index_t first = begin; first < end; first += step)
    threads.emplace_back([&body, first, last = std::min(end, first + step)] { body(first, last); });
  for (std::thread& thread : threads) thread.join();
}

#else

using torch::stable::parallel_for;

#endif

/// Calls body(begin, end) on torch's threads, in pieces of at least kGrain elements of work.
template <class Body>
void parallel_rows(index_t rows, index_t elements_per_row, const Body& body) {
  constexpr index_t kGrain = 32768;
  const index_t grain = std::max<index_t>(1, kGrain / std::max<index_t>(1, elements_per_row));
  parallel_for(0, rows, grain, body);
}

/// Work in units of unequal cost, cut into pieces of about equal cost.
class Costs {
 public:
  void add(index_t cost) { before_.push_back(before_.back() + cost); }
  /// Calls body(begin, end) on torch's threads, in pieces of at least `grain` of cost; units are whole.
  template <class Body>
  void parallel(index_t grain, const Body& body) const {
    parallel_for(0, before_.back(), grain, [&](int64_t begin, int64_t end) {
      const index_t first = unit_from(begin), last = unit_from(end);
      if (first < last) body(first, last);
    });
  }

 private:
  /// The first unit that starts at this cost or later.
  index_t unit_from(index_t cost) const {
    return std::lower_bound(before_.begin(), before_.end() - 1, cost) - before_.begin();
  }
  std::vector<index_t> before_{0};
};

}  // namespace modernbert_fast::cpu
