"""encode on a Ray cluster of this machine: the bits of one process, also when an actor is killed half-way."""

import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from encode_runs import encode, finished, short_texts, write_texts

from modernbert_fast.commands import CommandError
from modernbert_fast.commands import cluster as cluster_command
from modernbert_fast.commands.store import Store

ray = pytest.importorskip("ray", reason="needs Ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("keep_threads")]

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "ray_data_embed.py"
SHARD = 8


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def descendants(pid):
    """All processes that came from a process."""
    tasks = Path(f"/proc/{pid}/task")
    children = {int(child) for task in tasks.glob("*/children") for child in task.read_text().split()}
    return children.union(*map(descendants, children))


def actors():
    """Processes of this cluster that hold an Embedder: Ray writes the class into a process's title."""
    found = set()
    for pid in descendants(os.getpid()):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if title.startswith(b"ray::") and b"_Actor" in title:
            found.add(pid)
    return found


def kill_one(parts, shards, story):
    """Kills one of the actors when `shards` shards are on disk."""
    while len(finished(parts)) < shards:
        time.sleep(0.002)
    story["actors"] = actors()
    os.kill(min(story["actors"]), signal.SIGKILL)
    story["done"] = len(finished(parts))


def test_a_killed_actor_leaves_no_trace(tiny_checkpoint, tmp_path):
    texts = short_texts(4000)
    source, alone, shared = write_texts(tmp_path / "texts.txt", texts), tmp_path / "alone.npy", tmp_path / "shared.npy"
    options = ["--model", tiny_checkpoint, "--shard", SHARD, "--pooling", "mean"]
    assert encode(source, alone, *options) == 0
    story = {}
    killer = threading.Thread(target=kill_one, args=(Path(f"{shared}.parts"), 4000 // SHARD // 3, story), daemon=True)
    killer.start()
    assert encode(source, shared, *options, "--ray", "local", "--actors", 2) == 0
    killer.join(5)
    assert len(story["actors"]) == 2 and min(story["actors"]) not in descendants(os.getpid())
    assert story["done"] < 4000 // SHARD * 3 // 4, "the run was nearly over when the actor was killed"
    assert shared.read_bytes() == alone.read_bytes()


def test_a_stopped_run_is_finished_on_the_cluster(tiny_checkpoint, tmp_path, capsys):
    source = write_texts(tmp_path / "texts.jsonl", short_texts(400))
    options = ["--model", tiny_checkpoint, "--shard", SHARD]
    assert encode(source, tmp_path / "whole.npy", *options) == 0
    monkey = pytest.MonkeyPatch()
    written = []

    def stopped(store, shard, rows, write=Store.write):
        if len(written) == 20:
            raise CommandError("stopped")
        written.append(shard)
        write(store, shard, rows)

    with monkey.context() as patch:
        patch.setattr(Store, "write", stopped)
        assert encode(source, tmp_path / "out.npy", *options) == 2
    assert len(finished(tmp_path / "out.npy.parts")) == 20
    capsys.readouterr()
    assert encode(source, tmp_path / "out.npy", *options, "--resume", "--ray", "local") == 0
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert f"{400 - 20 * SHARD}/{400 - 20 * SHARD} texts" in capsys.readouterr().err


def test_an_actor_that_would_make_other_vectors_refuses(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    source = write_texts(tmp_path / "texts.txt", ["a", "b"])
    monkeypatch.setattr(cluster_command, "survey", lambda args: ({"backend": "another"}, 64))
    assert encode(source, tmp_path / "out.npy", "--model", tiny_checkpoint, "--ray", "local") == 2
    assert "an actor would make other vectors" in (error := capsys.readouterr().err)
    assert "backend" in error
    assert not (tmp_path / "out.npy").exists()


def test_the_machine_that_starts_it_needs_not_compute_as_the_actors(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    source = write_texts(tmp_path / "texts.txt", ["a", "b"])
    options = ["--model", tiny_checkpoint]
    with monkeypatch.context() as patch:
        patch.setenv("MODERNBERT_FAST_BACKEND", "reference")  # here, not in the actors: as on another device
        assert encode(source, tmp_path / "out.npy", *options, "--ray", "local") == 0
    assert encode(source, tmp_path / "out.npy", *options, "--resume") == 0, "what the actors are is written down"
    assert "complete already" in capsys.readouterr().out


def test_an_address_where_nobody_listens():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        address = "{}:{}".format(*closed.getsockname())
        with pytest.raises(CommandError, match=f"--ray {address}: .*refused"):
            cluster_command._reach(address)
    for other in ("auto", "local", "ray://127.0.0.1:1"):
        cluster_command._reach(other)


def test_the_example(one_thread):
    spec = importlib.util.spec_from_file_location("ray_data_embed", EXAMPLE)
    sys.modules["ray_data_embed"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ray.cloudpickle.register_pickle_by_value(module)
    texts = short_texts(200)
    rows = module.main(texts)
    assert [row["text"] for row in rows] == texts
    own = module.Embedder(module.FOLDER)({"text": texts[:50]})["vector"]
    assert np.array_equal(np.stack([row["vector"] for row in rows[:50]]), own)
