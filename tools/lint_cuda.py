"""Reads the kernels of a built _ops_cuda.so, without a GPU: python tools/lint_cuda.py LIBRARY

A line is a kernel, a column an architecture: registers of a thread, and after a ! the bytes of its stack. Exits with 1
if a kernel has a stack, which is where registers are spilled, or lacks instructions that it was written for.
"""

import re
import subprocess
import sys
from collections import defaultdict
from typing import Any

# Kernels and architectures, by pattern, and an instruction that each of them must contain.
INSTRUCTIONS = [
    (r"layer_norm_(forward|backward)_kernel<.*, [48](, (true|false))?>$", r"\d+a?", r"LDG\.E\.128"),
    (r"layer_norm_(forward|backward)_kernel<.*, [48](, (true|false))?>$", r"\d+a?", r"STG\.E\.128"),
    (r"geglu_(forward|backward)_kernel<.*, [48]>$", r"\d+a?", r"LDG\.E\.128"),
    (r"geglu_(forward|backward)_kernel<.*, [48]>$", r"\d+a?", r"STG\.E\.128"),
]


def main(library: str) -> int:
    from modernbert_fast.kernels.offline import cuobjdump

    table: dict[str, dict[str, str]] = defaultdict(dict)
    faults = []
    for chip, kernel, text in functions(cuobjdump("--dump-resource-usage", library), r"Function (\w+):\s*\n"):
        registers, stack, local = (int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
        table[kernel][chip] = f"{registers}" + f"!{stack + local}" * (stack + local > 0)
        if stack + local:
            faults.append(f"sm_{chip} {kernel}: {stack + local} bytes of stack")
    found: dict[Any, set[str]] = defaultdict(set)
    for chip, kernel, text in functions(cuobjdump("--dump-sass", library), r"Function : (\w+)\n"):
        for of_kernels, of_chips, instruction in INSTRUCTIONS:
            if re.search(of_kernels, kernel) and re.fullmatch(of_chips, chip):
                found[of_kernels].add(kernel)
                if not re.search(instruction, text):
                    faults.append(f"sm_{chip} {kernel}: no {instruction}")
    faults += [f"no kernel is called {of_kernels}" for of_kernels, *_ in INSTRUCTIONS if not found[of_kernels]]

    chips = sorted({chip for row in table.values() for chip in row}, key=lambda chip: int(re.sub(r"\D", "", chip)))
    width = max(map(len, table), default=0) + 2
    print(f"{'':<{width}}" + "".join(f"sm_{chip:<7}" for chip in chips).rstrip())
    for kernel in sorted(table):
        print(f"{kernel:<{width}}" + "".join(f"{table[kernel].get(chip, '-'):<10}" for chip in chips).rstrip())
    print(f"{sum(map(len, table.values()))} kernels, {len(faults)} faults", *faults, sep="\n")
    return 1 if faults else 0


def functions(printed: str, head: str) -> list[tuple[str, str, str]]:
    """(architecture, kernel, what is printed of it) for every function in the output of cuobjdump."""
    found = []
    for part in re.split(r"^arch = sm_", printed, flags=re.M)[1:]:
        chip = part.partition("\n")[0].strip()
        pieces = re.split(head, part)
        found += [(chip, name, text) for name, text in zip(pieces[1::2], pieces[2::2], strict=True)]
    names = sorted({name for _, name, _ in found})
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    short = dict(zip(names, map(shorten, done.stdout.splitlines()), strict=True))
    return [(chip, short[name], text) for chip, name, text in found]


def shorten(name: str) -> str:
    """A kernel's name without namespaces, result and arguments."""
    name = re.sub(r"modernbert_fast::cuda::|\(anonymous namespace\)::|\((int|bool)\)|^void ", "", name)
    name = name.replace("__nv_bfloat16", "BFloat16").replace("__half", "Half")
    depth = 0
    for at, letter in enumerate(name):  # the arguments follow the template's
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:at]
    return name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
