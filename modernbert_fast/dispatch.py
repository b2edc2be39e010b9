"""Which backend runs an op: one table, read top to bottom; the first row without an objection wins."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
HALF = (F16, BF16)
FLOATS = (F64, F32, F16, BF16)


class Call(NamedTuple):
    """The static facts of one call: all that a row may object to, and nothing about the values.

    Attributes:
        device: torch device type.
        dtypes: every floating dtype among the arguments; empty for ops that only move bytes.
        width: head dim for attention and rope, last dim for the rest.
        flags: what the call asks beyond the plain op, in the op's own words ("mixed dtypes" ...).
        capability: compute capability of a CUDA device; None elsewhere, or where it is not known.
    """

    device: str
    dtypes: frozenset[torch.dtype] = frozenset()
    width: int = 0
    flags: frozenset[str] = frozenset()
    capability: tuple[int, int] | None = None


def call_of(x: torch.Tensor, *others: torch.Tensor | None, width: int | None = None, flags: Iterable[str] = ()) -> Call:
    """The facts of a call on `x` and its other tensor arguments."""
    dtypes = frozenset([t.dtype for t in (x, *others) if t is not None and t.is_floating_point()])
    capability = _capability(x.device) if x.is_cuda else None
    return Call(x.device.type, dtypes, x.shape[-1] if width is None else width, frozenset(flags), capability)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def host_readable(x: torch.Tensor | torch.device) -> bool:
    """Whether reading values of `x`, or of what lies there, costs no device synchronisation."""
    return (x if isinstance(x, torch.device) else x.device).type == "cpu"


@dataclass(frozen=True)
class Row:
    """One backend of one op, and its limits.

    Attributes:
        backend: its name, as `use_backend` and `MODERNBERT_FAST_BACKEND` spell it.
        load: from the op's name to an object with the op's functions; ImportError is its only excuse.
        devices, dtypes, widths: what it serves; None is any.
        cannot: flags it does not serve.
        cpu_flags: for a dtype, instruction sets of which the CPU must have one for the row to pay.
        leaves: for a dtype, instruction sets with which a row below is faster: the CPU must have none.
        widens: for a dtype that it multiplies in fp32, instruction sets with any of which it does not.
        capability: the least compute capability, on CUDA devices.
        newer: for a dtype, the least compute capability where it is a later one.
        interpreted: dtypes it serves on the CPU too, but only where it is forced and its kernels are interpreted: by
            Triton, or as CUDA kernels built by tests/simt.
    """

    backend: str
    load: Callable[[str], Any]
    devices: tuple[str, ...] | None
    dtypes: tuple[torch.dtype, ...] = FLOATS
    widths: range | tuple[int, ...] | None = None
    cannot: tuple[str, ...] = ()
    cpu_flags: tuple[tuple[torch.dtype, tuple[str, ...]], ...] = ()
    leaves: tuple[tuple[torch.dtype, tuple[str, ...]], ...] = ()
    widens: tuple[tuple[torch.dtype, tuple[str, ...]], ...] = ()
    capability: tuple[int, int] = (0, 0)
    newer: tuple[tuple[torch.dtype, tuple[int, int]], ...] = ()
    interpreted: tuple[torch.dtype, ...] = ()

    def objections(self, op: str, call: Call, forced: bool = False) -> list[str]:
        """Sentences that say why this row cannot, or unless it is forced should not, serve the call."""
        no = []
        if self.devices is not None and call.device not in self.devices:
            if not (self.interpreted and call.device == "cpu" and forced and _library().interprets(self.backend)):
                no.append(f"runs on {' or '.join(self.devices)}, not on {call.device}")
            elif untrue := call.dtypes & set(self.dtypes) - set(self.interpreted):
                no.append(f"Triton's interpreter truncates {', '.join(sorted(_short(d) for d in untrue))}")
        for dtype, capability in ((None, self.capability), *self.newer):
            if call.capability is None or call.capability >= capability or dtype not in (None, *call.dtypes):
                continue
            needed, found = (".".join(map(str, pair)) for pair in (capability, call.capability))
            no.append(
                f"needs compute capability {needed} or later{f' for {_short(dtype)}' if dtype else ''}, not {found}"
            )
        if strange := call.dtypes - set(self.dtypes):
            no.append(f"does not take {', '.join(sorted(_short(d) for d in strange))}")
        if self.widths is not None and call.width not in self.widths:
            no.append(f"does not take width {call.width}")
        no.extend(f"does not do {flag}" for flag in sorted(call.flags & set(self.cannot)))
        if call.device == "cpu":
            for dtype, flags in self.cpu_flags:
                if dtype in call.dtypes and not set(flags) & _library().cpu_flags():
                    no.append(f"this CPU has no {' or '.join(flags)}: {_short(dtype)} is slower than fp32 here")
            for dtype, flags in () if forced else self.leaves:
                if dtype in call.dtypes and (has := set(flags) & _library().cpu_flags()):
                    no.append(f"this CPU has {' and '.join(sorted(has))}: {_short(dtype)} is faster in a row below")
        if not no and (why := _loaded(self, op)[1]):
            no.append(why)
        return no


def _library() -> Any:
    from modernbert_fast import library  # library imports dispatch to define ops; the table is read later

    return library


def _python(package: str) -> Callable[[str], Any]:
    return lambda op: _library().python_backend(package)(op)


def _native(name: str) -> Callable[[str], Any]:
    return lambda op: _library().native_backend(name)(op)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _triton(widths: range | None = None, *, tensor_cores: bool = False) -> Row:
    """Kernels that multiply tiles need sm_80: Triton has no tensor cores before, only very slow products."""
    return Row(
        "triton",
        _python("kernels"),
        devices=("cuda",),
        dtypes=(F32, F16, BF16),
        widths=widths,
        capability=(8, 0) if tensor_cores else (7, 5),
        interpreted=(F32, F16),
    )


def _cuda(dtypes: tuple[torch.dtype, ...] = (F32, F16, BF16), **limits: Any) -> Row:
    return Row(
        "cuda",
        _native("_ops_cuda"),
        devices=("cuda",),
        dtypes=dtypes,
        capability=(7, 5),
        interpreted=dtypes,
        **limits,
    )


_REFERENCE = Row("reference", _python("reference"), devices=None)

# Where a half precision product pays on a CPU: where it multiplies in it. Elsewhere the cpu row computes it in fp32.
_HALF_PRODUCTS = ((BF16, ("avx512_bf16", "amx_bf16")), (F16, ("amx_fp16",)))
# Where torch's is faster than the cpu row: with blocks. With pairs (AVX-512-BF16) they are level, or ours is faster.
_BLOCK_PRODUCTS = ((BF16, ("amx_bf16",)), (F16, ("amx_fp16",)))

_CUDA_ATTENTION: dict[str, Any] = {"dtypes": HALF, "widths": range(16, 129, 16), "newer": ((BF16, (8, 0)),)}
QUERIES_ONLY = "tokens that are not attended to"  # a flag of attention and of a layer

TABLE: dict[str, tuple[Row, ...]] = {
    "padding": (
        # It only moves bytes: the interpreter truncates none.
        replace(_triton(), dtypes=FLOATS, interpreted=FLOATS),
        _cuda(FLOATS),
        Row("cpu", _native("_ops_cpu"), devices=("cpu",)),
        _REFERENCE,
    ),
    "layer_norm": (
        # Launched from C++, and what encoder_layer calls: a text's bits do not depend on who runs a layer.
        _cuda(widths=range(1, 8193), cannot=("mixed dtypes",)),
        _triton(range(1, 4097)),
        Row("cpu", _native("_ops_cpu"), devices=("cpu",), dtypes=(F32, F16, BF16), cannot=("mixed dtypes",)),
        _REFERENCE,
    ),
    "attention": (
        # Faster than Triton's on an H200 in every kind of layer, forward and backward: docs/decisions/0016.
        _cuda(**_CUDA_ATTENTION, cannot=(QUERIES_ONLY,)),
        _triton(range(2, 129, 2), tensor_cores=True),
        Row("cpu", _native("_ops_cpu"), devices=("cpu",), dtypes=(F32, F16, BF16)),
        Row("aten", _python("aten"), devices=("cpu",)),
        _REFERENCE,
    ),
    "rope": (
        _triton(range(2, 1025)),
        Row("cpu", _native("_ops_cpu"), devices=("cpu",), dtypes=(F32, F16, BF16)),
        _REFERENCE,
    ),
    "geglu": (
        _cuda(cannot=("mixed dtypes",)),  # as in layer_norm
        _triton(range(2, 2**20)),
        Row("cpu", _native("_ops_cpu"), devices=("cpu",), dtypes=(F32, F16, BF16), cannot=("mixed dtypes",)),
        _REFERENCE,
    ),
    "linear": (
        Row(
            "cpu",
            _native("_ops_cpu"),
            devices=("cpu",),
            dtypes=(F32, F16, BF16),
            leaves=_BLOCK_PRODUCTS,
            widens=((F16, ()), (BF16, ("avx512_bf16",))),
        ),
        Row("aten", _python("aten"), devices=("cpu", "cuda"), cpu_flags=_HALF_PRODUCTS),
        replace(_REFERENCE, widens=((F16, ()), (BF16, ()))),
    ),
    "pooling": (
        _triton(range(1, 4097)),
        Row("cpu", _native("_ops_cpu"), devices=("cpu",), dtypes=(F32, F16, BF16), cannot=("mixed dtypes",)),
        _REFERENCE,
    ),
    "maxsim": (
        _triton(tensor_cores=True),
        Row("cpu", _native("_ops_cpu"), devices=("cpu",), dtypes=(F32, F16, BF16)),
        _REFERENCE,
    ),
    "decompress": (
        Row("cpu", _native("_ops_cpu"), devices=("cpu",)),
        _REFERENCE,
    ),
    "ranking": (
        replace(_triton(), cannot=("more than 128 best",)),
        _REFERENCE,
    ),
    "cross_entropy": (
        _triton(),
        _REFERENCE,
    ),
    "encoder_layer": (
        # Each is made of the rows of that name of its parts: what they leave to others, it leaves too.
        _cuda(**_CUDA_ATTENTION, cannot=("mixed dtypes", "rows of more than 8192 columns", QUERIES_ONLY)),
        Row(
            "cpu",
            _native("_ops_cpu"),
            devices=("cpu",),
            dtypes=(F32, F16, BF16),
            cannot=("mixed dtypes",),
            leaves=_BLOCK_PRODUCTS,
        ),
        _REFERENCE,
    ),
}

BACKENDS = ("cuda", "triton", "cpu", "aten", "reference")

# A plain module global on purpose: autograd runs backward on threads of its own, where a context variable is lost.
_forced: dict[str, str] = {}


def force(name: str | None, *ops: str) -> dict[str, str]:
    """Makes `name` the only backend of `ops` (all when none is named); None lifts it. Returns the former state."""
    global _forced
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend {name!r} is not one of {', '.join(BACKENDS)}")
    if unknown := set(ops) - set(TABLE):
        raise ValueError(f"no op named {', '.join(sorted(unknown))}; the ops are {', '.join(TABLE)}")
    former = _forced
    changed = dict.fromkeys(ops or TABLE, name)
    _forced = {op: backend for op, backend in {**former, **changed}.items() if backend is not None}
    return former


def forced() -> dict[str, str]:
    """The backend forced for each op, where one is."""
    return _forced


class NoBackend(NotImplementedError):
    """No row of the table, or not the forced one, serves a call; the message lists every objection."""


@contextlib.contextmanager
def use_backend(name: str | None, *ops: str) -> Iterator[None]:
    """Within the block, `name` serves `ops` (all ops when none is named), or the call raises with every reason.

    Not thread safe: the choice is process-wide, so that backward passes see it too.

    Raises:
        ValueError: on a backend or an op that does not exist.
    """
    global _forced
    former = force(name, *ops)
    try:
        yield
    finally:
        _forced = former


def pick(op: str, call: Call) -> Any:
    """The backend that serves `call`.

    Raises:
        NoBackend: a NotImplementedError, when no row, or not the forced one, can.
    """
    return _pick(op, call, _forced.get(op))[1]


def chosen(op: str, call: Call) -> str:
    """Name of the backend that serves `call`.

    Raises:
        NoBackend: as `pick`.
    """
    return _pick(op, call, _forced.get(op))[0]


def stands_for(op: str, parts: tuple[str, ...], call: Call) -> bool:
    """Whether `op` may run in place of its `parts`: it has a row of its own for this, and no other is forced."""
    forced = {_forced.get(name) for name in (op, *parts)}
    if len(forced) > 1 or not forced <= {None, *(row.backend for row in TABLE[op])}:
        return False
    return _pick(op, call, *forced)[0] != _REFERENCE.backend


def explain(op: str, call: Call) -> list[tuple[str, list[str]]]:
    """Every row of `op` with its objections to `call`; the first row without any is the one that runs."""
    forced = _forced.get(op)
    passed_over = [f"{forced} is forced"]
    return [
        (row.backend, row.objections(op, call, forced is not None) if forced in (None, row.backend) else passed_over)
        for row in TABLE[op]
    ]


def remark(op: str, backend: str, dtype: torch.dtype) -> str:
    """What a user of this dtype may want to know of the row that serves `op`; empty if nothing."""
    rows = (dict(row.widens) for row in TABLE[op] if row.backend == backend)
    widens = any(dtype in unless and not set(unless[dtype]) & _library().cpu_flags() for unless in rows)
    return f"multiplies {_short(dtype)} in float32" if widens else ""


def survey(
    device: str, dtype: torch.dtype, *, head_dim: int, hidden: int, intermediate: int
) -> dict[str, list[tuple[str, list[str]]]]:
    """`explain` for every op as a model of this device, dtype and size calls it."""
    widths = dict.fromkeys(TABLE, hidden) | {
        "padding": 0,
        "attention": head_dim,
        "rope": head_dim,
        "geglu": 2 * intermediate,
        "encoder_layer": head_dim,
    }
    moved_only = ("padding",)
    capability = _capability(torch.device(device)) if device == "cuda" and torch.cuda.is_available() else None
    return {
        op: explain(
            op, Call(device, frozenset() if op in moved_only else frozenset((dtype,)), width, frozenset(), capability)
        )
        for op, width in widths.items()
    }


@functools.cache
def _pick(op: str, call: Call, forced: str | None) -> tuple[str, Any]:
    tried = []
    for row in TABLE[op]:
        if forced not in (None, row.backend):
            continue
        if not (no := row.objections(op, call, forced is not None)):
            return row.backend, _loaded(row, op)[0]
        tried.append(f"  {row.backend}: {'; '.join(no)}")
    if not tried:
        rows = ", ".join(row.backend for row in TABLE[op])
        tried.append(f"  {forced}: has no row for {op} (rows: {rows})")
    raise NoBackend(f"no backend for {op} on {call}\n" + "\n".join(tried))


@functools.cache
def _loaded(row: Row, op: str) -> tuple[Any, str]:
    try:
        return row.load(op), ""
    except ImportError as error:  # anything else is a bug and flies
        return None, str(error)


force(os.environ.get("MODERNBERT_FAST_BACKEND") or None)
