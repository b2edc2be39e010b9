// Attention on CUDA, without torch: what a call of the kernels needs, and the calls. Each family of chips has its own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace modernbert_fast::cuda {

using index_t = int64_t;

enum class HalfType { kFloat16, kBFloat16 };

constexpr int kTileRows = 64;      // rows of a text that an entry of the schedule stands for
constexpr int kLargestHead = 128;  // columns of a head; they are a multiple of kHeadMultiple,
constexpr int kHopperHead = 64;    // the heads that the code of sm_90 is for
constexpr int kHeadMultiple = 16;  // so that each half of a head, which rotary pairs with the other, is whole 16 bytes
constexpr int kPlaneAlignment = 16;  // bytes

/// (T, H, D) of 2-byte elements somewhere in a tensor: rows are dense and aligned to 16 bytes, steps are in elements.
struct Plane {
  const void* data;
  index_t stride_t, stride_h;
};
struct MutablePlane {
  void* data;
  index_t stride_t, stride_h;
};

/// What all passes take: the texts, the angles, the window. Nothing in these tensors is trusted: kernels hold bounds in
/// [0, T], positions in [0, P), and pass over entries of the schedule that name no rows.
struct AttentionGeometry {
  const int32_t* tiles;  // (entries, 2): text, first row in it
  index_t entries;
  const int32_t* cu_seqlens;  // (B + 1,)
  index_t B;
  const int32_t* positions;  // (T,); null for no rotary, or where the planes are turned already
  const float* cos;          // (P, D / 2)
  const float* sin;
  index_t P;
  const int32_t* columns;  // (T,); null where rows of a text are consecutive
  index_t T, H;
  int D;
  int64_t window;  // < 0: global
  float scale;
};

struct AttentionForward {
  AttentionGeometry geometry;
  HalfType dtype;
  Plane q, k, v;   // before rotation
  MutablePlane o;  // (T, H, D)
  float* lse;      // (H, T), natural logarithm
  void* turned_k;  // (T, H, D) to work in; null unless turns_beforehand
};

struct AttentionBackward {
  AttentionGeometry geometry;
  HalfType dtype;
  Plane q, k, v, o, gradient;  // gradient of o
  const float* lse;            // (H, T)
  MutablePlane dq, dk, dv;
  float* delta;     // (H, T) to work in: gradient . o
  void* turned_qk;  // (2, T, H, D) to work in; null unless turns_beforehand
};

/// Whether keys (and queries, in the backward) are turned once, into memory of their own, rather than each time they
/// are met: where a row is met by all of its text.
__host__ __device__ inline bool turns_beforehand(const AttentionGeometry& g) {
  return g.positions != nullptr && g.window < 0;
}

/// Each writes every row of its results: zero where no text has it.
void attention_forward_sm75(const AttentionForward& args, cudaStream_t stream);  // fp16
void attention_forward_sm80(const AttentionForward& args, cudaStream_t stream);
void attention_forward_sm90(const AttentionForward& args, cudaStream_t stream);    // global, kHopperHead
void attention_backward_sm75(const AttentionBackward& args, cudaStream_t stream);  // fp16
void attention_backward_sm80(const AttentionBackward& args, cudaStream_t stream);
void attention_backward_sm90(const AttentionBackward& args, cudaStream_t stream);  // global, kHopperHead

}  // namespace modernbert_fast::cuda
