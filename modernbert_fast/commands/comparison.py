"""Stock transformers, the accelerated model and the limit as arms of one run: what they do, its record, its table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from modernbert_fast import encoder
from modernbert_fast.commands.parity import Parity
from modernbert_fast.commands.workloads import Workload
from modernbert_fast.timing import Measurement

STOCK, FAST, LINEARS = "transformers sdpa", "modernbert_fast", "linears alone"


def forward(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Hidden states (B, S, C) of a transformers encoder."""
    with torch.inference_mode():
        return module(**inputs).last_hidden_state


def linears(model: Any, tokens: int, project: Callable[[Any, torch.Tensor], torch.Tensor] = encoder.project) -> None:
    """The limit: nothing but the encoder's matrix products, on as many packed rows as there are tokens.

    Args:
        project: from a linear layer and its rows to the product; ours unless told.
    """
    weight = model.layers[0].attn.Wo.weight
    x = weight.new_ones(tokens, model.config.hidden_size)
    h = weight.new_ones(tokens, model.config.intermediate_size)
    with torch.inference_mode():
        for layer in model.layers:
            for linear in (layer.attn.Wqkv, layer.attn.Wo, layer.mlp.Wi):
                project(linear, x)
            project(layer.mlp.Wo, h)


def record(workload: Workload, measured: Sequence[Measurement], parity: Parity) -> dict[str, Any]:
    """One workload as JSON values; STOCK and LINEARS must be among the measured."""
    medians = {measurement.name: measurement.median for measurement in measured}
    return {
        "workload": workload.name,
        "lengths": list(workload.lengths),
        "tokens": workload.tokens,
        "padding": workload.padding,
        "error_limit": parity.limit,
        "arms": [
            {
                **measurement.as_dict(),
                "tokens_per_second": workload.tokens / measurement.median,
                "speedup": medians[STOCK] / measurement.median,
                "share_of_limit": medians[LINEARS] / measurement.median,
                "max_error": parity.errors.get(measurement.name),
            }
            for measurement in measured
        ],
    }


def header(width: int = 18) -> str:
    """The line above `render`; `width` is that of the arms' names."""
    return (
        f"{'workload':<12} {'tokens':>6} {'pad':>4}  {'arm':<{width}} {'ms':>9} {'p20':>9} {'p80':>9} {'tokens/s':>9}"
        f" {'x stock':>8} {'of limit':>8} {'peak MiB':>8} {'error':>8}"
    )


def render(result: dict[str, Any], width: int = 18) -> str:
    """One workload as lines under `header`."""
    lines = []
    for arm in result["arms"]:
        head = f"{result['workload']:<12} {result['tokens']:>6} {result['padding']:>4.0%}  {arm['name']:<{width}}"
        times = " ".join(f"{arm[key] * 1e3:>9.1f}" for key in ("median", "p20", "p80"))
        peak = "-" if arm["peak_bytes"] is None else f"{arm['peak_bytes'] / 2**20:.0f}"
        error = "-" if arm["max_error"] is None else f"{arm['max_error']:.1e}"
        ratios = f"{arm['speedup']:>7.2f}x {arm['share_of_limit']:>8.0%}"
        lines.append(f"{head} {times} {arm['tokens_per_second']:>9.0f} {ratios} {peak:>8} {error:>8}")
    return "\n".join(lines)
