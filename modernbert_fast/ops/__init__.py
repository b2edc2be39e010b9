"""The ops: shapes, checks, autograd. Numbers are made by the backends that dispatch.TABLE names."""

from modernbert_fast.ops.attention import attention
from modernbert_fast.ops.cross_entropy import cross_entropy
from modernbert_fast.ops.encoder_layer import Weights, encoder_layer
from modernbert_fast.ops.geglu import geglu
from modernbert_fast.ops.layer_norm import add_layer_norm, embed_layer_norm, layer_norm
from modernbert_fast.ops.linear import linear, linear_geglu
from modernbert_fast.ops.maxsim import keep_tokens, maxsim, maxsim_topk
from modernbert_fast.ops.padding import pad, plan, tiles, unpad
from modernbert_fast.ops.pooling import pooling
from modernbert_fast.ops.ranking import ranking
from modernbert_fast.ops.rope import rope

__all__ = [
    "Weights",
    "add_layer_norm",
    "attention",
    "cross_entropy",
    "embed_layer_norm",
    "encoder_layer",
    "geglu",
    "layer_norm",
    "linear",
    "linear_geglu",
    "keep_tokens",
    "maxsim",
    "maxsim_topk",
    "pad",
    "plan",
    "pooling",
    "ranking",
    "rope",
    "tiles",
    "unpad",
]
