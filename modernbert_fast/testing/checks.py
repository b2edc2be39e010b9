"""The questions: each takes a problem, asks the backend in force, and raises AssertionError on a wrong answer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from modernbert_fast import dispatch, ops
from modernbert_fast.ops.checks import STRICT
from modernbert_fast.testing import memory
from modernbert_fast.testing.errors import assert_as_good_as, assert_same_bits
from modernbert_fast.testing.memory import Guarded, dirty_allocator
from modernbert_fast.testing.problems import Draw, Problem, Tensors, attention

# A maximum over few numbers is luck: small problems are drawn until this many have been compared.
_ENOUGH, _MOST_DRAWS = 512, 24


def evaluate(
    run: Callable[..., Any], inputs: Tensors, grads: tuple[str, ...] = (), layout: str = "contiguous"
) -> Tensors:
    """Results by name: "result 0", "result 1" ... and "d" + name for each gradient.

    Gradients of the results are drawn from a seed of their own, the same for every dtype up to rounding, and given
    in `layout`; "expanded" gives ones of stride 0, "plain" a tensor as torch allocates it.
    """
    inputs = {n: x.detach().requires_grad_() if n in grads else x for n, x in inputs.items()}
    with torch.set_grad_enabled(bool(grads)):
        results = run(**inputs)
    results = results if isinstance(results, tuple) else (results,)
    found = {f"result {i}": result.detach() for i, result in enumerate(results)}
    if not grads:
        return found
    reached = [result for result in results if result.requires_grad]
    given = [_given_gradient(seed, result, layout) for seed, result in enumerate(reached)]
    wanted = [inputs[name] for name in grads]
    taken: Any = [torch.zeros_like(x) for x in wanted]
    if reached:
        taken = torch.autograd.grad(reached, wanted, given, allow_unused=True, materialize_grads=True)
    return found | {f"d{name}": grad for name, grad in zip(grads, taken, strict=True)}


def truth_of(problem: Problem, inputs: Tensors) -> Tensors:
    """The float64 reference on the inputs as they are."""
    wide = {n: x.double() if x is not None and x.is_floating_point() else x for n, x in inputs.items()}
    with dispatch.use_backend("reference", problem.op):
        return evaluate(problem.run, wide, problem.grads)


def check_accuracy(problem: Problem, layout: str = "contiguous", least_draws: int = 1) -> None:
    """Results and gradients keep the error rule, on guarded inputs in `layout`; nothing around them is written.

    Plain torch may choose its products by the layout of what it gets: the yardstick is the further from the truth of
    what it makes of the inputs as they are and in `layout`. Its attention has them as they are alone: on a GPU it is
    lost where rows are not aligned to 16 bytes.
    """
    rounds: list[tuple[Tensors, Tensors, Tensors]] = []
    while len(rounds) < (max(_draws(rounds[0][0], problem.grads), least_draws) if rounds else 1):
        inputs = problem.inputs(len(rounds))
        guards = {n: Guarded(x, layout) for n, x in inputs.items() if x is not None}
        dressed = {n: guards[n].tensor if n in guards else None for n in inputs}
        got = evaluate(problem.run, dressed, problem.grads, layout)
        for name, guard in guards.items():
            guard.check(name)
        true, plain = truth_of(problem, inputs), evaluate(problem.plain, inputs, problem.grads)
        if problem.op != "attention":
            dressed_plain = evaluate(problem.plain, dressed, problem.grads, layout)
            plain = {name: _further(x, dressed_plain[name], true[name]) for name, x in plain.items()}
        rounds.append((got, plain, true))
    for name in rounds[0][0]:
        all_draws = [torch.cat([r[name].flatten() for r in way]) for way in zip(*rounds, strict=True)]
        got_all, same_dtype, truth = all_draws
        shapes = rounds[0][0][name].shape, rounds[0][2][name].shape
        assert shapes[0] == shapes[1], f"{name} has shape {tuple(shapes[0])}, expected {tuple(shapes[1])}"
        if problem.exact:
            assert_same_bits(got_all, truth.to(got_all.dtype), name)
        assert_as_good_as(got_all, same_dtype, truth, name)


def check_reference(problem: Problem) -> None:
    """The float64 reference and plain torch in float64 are the same function: neither is trusted alone."""
    inputs = problem.inputs()
    wide = {n: x.double() if x is not None and x.is_floating_point() else x for n, x in inputs.items()}
    truth, same_dtype = (evaluate(problem.plain, given, problem.grads) for given in (wide, inputs))
    for name, got in truth_of(problem, inputs).items():
        assert_as_good_as(got.to(same_dtype[name].dtype), same_dtype[name], truth[name], name)


def check_expanded_gradient(problem: Problem) -> None:
    """A gradient of stride 0, as `result.sum()` gives, counts as the same gradient stored in full."""
    inputs = problem.inputs()
    stored = evaluate(problem.run, inputs, problem.grads, "ones")
    for name, got in evaluate(problem.run, inputs, problem.grads, "expanded").items():
        assert_same_bits(got, stored[name], name)


def check_repeats(problem: Problem, times: int = 2) -> None:
    """Every run gives the same bits, whatever lies in the memory it gets."""
    inputs = problem.inputs()
    first = evaluate(problem.run, inputs, problem.grads)
    for _ in range(times - 1):
        dirty_allocator([*first.values()])
        for name, got in evaluate(problem.run, inputs, problem.grads).items():
            assert_same_bits(got, first[name], name)


def check_isolation(problem: Problem) -> None:
    """Other tokens, NaN or infinities in one text change no bit of another text's results and gradients."""
    inputs, others = problem.inputs(), problem.inputs(seed=99)
    before = evaluate(problem.run, inputs, problem.grads)
    starts = inputs_starts(problem)
    for text in _victims(problem.texts):
        rows = slice(starts[text], starts[text] + problem.texts[text])
        for value in (None, float("nan"), float("inf")):
            changed = dict(inputs)
            for name in problem.tokens:
                changed[name] = inputs[name].clone()
                changed[name][rows] = others[name][rows] if value is None else value
            after = evaluate(problem.run, changed, problem.grads)
            for name, got in after.items():
                per_token = problem.result_rows == "token" if name.startswith("result") else name[1:] in problem.tokens
                if name.startswith("d") and not per_token:
                    continue  # summed over texts
                place = rows if per_token else slice(text, text + 1)
                kept = torch.ones(got.shape[0], dtype=torch.bool, device=got.device)
                kept[place] = False
                what = f"{name} beside text {text} full of {value or 'others'}"
                assert_same_bits(got[kept], before[name][kept], what)


