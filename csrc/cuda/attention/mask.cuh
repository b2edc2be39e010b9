// Which rows of a text see each other: the end of the text, and the window.
#pragma once

#include <instructions.cuh>

#include "params.h"

namespace modernbert_fast::cuda {

class Mask {
 public:
  __device__ __forceinline__ Mask(const AttentionGeometry& g, int end) : columns_(g.columns), end_(end) {
    constexpr int64_t kUnbounded = 1 << 30;
    const bool bounded = g.window >= 0 && g.window < kUnbounded;
    window_ = bounded ? static_cast<uint32_t>(g.window) : kUnbounded;
    span_ = bounded ? 2 * window_ : 0xffffffffu;
    if (!bounded) columns_ = nullptr;
  }

  /// Whether any of kM rows from m may see any of kN rows from n.
  template <int kM, int kN>
  __device__ __forceinline__ bool reaches(int m, int n) const {
    const int window = static_cast<int>(window_);  // of rows: columns are never nearer than these
    return m < end_ && n < end_ && m - (n + kN - 1) <= window && n - (m + kM - 1) <= window;
  }

  /// Whether all of kM rows from m see all of kN rows from n.
  template <int kM, int kN>
  __device__ __forceinline__ bool is_open(int m, int n) const {
    if (n + kN > end_) return false;
    const int window = static_cast<int>(window_);
    return span_ == 0xffffffffu || (columns_ == nullptr && m + kM - 1 - n <= window && n + kN - 1 - m <= window);
  }

  /// The place that the window is measured by: the column of the grid, where rows of a text have gaps between them.
  __device__ __forceinline__ int place(int t) const { return columns_ == nullptr || t >= end_ ? t : columns_[t]; }

  /// Whether the row at place `at_m` sees row n, whose place is `at_n`. Rows beyond the end are seen by nobody.
  __device__ __forceinline__ bool sees(int at_m, int n, int at_n) const {
    // |at_m - at_n| <= window in one comparison: what lies below -window wraps around to something large.
    return n < end_ && static_cast<uint32_t>(at_m) - static_cast<uint32_t>(at_n) + window_ <= span_;
  }

 private:
  const int32_t* columns_;
  uint32_t window_, span_;
  int end_;
};

}  // namespace modernbert_fast::cuda
