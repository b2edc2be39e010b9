// Attention on Ampere, Ada and what runs their code.
#include "sm80.cuh"

#include "backward.cuh"
#include "forward.cuh"

namespace modernbert_fast::cuda {

void attention_forward_sm80(const AttentionForward& args, cudaStream_t stream) {
  args.dtype == HalfType::kFloat16 ? attention_forward<Sm80, Half>(args, stream)
                                   : attention_forward<Sm80, BFloat16>(args, stream);
}

void attention_backward_sm80(const AttentionBackward& args, cudaStream_t stream) {
  args.dtype == HalfType::kFloat16 ? attention_backward<Sm80, Half>(args, stream)
                                   : attention_backward<Sm80, BFloat16>(args, stream);
}

}  // namespace modernbert_fast::cuda
