"""Safetensors files whose every byte is vouched for: the manifest keeps their length and checksums."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save

from modernbert_fast import untrusted
from modernbert_fast.durable import write_file

_PREFIX = 8  # bytes that hold the length of the header


@dataclass(frozen=True)
class CheckedFile:
    """What the manifest says of one file.

    Attributes:
        name: within the index's folder.
        size: bytes.
        header: crc32 of the header, its length included; it tells what the tensors are.
        tensors: name and crc32 of the bytes of each tensor.
    """

    name: str
    size: int
    header: int
    tensors: tuple[tuple[str, int], ...]

    @classmethod
    def write(cls, folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> CheckedFile:
        """Puts the tensors on disk, whole."""
        data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
        write_file(folder / name, lambda file: file.write(data))
        sums = tuple((key, _crc(_bytes(tensor))) for key, tensor in sorted(tensors.items()))
        return cls(name, len(data), _crc(data[: _header_end(data)]), sums)

    @classmethod
    def from_json(cls, record: Any) -> CheckedFile:
        """Of a manifest's entry; ValueError where it is not one."""
        record = untrusted.mapping("file", record)
        name = untrusted.text("name", record.get("name"))
        if not name.endswith(".safetensors") or "/" in name or name.startswith("."):
            untrusted.refuse("name", "the name of a .safetensors file in the index's folder", name)
        sums = untrusted.mapping("tensors", record.get("tensors"))
        return cls(
            name,
            untrusted.integer("size", record.get("size"), 0, 2**62),
            _sum("header", record.get("header")),
            tuple(
                (untrusted.text("tensor", key), untrusted.integer(key, crc, 0, 2**32 - 1)) for key, crc in sums.items()
            ),
        )

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "size": self.size, "header": self.header, "tensors": dict(self.tensors)}

    def open(self, folder: Path) -> dict[str, torch.Tensor]:
        """The tensors, mapped into memory and not read yet.

        Raises:
            FileNotFoundError: it is not there; a newer manifest may no longer name it.
            ValueError: length, header or names differ from the manifest's.
        """
        path = folder / self.name
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if size != self.size:
                raise ValueError(f"{path}: {size} bytes, the manifest says {self.size}")
            file.seek(0)
            start = file.read(_PREFIX)
            header = start + file.read(max(min(_header_end(start), size) - _PREFIX, 0))
        if _crc(header) != self.header:
            raise ValueError(f"{path}: the header is damaged")
        try:
            with safetensors.safe_open(str(path), "pt") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, RuntimeError) as error:  # torch, which maps the file, says RuntimeError
            if not path.exists():  # a writer merged it away since its header was read
                raise FileNotFoundError(f"{path}: no such file") from error
            raise ValueError(f"{path}: {error}") from error
        if tensors.keys() != dict(self.tensors).keys():
            raise ValueError(f"{path}: holds {sorted(tensors)}, the manifest says {sorted(dict(self.tensors))}")
        return tensors

    def damage(self, folder: Path) -> list[str]:
        """Reads every byte; what is wrong, a sentence each."""
        try:
            tensors = self.open(folder)
        except (OSError, ValueError) as error:
            return [str(error)]
        return [
            f"{folder / self.name}: the bytes of {key} are damaged"
            for key, crc in self.tensors
            if _crc(_bytes(tensors[key])) != crc
        ]


def pack_strings(strings: list[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    """Byte strings end to end: bytes (n,) uint8 and bounds (N + 1,) int64."""
    bounds = torch.tensor([0, *map(len, strings)]).cumsum(0)
    return torch.frombuffer(bytearray(b"".join(strings)) or bytearray(1), dtype=torch.uint8)[: bounds[-1]], bounds


def unpack_strings(data: torch.Tensor, bounds: torch.Tensor) -> list[bytes]:
    """The opposite; bounds have been checked."""
    whole, marks = data.numpy().tobytes(), bounds.tolist()
    return [whole[a:b] for a, b in zip(marks, marks[1:], strict=False)]


def manifest_crc(record: dict[str, Any]) -> int:
    """crc32 of a manifest without its own crc32, in one canonical form."""
    kept = {key: value for key, value in record.items() if key != "crc32"}
    return _crc(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode())


def _sum(key: str, value: object) -> int:
    return untrusted.integer(key, value, 0, 2**32 - 1)


def _header_end(data: bytes) -> int:
    return _PREFIX + int.from_bytes(data[:_PREFIX], "little")


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data if tensor.numel() else b""


def _crc(data: Any) -> int:
    return zlib.crc32(data)
