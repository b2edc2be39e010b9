"""The record of a run as a page: what failed first, then every case with its figures."""

from __future__ import annotations

from collections import Counter
from typing import Any

STATES = ("passed", "failed", "skipped", "not run")
SHOWN = 40  # failures of the summary


def markdown(record: dict[str, Any]) -> str:
    """The whole record."""
    machine = record["machine"]
    names = ", ".join(found["name"] for found in machine["accelerators"]) or machine["cpu"]
    lines = [
        f"# {record['what']}{', dry: no figure here means anything' if record['dry'] else ''}",
        "",
        f"{names}; commit {machine['commit']}; {machine['date']}; torch {machine['torch']}, "
        f"Triton {machine['triton']}, transformers {machine['transformers']}, Python {machine['python']}, "
        f"CUDA {machine['cuda']}, "
        f"driver {machine['driver']}. {record['seconds']:.0f} s.",
        "",
        _counts(record["cases"]),
        "",
    ]
    for title, state in (("Failed", "failed"), ("Not run", "not run"), ("Skipped", "skipped")):
        found = _merged([case for case in record["cases"] if case["state"] == state])
        lines += [f"## {title}", "", *(f"- {line}" for line in found), ""] if found else []
    lines += _tested(record["cases"])
    for case in record["cases"]:
        if rows := _rows(case):
            lines += [f"## {case['case']}", "", *_table(rows), ""]
            lines += [*(f"- {line}" for line in _missing(case)), ""] if _missing(case) else []
        elif case["state"] == "passed" and case.get("result"):
            lines += [f"- {case['case']}: {_words(case['result'])}", ""]
    return "\n".join(lines).rstrip() + "\n"


def summary(record: dict[str, Any]) -> str:
    """The last words on the screen: counts, failures, and what every case gave, a line each."""
    lines = []
    for case in record["cases"]:
        for row in _rows(case):
            lines.append(f"{case['case'][:60]:<60} " + "  ".join(f"{_cell(v)}" for v in row.values()))
        lines += [f"{case['case'][:60]:<60} {line}" for line in _missing(case)]
    failed = [
        f"FAILED {case['case']}: {case.get('reason', '')}" for case in record["cases"] if case["state"] == "failed"
    ]
    return "\n".join([*lines, *failed[:SHOWN], f"{_counts(record['cases'])}; {record['seconds']:.0f} s"])


def _counts(cases: list[dict[str, Any]]) -> str:
    seen = Counter(case["state"] for case in cases)
    return ", ".join(f"{seen[state]} {state}" for state in STATES if seen[state] or state in STATES[:2])


def _merged(cases: list[dict[str, Any]]) -> list[str]:
    """A line a reason: tests by the hundred are skipped for one."""
    reasons: dict[str, list[str]] = {}
    for case in cases:
        reasons.setdefault(" ".join(case.get("reason", "").split()), []).append(case["case"])
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}" for why, names in reasons.items()
    ]


def _tested(cases: list[dict[str, Any]]) -> list[str]:
    """Counts of tests for every op, row and dtype."""
    cells: dict[tuple[str, ...], Counter[str]] = {}
    for case in cases:
        if "op" in case:
            cells.setdefault((case["op"], case["backend"], case["dtype"]), Counter())[case["state"]] += 1
    if not cells:
        return []
    rows = [
        dict(zip(("op", "row", "dtype"), cell, strict=True)) | {s: n[s] for s in STATES} for cell, n in cells.items()
    ]
    return ["## Op tests", "", *_table(sorted(rows, key=lambda row: (row["op"], row["row"], row["dtype"]))), ""]


def _missing(case: dict[str, Any]) -> list[str]:
    result = case.get("result")
    missing = result.get("missing", {}) if isinstance(result, dict) else {}
    return [f"{name}: not measured: {why}" for name, why in missing.items()]


def _rows(case: dict[str, Any]) -> list[dict[str, Any]]:
    result = case.get("result")
    return result.get("rows", []) if isinstance(result, dict) else []


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return lines + [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]


def _words(result: Any) -> str:
    return ", ".join(f"{k} {_cell(v)}" for k, v in result.items()) if isinstance(result, dict) else str(result)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
