"""The four kinds of heads: how examples become features, and what a head says becomes predictions."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modernbert_fast import heads
from modernbert_fast.training import collators
from modernbert_fast.training.tasks import Examples

Feature = dict[str, Any]
Tokenizer = Any
STRIDE = 128  # tokens that windows of a long context share
ANSWER_TOKENS = 30


@dataclass(frozen=True)
class Kind:
    """Attributes:
    architecture: class of transformers.
    collate: features -> a flattened batch.
    encode: (tokenizer, examples, labels, max_length) -> features; of an example one, or of spans one a window.
    decode: (examples, features, what the head gave them, labels) -> predictions, one an example.
    """

    architecture: str
    collate: Callable[[Sequence[Feature]], dict[str, Any]]
    encode: Callable[[Tokenizer, Examples, Sequence[str], int], list[Feature]]
    decode: Callable[[Examples, Sequence[Feature], Any, Sequence[str]], list[Any]]


def _encode_texts(tokenizer: Tokenizer, examples: Examples, labels: Sequence[str], max_length: int) -> list[Feature]:
    ids = _framed(tokenizer, [example.texts for example in examples], max_length)
    features: list[Feature] = [{"input_ids": text} for text in ids]
    for feature, example in zip(features, examples, strict=True):
        if example.label is not None:
            feature["labels"] = labels.index(example.label) if labels else float(example.label)
    return features


def _decode_texts(examples: Examples, features: Sequence[Feature], given: Any, labels: Sequence[str]) -> list[Any]:
    """Probabilities by label; a number where there are no labels."""
    if not labels:
        return given.reshape(-1).tolist()
    return [dict(zip(labels, row, strict=True)) for row in _softmax(given).tolist()]


def _encode_choices(tokenizer: Tokenizer, examples: Examples, labels: Sequence[str], max_length: int) -> list[Feature]:
    pairs = [(example.texts[0], choice) for example in examples for choice in example.texts[1:]]
    ids = iter(_framed(tokenizer, pairs, max_length))
    features: list[Feature] = []
    for example in examples:
        features.append({"input_ids": [next(ids) for _ in example.texts[1:]]})
        if example.label is not None:
            features[-1]["labels"] = example.label
    return features


def _decode_choices(examples: Examples, features: Sequence[Feature], given: Any, labels: Sequence[str]) -> list[Any]:
    """Probabilities by number of the choice."""
    counts = [len(example.texts) - 1 for example in examples]
    return [dict(enumerate(_softmax(row[:count]).tolist())) for row, count in zip(given, counts, strict=True)]


def _encode_tokens(tokenizer: Tokenizer, examples: Examples, labels: Sequence[str], max_length: int) -> list[Feature]:
    """A word's label stands at its first token; "firsts" says where that is."""
    spaced = [[" " * (place > 0) + word for place, word in enumerate(example.texts)] for example in examples]
    encoded = tokenizer(spaced, is_split_into_words=True, truncation=True, max_length=max_length)
    features = []
    for number, example in enumerate(examples):
        firsts: dict[int, int] = {}
        for place, word in enumerate(encoded.word_ids(number)):
            if word is not None:
                firsts.setdefault(word, place)
        feature = {"input_ids": encoded["input_ids"][number], "firsts": firsts}
        if example.label is not None:
            feature["labels"] = [heads.IGNORE] * len(feature["input_ids"])
            for word, place in firsts.items():
                feature["labels"][place] = labels.index(example.label[word])
        features.append(feature)
    return features


def _decode_tokens(examples: Examples, features: Sequence[Feature], given: Any, labels: Sequence[str]) -> list[Any]:
    """A label a word; None for words that were cut off or have no token."""
    chosen = given.argmax(-1)
    return [
        [labels[row[feature["firsts"][word]]] if word in feature["firsts"] else None for word in range(len(e.texts))]
        for e, feature, row in zip(examples, features, chosen, strict=True)
    ]


