// Matrix products with sums in fp32. Reference: modernbert_fast/reference/linear.py

// Tiles hold y transposed: their rows are columns of y, made from rows of w, and their columns are rows of x. Weights
// are read where they lie if they are of the product's own elements; others, and transposed ones, are converted kDepth
// at a time. x is packed once by each thread that works on its rows. With glu the first half of a unit's rows makes a,
// the second b of gelu(a) * b.

static_assert(kLinearRows % kTileColumns == 0, "panels are whole");
static_assert(kLinearColumns % kLanes == 0, "columns are turned by whole vectors");
static_assert(kTileDepth % kLanes == 0, "weights are turned by whole vectors");

template <class Product>
constexpr index_t kDepth = kTileDepth * Product::kPack;  // of the inner sum at a time: the same bytes for each product

template <class Product>
constexpr index_t steps_of(index_t depth) {
  return (depth + Product::kPack - 1) / Product::kPack;
}

/// Rows [first, first + kTileColumns) of x -> (steps_of(K), kTileColumns), zero beyond the last.
template <class T, class Product>
void pack_panel(const LinearArgs& a, index_t first, float* panel) {
  const T* const x = static_cast<const T*>(a.x.data);
  const index_t rows = smaller(a.M - first, kTileColumns);
  if (a.x.transposed) {
    if constexpr (Product::kPack == 1)
      return pack_rows(x + first, a.x.stride, a.K, rows, panel, kTileColumns, kTileColumns);
    else
      return pack_row_pairs(x + first, a.x.stride, a.K, rows, panel, kTileColumns, kTileColumns);
  }
  using Unit = typename Product::template Unit<T>;
  const Unit* const units = reinterpret_cast<const Unit*>(x);
  const index_t stride = a.x.stride / Product::kPack;
  for (index_t v = 0; v < kTileColumns; v += kLanes)
    pack_transposed(units + (first + v) * stride, stride, smaller(larger(rows - v, 0), kLanes), a.K / Product::kPack,
                    panel + v, kTileColumns);
}

/// w[first..first + rows)[k..k + depth) -> (rows, kDepth)
template <class T, class Product>
void pack_weights(const LinearArgs& a, index_t first, index_t rows, index_t k, index_t depth, float* block) {
  const T* const w = static_cast<const T*>(a.w.data);
  if constexpr (Product::kPack == 1) {
    if (!a.w.transposed)
      return pack_rows(w + first * a.w.stride + k, a.w.stride, rows, depth, block, kTileDepth, depth);
    for (index_t i = 0; i < depth; i += kLanes)
      pack_transposed(w + (k + i) * a.w.stride + first, a.w.stride, smaller(depth - i, kLanes), rows, block + i,
                      kTileDepth);
  } else {  // transposed, or there would be nothing to convert
    float pairs[kLanes * kLinearColumns];
    for (index_t i = 0; i < depth; i += 2 * kLanes) {
      const index_t count = smaller(depth - i, 2 * kLanes);
      pack_row_pairs(w + (k + i) * a.w.stride + first, a.w.stride, count, rows, pairs, kLinearColumns, rows);
      pack_transposed(pairs, kLinearColumns, steps_of<Product>(count), rows, block + i / 2, kTileDepth);
    }
  }
}

/// Brings the weights of the next unit into the L2 cache, some with every step of this one: memory is as slow as the
/// sums where there are few rows.
class Prefetch {
 public:
  /// For the columns of y that a unit makes from `first` on, during so many steps.
  template <class T>
  MODERNBERT_FAST_INLINE void aim(const T* weights, index_t N, index_t K, bool glu, index_t first, index_t steps) {
    if (first >= N) return;
    const index_t row = K * index_t(sizeof(T)), rows = smaller(N - first, kLinearColumns);
    stretch_ = reinterpret_cast<const char*>(weights) + first * row;
    gate_ = N * row;
    steps_ = glu ? (steps + 1) / 2 : steps;  // in one stretch of memory
    bytes_ = (rows * row + steps_ - 1) / larger(steps_, 1);
  }
  /// For the next `steps` steps.
  MODERNBERT_FAST_INLINE Ahead next(index_t steps) {
    const bool second = done_ >= steps_;
    const Ahead ahead{stretch_ + (second ? gate_ + (done_ - steps_) * bytes_ : done_ * bytes_), bytes_};
    done_ += steps;
    return ahead;
  }

 private:
  static constexpr char kNowhere = 0;
  const char* stretch_ = &kNowhere;
  index_t gate_ = 0, steps_ = 0, bytes_ = 0, done_ = 0;
};

/// What storing it as T and loading it again makes of it: the fused op returns the bits of the two.
template <class T>
MODERNBERT_FAST_INLINE Vec rounded(Vec value) {
  T stored[kLanes];
  store(stored, value);
  return load(stored);
}

