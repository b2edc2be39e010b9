"""A run that is killed and resumed gives the bits of one that nobody disturbed."""

import os
import random
import shutil
import signal

import pretraining_runs as runs
import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from modernbert_fast.training import checkpoints, pretraining

pytestmark = pytest.mark.usefixtures("one_thread")

DROPOUT = {"embedding_dropout": 0.1, "mlp_dropout": 0.1}  # so that the random state matters


@pytest.fixture(scope="module")
def stores(tmp_path_factory, manual):
    return runs.make_stores(tmp_path_factory.mktemp("stores"), manual)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, stores, one_thread):
    folder = tmp_path_factory.mktemp("undisturbed")
    train(stores, folder)
    return folder


def train(stores, folder, resume=None):
    trainer = runs.make_trainer(stores, folder, ways=2, **DROPOUT)
    trainer.train(resume)
    return trainer


def train_and_die_in_a_step(stores, folder, victim):
    """SIGKILL after the forward and backward of micro-batch `victim`, most often in the middle of a step."""
    trainer = runs.make_trainer(stores, folder, ways=2, **DROPOUT)
    step, taken = trainer.training_step, []

    def dying(*args, **kwargs):
        loss = step(*args, **kwargs)
        taken.append(loss)
        if len(taken) == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    trainer.training_step = dying
    trainer.train()


def train_and_die_in_a_checkpoint(stores, folder, step):
    """SIGKILL when weights are written and half of the optimizer is."""
    trainer = runs.make_trainer(stores, folder, ways=2, **DROPOUT)
    save = checkpoints.save_file

    def dying(tensors, path):
        save(tensors, path)
        if trainer.state.global_step == step:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_file = dying
    trainer.train()


@pytest.mark.parametrize("seed", range(2))
def test_killed_in_a_random_step(stores, undisturbed, tmp_path, seed):
    victim = random.Random(seed).randrange(13, 32)  # of 32, after the first checkpoint at 12
    runs.in_processes(train_and_die_in_a_step, stores, tmp_path, victim, killed=True)
    assert len(runs.records(tmp_path)) < len(runs.records(undisturbed))
    train(stores, tmp_path, get_last_checkpoint(tmp_path))
    assert runs.records(tmp_path) == runs.records(undisturbed)
    assert same_files(tmp_path, undisturbed)


def test_killed_while_a_checkpoint_is_written(stores, undisturbed, tmp_path):
    runs.in_processes(train_and_die_in_a_checkpoint, stores, tmp_path, 6, killed=True)
    assert (tmp_path / checkpoints.STAGING / "checkpoint-6" / "model.safetensors").is_file()
    last = get_last_checkpoint(tmp_path)
    assert last == str(tmp_path / "checkpoint-3")
    train(stores, tmp_path, last)
    assert not (tmp_path / checkpoints.STAGING).exists()
    assert runs.records(tmp_path) == runs.records(undisturbed)
    assert same_files(tmp_path, undisturbed)


def same_files(folder, other):
    """Whether the last checkpoints agree in weights, moments and the loader's place, to the byte."""
    names = ("model.safetensors", "optimizer.safetensors", "data.npz", "random-0.safetensors", "scheduler.json")
    return all(
        (folder / "checkpoint-8" / name).read_bytes() == (other / "checkpoint-8" / name).read_bytes() for name in names
    )


@pytest.mark.parametrize("lost", ["random-0.safetensors", "data.npz"])
def test_random_state_and_data_matter(stores, undisturbed, tmp_path, lost):
    """What the tests above would see if a checkpoint had those of another: that they can fail."""
    shutil.copytree(undisturbed / "checkpoint-6", tmp_path / "checkpoint-6")
    shutil.copyfile(undisturbed / "checkpoint-8" / lost, tmp_path / "checkpoint-6" / lost)
    train(stores, tmp_path, str(tmp_path / "checkpoint-6"))
    assert runs.records(tmp_path) != runs.records(undisturbed)


def test_no_pickle_is_written(undisturbed):
    suffixes = {path.suffix for path in undisturbed.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".npz", ".png", ".safetensors"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", None),
        ("optimizer.safetensors", None),
        ("optimizer.json", None),
        ("optimizer.json", b'{":7:lr": 0.1}'),
        ("data.npz", None),
        ("data.npz", b""),
        ("data.npz", b"not an archive"),
        ("random-0.safetensors", None),
        ("scheduler.json", None),
        ("scheduler.json", b"[]"),
        ("scheduler.json", b"{}"),
        ("trainer_state.json", None),
        ("trainer_state.json", b"[]"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(stores, undisturbed, tmp_path, name, content):
    folder = tmp_path / "checkpoint-6"
    shutil.copytree(undisturbed / "checkpoint-6", folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:50] if content is None else content)
    with pytest.raises(ValueError, match=f"{folder / name}: "):
        train(stores, tmp_path, str(folder))


def test_pickled_weights_are_not_read(stores, undisturbed, tmp_path):
    folder = tmp_path / "checkpoint-6"
    shutil.copytree(undisturbed / "checkpoint-6", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: pickled"):
        train(stores, tmp_path, str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-6: .* no model\.safetensors"):
        train(stores, tmp_path, str(folder))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        pretraining.build_model(runs.make_config(stores), runs.PHASE, pretraining.Objective(), folder, 0)
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="checkpoint-6: damaged"):
        pretraining.build_model(runs.make_config(stores), runs.PHASE, pretraining.Objective(), folder, 0)


def test_a_new_phase_takes_the_moments_and_its_own_rates(stores, undisturbed, tmp_path):
    trainer = runs.make_trainer(stores, tmp_path, ways=2, moments=undisturbed / "checkpoint-8", **DROPOUT)
    trainer.args.learning_rate = 1e-3
    trainer._prepare_for_training(8, trainer.loader, None)
    groups = trainer.optimizer.param_groups
    assert groups[0]["weight_decay"] == 1e-5 and groups[1]["weight_decay"] == 0 and groups[0]["max_lr"] == 1e-3
    assert groups[0]["lr"] == 0 and int(groups[0]["step"]) == 8
    table = trainer.model.model.embeddings.tok_embeddings.weight
    assert bool(trainer.optimizer.state[table]["exp_avg"].any())
    assert isinstance(groups[0]["step"], torch.Tensor)
