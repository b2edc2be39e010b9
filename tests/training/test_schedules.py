"""Batch and learning-rate schedules, the optimizer's groups, and the recipes as the paper prints them."""

import dataclasses
import json
import math

import hf_models as hf
import pytest
import torch
import transformers

from modernbert_fast.training import presets
from modernbert_fast.training.optimizer import stable_adamw
from modernbert_fast.training.schedules import BatchSchedule, MicroBatchTokens, learning_rate_arguments

BILLION = 10**9


def test_a_batch_grows_with_as_many_steps_at_each_size():
    schedule = BatchSchedule(tokens=60, start=10, warmup_tokens=460)
    sizes = [schedule.at(step) for step in range(schedule.warmup_steps + 2)]
    assert sizes == [10] * 3 + [20] * 3 + [30] * 3 + [40] * 3 + [50] * 3 + [60] * 2
    for tokens in (0, 1, 10, 11, 89, 90, 91, 450, 451, 510, 511, 1000):
        steps = schedule.steps(tokens)
        assert sum(map(schedule.at, range(steps))) >= tokens > sum(map(schedule.at, range(steps - 1))) or tokens == 0


def test_the_batch_warm_up_of_the_paper():
    phase = presets.PRESETS["base"].phases[0]
    schedule = phase.batches
    assert {schedule.at(s) // 1024 for s in range(0, 40_000, 100)} == {768, 1536, 2304, 3072, 3840, 4608}
    grown = sum(map(schedule.at, range(schedule.warmup_steps)))
    assert abs(grown - 50 * BILLION) < 60e6  # within a step of each size
    assert schedule.at(schedule.warmup_steps - 1) < schedule.at(schedule.warmup_steps) == 4608 * 1024


@pytest.mark.parametrize("values", [(60, 7, 100), (60, 0, 100), (60, 10, 100)])
def test_batches_that_cannot_be(values):
    with pytest.raises(ValueError, match="batch"):
        BatchSchedule(*values)


def test_micro_batches_share_out_the_batch_of_their_step():
    tokens = MicroBatchTokens(BatchSchedule(80, 40, 80), parts=4, shortest=12)
    assert [tokens(n) for n in range(13)] == [12] * 8 + [20] * 5


def test_warm_up_constant_and_one_minus_sqrt(tmp_path):
    arguments = learning_rate_arguments(20, 4, 8, floor=0.1)
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, **arguments)
    weight = torch.nn.Parameter(torch.zeros(1))
    trainer = transformers.Trainer(torch.nn.Linear(1, 1), args, optimizers=(torch.optim.SGD([weight], lr=2.0), None))
    schedule = trainer.create_scheduler(args.max_steps)
    rates = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    expected = [2 * step / 4 * 0.9 + 0.2 for step in range(4)] + [2.0] * 8
    expected += [2 * (0.1 + 0.9 * (1 - math.sqrt(step / 8))) for step in range(8)]
    assert rates == pytest.approx(expected)
    with pytest.raises(ValueError, match="12 steps of warm-up and 9 of decay are more than 20"):
        learning_rate_arguments(20, 12, 9)


@pytest.mark.filterwarnings("ignore:You are using weight_decay")
def test_weights_decay_at_their_own_rate_and_norms_and_biases_do_not(tmp_path):
    kind, arguments = stable_adamw(1e-3, 0.25)
    model = hf.build(hf.MLM, hf.tiny_config(norm_bias=True, mlp_bias=True))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, weight_decay=0.25, max_steps=1)
    trainer = transformers.Trainer(model, args, optimizer_cls_and_kwargs=(kind, arguments))
    optimizer = trainer.create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 5e-4  # half of the highest
    optimizer.step()
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() == 2
        assert "norm" in name or "bias" in name or matrix, name
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.25 / 2 if matrix else 1))


def test_an_update_is_clipped_where_the_gradient_jumps():
    """After small gradients a huge one would move a weight by 0.7 of the rate in AdamW; here by a tenth."""
    kind, arguments = stable_adamw(1e-2, 0.0)
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = kind([weight], **arguments)
    for size in [1e-4] * 20 + [1e3]:
        before = weight.detach().clone()
        weight.grad = torch.full((4, 4), size)
        optimizer.step()
    moved = float((weight.detach() - before).abs().max()) / 1e-2
    assert 0.05 < moved < 0.15


def row(text, label):
    (line,) = (line for line in text.splitlines() if line.startswith(label))
    return [cell for cell in line[len(label) :].split("  ") if cell.strip()]


def test_the_tables_are_those_of_the_paper():
    base, large = (presets.table(presets.PRESETS[name]) for name in ("base", "large"))
    for text, expected in (
        (base, {
            "tokens": ["1.719 T", "250 B", "50 B"], "length": ["1,024", "8,192", "8,192"],
            "rope base, global": ["10,000", "160,000", "160,000"], "learning rate": ["0.0008", "0.0003", "0.0003"],
            "warm-up": ["3 B", "-", "-"], "decay, 1 - sqrt": ["-", "-", "50 B"], "batch, texts": ["4,608", "72", "72"],
            "batch warm-up": ["from 768 in 50 B", "-", "-"], "micro-batch, texts": ["96", "12", "12"],
            "weight decay": ["1e-05"] * 3, "masked": ["30%"] * 3,
        }),
        (large, {
            "tokens": ["900 B", "800 B", "250 B", "50 B"], "learning rate": ["0.0005", "5e-05", "5e-05", "5e-05"],
            "warm-up": ["2 B", "-", "-", "-"], "batch, texts": ["4,928", "4,928", "77", "77"],
            "batch warm-up": ["from 448 in 10 B", "-", "-", "-"], "micro-batch, texts": ["56", "56", "7", "7"],
            "weight decay": ["1e-05", "1e-06", "1e-06", "1e-06"],
        }),
    ):  # fmt: skip
        for label, cells in expected.items():
            assert [cell.strip() for cell in row(text, label)] == cells, label


def test_a_recipe_from_json(tmp_path):
    phase = {"name": "a", "tokens": 1000, "max_length": 64, "learning_rate": 1e-3, "batch": 4, "micro_batch": 2}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"name": "mine", "model": {"num_hidden_layers": 2}, "phases": [phase]}))
    recipe = presets.from_json(path)
    assert recipe == presets.Recipe("mine", (presets.Phase(**phase),), {"num_hidden_layers": 2})
    assert "mine" in presets.table(recipe)
    for damage, word in (
        ({"phases": [{**phase, "lr": 1}]}, "lr"),
        ({"phases": [{**phase, "tokens": -1}]}, "tokens"),
        ({"phases": [{key: phase[key] for key in phase if key != "batch"}]}, "batch"),
        ({"phases": [phase], "model": {"hidden_size": 100, "num_attention_heads": 3}}, "hidden_size"),
        ({"phases": [phase], "models": {}}, "models"),
        ({"phases": []}, "phases"),
        ({"phases": [3]}, "phase"),
    ):
        path.write_text(json.dumps(damage))
        with pytest.raises(ValueError, match=f"recipe.json.*{word}"):
            presets.from_json(path)


def test_a_batch_that_does_not_share_out():
    phase = dataclasses.replace(presets.PRESETS["base"].phases[1])
    assert phase.accumulation(1) == 6 and phase.accumulation(6) == 1 and phase.accumulation(8) == 1
    with pytest.raises(ValueError, match="72 texts does not share out to 5"):
        phase.accumulation(5)
