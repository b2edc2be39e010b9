"""Problems: a call of an op with its inputs drawn from a seed, beside the same call in plain torch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modernbert_fast import ops
from modernbert_fast.geometry import Geometry
from modernbert_fast.testing import plain

Tensors = dict[str, Any]  # by name; None where an optional tensor is left out

# Around every tile edge, and the cases that kernels forget. Never tiny texts alone: there torch is exact, and no
# yardstick.
LENGTHS = (
    (), (0,), (1, 33), (0, 0, 1, 0, 37, 2, 0, 0), (15, 16, 17, 1, 2, 31, 33), (63, 64, 65, 66, 0),
    (127, 128, 0, 129, 130), (255, 256, 257), tuple((7 * i) % 23 for i in range(60)), (511, 1, 512, 513), (1023, 2),
    (1024,), (3, 1025),
)  # fmt: skip


class Draw:
    """Random tensors from a seed, the same on every device."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal, in the problem's dtype unless told."""
        x = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return x.to(self.device, dtype or self.dtype)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self._generator).to(self.device, dtype)

    def chosen(self, count: int, total: int) -> torch.Tensor:
        """`count` of the numbers below `total`, in order, int64."""
        return torch.randperm(total, generator=self._generator)[:count].sort().values.to(self.device)

    def bounds(self, lengths: Sequence[int]) -> torch.Tensor:
        """cu_seqlens (B + 1,) int32."""
        return torch.tensor([*itertools.accumulate(lengths, initial=0)], dtype=torch.int32, device=self.device)


@dataclass(frozen=True)
class Problem:
    """One call of an op.

    Attributes:
        op: its name in dispatch.TABLE.
        dtype, device: what is asked.
        draw: the inputs by name.
        run: the public function on them; plain: the same in torch.
        grads: inputs that get a gradient.
        texts: lengths of the packed texts, where the problem has such; tokens: inputs with one row for each token.
        result_rows: whether the results have a row for each "token" or each "text".
        exact: nothing is rounded, so nothing may differ.
    """

    op: str
    dtype: torch.dtype
    device: torch.device
    draw: Callable[[Draw], Tensors]
    run: Callable[..., Any]
    plain: Callable[..., Any]
    grads: tuple[str, ...] = ()
    texts: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()
    result_rows: str = "token"
    exact: bool = False

    def inputs(self, seed: int = 0) -> Tensors:
        return self.draw(Draw(seed, self.dtype, self.device))

    def but(self, **changes: Any) -> Problem:
        """The same problem with some attributes changed."""
        return dataclasses.replace(self, **changes)


def unpad(rows: int, width: tuple[int, ...], kept: int, dtype: torch.dtype, device: torch.device) -> Problem:
    return Problem(
        "padding", dtype, device,
        lambda draw: {"x": draw(rows, *width), "indices": draw.chosen(kept, rows)},
        ops.unpad, plain.unpad, ("x",), exact=True,
    )  # fmt: skip


def pad(rows: int, width: tuple[int, ...], kept: int, dtype: torch.dtype, device: torch.device) -> Problem:
    return Problem(
        "padding", dtype, device,
        lambda draw: {"x": draw(kept, *width), "indices": draw.chosen(kept, rows)},
        lambda x, indices: ops.pad(x, indices, rows),
        lambda x, indices: plain.pad(x, indices, rows),
        ("x",), exact=True,
    )  # fmt: skip


def plan(mask: Callable[[Draw], torch.Tensor], device: torch.device) -> Problem:
    return Problem(
        "padding", torch.float32, device, lambda draw: {"mask": mask(draw)}, ops.plan, plain.plan, exact=True
    )


def tiles(lengths: Sequence[int], rows: int, device: torch.device) -> Problem:
    return Problem(
        "padding", torch.float32, device,
        lambda draw: {"cu_seqlens": draw.bounds(lengths)},
        lambda cu_seqlens: ops.tiles(cu_seqlens, sum(lengths), rows),
        lambda cu_seqlens: plain.tiles(cu_seqlens, sum(lengths), rows),
        exact=True,
    )  # fmt: skip


