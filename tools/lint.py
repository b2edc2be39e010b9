"""Rules of this repository that ruff cannot state. Prints each violation and exits with 1 if there is one."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# (what may not appear, where it may nevertheless, why)
RULES = [
    (
        re.compile(r"^\s*(import|from) triton\b", re.M),
        ("modernbert_fast/dispatch.py", "modernbert_fast/library.py", "kernels/"),
        "triton is imported in kernels/, and probed in dispatch.py and library.py only",
    ),
    (
        re.compile(r"\.is_cuda\b|\bdevice\.type\s*(==|!=|in\b|not\b)|\bget_device_capability\("),
        (
            "modernbert_fast/dispatch.py",
            "modernbert_fast/library.py",
            "modernbert_fast/timing.py",
            "kernels/",
        ),
        "which device runs what is decided in dispatch.py",
    ),
    (
        re.compile(r"^\s*(import|from) (pickle|dill|cloudpickle|marshal|shelve)\b|\btorch\.load\(", re.M),
        (),
        "a pickle from elsewhere can run code: safetensors only",
    ),
    (
        re.compile(r"\btrust_remote_code\s*=\s*True|(?<![\w.])(?<!def )(eval|exec)\([^)]|allow_pickle\s*=\s*True"),
        (),
        "nothing that a checkpoint names is run",
    ),
]
SOURCES = ("modernbert_fast/", "kernels/", "benchmarks/")
MAX_LINES = 400


def python_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode == 0:
        return sorted(set(listed.stdout.split()))
    return sorted(str(path.relative_to(ROOT)) for name in SOURCES for path in (ROOT / name).rglob("*.py"))


def violations(name: str) -> list[str]:
    text = (ROOT / name).read_text()
    found = []
    for pattern, allowed, why in RULES:
        if name.startswith(allowed or ("\0",)):
            continue
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.end()) + 1
            found.append(f"{name}:{line}: {match[0].strip()!r}: {why}")
    if text.count("\n") > MAX_LINES:
        found.append(f"{name}: {text.count(chr(10))} lines, more than {MAX_LINES}: what would a reader split off?")
    return found


def main() -> int:
    found = [line for name in python_files() if name.startswith(SOURCES) for line in violations(name)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
