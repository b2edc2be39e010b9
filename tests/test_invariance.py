"""An embedding depends on its text alone, bit for bit: not on threads, neighbours, padding or place in the batch."""

import types

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
import hf_models as hf  # noqa: E402

import modernbert_fast  # noqa: E402
from modernbert_fast import dispatch  # noqa: E402
from modernbert_fast.testing import assert_same_bits  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16)
LENGTHS = (33, 1, 2, 17, 64, 16, 31, 65, 130)


def rounded_once(function):
    """The same in float64: no order of summation, and no choice of kernel, shows in what is rounded from it."""

    def forward(x, *parameters):
        return function(x.double(), *(None if p is None else p.double() for p in parameters)).to(x.dtype)

    return forward


def gelu_gate(x):
    a, b = x.chunk(2, -1)
    return F.gelu(a) * b


# Rows whose last bits depend on the number of rows they are given, and what stands in for them. MKL picks its kernel by
# M; torch's erf of a contiguous row is not its erf of strided ones.
UNEVEN = {
    "linear": (
        ("aten", "reference"),
        {
            "forward": rounded_once(F.linear),
            "forward_geglu": rounded_once(lambda *operands: gelu_gate(F.linear(*operands))),
        },
    ),
    "geglu": (("reference",), {"forward": rounded_once(gelu_gate)}),
}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def uneven(dtype):
    """The ops that an uneven row serves here."""
    served = {op: dispatch.explain(op, dispatch.Call("cpu", frozenset((dtype,)), 64)) for op in UNEVEN}
    picked = {op: next(backend for backend, no in rows if not no) for op, rows in served.items()}
    return {op: backend for op, backend in picked.items() if backend in UNEVEN[op][0]}


@pytest.fixture(params=["as dispatched", "stand-ins"])
def model(request, dtype, uneven, monkeypatch):
    """An accelerated tiny model; stand-ins for uneven rows leave the rest to answer for itself."""
    if request.param == "stand-ins":
        for op in uneven:
            row = dispatch.Row("reference", lambda op: types.SimpleNamespace(**UNEVEN[op][1]), devices=None)
            monkeypatch.setitem(dispatch.TABLE, op, (row,))
        dispatch._pick.cache_clear()
    elif uneven and dtype == torch.float32 and request.function is test_alone_or_in_a_batch:
        rows = " and ".join(f"the {backend} row of {op}" for op, backend in uneven.items())
        mark = pytest.mark.xfail(reason=f"{rows}: see UNEVEN", strict=True, raises=AssertionError)
        request.applymarker(mark)
    config = hf.tiny_config(hidden_size=64, intermediate_size=96, max_position_embeddings=256)
    yield modernbert_fast.accelerate(hf.build("ModernBertModel", config).to(dtype))
    monkeypatch.undo()
    dispatch._pick.cache_clear()


def texts(seed=0, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, hf.VOCAB, (length,), generator=generator) for length in lengths]


@torch.inference_mode()
def embed(model, batch):
    """The rows of each text of a right-padded batch."""
    ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in batch], batch_first=True)
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return [row[: len(text)] for row, text in zip(states, batch, strict=True)]


def test_alone_or_in_a_batch(model):
    batch = texts()
    for text, together in zip(batch, embed(model, batch), strict=True):
        assert_same_bits(embed(model, [text])[0], together, f"text of {len(text)}")


def test_any_neighbours(model):
    """Other texts beside it, of other lengths, in other places."""
    (text,) = texts(lengths=(33,))
    expected = embed(model, [text])[0]
    for seed, lengths in enumerate([(1,), (130, 2), (64,) * 5, (200, 1, 7, 96), (3,) * 40]):
        neighbours = texts(seed + 1, lengths)
        for place in (0, len(neighbours) // 2, len(neighbours)):
            batch = [*neighbours[:place], text, *neighbours[place:]]
            assert_same_bits(embed(model, batch)[place], expected, f"text {place} of {len(batch)}")


def test_packed_or_padded(model):
    batch = texts()
    padded = torch.cat(embed(model, batch))
    lengths = [len(text) for text in batch]
    with torch.inference_mode():
        flat = model(input_ids=torch.cat(batch)[None], **hf.packed_kwargs(lengths)).last_hidden_state[0]
    assert_same_bits(flat, padded, "the same tokens without padding")


@pytest.mark.usefixtures("keep_threads")
def test_any_number_of_threads(model):
    """Enough rows for every op to split its work."""
    batch = texts() * 8
    torch.set_num_threads(1)
    one = embed(model, batch)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for got, expected in zip(embed(model, batch), one, strict=True):
            assert_same_bits(got, expected, f"text of {len(expected)} on {threads} threads")
