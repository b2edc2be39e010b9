"""A matrix of embeddings, written shard by shard: a killed run loses at most one shard and doubles none.

    OUTPUT            the finished matrix; appears in one rename
    OUTPUT.json       manifest: what the rows were computed from; stays as their provenance
    OUTPUT.parts/     one .npy a finished shard; gone once OUTPUT is there

Every file is written beside its place, flushed to disk and renamed: what has a name is whole.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from modernbert_fast.commands import CommandError, require
from modernbert_fast.durable import write_file, write_json


class Store:
    """The shards of one output file.

    Args:
        output: where the matrix goes; the suffix tells the format: .npy, .safetensors or .parquet.
        fingerprint: all that the rows depend on; a resumed run must have the same. JSON values only.
    """

    def __init__(self, output: Path, fingerprint: dict[str, Any]):
        if output.suffix not in WRITERS:
            raise CommandError(f"{output}: cannot write {output.suffix or 'without suffix'}; use {', '.join(WRITERS)}")
        if output.suffix == ".parquet":
            require("pyarrow.parquet", "encode")  # now, not after the last text
        if not output.parent.is_dir():
            raise CommandError(f"{output}: there is no folder {output.parent}")
        self.output = output
        self.parts = output.with_name(output.name + ".parts")
        self.manifest = output.with_name(output.name + ".json")
        self.fingerprint = fingerprint

    def open(self, *, resume: bool, overwrite: bool) -> bool:
        """Makes the store ready for shards.

        Returns:
            True if a resumed run turns out to be complete already, with nothing left to do.

        Raises:
            CommandError: something is there and neither flag is given, or the manifest tells of other work.
        """
        present = [path for path in (self.output, self.manifest, self.parts) if path.exists()]
        if overwrite:
            self.output.unlink(missing_ok=True)
            self.manifest.unlink(missing_ok=True)
            self._remove_parts()
        elif present and not resume:
            names = ", ".join(str(path) for path in present)
            raise CommandError(f"already there: {names}; continue with --resume or start anew with --overwrite")
        elif present:
            self._verify()
            if self.output.exists():
                self._remove_parts()
                return True
        if not self.manifest.exists():
            write_json(self.manifest, self.fingerprint)
        self.parts.mkdir(exist_ok=True)
        return False

    def join(self) -> None:
        """Checks that another process has opened the store, for the same work and where this one sees it.

        Raises:
            CommandError: it has not.
        """
        if not self.manifest.exists():
            raise CommandError(f"{self.manifest} is not here: all processes must write to the same folder")
        self._verify()

    def has(self, shard: int) -> bool:
        """Whether a shard is on disk, whole."""
        return self._path(shard).exists()

    def write(self, shard: int, rows: np.ndarray) -> None:
        """Puts a shard on disk; rows (n, C)."""
        write_file(self._path(shard), lambda file: np.save(file, rows, allow_pickle=False))

    def finish(self, shards: int, shape: tuple[int, int], dtype: np.dtype) -> None:
        """Streams the shards into the output file and removes them.

        Raises:
            CommandError: a shard is missing, or they do not add up to `shape[0]` rows.
        """
        write = WRITERS[self.output.suffix]
        # What a kill leaves of the unfinished file goes with the folder of parts.
        write_file(self.output, lambda file: write(file, shape, dtype, self._blocks(shards, shape)), scratch=self.parts)
        self._remove_parts()

    def _blocks(self, shards: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
        rows = 0
        for shard in range(shards):
            try:
                block = np.load(self._path(shard), allow_pickle=False)
            except FileNotFoundError as error:
                raise CommandError(f"{self._path(shard)} is missing; run again with --resume") from error
            rows += len(block)
            yield block
        if rows != shape[0]:
            raise CommandError(
                f"{self.parts}: the shards hold {rows} rows, not {shape[0]}; start anew with --overwrite"
            )

    def _remove_parts(self) -> None:
        if self.parts.exists():
            shutil.rmtree(self.parts)

    def _path(self, shard: int) -> Path:
        return self.parts / f"{shard:08d}.npy"

    def _verify(self) -> None:
        if not self.manifest.exists():
            raise CommandError(f"{self.manifest} is missing, so what is there cannot be trusted; use --overwrite")
        former = json.loads(self.manifest.read_text())
        differing = sorted(key for key in {*former, *self.fingerprint} if former.get(key) != self.fingerprint.get(key))
        if differing:
            changes = "; ".join(f"{key}: was {former.get(key)}, is {self.fingerprint.get(key)}" for key in differing)
            raise CommandError(f"{self.output} was begun with something else ({changes}); use --overwrite")


def _write_npy(file: BinaryIO, shape: tuple[int, int], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    _write_rows(file, blocks)


def _write_safetensors(file: BinaryIO, shape: tuple[int, int], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> None:
    # By hand, as the library takes whole arrays only: header length, JSON header padded to 8 bytes, raw rows.
    size = shape[0] * shape[1] * dtype.itemsize
    entry = {"dtype": f"F{8 * dtype.itemsize}", "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"embeddings": entry}).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    _write_rows(file, blocks)


def _write_parquet(file: BinaryIO, shape: tuple[int, int], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> None:
    arrow, parquet = require("pyarrow", "encode"), require("pyarrow.parquet", "encode")
    column = arrow.list_(arrow.from_numpy_dtype(dtype), shape[1])
    with parquet.ParquetWriter(file, arrow.schema([("embedding", column)])) as writer:
        for block in blocks:
            rows = arrow.FixedSizeListArray.from_arrays(arrow.array(block.reshape(-1)), shape[1])
            writer.write_table(arrow.table({"embedding": rows}))


def _write_rows(file: BinaryIO, blocks: Iterable[np.ndarray]) -> None:
    for block in blocks:
        file.write(np.ascontiguousarray(block).data)


WRITERS: dict[str, Callable[[BinaryIO, tuple[int, int], np.dtype, Iterable[np.ndarray]], None]] = {
    ".npy": _write_npy,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
}
