// Vectors of 4 bits an element: a centroid plus one of its 16 levels. Reference:
// modernbert_fast/reference/decompress.py

typedef uint8_t Sixteen __attribute__((vector_size(16)));  // sums are modulo 256, whatever the sign

MODERNBERT_FAST_INLINE Sixteen load_sixteen(const void* p) {
  Sixteen v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

/// y (16,) = centroid + the level that the low four bits of each code name.
MODERNBERT_FAST_INLINE void add_levels(Sixteen codes, Sixteen levels, const int8_t* centroid, int8_t* y) {
  const Sixteen sum = load_sixteen(centroid) + __builtin_shuffle(levels, codes & 15);
  __builtin_memcpy(y, &sum, sizeof(sum));
}

void decompress(const CompressedArgs& a, index_t begin, index_t end, int8_t* y) {
  constexpr index_t kStep = sizeof(Sixteen);
  const index_t half = (a.D + 1) / 2;
  for (index_t t = begin; t < end; ++t, y += a.D) {
    const uint8_t* const codes = a.codes + t * a.codes_stride;
    const int8_t* const centroid = a.centroids + a.nearest[t] * a.D;
    const Sixteen levels = load_sixteen(a.levels + a.nearest[t] * kLevels);
    index_t k = 0;
    for (; k + kStep <= a.D - half; k += kStep) {
      const Sixteen both = load_sixteen(codes + k);
      add_levels(both, levels, centroid + k, y + k);
      add_levels(both >> 4, levels, centroid + half + k, y + half + k);
    }
    if (k == half) continue;
    // What is left, with zeros behind it.
    const index_t low = half - k, high = a.D - half - k;
    uint8_t rest[kStep] = {};
    int8_t near[2][kStep] = {}, sum[2][kStep];
    __builtin_memcpy(rest, codes + k, low);
    __builtin_memcpy(near[0], centroid + k, low);
    __builtin_memcpy(near[1], centroid + half + k, high);
    add_levels(load_sixteen(rest), levels, near[0], sum[0]);
    add_levels(load_sixteen(rest) >> 4, levels, near[1], sum[1]);
    __builtin_memcpy(y + k, sum[0], low);
    __builtin_memcpy(y + half + k, sum[1], high);
  }
}
