"""Random histories of an index, what must be in it after each step, and programs that hurt it: kills, readers.

Also commands: `python tests/retrieval/index_histories.py kills 1000 [dtype]`, `... readers 60 [dtype]` (seconds).
"""

import itertools
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from modernbert_fast import durable
from modernbert_fast.retrieval import Index, IndexWriter

DIM = 4
KILLED = 9
# How far a number of -9 to 9 may be from what is stored of it: half a step of int8; a third of the largest where 16
# levels serve for all that a few vectors leave of their mean.
LOSS = {"float16": 0, "int8": 9 / 127 / 2 + 1e-6, "residual4": 3}


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


def content(index):
    """All that an index holds, as a state of a history; numbers as they were stored."""
    found = {}
    for segment in index.segments:
        vectors = segment.decoded(torch.ones(segment.entry.documents, dtype=torch.bool))
        for row in segment.living():
            assert segment.id(row) == segment.ids[row]
            assert segment.ids[row] not in found
            own = vectors[segment.bounds[row] : segment.bounds[row + 1]].tolist()
            found[segment.ids[row]] = (own, segment.attributes[row])
    return found


def assert_near(found, state, dtype):
    """Documents are those of the state, and their numbers no further away than rounding takes them."""
    assert found.keys() == state.keys()
    for name, (vectors, facts) in state.items():
        own, own_facts = found[name]
        assert own_facts == facts and len(own) == len(vectors)
        for a, b in zip(own, vectors, strict=True):
            assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= LOSS[dtype], (name, a, b)


def stored(folder, steps, states, dtype):
    """What an index holds after each step, which is near the states; the numbers of a document never change."""
    held = [{}]
    with IndexWriter(folder, DIM, dtype) as writer:
        for step, before, state in zip(steps, states, states[1:], strict=False):
            take(writer, *step)
            held.append(content(Index(folder)))
            assert_near(held[-1], state, dtype)
            for name in before.keys() & state.keys():
                assert before[name] is not state[name] or held[-1][name] == held[-2][name], name
    return held


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


