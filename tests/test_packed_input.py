"""Texts laid end to end never see one another: bit for bit, forward and backward, whatever the neighbour holds."""

import copy

import hf_models as hf
import pytest
import torch

import modernbert_fast as mf

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (9, 17, 5)
MIDDLE = slice(9, 26)


@pytest.fixture(scope="module")
def stock():
    return hf.build("ModernBertModel", hf.tiny_config(local_attention=6, norm_bias=True))


@pytest.fixture(scope="module")
def fast(stock):
    return mf.accelerate(copy.deepcopy(stock))


def ids(seed=0):
    return torch.randint(1, hf.VOCAB, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(seed))


def with_other_neighbours():
    changed = ids(1)
    changed[:, MIDDLE] = ids()[:, MIDDLE]
    return changed


def middle(model, **inputs):
    """The middle text's rows, and what its loss says to every parameter."""
    model.zero_grad()
    rows = model(**inputs).last_hidden_state[0, MIDDLE]
    rows.square().mean().backward()
    return rows.detach(), hf.gradients(model)


def assert_same(one, other):
    assert torch.equal(one[0], other[0])
    for name, gradient in one[1].items():
        assert torch.equal(gradient, other[1][name]), name


def test_other_tokens_next_door_change_nothing(fast):
    kwargs = hf.packed_kwargs(LENGTHS)
    one = middle(fast, input_ids=ids(), **kwargs)
    other = middle(fast, input_ids=with_other_neighbours(), **kwargs)
    assert_same(one, other)


def test_transformers_leaks_between_packed_texts(stock):
    """The same calls on stock transformers: without flash-attn, cu_seq_lens are ignored in silence."""
    kwargs = hf.packed_kwargs(LENGTHS)
    with torch.no_grad():
        one, other = (
            stock(input_ids=given, **kwargs).last_hidden_state[0, MIDDLE] for given in (ids(), with_other_neighbours())
        )
    assert hf.relative(other, one) > 0.01


@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")])
def test_what_is_next_door_reaches_no_output_and_no_gradient(fast, value):
    embeds = fast.embeddings.tok_embeddings.weight.detach()[ids()]
    poisoned = torch.full_like(embeds, value)
    poisoned[:, MIDDLE] = embeds[:, MIDDLE]
    kwargs = hf.packed_kwargs(LENGTHS)
    results = []
    for given in (embeds, poisoned):
        given = given.clone().requires_grad_()
        rows = fast(inputs_embeds=given, **kwargs).last_hidden_state[0, MIDDLE]
        (gradient,) = torch.autograd.grad(rows.square().mean(), given)
        results.append((rows.detach(), gradient[0, MIDDLE]))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("value", [1e30, float("nan")])
@pytest.mark.parametrize("kind", ["right", "left", "holes"])
def test_what_padding_holds_reaches_nothing(fast, kind, value):
    batch = hf.batch(kind)
    embeds = fast.embeddings.tok_embeddings.weight.detach()[batch.ids]
    poisoned = embeds.masked_fill(~batch.mask[..., None], value)
    results = []
    for given in (embeds, poisoned):
        fast.zero_grad()
        rows = fast(inputs_embeds=given, attention_mask=batch.mask.long()).last_hidden_state
        rows.square().mean().backward()
        results.append((rows.detach(), hf.gradients(fast)))
    assert_same(*results)
    assert not results[0][0][~batch.mask].any()


def test_a_text_is_the_same_alone_padded_and_packed(fast):
    text = ids()[:, MIDDLE]
    batch = torch.zeros(2, 30, dtype=torch.long)
    batch[1, 6:23] = text
    batch[0, 0] = 1
    with torch.no_grad():
        alone = fast(input_ids=text).last_hidden_state[0]
        padded = fast(input_ids=batch, attention_mask=(batch != 0).long()).last_hidden_state[1, 6:23]
        packed = fast(input_ids=ids(), **hf.packed_kwargs(LENGTHS)).last_hidden_state[0, MIDDLE]
    assert hf.relative(padded, alone) <= 1e-6
    assert hf.relative(packed, alone) <= 1e-6


def test_position_ids_that_restart_are_bounds_when_asked(stock):
    fast = mf.accelerate(copy.deepcopy(stock), restart_position_ids=True)
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    with torch.no_grad():
        expected = fast(input_ids=ids(), **hf.packed_kwargs(LENGTHS)).last_hidden_state
        actual = fast(input_ids=ids(), position_ids=positions).last_hidden_state
    assert torch.equal(actual, expected)


def test_texts_restart_where_the_mask_hides_position_0(stock):
    fast = mf.accelerate(copy.deepcopy(stock), restart_position_ids=True)
    places = {
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 1, 1]]),
    }
    with torch.no_grad():
        one, other = (
            fast(input_ids=torch.tensor([[*first, 9, 8, 7]]), **places).last_hidden_state[0]
            for first in ((3, 4, 5), (30, 40, 50))
        )
    assert not torch.equal(one[:3], other[:3])
    assert torch.equal(one[4:], other[4:])


def test_position_ids_that_restart_are_only_positions_otherwise(stock, fast):
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    with torch.no_grad():
        expected = stock(input_ids=ids(), position_ids=positions).last_hidden_state
        actual = fast(input_ids=ids(), position_ids=positions).last_hidden_state
    assert hf.relative(actual, expected) <= 1e-5


