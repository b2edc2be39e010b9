"""PretrainingTrainer: losses and counts over micro-batches, evaluation, precision, adapters, plain Trainer."""

import dataclasses
import math

import hf_models as hf
import pretraining_runs as runs
import pytest
import torch
import torch.nn.functional as F
import transformers

import modernbert_fast as mf
from modernbert_fast.config import EncoderConfig
from modernbert_fast.training import throughput
from modernbert_fast.training.dataset import TextDataset
from modernbert_fast.training.masking import MaskedLMCollator
from modernbert_fast.training.sampler import pieces
from modernbert_fast.training.trainer import PretrainingTrainer, pretraining_arguments

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stores(tmp_path_factory, manual):
    return runs.make_stores(tmp_path_factory.mktemp("stores"), manual)


def step_losses(trainer):
    """Sums over the micro-batches of the first step, with the stock forward: tokens, order, and their counts."""
    stock = mf.restore(
        runs.pretraining.build_model(trainer.model.config, runs.PHASE, runs.pretraining.Objective(2), None, 0)
    )
    stock.train()
    sums = torch.zeros(4, dtype=torch.float64)
    batches = iter(trainer.loader)
    for _ in range(trainer.args.gradient_accumulation_steps):
        batch = next(batches)
        bounds = batch["cu_seq_lens_q"].tolist()
        for text, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            out = stock(batch["input_ids"][:, start:stop])
            tokens = F.cross_entropy(out.prediction_logits[0], batch["labels"][0, start:stop], reduction="sum")
            order = F.cross_entropy(out.sop_logits[0], batch["sentence_order_label"][text])
            labelled = (batch["labels"][0, start:stop] != -100).sum()
            sums += torch.stack([tokens.detach(), order.detach(), labelled, torch.tensor(1)]).double()
    return sums.tolist()


def test_a_step_weighs_every_token_and_every_text_alike(stores, tmp_path):
    """Whatever micro-batch they are in: the loss is that of one batch of them all, text by text."""
    trainer = runs.make_trainer(stores, tmp_path, ways=2)
    trainer.train()
    tokens, order, labelled, texts = step_losses(runs.make_trainer(stores, tmp_path / "again", ways=2))
    first = runs.records(tmp_path)[0]
    assert first["mlm_loss"] == pytest.approx(tokens / labelled, rel=1e-5)
    assert first["order_loss"] == pytest.approx(order / texts, rel=1e-5)
    assert first["loss"] == pytest.approx(first["mlm_loss"] + first["order_loss"], rel=1e-6)


def test_training_lowers_the_loss_and_the_score_says_so(stores, tmp_path):
    phase = dataclasses.replace(runs.PHASE, tokens=60 * 512, learning_rate=5e-3)
    options = dataclasses.replace(runs.QUICK, save_steps=30)
    trainer = runs.make_trainer(stores, tmp_path, phase=phase, options=options)
    trainer.train()
    scores = [row for row in runs.records(tmp_path) if "eval_loss" in row]
    assert scores[-1]["eval_mlm_loss"] < scores[0]["eval_mlm_loss"] < math.log(512)
    expected = by_hand(trainer)
    for key, value in expected.items():
        assert scores[-1][f"eval_{key}"] == pytest.approx(value, rel=1e-5), key


def by_hand(trainer):
    """Loss and accuracy from the logits of all tokens."""
    losses, hits = [], []
    model = mf.restore(trainer.model).eval()
    for batch in trainer.eval_dataset:
        bounds = batch["cu_seq_lens_q"].tolist()
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            labels = batch["labels"][0, start:stop]
            with torch.no_grad():
                logits = model(batch["input_ids"][:, start:stop]).logits[0][labels != -100]
            losses.append(F.cross_entropy(logits, labels[labels != -100], reduction="none"))
            hits.append(logits.argmax(-1) == labels[labels != -100])
    loss = torch.cat(losses).double().mean().item()
    return {"mlm_loss": loss, "perplexity": math.exp(loss), "masked_accuracy": torch.cat(hits).double().mean().item()}


def test_evaluation_leaves_the_model_as_it_was(stores, tmp_path):
    trainer = runs.make_trainer(stores, tmp_path, ways=2)
    metrics = trainer.evaluate()
    names = ("loss", "mlm_loss", "perplexity", "masked_accuracy", "order_loss", "order_accuracy")
    assert metrics.keys() == {"epoch", *(f"eval_{name}" for name in names)}
    assert 0 <= metrics["eval_order_accuracy"] <= 1 and trainer.model.training
    settings = trainer.model.model.modernbert_fast_settings
    assert settings.loss_only and not trainer.model.sparse_prediction


