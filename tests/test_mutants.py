"""Bugs put in on purpose, each as a backend of its own: the checks of tests/ops must see every one of them."""

import functools
import importlib
import types
from collections.abc import Callable, Iterator

import pytest
import torch

from modernbert_fast import dispatch, testing
from modernbert_fast.testing import checks, compressed, problems

CPU, F32 = torch.device("cpu"), torch.float32
BATCH = (5, 1, 0, 70, 33)
MUTANTS = []


def mutant(op: str, function: str, check: Callable[[], None]) -> Callable:
    """Registers `broken(right, *args)`, which stands in for the reference's `function`."""

    def register(broken: Callable) -> Callable:
        MUTANTS.append(pytest.param(op, function, broken, check, id=f"{op}-{broken.__name__}"))
        return broken

    return register


def accurate(make: Callable, *args, **kwargs) -> Callable[[], None]:
    return lambda: checks.check_accuracy(make(*args, F32, CPU, **kwargs))


def isolated(make: Callable, *args, **kwargs) -> Callable[[], None]:
    return lambda: checks.check_isolation(make(*args, F32, CPU, **kwargs))


attention = functools.partial(accurate, problems.attention, BATCH, 2, 8)


def window_of_64() -> None:
    checks.check_window(CPU, F32, 64)


@mutant("attention", "forward", window_of_64)
def window_65_instead_of_64(right, *args):
    return right(*args[:9], 65 if args[9] == 64 else args[9], args[10])


@mutant("attention", "forward", attention(window=64))
def window_65_on_random_texts(right, *args):
    return right(*args[:9], 65 if args[9] == 64 else args[9], args[10])


@mutant("attention", "forward", window_of_64)
def exclusive_window(right, *args):
    return right(*args[:9], args[9] - 1, args[10])


@mutant("attention", "backward", window_of_64)
def exclusive_window_backward(right, *args):
    return right(*args[:12], args[12] + 1, args[13])


@mutant("attention", "forward", attention(window=8))
def dropped_window_mask(right, *args):
    return right(*args[:9], -1, args[10])


@mutant("attention", "forward", attention(window=8, holes=True))
def dropped_hole_mask(right, *args):
    return right(*args[:5], None, *args[6:])


@mutant("attention", "forward", attention(expanded=True))
def expansion_is_seen(right, *args):
    return right(*args[:6], None, *args[7:])


@mutant("attention", "backward", attention(expanded=True, window=2))
def expansion_is_seen_backward(right, *args):
    return right(*args[:9], None, *args[10:])


@mutant("attention", "forward", attention(expanded=True, window=2))
def sees_itself_where_it_sees_nothing(right, *args):
    o, lse = right(*args)
    blind = lse.isneginf().T[..., None]
    return torch.where(blind, args[0][:, 2], o), lse


@mutant("attention", "forward", isolated(problems.attention, BATCH, 2, 8))
def texts_see_their_neighbours(right, qkv, cu_seqlens, *rest):
    return right(qkv, torch.tensor([0, qkv.shape[0]], dtype=torch.int32), *rest)


@mutant("attention", "forward", isolated(problems.attention, BATCH, 2, 8, window=2))
def masked_neighbour_times_zero(right, qkv, *rest):
    o, lse = right(qkv, *rest)
    return o + 0 * qkv[:, 2].roll(1, 0), lse


@mutant("attention", "forward", attention())
def rope_table_of_the_other_layer_type(right, *args):
    rows, half = args[3].shape
    angles = torch.arange(rows)[:, None] * 160000.0 ** -(torch.arange(half) / half)
    tables = (t.to(args[3].dtype) for t in (angles.cos(), angles.sin()))
    return right(*args[:3], *tables, *args[5:])


@mutant("attention", "backward", attention())
def gradient_not_rotated_back(right, *args):
    return right(*args[:5], None, None, None, *args[8:])


@mutant("attention", "forward", attention())
def scale_twice(right, *args):
    return right(*args[:10], args[10] ** 2)


