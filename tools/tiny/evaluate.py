"""Figures of a model on the test split of the corpus.

python tools/tiny/evaluate.py MODEL CORPUS [OUTPUT.json]
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

from modernbert_fast.durable import write_json
from modernbert_fast.training import held_out
from modernbert_fast.training.documents import read_documents


def main(model: str, corpus: str, output: str | None = None) -> int:
    tokenizer = AutoTokenizer.from_pretrained(model)
    guess = held_out.commonest(read_documents(Path(corpus) / "train.jsonl"), tokenizer)
    figures = held_out.evaluate(Path(model), list(read_documents(Path(corpus) / "test.jsonl")), guess)
    record = {"commonest_token": tokenizer.convert_ids_to_tokens(guess), **figures}
    print(json.dumps(record, indent=2))
    if output:
        write_json(output, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
