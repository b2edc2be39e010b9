"""The encoder on CPU: stock transformers, the rivals in their best setting, ours, and the limits, interleaved.

python benchmarks/run.py models/encoder --dtype bfloat16 --rounds 3

A rival computes in the dtype asked for or in a better one. Where a batch has padding, each that takes any shape also
runs text by text ("singly"): no padding, no batch. What cannot run is in the record with its reason.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import torch
import torch.nn.functional as F
from models import rivals
from torch.nn.utils.rnn import pad_sequence

from modernbert_fast import durable, timing
from modernbert_fast.commands import workloads
from modernbert_fast.commands.batches import pad
from modernbert_fast.commands.comparison import FAST, LINEARS, STOCK, forward, header, linears, record, render
from modernbert_fast.commands.flags.shared import add_model_arguments, positive
from modernbert_fast.commands.models import load_pair
from modernbert_fast.commands.parity import parity_of_batch, wider

STOCK_LINEARS = "F.linear alone"
SINGLY = ", singly"
WIDTH = 33
REST = 0.02  # seconds in which the thread pools of torch, ONNX Runtime and OpenVINO stop spinning


@dataclass(frozen=True)
class Rival:
    """One rival in one dtype.

    Attributes:
        name: what the table calls it.
        build: from whether there is padding to its forward; whatever this raises is why it is missing.
        any_shape: it runs text by text too without being built for each length.
    """

    name: str
    build: Callable[[bool], rivals.Run]
    any_shape: bool = True


def contenders(stock: Any, folder: Path, compiled: bool, threads: int) -> list[Rival]:
    """All rivals of a stock model that compute in its dtype or in float32."""
    dtype = stock.dtype
    by_dtype = {dtype: stock}
    if dtype != torch.float32:
        by_dtype[torch.float32] = wider(stock)
    files = rivals.Exported(by_dtype[torch.float32], folder)

    def openvino(masked: bool, wanted: torch.dtype) -> rivals.Run:
        return rivals.openvino(files.file(masked), threads, wanted)

    def nothing(masked: bool, reason: str) -> rivals.Run:
        raise NotImplementedError(reason)

    found = []
    for kind, model in by_dtype.items():
        name = str(kind).removeprefix("torch.")
        found.append(Rival(f"transformers sdpa {name}", lambda masked, model=model: rivals.stock(model)))
        if compiled:
            found.append(Rival(f"torch.compile {name}", lambda masked, model=model: rivals.compiled(model), False))
        if kind == torch.float32:
            found.append(Rival(f"onnxruntime {name}", lambda masked: rivals.onnxruntime(files.file(masked), threads)))
        else:
            why = functools.partial(nothing, reason=f"its CPU provider has no {name} kernels: float32 is its best")
            found.append(Rival(f"onnxruntime {name}", why))
        found.append(Rival(f"openvino {name}", functools.partial(openvino, wanted=kind)))
    return found


def measure(
    workload: workloads.Workload, stock: Any, fast: Any, others: list[Rival], rounds: int, only: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Checks and times every arm on one workload.

    Args:
        only: rivals whose name contains one of these words; all if empty.

    Raises:
        ParityError: our own arm is wrong; nothing was timed.
    """
    padded = pad(workload.ids(stock.config.vocab_size), stock.config.pad_token_id, stock.device)
    parity = parity_of_batch(stock, **padded)
    inputs = padded if workload.padding else {"input_ids": padded["input_ids"]}
    texts = [{"input_ids": padded["input_ids"][i : i + 1, :n]} for i, n in enumerate(workload.lengths)]
    missing: dict[str, str] = {}
    arms = [timing.Arm(STOCK, lambda: forward(stock, inputs), lambda hidden: parity.yardstick(STOCK, hidden))]

    def miss(arm: timing.Arm, error: Exception) -> bool:
        """A rival's failure, whatever it is, goes into the record; ours flies."""
        if arm.name in (STOCK, FAST):
            return False
        missing[arm.name] = harness.reason_of(error)
        return True

    def add(name: str, run: Callable[[], Any], join: Callable[[Any], torch.Tensor] = lambda hidden: hidden) -> None:
        arms.append(timing.Arm(name, run, lambda result: parity.check(name, join(result))))

    for rival in others:
        ways = (False, True) if workload.padding and rival.any_shape else (False,)
        for singly in ways:
            name = rival.name + (SINGLY if singly else "")
            if rival.name == f"{STOCK} {str(stock.dtype).removeprefix('torch.')}" and not singly:
                continue  # it is STOCK
            if only and not any(word in name for word in only):
                missing[name] = "not asked for"
                continue
            try:
                run = rival.build(bool(workload.padding) and not singly)
            except Exception as error:  # foreign code: any failure is a reason
                missing[name] = harness.reason_of(error)
                continue
            if singly:
                add(name, functools.partial(_each, run, texts), _joined)
            else:
                add(name, functools.partial(run, inputs))
    add(FAST, lambda: forward(fast, inputs))
    arms.append(timing.Arm(LINEARS, lambda: linears(fast, workload.tokens)))
    arms.append(timing.Arm(STOCK_LINEARS, lambda: linears(stock, workload.tokens, _stock_product)))
    load = os.getloadavg()[0]
    measured = timing.interleave(arms, rounds, rest=REST, leave_out=miss)
    result = record(workload, measured, parity)
    return {**result, "missing": missing, "load_before": load, "ratios": ratios(result)}