/// Brings rows [m, m + rows) of y near, what a unit writes of them from column n on: stores that miss would fill their
/// queue and hold up the tiles after them.
template <class T>
MODERNBERT_FAST_INLINE void fetch_rows(const LinearArgs& a, index_t m, index_t rows, index_t n, index_t columns) {
  constexpr index_t kLine = 64;
  const index_t bytes = columns * index_t(sizeof(T));
  for (index_t r = m; r < smaller(m + rows, a.M); ++r) {
    const char* const y = reinterpret_cast<const char*>(static_cast<const T*>(a.y) + r * a.N + n);
    for (index_t b = 0; b < bytes; b += kLine) __builtin_prefetch(y + b, 1);
    __builtin_prefetch(y + bytes - 1, 1);
  }
}

/// Sums (1 or 2, kLinearColumns, kTileColumns) of one panel -> y[m..m + rows)[n..n + columns).
template <class T, bool kGlu>
void write_panel(const LinearArgs& a, float* sums, index_t m, index_t rows, index_t n, index_t columns) {
  const T* const bias = static_cast<const T*>(a.bias);
  for (index_t c = 0; (kGlu || bias) && c < columns; ++c)
    for (index_t v = 0; v < rows; v += kLanes) {
      float* const sum = sums + c * kTileColumns + v;
      Vec value = load(sum);
      if (bias) value += splat(load(bias + n + c, Partial{1})[0]);
      if constexpr (kGlu) {
        Vec gate = load(sum + kLinearColumns * kTileColumns);
        if (bias) gate += splat(load(bias + a.N + n + c, Partial{1})[0]);
        value = gelu_of(rounded<T>(value)).value * rounded<T>(gate);
      }
      store(sum, value);
    }
  float turned[kTileColumns * kLinearColumns];
  for (index_t c = 0; c < columns; c += kLanes)
    pack_transposed(sums + c * kTileColumns, kTileColumns, smaller(columns - c, kLanes), rows, turned + c,
                    kLinearColumns);
  for (index_t r = 0; r < rows; ++r) {
    T* const y = static_cast<T*>(a.y) + (m + r) * a.N + n;
    for_row(columns, [&](index_t c, auto lanes, int)
                         MODERNBERT_FAST_LAMBDA { store(y + c, load(turned + r * kLinearColumns + c), lanes); });
  }
}

template <class T, class Product, bool kGlu>
void linear_as(const LinearArgs& a, index_t begin, index_t end, float* scratch) {
  using Element = typename Product::Element;
  constexpr index_t kGroups = kGlu ? 2 : 1, kRows = kTileColumns * kTileRows / kLinearColumns;  // of y, to a tile
  const index_t blocks = (a.N + kLinearColumns - 1) / kLinearColumns, panel_steps = steps_of<Product>(a.K);
  float* const panels = scratch;                      // (rows / kTileColumns, panel_steps, kTileColumns)
  float* const sums = panels + a.rows * panel_steps;  // (rows / kTileColumns, kGroups, kLinearColumns, kTileColumns)
  float* const block = sums + a.rows * kGroups * kLinearColumns;  // (kGroups, kLinearColumns, kDepth) Elements
  const bool direct = is_same<T, Element> && !a.w.transposed;
  const index_t w_stride = direct ? a.w.stride : kDepth<Product>;
  index_t packed = -1;  // the first of the rows that panels hold
  for (index_t unit = begin; unit < end; ++unit) {
    const index_t m0 = unit / blocks * a.rows, n0 = unit % blocks * kLinearColumns;
    const index_t rows = smaller(a.M - m0, a.rows), columns = smaller(a.N - n0, kLinearColumns);
    if (packed != m0)
      for (index_t m = 0; m < rows; m += kTileColumns) pack_panel<T, Product>(a, m0 + m, panels + m * panel_steps);
    packed = m0;
    const index_t tiles = (rows + kTileColumns - 1) / kTileColumns * ((columns + kTileRows - 1) / kTileRows);
    Prefetch prefetch;
    const index_t steps_of_unit = tiles * kGroups * panel_steps;
    if (unit + 1 < end) {
      if (!a.w.transposed && a.w.stride == a.K)
        prefetch.aim(static_cast<const T*>(a.w.data), a.N, a.K, kGlu, (unit + 1) % blocks * kLinearColumns,
                     steps_of_unit);
    } else if (a.next.data) {  // this thread's share of it starts where its share of this product does
      const index_t first = begin % blocks * a.next.N / blocks / kLinearColumns * kLinearColumns;
      prefetch.aim(static_cast<const T*>(a.next.data), a.next.N, a.next.K, a.next.glu, first, steps_of_unit);
    }
    for (index_t k = 0; k < a.K || k == 0; k += kDepth<Product>) {
      const index_t depth = smaller(a.K - k, kDepth<Product>), steps = steps_of<Product>(depth);
      const Element* w[kGroups];
      for (index_t g = 0; g < kGroups; ++g) {
        if (direct) {
          w[g] = static_cast<const Element*>(a.w.data) + (g * a.N + n0) * w_stride + k;
        } else {
          float* const rows_of_group = block + g * kLinearColumns * kTileDepth;
          pack_weights<T, Product>(a, g * a.N + n0, columns, k, depth, rows_of_group);
          w[g] = reinterpret_cast<const Element*>(rows_of_group);
        }
      }
      for (index_t m = 0; m < rows; m += kTileColumns) {
        float* const sums_of_panel = sums + m * kGroups * kLinearColumns;
        const bool narrow = rows - m <= kLanes;  // the second vector of the tile would be empty
        const bool last = k + depth >= a.K;
        for (index_t g = 0; g < kGroups; ++g)
          for (index_t c = 0; c < columns; c += kTileRows) {
            if (last && g == 0) fetch_rows<T>(a, m0 + m + c / kTileRows * kRows, kRows, n0, columns);
            const Ahead ahead = prefetch.next(steps);
            const index_t count = smaller(columns - c, kTileRows);
            const Element* const weights = w[g] + c * w_stride;
            const float* const panel = panels + m * panel_steps + k / Product::kPack * kTileColumns;
            float* const sum = sums_of_panel + (g * kLinearColumns + c) * kTileColumns;
            if (narrow)
              tile_rows<Product, 1, kTileRows>(count, weights, w_stride, Product::kPack, panel, kTileColumns, steps,
                                               sum, kTileColumns, k, ahead);
            else
              tile_rows<Product, kTileVecs, kTileRows>(count, weights, w_stride, Product::kPack, panel, kTileColumns,
                                                       steps, sum, kTileColumns, k, ahead);
          }
        if (last) write_panel<T, kGlu>(a, sums_of_panel, m0 + m, smaller(rows - m, kTileColumns), n0, columns);
      }
    }
  }
}

