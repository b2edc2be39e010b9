// Attention inside packed texts, global or windowed, forward and backward. Reference:
// modernbert_fast/reference/attention.py

// Keys between two visits to the running maximum: their scores and values stay in the L2 cache.
constexpr index_t kKeyStep = 256;
static_assert(kKeyStep % kTileColumns == 0, "a step is whole panels");

AttentionScratch attention_scratch(index_t D, index_t longest) {
  const index_t wide = whole_tiles(D), keys = whole_tiles(longest);
  return {
      kTileColumns * D,
      kQueryBlock * (D + wide + kKeyStep + 2),
      keys * (3 * D + 3 * wide) + 2 * kTileRows * keys + 2 * kTileRows * wide,
  };
}

/// Row of q (part 0), k (1) or v (2), rotated: y (D,).
template <class T, class Y>
MODERNBERT_FAST_INLINE void read_head(const AttentionArgs& a, index_t token, index_t part, index_t head, Y* y) {
  const T* x = static_cast<const T*>(a.qkv) + token * a.stride_t + part * a.stride_part + head * a.stride_h;
  if (part < 2 && a.rotary.positions) return rotate(x, a.rotary, token, y);
  for_row(a.D, [&](index_t d, auto lanes, int) MODERNBERT_FAST_LAMBDA { store(y + d, load(x + d, lanes), lanes); });
}

MODERNBERT_FAST_INLINE void scale_row(float* x, index_t n, float factor) {
  for_row(n, [&](index_t d, auto lanes, int)
                 MODERNBERT_FAST_LAMBDA { store(x + d, load(x + d, lanes) * splat(factor), lanes); });
}

/// rows (n, D) -> panels of kTileColumns rows, transposed: (whole_tiles(n) / kTileColumns, D, kTileColumns).
void to_panels(const float* rows, index_t n, index_t D, float* panels) {
  for (index_t first = 0; first < n; first += kTileColumns, panels += D * kTileColumns)
    for (index_t v = 0; v < kTileVecs; ++v)
      pack_transposed(rows + (first + v * kLanes) * D, D, smaller(larger(n - first - v * kLanes, 0), kLanes), D,
                      panels + v * kLanes, kTileColumns);
}

/// Writes a row of dq, dk or dv; x (D,) is overwritten.
template <class T>
MODERNBERT_FAST_INLINE void write_gradient(const AttentionBackwardArgs& a, index_t token, index_t part, index_t head,
                                           float* x) {
  if (part < 2 && a.in.rotary.positions) rotate<kInverse>(x, a.in.rotary, token, x);
  T* const y = static_cast<T*>(a.dqkv) + ((token * 3 + part) * a.in.H + head) * a.in.D;
  for_row(a.in.D, [&](index_t d, auto lanes, int) MODERNBERT_FAST_LAMBDA { store(y + d, load(x + d, lanes), lanes); });
}

// ---- which keys a query sees

struct Range {
  index_t begin, end;
};

/// Keys, counted from the text's start, that queries [first, first + rows) may see: by rows, of which there are at
/// most as many as columns between any two tokens.
MODERNBERT_FAST_INLINE Range reach(index_t window, index_t first, index_t rows, index_t length) {
  if (window < 0) return {0, length};
  return {larger(0, first - smaller(window, first)), smaller(length, first + rows + smaller(window, length))};
}

/// Whole panels around a range.
MODERNBERT_FAST_INLINE Range panels_around(Range keys) {
  return {keys.begin / kTileColumns * kTileColumns, whole_tiles(keys.end)};
}

/// s[j - keys.begin] = -inf for every j of keys that query i of the text does not see.
MODERNBERT_FAST_INLINE void hide(const AttentionArgs& a, index_t start, index_t i, Range keys, index_t length,
                                 float* s) {
  const float hidden = -__builtin_inff();
  const Range seen = reach(a.window, i, 1, length);
  for (index_t j = keys.begin; j < smaller(keys.end, seen.begin); ++j) s[j - keys.begin] = hidden;
  for (index_t j = larger(keys.begin, seen.end); j < keys.end; ++j) s[j - keys.begin] = hidden;
  if (a.window < 0 || !a.columns) return;
  const int64_t column = a.columns[start + i];
  for (index_t j = larger(keys.begin, seen.begin); j < smaller(keys.end, seen.end); ++j) {
    const int64_t distance = column - a.columns[start + j];
    if (distance > a.window || -distance > a.window) s[j - keys.begin] = hidden;
  }
}

