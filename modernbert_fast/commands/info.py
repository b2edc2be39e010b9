"""What is installed, built and used on this machine, as JSON values and as text."""

import argparse
import json
from typing import Any

import torch

from modernbert_fast import dispatch, library
from modernbert_fast.commands.models import DTYPES
from modernbert_fast.config import EncoderConfig
from modernbert_fast.timing import machine_facts


def run(args: argparse.Namespace) -> int:
    facts = collect()
    print(json.dumps(facts, indent=2) if args.json else render(facts))
    return 0


def collect() -> dict[str, Any]:
    """Everything info shows, as JSON values."""
    return {
        "machine": machine_facts(),
        "build": library.build_info(),
        "libraries": library.native_status(),
        "ops": {device: backends(device) for device in _devices()},
    }


def backends(device: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """op -> dtype -> rows in order of priority with their objections, for the shape of ModernBERT-base."""
    config = EncoderConfig.preset("base")
    shape = {
        "head_dim": config.head_dim,
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
    }
    table: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, dtype in DTYPES.items():
        for op, rows in dispatch.survey(device, dtype, **shape).items():
            listed = [{"backend": backend, "objections": objections} for backend, objections in rows]
            table.setdefault(op, {})[name] = listed
    return table


def taken(rows: list[dict[str, Any]]) -> str:
    """The backend that runs: the first row without objections."""
    return next((row["backend"] for row in rows if not row["objections"]), "none")


def render(facts: dict[str, Any]) -> str:
    """The facts as text."""
    machine = facts["machine"]
    versions = {
        name: machine[name] or "not installed" for name in ("modernbert-fast", "torch", "transformers", "triton")
    }
    lines = [f"{name:<16} {value}" for name, value in versions.items()]
    lines += [f"{'python':<16} {machine['python']} on {machine['platform']}"]
    lines += [f"{'cpu':<16} {machine['cpu']}, {machine['threads']} threads, kernels compiled for {machine['isa']}"]
    lines += [f"{'cpu flags':<16} {' '.join(machine['cpu_flags']) or 'none that matter here'}"]
    for found in machine["accelerators"] or [None]:
        lines.append(f"{'accelerator':<16} {_accelerator(found)}")
    lines += ["", "compiled parts"]
    lines += [f"  {name:<14} {status}" for name, status in facts["libraries"].items()]
    for device, table in facts["ops"].items():
        lines += ["", *_table(device, table)]
    return "\n".join(line.rstrip() for line in lines)


def _devices() -> list[str]:
    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu"] if present is None else [present.type, "cpu"]


def _accelerator(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none that torch can use"
    return f"{found['name']}, capability {found['capability']}, {found['memory_bytes'] / 2**30:.0f} GiB"


def _table(device: str, table: dict[str, dict[str, list[dict[str, Any]]]]) -> list[str]:
    lines = [f"{'backends on ' + device:<24}" + "".join(f"{dtype:<12}" for dtype in DTYPES)]
    for op, by_dtype in table.items():
        lines.append(f"  {op:<22}" + "".join(f"{taken(by_dtype[dtype]):<12}" for dtype in DTYPES))
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for op, by_dtype in table.items():
        for dtype, rows in by_dtype.items():
            for row in rows:
                if row["objections"]:
                    reasons.setdefault((op, row["backend"], "; ".join(row["objections"])), []).append(dtype)
    if reasons:
        lines.append("  not taken, and why")
    for (op, backend, why), dtypes in reasons.items():
        which = "" if len(dtypes) == len(DTYPES) else f" in {', '.join(dtypes)}"
        lines.append(f"    {op} on {backend}{which}: {why}")
    return lines