def layer_norm(
    T: int,
    C: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    residual: torch.dtype | None = None,
    weight: torch.dtype | None = None,
    bias: torch.dtype | None = None,
    eps: float = 1e-5,
) -> Problem:
    """x (T, C), with a residual (T, C), a weight (C,) and a bias (C,) of the dtypes given; None leaves one out."""

    def draw_inputs(draw: Draw) -> Tensors:
        inputs = {"x": draw(T, C)}
        if residual is not None:
            inputs["residual"] = draw(T, C, dtype=residual)
        if weight is not None:
            inputs["weight"] = draw(C, dtype=weight)
        if bias is not None:
            inputs["bias"] = draw(C, dtype=bias)
        return inputs

    public: Callable[..., Any] = ops.layer_norm if residual is None else ops.add_layer_norm
    torch_one: Callable[..., Any] = plain.layer_norm if residual is None else plain.add_layer_norm
    given = {"x": dtype, "residual": residual, "weight": weight, "bias": bias}
    return Problem(
        "layer_norm", dtype, device, draw_inputs,
        lambda **inputs: public(**inputs, eps=eps),
        lambda **inputs: torch_one(**inputs, eps=eps),
        tuple(name for name, kind in given.items() if kind is not None),
        texts=_thirds(T), tokens=("x",),
    )  # fmt: skip


def embed_layer_norm(
    T: int,
    V: int,
    C: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    ids: torch.dtype = torch.int64,
    padding_idx: int | None = None,
) -> Problem:
    return Problem(
        "layer_norm", dtype, device,
        lambda draw: {"ids": draw.integers(0, V, T, dtype=ids), "table": draw(V, C), "weight": draw(C)},
        lambda **inputs: ops.embed_layer_norm(**inputs, padding_idx=padding_idx),
        lambda **inputs: plain.embed_layer_norm(**inputs, padding_idx=padding_idx),
        ("table", "weight"),
    )  # fmt: skip


def attention(
    lengths: Sequence[int],
    H: int,
    D: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    window: int = -1,
    rotary: bool = True,
    holes: bool = False,
    expanded: bool = False,
    max_seqlen: int | None = None,
    base: float = 10000.0,
) -> Problem:
    """qkv (T, 3, H, D) of packed texts; with holes, positions and the window skip some columns.

    Of an expanded text the first tokens are attended to, from none to all.
    """
    T, longest = sum(lengths), max_seqlen if max_seqlen is not None else max(lengths, default=0)

    def draw_inputs(draw: Draw) -> Tensors:
        inputs = {"qkv": draw(T, 3, H, D), "cu_seqlens": draw.bounds(lengths)}
        steps = draw.integers(1, 4, T) if holes else torch.ones(T, dtype=torch.int64, device=device)
        places = [part.cumsum(0) - part[:1] for part in steps.split([n for n in lengths if n])] if T else [steps]
        columns = torch.cat(places).int()
        if rotary:
            inputs |= {"positions": columns, **_tables(3 * longest if holes else longest, D, base, draw)}
        inputs |= {"columns": columns} if holes else {}
        return inputs | ({"attended": _first_of_each(lengths, draw)} if expanded else {})

    return Problem(
        "attention", dtype, device, draw_inputs,
        lambda qkv, cu_seqlens, **rest: ops.attention(qkv, cu_seqlens, longest, window=window, **rest),
        lambda qkv, cu_seqlens, **rest: plain.attention(qkv, cu_seqlens, window, **rest),
        ("qkv",), tuple(lengths), ("qkv",),
    )  # fmt: skip


def rope(T: int, H: int, D: int, dtype: torch.dtype, device: torch.device, *, far: int = 64) -> Problem:
    """qkv (T, 3, H, D) at random positions below `far`."""
    return Problem(
        "rope", dtype, device,
        lambda draw: {
            "qkv": draw(T, 3, H, D),
            "positions": draw.integers(0, far, T, dtype=torch.int32),
            **_tables(far, D, 10000.0, draw),
        },
        ops.rope, plain.rope, ("qkv",), _thirds(T), ("qkv",),
    )  # fmt: skip