def _encode_spans(tokenizer: Tokenizer, examples: Examples, labels: Sequence[str], max_length: int) -> list[Feature]:
    """A feature a window; the span of a window without the answer is its first token, and so is that of no answer.

    Raises:
        ValueError: a question leaves no room for windows of its context.
    """
    questions = [example.texts[0].strip() for example in examples]
    contexts = [example.texts[1] for example in examples]
    stride = min(STRIDE, max_length // 4)
    _check_room(tokenizer, questions, contexts, max_length, stride)
    encoded = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    features = []
    for window, number in enumerate(encoded["overflow_to_sample_mapping"]):
        inside = np.array([part == 1 for part in encoded.sequence_ids(window)])
        offsets = np.array(encoded["offset_mapping"][window])
        first, last = 0, 0
        if examples[number].label is not None:
            answer, start = examples[number].label
            starts = np.flatnonzero(inside & (offsets[:, 1] > start))
            stops = np.flatnonzero(inside & (offsets[:, 0] < start + len(answer)))
            places = np.flatnonzero(inside)
            whole = offsets[places[0], 0] <= start and offsets[places[-1], 1] >= start + len(answer)
            if whole and starts[0] <= stops[-1]:
                first, last = int(starts[0]), int(stops[-1])
        features.append(
            {
                "input_ids": encoded["input_ids"][window],
                "start_positions": first,
                "end_positions": last,
                "example": number,
                "inside": inside,
                "offsets": offsets,
            }
        )
    return features


def _check_room(
    tokenizer: Tokenizer, questions: Sequence[str], contexts: Sequence[str], max_length: int, stride: int
) -> None:
    """Refuses what the tokenizer would stop at without a word of where: windows no longer than they overlap."""
    sizes = [len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"]]
    for number, (size, context) in enumerate(zip(sizes, contexts, strict=True), 1):
        room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - size
        if room <= stride and len(tokenizer(context, add_special_tokens=False)["input_ids"]) > room:
            raise ValueError(
                f"example {number}: of {max_length} tokens its question takes {size}, which leaves no room for windows "
                f"of the context: allow longer texts or shorten the question {reprlib.repr(questions[number - 1])}"
            )


def _decode_spans(examples: Examples, features: Sequence[Feature], given: Any, labels: Sequence[str]) -> list[Any]:
    """The best answer of all windows; if "" is a label, "" where every window prefers its first token to it."""
    found = [(-np.inf, "")] * len(examples)
    nothing = np.full(len(examples), np.inf)
    for feature, start, end in zip(features, *given, strict=True):
        number, size = feature["example"], len(feature["input_ids"])
        nothing[number] = min(nothing[number], start[0] + end[0])
        start, end = (np.where(feature["inside"], scores[:size], -np.inf) for scores in (start, end))
        width = min(ANSWER_TOKENS, size)
        ends = np.lib.stride_tricks.sliding_window_view(np.append(end, [-np.inf] * (width - 1)), width)
        scores = start[:, None] + ends
        first, length = np.unravel_index(scores.argmax(), scores.shape)
        if scores[first, length] > found[number][0]:
            left, right = feature["offsets"][first, 0], feature["offsets"][first + length, 1]
            found[number] = (scores[first, length], examples[number].texts[1][left:right].strip())
    possible = "" in labels
    return ["" if possible and value <= limit else text for (value, text), limit in zip(found, nothing, strict=True)]


def _framed(tokenizer: Tokenizer, texts: Iterable[Sequence[str]], max_length: int) -> list[list[int]]:
    """Ids of texts or pairs with their special tokens; of too long a pair the longer text is cut."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    if len(columns) == 2 and tokenizer.num_special_tokens_to_add(pair=True) < 3:
        raise ValueError(
            "the tokenizer puts nothing between the texts of a pair: its tokenizer.json needs a pair template"
        )
    return tokenizer(*columns, truncation=True, max_length=max_length)["input_ids"]


def _softmax(logits: Any) -> NDArray[np.float64]:
    from scipy.special import softmax

    return softmax(np.asarray(logits, np.float64), axis=-1)


KINDS = {
    "texts": Kind("AutoModelForSequenceClassification", collators.collate_texts, _encode_texts, _decode_texts),
    "choices": Kind("AutoModelForMultipleChoice", collators.collate_choices, _encode_choices, _decode_choices),
    "tokens": Kind("AutoModelForTokenClassification", collators.collate_tokens, _encode_tokens, _decode_tokens),
    "spans": Kind("AutoModelForQuestionAnswering", collators.collate_spans, _encode_spans, _decode_spans),
}
