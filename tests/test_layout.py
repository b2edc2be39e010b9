"""The rule of the tree: an op has one name, and that name is a file in every place the op lives."""

import collections
import importlib
import inspect
import pathlib
import re

import pytest
import torch

from modernbert_fast import dispatch, ops, testing
from modernbert_fast.geometry import Geometry

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = {
    "reference": "modernbert_fast/reference/{op}.py",
    "aten": "modernbert_fast/aten/{op}.py",
    "triton": "kernels/{op}.py",
    "cpu": "csrc/cpu/{op}.cpp",
    "cuda": "csrc/cuda/{op}",  # a file .cu or a folder
}
OWED = ("modernbert_fast/ops/{op}.py", "tests/ops/test_{op}.py", "benchmarks/ops/bench_{op}.py")
HELPERS = {"__init__", "checks", "test_contract", "launch", "offline", "texts"}


def exists(path):
    return (ROOT / path).exists() or (ROOT / path).with_suffix(".cu").exists()


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_files_of_an_op(op):
    owed = [*OWED, *(SOURCES[row.backend] for row in dispatch.TABLE[op])]
    assert not [path for path in (template.format(op=op) for template in owed) if not exists(path)]


@pytest.mark.parametrize("folder", ["modernbert_fast/ops", "modernbert_fast/reference", "modernbert_fast/aten",
                                    "kernels", "tests/ops", "benchmarks/ops"])  # fmt: skip
def test_files_belong_to_an_op(folder):
    names = {path.stem for path in (ROOT / folder).glob("*.py")} - HELPERS
    assert {re.sub("^(test|bench)_", "", name) for name in names} <= set(dispatch.TABLE)


@pytest.mark.parametrize("name", ["aten", "triton"])
def test_python_kernels_are_in_the_table(name):
    """A file without a row is dead code."""
    folder = ROOT / pathlib.PurePath(SOURCES[name]).parent
    ops_with_files = {path.stem for path in folder.glob("*.py")} - HELPERS
    assert ops_with_files == {op for op, rows in dispatch.TABLE.items() if name in [row.backend for row in rows]}


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_references_have_every_function_with_the_schema_arguments(op):
    reference = importlib.import_module(f"modernbert_fast.reference.{op}")
    for name in registered(op):
        schema = getattr(torch.ops.modernbert_fast, name).default._schema
        function = getattr(reference, name.removeprefix(f"{op}_"))
        names = list(inspect.signature(function).parameters)
        if names[-1] == "geometry":  # attention's tail, one tuple of named fields
            names[-1:] = Geometry._fields
        assert names == [argument.name for argument in schema.arguments]


def test_nothing_is_registered_twice():
    definitions = collections.Counter(
        (path.stem, name)
        for path in (ROOT / "modernbert_fast" / "ops").glob("*.py")
        for name in re.findall(r'^    f?"(\w+)\(', path.read_text(), re.M)
    )
    names = collections.Counter(name for _, name in definitions)
    assert definitions and max(definitions.values()) == max(names.values()) == 1
    assert set(names) == {name for op in dispatch.TABLE for name in registered(op)}


def test_every_op_is_public_and_has_small_problems():
    assert set(testing.SMALL) == set(dispatch.TABLE)
    assert set(dispatch.TABLE) - {"padding"} <= set(ops.__all__)


def registered(op):
    names = torch._C._dispatch_get_all_op_names()
    prefix = f"modernbert_fast::{op}_"
    return [name.removeprefix("modernbert_fast::") for name in names if name.startswith(prefix)]