def inputs_starts(problem: Problem) -> list[int]:
    """The first row of each text."""
    return [sum(problem.texts[:i]) for i in range(len(problem.texts))]


def check_compiled(problem: Problem) -> None:
    """torch.compile takes the whole call as one graph, and changes no bit of the results or gradients."""
    inputs = problem.inputs()
    expected = evaluate(problem.run, inputs, problem.grads)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(problem.run, fullgraph=True, backend="aot_eager")
        for name, got in evaluate(compiled, inputs, problem.grads).items():
            assert_same_bits(got, expected[name], name)


def check_gradients(problem: Problem) -> None:
    """The backward of a float64 problem is the derivative of its forward, by finite differences."""
    inputs = problem.inputs()
    rest = {n: x for n, x in inputs.items() if n not in problem.grads}
    torch.autograd.gradcheck(
        lambda *wanted: problem.run(**rest, **dict(zip(problem.grads, wanted, strict=True))),
        [inputs[name].clone().requires_grad_() for name in problem.grads],
        fast_mode=True,
    )


def check_registration(problem: Problem, layout: str = "contiguous") -> set[str]:
    """torch.library.opcheck on every registered op the problem calls, backward too; returns their names."""
    inputs = {n: None if x is None else Guarded(x, layout).tensor for n, x in problem.inputs().items()}
    with _Recorder() as recorder:
        evaluate(problem.run, inputs, problem.grads, layout)
    for call in recorder.calls:
        torch.library.opcheck(call.op, call.args)
    return {call.op.name() for call in recorder.calls}


