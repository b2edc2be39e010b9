"""All that a run needs beside its weights, as safetensors, JSON and npz; a checkpoint appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from modernbert_fast import durable
from modernbert_fast.untrusted import read_json

STAGING = ".saving"
_DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError),
    *(SafetensorError, zipfile.BadZipFile),
)
_OPTIMIZER, DATA = "optimizer", "data.npz"
_OWN = ("foreach", "triton")  # of the device, not of the run
_RATES = ("lr", "initial_lr", "max_lr", "weight_decay")


@contextlib.contextmanager
def staged(output: Path, name: str, writes: bool) -> Iterator[Path]:
    """A folder to write a checkpoint to; it becomes `output / name` at the end, when its bytes are on the disk.

    Args:
        output: of the run.
        name: of the checkpoint; one that is there is replaced.
        writes: whether this process does that; the others only write into it.
    """
    staging = output / STAGING
    if writes:
        shutil.rmtree(staging, ignore_errors=True)  # what a killed process left
    yield staging
    if not writes:
        return
    durable.sync_tree(staging / name)
    shutil.rmtree(output / name, ignore_errors=True)
    os.replace(staging / name, output / name)
    staging.rmdir()
    durable.sync_folder(output)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong within the block, while `path` is read or its content used, is a ValueError that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"{path}: damaged, or of another run: {error}") from error


def check(folder: Path, adapter: bool) -> Path:
    """The file of the weights. Transformers and peft would read pickled ones where there are no others.

    Raises:
        ValueError: there is no safetensors file, or there is a pickle; or trainer_state.json is damaged.
    """
    with reading(folder / TRAINER_STATE_NAME):
        TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    name = "adapter_model.safetensors" if adapter else "model.safetensors"
    if not (folder / name).is_file():
        raise ValueError(f"{folder}: no checkpoint to resume from, for it has no {name}")
    if pickled := sorted(folder.rglob("*.bin")):
        raise ValueError(f"{pickled[0]}: pickled weights, which can run code when read; a checkpoint here has none")
    return folder / name


def save_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, writes: bool) -> None:
    """optimizer.safetensors with the state of every parameter under its name, whole; optimizer.json with the rest.

    Every process calls it, for sharded tensors are gathered; those with `writes` write.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            _put(tensors, values, f"{names[parameter]}:{key}", value)
    for number, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key != "params":
                _put(tensors, values, f":{number}:{key}", value)
    if writes:
        save_file(tensors, folder / f"{_OPTIMIZER}.safetensors")
        durable.write_json(folder / f"{_OPTIMIZER}.json", values)


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, rates: bool = True) -> None:
    """Puts back what save_optimizer wrote, for as many processes as there are now.

    Args:
        folder: of the checkpoint.
        model: whose parameters the optimizer has.
        optimizer: of the same class.
        rates: learning rate, weight decay and the like too; False takes only moments and step counts, for a new phase.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged, or of another model.
    """
    tensor_file, value_file = (folder / f"{_OPTIMIZER}.{suffix}" for suffix in ("safetensors", "json"))
    with reading(tensor_file):
        tensors = load_file(tensor_file)
    parameters: dict[str, Any] = dict(model.named_parameters())
    groups = {f":{number}": group for number, group in enumerate(optimizer.param_groups)}
    state: dict[str, dict[str, Any]] = {}
    for path, entries in ((value_file, read_json(value_file)), (tensor_file, tensors)):
        for full, value in entries.items():
            name, _, key = full.rpartition(":")
            if name in groups:
                if key not in _OWN and (rates or key not in _RATES):
                    groups[name][key] = value
            elif name in parameters:
                state.setdefault(name, {})[key] = _placed(value, parameters[name], path, full)
            else:
                raise ValueError(f"{path}: state of {name!r}, a parameter or group that is not there")
    for name, values in state.items():
        optimizer.state[parameters[name]] = values


def _put(tensors: dict[str, torch.Tensor], values: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        tensors[name] = whole.detach().cpu().contiguous()
    else:
        values[name] = value


def _placed(value: Any, parameter: Any, path: Path, name: str) -> Any:
    """A state tensor where its parameter lies, sharded as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() and value.numel() > 1 and value.shape != parameter.shape:
        raise ValueError(f"{path}: {name!r} has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}")
    value = value.to(parameter.device)
    if hasattr(parameter, "device_mesh") and value.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def save_random_state(folder: Path, rank: int) -> None:
    """random-RANK.safetensors: torch's generators of the CPU and of this process's accelerator."""
    states = {"cpu": torch.get_rng_state()}
    if torch.accelerator.is_available():
        states["accelerator"] = torch.get_device_module().get_rng_state()
    save_file(states, folder / f"random-{rank}.safetensors")


def load_random_state(folder: Path, rank: int) -> None:
    """Puts the generators back; where that rank had none, there were fewer processes, dropout draws anew.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / f"random-{rank}.safetensors"
    if not path.is_file():
        return
    with reading(path):
        states = load_file(path)
        torch.set_rng_state(states["cpu"])
        if "accelerator" in states and torch.accelerator.is_available():
            torch.get_device_module().set_rng_state(states["accelerator"])


def save_data_state(folder: Path, state: Mapping[str, np.ndarray]) -> None:
    """data.npz: where the loader is."""
    np.savez(folder / DATA, **state)  # type: ignore[arg-type]


def load_data_state(folder: Path) -> dict[str, np.ndarray]:
    """What save_data_state wrote.

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    path = folder / DATA
    with reading(path), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def save_values(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """name.json, of a schedule or a gradient scaler."""
    durable.write_json(folder / f"{name}.json", dict(values))


def load_values(folder: Path, name: str) -> dict[str, Any]:
    """What save_values wrote.

    Raises:
        OSError, ValueError: of read_json.
    """
    return read_json(folder / f"{name}.json")
