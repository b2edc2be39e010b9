"""Averaging, longer texts, weights from a smaller model, and the command that carries a recipe out."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import hf_models as hf
import numpy as np
import pretraining_runs as runs
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import modernbert_fast as mf
from modernbert_fast import cli
from modernbert_fast.commands import pretrain
from modernbert_fast.config import EncoderConfig
from modernbert_fast.training import averaging, initialise, presets, pretraining
from modernbert_fast.training.averaging import average
from modernbert_fast.training.extension import extended_config
from modernbert_fast.training.modeling import ModernBertForPreTraining
from modernbert_fast.training.token_store import TokenStore

pytestmark = pytest.mark.usefixtures("one_thread")


# Averaging


def saved(folder, seed, dtype=torch.float32, **options):
    model = hf.build(hf.MLM, hf.tiny_config(), seed).to(dtype)
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_of_checkpoints_of_which_one_is_sharded(tmp_path, dtype):
    models = [saved(tmp_path / f"{seed}", seed, dtype) for seed in range(2)]
    models.append(saved(tmp_path / "2", 2, dtype, max_shard_size="10KB"))
    assert len(list((tmp_path / "2").glob("*.safetensors"))) > 1
    average([tmp_path / f"{seed}" for seed in range(3)], tmp_path / "mean")
    mean = transformers.ModernBertForMaskedLM.from_pretrained(tmp_path / "mean", dtype=dtype)
    for name, tensor in mean.state_dict().items():
        expected = torch.stack([model.state_dict()[name].double() for model in models]).mean(0)
        assert torch.equal(tensor, expected.to(dtype)), name


def test_checkpoints_that_do_not_fit_together(tmp_path):
    saved(tmp_path / "a", 0)
    saved(tmp_path / "b", 1)
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    name = "model.layers.0.mlp.Wi.weight"
    for change, word in (
        ({**tensors, name: tensors[name][:-1].contiguous()}, name),
        ({key: value for key, value in tensors.items() if key != name}, name),
        ({**tensors, name: tensors[name].half()}, "F16"),
    ):
        save_file(change, tmp_path / "b" / "model.safetensors")
        with pytest.raises(ValueError, match=word):
            average([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    with pytest.raises(ValueError, match="at least one"):
        average([], tmp_path / "mean")
    with pytest.raises(FileExistsError):
        average([tmp_path / "a"], tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        average([tmp_path / "a", tmp_path / "nowhere"], tmp_path / "mean")


def test_an_average_is_whole_or_not_there(tmp_path, monkeypatch):
    saved(tmp_path / "a", 0)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(averaging, "save_file", full_disk)
        average([tmp_path / "a"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    average([tmp_path / "a"], tmp_path / "mean")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "mean"}
    assert (tmp_path / "mean" / "model.safetensors").is_file()


def full_disk(tensors, path, metadata):
    path.write_bytes(b"half")
    raise OSError("the disk is full")


# Longer texts


def test_extension_turns_the_global_layers_alone(tmp_path):
    old = hf.tiny_config()
    old.rope_parameters["full_attention"]["rope_theta"] = 10_000.0
    model = hf.build(hf.MLM, old)
    model.save_pretrained(tmp_path)
    new = extended_config(transformers.ModernBertConfig.from_pretrained(tmp_path), 512, 160_000.0)
    longer = transformers.ModernBertForMaskedLM.from_pretrained(tmp_path, config=new).eval()
    assert longer.config.max_position_embeddings == 512 and old.max_position_embeddings == 64
    kinds = ("full_attention", "sliding_attention")
    before, after = ([m.config.rope_parameters[kind]["rope_theta"] for kind in kinds] for m in (model, longer))
    assert before == [10_000, 10_000] and after == [160_000, 10_000]
    for kind, same in zip(kinds, (False, True), strict=True):
        buffers = [getattr(m.model.rotary_emb, f"{kind}_inv_freq") for m in (model, longer)]
        assert torch.equal(*buffers) == same
    for name, tensor in model.state_dict().items():
        assert torch.equal(longer.state_dict()[name], tensor), name
    ids = torch.randint(6, hf.VOCAB, (1, 300))
    assert hf.relative(mf.accelerate(longer)(ids).logits, longer(ids).logits) <= 1e-4
    with pytest.raises(ValueError, match="max_position_embeddings"):
        extended_config(old, 0, 160_000.0)


# From a smaller model


def sized(width, layers, kind=transformers.ModernBertForMaskedLM, **changes):
    config = hf.tiny_config(
        hidden_size=16 * width,
        intermediate_size=24 * width,
        num_attention_heads=2 * width,
        num_hidden_layers=layers,
        **changes,
    )
    config.sentence_order_labels = 3
    torch.manual_seed(width)
    return kind(config).eval()


@pytest.mark.parametrize("changes", [{}, {"norm_bias": True, "mlp_bias": True, "attention_bias": True}])
@pytest.mark.parametrize("tied", [True, False])
def test_doubling_every_width_leaves_the_outputs(changes, tied):
    small, large = (sized(w, 4, ModernBertForPreTraining, tie_word_embeddings=tied, **changes) for w in (2, 4))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    configs = EncoderConfig.from_hf(small.config), EncoderConfig.from_hf(large.config)
    state = initialise.from_smaller(small.state_dict(), configs[0], large.state_dict(), configs[1])
    large.load_state_dict(state)
    ids = torch.randint(6, hf.VOCAB, (2, 40))
    for key in ("prediction_logits", "sop_logits"):
        assert hf.relative(large(ids)[key], small(ids)[key]) <= 1e-4, key


def test_the_small_matrix_lies_in_the_middle_and_its_rims_wrap_around():
    state = {"model.embeddings.tok_embeddings.weight": torch.arange(97.0)[:, None] + torch.arange(32) / 100}
    small, large = (EncoderConfig.from_hf(sized(w, 2).config) for w in (2, 3))
    fresh = {"model.embeddings.tok_embeddings.weight": torch.zeros(97, 48)}
    (tiled,) = initialise.from_smaller(state, small, fresh, large).values()
    columns = [(tiled[5] * 100 - 500).round().int().tolist()]
    assert columns == [[*range(24, 32), *range(32), *range(8)]]


def test_layers_keep_their_kind_and_order():
    small, large = (EncoderConfig.from_hf(sized(2, layers).config) for layers in (7, 12))
    mapped = initialise._layer_map(small, large)
    assert [small.layer_types[i] for i in mapped] == list(large.layer_types)
    assert mapped == [0, 1, 1, 0, 2, 2, 3, 4, 4, 3 + 3, 5, 5]
    for kind in set(large.layer_types):
        order = [i for i, k in zip(mapped, large.layer_types, strict=True) if k == kind]
        assert order == sorted(order) and set(order) == {i for i, k in enumerate(small.layer_types) if k == kind}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_size": 16, "num_attention_heads": 2}, "hidden_size"),
        ({"num_hidden_layers": 2}, "num_hidden_layers"),
        ({"vocab_size": 98}, "vocab_size"),
        ({"num_attention_heads": 8}, "head_dim"),
    ],
)
def test_models_that_cannot_be_started_from(changes, key):
    small = sized(2, 4)
    values = {**small.config.to_dict(), "layer_types": None, **changes}
    large = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**values))
    configs = EncoderConfig.from_hf(small.config), EncoderConfig.from_hf(large.config)
    with pytest.raises(ValueError, match=key):
        initialise.from_smaller(small.state_dict(), configs[0], large.state_dict(), configs[1])


# Phases


def test_decay_counts_the_batches_of_the_end(tmp_path, manual):
    stores = runs.make_stores(tmp_path / "stores", manual)
    growing = dataclasses.replace(runs.PHASE, first_batch=2, batch_warmup_tokens=1536, micro_batch=8)
    trainer = runs.make_trainer(stores, tmp_path, phase=growing)
    assert [growing.batches.at(step) for step in range(7)] == [128, 128, 256, 256, 384, 384, 512]
    assert trainer.args.max_steps == 6 + 5
    assert trainer.args.lr_scheduler_kwargs["num_decay_steps"] == 2  # the first 1,024 tokens are 5 steps


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"name": "../up"}, "names a folder"),
        ({"name": ""}, "names a folder"),
        ({"warmup_tokens": -1}, "warmup_tokens"),
        ({"decay_tokens": -1}, "decay_tokens"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_phases_that_make_no_sense(changes, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(runs.PHASE, **changes)


def test_steps_between_records_divide_those_between_checkpoints():
    for steps, save, log in ((1000, 7, 1), (2000, 15, 5), (2000, 20, 10), (8, 3, 1), (2000, None, 10)):
        arguments = pretraining.Options(save_steps=save).arguments(steps)
        assert arguments["logging_steps"] == log and arguments["save_steps"] % log == 0


# The command


@pytest.fixture(scope="module")
def texts(tmp_path_factory, manual):
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(manual[:40]):
        (folder / f"{number:03}.txt").write_text(text)
    return folder


RECIPE = {
    "name": "two phases",
    "model": runs.SIZES,
    "phases": [
        {"name": "short", "tokens": 4096, "max_length": 64, "learning_rate": 1e-3, "batch": 8, "micro_batch": 4},
        {
            "name": "long",
            "tokens": 4096,
            "max_length": 128,
            "learning_rate": 1e-3,
            "batch": 4,
            "micro_batch": 4,
            "decay_tokens": 2048,
            "rope_theta": 160000,
        },
    ],
}


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory, one_thread):
    """A finished run of the recipe above: its folder, and the arguments."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    arguments = ["pretrain", str(folder / "out"), "--data", str(texts), "--recipe", str(folder / "recipe.json")]
    arguments += ["--vocabulary", "512", "--objective", "mlm+order", "--held-out", "0.1", "--average", "2"]
    arguments += ["--device", "cpu", "--save-steps", "4"]
    assert cli.main(arguments) == 0
    return folder / "out", arguments


