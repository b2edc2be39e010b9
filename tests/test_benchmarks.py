"""benchmarks/: every piece runs on a tiny model, with none of the rivals' packages installed."""

import argparse
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from modernbert_fast.commands.models import load_pair
from modernbert_fast.commands.workloads import Workload
from modernbert_fast.config import EncoderConfig

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("keep_threads")

ROOT = Path(__file__).resolve().parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)  # an import of it fails


@pytest.fixture
def options(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(tiny_checkpoint), "--threads", "1", "--output", str(tmp_path)]


@pytest.fixture
def pair(tiny_checkpoint: Path) -> tuple:
    return load_pair(argparse.Namespace(model=str(tiny_checkpoint), dtype="float32"), CPU)


@pytest.mark.parametrize("leak", [0, 200])
def test_encode_ends_with_an_error_when_memory_in_use_grows(
    leak: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By 200 bytes a text, as if its ids were kept; what malloc holds free does not count."""
    from data import encode

    def run(texts: list[str], threads: int, overlapped: bool = True) -> dict:
        seen = range(0, 100_000, 500)
        used = [2**28 + leak * text + text % 3 * 2**20 for text in seen]
        private = [2**29 + 2**10 * text for text in seen]
        line = {"seconds": 1.0, "overlapped": overlapped, "line": "", "texts": len(texts), "tokens": 9}
        return {**line, "used": used, "private": private}

    monkeypatch.setattr(encode, "run", run)
    monkeypatch.setattr(encode, "sentences", lambda count: ["A text."] * 9)
    main = lambda: encode.main(["--rounds", "1", "--output", str(tmp_path)])  # noqa: E731
    if not leak:
        return main()
    with pytest.raises(SystemExit, match="memory in use grows"):
        main()


def test_encoder_says_what_is_missing(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from models import encoder

    encoder.main([*options, "--workloads", "2x16", "--rounds", "1", "--dtype", "bfloat16"])
    (result,) = json.loads((tmp_path / "encoder-bfloat16-2x16.json").read_text())["results"]
    errors = {arm["name"]: arm["max_error"] for arm in result["arms"]}
    limits = ["linears alone", "F.linear alone"]
    assert list(errors) == ["transformers sdpa", "transformers sdpa float32", "modernbert_fast", *limits]
    assert errors["modernbert_fast"] <= result["error_limit"]
    runtimes = [f"{name} {dtype}" for dtype in ("bfloat16", "float32") for name in ("onnxruntime", "openvino")]
    assert list(result["missing"]) == runtimes
    assert "onnx" in result["missing"]["openvino float32"]
    assert "bfloat16 kernels" in result["missing"]["onnxruntime bfloat16"]
    assert "missing: openvino float32" in capsys.readouterr().out


def test_encoder_times_rivals_text_by_text_and_never_a_wrong_one(pair: tuple, tmp_path: Path) -> None:
    from models import encoder

    stock, fast = pair
    right = encoder.contenders(stock, tmp_path, compiled=False, threads=1)[0]
    wrong = encoder.Rival("wrong", lambda masked: lambda inputs: stock(**inputs).last_hidden_state + 1)
    broken = encoder.Rival("broken", lambda masked: 1 / 0, any_shape=False)
    result = encoder.measure(Workload("ragged", (5, 9)), stock, fast, [right, wrong, broken], rounds=1)
    assert set(result["missing"]) == {"wrong", "wrong, singly", "broken"}
    assert "beyond" in result["missing"]["wrong"] and "ZeroDivisionError" in result["missing"]["broken"]
    assert result["ratios"]["best rival / ours"]["name"] == "transformers sdpa"
    assert result["ratios"]["best rival, singly / ours"]["name"] == "transformers sdpa float32, singly"


def test_memory(options: list[str], tmp_path: Path) -> None:
    from models import memory

    memory.main([*options, "--lengths", "32", "--stock-up-to", "0"])
    (record,) = json.loads((tmp_path / "memory-float32.json").read_text())["records"]
    assert (record["arm"], record["tokens"]) == ("modernbert_fast", 32) and set(record) >= {"first", "kept", "second"}


def test_memory_of_the_masked_lm_loss() -> None:
    from models import mlm_memory

    config = EncoderConfig(vocab_size=5000, hidden_size=64, intermediate_size=64, num_attention_heads=1, pad_token_id=0)
    record = mlm_memory.measure(config, 300, 0.3, torch.float32)
    head, decoder = 64 * 64 + 64, 5000 * 64 + 5000
    assert record["gradients"] == 4 * (300 * 64 + head + decoder) and record["stock"] == 4 * 300 * 5000
    assert 60 < record["labelled"] < 120 and set(record) >= set(mlm_memory.COLUMNS)


def test_training_curves_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty steps; the benchmark takes three hundred of a model of four layers."""
    from models import training

    monkeypatch.setitem(training.SIZES, "curve", (64, 96, 512))
    torch.set_num_threads(1)
    found = training.curves(layers=2, steps=30, texts=4, longest=32, rate=2e-3)
    assert [len(curve) for curve in found.values()] == [30, 30, 30]
    assert sum(found[training.FAST][-5:]) < sum(found[training.FAST][:5]) - 1
    assert 0 < training.apart(found, training.FAST) <= 1e-4


def test_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from models import training

    monkeypatch.setitem(training.SIZES, "speed", (64, 96, 512))
    results = training.speed(layers=1, rounds=1, texts=2, vocabulary=512)
    assert [result["workload"] for result in results] == ["one length", "mixed lengths"]
    assert all(set(result["seconds"]) == {training.STOCK, training.SPARSE, training.FAST} for result in results)


def test_breakdown_adds_up(pair: tuple) -> None:
    from models import breakdown

    result = breakdown.measure(Workload("2x16", (16, 16)), pair[1], rounds=2)
    calls = {op["op"]: op["calls_per_layer"] for op in result["ops"]}
    assert calls["linear_forward"] == 3 and calls["linear_forward_geglu"] == 1 and calls["attention_forward"] == 1
    assert sum(op["share"] for op in result["ops"]) == pytest.approx(1)
    assert "linear_forward" in breakdown.render(result)


@pytest.mark.parametrize("op", ["attention", "geglu", "layer_norm", "maxsim"])
def test_large_cases_ask_for_the_forward_alone(op: str) -> None:
    import harness

    cases = harness.cases(op, CPU, torch.float32, large=True)
    assert cases
    for case in cases:
        assert case.large and not case.problem.grads and case.problem.op == op and case.bytes > 0


def test_harness_measures_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    import harness

    monkeypatch.setattr(harness, "COPY_BYTES", 2**20)
    monkeypatch.setattr(harness, "LINEAR_SIDE", 64)
    records = harness.measure(harness.cases("pooling", CPU, torch.float32)[0], rounds=1)
    assert len(records) > 1 and records[-1]["arm"] == "torch" and records[-1]["times_torch"] == 1
    assert all(record["share_of_limit"] > 0 for record in records)


def test_sentence_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentence_transformers", minversion="6")
    from models import sentence_transformers

    few = ["--texts", "3", "--longest", "20", "--layers", "1", "--rounds", "1", "--stock-batches", "2"]
    kinds = "MultiVectorEncoder,MultiVectorEncoder queries"
    sentence_transformers.main([*few, "--kinds", kinds, "--threads", "1", "--output", str(tmp_path)])
    result, queries = json.loads((tmp_path / "sentence-transformers-bfloat16-20.json").read_text())["results"]
    assert result["cosine_float32"] >= 0.9999 and len(result["arms"]) == 2 and len(result["tail"]) == 4
    assert result["errors"]["modernbert_fast"] <= result["error_limit"]
    assert queries["tokens"] == 96 and queries["cosine_float32"] >= 0.9999 and "tail" not in queries
    assert "ours ahead" in capsys.readouterr().out


def test_retrieval_encode_on_a_gpu_rehearsed() -> None:
    pytest.importorskip("sentence_transformers", minversion="6")
    from gpu import retrieval_encode, sizes

    result = retrieval_encode.measure(sizes.dry(), "MultiVectorEncoder", time.time() + 60)
    assert not result["failures"] and len(result["rows"]) == 2 * len(retrieval_encode.BATCHES)
    assert list(result["missing"]) == [retrieval_encode.FLASH]  # there is no flash-attn here
    assert result[f"best {retrieval_encode.STOCK} / best ours"] > 0
    result = retrieval_encode.measure(sizes.dry(), "MultiVectorEncoder", time.time())  # the time is over at once
    assert (
        not result["failures"]
        and not result["rows"]
        and len(result["missing"]) == 1 + 2 * len(retrieval_encode.BATCHES)
    )
