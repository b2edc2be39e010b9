// Attention inside packed texts, global or windowed, forward and backward. Reference:
// modernbert_fast/reference/attention.py

// Keys between two visits to the running maximum: they and their values stay in the L2 cache for a block of queries,
// and a group's scores in L1.
constexpr index_t kKeyStep = kMultipliesBlocks ? 256 : 512;
static_assert(kKeyStep % kTileColumns == 0, "a step is whole panels");

AttentionScratch attention_scratch(index_t D, index_t longest) {
  const index_t wide = whole_tiles(D), keys = whole_tiles(longest);
  return {
      kTileColumns * D,
      kQueryBlock * (D + wide + kLanes + 1) + larger(kTileRows, BFloat16Product::kRows) * kKeyStep,
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

template <class X>
MODERNBERT_FAST_INLINE void scale_row(X* x, index_t n, float factor) {
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

/// The range from and to multiples of grain.
MODERNBERT_FAST_INLINE Range widened(Range keys, index_t grain) {
  return {keys.begin / grain * grain, (keys.end + grain - 1) / grain * grain};
}

/// s[j - keys.begin] = -inf for every j of keys, whole vectors of them, that query i of the text does not see.
MODERNBERT_FAST_INLINE void hide(const AttentionArgs& a, index_t start, index_t i, Range keys, index_t length,
                                 float* s) {
  const Vec hidden = splat(-__builtin_inff());
  const Range seen = reach(a.window, i, 1, length);
  Bits lane;
  for (index_t l = 0; l < kLanes; ++l) lane[l] = l;
  const auto hide_around = [&](index_t j) MODERNBERT_FAST_LAMBDA {
    const Bits key = lane + static_cast<uint32_t>(j - seen.begin);
    float* const p = s + j - keys.begin;
    store(p, key < Bits{} + static_cast<uint32_t>(seen.end - seen.begin) ? load(p) : hidden);
  };
  for (index_t j = keys.begin; j < smaller(keys.end, seen.begin); j += kLanes) hide_around(j);
  for (index_t j = larger(keys.begin, seen.end / kLanes * kLanes); j < keys.end; j += kLanes) hide_around(j);
  if (a.attended)
    for (index_t j = keys.begin; j < keys.end; j += kLanes) {
      float* const p = s + j - keys.begin;
      store(p, load(a.attended + start + j) != Vec{} ? load(p) : hidden);
    }
  if (a.window < 0 || !a.columns) return;
  const int64_t column = a.columns[start + i];
  for (index_t j = larger(keys.begin, seen.begin); j < smaller(keys.end, seen.end); ++j) {
    const int64_t distance = column - a.columns[start + j];
    if (distance > a.window || -distance > a.window) s[j - keys.begin] = hidden[0];
  }
}

/// The largest of x[0..n), n a multiple of kLanes; `least` if that is larger.
MODERNBERT_FAST_INLINE float largest(const float* x, index_t n, float least) {
  Vec best[2] = {splat(least), splat(least)};
  index_t j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
    best[0] = larger(load(x + j), best[0]);
    best[1] = larger(load(x + j + kLanes), best[1]);
  }
  if (j < n) best[0] = larger(load(x + j), best[0]);
  return largest_lane(larger(best[0], best[1]));
}

/// y[j] = 2^(factor (x[j] - peak)) for j < n, a multiple of kLanes; up to the next multiple of 2 kLanes it is 0. y may
/// start where x does or before. Returns the sum, in parts.
template <class Y>
MODERNBERT_FAST_INLINE Vec exponentials(const float* x, index_t n, float peak, float factor, Y* y) {
  const Vec base = splat(peak > -__builtin_inff() ? peak : 0.0f);  // all hidden: all zero
  const auto power = [&](index_t j) MODERNBERT_FAST_LAMBDA {
    return exp2_not_positive<is_same<Y, BFloat16>>((load(x + j) - base) * splat(factor));
  };
  Vec total[2] = {};
  index_t j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
    const Vec low = power(j), high = power(j + kLanes);
    total[0] += low;
    total[1] += high;
    store_two(y + j, low, high);
  }
  if (j < n) {
    const Vec last = power(j);
    total[0] += last;
    store_two(y + j, last, Vec{});
  }
  return total[0] + total[1];
}

// ---- forward, with a product of fp32 or of bfloat16

/// Rows of v, kTileColumns columns of them from d on -> (kTileColumns / kPack, kTileColumns), zero where there is
/// nothing: hidden keys weigh 0, but 0 * NaN is NaN.
template <class T, class Product>
void pack_values(const AttentionArgs& a, const KeyPanel& panel, index_t head, index_t d, float* values) {
  const T* const v =
      static_cast<const T*>(a.qkv) + panel.first * a.stride_t + 2 * a.stride_part + head * a.stride_h + d;
  const index_t columns = smaller(a.D - d, kTileColumns);
  if (panel.keys < kTileColumns || columns < kTileColumns)
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

template <class T, class Product>
void query_block(const AttentionForwardArgs& a, const QueryBlock& block, float* scratch) {
  using Element = typename Product::Element;
  constexpr index_t kRows = Product::kRows, kPack = Product::kPack;
  static_assert(kQueryBlock % kRows == 0, "scratch has room for whole groups of rows");
  const index_t D = a.in.D, depth = D / kPack, wide = whole_tiles(D), length = block.end - block.start;
  const index_t first = block.first - block.start, rows = smaller(kQueryBlock, length - first);
  float* const sums = scratch;                                               // (kQueryBlock, wide)
  float* const totals = sums + kQueryBlock * wide;                           // (kQueryBlock, kLanes), in parts
  float* const peaks = totals + kQueryBlock * kLanes;                        // (kQueryBlock,)
  float* const scores = peaks + kQueryBlock;                                 // (kRows, kKeyStep), in the L1 cache
  Element* const q = reinterpret_cast<Element*>(scores + kRows * kKeyStep);  // (kQueryBlock, D)
  Element* const weights = reinterpret_cast<Element*>(scores);               // in place: (kRows, kPack * kKeyStep)
  const index_t g = block.head - a.first_head;
  const float* const keys = a.keys + (g * a.panels + block.panel) * depth * kTileColumns;
  const float* const values = a.values + (g * wide * a.panels + block.panel * kTileColumns) / kPack * kTileColumns;

  // Scores are scaled after the product, in fp32; the sign, which decides what is largest, goes to the queries before.
  const float scale = __builtin_fabsf(a.in.scale), least = 0x1p-126f;  // -inf * 0 would be NaN
  const float factor = (scale < least ? least : scale) * kLog2E;
  for (index_t r = 0; r < rows; ++r) {
    read_head<T>(a.in, block.first + r, 0, block.head, q + r * D);
    if (a.in.scale < 0) scale_row(q + r * D, D, -1.0f);
    peaks[r] = -__builtin_inff();
  }
  memset(sums, 0, (totals + rows * kLanes - sums) * sizeof(float));

  constexpr index_t kGrain = kMultipliesBlocks ? kTileColumns : kLanes;
  const Range all = widened(reach(a.in.window, first, rows, length), kGrain);
  for (index_t step = all.begin; step < all.end; step += kKeyStep)
    for (index_t r = 0; r < rows; r += kRows) {
      const index_t some = smaller(kRows, rows - r);
      const Range near = reach(a.in.window, first + r, some, length), whole = widened(near, kGrain);
      const Range seen = {larger(step, whole.begin), smaller(step + kKeyStep, whole.end)};
      const index_t n = seen.end - seen.begin;
      if (n <= 0) continue;
      for (index_t j = seen.begin; j < seen.end;) {
        const float* const panel = keys + j / kTileColumns * kTileColumns * depth + j % kTileColumns;
        float* const s = scores + j - seen.begin;
        if (j % kTileColumns || seen.end - j < kTileColumns) {
          multiply<Product, 1>(some, q + r * D, D, panel, depth, s, kKeyStep, false);
          j += kLanes;
        } else {
          multiply<Product>(some, q + r * D, D, panel, depth, s, kKeyStep, false);
          j += kTileColumns;
        }
      }
      float higher[kRows];
      for (index_t i = 0; i < some; ++i) {
        hide(a.in, block.start, first + r + i, seen, length, scores + i * kKeyStep);
        higher[i] = largest(scores + i * kKeyStep, n, peaks[r + i]);
      }
      for (index_t i = 0; i < some; ++i) {
        float *const total = totals + (r + i) * kLanes, *const peak = peaks + r + i;
        if (higher[i] > *peak && *peak > -__builtin_inff()) {  // there are sums, of weights that are too large now
          const float kept = exp2_not_positive<false>(splat((*peak - higher[i]) * factor))[0];
          scale_row(total, kLanes, kept);
          scale_row(sums + (r + i) * wide, wide, kept);
        }
        *peak = higher[i];
        const Vec sum = exponentials(scores + i * kKeyStep, n, *peak, factor, weights + i * kPack * kKeyStep);
        store(total, load(total) + sum);
      }
      // Values at which no weight is other than 0 are left out.
      const Range met = widened({larger(near.begin, seen.begin), smaller(near.end, seen.end)},
                                kMultipliesBlocks ? kTileColumns : kPack);
      for (index_t d = 0; d < wide; d += kTileColumns)
        multiply<Product>(some, weights + met.begin - seen.begin, kPack * kKeyStep,
                          values + (d * a.panels + met.begin) / kPack * kTileColumns, (met.end - met.begin) / kPack,
                          sums + r * wide + d, wide, true);
    }

  for (index_t r = 0; r < rows; ++r) {
    T* const o = static_cast<T*>(a.o) + ((block.first + r) * a.in.H + block.head) * D;
    const float total = sum_of_lanes(load(totals + r * kLanes));
    const bool sees = total != 0;  // else no key is left: nothing is seen
    const Vec share = splat(sees ? 1.0f / total : 0.0f);
    for_row(D, [&](index_t d, auto lanes, int)
                   MODERNBERT_FAST_LAMBDA { store(o + d, load(sums + r * wide + d) * share, lanes); });
    a.lse[block.head * a.in.T + block.first + r] = sees ? peaks[r] * scale + __builtin_logf(total) : -__builtin_inff();
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
    const Range seen = widened(reach(a.in.window, first, count, length), kTileColumns);
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
      const float peak = largest(weights, n, -__builtin_inff());
      const float sum = sum_of_lanes(exponentials(weights, n, peak, kLog2E, weights));
      const Vec total = splat(sum != 0 ? sum : 1.0f);  // nothing is seen: all weights are 0
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
