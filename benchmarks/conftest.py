"""Puts the harness on the path, and reads --require as the tests do."""

import contextlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # tests/conftest.py has added it when both folders run
        parser.addoption("--require", default="", help="backends, by comma, for which a skip is a failure")
