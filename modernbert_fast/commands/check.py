"""Ops against the float64 reference, models against transformers, one verdict each."""

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import modernbert_fast as mf
from modernbert_fast import dispatch
from modernbert_fast.commands.models import DTYPES, choose_device, twin
from modernbert_fast.commands.parity import max_error, wider
from modernbert_fast.config import EncoderConfig
from modernbert_fast.testing import SMALL, Problem, error_limit, problems
from modernbert_fast.testing.checks import evaluate, truth_of

TINY: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "local_attention": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}

LENGTHS = (130, 1, 0, 65)

PROBLEMS: dict[str, Callable[[torch.dtype, torch.device], list[Problem]]] = {
    **SMALL,
    "layer_norm": lambda dtype, device: [
        problems.layer_norm(196, 768, dtype, device, residual=residual, weight=dtype) for residual in (None, dtype)
    ],
    "attention": lambda dtype, device: [
        problems.attention(LENGTHS, 12, 64, dtype, device, window=window) for window in (-1, 64)
    ],
    "rope": lambda dtype, device: [problems.rope(196, 12, 64, dtype, device)],
    "geglu": lambda dtype, device: [problems.geglu(196, 1152, dtype, device)],
    "linear": lambda dtype, device: [problems.linear(196, 768, 2304, dtype, device)],
    "pooling": lambda dtype, device: [
        problems.pooling(LENGTHS, 768, dtype, device, mode=mode, normalize=True) for mode in ("cls", "mean")
    ],
    "maxsim": lambda dtype, device: [problems.maxsim((32, 8), LENGTHS, 128, dtype, device)],
    "cross_entropy": lambda dtype, device: [problems.cross_entropy(196, 768, 1000, dtype, device)],
}


@dataclass(frozen=True)
class Result:
    """One comparison: its largest error and the largest that the rule allows."""

    name: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.error <= self.limit


def run(args: argparse.Namespace) -> int:
    device = choose_device(args)
    failed = _show("ops, against the float64 reference", check_ops(device))
    if importlib.util.find_spec("transformers") is None:
        print("model: not compared, transformers is not installed (pip install 'modernbert-fast[hf]')")
    else:
        failed += _show("model, against transformers", check_models(device))
    print(f"{failed} FAILED" if failed else "all match")
    return 1 if failed else 0


def check_ops(device: torch.device) -> Iterator[Result]:
    """Every row of the dispatch table that fits here, forward and backward, at ModernBERT-base's shapes."""
    base = EncoderConfig.preset("base")
    shape = {"head_dim": base.head_dim, "hidden": base.hidden_size, "intermediate": base.intermediate_size}
    for dtype in DTYPES.values():
        for op, rows in dispatch.survey(device.type, dtype, **shape).items():
            fitting = [backend for backend, objections in rows if not objections and backend != "reference"]
            for backend in fitting:
                with dispatch.use_backend(backend, op):
                    compared = [pair for problem in PROBLEMS[op](dtype, device) for pair in _compare(problem)]
                error, limit = max(compared, key=lambda pair: pair[0] / max(pair[1], 1e-300))
                yield Result(f"{op} on {backend}, {_short(dtype)}", error, limit)


def _compare(problem: Problem) -> Iterator[tuple[float, float]]:
    """Error and limit of every result and gradient."""
    inputs = problem.inputs()
    got = evaluate(problem.run, inputs, problem.grads)
    plain = evaluate(problem.plain, inputs, problem.grads)
    for name, truth in truth_of(problem, inputs).items():
        yield max_error(got[name], truth), 0.0 if problem.exact else error_limit(plain[name], truth)


def check_models(device: torch.device) -> Iterator[Result]:
    """A tiny random ModernBERT, stock and accelerated, with every kind of padding."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM, ModernBertModel

    torch.manual_seed(0)
    config = ModernBertConfig(**TINY)
    ids = torch.randint(3, config.vocab_size, (4, 96)).to(device)
    outputs = {
        "hidden states": (ModernBertModel, "last_hidden_state"),
        "MLM logits": (ModernBertForMaskedLM, "logits"),
    }
    for title, (kind, output) in outputs.items():
        stock = kind._from_config(config, attn_implementation="sdpa").to(device).eval()
        for dtype in (torch.float32, torch.bfloat16):
            stock = stock.to(dtype)
            fast, wide = mf.accelerate(twin(stock)), wider(stock)
            for padding, mask in masks(*ids.shape).items():
                plain, got, truth = (_rows(model, ids, mask.to(device), output) for model in (stock, fast, wide))
                name = f"{title}, {padding}, {_short(dtype)}"
                yield Result(name, max_error(got, truth), error_limit(plain, truth))


def _rows(model: Any, ids: torch.Tensor, mask: torch.Tensor, output: str) -> torch.Tensor:
    """One output of a model where tokens are: (T, C)."""
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask.long())[output][mask]


def masks(texts: int, length: int) -> dict[str, torch.Tensor]:
    """Kinds of padding, (texts, length) bool each."""
    lengths = torch.linspace(length // 8, length, texts).long()[:, None]
    columns = torch.arange(length)
    right = columns < lengths
    return {
        "no padding": torch.ones_like(right),
        "padding right": right,
        "padding left": right.flip(1),
        "padding with holes": right & ((columns % 7 != 3) | (columns == 0)),
    }


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _show(title: str, results: Iterator[Result]) -> int:
    """Prints results as they come; returns how many failed."""
    print(title)
    failed = 0
    for result in results:
        failed += not result.ok
        verdict = "ok" if result.ok else "FAILED"
        print(
            f"  {result.name:<52} max error {result.error:.2e}  allowed {result.limit:.2e}  {verdict}",
            flush=True,
        )
    return failed