@mutant("attention", "forward", lambda: checks.check_alone(CPU, F32, -1))
def result_depends_on_the_batch(right, qkv, *rest):
    o, lse = right(qkv, *rest)
    return o * (1 + 2.0**-22 * (qkv.shape[0] > 100)), lse


@mutant("attention", "backward", attention())
def last_key_tile_forgotten(right, *args):
    dqkv = right(*args)
    dqkv[64:, 1] = 0
    return dqkv


@mutant("geglu", "forward", accurate(problems.geglu, 9, 12))
def swapped_halves(right, x):
    return right(x.roll(x.shape[1] // 2, 1))


@mutant("geglu", "backward", accurate(problems.geglu, 9, 12))
def swapped_gradient_halves(right, dy, x):
    return right(dy, x).roll(x.shape[1] // 2, 1)


@mutant("geglu", "forward", accurate(problems.geglu, 9, 12))
def tanh_gelu(right, x):
    a, b = x.chunk(2, -1)
    return torch.nn.functional.gelu(a, approximate="tanh") * b


@mutant("geglu", "backward", accurate(problems.geglu, 9, 12))
def gradient_written_over_the_input(right, dy, x):
    return x.copy_(right(dy, x)).clone()


@mutant("geglu", "forward", accurate(problems.geglu, 9, 12))
def writes_past_the_end(right, x):
    y = right(x)
    x.as_strided((1,), (1,), x.storage_offset() + x.numel()).zero_()
    return y


@mutant("geglu", "forward", lambda: checks.check_repeats(problems.geglu(9, 12, F32, CPU), times=5))
def sums_in_any_order(right, x):
    y = right(x)
    return y + y * 2.0**-23 * torch.randint(0, 2, y.shape)


@mutant("rope", "forward", accurate(problems.rope, 9, 2, 8))
def interleaved_instead_of_half_split(right, qkv, *tables):
    order = torch.arange(qkv.shape[-1]).view(-1, 2).T.flatten()
    return right(qkv[..., order], *tables)[..., order.argsort()]


@mutant("rope", "forward", accurate(problems.rope, 9, 2, 8))
def rotates_backwards(right, qkv, positions, cos, sin):
    return right(qkv, positions, cos, -sin)


@mutant("rope", "forward", accurate(problems.rope, 9, 2, 8))
def rotates_the_values_too(right, qkv, *tables):
    return right(qkv[:, [0, 1, 1]], *tables)


LAYER_NORM = accurate(problems.layer_norm, 9, 48, residual=F32, weight=F32, bias=F32)
FAR_ROWS = functools.partial(checks.check_rows_far_from_zero, CPU, 1e4, 1e-3, 768)


@mutant("layer_norm", "forward", LAYER_NORM)
def residual_dropped(right, x, residual, *affine):
    return right(x, torch.zeros_like(residual), *affine)


@mutant("layer_norm", "backward", LAYER_NORM)
def residual_gradient_dropped(right, dy, dsum, *rest):
    return right(dy, None, *rest)


@mutant("layer_norm", "forward", LAYER_NORM)
def another_eps(right, *args):
    return right(*args[:4], 1e-12)


def normed(x, centred, variance, eps):
    rstd = torch.rsqrt(variance + eps)
    return (centred * rstd[:, None]).to(x.dtype), x.new_empty(0), x.mean(1), rstd


@mutant("layer_norm", "forward", FAR_ROWS)
def no_mean_correction(right, x, residual, weight, bias, eps):
    centred = x - x.mean(1, keepdim=True)
    return normed(x, centred, centred.square().mean(1), eps)


@mutant("layer_norm", "forward", functools.partial(checks.check_rows_far_from_zero, CPU, 1e2, 1.0, 768))
def one_pass_variance(right, x, residual, weight, bias, eps):
    mean = x.mean(1)
    return normed(x, x - mean[:, None], x.square().mean(1) - mean.square(), eps)


@mutant("layer_norm", "forward", accurate(problems.layer_norm, 9, 48))
def unbiased_variance(right, x, residual, weight, bias, eps):
    return normed(x, x - x.mean(1, keepdim=True), x.var(1), eps)


@mutant("layer_norm", "forward", accurate(problems.layer_norm, 9, 130))
def columns_past_a_block_ignored(right, x, *rest):
    return right(torch.cat([x[:, :128], torch.zeros_like(x[:, 128:])], 1), *rest)


@mutant("layer_norm", "embed_forward", accurate(problems.embed_layer_norm, 9, 11, 24))
def embedding_gather_off_by_one(right, ids, table, *rest):
    return right((ids + 1) % table.shape[0], table, *rest)


@mutant("padding", "unpad", accurate(problems.unpad, 20, (6,), 13))
def row_gather_off_by_one(right, x, indices):
    return right(x, (indices - 1).clamp_min(0))


@mutant("padding", "pad", accurate(problems.pad, 20, (6,), 13))
def pad_rows_left_unwritten(right, x, indices, rows):
    y = testing.memory.poison(x.new_empty((rows, *x.shape[1:])))
    y[indices] = x
    return y


@mutant("padding", "plan", lambda: checks.check_accuracy(problems.plan(lambda draw: draw.integers(0, 3, 4, 9), CPU)))
def positions_count_tokens_not_columns(right, mask):
    indices, cu_seqlens, positions = right(mask)
    return indices, cu_seqlens, torch.cat([torch.arange(n) for n in cu_seqlens.diff()]).int()


@mutant("padding", "tiles", lambda: checks.check_accuracy(problems.tiles((3, 0, 9, 4), 4, CPU)))
def last_tile_missing(right, cu_seqlens, total, rows):
    schedule = right(cu_seqlens, total, rows)
    schedule[(schedule[:, 0] >= 0).nonzero()[-1]] = torch.tensor([-1, 0], dtype=torch.int32)
    return schedule


@mutant("linear", "forward", accurate(problems.linear, 9, 12, 6, bias=True))
def linear_bias_dropped(right, x, weight, bias):
    return right(x, weight, None)


@mutant("linear", "forward", accurate(problems.linear, 9, 64, 6))
def products_in_half_precision(right, x, weight, bias):
    return right(x.bfloat16(), weight.bfloat16(), None).to(x.dtype)


@mutant("linear", "forward_geglu", accurate(problems.linear_geglu, 9, 12, 6))
def halves_swapped_in_the_product(right, x, weight, bias):
    return right(x, weight.roll(6, 0), bias)


@mutant("pooling", "forward", accurate(problems.pooling, BATCH, 12, mode="mean"))
def mean_over_the_longest(right, x, cu_seqlens, mode, normalize):
    y, norm = right(x, cu_seqlens, mode, normalize)
    lengths = cu_seqlens.diff()
    return y * (lengths / lengths.max())[:, None], norm


@mutant("pooling", "forward", accurate(problems.pooling, BATCH, 12, mode="cls"))
def last_row_instead_of_first(right, x, cu_seqlens, mode, normalize):
    return right(x.roll(1, 0), cu_seqlens, mode, normalize)


@mutant("pooling", "backward", accurate(problems.pooling, BATCH, 12, normalize=True))
def gradient_of_the_length_dropped(right, dy, y, norm, cu_seqlens, mode, normalize, T):
    return right(dy / norm[:, None], y, norm, cu_seqlens, mode, False, T)


MAXSIM = accurate(problems.maxsim, (1, 1, 1), (1, 2, 1), 3)


@mutant("maxsim", "forward", MAXSIM)
def zero_padding_wins(right, *args):
    scores, argmax = right(*args)
    return scores.clamp_min(0), argmax


@mutant("maxsim", "backward", accurate(problems.maxsim, (3, 1, 4), (5, 2, 7), 12))
def gradient_to_the_wrong_winner(right, dscores, q, d, cu_q, cu_d, argmax, pairwise):
    return right(dscores, q, d, cu_q, cu_d, argmax.roll(1, 0), pairwise)


CROSS_ENTROPY = accurate(problems.cross_entropy, 9, 12, 17, labelled=0.6)


@mutant("cross_entropy", "forward", CROSS_ENTROPY)
def label_off_by_one(right, x, weight, bias, labels, ignore_index):
    return right(x, weight, bias, torch.where(labels == ignore_index, labels, (labels + 1) % 17), ignore_index)


@mutant("cross_entropy", "forward", CROSS_ENTROPY)
def ignored_rows_cost(right, x, weight, bias, labels, ignore_index):
    return right(x, weight, bias, labels.clamp_min(0), ignore_index)


@mutant("cross_entropy", "backward", CROSS_ENTROPY)
def decoder_bias_dropped(right, dloss, x, weight, bias, *rest):
    return right(dloss, x, weight, torch.zeros_like(bias), *rest)


LAYER = accurate(problems.encoder_layer, (5, 40), 2, 8, 12, window=4)
FIRST_LAYER = accurate(problems.encoder_layer, (5, 40), 2, 8, 12, first=True)


@mutant("encoder_layer", "forward", LAYER)
def residual_without_the_output_before(right, x, residual, *rest):
    return right(torch.zeros_like(x), residual, *rest)


@mutant("encoder_layer", "forward", LAYER)
def window_of_a_layer_ignored(right, *args):
    return right(*args[:-2], -1, args[-1])


@mutant("encoder_layer", "forward", LAYER)
def residual_from_before_attention(right, x, residual, *rest):
    return right(x, residual, *rest)[0], x + residual


@mutant("encoder_layer", "forward", FIRST_LAYER)
def halves_of_wi_swapped(right, *args):
    return right(*args[:12], args[12].roll(args[12].shape[0] // 2, 0), *args[13:])


@mutant("decompress", "forward", lambda: checks.check_accuracy(compressed.decompress(66, 5, 33, CPU)))
def halves_of_codes_swapped(right, codes, *rest):
    return right(codes << 4 | codes >> 4, *rest)


@mutant("decompress", "forward", lambda: checks.check_accuracy(compressed.decompress(66, 5, 33, CPU)))
def levels_of_the_first_centroid(right, codes, nearest, centroids, levels):
    return right(codes, nearest, centroids, levels[:1].expand_as(levels))


RANKING = accurate(problems.ranking, 2, 60, 9, chosen=True)


@mutant("ranking", "forward", RANKING)
def scales_ignored(right, scores, cu_documents, scales, *rest):
    return right(scores, cu_documents, None, *rest)


@mutant("ranking", "forward", RANKING)
def documents_without_tokens_found(right, scores, cu_documents, *rest):
    return right(scores, torch.arange(len(cu_documents), dtype=torch.int32), *rest)


@mutant("ranking", "forward", RANKING)
def the_later_of_equals(right, scores, cu_documents, scales, allowed, k):
    bounds = (-cu_documents).flip(0)
    best, documents = right(scores.flip(1), bounds, scales.flip(0), allowed.flip(0), k)
    return best, torch.where(documents < 0, documents, scores.shape[1] - 1 - documents)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Puts a row with one function replaced before the reference row of an op."""

    def put(op: str, function: str, broken: Callable | None) -> None:
        right = importlib.import_module(f"modernbert_fast.reference.{op}")
        backend = types.SimpleNamespace(**vars(right))
        if broken is not None:
            setattr(backend, function, functools.partial(broken, getattr(right, function)))
        row = dispatch.Row("cpu", lambda _: backend, devices=None)
        reference = dispatch.TABLE[op][-1]
        monkeypatch.setitem(dispatch.TABLE, op, (row, reference))
        dispatch._pick.cache_clear()

    yield put
    monkeypatch.undo()
    dispatch._pick.cache_clear()


@pytest.mark.parametrize("op, function, broken, check", MUTANTS)
def test_mutant_is_seen(install, op, function, broken, check):
    with testing.poisoned():
        install(op, function, None)
        check()  # the same row without the bug passes
        install(op, function, broken)
        with pytest.raises(AssertionError):
            check()


def test_every_op_has_mutants():
    assert {parameters.values[0] for parameters in MUTANTS} == set(dispatch.TABLE)