/// The largest of x[0..n), n a multiple of kLanes; `least` if that is larger.
MODERNBERT_FAST_INLINE float largest(const float* x, index_t n, float least) {
  Vec best[2] = {splat(least), splat(least)};
  for (index_t j = 0; j < n; j += kTileColumns)
    for (index_t v = 0; v < kTileVecs; ++v) {
      const Vec value = load(x + j + v * kLanes);
      best[v] = value > best[v] ? value : best[v];
    }
  float lane[kLanes];
  store(lane, best[0] > best[1] ? best[0] : best[1]);
  float peak = lane[0];
  for (index_t i = 1; i < kLanes; ++i) peak = lane[i] > peak ? lane[i] : peak;
  return peak;
}

/// y[j] = exp(x[j] - peak) for j < n, a multiple of kTileColumns; y may start where x does or before. Returns the sum.
template <class Y>
MODERNBERT_FAST_INLINE float exponentials(const float* x, index_t n, float peak, Y* y) {
  const Vec base = splat(peak > -__builtin_inff() ? peak : 0.0f);  // all hidden: all zero
  Sum total;
  for (index_t j = 0; j < n; j += kTileColumns)
    for (index_t v = 0; v < kTileVecs; ++v) {
      const Vec p = exp_not_positive(load(x + j + v * kLanes) - base);
      store(y + j + v * kLanes, p);
      total.part[v] += p;
    }
  return total.total();
}

// ---- forward, with a product of fp32 or of bfloat16

/// Rows of v, kTileColumns columns of them from d on -> (kTileColumns / kPack, kTileColumns), zero where there is
/// nothing: hidden keys weigh 0, but 0 * NaN is NaN.
template <class T, class Product>
void pack_values(const AttentionArgs& a, const KeyPanel& panel, index_t head, index_t d, float* values) {
  const T* const v =
      static_cast<const T*>(a.qkv) + panel.first * a.stride_t + 2 * a.stride_part + head * a.stride_h + d;
  const index_t columns = smaller(a.D - d, kTileColumns);
  memset(values, 0, kTileColumns / Product::kPack * kTileColumns * sizeof(float));
  if constexpr (is_same<Product, Fp32Product>) {
    pack_rows(v, a.stride_t, panel.keys, columns, values, kTileColumns, columns);
  } else {
    pack_row_pairs(v, a.stride_t, panel.keys, columns, values, kTileColumns, columns);
  }
}

template <class T, class Product>
void pack_heads(const AttentionForwardArgs& a, const KeyPanel* panels, index_t begin, index_t end, float* scratch) {
  using Element = typename Product::Element;
  const index_t D = a.in.D, depth = D / Product::kPack, wide = whole_tiles(D);
  Element* const rows = reinterpret_cast<Element*>(scratch);  // (kTileColumns, D)
  for (index_t p = begin; p < end; ++p)
    for (index_t g = 0; g < a.heads; ++g) {
      const index_t head = a.first_head + g;
      for (index_t r = 0; r < panels[p].keys; ++r) read_head<T>(a.in, panels[p].first + r, 1, head, rows + r * D);
      to_panels(scratch, panels[p].keys, depth, a.keys + (g * a.panels + p) * depth * kTileColumns);
      for (index_t d = 0; d < wide; d += kTileColumns)
        pack_values<T, Product>(
            a.in, panels[p], head, d,
            a.values + ((g * wide + d) * a.panels + p * kTileColumns) / Product::kPack * kTileColumns);
    }
}

/// factor = exact * rest: queries times `exact` lose nothing when they are rounded to Product's elements, since it is a
/// power of two, and scores are multiplied by `rest` where it is not 1.
struct Scale {
  float exact, rest;
};