def geglu(T: int, F: int, dtype: torch.dtype, device: torch.device, *, scale: float = 1.0) -> Problem:
    """x (T, 2F), `scale` times normal."""
    return Problem(
        "geglu", dtype, device, lambda draw: {"x": draw(T, 2 * F) * scale}, ops.geglu, plain.geglu, ("x",),
        _thirds(T), ("x",),
    )  # fmt: skip


def linear(T: int, K: int, N: int, dtype: torch.dtype, device: torch.device, *, bias: bool = False) -> Problem:
    return Problem(
        "linear", dtype, device,
        lambda draw: {"x": draw(T, K), "weight": draw(N, K)} | ({"bias": draw(N)} if bias else {}),
        ops.linear, torch.nn.functional.linear, ("x", "weight", *(("bias",) if bias else ())), _thirds(T), ("x",),
    )  # fmt: skip


def linear_geglu(T: int, K: int, F: int, dtype: torch.dtype, device: torch.device, *, bias: bool = False) -> Problem:
    """Without gradients, which would make it two ops."""
    return Problem(
        "linear", dtype, device,
        lambda draw: {"x": draw(T, K), "weight": draw(2 * F, K)} | ({"bias": draw(2 * F)} if bias else {}),
        ops.linear_geglu, plain.linear_geglu, (), _thirds(T), ("x",),
    )  # fmt: skip


def encoder_layer(
    lengths: Sequence[int],
    H: int,
    D: int,
    F: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    window: int = -1,
    first: bool = False,
    bias: bool = False,
    expanded: bool = False,
) -> Problem:
    """x (T, H D) of packed texts; the first layer has no attn_norm and no residual. Expanded as in `attention`."""
    T, C, longest = sum(lengths), H * D, max(lengths, default=0)

    def draw_inputs(draw: Draw) -> Tensors:
        def matrix(rows: int, columns: int) -> Tensors:
            return {"": draw(rows, columns) / columns**0.5, "_bias": draw(rows) if bias else None}

        def norm() -> Tensors:
            return {"": 1 + draw(C) / 4, "_bias": draw(C) if bias else None}

        parts = {"Wqkv": matrix(3 * C, C), "attn_Wo": matrix(C, C), "mlp_norm": norm()}
        parts |= {"Wi": matrix(2 * F, C), "mlp_Wo": matrix(C, F), "attn_norm": {} if first else norm()}
        flat = {name + suffix: t for name, part in parts.items() for suffix, t in part.items()}
        inputs = {"x": draw(T, C), "residual": None if first else draw(T, C), **flat}
        positions = torch.cat([torch.arange(n, device=device, dtype=torch.int32) for n in (*lengths, 0)])
        bounds = {"cu_seqlens": draw.bounds(lengths), "positions": positions}
        inputs |= {**bounds, **_tables(max(longest, 1), D, 10000.0, draw)}
        return inputs | {"attended": _first_of_each(lengths, draw) if expanded else None}

    def gather(inputs: Tensors) -> tuple[Any, Any, ops.Weights, int]:
        norms = {"attn_norm": None, "attn_norm_bias": None, "attn_norm_eps": 1e-5, "mlp_norm_eps": 1e-5}
        weights = ops.Weights(**norms | {name: inputs[name] for name in ops.Weights._fields if name in inputs})
        return inputs["x"], inputs["residual"], weights, D

    def run(**inputs: Any) -> Any:
        cu_seqlens = inputs["cu_seqlens"]
        rotary = (inputs["positions"], inputs["cos"], inputs["sin"])
        tiles = ops.tiles(cu_seqlens, T)
        geometry = Geometry(cu_seqlens, *rotary, None, inputs["attended"], tiles, longest, window, D**-0.5)
        return ops.encoder_layer(*gather(inputs), geometry)

    return Problem(
        "encoder_layer", dtype, device, draw_inputs, run,
        lambda **inputs: plain.encoder_layer(
            *gather(inputs),
            inputs["cu_seqlens"],
            window,
            **{name: inputs[name] for name in ("positions", "cos", "sin", "attended")},
        ),
        (), tuple(lengths), ("x",) if first else ("x", "residual"),
    )  # fmt: skip


