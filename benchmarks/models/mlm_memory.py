"""Memory of the masked-LM loss, forward and backward, above weights, activations and gradients: in one process a dtype.

python benchmarks/run.py models/mlm_memory --tokens 98304 --labelled 0.3

The head and the vocabulary of a preset, on random rows from the encoder.
forward      peak of the loss, above what was resident before it
activations  resident after it: what the head keeps for its backward, all of labelled rows
backward     peak of the backward, above what was resident before it
gradients    of the rows, the head and the decoder, by arithmetic
loss         the larger of forward - activations and backward - gradients
stock        tokens x vocabulary logits in fp32, by arithmetic; transformers holds more than one copy of them
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from typing import Any

import harness
import torch

from modernbert_fast import durable, heads, timing
from modernbert_fast.commands.flags.shared import positive
from modernbert_fast.config import EncoderConfig
from modernbert_fast.model import ModernBertWithHead

COLUMNS = ("forward", "activations", "backward", "gradients", "loss", "stock")
RUN = harness.FOLDER / "run.py"
WARM_TOKENS = 64  # for the code pages and thread pools of a first call


def measure(config: EncoderConfig, tokens: int, labelled: float, dtype: torch.dtype) -> dict[str, Any]:
    """Bytes of one loss, in this process."""
    one_layer = dataclasses.replace(config, num_hidden_layers=1, layer_types=config.layer_types[:1])
    model = ModernBertWithHead(one_layer, "ModernBertForMaskedLM").to(dtype)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, config.hidden_size, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(config.vocab_size, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) >= labelled] = heads.IGNORE

    def loss(count: int = tokens) -> torch.Tensor:
        return heads.masked_lm_loss(model, hidden[:count], labels[:count])

    torch.autograd.grad(loss(WARM_TOKENS), model.decoder.weight)
    before = timing.resident_memory()
    result, forward = timing.peak_memory(loss)
    after = timing.resident_memory()
    _, backward = timing.peak_memory(result.backward)
    if before is None or after is None or forward is None or backward is None:
        raise SystemExit("this system does not tell a process its memory")
    differentiated = [hidden, *model.head.parameters(), *model.decoder.parameters()]
    gradients = sum(x.grad.numel() * x.grad.element_size() for x in differentiated if x.grad is not None)
    activations = after - before
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "labelled": int((labels != heads.IGNORE).sum()),
        "forward": forward,
        "activations": activations,
        "backward": backward,
        "gradients": gradients,
        "loss": max(forward - activations, backward - gradients),
        "stock": 4 * tokens * config.vocab_size,
    }


def main(argv: list[str]) -> None:
    parser = harness.parser("models/mlm_memory", __doc__)
    parser.add_argument("--preset", default="base", help="default: %(default)s")
    parser.add_argument("--tokens", type=positive, default=98_304, help="default: %(default)s")
    parser.add_argument("--labelled", type=float, default=0.3, help="share of the tokens (default: %(default)s)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="default: %(default)s")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # this process is the one that measures
    args = parser.parse_args(argv)
    if args.here:
        dtype = getattr(torch, args.dtypes)
        print(json.dumps(measure(EncoderConfig.preset(args.preset), args.tokens, args.labelled, dtype)))
        return
    facts = timing.machine_facts()
    given = ["--preset", args.preset, "--tokens", str(args.tokens), "--labelled", str(args.labelled)]
    records = []
    print(f"{'MB':<10} {'labelled':>8} " + " ".join(f"{name:>11}" for name in COLUMNS))
    for dtype in args.dtypes.split(","):
        command = [sys.executable, str(RUN), "models/mlm_memory", *given, "--dtypes", dtype, "--here"]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        records.append(record := json.loads(answer.stdout.splitlines()[-1]))
        sizes = " ".join(f"{record[name] / 1e6:>11.1f}" for name in COLUMNS)
        print(f"{dtype:<10} {record['labelled']:>8} {sizes}", flush=True)
    path = harness.record_path(args.output, "mlm-memory.json")
    durable.write_json(path, {"tokens": args.tokens, "preset": args.preset, "machine": facts, "records": records})
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
