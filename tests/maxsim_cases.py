"""Random ragged queries and documents: scores against float64, by the error rule, and alone against in a batch.

Also a command: `python tests/maxsim_cases.py 10000`.
"""

import sys

import torch

from modernbert_fast import ops
from modernbert_fast.testing import assert_as_good_as, assert_same_bits, plain, problems

POOLED = 20  # cases of one kind whose errors are compared together: a maximum over few numbers is luck


def check(cases, dtype, device, seed=0):
    """How many cases held; a third have int8 documents, half are pairs.

    Raises:
        AssertionError: with the kind that did not.
    """
    draw, done = torch.Generator().manual_seed(seed), 0

    def number(low, high):
        return int(torch.randint(low, high, (), generator=draw))

    while done < cases:
        D, pairwise, as_bytes = number(1, 200), number(0, 2) == 1, number(0, 3) == 0
        results = []
        for case in range(min(POOLED, cases - done)):
            count = number(1, 5)
            queries = [number(0, 40) for _ in range(count)]
            documents = [number(0, 100) for _ in range(count if pairwise else number(1, 7))]
            problem = problems.maxsim(queries, documents, D, dtype, device, pairwise=pairwise)
            q, d, *bounds = problem.inputs(seed=1000 * seed + done + case).values()
            stored = (32 * d).round().clamp(-128, 127).to(torch.int8) if as_bytes else d
            d = stored.to(dtype)
            scores = ops.maxsim(q, stored, *bounds, pairwise=pairwise)
            truth = plain.maxsim(q.double(), d.double(), *bounds, pairwise)
            results.append([x.flatten() for x in (scores, plain.maxsim(q, d, *bounds, pairwise), truth)])
            _check_alone(q, stored, *bounds, scores, number(0, count), number(0, len(documents)), pairwise)
        what = f"D = {D}, {'pairs' if pairwise else 'all'}, {stored.dtype}"
        assert_as_good_as(*(torch.cat(way) for way in zip(*results, strict=True)), what)
        done += len(results)
    return done


def _check_alone(q, d, cu_queries, cu_documents, scores, i, j, pairwise):
    """The score of query i and document j has the same bits without the others."""
    j = i if pairwise else j
    (a, b), (c, e) = cu_queries[i : i + 2].tolist(), cu_documents[j : j + 2].tolist()
    ends = (torch.tensor([0, n], dtype=torch.int32, device=q.device) for n in (b - a, e - c))
    alone = ops.maxsim(q[a:b], d[c:e], *ends)
    assert_same_bits(alone.flatten(), scores[i : i + 1] if pairwise else scores[i, j : j + 1], "alone")


def main(cases):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    shares = [cases // len(dtypes) + (i < cases % len(dtypes)) for i in range(len(dtypes))]
    held = sum(check(shares[i], dtype, device, seed=i) for i, dtype in enumerate(dtypes))
    print(f"{held} random cases keep the error rule, and a score alone has the bits it has in a batch")


if __name__ == "__main__":
    main(int(sys.argv[1]))