template <class Product>
MODERNBERT_FAST_INLINE Scale split_scale(float factor) {
  if (is_same<typename Product::Element, float>) return {factor, 1.0f};
  const float power = bit_cast<float>(bit_cast<uint32_t>(factor) & 0xff800000u), rest = factor / power;
  return rest >= 1.0f && rest < 2.0f ? Scale{power, rest} : Scale{factor, 1.0f};
}

template <class T, class Product>
void query_block(const AttentionForwardArgs& a, const QueryBlock& block, float* scratch) {
  using Element = typename Product::Element;
  constexpr index_t kRows = Product::kRows, kPack = Product::kPack;
  static_assert(kQueryBlock % kRows == 0, "scratch has room for whole groups of rows");
  const index_t D = a.in.D, depth = D / kPack, wide = whole_tiles(D), length = block.end - block.start;
  const index_t first = block.first - block.start, rows = smaller(kQueryBlock, length - first);
  float* const sums = scratch;                                         // (rows, wide)
  float* const scores = sums + kQueryBlock * wide;                     // (rows, kKeyStep)
  float* const peak = scores + kQueryBlock * kKeyStep;                 // (rows,)
  float* const total = peak + kQueryBlock;                             // (rows,)
  Element* const q = reinterpret_cast<Element*>(total + kQueryBlock);  // (rows, D)
  Element* const weights = reinterpret_cast<Element*>(scores);         // in place: (rows, kPack * kKeyStep)
  const index_t g = block.head - a.first_head;
  const float* const keys = a.keys + (g * a.panels + block.panel) * depth * kTileColumns;
  const float* const values = a.values + (g * wide * a.panels + block.panel * kTileColumns) / kPack * kTileColumns;

  const Scale scale = split_scale<Product>(a.in.scale);
  for (index_t r = 0; r < rows; ++r) {
    float* const row = scores;  // not in use yet
    read_head<T>(a.in, block.first + r, 0, block.head, row);
    for_row(D, [&](index_t d, auto lanes, int)
                   MODERNBERT_FAST_LAMBDA { store(q + r * D + d, load(row + d, lanes) * splat(scale.exact), lanes); });
    peak[r] = -__builtin_inff();
    total[r] = 0;
  }
  memset(sums, 0, rows * wide * sizeof(float));

  const Range all = panels_around(reach(a.in.window, first, rows, length));
  for (index_t step = all.begin; step < all.end; step += kKeyStep) {
    const Range step_keys = {step, smaller(step + kKeyStep, all.end)};
    // The part of the step that a group of rows sees.
    const auto seen = [&](index_t r) MODERNBERT_FAST_LAMBDA -> Range {
      const Range group = panels_around(reach(a.in.window, first + r, smaller(kRows, rows - r), length));
      return {larger(step_keys.begin, group.begin), smaller(step_keys.end, group.end)};
    };
    for (index_t j = step_keys.begin; j < step_keys.end; j += kTileColumns)
      for (index_t r = 0; r < rows; r += kRows) {
        const Range group = seen(r);
        if (j < group.begin || j >= group.end) continue;
        multiply<Product>(smaller(kRows, rows - r), q + r * D, D, keys + j * depth, depth,
                          scores + r * kKeyStep + j - step, kKeyStep, false);
      }
    for (index_t r = 0; r < rows; ++r) {
      const Range group = seen(r / kRows * kRows);
      if (group.begin >= group.end) continue;
      float* const s = scores + r * kKeyStep + group.begin - step;
      const index_t n = group.end - group.begin;
      if (scale.rest != 1.0f) scale_row(s, n, scale.rest);
      hide(a.in, block.start, first + r, group, length, s);
      const float higher = largest(s, n, peak[r]);
      const float kept = higher > peak[r] ? exp_not_positive(splat(peak[r] - higher))[0] : 1.0f;
      total[r] = total[r] * kept + exponentials(s, n, higher, weights + r * kPack * kKeyStep);
      if (kept != 1.0f) scale_row(sums + r * wide, wide, kept);
      peak[r] = higher;
    }
    for (index_t d = 0; d < wide; d += kTileColumns)
      for (index_t r = 0; r < rows; r += kRows) {
        const Range group = seen(r);
        if (group.begin >= group.end) continue;
        multiply<Product>(smaller(kRows, rows - r), weights + r * kPack * kKeyStep, kPack * kKeyStep,
                          values + (d * a.panels + group.begin) / kPack * kTileColumns,
                          (group.end - group.begin) / kPack, sums + r * wide + d, wide, true);
      }
  }

  for (index_t r = 0; r < rows; ++r) {
    T* const o = static_cast<T*>(a.o) + ((block.first + r) * a.in.H + block.head) * D;
    const Vec sum = splat(total[r]);
    for_row(D, [&](index_t d, auto lanes, int)
                   MODERNBERT_FAST_LAMBDA { store(o + d, load(sums + r * wide + d) / sum, lanes); });
    a.lse[block.head * a.in.T + block.first + r] = peak[r] + __builtin_logf(total[r]);
  }
}