def check_fenced(problem: Problem) -> set[str]:
    """Every registered op the problem calls, backward too, gives the same bits on inputs flush against unreadable
    pages; reading past them ends the process. Returns the ops' names."""
    with _Recorder() as recorder:
        evaluate(problem.run, problem.inputs(), problem.grads)
    for call in recorder.calls:
        expected = pytree.tree_leaves(call.op(*call.args))
        for side in memory.SIDES:
            args = [memory.fenced(x, side) if isinstance(x, torch.Tensor) else x for x in call.args]
            for got, wanted in zip(pytree.tree_leaves(call.op(*args)), expected, strict=True):
                assert_same_bits(got, wanted, f"{call.op.name()} at the {side} of its memory")
    return {call.op.name() for call in recorder.calls}


def check_rows_far_from_zero(device: torch.device, mean: float, spread: float, C: int) -> None:
    """Layer norm of fp32 rows around `mean` is within 1e-6, and within two last places of results beyond 4."""
    drawn = Draw(3, torch.float64, device)(64, C)
    x = (mean + spread * drawn).float()
    wide = x.double()
    truth = (wide - wide.mean(1, keepdim=True)) / (wide.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    error = (ops.layer_norm(x, eps=1e-5).double() - truth).abs().max().item()
    limit = max(1e-6, 2 * torch.finfo(torch.float32).eps * truth.abs().max().item())
    assert error <= limit, f"rows around {mean:g}, spread {spread:g}: error {error:.2e} is beyond {limit:.2e}"


def check_window(device: torch.device, dtype: torch.dtype, window: int) -> None:
    """Equal scores and a one-hot v at each column: row i is non-zero iff |i - j| <= window, forward and backward."""
    reach, T = 130, 2 * 130 + 1
    cu_seqlens = torch.tensor([0, 3, 3 + T], dtype=torch.int32, device=device)
    near = (torch.arange(T, device=device) - reach).abs() <= window
    qkv = torch.zeros(3 + T, 3, 1, 16, dtype=dtype, device=device)
    qkv[3 + reach, 2] = 1  # one key in the middle has a value
    seen = ops.attention(qkv, cu_seqlens, T, window=window)
    assert torch.equal(seen[3:, 0, 0] != 0, near), f"window {window} sees {int((seen[3:, 0, 0] != 0).sum())} rows"
    assert seen[:3].eq(0).all(), "a neighbour sees the value"
    qkv.requires_grad_()
    do = torch.zeros(3 + T, 1, 16, dtype=dtype, device=device)
    do[3 + reach] = 1  # one query in the middle is listened to
    (dqkv,) = torch.autograd.grad(ops.attention(qkv, cu_seqlens, T, window=window), qkv, do)
    assert torch.equal(dqkv[3:, 2, 0, 0] != 0, near)
    assert dqkv[:3].eq(0).all()


def check_alone(device: torch.device, dtype: torch.dtype, window: int) -> None:
    """A text's bits do not depend on the batch around it, nor on its place in it."""
    lengths = (17, 64, 1, 65, 40)
    qkv = attention(lengths, 2, 16, dtype, device).inputs()["qkv"]
    bounds = [0, *itertools.accumulate(lengths)]
    batch = ops.attention(qkv, torch.tensor(bounds, dtype=torch.int32, device=device), 65, window=window)
    for start, end in itertools.pairwise(bounds):
        one = torch.tensor([0, end - start], dtype=torch.int32, device=device)
        alone = ops.attention(qkv[start:end], one, end - start, window=window)
        assert_same_bits(alone, batch[start:end], f"text of {end - start}")


def check_refuses(call: Callable[[], Any], errors: type[Exception], problem: Problem) -> None:
    """Bad input raises one of `errors` with words in it, and the next call works."""
    before = evaluate(problem.run, problem.inputs())
    try:
        call()
    except errors as error:
        assert len(str(error)) > 10, f"no words: {error!r}"
    else:
        raise AssertionError("accepted")
    for name, got in evaluate(problem.run, problem.inputs()).items():
        assert_same_bits(got, before[name], f"{name} of the next call")


def check_refuses_bounds(
    call: Callable[[torch.Tensor], Any], total: int, problem: Problem, *, elsewhere: bool = True
) -> None:
    """`call` refuses every hostile cu_seqlens, and one `elsewhere` if it has other tensors to compare with.

    Values on an accelerator are not read: kernels clamp them, and the call may only not fail.
    """
    for why, bounds, error in hostile_bounds(total, problem.device):
        if bounds.is_meta and not elsewhere:
            continue
        by_value = error is ValueError and bounds.dim() == 1 and bounds.numel() and not bounds.is_meta
        if by_value and not (STRICT or dispatch.host_readable(bounds)):
            call(bounds)
            continue
        try:
            check_refuses(functools.partial(call, bounds), error, problem)
        except AssertionError as failure:
            raise AssertionError(f"cu_seqlens that {why}: {failure}") from failure


def hostile_bounds(total: int, device: torch.device) -> Iterator[tuple[str, torch.Tensor, type[Exception]]]:
    """cu_seqlens that no op may accept for `total` >= 8 tokens: why, the tensor, the error."""
    big = 2**31 - 1
    values = {
        "falls": [0, 5, 3, total],
        "negative": [0, -1, total],
        "INT_MIN": [0, -big - 1, total],
        "INT_MAX inside": [0, big, total],
        "INT_MAX last": [0, 4, big],
        "starts late": [1, 4, total],
        "starts below zero": [-1, 4, total],
        "ends early": [0, 4, total - 1],
        "ends late": [0, 4, total + 1],
        "no text": [0],
    }
    for why, bounds in values.items():
        yield why, torch.tensor(bounds, dtype=torch.int32, device=device), ValueError
    good = torch.tensor([0, 4, total], dtype=torch.int32, device=device)
    yield "empty", good[:0], ValueError
    yield "a matrix", good[None], ValueError
    yield "a scalar", good[0], ValueError
    yield "int64", good.long(), TypeError
    yield "floating", good.float(), TypeError
    yield "another device", good.to("meta"), ValueError


@dataclass(frozen=True)
class _Call:
    op: Any
    args: tuple


class _Recorder(TorchDispatchMode):
    """Collects the calls of this package's registered ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "modernbert_fast":
            detached = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in args)
            self.calls.append(_Call(func, detached))
        return func(*args, **(kwargs or {}))


def _given_gradient(seed: int, result: torch.Tensor, layout: str) -> torch.Tensor:
    if layout in ("ones", "expanded"):
        one = result.new_ones(())
        return one.expand_as(result) if layout == "expanded" else torch.ones_like(result)
    # Drawn coarse, so that it is the same number in every dtype.
    drawn = Draw(1000 + seed, torch.float64, result.device)(*result.shape).mul(8).round().div(8)
    return drawn.to(result.dtype) if layout == "plain" else Guarded(drawn.to(result.dtype), layout).tensor


def _further(x: torch.Tensor, y: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Of each number the one that is further from the truth."""
    return torch.where((y.double() - truth).abs() > (x.double() - truth).abs(), y, x)


def _draws(results: Tensors, grads: tuple[str, ...]) -> int:
    """Counts gradients, and results too where a draw takes no seconds, as it does in an interpreter."""
    counted = {f"d{name}" for name in grads}
    sizes = [x.numel() for name, x in results.items() if name in counted or not dispatch.host_readable(x)]
    least = min(sizes, default=_ENOUGH)
    return 1 if least == 0 else min(_MOST_DRAWS, -(-_ENOUGH // least))


def _victims(texts: tuple[int, ...]) -> list[int]:
    """The first, a middle and the last text that has tokens."""
    full = [i for i, length in enumerate(texts) if length]
    return sorted({full[0], full[len(full) // 2], full[-1]}) if full else []