def run(folder, steps, budget, acknowledge, dtype):
    """In a process of its own: the history, until the budget of bytes is spent."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            die_after(budget)
            with IndexWriter(folder, DIM, dtype) as writer:
                os.write(acknowledge, b".")
                for step in steps:
                    take(writer, *step)
                    os.write(acknowledge, b".")
            os.write(acknowledge, str(budget - _Doomed.left).encode())
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_once(folder, seed, dtype="float16"):
    """A history cut short at a random byte: what was acknowledged is there, and the index works on."""
    steps, states = history(seed)
    held = states if dtype == "float16" else stored(folder / "held", steps, states, dtype)
    total = _written(folder / "whole", steps, 10**9, dtype)[1]
    budget = random.Random(seed).randrange(int(total))
    torn = folder / "torn"
    acknowledged, _ = _written(torn, steps, budget, dtype)
    if acknowledged < 0:  # the index itself was never acknowledged: the next writer makes it
        with IndexWriter(torn, DIM, dtype):
            pass
        acknowledged = 0
    found = content(Index(torn))
    assert found in (held[acknowledged], held[min(acknowledged + 1, len(steps))]), (seed, budget)
    assert Index(torn).verify() == []
    with IndexWriter(torn, DIM) as writer:
        writer.add(["after"], torch.ones(1, DIM))
        needed = {file.name for file in writer.manifest.files()} | {"lock", "manifest.json"}
    after = content(Index(torn))
    assert_near({"after": after.pop("after")}, {"after": ([[1.0] * DIM], {})}, dtype)
    assert after == found
    assert {path.name for path in torn.iterdir()} == needed


def _written(folder, steps, budget, dtype):
    """Steps acknowledged (-1: not even the opening) and, for a whole run, the bytes it wrote."""
    reading, writing = os.pipe()
    code = run(folder, steps, budget, writing, dtype)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    assert code in (0, KILLED), code
    dots = said.count(".")
    return dots - 1, said[dots:] or None


def endless(seed=0):
    """Steps without end, each of them one new state, and the documents after it, oldest first: (step, state)."""
    draw, state = random.Random(seed), {}
    for number in itertools.count():
        if number % 16 == 15:
            yield ("merge", None), state
            continue
        if number % 4 == 3 and len(state) > 50:
            gone = draw.sample(sorted(state), 10)
            state = {name: document for name, document in state.items() if name not in gone}
            yield ("delete", gone), state
            continue
        names = [f"{number}-{i}" for i in range(4)] + draw.sample(sorted(state), min(len(state), draw.randint(0, 2)))
        lengths = [draw.randint(0, 5) for _ in names]
        added = {
            name: ([[float(draw.randint(-9, 9)) for _ in range(DIM)] for _ in range(length)], {"kind": number % 3})
            for name, length in zip(names, lengths, strict=True)
        }
        state = {name: document for name, document in state.items() if name not in added} | added
        yield ("replace", added), state


def answer(state, query, k, where):
    """What a search must give, to the bit, since all numbers are small integers: (id, score, attributes)."""
    found = [
        (name, float((query @ torch.tensor(vectors).T).amax(1).sum()), facts)
        for name, (vectors, facts) in state.items()
        if vectors and (where is None or facts["kind"] == where["kind"])
    ]
    return sorted(found, key=lambda hit: -hit[1])[:k]  # stable: equals stay in the order they were added


def assert_answer(hits, state, query, k, where, exact):
    """What a search found is what the state must give: to the bit, or else but for rounding and near ties."""
    found, expected = [(hit.id, hit.score, hit.attributes) for hit in hits], answer(state, query, 2**31, where)
    if exact:
        assert found == expected[:k]
        return
    assert len(found) == len(expected[:k])
    for (name, score, facts), (_, best, _) in zip(found, expected, strict=False):
        assert abs(score - best) < 1e-3
        assert any(name == own and facts == its and abs(score - at) < 1e-3 for own, at, its in expected)


def read_on(folder, seed, finished, answers, dtype):
    """A reader: every answer is that of a state that was committed, and states never go back."""
    torch.set_num_threads(1)
    draw, history, index = random.Random(seed), enumerate(endless(), 1), Index(folder)
    at, state, count, states, last = 0, {}, 0, set(), False
    while not last:
        last = finished.is_set()
        index = Index(folder) if seed % 2 else index
        index.refresh()
        while at < index.manifest.generation:
            at, (_, state) = next(history)
        assert at == index.manifest.generation
        held = state
        if dtype != "float16":
            held = content(index)
            assert_near(held, state, dtype)
        bounds = torch.tensor([0, 1, 1 + draw.randint(1, 3)], dtype=torch.int32)
        queries = torch.tensor([[float(draw.randint(-3, 3)) for _ in range(DIM)] for _ in range(bounds[-1])])
        k, where = draw.choice([1, 5, 1000]), draw.choice([None, {"kind": draw.randrange(3)}])
        for rows, hits in zip((queries[:1], queries[1:]), index.search(queries, bounds, k, where), strict=True):
            assert_answer(hits, held, rows, k, where, exact=dtype == "float16")
        count += 1
        states.add(at)
    answers.put((count, len(states), at))


def read_and_write(folder, seconds, readers=8, dtype="float16"):
    """One process writes while others read; answers checked, states that each reader saw, states written."""
    context = multiprocessing.get_context("fork")
    answers, finished, until = context.Queue(), context.Event(), time.monotonic() + seconds
    with IndexWriter(folder, DIM, dtype) as writer:
        group = [
            context.Process(target=read_on, args=(folder, seed, finished, answers, dtype)) for seed in range(readers)
        ]
        for process in group:
            process.start()
        for step, state in endless():
            take(writer, *step)
            assert len(writer) == len(state)
            if time.monotonic() > until:
                break
        finished.set()
        for process in group:
            process.join()
        assert [process.exitcode for process in group] == [0] * readers
        counts, seen, last = zip(*(answers.get() for _ in group), strict=True)
        assert set(last) == {writer.manifest.generation}
    return sum(counts), seen, last[0]


def main(what, amount, dtype="float16"):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if what == "readers":
            checked, seen, states = read_and_write(Path(folder), amount, dtype=dtype)
            print(f"{amount} s, 1 writer, {states} states; {len(seen)} readers saw {min(seen)} to {max(seen)} of them")
            print(f"{checked} searches, every answer that of a committed state")
        elif what == "kills":
            for seed in range(amount):
                killed_once(Path(folder, str(seed)), seed, dtype)
                shutil.rmtree(Path(folder, str(seed)))
            print(f"{amount} kills, nothing acknowledged was lost")
        else:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
