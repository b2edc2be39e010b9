"""Random damage to the files of an index, most of it vouched for by a manifest, and a reader that must stand it.

Also a command: `python tests/retrieval/damaged_index.py 1000000`.
"""

import json
import random
import sys
import tempfile
import zlib
from pathlib import Path

import index_histories as histories
import torch

from modernbert_fast.retrieval import Index, IndexWriter, files, manifest

LIES = [
    0,
    -1,
    1,
    3,
    2**31,
    2**70,
    None,
    "x",
    "../x",
    [],
    {},
    [2],
    [0, 8],
    1.5,
    True,
    "float16",
    "int8",
    "residual4",
    "I8",
    "F16",
    "U8",
    "I16",
]


def fuzzed(folder, rounds, seed=0):
    """Random damage to every file of an index: reading it gives an error or an answer, never a crash. Errors met."""
    draw = random.Random(seed)
    good = {dtype: _good(folder / dtype, dtype) for dtype in manifest.DTYPES}
    refused = 0
    for _ in range(rounds):
        dtype = draw.choice(manifest.DTYPES)
        files_of, bad = good[dtype], folder / dtype
        name = draw.choice(sorted(files_of))
        if name == manifest.NAME:
            touched = {name: draw.choice([lying, damaged])(files_of[name], draw)}
        else:
            touched = {name: draw.choice([lying_header, damaged, damaged_tensors])(files_of[name], draw)}
            if draw.random() < 0.7:
                touched[manifest.NAME] = vouching(files_of[manifest.NAME], name, touched[name])
        for name, data in touched.items():
            (bad / name).write_bytes(data)
        try:
            index = Index(bad)
            index.search(torch.ones(1, histories.DIM), k=3)
            index.search(torch.ones(1, histories.DIM), k=3, where={"step": 0})
            if index.verify():
                refused += 1
        except (ValueError, FileNotFoundError):
            refused += 1
        for name in touched:
            (bad / name).write_bytes(files_of[name])
    return refused


def _good(folder, dtype):
    """Makes an index that has all kinds of files; their names and bytes."""
    with IndexWriter(folder, histories.DIM, dtype) as writer:
        for step in histories.history(3)[0]:
            histories.take(writer, *step)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def lying(data, draw):
    """A manifest with a value that is not true, and a checksum that says it is."""
    return sealed(_with_a_lie(json.loads(data), draw))


def lying_header(data, draw):
    """A safetensors file whose header is whole, and wrong about a tensor."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(_with_a_lie(json.loads(data[8:end]), draw)).encode()
    return len(header).to_bytes(8, "little") + header + data[end:]


def damaged_tensors(data, draw):
    """A safetensors file with bits flipped behind its header."""
    data, end = bytearray(data), 8 + int.from_bytes(data[:8], "little")
    for _ in range(draw.randint(1, 3)):
        data[draw.randrange(end, len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _with_a_lie(record, draw):
    holder = record
    while True:
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if isinstance(holder[key], dict | list) and holder[key] and draw.random() < 0.8:
            holder = holder[key]
            continue
        holder[key] = draw.choice(LIES)
        return record


def vouching(data, name, content):
    """A manifest that says of a damaged file that it is as it should be, but for the bytes of its tensors."""
    record = json.loads(data)
    for segment in record["segments"]:
        for file in (segment["file"], segment["deleted"] or {}):
            if file.get("name") == name:
                end = 8 + int.from_bytes(content[:8], "little")
                file["size"], file["header"] = len(content), zlib.crc32(content[: min(end, len(content))])
    return sealed(record)


def sealed(record):
    return json.dumps({**record, "crc32": files.manifest_crc(record)}).encode()


def damaged(data, draw):
    """The bytes with some flipped, cut off, doubled or put in."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        kind, at = draw.choice(["flip", "flip", "cut", "insert", "length"]), draw.randrange(len(data) + 1)
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw.randbytes(draw.randint(1, 9))
        elif kind == "length":
            data[:8] = draw.choice([0, 1, 2**31, 2**63, len(data), len(data) + 1]).to_bytes(8, "little")
    return bytes(data)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        print(f"{sys.argv[1]} damaged files, {fuzzed(Path(place), int(sys.argv[1]))} refused, no crash")