@pytest.mark.parametrize("way", ["bf16", "checkpointing", "mask_on_device"])
def test_other_ways_to_compute_give_the_losses(stores, tmp_path, way, monkeypatch):
    option = {"precision": "bf16"} if way == "bf16" else {way: True}
    phase = dataclasses.replace(runs.PHASE, tokens=4 * 512)
    layer, calls = mf.encoder.layer, {}
    for name, changes in (("plain", {}), ("other", option)):
        calls[name] = []
        monkeypatch.setattr(mf.encoder, "layer", lambda *args, seen=calls[name]: seen.append(1) or layer(*args))
        options = dataclasses.replace(runs.QUICK, save_steps=4, held_out_tokens=1, **changes)
        trainer = runs.make_trainer(stores, tmp_path / name, phase=phase, options=options)
        trainer.train()
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    plain, other = (runs.losses(tmp_path / name) for name in ("plain", "other"))
    # bf16 has 8 bits: 4e-3 for one product; losses of a few steps part by no more than a few of those.
    assert ((plain - other).abs() <= (1e-2 if way == "bf16" else 1e-6) * plain).all()
    assert (plain != other).any() == (way == "bf16")
    assert (len(calls["other"]) > 1.5 * len(calls["plain"])) == (way == "checkpointing")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_half_precision_needs_an_accelerator(stores, tmp_path):
    """accelerate would train in fp32 without a word."""
    with pytest.raises(ValueError, match="fp16 needs an accelerator"):
        runs.make_trainer(stores, tmp_path, options=dataclasses.replace(runs.QUICK, precision="fp16"))


def test_arguments_that_do_not_fit(stores, tmp_path):
    trainer = runs.make_trainer(stores, tmp_path)
    for args, word in (
        (transformers.TrainingArguments(str(tmp_path), max_steps=3, use_cpu=True), "pretraining_arguments"),
        (pretraining_arguments(tmp_path, use_cpu=True), "max_steps"),
        (pretraining_arguments(tmp_path, max_steps=9, save_steps=3, logging_steps=2), "multiple of logging_steps"),
    ):
        with pytest.raises(ValueError, match=word):
            PretrainingTrainer(trainer.model, args, trainer.loader)


def test_low_rank_adapters_are_trained_and_saved_and_resumed(stores, tmp_path):
    peft = pytest.importorskip("peft")
    weights = []
    for resume in (None, str(tmp_path / "checkpoint-6")):
        base = runs.make_trainer(stores, tmp_path)
        config = peft.LoraConfig(r=4, target_modules=["Wqkv", "Wo"], lora_dropout=0.1)
        model = peft.get_peft_model(base.model, config)
        frozen = model.base_model.model.decoder.bias.detach().clone()
        trainer = PretrainingTrainer(model, base.args, base.loader, base.eval_dataset)
        trainer.train(resume)
        weights.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        assert torch.equal(model.base_model.model.decoder.bias, frozen)
    assert all(bool(tensor.any()) for name, tensor in weights[0].items() if "lora_B" in name)
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor), name
    assert {path.name for path in (tmp_path / "checkpoint-8").glob("*.safetensors")} == {
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "random-0.safetensors",
    }


def test_a_plain_trainer_takes_our_dataset_collator_and_model(stores, tmp_path):
    """Fixed numbers of texts, transformers' sampler and loader: only without packing and exact resume."""
    store, _ = runs.open_stores(stores)
    cut = pieces(store.lengths, 64)[:64]
    features = [{"input_ids": TextDataset(store, cut)[i, 0]["input_ids"]} for i in range(len(cut))]
    model = mf.accelerate(transformers.ModernBertForMaskedLM(runs.make_config(stores)), loss_only=True)
    args = transformers.TrainingArguments(
        str(tmp_path),
        num_train_epochs=3,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        logging_steps=4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, args, MaskedLMCollator.from_store(store), train_dataset=features)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 3 and losses[-1] < losses[0] < 1.1 * math.log(512)


@pytest.mark.parametrize("local", [5, 64])
def test_flops_are_those_that_torch_counts(local):
    """Of stock eager attention on one text, which computes the whole square: so windows cover it, and one that does not
    is counted by hand."""
    from torch.utils.flop_counter import FlopCounterMode

    config = hf.tiny_config(local_attention=128)
    model = hf.build(hf.MLM, config).train()
    model.set_attn_implementation("eager")
    ids = torch.randint(6, hf.VOCAB, (1, 40))
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    ours = throughput.training_flops(EncoderConfig.from_hf(config), torch.tensor([40]), 40)
    assert ours == pytest.approx(counter.get_total_flops(), rel=1e-6)
    two = throughput.training_flops(EncoderConfig.from_hf(config), torch.tensor([40, 40]), 80)
    assert two == pytest.approx(2 * ours)
    windowed = EncoderConfig.from_hf(hf.tiny_config(local_attention=local))
    saved = 12 * 32 * 40 * max(0, 40 - (2 * (local // 2) + 1)) * 2
    assert ours - throughput.training_flops(windowed, torch.tensor([40]), 40) == pytest.approx(saved)