/// Whether pairs of elements can be read, or made, of both operands.
MODERNBERT_FAST_INLINE bool comes_in_pairs(const LinearArgs& a) {
  return (a.x.transposed || (a.K % 2 == 0 && (a.M == 1 || a.x.stride % 2 == 0))) && (a.w.transposed || a.K % 2 == 0);
}

template <class T, class Product = Fp32Product>
void linear_or_glu(const LinearArgs& a, index_t begin, index_t end, float* scratch) {
  a.glu ? linear_as<T, Product, true>(a, begin, end, scratch) : linear_as<T, Product, false>(a, begin, end, scratch);
}

void linear(const LinearArgs& a, index_t begin, index_t end, float* scratch) {
  switch (a.dtype) {
    case DType::kFloat: return linear_or_glu<float>(a, begin, end, scratch);
    case DType::kBFloat16:
      if (kMultipliesBFloat16 && comes_in_pairs(a))
        return linear_or_glu<BFloat16, BFloat16Product>(a, begin, end, scratch);
      return linear_or_glu<BFloat16>(a, begin, end, scratch);
    case DType::kHalf: return linear_or_glu<Half>(a, begin, end, scratch);
  }
}

/// The sum of `rows` rows, each `stride` after the one before: of halves, down to a few. One chain would drift.
template <class T, class Lanes>
Vec sum_rows_of(const T* x, index_t stride, index_t rows, Lanes lanes) {
  constexpr index_t kFew = 16;
  if (rows > kFew) {
    const index_t half = rows / 2;
    return sum_rows_of(x, stride, half, lanes) + sum_rows_of(x + half * stride, stride, rows - half, lanes);
  }
  Vec sum = {};
  for (index_t r = 0; r < rows; ++r) sum += load(x + r * stride, lanes);
  return sum;
}

template <class T>
void column_sum_as(const ColumnSumArgs& a, index_t begin, index_t end) {
  const T* const x = static_cast<const T*>(a.x);
  for (index_t c = begin; c < end; c += kLanes) {
    const Partial lanes{smaller(end - c, kLanes)};
    store(static_cast<T*>(a.y) + c, sum_rows_of(x + c, a.stride, a.rows, lanes), lanes);
  }
}

void column_sum(const ColumnSumArgs& a, index_t begin, index_t end) {
  switch (a.dtype) {
    case DType::kFloat: return column_sum_as<float>(a, begin, end);
    case DType::kBFloat16: return column_sum_as<BFloat16>(a, begin, end);
    case DType::kHalf: return column_sum_as<Half>(a, begin, end);
  }
}