def test_a_run_ends_with_a_model_that_transformers_loads(run):
    folder, _ = run
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    assert tokenizer.mask_token_id is not None and model.config.vocab_size % 64 == 0
    assert model.config.max_position_embeddings == 128
    assert model.config.rope_parameters["full_attention"]["rope_theta"] == 160_000
    logits = model(**tokenizer("An object's [MASK] is fixed.", return_tensors="pt")).logits
    assert logits.isfinite().all()
    last = [load_file(folder / "2-long" / f"checkpoint-{step}" / "model.safetensors") for step in (4, 8)]
    for name, tensor in load_file(folder / "model" / "model.safetensors").items():
        assert torch.equal(tensor, ((last[0][name].double() + last[1][name].double()) / 2).float()), name


def test_a_run_leaves_its_log_and_its_plot(run):
    folder, _ = run
    for phase, length in (("1-short", 64), ("2-long", 128)):
        rows = runs.records(folder / phase)
        trained = [row for row in rows if "loss" in row]
        assert [row["step"] for row in trained] == list(range(1, 9))
        assert all(row["loss"] == pytest.approx(row["mlm_loss"] + row["order_loss"]) for row in trained)
        assert all(row["step_tokens"] <= 8 * 64 for row in trained)
        scored = [row for row in rows if "eval_loss" in row]
        assert [row["step"] for row in scored] == [4, 8]
        assert scored[-1]["eval_perplexity"] == pytest.approx(np.exp(scored[-1]["eval_mlm_loss"]))
        assert (folder / phase / "history.png").read_bytes()[:4] == b"\x89PNG"
        assert list((folder / phase / "runs").rglob("events.out.tfevents*")), length
        assert "tokens_per_second" in json.loads((folder / phase / "history.jsonl").read_text().splitlines()[0])
    first = [runs.losses(folder / phase, "mlm_loss")[0] for phase in ("1-short", "2-long")]
    # The second phase goes on from the weights of the first; a random start begins near ln(512) again.
    assert first[1] < first[0] - 0.05


