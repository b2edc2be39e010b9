"""What a module's output depends on: whether its own parameters alone decide it, so that an op may take them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modernbert_fast.ops.encoder_layer import Weights

_ONLY_LOOKS = "transformers.utils.output_capturing"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_EXACT_GELU = ("torch.nn.modules.activation.GELU", "transformers.activations.GELUActivation")


def is_untouched(module: nn.Module) -> bool:
    """Whether nobody patched or hooked the module; transformers' own hooks for hidden states only look."""
    own = module.__dict__
    if torch.nn.modules.module._has_any_global_hook() or "forward" in own:
        return False
    hooks = [own[name] for name in HOOKS]
    return not any(hooks) or all(
        getattr(hook, "__module__", "") == _ONLY_LOOKS for named in hooks for hook in named.values()
    )


def class_path(module: nn.Module) -> str:
    """Module and name of its class: tells transformers' classes without importing transformers."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether only the module's own weight decides its output: no hook, adapter, quantisation, sharding or patch."""
    return type(module) is kind and type(module.weight) in (nn.Parameter, torch.Tensor) and is_untouched(module)


def multiplies(linear: Any, x: torch.Tensor) -> bool:
    """Whether ops.linear gives what the module would on x."""
    plain = is_plain(linear, nn.Linear) and linear.weight.dtype == x.dtype
    return plain and not torch.is_autocast_enabled(x.device.type)


def only_gathers(table: Any) -> bool:
    plain = is_plain(table, nn.Embedding)
    return plain and table.max_norm is None and not (table.scale_grad_by_freq or table.sparse)


def is_exact_gelu(mlp: Any, activation: str) -> bool:
    return activation == "gelu" and class_path(mlp.act) in _EXACT_GELU and is_untouched(mlp.act)


def is_idle(dropout: Any) -> bool:
    """Whether the module gives back what it gets."""
    kind = type(dropout)
    passes = kind is nn.Identity or (kind is nn.Dropout and (dropout.p == 0 or not dropout.training))
    return passes and is_untouched(dropout)


def _is_norm(module: Any, x: torch.Tensor) -> bool:
    if not is_plain(module, nn.LayerNorm):
        return False
    return all(t is None or t.dtype in (x.dtype, torch.float32) for t in (module.weight, module.bias))


def layer_weights(block: Any, x: torch.Tensor, residual: torch.Tensor | None) -> Weights | None:
    """The parameters of a layer if nothing else decides what it makes of x: no hook, adapter, dropout or cast."""
    attn, mlp, first, second = block.attn, block.mlp, block.attn_norm, block.mlp_norm
    if not (
        (_is_norm(first, x) or (residual is None and type(first) is nn.Identity and is_untouched(first)))
        and (residual is None or residual.dtype == x.dtype)
        and _is_norm(second, x)
        and multiplies(attn.Wqkv, x)
        and multiplies(attn.Wo, x)
        and multiplies(mlp.Wi, x)
        and multiplies(mlp.Wo, x)
        and is_exact_gelu(mlp, block.config.hidden_activation)
        and is_idle(attn.out_drop)
        and is_idle(mlp.drop)
    ):
        return None
    has_norm = type(first) is nn.LayerNorm
    return Weights(
        attn_norm=first.weight if has_norm else None,
        attn_norm_bias=first.bias if has_norm else None,
        attn_norm_eps=first.eps if has_norm else 0.0,
        Wqkv=attn.Wqkv.weight,
        Wqkv_bias=attn.Wqkv.bias,
        attn_Wo=attn.Wo.weight,
        attn_Wo_bias=attn.Wo.bias,
        mlp_norm=second.weight,
        mlp_norm_bias=second.bias,
        mlp_norm_eps=second.eps,
        Wi=mlp.Wi.weight,
        Wi_bias=mlp.Wi.bias,
        mlp_Wo=mlp.Wo.weight,
        mlp_Wo_bias=mlp.Wo.bias,
    )
