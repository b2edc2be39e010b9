"""Bugs put into the CUDA kernels on purpose, and the check that must see each one.

`python bugs.py GOOD FOLDER`, in the host executor's environment, asks every library FOLDER/bug_<name>.so its question,
in a process of its own, for a bug may end it; and the library GOOD the same, which must pass. Prints JSON: for each bug
what the two said, "passed" or the last of the error.
"""

import functools
import importlib.util
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from modernbert_fast import dispatch, library, testing
from modernbert_fast.testing import checks, problems

CSRC = Path(__file__).resolve().parents[2] / "csrc"

CPU, F32 = torch.device("cpu"), torch.float32


def right(problem: problems.Problem) -> None:
    checks.check_accuracy(problem)
    checks.check_repeats(problem, times=5)


def rows() -> None:
    right(problems.layer_norm(40, 48, F32, CPU, residual=F32, weight=F32, bias=F32))


def wide_rows() -> None:
    right(problems.layer_norm(5, 2100, F32, CPU, weight=F32, bias=F32))


def masks() -> None:
    right(problems.plan(lambda draw: draw.integers(0, 2, 9, 600), CPU))


def geglu() -> None:
    right(problems.geglu(9, 12, F32, CPU))


def far_from_zero() -> None:
    checks.check_rows_far_from_zero(CPU, 1e4, 1e-3, 768)


def of_kernels(test: str, *arguments: object) -> None:
    spec = importlib.util.spec_from_file_location("test_kernels", Path(__file__).with_name("test_kernels.py"))
    test_kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(test_kernels)
    getattr(test_kernels, test)(*arguments)


def offsets(op: str) -> Callable[[], None]:
    return functools.partial(of_kernels, "test_offsets_beyond_32_bits", op, 8)


indices = functools.partial(of_kernels, "test_indices_outside_name_nothing", 2**31 - 1)
bounds = functools.partial(of_kernels, "test_hostile_bounds_give_tiles_inside", (0, 2**31 - 1, 10), 4)

# name: op, what stands there, what the bug makes of it, the check
BUGS = {
    "barrier_of_shared_rows": ("layer_norm", "    sync_block();\n    float total", "    float total", wide_rows),
    "barrier_between_turns": ("layer_norm", "      });\n    sync_block();\n  }", "      });\n  }", rows),
    "barrier_of_the_scan": ("padding", "    sync_block();\n    int64_t before", "    int64_t before", masks),
    "scan_without_turns": ("padding", "    turn_ ^= 1;\n", "", masks),
    "slot_used_again": ("layer_norm", "sum(centred, 1)", "sum(centred, 0)", wide_rows),
    "tail_mask_of_rows": ("layer_norm", "if (c < C) body", "if (c < C + kPack) body", rows),
    "tail_mask_of_geglu": ("geglu", "f < F;", "f <= F;", geglu),
    "tail_mask_of_the_plan": ("padding", "s < S && mask", "mask", masks),
    "no_mean_correction": ("layer_norm", "row[at + i] -= correction;", "", far_from_zero),
    "int32_offset_of_a_row": ("layer_norm", "source * a.x_stride", "int32_t(source * a.x_stride)", offsets("layer_norm")),
    "int32_offset_of_a_gather": ("padding", "source * x_stride + u", "int32_t(source * x_stride) + u", offsets("padding")),
    "int32_offset_of_geglu": ("geglu", "x + t * x_stride + F + f", "x + int32_t(t * x_stride) + F + f", offsets("geglu")),
    "indices_not_held": ("padding", "source >= 0 && source < x_rows", "source >= 0", indices),
    "bounds_not_held": ("padding", "return bound < 0 ? 0 : bound > total ? total : bound;", "return bound;", bounds),
}  # fmt: skip


def write(folder: Path) -> None:
    """For CMake: a folder for each bug, with the op's file and a binding.h that knows fp32 only, to compile faster."""
    binding = (CSRC / "cuda" / "binding.h").read_text()
    for dtype in ("BFloat16", "Half"):
        line = f"    case ScalarType::{dtype}: return body(Type<{dtype}>());\n"
        assert line in binding, "with_type has changed: so must this"
        binding = binding.replace(line, "")
    for name, (op, stands, wrong, _) in BUGS.items():
        source = (CSRC / "cuda" / f"{op}.cu").read_text()
        assert stands in source, f"{name}: the kernel has changed: so must its bug"
        for file, text in ((f"{op}.cu", source.replace(stands, wrong)), ("binding.h", binding)):
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_text() != text:  # what has not changed is not compiled again
                path.write_text(text)


def answer(built: Path, check: object) -> str:
    """What the check says of a library, in a process of its own."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            library.CUDA_ON_HOST = str(built)
            try:
                with dispatch.use_backend("cuda", "padding", "layer_norm", "geglu"), testing.poisoned():
                    check()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return "passed"
        said.seek(0)
        words = re.findall(r"^\w*Error\b.*|ERROR: AddressSanitizer: .*|runtime error: .*", said.read(), re.M)
        return words[0] if words else "ended without a word"


if __name__ == "__main__":
    good, folder = map(Path, sys.argv[1:])
    answers = {
        name: (answer(good, check), answer(folder / f"bug_{name}.so", check)) for name, (*_, check) in BUGS.items()
    }
    print(json.dumps(answers))
