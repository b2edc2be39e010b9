"""Exact search of one query of 32 vectors over documents of many vectors, against what torch and maxsim-cpu do.

python benchmarks/run.py models/search --rounds 15

The index holds 4,874 documents, about 600,000 vectors of 128 dimensions, in each of its dtypes. Each arm gives the ten
best documents; the rivals score the same vectors in memory, in fp32, which they need. "of the copy" is the share of the
memory bandwidth that a copy has here, counted by the bytes that an arm must read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import harness
import torch

from modernbert_fast import durable, timing
from modernbert_fast.retrieval import Index, IndexWriter

DIM, QUERY, BEST = 128, 32, 10
CHUNK = 100_000_000  # elements of a similarity tensor that sentence-transformers makes at a time


def corpus(documents: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (T, DIM) of length 1 and bounds (N + 1,); 1 to 245 vectors a document."""
    torch.manual_seed(0)
    lengths = torch.randint(1, 246, (documents,))
    vectors = torch.nn.functional.normalize(torch.randn(int(lengths.sum()), DIM), dim=1)
    return vectors, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def einsum(query: torch.Tensor, padded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scores (N,) of padded documents, a chunk at a time."""
    at_once = max(1, CHUNK // (query.shape[0] * padded.shape[1]))
    parts = []
    for documents, hidden in zip(padded.split(at_once), mask.split(at_once), strict=True):
        products = torch.einsum("sh,bth->bst", query, documents)
        parts.append(products.masked_fill_(hidden[:, None], float("-inf")).amax(-1).sum(-1))
    return torch.cat(parts)


def arms(folder: Path, documents: int) -> list[tuple[timing.Arm, int]]:
    """Every arm, and the bytes that it reads at least."""
    vectors, bounds = corpus(documents)
    query = torch.nn.functional.normalize(torch.randn(QUERY, DIM), dim=1)
    texts = vectors.split(bounds.diff().tolist())
    truth = torch.stack([(query.double() @ text.double().T).amax(1).sum() for text in texts])
    found: list[tuple[timing.Arm, int]] = []

    def check(error: float) -> Any:
        def best(ids: list[int]) -> None:
            worst = truth[torch.tensor(ids)].sort(descending=True).values
            torch.testing.assert_close(worst, truth.topk(BEST).values, rtol=0, atol=error)

        return best

    for dtype, error in (("float16", 1e-2), ("int8", 0.1), ("residual4", 1.0)):
        with IndexWriter(folder / dtype, DIM, dtype) as writer:
            writer.add([str(i) for i in range(documents)], vectors, bounds)
        index = Index(folder / dtype)
        one = torch.tensor([0, QUERY], dtype=torch.int32)

        def search(index: Index = index, one: torch.Tensor = one) -> list[int]:
            return [int(hit.id) for hit in index.search(query, one, BEST)[0]]

        size = index.segments[0].vectors.nbytes
        found.append((timing.Arm(f"modernbert_fast, {dtype} on disk", search, check(error)), size))

    padded = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    hidden = torch.arange(padded.shape[1]) >= bounds.diff()[:, None]
    run = lambda: einsum(query, padded, hidden).topk(BEST).indices.tolist()  # noqa: E731
    found.append((timing.Arm("torch einsum, padded", run, check(1e-3)), 4 * vectors.numel()))
    try:
        import maxsim_cpu
    except ImportError as reason:
        print(f"maxsim-cpu: not measured ({reason})")
    else:
        rows = [text.numpy() for text in texts]
        asked = query.numpy()

        def rival() -> list[int]:
            return torch.from_numpy(maxsim_cpu.maxsim_scores_variable(asked, rows)).topk(BEST).indices.tolist()

        found.append((timing.Arm("maxsim-cpu", rival, check(1e-3)), 4 * vectors.numel()))
    return found


def main(argv: list[str]) -> None:
    parser = harness.parser("models/search", __doc__)
    parser.add_argument("--documents", type=int, default=4874, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    args = parser.parse_args(argv)
    facts = timing.machine_facts()
    with tempfile.TemporaryDirectory() as folder:
        pairs = arms(Path(folder), args.documents)
        copy = harness.limits(torch.device("cpu"), torch.float32)[0]
        *measured, limit = timing.interleave([arm for arm, _ in pairs] + [copy], args.rounds)
    bandwidth = harness.COPY_BYTES / limit.median
    records = []
    print(f"{'':<34}{'ms':>8}{'GB/s':>8}{'of the copy':>13}{'ours ahead by':>15}")
    for taken, (_, size) in zip(measured, pairs, strict=True):
        rate = size / taken.median
        ahead = taken.median / measured[0].median
        print(f"{taken.name:<34}{1e3 * taken.median:>8.1f}{rate / 1e9:>8.1f}{rate / bandwidth:>13.0%}{ahead:>14.1f}x")
        records.append({**taken.as_dict(), "bytes": size, "share_of_copy": rate / bandwidth, "ahead": ahead})
    path = harness.record_path(args.output, "search.json")
    durable.write_json(path, {"documents": args.documents, "machine": facts, "copy": bandwidth, "records": records})
    print(path)
