"""What trained weights give, those of the small model of this package: words for masks, the nearest paragraphs."""

from collections.abc import Sequence
from typing import Any

import torch

import modernbert_fast as mf
from modernbert_fast.commands.corpus import manual_paragraphs
from modernbert_fast.tiny import FOLDER
from modernbert_fast.training.flatten import flatten

PROMPTS = (
    "If the file does not [MASK], an error is raised.",
    "Return True if the object is an [MASK] of the class.",
    "See the [MASK] for more information.",
)
QUERIES = (
    "what happens when an exception is raised",
    "the value of an attribute of an object",
    "methods that are called when an object is deleted",
)
BATCH = 64
COLUMN, SHOWN = 54, 80


def load() -> tuple[Any, Any]:
    """The accelerated model and its tokenizer."""
    from transformers import AutoTokenizer

    from modernbert_fast.training.modeling import ModernBertForPreTraining

    model = ModernBertForPreTraining.from_pretrained(FOLDER, dtype=torch.float32, use_safetensors=True)
    return mf.accelerate(model.eval()), AutoTokenizer.from_pretrained(FOLDER)


@torch.inference_mode()
def fill_mask(model: Any, tokenizer: Any, prompt: str, count: int = 3) -> list[tuple[str, float]]:
    """The likeliest words for the one [MASK] of a prompt, with their probabilities."""
    batch = flatten(tokenizer([prompt])["input_ids"])
    masked = batch["input_ids"][0] == tokenizer.mask_token_id
    logits = model(**batch).prediction_logits[0, masked]
    best = logits[0].softmax(-1).topk(count)
    words = [tokenizer.decode([token]).strip() for token in best.indices.tolist()]
    return list(zip(words, best.values.tolist(), strict=True))


@torch.inference_mode()
def vectors(model: Any, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """The mean of each text's hidden states, (N, C)."""
    found = []
    for start in range(0, len(texts), BATCH):
        batch = flatten(tokenizer(list(texts[start : start + BATCH]))["input_ids"])
        hidden = model.model(**batch).last_hidden_state[0]
        lengths = batch["cu_seq_lens_q"].diff().tolist()
        found += [text.mean(0) for text in hidden.split(lengths)]
    return torch.stack(found)


def nearest(queries: torch.Tensor, paragraphs: torch.Tensor) -> list[int]:
    """The paragraph nearest to each query by the cosine, the mean of all paragraphs taken off both."""
    centre = paragraphs.mean(0)
    normal = [torch.nn.functional.normalize(rows - centre, dim=1) for rows in (queries, paragraphs)]
    return (normal[0] @ normal[1].T).argmax(1).tolist()


def show() -> None:
    """Prints words for PROMPTS and paragraphs of Python's manual for QUERIES."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading, in the midst of the output
    model, tokenizer = load()
    paragraphs = manual_paragraphs()
    print("the small model of this package, trained on the prose of Python packages, fills masks")
    for prompt in PROMPTS:
        words = ", ".join(f"{word} {share:.0%}" for word, share in fill_mask(model, tokenizer, prompt))
        print(f"  {prompt:<{COLUMN}} {words}")
    print(f"and finds the nearest of {len(paragraphs)} paragraphs of Python's manual")
    found = nearest(vectors(model, tokenizer, QUERIES), vectors(model, tokenizer, [text for _, text in paragraphs]))
    for query, number in zip(QUERIES, found, strict=True):
        topic, text = paragraphs[number]
        print(f"  {query:<{COLUMN}} {topic}: {text[:SHOWN]}...")
