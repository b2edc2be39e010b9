"""What an index keeps of vectors in each of its dtypes: bytes, cosines, and how many of the ten best it still finds.

python benchmarks/run.py models/residual
python benchmarks/run.py models/residual --texts FOLDER/test.jsonl     (of tools/tiny/corpus.py)

Vectors are the last hidden states of the small model of this package, a text in eight a query of its first 32, all
projected to 128 dimensions at random and of length 1. Untrained for search, they share a direction: "centred" is the
same with the mean taken off, "random" has nothing in common. "found" is the share of the ten best documents of the
float16 index that are among the ten best.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import harness
import torch

from modernbert_fast import durable, timing
from modernbert_fast.commands.corpus import manual_paragraphs
from modernbert_fast.commands.meaning import BATCH, load
from modernbert_fast.retrieval import Index, IndexWriter
from modernbert_fast.retrieval.manifest import DTYPES
from modernbert_fast.texts import read_texts
from modernbert_fast.training.flatten import flatten

DIM, QUERY, BEST, EVERY = 128, 32, 10, 8


@torch.inference_mode()
def states(texts: Sequence[str]) -> list[torch.Tensor]:
    """The hidden states (S, DIM) of each text."""
    model, tokenizer = load()
    draw = torch.Generator().manual_seed(0)
    projection = torch.linalg.qr(torch.randn(model.config.hidden_size, DIM, generator=draw)).Q
    found: list[torch.Tensor] = []
    for first in range(0, len(texts), BATCH):
        batch = flatten(tokenizer(list(texts[first : first + BATCH]), truncation=True, max_length=256)["input_ids"])
        hidden = model.model(**batch).last_hidden_state[0] @ projection
        found += hidden.split(batch["cu_seq_lens_q"].diff().tolist())
    return found


def packed(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of length 1 and bounds."""
    bounds = torch.tensor([0, *itertools.accumulate(map(len, rows))], dtype=torch.int32)
    return torch.nn.functional.normalize(torch.cat(list(rows)), dim=1), bounds


def compare(documents: Sequence[torch.Tensor], queries: Sequence[torch.Tensor]) -> dict[str, dict[str, float]]:
    """Each dtype of an index of the documents."""
    (vectors, bounds), asked = packed(documents), packed(queries)
    ids, found, records = [str(i) for i in range(len(documents))], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            with IndexWriter(Path(folder, dtype), DIM, dtype) as writer:
                writer.add(ids, vectors, bounds)
            index = Index(Path(folder, dtype))
            (segment,) = index.segments
            size = segment.vectors.nbytes + (0 if segment.scales is None else segment.scales.nbytes)
            cosines = torch.cosine_similarity(segment.decoded(bounds.diff() > 0), vectors)
            found[dtype] = [{hit.id for hit in hits} for hits in index.search(*asked, BEST)]
            same = [len(a & b) / len(a) for a, b in zip(found[DTYPES[0]], found[dtype], strict=True)]
            records[dtype] = {
                "bytes": size / len(vectors),
                "cosine": float(cosines.mean()),
                "least": float(cosines.min()),
                "found": sum(same) / len(same),
            }
    return records


def main(argv: list[str]) -> None:
    parser = harness.parser("models/residual", __doc__)
    parser.add_argument("--texts", type=Path, help="one a line; the paragraphs of Python's manual when not given")
    parser.add_argument("--most", type=int, default=4000, help="texts (default: %(default)s)")
    args = parser.parse_args(argv)
    texts = read_texts(args.texts, "text") if args.texts else (text for _, text in manual_paragraphs())
    rows = states(list(itertools.islice(texts, args.most)))
    mean = torch.cat(rows).mean(0)
    random = torch.randn(len(torch.cat(rows)), DIM).split([len(row) for row in rows])
    records = {}
    for name, kind in (("states", rows), ("centred", [row - mean for row in rows]), ("random", random)):
        documents = [row for i, row in enumerate(kind) if i % EVERY]
        records[name] = compare(documents, [row[:QUERY] for row in kind[::EVERY]])
        print(f"{name}: {sum(map(len, documents))} vectors of {len(documents)} texts")
        for dtype, record in records[name].items():
            words = "  ".join(f"{key} {value:.4g}" for key, value in record.items())
            print(f"  {dtype:<10}{words}")
    path = harness.record_path(args.output, "residual.json")
    durable.write_json(path, {"texts": len(rows), "machine": timing.machine_facts(), "records": records})
    print(path)
