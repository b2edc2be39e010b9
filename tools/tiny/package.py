"""Puts what the run of `make pretrain-tiny` gave among the package's data, and a sample of the test split to the tests.

python tools/tiny/package.py BUILD FOLDER
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from modernbert_fast.training.history import PLOT, RECORDS
from modernbert_fast.training.modeling import ModernBertForPreTraining

MAX_BYTES = 8_000_000
SAMPLE = 4  # every fourth document
HERE = Path(__file__).resolve().parent


def main(build: str, folder: str) -> int:
    """Weights in bf16, tokenizer, recipe, log, plot, and what the corpus is made of."""
    run, corpus, output = Path(build) / "run", Path(build) / "corpus", Path(folder)
    ModernBertForPreTraining.from_pretrained(run / "model", dtype=torch.bfloat16).save_pretrained(output)
    if (size := (output / "model.safetensors").stat().st_size) > MAX_BYTES:
        raise SystemExit(f"{size:,} bytes of weights, more than {MAX_BYTES:,}")
    AutoTokenizer.from_pretrained(run / "model").save_pretrained(output)
    (phase,) = run.glob("1-*")
    for source in (phase / RECORDS, phase / PLOT, corpus / "corpus.json", HERE / "recipe.json"):
        shutil.copyfile(source, output / source.name)
    documents = (corpus / "test.jsonl").read_text().splitlines(keepends=True)
    (HERE.parents[1] / "tests" / "training" / "tiny_test.jsonl").write_text("".join(documents[::SAMPLE]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
