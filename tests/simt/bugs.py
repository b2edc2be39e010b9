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

CPU, F32, F16 = torch.device("cpu"), torch.float32, torch.float16


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


def attention(chip: int, window: int = -1) -> Callable[[], None]:
    def check() -> None:
        os.environ["MODERNBERT_FAST_SM"] = str(chip)
        right(problems.attention((70, 1, 135), 1, 32, F16, CPU, window=window))

    return check


def hopper(check: Callable[[problems.Problem], None] = checks.check_accuracy) -> None:
    os.environ["MODERNBERT_FAST_SM"] = "90"
    check(problems.attention((129, 3), 1, 64, F16, CPU))


def large_scores() -> None:
    os.environ["MODERNBERT_FAST_SM"] = "80"
    problem = problems.attention((129, 3), 1, 32, F16, CPU)
    draw = problem.draw
    checks.check_accuracy(problem.but(draw=lambda of: {k: v * 60 if k == "qkv" else v for k, v in draw(of).items()}))


leaks_on_hopper = functools.partial(hopper, checks.check_isolation)


def holes() -> None:
    right(problems.attention((70, 1, 135), 1, 32, F16, CPU, window=8, holes=True))


def window() -> None:
    checks.check_window(CPU, F16, 64)


def far_from_zero() -> None:
    checks.check_rows_far_from_zero(CPU, 1e4, 1e-3, 768)


def of_kernels(test: str, *arguments: object, file: str = "test_kernels.py") -> None:
    spec = importlib.util.spec_from_file_location("test_kernels", Path(__file__).with_name(file))
    test_kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(test_kernels)
    getattr(test_kernels, test)(*arguments)


of_attention = functools.partial(of_kernels, file="test_attention_kernels.py")


def offsets(op: str) -> Callable[[], None]:
    return functools.partial(of_kernels, "test_offsets_beyond_32_bits", op, 13)


indices = functools.partial(of_kernels, "test_indices_outside_name_nothing", 2**31 - 1)
bounds = functools.partial(of_kernels, "test_hostile_bounds_give_tiles_inside", (0, 2**31 - 1, 10), 4)

far = functools.partial(of_attention, "test_offsets_beyond_32_bits", "80", -1)
hostile = functools.partial(of_attention, "test_hostile_bounds", "80", (-(2**31), 4, 2**31 - 1), 2)
of_nobody = functools.partial(of_attention, "test_hostile_bounds", "80", (2, 6, 8), 2)

# name: op or file, what stands there, what the bug makes of it, the check
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
    "int32_row": ("layer_norm", "source * a.x_stride", "int32_t(source * a.x_stride)", offsets("layer_norm")),
    "int32_gather": ("padding", "source * x_stride", "int32_t(source * x_stride)", offsets("padding")),
    "int32_geglu": ("geglu", "x + t * x_stride + F", "x + int32_t(t * x_stride) + F", offsets("geglu")),
    "indices_not_held": ("padding", "source >= 0 && source < x_rows", "source >= 0", indices),
    "bounds_not_held": ("padding", "return bound < 0 ? 0 : bound > total ? total : bound;", "return bound;", bounds),
    "window_off_by_one": ("attention/mask.cuh", "? 2 * window_ :", "? 2 * window_ + 1 :", window),
    "window_a_block_short": ("attention/seqlen.cuh", "rows.first + kRows +", "rows.first +", attention(80, 64)),
    "window_of_rows_in_holes": ("attention/mask.cuh", "columns_(g.columns)", "columns_(nullptr)", holes),
    "tail_mask_of_keys": ("attention/mask.cuh", "n < end_ && static_cast", "static_cast", attention(80)),
    "tail_mask_of_open_tiles": ("attention/mask.cuh", "if (n + kN > end_)", "if (n > end_)", attention(80)),
    "swapped_fragment_lanes": ("attention/tiles.cuh", "lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2",
                               "lane % 8 + lane / 8 % 2 * 8, 2 * k + lane / 16", attention(80)),
    "swapped_fragment_lanes_of_turing": ("attention/sm75.cuh", "left[2] = {a[0], a[1]}", "left[2] = {a[0], a[2]}",
                                         attention(75)),
    "barrier_before_rows_are_replaced": ("attention/sm75.cuh", "sync_block();  // nobody", "// nobody", attention(75)),
    "barrier_after_copies": ("attention/sm80.cuh", "      sync_block();\n", "", attention(80)),
    "copies_not_waited_for": ("attention/sm80.cuh", "cp_async_wait<0>();", "", attention(80)),
    "barrier_before_results_leave": ("attention/forward.cuh", "(o, tile, own_row);\n  sync_block();",
                                     "(o, tile, own_row);", attention(80)),
    "int32_offset_of_copies": ("attention/sm80.cuh", "(first_ + row) * stride", "int32_t((first_ + row) * stride)",
                               far),
    "int32_offset_of_rows": ("attention/tiles.cuh", "(first + row) * stride + pair",
                             "int32_t((first + row) * stride) + pair",
                             far),
    "sums_not_shrunk": ("attention/softmax.cuh", "total_[band][half] * shrink", "total_[band][half]", attention(80)),
    "gradient_not_turned_back": ("attention/tiles.cuh", "low * cos + high * sin", "low * cos - high * sin",
                                 attention(80, 8)),
    "delta_dropped": ("attention/backward.cuh", "(at - (kOfKeys", "(at - 0 * (kOfKeys", attention(80)),
    "bounds_of_texts_not_held": ("attention/seqlen.cuh", "return x < low ? low : x > high ? high : x",
                                 "return (void)low, (void)high, x", hostile),
    "schedule_not_held": ("attention/seqlen.cuh", "text < 0 || text >= g.B || row < 0 ||", "", hostile),
    "positions_not_held": ("attention/rotary.cuh", "(position < 0 ? 0 : position > last ? last : position)",
                           "(void(last), position)", hostile),
    "tiles_of_keys_not_waited_for": ("attention/sm90_forward.cu", "rings.keys.wait_full(step);", "", hopper),
    "products_not_waited_for": ("attention/sm90_forward.cu", "    products_wait<1>();\n", "", hopper),
    "tiles_given_back_early": ("attention/sm90_backward.cu", "    products_wait<0>();\n    products_settle(sums",
                               "    products_settle(sums", hopper),
    "values_of_other_texts": ("attention/sm90_forward.cu", "if (order.seen < kKeys)", "if (false)",
                              leaks_on_hopper),
    "peak_rounded_before_it_is_subtracted": ("attention/softmax.cuh", "(scores.at[band][n][i] - base) * to_log2_",
                                             "fmaf(scores.at[band][n][i], to_log2_, -base * to_log2_)", large_scores),
    "tail_mask_of_hopper": ("attention/sm90_forward.cu", "i % 2 >= seen", "i % 2 > seen", hopper),
    "rows_of_other_texts": ("attention/sm90_backward.cu", "if (seen < kMet)", "if (false)", leaks_on_hopper),
    "wrong_columns_of_a_factor": ("attention/sm90.cuh", "factor + 2 * i", "factor + i", hopper),
    "statistics_of_the_step_before": ("attention/sm90_backward.cu", "met.of(step)[met_row]",
                                      "met.of(step + 1)[met_row]", hopper),
    "rows_of_nobody": ("attention/seqlen.cuh", "if (t < first || t >= last) zero(t);", "(void(zero), void(first));",
                       of_nobody),
}  # fmt: skip

