"""Rows of SuperGLUE's copies at Hugging Face (aps/super_glue and the like) as the published files have them."""

from __future__ import annotations

from modernbert_fast.training.rows import Row, get, strings

CONFIGS = {"WSC": "wsc.fixed", "AX-b": "axb", "AX-g": "axg"}  # the others are the names in lower case
SPLITS = {"train": "train", "dev": "validation"}
TRUTH = {"False": False, "True": True}
CHOICES = {"choice1": 0, "choice2": 1}


def source(data: str, name: str, split: str) -> str:
    """The dataset of a task, or of the diagnostic set that a split is named for, as read_rows takes it."""
    config = CONFIGS.get(split) or CONFIGS.get(name, name.lower())
    return f"{data}:{config}:{SPLITS.get(split, 'test')}"


def published(name: str, row: Row) -> Row:
    """A row of the hub as a row of the published file.

    Raises:
        ValueError: a field is missing or of another type.
    """
    if name in ("BoolQ", "WiC"):
        return {**row, "label": TRUTH.get(row.get("label", ""))}
    if name == "COPA":
        return {**row, "label": CHOICES.get(row.get("label", ""))}
    if name == "WSC":
        return {
            "text": get(row, "text"),
            "target": row,
            "idx": get(row, "idx", int),
            "label": TRUTH.get(row.get("label", "")),
        }
    if name == "MultiRC":
        numbers, label = get(row, "idx", dict), TRUTH.get(row.get("label", ""))
        answer = {
            "text": get(row, "answer"),
            "idx": get(numbers, "answer", int),
            "label": None if label is None else int(label),
        }
        question = {"question": get(row, "question"), "idx": get(numbers, "question", int), "answers": [answer]}
        return {
            "idx": get(numbers, "paragraph", int),
            "passage": {"text": get(row, "paragraph"), "questions": [question]},
        }
    if name == "ReCoRD":
        text, numbers = get(row, "passage"), get(row, "idx", dict)
        starts = [(text.find(entity), len(entity)) for entity in strings(row, "entities")]
        entities = [{"start": start, "end": start + length - 1} for start, length in starts]
        asked = {"query": get(row, "query"), "idx": get(numbers, "query", int)}
        if row.get("answers") is not None:
            asked["answers"] = [{"text": answer} for answer in strings(row, "answers")]
        return {"idx": get(numbers, "passage", int), "passage": {"text": text, "entities": entities}, "qas": [asked]}
    return row
