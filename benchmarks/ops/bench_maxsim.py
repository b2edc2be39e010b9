"""Flops of all products of query tokens with document tokens; bytes of both, read once."""

import torch
from harness import Case, both

from modernbert_fast import ops
from modernbert_fast.testing import problems

D = 128


def cases(T, dtype, device):
    queries, documents = (32,) * 4, (T // 8,) * 16
    problem = problems.maxsim(queries, documents, D, dtype, device)
    name = f"{len(queries)} queries of 32, {len(documents)} documents of {documents[0]}"
    yield from both(name, problem, *_cost(queries, documents, dtype), backward=0.1)


def large_cases(dtype, device):
    """A query and documents of 100 to 500 tokens, for torch both padded and packed."""
    lengths = tuple(100 + 163 * i % 401 for i in range(512))
    problem = problems.maxsim((32,), lengths, D, dtype, device).but(
        draw=lambda draw: _with_padded(draw, lengths),
        run=lambda padded, **packed: ops.maxsim(**packed),
        grads=(),
    )
    name = f"1 query of 32, {len(lengths)} documents of 100 to 500"
    for plain, how in ((_einsum, "einsum of padded documents"), (_product, "one product, a maximum a document")):
        cost = _cost((32,), lengths, dtype)
        yield Case(f"{name}; torch: {how}", problem.but(plain=plain), *cost, large=True)


def _with_padded(draw, lengths):
    """The problem's inputs, and its documents as (N, longest, D) for those who store them so."""
    d = draw(sum(lengths), D)
    padded = torch.nn.utils.rnn.pad_sequence(d.split(lengths), batch_first=True)
    bounds = {"cu_queries": draw.bounds((32,)), "cu_documents": draw.bounds(lengths)}
    return {"q": draw(32, D), "d": d, "padded": padded, **bounds}


def _einsum(q, d, padded, cu_queries, cu_documents):
    hidden = torch.arange(padded.shape[1], device=d.device) >= cu_documents.diff()[:, None]
    products = torch.einsum("qd,ntd->nqt", q, padded).masked_fill_(hidden[:, None], float("-inf"))
    return products.amax(-1).sum(-1, dtype=torch.float32)[None]


def _product(q, d, padded, cu_queries, cu_documents):
    products = q @ d.T
    best = [products[:, a:b].amax(1) for a, b in zip(cu_documents.tolist(), cu_documents.tolist()[1:], strict=False)]
    return torch.stack(best).sum(1, dtype=torch.float32)[None]


def _cost(queries, documents, dtype):
    tokens = sum(queries), sum(documents)
    return sum(tokens) * D * dtype.itemsize, 2 * tokens[0] * tokens[1] * D
