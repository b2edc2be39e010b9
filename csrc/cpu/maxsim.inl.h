// Late interaction: the best document token for every query token. Reference: modernbert_fast/reference/maxsim.py

// Document tokens that meet every query token before the next ones are read: they stay in the L2 cache. Blocks start
// at the document's first token.
constexpr index_t kDocumentBlock = 96;

index_t maxsim_scratch(const MaxSimArgs& a, index_t columns) {
  return columns + kTileRows * kTileColumns + kDocumentBlock * a.D;
}

// ---- forward

/// Whether the documents that a group meets are multiplied as they are stored, as int8.
MODERNBERT_FAST_INLINE bool multiplies_digits(const MaxSimArgs& a, const QueryGroup& group) {
  return kMultipliesBytes && a.bytes && a.D <= kMostDigits && group.even;
}

void maxsim_pack(const MaxSimForwardArgs& a, index_t begin, index_t end) {
  const MaxSimArgs& in = a.in;
  for (index_t g = begin; g < end; ++g) {
    const index_t first = in.cu_queries[a.groups[g].first], tokens = in.cu_queries[a.groups[g].last] - first;
    const index_t panel_rows = maxsim_panel_rows(in);
    float* panel = a.panels + a.groups[g].column * panel_rows;
    for (index_t t = 0; t < tokens; t += kTileColumns, panel += panel_rows * kTileColumns) {
      if (multiplies_digits(in, a.groups[g])) {
        pack_digits(in.q + (first + t) * in.q_stride, in.q_stride, smaller(tokens - t, kTileColumns), in.D, panel);
        continue;
      }
      for (index_t v = 0; v < kTileColumns; v += kLanes)
        pack_transposed(in.q + (first + t + v) * in.q_stride, in.q_stride, smaller(larger(tokens - t - v, 0), kLanes),
                        in.D, panel + v, kTileColumns);
    }
  }
}

/// best (kTileColumns,) and its token, after the scores (rows, kTileColumns) of tokens [token, token + rows). The first
/// of equals stays, and so does the first NaN.
MODERNBERT_FAST_INLINE void keep_best(const float* scores, index_t rows, index_t token, float* best, int32_t* winner) {
  for (index_t v = 0; v < kTileColumns; v += kLanes) {
    Vec highest = load(best + v);
    Vec peak = load(scores + v), sum = peak;  // the sum is NaN if a score is
    for (index_t r = 1; r < rows; ++r) {
      const Vec score = load(scores + r * kTileColumns + v);
      peak = larger(score, peak);
      sum += score;
    }
    if (at_most(peak, highest) && at_most(sum, sum)) continue;  // nothing new, as in most tiles
    Bits at;
    __builtin_memcpy(&at, winner + v, sizeof(at));
    for (index_t r = 0; r < rows; ++r) {
      const Vec score = load(scores + r * kTileColumns + v);
      const auto wins = ~(score <= highest) & (highest == highest);
      highest = wins ? score : highest;
      at = wins ? Bits{} + static_cast<uint32_t>(token + r) : at;
    }
    store(best + v, highest);
    __builtin_memcpy(winner + v, &at, sizeof(at));
  }
}