def test_a_phase_that_was_stopped_is_resumed(run, tmp_path, capsys):
    folder, arguments = run
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "2-long" / "checkpoint-8")
    shutil.rmtree(copy / "model")
    again = ["pretrain", str(copy), *arguments[2:]]
    assert cli.main(again) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*again, "--resume"]) == 0
    assert runs.records(copy / "2-long") == runs.records(folder / "2-long")
    weights = [(path / "model" / "model.safetensors").read_bytes() for path in (folder, copy)]
    assert weights[0] == weights[1]
    assert cli.main([*again, "--resume", "--seed", "1"]) == 2
    assert "seed differs" in capsys.readouterr().err
    (copy / "plan.json").write_text("[]")
    assert cli.main([*again, "--resume"]) == 2
    assert str(copy / "plan.json") in capsys.readouterr().err


def test_a_larger_model_starts_from_a_smaller(run, texts, tmp_path, capsys):
    folder, _ = run
    arguments = ["pretrain", str(tmp_path / "out"), "--data", str(texts), "--init-from", str(folder / "model")]
    sizes = ["--layers", "4", "--hidden", "128", "--intermediate", "192", "--local-attention", "16"]
    rest = [
        "--tokens",
        "512",
        "--max-length",
        "64",
        "--batch",
        "4",
        "--warmup",
        "0",
        "--decay",
        "0",
        "--no-tensorboard",
    ]
    assert cli.main([*arguments, *sizes, *rest, "--device", "cpu", "--held-out", "0"]) == 0
    small, large = (load_file(path / "model" / "model.safetensors") for path in (folder, tmp_path / "out"))
    name = "model.embeddings.tok_embeddings.weight"
    assert large[name].shape == (512, 128) and large["model.layers.3.mlp.Wi.weight"].shape == (384, 128)
    # Two steps at 8e-4 move an entry by 2e-3 at most, a tenth of the spread of 0.02 that it began with.
    assert hf.relative(large[name][:, 32:96], small[name]) < 0.2


