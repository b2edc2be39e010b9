"""The one error rule: at most twice plain torch's error in the same dtype, plus one rounding of the output."""

from __future__ import annotations

import torch

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def error_limit(same_dtype: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest error the rule allows.

    Twice, because two orders of summation that are equally good differ by that much. One rounding, because a result
    must be stored: a number up to m is stored at most half a unit in the last place away, eps / 2 * m, and torch may
    have been lucky to be nearer. Nothing else is allowed for.

    Args:
        same_dtype: what plain torch makes of the inputs, in the dtype under test.
        truth: the float64 reference on the same, already rounded, inputs (or what stands for it, in a wider dtype).
    """
    finite = _finite(truth, same_dtype.dtype)
    if not finite.any():
        return 0.0
    one_rounding = torch.finfo(same_dtype.dtype).eps / 2 * truth[finite].abs().max().item()
    usable = torch.isfinite(same_dtype)  # where torch itself makes a NaN of a number, it is no yardstick
    return 2 * _max_error(same_dtype[usable], truth[usable]) + one_rounding


def assert_as_good_as(got: torch.Tensor, same_dtype: torch.Tensor, truth: torch.Tensor, name: str = "result") -> None:
    """Holds `got` to the rule of `error_limit`; NaN and infinities must stand where the truth has them.

    Raises:
        AssertionError: with the errors of both, or the first place that is wrong.
    """
    assert got.shape == truth.shape, f"{name} has shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert got.dtype == same_dtype.dtype, f"{name} is {got.dtype}, expected {same_dtype.dtype}"
    if not got.is_floating_point():
        assert_same_bits(got, truth.to(got.dtype), name)
        return
    rounded = truth.to(got.dtype)
    for kind, test in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = test(got) != test(rounded)
        assert not wrong.any(), f"{name}: {kind} in the wrong place, first at {_first(wrong)}"
    limit, error = error_limit(same_dtype, truth), _max_error(got, truth)
    if not error <= limit:
        places = _finite(truth, got.dtype) & ((got.double() - truth.double()).abs() > limit)
        raise AssertionError(
            f"{name}: max error {error:.3e} is beyond {limit:.3e} (torch's own {_max_error(same_dtype, truth):.3e}), "
            f"{int(places.sum())} of {got.numel()} places, first at {_first(places)}"
        )


def assert_same_bits(got: torch.Tensor, expected: torch.Tensor, name: str = "result") -> None:
    """Every bit is the same, NaN included.

    Raises:
        AssertionError: with the first place that is not.
    """
    assert got.shape == expected.shape, f"{name} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{name} is {got.dtype}, expected {expected.dtype}"
    wrong = bits(got) != bits(expected)
    assert not wrong.any(), (
        f"{name}: {int(wrong.sum())} of {got.numel()} places differ, first at {_first(wrong)}: "
        f"{got[wrong][0].item()} is not {expected[wrong][0].item()}"
    )


def bits(x: torch.Tensor) -> torch.Tensor:
    """The same bytes as integers, so that NaN equals itself and -0 does not equal 0."""
    return x.contiguous().view(_INTEGERS[x.element_size()])


def _finite(truth: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.isfinite(truth.to(dtype))


def _max_error(x: torch.Tensor, truth: torch.Tensor) -> float:
    """Over the places where the truth is finite in x's dtype."""
    finite = _finite(truth, x.dtype)
    error = (x.double() - truth.double()).abs()[finite]
    return error.max().item() if error.numel() else 0.0


def _first(places: torch.Tensor) -> tuple[int, ...]:
    return tuple(places.nonzero()[0].tolist())