void attention_pack(const AttentionForwardArgs& a, const KeyPanel* panels, index_t begin, index_t end, float* scratch) {
  switch (a.in.dtype) {
    case DType::kFloat: return pack_heads<float, Fp32Product>(a, panels, begin, end, scratch);
    case DType::kBFloat16:
      if (BFloat16Product::fits(a.in.D)) return pack_heads<BFloat16, BFloat16Product>(a, panels, begin, end, scratch);
      return pack_heads<BFloat16, Fp32Product>(a, panels, begin, end, scratch);
    case DType::kHalf: return pack_heads<Half, Fp32Product>(a, panels, begin, end, scratch);
  }
}

template <class T, class Product>
void query_blocks(const AttentionForwardArgs& a, const QueryBlock* blocks, index_t begin, index_t end, float* scratch) {
  for (index_t i = begin; i < end; ++i) query_block<T, Product>(a, blocks[i], scratch);
}

void attention_forward(const AttentionForwardArgs& a, const QueryBlock* blocks, index_t begin, index_t end,
                       float* scratch) {
  switch (a.in.dtype) {
    case DType::kFloat: return query_blocks<float, Fp32Product>(a, blocks, begin, end, scratch);
    case DType::kBFloat16:
      if (!BFloat16Product::fits(a.in.D)) return query_blocks<BFloat16, Fp32Product>(a, blocks, begin, end, scratch);
      begin_blocks();
      query_blocks<BFloat16, BFloat16Product>(a, blocks, begin, end, scratch);
      return end_blocks();
    case DType::kHalf: return query_blocks<Half, Fp32Product>(a, blocks, begin, end, scratch);
  }
}

// ---- backward: one text and head at a time, a group of queries against all keys they see