def ratios(result: dict[str, Any]) -> dict[str, Any]:
    """Times of others in units of ours: above 1 we are faster. The best rivals come with their names."""
    medians = {arm["name"]: arm["median"] for arm in result["arms"]}
    ours = medians.pop(FAST)
    limits = {name: medians.pop(name) for name in (STOCK_LINEARS, LINEARS)}
    found: dict[str, Any] = {f"{name} / ours": limit / ours for name, limit in limits.items()}
    found[f"{STOCK} / ours"] = medians[STOCK] / ours
    for what, singly in (("best rival", False), (f"best rival{SINGLY}", True)):
        if rivalling := {name: median for name, median in medians.items() if name.endswith(SINGLY) == singly}:
            best = min(rivalling, key=rivalling.__getitem__)
            found[f"{what} / ours"] = {"ratio": rivalling[best] / ours, "name": best}
    return found


def render_ratios(result: dict[str, Any]) -> str:
    """The lines below the table of one workload."""
    lines = []
    for name, ratio in result["ratios"].items():
        value, who = (ratio["ratio"], f" ({ratio['name']})") if isinstance(ratio, dict) else (ratio, "")
        lines.append(f"  {name:<40} {value:>6.2f}{who}")
    return "\n".join([*lines, *(f"  missing: {name}: {reason}" for name, reason in result["missing"].items())])


def main(argv: list[str]) -> None:
    parser = harness.parser("models/encoder", __doc__)
    add_model_arguments(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--workloads", default=",".join(workloads.NAMED), help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="torch.compile with freezing too: minutes a shape")
    parser.add_argument("--only", default="", help="rivals whose name contains one of these words, by comma")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    facts = timing.machine_facts() | {name: timing.version(name) for name in rivals.PACKAGES}
    part = "" if args.workloads == ",".join(workloads.NAMED) else "-" + args.workloads.replace(",", "-")
    path = harness.record_path(args.output, f"encoder-{args.dtype}{part}.json")
    options = {name: value for name, value in vars(args).items() if name != "output"}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        stock, fast = load_pair(args, torch.device("cpu"))
        others = contenders(stock, Path(folder), args.compile, args.threads)
        words = tuple(word for word in args.only.split(",") if word)
        print(header(WIDTH))
        for workload in map(workloads.parse, args.workloads.split(",")):
            results.append(measure(workload, stock, fast, others, args.rounds, words))
            print(render(results[-1], WIDTH), render_ratios(results[-1]), sep="\n", flush=True)
            durable.write_json(path, {"options": options, "machine": facts, "results": results})
    print(path)


def _each(run: rivals.Run, texts: list[rivals.Inputs]) -> list[torch.Tensor]:
    return [run(text).clone() for text in texts]  # OpenVINO gives the same memory again at the next call


def _joined(hidden: list[torch.Tensor]) -> torch.Tensor:
    """One (1, S, C) a text -> (B, S, C)."""
    return pad_sequence([text[0] for text in hidden], batch_first=True)


def _stock_product(linear: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, linear.weight, linear.bias)
