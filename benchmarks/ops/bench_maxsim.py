"""Flops of all products of query tokens with document tokens; bytes of both, read once."""

from harness import both

from modernbert_fast.testing import problems


def cases(T, dtype, device):
    queries, documents, D = (32,) * 4, (T // 8,) * 16, 128
    tokens = sum(queries), sum(documents)
    problem = problems.maxsim(queries, documents, D, dtype, device)
    name = f"{len(queries)} queries of 32, {len(documents)} documents of {documents[0]}"
    yield from both(name, problem, sum(tokens) * D * dtype.itemsize, 2 * tokens[0] * tokens[1] * D, backward=0.1)
