"""A whole layer in one call: what its ops give, to the bit. When it takes their place: test_one_call.py."""

import functools

import pytest
import torch

from modernbert_fast import dispatch, ops
from modernbert_fast.aten import linear as aten
from modernbert_fast.testing import assert_same_bits, checks, problems

OP = "encoder_layer"
LENGTHS = [(), (0,), (1, 33), (0, 0, 1, 0, 37, 2, 0, 0), (63, 64, 65, 66, 0), (255, 256, 257)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("window", [-1, 8])
def test_accuracy(backend, device, dtype, lengths, window):
    checks.check_accuracy(problems.encoder_layer(lengths, 2, 32, 40, dtype, device, window=window))


@pytest.mark.parametrize("first", [False, True])
def test_biases(backend, device, dtype, first):
    checks.check_accuracy(problems.encoder_layer((5, 40), 2, 32, 40, dtype, device, first=first, bias=True))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("window", [-1, 8])
def test_it_is_its_ops(backend, device, dtype, first, window):
    """To the bit, so that a text's vector depends neither on gradients nor on who watches a layer."""
    problem = problems.encoder_layer((5, 0, 70), 2, 64, 72, dtype, device, window=window, first=first, bias=True)
    inputs = problem.inputs()
    parts = [op for op, rows in dispatch.TABLE.items() if any(row.backend == backend for row in rows)]
    with dispatch.use_backend(backend, *parts), torch.no_grad():
        for got, expected in zip(problem.run(**inputs), _one_by_one(inputs, 64, window, backend), strict=True):
            assert_same_bits(got, expected)


def _one_by_one(inputs, D, window, backend):
    def norm(name):
        return inputs[name], inputs[f"{name}_bias"], 1e-5

    # On a GPU the products are torch's, whatever device stands for one.
    product, with_geglu = (aten.forward, aten.forward_geglu) if backend == "cuda" else (ops.linear, ops.linear_geglu)

    def linear(op, name, x):
        return op(x, inputs[name], inputs[f"{name}_bias"])

    x, residual, cu_seqlens = inputs["x"], inputs["residual"], inputs["cu_seqlens"]
    normed = x
    if residual is None:
        residual = x
    else:
        normed, residual = ops.add_layer_norm(x, residual, *norm("attn_norm"))
    qkv = linear(product, "Wqkv", normed).unflatten(1, (3, -1, D))
    rotary = {name: inputs[name] for name in ("positions", "cos", "sin")}
    o = ops.attention(qkv, cu_seqlens, int(cu_seqlens.diff().max()), window=window, **rotary)
    normed, residual = ops.add_layer_norm(linear(product, "attn_Wo", o.flatten(1)), residual, *norm("mlp_norm"))
    return linear(product, "mlp_Wo", linear(with_geglu, "Wi", normed)), residual


def test_refuses(backend, device, any_dtype):
    problem = problems.encoder_layer((3, 4), 2, 16, 12, any_dtype, device, bias=True)
    inputs = problem.inputs()
    for name, worse, error in (
        ("x", inputs["x"][:, 1:], ValueError),
        ("residual", inputs["residual"][1:], ValueError),
        ("residual", inputs["residual"].bfloat16(), TypeError),
        ("Wqkv", inputs["Wqkv"][:-1], ValueError),
        ("Wqkv", inputs["Wqkv"].bfloat16(), TypeError),
        ("Wqkv_bias", inputs["Wqkv_bias"][1:], ValueError),
        ("attn_Wo", inputs["attn_Wo"][:, 1:], ValueError),
        ("Wi", inputs["Wi"][1:], ValueError),
        ("mlp_Wo", inputs["mlp_Wo"][:, 1:], ValueError),
        ("attn_norm", inputs["attn_norm"][1:], ValueError),
        ("mlp_norm_bias", inputs["mlp_norm_bias"][1:], ValueError),
        ("positions", inputs["positions"][1:], ValueError),
        ("cu_seqlens", inputs["cu_seqlens"].long(), TypeError),
    ):
        checks.check_refuses(functools.partial(problem.run, **inputs | {name: worse}), error, problem)


def test_refuses_values(backend, device, any_dtype):
    if device.type != "cpu":
        pytest.skip("values on a device are not read")
    problem = problems.encoder_layer((3, 4), 2, 16, 12, any_dtype, device)
    inputs = problem.inputs()
    for name, error in (("positions", IndexError), ("cu_seqlens", ValueError)):
        worse = inputs | {name: inputs[name] + 9}
        checks.check_refuses(functools.partial(problem.run, **worse), error, problem)


@pytest.mark.parametrize("name", ["x", "residual", "mlp_norm", "Wi"])
def test_has_no_gradient(backend, device, any_dtype, name):
    """An error, never a gradient that stops here unseen."""
    problem = problems.encoder_layer((3, 4), 2, 16, 12, any_dtype, device)
    inputs = problem.inputs()
    inputs[name].requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient"):
        problem.run(**inputs)
    with torch.no_grad():
        problem.run(**inputs)


@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode_raises(backend, device, any_dtype, grad):
    problem = problems.encoder_layer((3, 4), 2, 16, 12, any_dtype, device)
    inputs = problem.inputs()
    x = inputs.pop("x")
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="no gradient"):
        torch.func.jvp(lambda x: problem.run(x=x, **inputs)[0], (x,), (torch.ones_like(x),))


def test_norms_of_other_dtypes(backend, device, any_dtype):
    """As layer_norm has it: what the compiled op does not take, the reference does."""
    problem = problems.encoder_layer((3, 4), 2, 16, 12, any_dtype, device, bias=True)
    inputs = problem.inputs()
    with dispatch.use_backend(None, OP):
        problem.run(**inputs | {"mlp_norm_bias": inputs["mlp_norm_bias"].bfloat16()})
