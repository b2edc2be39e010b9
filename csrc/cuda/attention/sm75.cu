// Attention on Turing.
#include "sm75.cuh"

#include "backward.cuh"
#include "forward.cuh"

namespace modernbert_fast::cuda {

void attention_forward_sm75(const AttentionForward& args, cudaStream_t stream) {
  attention_forward<Sm75, Half>(args, stream);
}

void attention_backward_sm75(const AttentionBackward& args, cudaStream_t stream) {
  attention_backward<Sm75, Half>(args, stream);
}

}  // namespace modernbert_fast::cuda
