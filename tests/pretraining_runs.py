"""Small pre-training runs that several test files start: a store of Python's manual, a trainer, forked processes."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing
import transformers

from modernbert_fast.training import history, presets, pretraining
from modernbert_fast.training.store import build_store
from modernbert_fast.training.token_store import TokenStore
from modernbert_fast.training.tokenizer import save_tokenizer, train_tokenizer

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "local_attention": 16,
}
PHASE = presets.Phase(
    name="pretraining",
    tokens=8 * 512,
    max_length=64,
    learning_rate=1e-3,
    batch=8,
    micro_batch=2,
    warmup_tokens=1024,
    decay_tokens=1024,
)  # 8 steps of 4 micro-batches
QUICK = pretraining.Options(cpu=True, log_steps=1, save_steps=3, reports=(), held_out_tokens=384)
TIMINGS = ("tokens_per_second", "share_of_limit", "train_runtime", "train_steps_per_second")


def make_stores(folder, texts):
    """A tokenizer and two stores of these texts, under a folder."""
    save_tokenizer(train_tokenizer(texts, 512), folder / "tokenizer")
    documents = (("train", texts[2:]), ("held-out", texts[:2]))
    for name, chosen in documents:
        build_store(chosen, folder / "tokenizer", folder / name)
    return folder


def open_stores(folder):
    return TokenStore(folder / "train"), TokenStore(folder / "held-out")


def make_config(folder, **changes):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    return pretraining.new_config({**SIZES, **changes}, tokenizer)


def make_trainer(stores, folder, *, phase=PHASE, ways=0, options=QUICK, moments=None, **changes):
    """The trainer of a phase of a fresh model."""
    objective = pretraining.Objective(ways)
    model = pretraining.build_model(make_config(stores, **changes), phase, objective, None, 0)
    return pretraining.trainer_of(phase, model, Path(folder), open_stores(stores), objective, options, moments=moments)


def records(folder):
    """history.jsonl without what depends on the clock, but for the last record, which sums up one session."""
    lines = (Path(folder) / history.RECORDS).read_text().splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key not in TIMINGS} for line in lines]
    return [row for row in rows if "train_loss" not in row]


def losses(folder, key="loss"):
    return torch.tensor([row[key] for row in records(folder) if key in row], dtype=torch.float64)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_processes(function, *args, world=1, killed=False, timeout=100.0):
    """Forks `world` ranks that call function(*args); where one is killed the others are too.

    `killed` says whether a rank is expected to end by SIGKILL; anything else that is not a clean end fails.
    """
    arguments = (world, free_port(), function, args)
    context = multiprocessing.start_processes(_rank, arguments, world, join=False, start_method="fork")
    deadline = time.monotonic() + timeout
    processes = context.processes
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            break
        time.sleep(0.02)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    if killed:
        assert -signal.SIGKILL in codes, codes
    else:
        assert codes == [0] * world, codes


def _rank(rank, world, port, function, args):
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    function(*args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