def test_position_ids_beside_bounds_are_used(stock, fast):
    """A text may start anywhere: rotary attention sees distances only, and these positions stretch them."""
    positions = torch.cat([torch.arange(n) * 2 + 3 for n in LENGTHS])[None]
    with torch.no_grad():
        actual = fast(input_ids=ids(), position_ids=positions, **hf.packed_kwargs(LENGTHS)).last_hidden_state[0]
        expected = [
            stock(input_ids=text[None], position_ids=place[None]).last_hidden_state[0]
            for text, place in zip(ids()[0].split(LENGTHS), positions[0].split(LENGTHS), strict=True)
        ]
    assert hf.relative(actual, torch.cat(expected)) <= 1e-5


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes"])
def test_position_ids_of_padded_input(stock, fast, kind):
    batch = hf.batch(kind)
    positions = torch.randint(0, 60, batch.ids.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, actual = (
            model(**batch.inputs("ModernBertModel"), position_ids=positions).last_hidden_state[batch.mask]
            for model in (stock, fast)
        )
    assert hf.relative(actual, expected) <= 1e-5


@pytest.mark.parametrize("farthest", [5000, 2**22])
def test_far_position_ids_need_no_table_of_that_length(stock, fast, farthest):
    positions = torch.arange(31)[None] + farthest - 40
    positions[0, 20] = farthest
    with torch.no_grad():
        expected, actual = (model(ids(), position_ids=positions).last_hidden_state for model in (stock, fast))
    assert hf.relative(actual, expected) <= 1e-5
    batch = mf.PackedBatch.from_padded((1, 31), None, positions)
    packed = mf.encoder.prepare(mf.EncoderConfig.from_hf(stock.config), batch, torch.float32)
    assert all(len(kind.cos) == len(kind.sin) <= 512 for kind in packed.kinds.values())


def test_texts_of_no_tokens_are_allowed(fast):
    with torch.no_grad():
        expected = fast(input_ids=ids(), **hf.packed_kwargs(LENGTHS)).last_hidden_state
        actual = fast(input_ids=ids(), **hf.packed_kwargs((0, 9, 17, 0, 5, 0))).last_hidden_state
    assert torch.equal(actual, expected)


HOSTILE = {
    "falls": [0, 20, 10, 31],
    "short of the tokens": [0, 9, 26],
    "beyond the tokens": [0, 9, 40],
    "negative": [0, -5, 31],
    "does not start at 0": [3, 31],
    "huge": [0, 2**31 - 1],
    "empty": [],
    "two-dimensional": [[0, 31]],
}


@pytest.mark.parametrize("bounds", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bounds_raise_and_the_next_call_works(fast, bounds):
    bounds = torch.tensor(bounds, dtype=torch.int32)
    with pytest.raises((ValueError, TypeError), match="cu_seq"):
        fast(input_ids=ids(), cu_seq_lens_q=bounds, cu_seq_lens_k=bounds)
    assert fast(input_ids=ids(), **hf.packed_kwargs(LENGTHS)).last_hidden_state.isfinite().all()


def test_contradicting_arguments_raise(fast):
    good = hf.packed_kwargs(LENGTHS)
    with pytest.raises(ValueError, match="equal"):
        fast(input_ids=ids(), **{**good, "cu_seq_lens_k": torch.tensor([0, 31], dtype=torch.int32)})
    with pytest.raises(ValueError, match="cu_seq_lens_k comes with cu_seq_lens_q"):
        fast(input_ids=ids(), cu_seq_lens_k=good["cu_seq_lens_k"])
    with pytest.raises(ValueError, match="max_seqlen"):
        fast(input_ids=ids(), **{**good, "max_length_q": 3})
    with pytest.raises(ValueError, match="flattened"):
        fast(input_ids=ids().expand(2, -1), **good)
    with pytest.raises(ValueError, match="padding"):
        fast(input_ids=ids(), attention_mask=torch.arange(31)[None] < 20, **good)
    with pytest.raises(TypeError, match="int32"):
        fast(input_ids=ids(), cu_seq_lens_q=torch.tensor([0.0, 31.0]))
    with pytest.raises(ValueError, match="negative"):
        fast(input_ids=ids(), position_ids=torch.full((1, 31), -1))
    with pytest.raises(ValueError, match="position_ids"):
        fast(input_ids=ids(), position_ids=torch.arange(7)[None])


def test_spans_are_as_many_as_packed_texts():
    fast = mf.accelerate(hf.build("ModernBertForQuestionAnswering", hf.tiny_config()))
    spans = {name: torch.zeros(1, dtype=torch.long) for name in ("start_positions", "end_positions")}
    with pytest.raises(ValueError, match="1 spans for 3 texts"):
        fast(input_ids=ids(), **spans, **hf.packed_kwargs(LENGTHS))


def test_training_on_packed_texts_equals_training_on_padded_ones():
    """The loss of a packed batch of masked language modelling is that of the same texts, padded."""
    architecture = "ModernBertForMaskedLM"
    fast = mf.accelerate(hf.build(architecture, hf.tiny_config()))
    losses, grads = [], []
    right = hf.batch("right")
    for batch in (right, hf.Batch("packed", right.ids, right.mask, right.seed)):
        fast.zero_grad()
        loss = fast(**batch.inputs(architecture), **batch.targets(architecture, fast.config)).loss
        loss.backward()
        losses.append(loss.detach())
        grads.append(hf.gradients(fast))
    assert hf.relative(losses[1], losses[0]) <= 1e-6
    for name, gradient in grads[0].items():
        assert hf.relative(grads[1][name], gradient) <= 1e-5, name
