"""Flops of all products of query tokens with document tokens; bytes of both, read once."""

import torch
from harness import Case, both

from modernbert_fast.testing import problems

D = 128


def cases(T, dtype, device):
    queries, documents = (32,) * 4, (T // 8,) * 16
    problem = problems.maxsim(queries, documents, D, dtype, device)
    name = f"{len(queries)} queries of 32, {len(documents)} documents of {documents[0]}"
    yield from both(name, problem, *_cost(queries, documents, dtype), backward=0.1)


def large_cases(dtype, device):
    """Documents of one length, so that the einsum over all of them needs no padding."""
    documents = (300,) * 512
    for queries in ((32,), (32,) * 4):
        problem = problems.maxsim(queries, documents, D, dtype, device)
        name = f"{len(queries)} queries of 32, {len(documents)} documents of {documents[0]}; torch: einsum"
        yield Case(name, problem.but(plain=_einsum, grads=()), *_cost(queries, documents, dtype), large=True)


def _einsum(q, d, cu_queries, cu_documents):
    q, d = (x.float().view(len(bounds) - 1, -1, D) for x, bounds in ((q, cu_queries), (d, cu_documents)))
    return torch.einsum("aid,bjd->abij", q, d).amax(-1).sum(-1)


def _cost(queries, documents, dtype):
    tokens = sum(queries), sum(documents)
    return sum(tokens) * D * dtype.itemsize, 2 * tokens[0] * tokens[1] * D
