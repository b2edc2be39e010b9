// Padded batch <-> packed rows. Reference: modernbert_fast/reference/padding.py

template <class T>
index_t plan_count_as(const T* mask, index_t S) {
  index_t count = 0;
  for (index_t s = 0; s < S; ++s) count += mask[s] != 0;
  return count;
}

index_t plan_count(const void* mask, index_t element_size, index_t S) {
  switch (element_size) {
    case 1: return plan_count_as(static_cast<const uint8_t*>(mask), S);
    case 4: return plan_count_as(static_cast<const int32_t*>(mask), S);
    default: return plan_count_as(static_cast<const int64_t*>(mask), S);
  }
}

template <class T>
void plan_fill_as(const T* mask, index_t S, index_t grid_row, int64_t* indices, int32_t* positions) {
  index_t t = 0, first = 0;
  for (index_t s = 0; s < S; ++s) {
    if (mask[s] == 0) continue;
    if (t == 0) first = s;
    indices[t] = grid_row + s;
    positions[t] = static_cast<int32_t>(s - first);
    ++t;
  }
}

void plan_fill(const void* mask, index_t element_size, index_t S, index_t grid_row, int64_t* indices,
               int32_t* positions) {
  switch (element_size) {
    case 1: return plan_fill_as(static_cast<const uint8_t*>(mask), S, grid_row, indices, positions);
    case 4: return plan_fill_as(static_cast<const int32_t*>(mask), S, grid_row, indices, positions);
    default: return plan_fill_as(static_cast<const int64_t*>(mask), S, grid_row, indices, positions);
  }
}

// A row of one element (token ids, labels) is worth a load and a store, not a call of memcpy.
template <index_t kBytes>
void copy_rows_of(const char* x, index_t x_stride, const int64_t* source, index_t begin, index_t end, index_t row_bytes,
                  char* y) {
  const index_t bytes = kBytes ? kBytes : row_bytes;
  for (index_t i = begin; i < end; ++i) {
    if (source[i] < 0)
      memset(y + i * bytes, 0, bytes);
    else
      memcpy(y + i * bytes, x + source[i] * x_stride, bytes);
  }
}

void copy_rows(const char* x, index_t x_stride, const int64_t* source, index_t begin, index_t end, index_t row_bytes,
               char* y) {
  switch (row_bytes) {
    case 1: return copy_rows_of<1>(x, x_stride, source, begin, end, row_bytes, y);
    case 2: return copy_rows_of<2>(x, x_stride, source, begin, end, row_bytes, y);
    case 4: return copy_rows_of<4>(x, x_stride, source, begin, end, row_bytes, y);
    case 8: return copy_rows_of<8>(x, x_stride, source, begin, end, row_bytes, y);
    default: return copy_rows_of<0>(x, x_stride, source, begin, end, row_bytes, y);
  }
}
