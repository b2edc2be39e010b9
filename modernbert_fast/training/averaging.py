"""The mean of several checkpoints of one run, tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modernbert_fast import durable
from modernbert_fast.checkpoint import Stored, stored_tensors


def average(folders: Sequence[str | PathLike[str]], output: str | PathLike[str]) -> None:
    """Writes the mean of the weights of `folders`, each tensor in fp32 or better and stored in its former dtype.

    One tensor of each checkpoint is in memory at a time, and one whole model. Config and tokenizer are the last's.

    Args:
        folders: checkpoints of one model, safetensors in one file or indexed shards.
        output: a new folder, which appears when it is whole.

    Raises:
        OSError: a checkpoint has no weights, or the output exists.
        ValueError: there is none, or they differ in names, shapes or dtypes of their tensors.
    """
    paths, output = [Path(folder) for folder in folders], Path(output)
    if not paths:
        raise ValueError("an average takes at least one checkpoint")
    if output.exists():
        raise FileExistsError(f"{output} exists already")
    listed = [{tensor.name: tensor for tensor in stored_tensors(path)} for path in paths]
    for path, tensors in zip(paths[1:], listed[1:], strict=True):
        _same_tensors(paths[0], listed[0], path, tensors)
    means = {name: _mean([tensors[name] for tensors in listed]) for name in listed[0]}
    partial = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
    partial.mkdir(parents=True)
    for file in paths[-1].glob("*.json"):
        if "token" in file.name or file.name in ("config.json", "vocab.json"):
            shutil.copyfile(file, partial / file.name)
    save_file(means, partial / "model.safetensors", metadata={"format": "pt"})
    durable.sync_tree(partial)
    partial.replace(output)
    durable.sync_folder(output.parent)


def _same_tensors(first: Path, expected: dict[str, Stored], path: Path, tensors: dict[str, Stored]) -> None:
    if differing := sorted(expected.keys() ^ tensors.keys()):
        raise ValueError(f"{path}: tensor {differing[0]!r} is not in both this checkpoint and {first}")
    for name, tensor in tensors.items():
        ours, theirs = (tensor.shape, tensor.dtype), (expected[name].shape, expected[name].dtype)
        if ours != theirs:
            raise ValueError(f"{path}: tensor {name!r} is {ours}, in {first} it is {theirs}")


def _mean(tensors: Sequence[Stored]) -> torch.Tensor:
    total, dtype = None, torch.float32
    for tensor in tensors:
        with safe_open(tensor.file, framework="pt") as file:
            value = file.get_tensor(tensor.name)
        dtype, value = value.dtype, value.double()
        total = value if total is None else total.add_(value)
    assert total is not None
    return (total / len(tensors)).to(dtype)
