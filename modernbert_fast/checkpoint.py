"""A folder with config.json and safetensors <-> EncoderConfig and tensors; no transformers, no pickle."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from modernbert_fast.config import EncoderConfig
from modernbert_fast.untrusted import MAX_JSON_BYTES, parse_json, read_json

MAX_TENSORS = 10_000

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")
_PLAIN_NAME = re.compile(r"[\w-][\w.-]{0,200}\.safetensors", re.ASCII)
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")
_FLOATS = ("F64", "F32", "F16", "BF16")
_HEADS = {"head", "decoder", "classifier", "order_head", "order_classifier"}


@dataclass(frozen=True)
class _Stored:
    """What a header says of one tensor."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


def load_config(folder: str | PathLike[str]) -> EncoderConfig:
    """Read `folder`/config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a ModernBERT configuration; the message names the key.
    """
    return EncoderConfig.from_file(Path(folder) / _CONFIG)


def read(
    folder: str | PathLike[str], shapes: Mapping[str, tuple[int, ...]], *, optional: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Read the tensors named in `shapes` from `folder`, after all names, shapes and dtypes were checked.

    A leading "model." is ignored on both sides, so a bare encoder loads from the checkpoint of a headed model
    and a headed model from that of a bare one. A module of _HEADS that `shapes` lacks altogether is
    skipped; any other tensor that `shapes` does not name is an error.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and its shards.
        shapes: name and shape of every tensor of the model to fill.
        optional: names in `shapes` that the checkpoint may lack (a tied decoder, a head yet to be trained).

    Returns:
        The tensors found, under the names of `shapes`, in the stored dtype, on the CPU, in their own memory.

    Raises:
        FileNotFoundError: no weights in `folder`.
        ValueError: anything else that is wrong with the checkpoint; the message names the tensor or the file.
    """
    folder = Path(folder)
    stored = _by_bare_name(_stored_tensors(folder))
    wanted = {_bare(name): name for name in shapes}
    absent_heads = _HEADS - {name.split(".")[0] for name in wanted}
    missing = [name for bare, name in wanted.items() if bare not in stored and name not in optional]
    unexpected = [
        tensor.name for bare, tensor in stored.items() if bare not in wanted and bare.split(".")[0] not in absent_heads
    ]
    if missing:
        raise ValueError(f"{folder}: the checkpoint lacks {_listed(missing)}")
    if unexpected:
        raise ValueError(f"{folder}: the checkpoint has tensors that the model lacks: {_listed(unexpected)}")

    by_file: dict[Path, dict[str, str]] = defaultdict(dict)
    for bare, name in wanted.items():
        if bare in stored:
            tensor = stored[bare]
            _check(tensor, tuple(shapes[name]))
            by_file[tensor.file][name] = tensor.name
    out: dict[str, torch.Tensor] = {}
    for path, stored_names in by_file.items():
        try:
            with safe_open(path, framework="pt") as file:
                for name, stored_name in stored_names.items():
                    # get_tensor maps the file: perhaps unaligned, and changing when the file does.
                    out[name] = file.get_tensor(stored_name).clone()
        except SafetensorError as error:
            raise ValueError(f"{path}: not a valid safetensors file: {error}") from error
    return out


def save(
    state: Mapping[str, torch.Tensor],
    config: EncoderConfig,
    folder: str | PathLike[str],
    *,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """Write config.json and the weights so that `read` and transformers can read them back.

    Every file is complete before the first one takes its place, and weights of an earlier save are removed. A
    decoder tied to the embeddings is left out, as transformers does.

    Args:
        state: the state_dict of an encoder or of a headed model.
        config: its configuration.
        folder: made when absent; other files in it stay.
        max_shard_size: bytes of tensors per file; more are split and indexed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(_without_tied_decoder(state, config), max_shard_size)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
        staged = Path(scratch)
        if len(shards) == 1:
            names = [_WEIGHTS]
        else:
            _write_json(staged / _INDEX, _index(shards, names))
        for name, shard in zip(names, shards, strict=True):
            save_file(_unshared(shard), staged / name, metadata={"format": "pt"})
        _write_json(staged / _CONFIG, config.to_dict())
        written = {path.name for path in staged.iterdir()}
        for name in sorted(written):
            os.replace(staged / name, folder / name)
    for path in folder.iterdir():
        stale = path.name in (_WEIGHTS, _INDEX) or _SHARD.fullmatch(path.name)
        if stale and path.name not in written:
            path.unlink()


def _bare(name: str) -> str:
    return name.removeprefix("model.")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def _check(tensor: _Stored, shape: tuple[int, ...]) -> None:
    at = f"{tensor.file}: tensor {tensor.name!r}"
    if tensor.shape != shape:
        raise ValueError(f"{at} has shape {tensor.shape}, the config says {shape}")
    if tensor.dtype not in _FLOATS:
        raise ValueError(f"{at} has dtype {tensor.dtype}, expected one of {', '.join(_FLOATS)}")


def _by_bare_name(tensors: list[_Stored]) -> dict[str, _Stored]:
    out: dict[str, _Stored] = {}
    for tensor in tensors:
        other = out.setdefault(_bare(tensor.name), tensor)
        if other is not tensor:
            where = f"{tensor.name!r} in {tensor.file} and {other.name!r} in {other.file}"
            raise ValueError(f"the same tensor occurs twice: {where}")
    return out


def _stored_tensors(folder: Path) -> list[_Stored]:
    """What the headers of a checkpoint say, with no tensor read."""
    if (folder / _WEIGHTS).exists():
        return _header(folder / _WEIGHTS)
    if (folder / _INDEX).exists():
        return _indexed_headers(folder)
    for name in _PICKLES:
        if (folder / name).exists():
            raise ValueError(
                f"{folder}: the weights are pickled ({name}), which can run code when read; convert them to "
                "safetensors first (transformers: from_pretrained, then save_pretrained), if you trust them"
            )
    raise FileNotFoundError(f"{folder}: neither {_WEIGHTS} nor {_INDEX}")


def _indexed_headers(folder: Path) -> list[_Stored]:
    path = folder / _INDEX
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or len(weight_map) > MAX_TENSORS:
        raise ValueError(f"{path}: 'weight_map' must map 1 to {MAX_TENSORS} tensor names to files")
    promised: dict[str, set[str]] = defaultdict(set)
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _PLAIN_NAME.fullmatch(file):
            raise ValueError(f"{path}: tensor {name!r} is in no plain .safetensors file name: {file!r:.99}")
        promised[file].add(name)
    tensors = []
    for file, names in promised.items():
        header = _header(_inside(folder, file))
        differing = sorted(names ^ {tensor.name for tensor in header})
        if differing:
            raise ValueError(f"{path}: tensor {differing[0]!r} is not where the index says, see {file}")
        tensors += header
    return tensors


def _inside(folder: Path, file: str) -> Path:
    """The shard `file`, refused when it is a link that leads out of the checkpoint."""
    try:
        root, target = folder.resolve(strict=True), (folder / file).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{folder / _INDEX}: shard {file} cannot be opened: {error}") from error
    # In the Hub's cache every file of snapshots/<revision>/ is a link into blobs/ beside snapshots/.
    blobs = root.parent.parent / "blobs"
    if target.is_relative_to(root) or (root.parent.name == "snapshots" and target.is_relative_to(blobs)):
        return folder / file
    raise ValueError(f"{folder / _INDEX}: shard {file} is a link out of the folder")


def _header(path: Path) -> list[_Stored]:
    """The entries of a safetensors header; safetensors itself checks sizes and byte ranges when it reads."""
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_JSON_BYTES, path.stat().st_size - 8):
            raise ValueError(f"{path}: not safetensors, or cut short: its header claims {length} bytes")
        header = parse_json(file.read(length), str(path))
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ValueError(f"{path}: {len(header)} tensors, at most {MAX_TENSORS} are read")
    return [_entry(path, name, entry) for name, entry in header.items()]


def _entry(path: Path, name: str, entry: Any) -> _Stored:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape]}:
            return _Stored(path, name, dtype, tuple(shape))
    raise ValueError(f"{path}: the header entry of tensor {name!r} is malformed")


def _without_tied_decoder(state: Mapping[str, torch.Tensor], config: EncoderConfig) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.detach() for name, tensor in state.items()}
    decoder, table = tensors.get("decoder.weight"), tensors.get("model.embeddings.tok_embeddings.weight")
    if config.tie_word_embeddings and decoder is not None and table is not None:
        if decoder.data_ptr() == table.data_ptr():
            del tensors["decoder.weight"]
    return tensors


def _shards(tensors: Mapping[str, torch.Tensor], max_shard_size: int) -> list[dict[str, torch.Tensor]]:
    """Tensors in order, cut before the one that would exceed the size; a larger one is a shard alone."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values, contiguous, no two in one storage: what safetensors can write."""
    out: dict[str, torch.Tensor] = {}
    storages = set()
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        out[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return out


def _index(shards: list[dict[str, torch.Tensor]], files: list[str]) -> dict[str, Any]:
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
