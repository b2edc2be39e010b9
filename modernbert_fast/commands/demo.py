"""Real English text through stock transformers and through us, compared; then a small trained model."""

import argparse
from typing import Any

import torch

import modernbert_fast as mf
from modernbert_fast.commands import meaning
from modernbert_fast.commands.batches import pad
from modernbert_fast.commands.corpus import manual_texts
from modernbert_fast.commands.models import (
    choose_device,
    load_pair,
    load_tokenizer,
)
from modernbert_fast.commands.parity import ParityError, parity_of_batch
from modernbert_fast.timing import Arm, Measurement, interleave
from modernbert_fast.training.tokenizer import train_tokenizer

STOCK, FAST = "transformers", "modernbert_fast"


def run(args: argparse.Namespace) -> int:
    device = choose_device(args)
    model, fast = load_pair(args, device)
    batches = make_batches(args, model.config.pad_token_id, device)
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches]).tolist()
    grid = sum(batch["input_ids"].numel() for batch in batches)
    weights = args.model or f"ModernBERT-{args.preset} with RANDOM weights (--model NAME_OR_PATH for real ones)"
    print(f"model    {weights}, {args.dtype} on {device}, {torch.get_num_threads()} threads")
    span = f"{min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all"
    print(f"text     {len(lengths)} topics of Python's manual, {span}")
    padding = 1 - sum(lengths) / grid
    print(f"batches  {len(batches)} of {args.batch} as they come; {padding:.0%} of the padded grid is padding")
    print(flush=True)

    parity = parity_of_batch(model, **batches[0])

    def forward(module: Any) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [module(**batch).last_hidden_state for batch in batches]

    arms = [
        Arm(STOCK, lambda: forward(model), lambda hidden: parity.yardstick(STOCK, hidden[0])),
        Arm(FAST, lambda: forward(fast), lambda hidden: parity.check(FAST, hidden[0])),
    ]
    try:
        stock, ours = interleave(arms, args.rounds)
    except ParityError as error:
        print(f"parity   FAILED, {error}")
        return 1
    print(f"{'':<18}{'seconds':>9}{'tokens/s':>10}{'peak MiB':>10}")
    for measurement in (stock, ours):
        print(_line(measurement, sum(lengths)))
    print(f"{'ratio':<18}{stock.median / ours.median:>8.2f}x")
    print()
    print(f"parity   ok: max error {parity.errors[FAST]:.2e}, stock's own {parity.errors[STOCK]:.2e}")
    print("         (against the same model in a wider dtype, text by text)")
    print()
    print(mf.report(fast))
    print()
    meaning.show()
    return 0


def make_batches(args: argparse.Namespace, pad_id: int, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """Padded batches of the manual's texts in its own order: input_ids and attention_mask (B,S) int64."""
    texts = manual_texts()
    tokenizer = load_tokenizer(args.model) if args.model else train_tokenizer(texts)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    chosen = [text for text in ids if len(text) <= args.max_length][: args.texts]
    return [pad(chosen[start : start + args.batch], pad_id, device) for start in range(0, len(chosen), args.batch)]


def _line(measurement: Measurement, tokens: int) -> str:
    peak = "-" if measurement.peak_bytes is None else f"{measurement.peak_bytes / 2**20:.0f}"
    return f"{measurement.name:<18}{measurement.median:>9.2f}{tokens / measurement.median:>10.0f}{peak:>10}"
