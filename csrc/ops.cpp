// Every schema of the native operators, once. The CPU and CUDA files add implementations to them.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(modernbert_fast_C, m) {
  // Which loops the CPU operators run: "baseline", "avx2", "avx512", "avx512bf16" or "amx".
  m.def("cpu_isa() -> str");
  // Runs one kernel on x's device and returns the architecture it was compiled for, such as 800.
  m.def("cuda_build_probe(Tensor x) -> int");

  m.def("padding_plan(Tensor mask) -> (Tensor indices, Tensor cu_seqlens, Tensor positions)");
  m.def("padding_unpad(Tensor x, Tensor indices) -> Tensor");
  m.def("padding_pad(Tensor x, Tensor indices, int rows) -> Tensor");
  m.def("padding_tiles(Tensor cu_seqlens, int total, int rows) -> Tensor");

  m.def(
      "layer_norm_forward(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps)"
      " -> (Tensor y, Tensor sum, Tensor mean, Tensor rstd)");
  m.def(
      "layer_norm_backward(Tensor dy, Tensor? dsum, Tensor x, Tensor? weight, bool has_bias, Tensor mean, Tensor rstd)"
      " -> (Tensor dx, Tensor dweight, Tensor dbias)");
  m.def(
      "layer_norm_embed_forward(Tensor ids, Tensor table, Tensor? weight, Tensor? bias, float eps)"
      " -> (Tensor y, Tensor mean, Tensor rstd)");

  m.def("linear_forward(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def("linear_forward_geglu(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "linear_backward(Tensor dy, Tensor x, Tensor weight, bool need_dx, bool need_dweight, bool need_dbias)"
      " -> (Tensor dx, Tensor dweight, Tensor dbias)");
  m.def("geglu_forward(Tensor x) -> Tensor");
  m.def("geglu_backward(Tensor dy, Tensor x) -> Tensor");

  m.def("rope_forward(Tensor qkv, Tensor positions, Tensor cos, Tensor sin) -> Tensor");

  m.def("pooling_forward(Tensor x, Tensor cu_seqlens, str mode, bool normalize) -> (Tensor y, Tensor norm)");
  m.def(
      "pooling_backward(Tensor dy, Tensor y, Tensor norm, Tensor cu_seqlens, str mode, bool normalize, int T)"
      " -> Tensor");

  m.def(
      "attention_forward(Tensor qkv,"
      " Tensor cu_seqlens, Tensor? positions, Tensor? cos, Tensor? sin, Tensor? columns, Tensor? attended,"
      " Tensor tiles, int max_seqlen, int window, float scale) -> (Tensor o, Tensor lse)");
  m.def(
      "attention_backward(Tensor do, Tensor qkv, Tensor o, Tensor lse,"
      " Tensor cu_seqlens, Tensor? positions, Tensor? cos, Tensor? sin, Tensor? columns, Tensor? attended,"
      " Tensor tiles, int max_seqlen, int window, float scale) -> Tensor");

  m.def(
      "encoder_layer_forward(Tensor x, Tensor? residual, Tensor? attn_norm, Tensor? attn_norm_bias, float "
      "attn_norm_eps,"
      " Tensor Wqkv, Tensor? Wqkv_bias, Tensor attn_Wo, Tensor? attn_Wo_bias,"
      " Tensor mlp_norm, Tensor? mlp_norm_bias, float mlp_norm_eps,"
      " Tensor Wi, Tensor? Wi_bias, Tensor mlp_Wo, Tensor? mlp_Wo_bias, int head_dim,"
      " Tensor cu_seqlens, Tensor? positions, Tensor? cos, Tensor? sin, Tensor? columns, Tensor? attended,"
      " Tensor tiles, int max_seqlen, int window, float scale) -> (Tensor x, Tensor residual)");

  m.def(
      "maxsim_forward(Tensor q, Tensor d, Tensor cu_queries, Tensor cu_documents, bool pairwise,"
      " bool winners) -> (Tensor scores, Tensor argmax)");
  m.def(
      "maxsim_forward_compressed(Tensor q, Tensor codes, Tensor nearest, Tensor centroids, Tensor levels,"
      " Tensor cu_queries, Tensor cu_documents) -> Tensor");
  m.def(
      "maxsim_backward(Tensor dscores, Tensor q, Tensor d, Tensor cu_queries, Tensor cu_documents, Tensor argmax,"
      " bool pairwise) -> (Tensor dq, Tensor dd)");

  m.def("decompress_forward(Tensor codes, Tensor nearest, Tensor centroids, Tensor levels) -> Tensor");
}