# Attention's copies know heads of up to 32 columns in fp16.
NARROWED = (
    ("sm90_forward.cu", "forward<BFloat16>", "forward<Half>"),
    ("sm90_backward.cu", "backward<BFloat16>", "backward<Half>"),
    ("tiles.cuh", "  if (D <= 64) return body(std::integral_constant<int, 64>());\n", ""),
    ("tiles.cuh", "  body(std::integral_constant<int, 128>());\n", ""),
    ("sm80.cu", "BFloat16", "Half"),
)


def _replaced(text: str, stands: str, wrong: str, name: str) -> str:
    assert stands in text, f"{name}: the source has changed: so must its copy"
    return text.replace(stands, wrong)


def copies(file: str) -> dict[str, str]:
    """The files that a bug in `file` is compiled from, by name, made smaller to compile faster."""
    if file.startswith("attention/"):
        folder = CSRC / "cuda" / "attention"
        chips = ("sm90",) if "sm90" in file else ("sm75", "sm80")
        texts = {
            path.name: path.read_text()
            for path in folder.iterdir()
            if path.suffix != ".cu" or path.name.startswith(chips)
        }
        for name, stands, smaller in NARROWED:
            if name in texts:
                texts[name] = _replaced(texts[name], stands, smaller, name)
        return texts
    binding = (CSRC / "cuda" / "binding.h").read_text()
    for dtype in ("BFloat16", "Half"):
        line = f"    case ScalarType::{dtype}: return body(Type<{dtype}>());\n"
        binding = _replaced(binding, line, "", "with_type")
    return {file: (CSRC / "cuda" / file).read_text(), "binding.h": binding}


def write(folder: Path) -> None:
    """For CMake: a folder for each bug, with copies of the op's files."""
    for name, (op, stands, wrong, _) in BUGS.items():
        file = op if op.startswith("attention/") else f"{op}.cu"
        texts, bugged = copies(file), Path(file).name
        texts[bugged] = _replaced(texts[bugged], stands, wrong, name)
        for path in (folder / name).glob("*"):
            if path.name not in texts:  # of a bug that was in another file
                path.unlink()
        for copy, text in texts.items():
            path = folder / name / copy
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_text() != text:  # what has not changed is not compiled again
                path.write_text(text)


def answer(built: Path, op: str, check: object) -> str:
    """What the check says of a library, in a process of its own."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            library.CUDA_ON_HOST = str(built)
            try:
                with dispatch.use_backend("cuda", op.partition("/")[0]), testing.poisoned():
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
        name: [answer(built, op, check) for built in (good, folder / f"bug_{name}.so")]
        for name, (op, _, _, check) in BUGS.items()
    }
    print(json.dumps(answers))
