// Padded batch <-> packed rows: checks, allocation, threads. The loops are in padding.inl.h.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../checks/padding.h"
#include "binding.h"
#include "isa/isa.h"

namespace modernbert_fast::cpu {

namespace {

std::tuple<Tensor, Tensor, Tensor> padding_plan(const Tensor& mask) {
  check_mask(mask);
  const Tensor rows = as_contiguous(mask);
  const index_t B = mask.size(0), S = mask.size(1), element_size = mask.element_size();

  const char* data = static_cast<const char*>(rows.const_data_ptr());
  const Loops& loop = loops();  // outside the threads, where an error would lose its words
  std::vector<index_t> start(B + 1, 0);
  parallel_rows(B, S, [&](index_t begin, index_t end) {
    for (index_t b = begin; b < end; ++b) start[b + 1] = loop.plan_count(data + b * S * element_size, element_size, S);
  });
  for (index_t b = 0; b < B; ++b) start[b + 1] += start[b];
  const index_t T = start[B];
  check_total(T);

  Tensor indices = new_tensor({T}, ScalarType::Long);
  Tensor cu_seqlens = new_tensor({B + 1}, ScalarType::Int);
  Tensor positions = new_tensor({T}, ScalarType::Int);
  std::copy(start.begin(), start.end(), static_cast<int32_t*>(cu_seqlens.mutable_data_ptr()));
  int64_t* indices_data = static_cast<int64_t*>(indices.mutable_data_ptr());
  int32_t* positions_data = static_cast<int32_t*>(positions.mutable_data_ptr());
  parallel_rows(B, S, [&](index_t begin, index_t end) {
    for (index_t b = begin; b < end; ++b)
      loop.plan_fill(data + b * S * element_size, element_size, S, b * S, indices_data + start[b],
                     positions_data + start[b]);
  });
  return {indices, cu_seqlens, positions};
}

Tensor new_rows(const Tensor& x, index_t rows) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[0] = rows;
  return new_tensor(sizes.data(), x.dim(), x.scalar_type());
}

void copy_all(const RowsOfBytes& from, const int64_t* source, Tensor& y) {
  const char* x = static_cast<const char*>(from.x.const_data_ptr());
  char* out = static_cast<char*>(y.mutable_data_ptr());
  if (from.row_bytes == 0) return;
  CopyRows* const loop = loops().copy_rows;
  parallel_rows(y.size(0), from.row_bytes, [&](index_t begin, index_t end) {
    loop(x, from.stride_bytes, source, begin, end, from.row_bytes, out);
  });
}

/// indices (T,), contiguous, each within [0, rows).
Tensor checked_indices(const Tensor& indices, index_t rows) {
  Tensor contiguous = as_contiguous(indices);
  const int64_t* data = static_cast<const int64_t*>(contiguous.const_data_ptr());
  for (index_t t = 0; t < contiguous.size(0); ++t)
    check_index(data[t] >= 0 && data[t] < rows, "indices[", t, "] = ", data[t], " is outside [0, ", rows, ")");
  return contiguous;
}

Tensor padding_unpad(const Tensor& x, const Tensor& indices) {
  check_unpad(x, indices);
  const Tensor source = checked_indices(indices, x.size(0));
  Tensor y = new_rows(x, indices.size(0));
  copy_all(RowsOfBytes(x), static_cast<const int64_t*>(source.const_data_ptr()), y);
  return y;
}

Tensor padding_pad(const Tensor& x, const Tensor& indices, int64_t rows) {
  check_pad(x, indices, rows);
  const Tensor target = checked_indices(indices, rows);
  const int64_t* target_data = static_cast<const int64_t*>(target.const_data_ptr());
  std::vector<int64_t> source(rows, -1);  // rows that no index names are zero; the last of equal indices wins
  for (index_t t = 0; t < x.size(0); ++t) source[target_data[t]] = t;
  Tensor y = new_rows(x, rows);
  copy_all(RowsOfBytes(x), source.data(), y);
  return y;
}

Tensor padding_tiles(const Tensor& cu_seqlens, int64_t total, int64_t rows) {
  check_tiles(cu_seqlens, total, rows);
  const Tensor bounds = checked_bounds(cu_seqlens, total);
  const int32_t* start = static_cast<const int32_t*>(bounds.const_data_ptr());
  const index_t B = bounds.size(0) - 1;

  const index_t count = total / rows + B;
  Tensor tiles = new_tensor({count, 2}, ScalarType::Int);
  int32_t* data = static_cast<int32_t*>(tiles.mutable_data_ptr());
  index_t tile = 0;
  const auto emit = [&](index_t sequence, index_t first) {
    data[2 * tile] = static_cast<int32_t>(sequence);
    data[2 * tile + 1] = static_cast<int32_t>(first);
    ++tile;
  };
  for (index_t b = 0; b < B; ++b)
    for (index_t first = 0; first < start[b + 1] - start[b]; first += rows) emit(b, first);
  while (tile < count) emit(-1, 0);
  return tiles;
}

}  // namespace

}  // namespace modernbert_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(modernbert_fast_C, CPU, m) {
  using namespace modernbert_fast::cpu;
  m.impl("padding_plan", TORCH_BOX(&padding_plan));
  m.impl("padding_unpad", TORCH_BOX(&padding_unpad));
  m.impl("padding_pad", TORCH_BOX(&padding_pad));
  m.impl("padding_tiles", TORCH_BOX(&padding_tiles));
}
