"""Finds clauses in contracts of 8,192 tokens: every token is labelled in one pass, so no chunk cuts a clause in two.

Window layers cost as much for each token however long the contract is, global layers grow with its length; memory grows
with the tokens alone. The program prints what that comes to. It fine-tunes the small model that the package carries on
contracts that it makes up.
"""

import random
import time

import torch
from transformers import AutoTokenizer, ModernBertForTokenClassification

import modernbert_fast as mf
from modernbert_fast.tiny import FOLDER
from modernbert_fast.training.collators import collate_tokens

SENTENCES = {
    "other": ("The parties meet {} times a year.", "Reports are due in {} days.", "See section {}."),
    "termination": ("Either party may end this agreement within {} days.", "It ends after {} late payments."),
    "liability": ("Neither party is liable for more than {}.", "Damages are limited to {} fees."),
    "law": ("The laws of state {} apply.", "Courts of district {} decide."),
}
LABELS = tuple(SENTENCES)


def contract(tokenizer, draw, tokens):
    """A contract of so many tokens, and the label of each."""
    ids, labels = [], []
    while len(ids) < tokens:
        label = draw.choice((0,) * 9 + (1, 2, 3))
        text = draw.choice(SENTENCES[LABELS[label]]).format(draw.randint(2, 99))
        sentence = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        ids, labels = ids + sentence, labels + [label] * len(sentence)
    return {"input_ids": ids[:tokens], "labels": labels[:tokens]}


def main(steps=20, lengths=(1024, 8192)):
    draw, tokenizer = random.Random(0), AutoTokenizer.from_pretrained(FOLDER)
    torch.manual_seed(0)
    model = ModernBertForTokenClassification.from_pretrained(FOLDER, dtype=torch.float32, num_labels=len(LABELS))
    mf.accelerate(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        model(**collate_tokens([contract(tokenizer, draw, draw.randint(100, 600)) for _ in range(4)])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    for length in lengths:
        batch = collate_tokens([contract(tokenizer, draw, length)])
        labels, start = batch.pop("labels"), time.perf_counter()
        with torch.inference_mode():
            right = model(**batch).logits.argmax(-1) == labels
        share, time_each = right[labels > 0].float().mean(), (time.perf_counter() - start) / length
        print(f"{length} tokens: {share:.1%} of clause tokens right, {1e6 * time_each:.0f} microseconds a token")
    return float(share)


if __name__ == "__main__":
    main()
