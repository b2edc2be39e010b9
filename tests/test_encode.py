"""modernbert-fast encode: formats, order, errors, and byte-identical output after two kills."""

import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from encode_runs import encode, finished, short_texts, write_texts

from modernbert_fast import library
from modernbert_fast.commands.encode import shares
from modernbert_fast.commands.ranks import Ranks
from modernbert_fast.commands.stages import Times, ahead, behind
from modernbert_fast.texts import read_texts

pytestmark = pytest.mark.usefixtures("keep_threads")

TEXTS = ["", "a", "Zürich, 東京 and Ωmega", 'with "quotes", commas; and\ttabs', "word " * 700, "the last one"]


def read_rows(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)["embeddings"]
    parquet = pytest.importorskip("pyarrow.parquet")
    return np.stack(parquet.read_table(path)["embedding"].to_numpy(zero_copy_only=False))


def expected(checkpoint: Path, texts: list[str], pooling: str, normalize: bool) -> np.ndarray:
    """By transformers, text by text, pooled by hand."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    model = transformers.AutoModel.from_pretrained(checkpoint, local_files_only=True).eval()
    rows = []
    for text in texts:
        with torch.inference_mode():
            ids = torch.tensor([tokenizer.encode(text).ids])
            hidden = model(input_ids=ids).last_hidden_state[0].double()
        row = hidden[0] if pooling == "cls" else hidden.mean(0)
        rows.append(row / row.norm() if normalize else row)
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_input_formats(tiny_checkpoint: Path, tmp_path: Path, suffix: str) -> None:
    source = write_texts(tmp_path / f"texts{suffix}", TEXTS)
    assert encode(source, tmp_path / "out.npy", "--model", tiny_checkpoint, "--shard", 4, "--max-tokens", 300) == 0
    rows = read_rows(tmp_path / "out.npy")
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected(tiny_checkpoint, TEXTS, "cls", False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
@pytest.mark.parametrize(("pooling", "normalize"), [("cls", True), ("mean", False), ("mean", True)])
def test_output_formats(tiny_checkpoint: Path, tmp_path: Path, suffix: str, pooling: str, normalize: bool) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    source, output = write_texts(tmp_path / "texts.txt", TEXTS), tmp_path / f"out{suffix}"
    flags = ["--normalize"] if normalize else []
    assert encode(source, output, "--model", tiny_checkpoint, "--pooling", pooling, "--shard", 2, *flags) == 0
    wanted = expected(tiny_checkpoint, TEXTS, pooling, normalize)
    np.testing.assert_allclose(read_rows(output), wanted, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        output.name,
        f"{output.name}.json",
        "texts.txt",
    ]


def test_max_length_cuts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = write_texts(tmp_path / "texts.txt", ["word " * 50, "word " * 60])
    assert encode(source, tmp_path / "out.npy", "--model", tiny_checkpoint, "--max-length", 8) == 0
    first, second = read_rows(tmp_path / "out.npy")
    np.testing.assert_array_equal(first, second)


def test_two_kills_leave_no_trace(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source, output = write_texts(tmp_path / "texts.txt", short_texts(2000)), tmp_path / "out.npy"
    options = ["--model", tiny_checkpoint, "--shard", 16, "--pooling", "mean"]
    assert encode(source, output, *options) == 0

    killed, parts = tmp_path / "killed.npy", tmp_path / "killed.npy.parts"
    command = [sys.executable, "-m", "modernbert_fast", "encode", "--threads", 1, source, killed]
    rng = random.Random(1)
    for earliest in (rng.randint(5, 30), rng.randint(40, 80)):
        kill_after([*command, *options, "--resume"], parts, earliest)
        assert not killed.exists()
    assert earliest <= len(finished(parts)) < 2000 // 16
    assert encode(source, killed, *options, "--resume") == 0
    assert killed.read_bytes() == output.read_bytes()
    assert not parts.exists()


def kill_after(command: list[object], parts: Path, shards: int) -> None:
    """Starts a run and kills it, with no chance to clean up, a moment after `shards` shards are on disk."""
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and len(finished(parts)) < shards:
            time.sleep(0.001)
        time.sleep(random.Random(shards).random() * 0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"


def test_resume_refuses_other_work(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = write_texts(tmp_path / "texts.txt", TEXTS), tmp_path / "out.npy"
    assert encode(source, output, "--model", tiny_checkpoint) == 0
    before = output.read_bytes()
    assert encode(source, output, "--model", tiny_checkpoint) == 2
    assert "--resume" in capsys.readouterr().err
    assert encode(source, output, "--model", tiny_checkpoint, "--resume") == 0
    assert "complete already" in capsys.readouterr().out
    assert encode(source, output, "--model", tiny_checkpoint, "--resume", "--pooling", "mean") == 2
    assert "pooling: was cls, is mean" in capsys.readouterr().err
    write_texts(source, TEXTS[::-1])
    assert encode(source, output, "--model", tiny_checkpoint, "--resume") == 2
    assert "input: was" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert encode(source, output, "--model", tiny_checkpoint, "--overwrite") == 0
    assert output.read_bytes() != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"body": "y"}\n', "line 2: no field 'text'"),
        ("a.jsonl", '{"text": "x"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", "[" * 200_000, "nested too deeply"),
        ("a.jsonl", '{"text": 7}\n', "line 1: the text is int"),
        ("a.jsonl", "7\n", "line 1: is int, not an object"),
        ("a.csv", "id,body\n1,x\n", "line 2: no field 'text' among id, body (choose it with --field)"),
        ("a.csv", "id,text\n1,x\n\n2\n", "line 4: has 1 fields, 2 were expected"),
        ("a.csv", b"text\nok\n\xff\xfe\n", "not UTF-8"),
        ("a.doc", "x", "cannot read .doc"),
        ("a.txt", b"ok\n\xff\xfe\n", "line 2: not UTF-8"),
        ("a.txt", "", "a.txt: no texts"),
        ("a.csv", "text\n", "a.csv: no texts"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_bad_input(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | bytes | None,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert encode(tmp_path / name, tmp_path / "out.npy", "--model", tiny_checkpoint) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_bad_requests(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_texts(tmp_path / "texts.txt", ["x"])
    for args, message in (
        ((source, tmp_path / "out.xyz", "--model", tiny_checkpoint), "cannot write .xyz"),
        ((source, tmp_path / "no" / "out.npy", "--model", tiny_checkpoint), "there is no folder"),
        ((source, tmp_path / "out.npy", "--model", tiny_checkpoint, "--max-length", 999), "512 positions"),
        ((source, tmp_path / "out.npy", "--model", tmp_path), "config.json"),
        ((source, tmp_path / "out.npy", "--model", tiny_checkpoint, "--tokenizer", tmp_path), "no tokenizer.json"),
        (
            (source, tmp_path / "out.npy", "--model", tiny_checkpoint, "--device", "nonsense"),
            "--device nonsense",
        ),
    ):
        assert encode(*args) == 2
        assert message in capsys.readouterr().err


def test_the_ranks_of_torchrun_make_the_bits_of_one_process(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch.distributed.run")
    source, output = write_texts(tmp_path / "texts.txt", short_texts(700)), tmp_path / "alone.npy"
    options = ["--model", tiny_checkpoint, "--shard", 16]
    assert encode(source, output, *options) == 0
    shared = tmp_path / "shared.npy"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    command = [*torchrun, "-m", "modernbert_fast", "encode", "--threads", 1, source, shared, *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shared.read_bytes() == output.read_bytes()
    assert done.stdout.count("700 rows") == 1, "the first process alone speaks"
    halves = [line.split()[0] for line in done.stderr.splitlines() if " texts, " in line]
    assert sorted(halves) == ["348/348", "352/352"]


def test_a_process_does_not_trust_its_own_view_of_the_folder(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, one after the other here; the second sees the shards of the first, which saw none."""
    source, output = write_texts(tmp_path / "texts.txt", ["a", "b", "c", "d"]), tmp_path / "out.npy"
    options = ["--model", tiny_checkpoint, "--shard", 1]

    def run(rank: int) -> int:
        ranks = SimpleNamespace(
            rank=rank, world=2, first=rank == 0, sum=int, from_first=lambda none: [False] * len(none)
        )
        with monkeypatch.context() as patch:
            patch.setattr("modernbert_fast.commands.encode.joined", lambda: nullcontext(ranks))
            return encode(source, output, *options)

    assert run(1) == 2
    assert "all processes must write to the same folder" in capsys.readouterr().err
    assert run(0) == 2
    assert "00000001.npy is missing; run again with --resume" in capsys.readouterr().err
    assert run(1) == 0
    assert len(finished(tmp_path / "out.npy.parts")) == 4
    assert encode(source, output, *options, "--resume") == 0
    assert read_rows(output).shape == (4, 64)