def test_weights_are_trained_on_as_they_are(run, texts, tmp_path):
    folder, _ = run
    arguments = ["pretrain", str(tmp_path / "out"), "--data", str(texts), "--init-from", str(folder / "model")]
    rest = ["--tokens", "512", "--max-length", "256", "--rope-theta", "20000", "--batch", "2", "--no-tensorboard"]
    assert cli.main([*arguments, *rest, "--device", "cpu", "--warmup", "0"]) == 0
    config = transformers.ModernBertConfig.from_pretrained(tmp_path / "out" / "model")
    assert config.hidden_size == 64 and config.max_position_embeddings == 256
    assert config.rope_parameters["full_attention"]["rope_theta"] == 20_000
    firsts = [runs.losses(path, "mlm_loss")[0] for path in (tmp_path / "out" / "1-pretraining", folder / "1-short")]
    assert firsts[0] < firsts[1] - 0.05  # as above


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "/nowhere"], "/nowhere"),
        (["--data", "{texts}", "--hidden", "100"], "--hidden"),
        (["--data", "{texts}", "--preset", "base", "--layers", "3"], "--layers"),
        (["--data", "{texts}", "--preset", "base", "--warmup", "0"], "--warmup"),
        (["--data", "{texts}", "--preset", "base", "--decay", "0.1"], "--decay"),
        (["--data", "{texts}", "--masked", "0"], "masked must"),
        (["--data", "{texts}", "--learning-rate", "0"], "learning_rate must"),
        (["--data", "{texts}", "--learning-rate", "nan"], "learning_rate must"),
        (["--data", "{texts}", "--rope-theta", "0"], "rope_theta must"),
        (["--data", "{texts}", "--recipe", "/nowhere.json"], "/nowhere.json"),
        (["--data", "{texts}", "--init-from", "/nowhere/model"], "/nowhere/model"),
        (["--data", "{texts}", "--vocabulary", "20"], "vocab"),
        (["--data", "{texts}", "--warmup", "0.9"], "warm-up"),
        (["--data", "{one}", "--held-out", "0.001"], "held out"),
    ],
)
def test_requests_that_cannot_be_served(arguments, words, texts, tmp_path, capsys):
    one = tmp_path / "one.txt"
    one.write_text("a single document\n")
    arguments = [argument.format(texts=texts, one=one) for argument in arguments]
    assert cli.main(["pretrain", str(tmp_path / "out"), "--vocabulary", "512", "--device", "cpu", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_dry_run_prints_the_plan(tmp_path, capsys):
    dry = ["pretrain", str(tmp_path / "out"), "--preset", "large", "--dry-run", "--data"]
    assert cli.main([*dry, "hf:anything"]) == 0
    assert capsys.readouterr().out.strip() == presets.table(presets.PRESETS["large"])
    assert cli.main([*dry, str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_of_accelerate_launch(run, tmp_path):
    folder, arguments = run
    copy = tmp_path / "out"
    copy.mkdir()
    for name in ("store", "tokenizer", "1-short"):
        shutil.copytree(folder / name, copy / name)
    shutil.copyfile(folder / "plan.json", copy / "plan.json")
    port = str(runs.free_port())  # 0 would have each process wait at a port of its own
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", port]
    command = [
        sys.executable,
        "-m",
        *launch,
        "-m",
        "modernbert_fast",
        "pretrain",
        str(copy),
        *arguments[2:],
        "--resume",
    ]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = runs.losses(copy / "2-long"), runs.losses(folder / "2-long")
    assert len(ours) == len(theirs) and ((ours - theirs).abs() <= 1e-5 * theirs).all()


def test_the_share_that_is_held_out_is_told(run):
    """It is that of the documents: of few long ones it may be far from what was asked for."""
    stores = [TokenStore(run[0] / "store" / name) for name in ("train", "held-out")]
    trained, held = (int(store.lengths.sum()) for store in stores)
    lines = pretrain.describe(stores)
    assert lines[1].startswith(
        f"held out    {len(stores[1])} documents, {held:,} tokens ({held / (trained + held):.1%})"
    )
    assert pretrain.describe([stores[0], None]) == [lines[0].replace(f"{trained / (trained + held):.1%}", "100.0%")]


def test_every_document_is_trained_on_or_held_out():
    documents = [str(number) for number in range(23)]
    parts = [list(pretraining.every_kth(documents, 5, chosen)) for chosen in (False, True)]
    assert parts[1] == ["0", "5", "10", "15", "20"] and sorted(parts[0] + parts[1], key=int) == documents
    assert list(pretraining.every_kth(documents, 0, False)) == documents