def pooling(
    lengths: Sequence[int],
    C: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    mode: str = "mean",
    normalize: bool = False,
) -> Problem:
    return Problem(
        "pooling", dtype, device,
        lambda draw: {"x": draw(sum(lengths), C), "cu_seqlens": draw.bounds(lengths)},
        lambda x, cu_seqlens: ops.pooling(x, cu_seqlens, mode, normalize),
        lambda x, cu_seqlens: plain.pooling(x, cu_seqlens, mode, normalize),
        ("x",), tuple(lengths), ("x",), "text",
    )  # fmt: skip


def maxsim(
    queries: Sequence[int],
    documents: Sequence[int],
    D: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    pairwise: bool = False,
) -> Problem:
    """q (Tq, D) against d (Td, D); the texts of a pairwise problem are its documents."""
    return Problem(
        "maxsim", dtype, device,
        lambda draw: {
            "q": draw(sum(queries), D),
            "d": draw(sum(documents), D),
            "cu_queries": draw.bounds(queries),
            "cu_documents": draw.bounds(documents),
        },
        lambda **inputs: ops.maxsim(**inputs, pairwise=pairwise),
        lambda **inputs: plain.maxsim(**inputs, pairwise=pairwise),
        ("q", "d"), tuple(documents) if pairwise else (), ("d",), "text",
    )  # fmt: skip


def ranking(B: int, N: int, k: int, dtype: torch.dtype, device: torch.device, *, chosen: bool = False) -> Problem:
    """The k best of B rows of N scores, some of them alike; `chosen` scales them and leaves some out."""

    def draw_inputs(draw: Draw) -> Tensors:
        scores = draw.integers(-9, 9, B, N).to(draw.dtype) / 4
        inputs = {"scores": scores, "cu_documents": draw.bounds(draw.integers(0, 4, N).tolist())}
        more = {"scales": draw.integers(1, 4, N).to(draw.dtype), "allowed": draw.integers(0, 3, N) > 0}
        return inputs | (more if chosen else {})

    return Problem(
        "ranking", dtype, device, draw_inputs,
        lambda **inputs: ops.ranking(**inputs, k=k), lambda **inputs: plain.ranking(**inputs, k=k), exact=True,
    )  # fmt: skip


def cross_entropy(
    T: int, C: int, V: int, dtype: torch.dtype, device: torch.device, *, bias: bool = True, labelled: float = 0.3
) -> Problem:
    """x (T, C), weight (V, C), bias (V,); about the share `labelled` of the rows has a label."""

    def draw_inputs(draw: Draw) -> Tensors:
        ignored = draw(T, dtype=torch.float64).erf().add(1) / 2 >= labelled
        labels = draw.integers(0, V, T).masked_fill(ignored, -100)
        inputs = {"x": draw(T, C), "weight": draw(V, C) / max(C, 1) ** 0.5, "labels": labels}
        return inputs | {"bias": draw(V) if bias else None}

    return Problem(
        "cross_entropy", dtype, device, draw_inputs, ops.cross_entropy, plain.cross_entropy,
        ("x", "weight", *(("bias",) if bias else ())), _thirds(T), ("x",),
    )  # fmt: skip


def _first_of_each(lengths: Sequence[int], draw: Draw) -> torch.Tensor:
    """(T,) bool: a random number of the first tokens of each text."""
    kept = [int(draw.integers(0, n + 1, 1)) for n in lengths]
    parts = [torch.arange(n) < k for n, k in zip(lengths, kept, strict=True)]
    return torch.cat([torch.zeros(0, dtype=torch.bool), *parts]).to(draw.device)


def _tables(rows: int, D: int, base: float, draw: Draw) -> Tensors:
    """cos, sin (rows, D / 2), fp32 (fp64 for fp64 problems)."""
    frequencies = base ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)
    angles = torch.arange(rows, dtype=torch.float64)[:, None] * frequencies
    dtype = torch.promote_types(draw.dtype, torch.float32)
    return {"cos": angles.cos().to(draw.device, dtype), "sin": angles.sin().to(draw.device, dtype)}


def _thirds(T: int) -> tuple[int, ...]:
    """Rows seen as three texts, so that row-wise ops show that rows keep to themselves."""
    return (T // 3, T // 3, T - 2 * (T // 3))