/// The scores of a block of document tokens (tokens, D) with the panels of a group, kept where they are the best.
/// The next block, of this document or of the next, arrives meanwhile; past the end of a tensor fetching does nothing.
template <class T, bool kAsDigits>
void score_block(const MaxSimForwardArgs& a, const QueryGroup& group, const T* d, index_t tokens, index_t token,
                 index_t columns, float* best, int32_t* winner, float* scores, float* block) {
  const MaxSimArgs& in = a.in;
  constexpr index_t kRows = kAsDigits ? kDigitRows : kTileRows;
  const index_t panel_rows = maxsim_panel_rows(in), quads = quads_of(in.D);
  const float* x = block;
  index_t x_stride = in.D;
  if constexpr (kAsDigits) {
    pack_offset(d, in.d_stride, tokens, in.D, reinterpret_cast<uint8_t*>(block));
  } else if constexpr (is_same<T, float>) {
    x = d;
    x_stride = in.d_stride;
  } else {
    pack_rows(d, in.d_stride, tokens, in.D, block, in.D, in.D);
  }
  for (index_t c = 0; c < columns; c += kTileColumns) {
    const float* const panel = a.panels + (group.column + c) * panel_rows;
    for (index_t r = 0; r < tokens; r += kRows) {
      const index_t rows = smaller(kRows, tokens - r);
      const char* const next = reinterpret_cast<const char*>(d + (r + kDocumentBlock) * in.d_stride);
      const index_t ahead = c == 0 ? rows * in.d_stride * sizeof(T) : 0;
      if constexpr (kAsDigits) {
        digit_rows(rows, reinterpret_cast<const uint8_t*>(block) + r * 4 * quads, quads, panel, scores,
                   Ahead{next, ahead / larger(quads, 1)});
      } else {
        const index_t bytes = ahead / larger(in.D, 1);
        for (index_t k = 0; k < in.D || k == 0; k += kTileDepth)
          tile_rows(rows, x + r * x_stride + k, x_stride, 1, panel + k * kTileColumns, kTileColumns,
                    smaller(kTileDepth, in.D - k), scores, kTileColumns, k > 0, Ahead{next + k * bytes, bytes});
      }
      keep_best(scores, rows, token + r, best + c, winner + c);
    }
  }
}

template <class T, bool kAsDigits = false>
void score_document(const MaxSimForwardArgs& a, const QueryGroup& group, index_t document, float* scratch,
                    int32_t* winner) {
  const MaxSimArgs& in = a.in;
  const index_t start = in.cu_documents[document], length = in.cu_documents[document + 1] - start;
  const index_t q_start = in.cu_queries[group.first], columns = whole_tiles(in.cu_queries[group.last] - q_start);
  float* const best = scratch;                             // (columns,)
  float* const scores = best + columns;                    // (kTileRows, kTileColumns)
  float* const block = scores + kTileRows * kTileColumns;  // (kDocumentBlock, D)
  for (index_t c = 0; c < columns; c += kLanes) store(best + c, splat(-__builtin_inff()));
  memset(winner, 0, columns * sizeof(int32_t));

  for (index_t first = 0; first < length; first += kDocumentBlock)
    score_block<T, kAsDigits>(a, group, static_cast<const T*>(in.d) + (start + first) * in.d_stride,
                              smaller(kDocumentBlock, length - first), first, columns, best, winner, scores, block);
  if constexpr (kAsDigits)
    for (index_t c = 0; c < columns && length > 0; c += kLanes) {
      const float* const panel = a.panels + (group.column + c / kTileColumns * kTileColumns) * maxsim_panel_rows(in);
      store(best + c, load(best + c) * load(panel + c % kTileColumns));  // the scales of the query tokens
    }

  const index_t stride = maxsim_columns(in), column = maxsim_column(in, document);
  for (index_t query = group.first; query < group.last; ++query) {
    const index_t from = in.cu_queries[query], tokens = in.cu_queries[query + 1] - from;
    Sum total;
    for_row(tokens, [&](index_t t, auto lanes, int u)
                        MODERNBERT_FAST_LAMBDA { total.part[u] += load(best + from - q_start + t, lanes); });
    a.scores[query * stride + column] = total.total();
    for (index_t t = from; t < from + tokens && a.argmax != nullptr; ++t)
      a.argmax[t * stride + column] = length > 0 ? static_cast<int32_t>(start + winner[t - q_start]) : -1;
  }
}

void maxsim_forward(const MaxSimForwardArgs& a, index_t begin, index_t end, float* scratch, int32_t* winners) {
  for (index_t unit = begin; unit < end; ++unit) {
    const QueryGroup& group = a.groups[maxsim_group(a, unit)];
    const index_t document = maxsim_document(a, unit);
    if (multiplies_digits(a.in, group))
      score_document<int8_t, true>(a, group, document, scratch, winners);
    else if (a.in.bytes)
      score_document<int8_t>(a, group, document, scratch, winners);
    else
      switch (a.in.dtype) {
        case DType::kFloat: score_document<float>(a, group, document, scratch, winners); break;
        case DType::kBFloat16: score_document<BFloat16>(a, group, document, scratch, winners); break;
        case DType::kHalf: score_document<Half>(a, group, document, scratch, winners); break;
      }
  }
}

// ---- backward: one sum for each row of the gradients, over its pairs in order