template <class T>
void head_backward(const AttentionBackwardArgs& a, const HeadOfText& pair, float* scratch) {
  const index_t D = a.in.D, wide = whole_tiles(D), length = pair.end - pair.start, keys = whole_tiles(length);
  const auto take = [&](index_t floats) MODERNBERT_FAST_LAMBDA {
    float* const part = scratch;
    scratch += floats;
    return part;
  };
  float* const k_panels = take(keys * D);  // (keys / W, D, W)
  float* const v_panels = take(keys * D);
  float* const k = take(keys * wide);   // (keys, wide), in panels of columns: (wide / W, keys, W)
  float* const dk = take(keys * wide);  // (keys, wide)
  float* const dv = take(keys * wide);
  float* const rows = take(keys * D);       // to make the panels from
  float* const p = take(kTileRows * keys);  // (kTileRows, keys)
  float* const ds = take(kTileRows * keys);
  float* const q = take(kTileRows * wide);  // (kTileRows, wide), zero beyond D
  float* const d_o = take(kTileRows * wide);

  for (index_t j = 0; j < length; ++j) read_head<T>(a.in, pair.start + j, 1, pair.head, rows + j * D);
  to_panels(rows, length, D, k_panels);
  for (index_t d = 0; d < wide; d += kTileColumns) {
    float* const panel = k + d * keys;
    pack_rows(rows + d, D, length, smaller(D - d, kTileColumns), panel, kTileColumns, kTileColumns);
    memset(panel + length * kTileColumns, 0, (keys - length) * kTileColumns * sizeof(float));
  }
  for (index_t j = 0; j < length; ++j) read_head<T>(a.in, pair.start + j, 2, pair.head, rows + j * D);
  to_panels(rows, length, D, v_panels);
  memset(dk, 0, keys * wide * sizeof(float));
  memset(dv, 0, keys * wide * sizeof(float));
  for (index_t first = 0; first < length; first += kTileRows) {
    const index_t count = smaller(kTileRows, length - first);
    const Range seen = panels_around(reach(a.in.window, first, count, length));
    const index_t n = seen.end - seen.begin;
    for (index_t r = 0; r < count; ++r) {
      const index_t token = pair.start + first + r;
      memset(q + r * wide, 0, wide * sizeof(float));
      read_head<T>(a.in, token, 0, pair.head, q + r * wide);
      scale_row(q + r * wide, D, a.in.scale);
      const T* x = static_cast<const T*>(a.d_o) + token * a.d_o_stride_t + pair.head * a.d_o_stride_h;
      pack_rows(x, 0, 1, D, d_o + r * wide, wide, wide);
    }
    for (index_t j = seen.begin; j < seen.end; j += kTileColumns) {
      tile_rows(count, q, wide, 1, k_panels + j * D, kTileColumns, D, p + j - seen.begin, keys, false);
      tile_rows(count, d_o, wide, 1, v_panels + j * D, kTileColumns, D, ds + j - seen.begin, keys, false);
    }
    for (index_t r = 0; r < count; ++r) {
      float *const weights = p + r * keys, *const dweights = ds + r * keys;
      hide(a.in, pair.start, first + r, seen, length, weights);
      const Vec total = splat(exponentials(weights, n, largest(weights, n, -__builtin_inff()), weights));
      Sum delta;
      for (index_t j = 0; j < n; j += kLanes) {
        const Vec weight = load(weights + j) / total;
        store(weights + j, weight);
        delta.part[0] += weight * load(dweights + j);
      }
      const Vec mean = splat(delta.total());
      for (index_t j = 0; j < n; j += kLanes) store(dweights + j, load(weights + j) * (load(dweights + j) - mean));
    }
    for (index_t j = 0; j < n; j += kTileRows) {
      const index_t some = smaller(kTileRows, n - j);
      for (index_t d = 0; d < wide; d += kTileColumns) {
        tile_rows(some, ds + j, 1, keys, q + d, wide, count, dk + (seen.begin + j) * wide + d, wide, true);
        tile_rows(some, p + j, 1, keys, d_o + d, wide, count, dv + (seen.begin + j) * wide + d, wide, true);
      }
    }
    float* const dq = q;  // which is in dk by now
    for (index_t d = 0; d < wide; d += kTileColumns)
      tile_rows(count, ds, keys, 1, k + (d * keys + seen.begin * kTileColumns), kTileColumns, n, dq + d, wide, false);
    for (index_t r = 0; r < count; ++r) {
      scale_row(dq + r * wide, D, a.in.scale);
      write_gradient<T>(a, pair.start + first + r, 0, pair.head, dq + r * wide);
    }
  }
  for (index_t j = 0; j < length; ++j) {
    write_gradient<T>(a, pair.start + j, 1, pair.head, dk + j * wide);
    write_gradient<T>(a, pair.start + j, 2, pair.head, dv + j * wide);
  }
}

void attention_backward(const AttentionBackwardArgs& a, const HeadOfText* pairs, index_t begin, index_t end,
                        float* scratch) {
  for (index_t i = begin; i < end; ++i) switch (a.in.dtype) {
      case DType::kFloat: head_backward<float>(a, pairs[i], scratch); break;
      case DType::kBFloat16: head_backward<BFloat16>(a, pairs[i], scratch); break;
      case DType::kHalf: head_backward<Half>(a, pairs[i], scratch); break;
    }
}
