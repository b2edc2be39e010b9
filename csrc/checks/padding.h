// What padding's bindings ask of their arguments, on any device.
#pragma once

#include <limits>

#include "../checks.h"

namespace modernbert_fast {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

inline void check_mask(const Tensor& mask) {
  check_dim(mask, "mask", 2);
  check_dtype(mask, "mask", {ScalarType::Bool, ScalarType::Byte, ScalarType::Int, ScalarType::Long});
  check(mask.size(1) <= kMaxInt32, "mask has rows of ", mask.size(1), " columns: positions are int32");
}

inline void check_total(int64_t T) { check(T <= kMaxInt32, "mask selects ", T, " tokens: cu_seqlens are int32"); }

/// x (R, *) and indices (T,) int64 on one device.
inline void check_unpad(const Tensor& x, const Tensor& indices) {
  check(x.dim() >= 1, "x must have at least one dimension");
  check_same_device(indices, "indices", x, "x");
  check_dim(indices, "indices", 1);
  check_dtype(indices, "indices", {ScalarType::Long});
}

inline void check_pad(const Tensor& x, const Tensor& indices, int64_t rows) {
  check(rows >= 0, "rows must not be negative, got ", rows);
  check_unpad(x, indices);
  check(indices.size(0) == x.size(0), "indices must be (T,) = (", x.size(0), ",), got ", indices);
}

/// The shape and dtype of cu_seqlens (B + 1,).
inline void check_tiles(const Tensor& cu_seqlens, int64_t total, int64_t rows) {
  check(rows >= 1, "rows must be at least 1, got ", rows);
  check(total >= 0, "total must not be negative, got ", total);
  check_dim(cu_seqlens, "cu_seqlens", 1);
  check_dtype(cu_seqlens, "cu_seqlens", {ScalarType::Int});
  check(cu_seqlens.size(0) >= 1, "cu_seqlens must be (B + 1,), got ", cu_seqlens);
}

}  // namespace modernbert_fast
