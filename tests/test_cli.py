"""The command line as a user meets it: help, exit codes, output."""

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import modernbert_fast as mf
from modernbert_fast import cli, library
from modernbert_fast.commands import workloads
from modernbert_fast.commands.flags.index import STORED
from modernbert_fast.retrieval import manifest

pytestmark = pytest.mark.usefixtures("keep_threads")

CPU = ("--device", "cpu", "--threads", "1")


def test_info_as_json() -> None:
    command = [sys.executable, "-m", "modernbert_fast", "info", "--json"]
    facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert facts["machine"]["torch"] == torch.__version__
    assert set(facts["libraries"]) >= {"_ops_cpu", "_ops_cuda"}
    assert set(facts["ops"]["cpu"]) == set(mf.dispatch.TABLE)


def test_info_names_every_op_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    for word in (*mf.dispatch.TABLE, torch.__version__, "_ops_cpu", "reference"):
        assert word in shown


@pytest.mark.skipif(library.isa() == "none", reason="_ops_cpu.so was not built")
def test_wrong_isa_is_one_line() -> None:
    command = [sys.executable, "-m", "modernbert_fast", "info"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MODERNBERT_FAST_ISA": "sse9"})
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("modernbert-fast info: error: MODERNBERT_FAST_ISA=sse9 is not one of ")
    assert done.stderr.count("\n") == 1 and "baseline" in done.stderr


def test_flags_are_checked_before_torch_is_imported() -> None:
    """It takes seconds, and a typo none."""
    script = "import sys; from modernbert_fast import cli; cli.build_parser(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-P", "-c", script], text=True) == "False\n"


def test_what_flags_repeat_is_what_the_index_knows() -> None:
    assert STORED == manifest.DTYPES


def test_public_names_are_found_and_no_module_takes_their_place() -> None:
    """An import of a module of that name would put it where the function stood."""
    public = {name: getattr(mf, name) for name in mf.__all__}
    modules = {name for name, value in public.items() if isinstance(value, ModuleType)}
    assert modules == {"dispatch", "library", "ops"}
    assert not (set(public) - modules) & {module.name for module in pkgutil.iter_modules(mf.__path__)}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mf.nonsense


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"modernbert-fast {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["nonsense"],
        ["info", "--nonsense"],
        ["encode"],
        ["bench", "--rounds", "0"],
        ["demo", "--preset", "huge"],
    ],
)
def test_bad_arguments(args: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(args)
    assert end.value.code == 2


def test_check_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *CPU]) == 0
    assert "all match" in capsys.readouterr().out


def test_check_fails_on_a_wrong_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    right = mf.accelerate

    def wrong(model: torch.nn.Module) -> torch.nn.Module:
        right(model).base_model.final_norm.weight = torch.nn.Parameter(1.01 * model.base_model.final_norm.weight)
        return model

    monkeypatch.setattr(mf, "accelerate", wrong)
    assert cli.main(["check", *CPU]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        (["--workloads", "2x16,var"], ["2x16", "var"]),
        (["--texts", "TEXTS", "--batch", "2"], ["TEXTS[0:2]", "TEXTS[2:3]"]),
    ],
)
def test_bench_writes_a_record(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    choice: list[str],
    named: list[str],
) -> None:
    pytest.importorskip("transformers")
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo words\nand three words\n")
    options = ["--model", str(tiny_checkpoint), *CPU, "--rounds", "2", "--output", str(tmp_path)]
    assert cli.main(["bench", *options, *(str(texts) if word == "TEXTS" else word for word in choice)]) == 0
    record = json.loads((tmp_path / "bench.json").read_text())
    assert [result["workload"] for result in record["results"]] == [n.replace("TEXTS", texts.name) for n in named]
    assert record["machine"]["cpu"]
    for result in record["results"]:
        assert [arm["name"] for arm in result["arms"]] == [
            "transformers sdpa",
            "modernbert_fast",
            "linears alone",
        ]
        assert all(len(arm["samples"]) == 2 and arm["tokens_per_second"] > 0 for arm in result["arms"])
        assert result["arms"][1]["max_error"] <= result["error_limit"]
    assert "x stock" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["8", "0x5", "ax3", "1x513"])
def test_bench_refuses_a_workload(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    pytest.importorskip("transformers")
    assert cli.main(["bench", "--model", str(tiny_checkpoint), *CPU, "--workloads", name]) == 2
    assert f"workload {name}" in capsys.readouterr().err.replace("'", "")


def test_var_is_mostly_padding() -> None:
    workload = workloads.parse("var")
    assert len(workload.lengths) == 32 and min(workload.lengths) >= 16 and max(workload.lengths) <= 512
    assert 0.67 < workload.padding < 0.70


def test_demo(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    options = ["--model", str(tiny_checkpoint), *CPU, "--texts", "5", "--batch", "2", "--max-length", "300"]
    assert cli.main(["demo", *options]) == 0
    shown = capsys.readouterr().out
    for word in ("parity   ok", "ratio", "tokens/s", "5 topics", "fills masks", "paragraphs of Python's manual"):
        assert word in shown


@pytest.mark.parametrize("command", ["bench", "demo"])
def test_a_folder_without_a_model(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    assert cli.main([command, "--model", str(tmp_path), *CPU]) == 2
    assert str(tmp_path) in capsys.readouterr().err
