"""Training by transformers and by us on CPU: the same curve, and the time of a step.

python benchmarks/run.py models/training --steps 300 --rounds 5

Curves: two models with the same weights see the same texts of Python's manual under the same masks, padded, in fp32.
Beside them goes transformers with its other attention (eager), which differs from its sdpa by rounding alone: how far
two curves part that are equally right. Steps: forward, backward and AdamW, on texts of one length and of mixed lengths;
ratios are medians over rounds.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from typing import Any

import harness
import torch
from gpu.training import FAST, STOCK, check, step

import modernbert_fast as mf
from modernbert_fast import durable, timing
from modernbert_fast.commands.batches import pad
from modernbert_fast.commands.corpus import manual_texts
from modernbert_fast.commands.flags.shared import positive
from modernbert_fast.commands.workloads import Workload, log_normal
from modernbert_fast.training.masking import mask_tokens
from modernbert_fast.training.tokenizer import train_tokenizer

EAGER = "transformers eager"
SPARSE = "transformers sdpa, sparse_prediction"  # its own head for labelled rows alone, off by default
LABELLED = 0.3  # as ModernBERT was trained
WARM_UP = 0.1  # of the steps
SIZES = {"curve": (128, 192, 2048), "speed": (384, 576, 50_368)}  # width, intermediate, vocabulary
HEAD_DIM = 64

Inputs = dict[str, torch.Tensor]


def build(width: int, intermediate: int, vocabulary: int, layers: int) -> Any:
    """A new stock model, without dropout, as training starts it."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = ModernBertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_DIM,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    )
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(config).train()
    model.set_attn_implementation("sdpa")
    return model


def accelerated(model: Any) -> Any:
    return mf.accelerate(copy.deepcopy(model), strict=True, loss_only=True)


def masked(ids: torch.Tensor, mask: torch.Tensor, key: int, vocabulary: int, mask_id: int) -> Inputs:
    """A padded batch (B, S) with labels; padding has none."""
    keys = key * len(ids) + torch.arange(len(ids))[:, None].expand_as(ids)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    replaced, labels = mask_tokens(ids, keys, positions, mask_id=mask_id, vocab_size=vocabulary, rate=LABELLED)
    return {
        "input_ids": torch.where(mask > 0, replaced, ids),
        "attention_mask": mask,
        "labels": labels.masked_fill(mask == 0, -100),
    }


def batches(steps: int, texts: int, longest: int, vocabulary: int) -> Iterator[Inputs]:
    """`texts` pieces of the manual a step, up to `longest` tokens each, masked anew every time."""
    tokenizer = train_tokenizer(manual_texts(), vocabulary)
    mask_id = tokenizer.token_to_id("[MASK]")
    tokenizer.enable_truncation(longest)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(manual_texts())]
    generator = torch.Generator().manual_seed(0)
    for number in range(steps):
        chosen = torch.randint(len(ids), (texts,), generator=generator).tolist()
        padded = pad([ids[i] for i in chosen], 0, torch.device("cpu"))
        yield masked(padded["input_ids"], padded["attention_mask"], number, vocabulary, mask_id)


def curves(layers: int, steps: int, texts: int = 4, longest: int = 64, rate: float = 5e-4) -> dict[str, list[float]]:
    """The loss of every step, by stock, by stock with its other attention, and by us; the same seed and batches.

    AdamW as people train: warm-up and a linear decay, no weight decay for norms and biases, gradients clipped to 1.
    """
    from transformers import get_linear_schedule_with_warmup

    width, intermediate, vocabulary = SIZES["curve"]
    stock = build(width, intermediate, vocabulary, layers)
    models = {STOCK: stock, EAGER: copy.deepcopy(stock), FAST: accelerated(stock)}
    models[EAGER].set_attn_implementation("eager")
    found: dict[str, list[float]] = {name: [] for name in models}
    optimizers = {}
    for name, model in models.items():
        groups = [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.01},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
        optimizers[name] = optimizer, get_linear_schedule_with_warmup(optimizer, int(WARM_UP * steps), steps)
    for inputs in batches(steps, texts, longest, vocabulary):
        for name, model in models.items():
            loss = model(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for part in optimizers[name]:
                part.step()
            model.zero_grad()
            found[name].append(loss.item())
    return found


def apart(found: dict[str, list[float]], name: str) -> float:
    """The largest difference of two curves at any step: stock's, and that of `name`."""
    return max(abs(one - other) for one, other in zip(found[STOCK], found[name], strict=True))


def speed(layers: int, rounds: int, texts: int, vocabulary: int) -> list[dict[str, Any]]:
    """Seconds of a step on texts of one length and of mixed lengths: the same padded batch for both."""
    width, intermediate, _ = SIZES["speed"]
    stock = build(width, intermediate, vocabulary, layers)
    fast, sparse = accelerated(stock), copy.deepcopy(stock)
    sparse.sparse_prediction = True
    results = []
    for workload in (Workload("one length", (512,) * texts), Workload("mixed lengths", log_normal()[:texts])):
        padded = pad(workload.ids(vocabulary), 0, torch.device("cpu"))
        inputs = masked(padded["input_ids"], padded["attention_mask"], 0, vocabulary, mask_id=1)
        part = {name: value[:, :64].contiguous() for name, value in inputs.items()}
        check(stock, fast, part, ("gradients",))  # a loss is one number, and may be a last place off
        if not workload.padding:
            del inputs["attention_mask"]
        models = {STOCK: stock, SPARSE: sparse, FAST: fast}
        taken = timing.interleave([timing.Arm(name, step(model, inputs)) for name, model in models.items()], rounds)
        ours = taken[-1].samples
        times = {
            arm.name: statistics.median(one / other for one, other in zip(arm.samples, ours, strict=True))
            for arm in taken[:-1]
        }
        results.append(
            {
                "workload": workload.name,
                "tokens": workload.tokens,
                "padding": workload.padding,
                "seconds": {arm.name: arm.samples for arm in taken},
                "times": times,
            }
        )
    return results


def main(argv: list[str]) -> None:
    parser = harness.parser("models/training", __doc__)
    parser.add_argument("--layers", type=positive, default=4, help="default: %(default)s")
    parser.add_argument("--steps", type=positive, default=300, help="of the curves (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=5, help="of the steps timed (default: %(default)s)")
    parser.add_argument("--texts", type=positive, default=8, help="of a timed batch (default: %(default)s)")
    parser.add_argument("--vocabulary", type=positive, default=SIZES["speed"][2], help="timed (default: %(default)s)")
    parser.add_argument("--only", choices=("curves", "speed"), help="default: both")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    record: dict[str, Any] = {"machine": timing.machine_facts()}
    if args.only != "speed":
        found = record["curves"] = curves(args.layers, args.steps)
        print(f"loss {found[STOCK][0]:.3f} to {found[STOCK][-1]:.3f} in {args.steps} steps; from {STOCK} at most:")
        for name in (FAST, EAGER):
            print(f"  {name:<20} {apart(found, name):.2e}", flush=True)
    if args.only != "curves":
        record["steps"] = speed(args.layers, args.rounds, args.texts, args.vocabulary)
        for result in record["steps"]:
            print(f"{result['workload']}, {result['tokens']} tokens, {result['padding']:.0%} padding; as fast as")
            for name, times in result["times"].items():
                print(f"  {name:<38} {times:.2f} times", flush=True)
    path = harness.record_path(args.output, f"training-{args.only or 'all'}-float32.json")
    durable.write_json(path, {"options": {"layers": args.layers, "steps": args.steps, "texts": args.texts}, **record})
    print(path)
