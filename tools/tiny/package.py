"""Evaluates the run of `make pretrain-tiny` and puts what it gave among the package's data.

python tools/tiny/package.py BUILD FOLDER
"""

import json
import shutil
import sys
from pathlib import Path

import evaluate
import torch
from transformers import AutoTokenizer

from modernbert_fast.durable import write_json
from modernbert_fast.training.documents import read_documents
from modernbert_fast.training.history import PLOT, RECORDS
from modernbert_fast.training.modeling import ModernBertForPreTraining

MAX_BYTES = 8_000_000
SAMPLE = 4  # every so-many-th document of the test split goes to the tests


def main(build: str, folder: str) -> int:
    """Weights in bf16, tokenizer, recipe, log, plot, figures; and a sample of the test split beside the tests."""
    run, corpus, output = Path(build) / "run", Path(build) / "corpus", Path(folder)
    model = ModernBertForPreTraining.from_pretrained(run / "model", dtype=torch.bfloat16)
    model.save_pretrained(output)
    if (size := (output / "model.safetensors").stat().st_size) > MAX_BYTES:
        raise SystemExit(f"{size:,} bytes of weights, more than {MAX_BYTES:,}")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    tokenizer.save_pretrained(output)
    (phase,) = run.glob("1-*")
    for source in (phase / RECORDS, phase / PLOT, corpus / "corpus.json", Path(__file__).parent / "recipe.json"):
        shutil.copyfile(source, output / source.name)
    test = list(read_documents(corpus / "test.jsonl"))
    guess = evaluate.commonest(read_documents(corpus / "train.jsonl"), tokenizer)
    figures = evaluate.evaluate(output, test, guess)
    write_json(output / "figures.json", {"commonest_token": tokenizer.convert_ids_to_tokens(guess), **figures})
    sample = "".join(json.dumps({"text": text}) + "\n" for text in test[::SAMPLE])
    (Path(__file__).parents[2] / "tests" / "training" / "tiny_test.jsonl").write_text(sample)
    print((output / "figures.json").read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
