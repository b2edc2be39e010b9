"""Random histories of an index, what must be in it after each step, and programs that hurt it: kills and fuzz.

Also commands: `python tests/retrieval/index_histories.py kills 1000`, `... fuzz 1000000`.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import torch

from modernbert_fast import durable
from modernbert_fast.retrieval import Index, IndexWriter, files, manifest

DIM = 4
KILLED = 9


def history(seed):
    """(action, arguments) of some steps, and the state after each: {id: (vectors as lists, attributes)}."""
    draw = random.Random(seed)
    state, steps, states = {}, [], [{}]
    for step in range(draw.randint(3, 7)):
        action = draw.choice(["add", "add", "add", "replace", "delete", "merge"])
        state = dict(state)
        if action == "delete":
            gone = draw.sample(sorted(state), draw.randint(0, len(state)))
            steps.append((action, gone))
            for name in gone:
                del state[name]
        elif action == "merge":
            steps.append((action, None))
        else:
            fresh = [f"{step}-{i}" for i in range(draw.randint(1, 6))]
            old = draw.sample(sorted(state), min(2, len(state))) if action == "replace" else []
            added = {}
            for name in fresh + old:
                vectors = [[float(draw.randint(-9, 9)) for _ in range(DIM)] for _ in range(draw.randint(0, 3))]
                added[name] = (vectors, {"step": step} if draw.random() < 0.5 else {})
            steps.append((action, added))
            state.update(added)
        states.append(state)
    return steps, states


def take(writer, action, given):
    """One step of a history."""
    if action == "delete":
        writer.delete(given)
    elif action == "merge":
        writer.merge()
    else:
        flat = [vector for vectors, _ in given.values() for vector in vectors]
        bounds = torch.tensor([0, *(len(vectors) for vectors, _ in given.values())]).cumsum(0).int()
        attributes = [facts for _, facts in given.values()]
        vectors = torch.tensor(flat).reshape(-1, DIM)
        writer.add(list(given), vectors, bounds, attributes, replace=action == "replace")


def content(folder):
    """All that an index holds, as a state of a history."""
    found = {}
    for segment in Index(folder).segments:
        for row in segment.living():
            vectors = segment.vectors[segment.bounds[row] : segment.bounds[row + 1]].float().tolist()
            assert segment.id(row) == segment.ids[row]
            assert segment.ids[row] not in found
            found[segment.ids[row]] = (vectors, segment.attributes[row])
    return found


class _Doomed:
    """A file whose process dies after so many bytes."""

    left = 0

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def write(self, data):
        allowed = data[: max(_Doomed.left, 0)]
        self.file.write(allowed)
        self.file.flush()
        spend(len(data))

    def flush(self):
        self.file.flush()

    def fileno(self):
        return self.file.fileno()


def spend(amount):
    _Doomed.left -= amount
    if _Doomed.left < 0:
        os._exit(KILLED)


def die_after(budget):
    """From here on this process dies within one of its writes, or at a flush to disk, which costs a byte."""
    _Doomed.left = budget
    durable.open = lambda *arguments: _Doomed(open(*arguments))
    flush = os.fsync

    def fsync(handle):
        spend(1)
        flush(handle)

    durable.os.fsync = fsync


def run(folder, steps, budget, acknowledge):
    """In a process of its own: the history, until the budget of bytes is spent."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            die_after(budget)
            with IndexWriter(folder, DIM) as writer:
                os.write(acknowledge, b".")
                for step in steps:
                    take(writer, *step)
                    os.write(acknowledge, b".")
            os.write(acknowledge, str(budget - _Doomed.left).encode())
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_once(folder, seed):
    """A history cut short at a random byte: what was acknowledged is there, and the index works on."""
    steps, states = history(seed)
    total = _written(folder / "whole", steps, 10**9)[1]
    budget = random.Random(seed).randrange(int(total))
    torn = folder / "torn"
    acknowledged, _ = _written(torn, steps, budget)
    if acknowledged < 0:  # the index itself was never acknowledged: the next writer makes it
        with IndexWriter(torn, DIM):
            pass
        acknowledged = 0
    found = content(torn)
    assert found in (states[acknowledged], states[min(acknowledged + 1, len(steps))]), (seed, budget)
    assert Index(torn).verify() == []
    with IndexWriter(torn, DIM) as writer:
        writer.add(["after"], torch.ones(1, DIM))
        needed = {file.name for file in writer.manifest.files()} | {"lock", "manifest.json"}
    assert content(torn) == {**found, "after": ([[1.0] * DIM], {})}
    assert {path.name for path in torn.iterdir()} == needed


def _written(folder, steps, budget):
    """Steps acknowledged (-1: not even the opening) and, for a whole run, the bytes it wrote."""
    reading, writing = os.pipe()
    code = run(folder, steps, budget, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    assert code in (0, KILLED), code
    dots = said.count(".")
    return dots - 1, said[dots:] or None


def fuzzed(folder, rounds, seed=0):
    """Random damage to every file of an index: reading it gives an error or an answer, never a crash. Errors met."""
    draw = random.Random(seed)
    steps, _ = history(3)
    with IndexWriter(folder / "good", DIM) as writer:
        for step in steps:
            take(writer, *step)
    good = {path.name: path.read_bytes() for path in (folder / "good").iterdir() if path.name != "lock"}
    bad = folder / "bad"
    shutil.copytree(folder / "good", bad)
    refused = 0
    for _ in range(rounds):
        name = draw.choice(sorted(good))
        if name == manifest.NAME and draw.random() < 0.5:
            touched = {name: lying(good[name], draw)}
        else:
            touched = {name: damaged(good[name], draw)}
            if name != manifest.NAME and draw.random() < 0.5:
                touched[manifest.NAME] = vouching(good[manifest.NAME], name, touched[name])
        for name, data in touched.items():
            (bad / name).write_bytes(data)
        try:
            index = Index(bad)
            index.search(torch.ones(1, DIM), k=3)
            index.search(torch.ones(1, DIM), k=3, where={"step": 0})
            if index.verify():
                refused += 1
        except (ValueError, FileNotFoundError):
            refused += 1
        for name in touched:
            (bad / name).write_bytes(good[name])
    return refused


def lying(data, draw):
    """A manifest with a value that is not true, and a checksum that says it is."""
    record = json.loads(data)
    holder = record
    while True:
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if isinstance(holder[key], dict | list) and holder[key] and draw.random() < 0.8:
            holder = holder[key]
            continue
        holder[key] = draw.choice([0, -1, 1, 3, 2**31, 2**70, None, "x", "../x", [], {}, 1.5, True, "float16", "int8"])
        return sealed(record)


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


def main(what, rounds):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if what == "fuzz":
            print(f"{rounds} damaged files, {fuzzed(Path(folder), rounds)} refused, no crash")
        else:
            for seed in range(rounds):
                killed_once(Path(folder, str(seed)), seed)
                shutil.rmtree(Path(folder, str(seed)))
            print(f"{rounds} kills, nothing acknowledged was lost")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