/// sum (D,) += factor * x
template <class T>
MODERNBERT_FAST_INLINE void add_scaled(const T* x, float factor, index_t D, float* sum) {
  const Vec scale = splat(factor);
  for_row(D, [&](index_t c, auto lanes, int) MODERNBERT_FAST_LAMBDA {
    store(sum + c, fused(scale, load(x + c, lanes), load(sum + c, lanes)), lanes);
  });
}

/// The row of `document` that won query token t, counted from the document's start; -1 if it has none.
MODERNBERT_FAST_INLINE index_t winner_of(const MaxSimBackwardArgs& a, index_t t, index_t document) {
  const index_t row = a.argmax[t * maxsim_columns(a.in) + maxsim_column(a.in, document)];
  const index_t start = a.in.cu_documents[document];
  return row >= start && row < a.in.cu_documents[document + 1] ? row - start : -1;
}

MODERNBERT_FAST_INLINE float dscore_of(const MaxSimBackwardArgs& a, index_t t, index_t document) {
  return a.dscores[a.query_of[t] * maxsim_columns(a.in) + maxsim_column(a.in, document)];
}

template <class T>
void query_gradient(const MaxSimBackwardArgs& a, index_t begin, index_t end) {
  const MaxSimArgs& in = a.in;
  for (index_t t = begin; t < end; ++t) {
    float* const dq = a.dq + t * in.D;
    memset(dq, 0, in.D * sizeof(float));
    const index_t first = in.pairwise ? a.query_of[t] : 0, last = in.pairwise ? first + 1 : in.documents;
    for (index_t document = first; document < last; ++document) {
      const index_t row = winner_of(a, t, document);
      if (row < 0) continue;
      const T* const d = static_cast<const T*>(in.d) + (in.cu_documents[document] + row) * in.d_stride;
      add_scaled(d, dscore_of(a, t, document), in.D, dq);
    }
  }
}

void maxsim_query_gradient(const MaxSimBackwardArgs& a, index_t begin, index_t end) {
  switch (a.in.dtype) {
    case DType::kFloat: return query_gradient<float>(a, begin, end);
    case DType::kBFloat16: return query_gradient<BFloat16>(a, begin, end);
    case DType::kHalf: return query_gradient<Half>(a, begin, end);
  }
}

template <class T>
void document_gradient(const MaxSimBackwardArgs& a, index_t document, float* sum, int32_t* chains) {
  const MaxSimArgs& in = a.in;
  const index_t start = in.cu_documents[document], length = in.cu_documents[document + 1] - start;
  const index_t q_start = in.pairwise ? in.cu_queries[document] : 0;
  const index_t q_end = in.cu_queries[in.pairwise ? document + 1 : in.queries];
  // The query tokens that a row won, as a chain in their order: head, then the next of each.
  int32_t* const head = chains;
  int32_t* const next = chains + length;
  for (index_t row = 0; row < length; ++row) head[row] = -1;
  for (index_t t = q_end - 1; t >= q_start; --t) {
    const index_t row = winner_of(a, t, document);
    if (row < 0) continue;
    next[t - q_start] = head[row];
    head[row] = static_cast<int32_t>(t);
  }
  for (index_t row = 0; row < length; ++row) {
    T* const dd = static_cast<T*>(a.dd) + (start + row) * in.D;
    memset(sum, 0, in.D * sizeof(float));
    for (index_t t = head[row]; t >= 0; t = next[t - q_start])
      add_scaled(in.q + t * in.q_stride, dscore_of(a, t, document), in.D, sum);
    for_row(in.D,
            [&](index_t c, auto lanes, int) MODERNBERT_FAST_LAMBDA { store(dd + c, load(sum + c, lanes), lanes); });
  }
}

void maxsim_document_gradient(const MaxSimBackwardArgs& a, index_t begin, index_t end, float* sum, int32_t* chains) {
  for (index_t document = begin; document < end; ++document) switch (a.in.dtype) {
      case DType::kFloat: document_gradient<float>(a, document, sum, chains); break;
      case DType::kBFloat16: document_gradient<BFloat16>(a, document, sum, chains); break;
      case DType::kHalf: document_gradient<Half>(a, document, sum, chains); break;
    }
}
