// Softmax over scores that come a block at a time: a running peak and total for each row.
#pragma once

#include <instructions.cuh>

#include <cmath>

#include "tiles.cuh"

namespace modernbert_fast::cuda {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <int kBands>
class OnlineSoftmax {
 public:
  /// to_log2 > 0: from scores to exponents of two.
  __device__ __forceinline__ explicit OnlineSoftmax(float to_log2) : to_log2_(to_log2) {
#pragma unroll
    for (int band = 0; band < kBands; ++band)
#pragma unroll
      for (int half = 0; half < 2; ++half) peak_[band][half] = -INFINITY, total_[band][half] = 0;
  }

  /// Makes weights of scores, -inf being hidden. What was summed with the weights before is to be shrunk.
  template <int kN>
  __device__ __forceinline__ void weigh(Sums<kBands, kN>& scores) {
#pragma unroll
    for (int band = 0; band < kBands; ++band)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float peak = peak_[band][half];
#pragma unroll
        for (int n = 0; n < kN / 8; ++n)
          peak = fmaxf(peak, fmaxf(scores.at[band][n][2 * half], scores.at[band][n][2 * half + 1]));
        peak = fmaxf(peak, shuffle_xor(peak, 1));
        peak = fmaxf(peak, shuffle_xor(peak, 2));
        // Rows that have seen nothing yet keep a peak of -inf: nothing minus nothing is not a number.
        const float base = peak == -INFINITY ? 0 : peak;
        const float shrink = exp2_approx((peak_[band][half] - base) * to_log2_);
        peak_[band][half] = peak;
        shrink_[band][half] = shrink;
        float total = total_[band][half] * shrink;
#pragma unroll
        for (int n = 0; n < kN / 8; ++n)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            // Not one fma with base * to_log2_: the peak's own weight must be 1, or o and the total round apart.
            const float weight = exp2_approx((scores.at[band][n][i] - base) * to_log2_);
            scores.at[band][n][i] = weight;
            total += weight;
          }
        total_[band][half] = total;
      }
  }

  /// Nothing to do where no row of the warp has a new peak, as after the first keys of a text.
  template <int kHead>
  __device__ __forceinline__ void shrink(Sums<kBands, kHead>& o) const {
    bool stays = true;
#pragma unroll
    for (int band = 0; band < kBands; ++band) stays = stays && shrink_[band][0] == 1 && shrink_[band][1] == 1;
    if (all_of_warp(stays)) return;
    o.for_each([&](float& sum, int band, int, int i) { sum *= shrink_[band][i / 2]; });
  }

  /// Divides by the totals; calls put(band, half, lse) for the natural logarithm of each row's sum.
  template <int kHead, class Put>
  __device__ __forceinline__ void finish(Sums<kBands, kHead>& o, const Put& put) {
#pragma unroll
    for (int band = 0; band < kBands; ++band)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = row_sum(total_[band][half]);
        put(band, half, (peak_[band][half] * to_log2_ + log2f(total)) * kLn2);
        const float part = 1 / total;
#pragma unroll
        for (int n = 0; n < kHead / 8; ++n)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) o.at[band][n][i] *= part;
      }
  }

 private:
  float to_log2_;
  float peak_[kBands][2], total_[kBands][2], shrink_[kBands][2];
};

}  // namespace modernbert_fast::cuda
