"""What the README says can be pasted: its Python runs in the order it stands in, its commands and their flags exist."""

import pydoc_data.topics
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from modernbert_fast import cli, tiny

README = Path(__file__).resolve().parents[1] / "README.md"
NAME = "answerdotai/ModernBERT-base"  # fetched; the small model of the package stands in

pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs the source tree")


def blocks(*languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.S | re.M)
    return [block for language, block in found if language in languages]


def test_python_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "corpus").mkdir()
    for name, text in list(pydoc_data.topics.topics.items())[:4]:
        (tmp_path / "corpus" / f"{name}.txt").write_text(text[:2000])
    monkeypatch.chdir(tmp_path)
    pasted: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block.replace(f'"{NAME}"', repr(str(tiny.FOLDER))).replace('"cuda"', '"cpu"'), pasted)
    assert pasted["loss"].isfinite() and pasted["vectors"].shape == (2, 192)
    assert [[hit.id for hit in hits] for hits in pasted["hits"]] == [["first"]]


def test_commands_are_those_of_the_package() -> None:
    lines = [line for block in blocks("", "sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if "modernbert-fast " in line or "torchrun" in line]
    assert len(commands) > 10
    parser = cli.build_parser()
    for words in commands:
        words = words[words.index("modernbert_fast" if words[0] == "torchrun" else "modernbert-fast") + 1 :]
        if len(words) > 1 and "|" not in words:
            parser.parse_args(words)
