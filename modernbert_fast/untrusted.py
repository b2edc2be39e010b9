"""Checks for what comes out of a file nobody vouches for: a refusal is a ValueError that names the key."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

MAX_JSON_BYTES = 16 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 16 MiB; see `parse_json`."""
    with path.open("rb") as file:
        return parse_json(file.read(MAX_JSON_BYTES + 1), str(path))


def parse_json(data: bytes, source: str) -> dict[str, Any]:
    """Parse a JSON object from an untrusted source.

    Raises:
        ValueError: too large, too deep, not a JSON object, or a key occurs twice; the message names `source`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out:
                raise ValueError(f"key {key!r} occurs twice")
            out[key] = value
        return out

    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"{source}: more than {MAX_JSON_BYTES} bytes of JSON")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source}: expected a JSON object, got {type(value).__name__}")
    return value


def refuse(key: str, expected: str, value: object) -> NoReturn:
    raise ValueError(f"config key {key!r}: expected {expected}, got {reprlib.repr(value)}")


def integer(key: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        refuse(key, f"an integer from {low} to {high}", value)
    return value


def number(key: str, value: object, low: float, high: float) -> float:
    # The comparison is false for NaN, and exact for integers too large for a float.
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        refuse(key, f"a number from {low:g} to {high:g}", value)
    return float(value)


def text(key: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 256:
        refuse(key, "a name", value)
    return value


def choice(key: str, value: object, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        refuse(key, f"one of {', '.join(map(repr, choices))}", value)


def sequence(key: str, value: object) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        refuse(key, "a list", value)
    return value


def mapping(key: str, value: object) -> Mapping[str, Any]:
    """`value` as a mapping; null stands for an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        refuse(key, "an object", value)
    return value