@pytest.mark.parametrize("gpus", ["-1", "nan", "inf", "1.5"])
def test_gpus_that_ray_cannot_give(tmp_path: Path, capsys: pytest.CaptureFixture[str], gpus: str) -> None:
    with pytest.raises(SystemExit):
        encode(tmp_path / "texts.txt", tmp_path / "out.npy", "--model", tmp_path, "--ray", "local", f"--gpus={gpus}")
    assert f"{gpus} is neither 0 to 1 nor a whole number" in capsys.readouterr().err


def test_ray_is_refused_where_it_cannot_be(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_texts(tmp_path / "texts.txt", ["x"])
    assert encode(source, tmp_path / "out.npy", "--model", tiny_checkpoint, "--ray", "") == 2
    assert "--ray needs an address" in capsys.readouterr().err
    monkeypatch.setattr("modernbert_fast.commands.encode.joined", lambda: nullcontext(Ranks(1, 2)))
    assert encode(source, tmp_path / "out.npy", "--model", tiny_checkpoint, "--ray", "local") == 2
    assert "without torchrun" in capsys.readouterr().err


def test_the_identity_of_a_gpu_leaves_out_the_cpu_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    gpu, cpu = (library.device_facts(torch.device(name)) for name in ("cuda", "cpu"))
    assert "isa" in cpu and "isa" not in gpu and "triton" in gpu
    for change in (
        lambda: monkeypatch.setenv("MODERNBERT_FAST_SM", "80"),
        lambda: setattr(properties, "minor", 1),
        lambda: setattr(properties, "multi_processor_count", 114),
        lambda: monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="0")),
    ):
        former, _ = gpu, change()
        assert (gpu := library.device_facts(torch.device("cuda"))) != former


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "text\nx\n"), ("a.jsonl", '{"text": "x"}\n'), ("a.txt", "x\n")]
)
def test_a_byte_order_mark_is_no_part_of_the_texts(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert list(read_texts(tmp_path / name)) == ["x"]


def test_shares_of_the_time() -> None:
    seconds = {"reading": 1.0, "tokenisation": 3.0, "model": 8.0, "waiting": 1.0, "writing": 2.0}
    assert shares(seconds, 10.0) == (
        "share of the time: reading 10.0%, tokenisation 30.0%, model 80.0%, writing 20.0%; "
        "75.0% of reading and tokenisation was hidden behind the model"
    )
    assert "reading 5.0%, tokenisation 15.0%, model 40.0%, writing 20.0%; 75.0%" in shares(seconds, 10.0, models=2)
    assert "; 0.0% of reading" in shares({**seconds, "waiting": 5.0}, 10.0)


def test_the_shares_are_printed(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_texts(tmp_path / "texts.txt", short_texts(200))
    assert encode(source, tmp_path / "out.npy", "--model", tiny_checkpoint, "--shard", 50) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(
        r"share of the time: reading (.+)%, tokenisation (.+)%, model (.+)%, writing (.+)%; "
        r"(.+)% of reading and tokenisation was hidden behind the model",
        line,
    )
    assert found is not None, line
    assert float(found[3]) > 0


def test_tokenisation_runs_ahead_of_the_model_but_not_far() -> None:
    made, freed = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if len(made) == 4:
                freed.set()
            yield number

    stream = ahead(items(), 3)
    assert next(stream) == 0
    assert freed.wait(5), "three more are made while the first is worked on"
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    assert list(stream) == list(range(1, 100))


def test_stages_raise_what_their_threads_raise() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("reading")

    stream = ahead(broken(), 2)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="reading"):
        next(stream)

    def work(number: int) -> None:
        if number == 3:
            raise OSError("disk full")

    done = []
    with pytest.raises(OSError, match="disk full"):
        for number in behind(work, iter(range(100)), 2):
            done.append(number)
    assert done == [0, 1, 2]


def test_times_add_up_by_stage() -> None:
    times = Times()

    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    assert list(times.each("reading", slow())) == [0, 1, 2]
    with times.of("model"):
        time.sleep(0.01)
    assert times.seconds["reading"] >= 0.06 and times.seconds["model"] >= 0.01
