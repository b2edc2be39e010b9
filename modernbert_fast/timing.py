"""Fair timing: arms interleaved round by round in one process, medians and spread, memory, machine facts."""

import ctypes
import functools
import gc
import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Arm:
    """One of the things compared.

    Attributes:
        name: what the table calls it.
        run: does the work once; its result is what `check` sees.
        check: takes the result of the last warm-up and raises when it is wrong: no wrong arm is ever timed.
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[Any], None] | None = None


@dataclass(frozen=True)
class Measurement:
    """What one arm took.

    Attributes:
        name: the arm's.
        samples: seconds, one a round.
        peak_bytes: memory its last warm-up needed above what was held before; None if unknown.
    """

    name: str
    samples: tuple[float, ...]
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def p20(self) -> float:
        return _quantile(self.samples, 0.2)

    @property
    def p80(self) -> float:
        return _quantile(self.samples, 0.8)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        spread = {"median": self.median, "p20": self.p20, "p80": self.p80}
        return {"name": self.name, **spread, "samples": list(self.samples), "peak_bytes": self.peak_bytes}


def interleave(
    arms: Sequence[Arm],
    rounds: int = 5,
    warmup: int = 1,
    *,
    rest: float = 0.0,
    clock: Callable[[Callable[[], Any]], float] | None = None,
    leave_out: Callable[[Arm, Exception], bool] = lambda arm, error: False,
    until: float = math.inf,
) -> list[Measurement]:
    """Times every arm once a round, so that drift of the machine meets all arms alike.

    Args:
        arms: what to compare. All are warmed up and checked before the first is timed.
        rounds: samples per arm, at least 1.
        warmup: untimed runs per arm; at least 1 if any arm has a check.
        rest: idle seconds before each sample, for the threads of the arm before to stop spinning.
        clock: from an arm's `run` to the seconds of one call; `seconds` unless given.
        leave_out: asked when an arm fails in its warm-up or its check; True times the others without it.
        until: time.time() after which nothing is begun: rounds end, and an arm without a sample has failed.

    Returns:
        One measurement per arm that is not left out, in the order of `arms`.

    Raises:
        ValueError: `rounds` or `warmup` is too small.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if warmup < (1 if any(arm.check for arm in arms) else 0):
        raise ValueError(f"warmup must be at least 1 where an arm is checked, got {warmup}")
    over = TimeoutError("the time was over")
    peaks: list[tuple[Arm, int | None]] = []
    for arm in arms:
        try:
            if time.time() > until:
                raise over
            peaks.append((arm, _warm_up(arm, warmup)))
        except Exception as error:  # whatever it is, the caller decides whether the others go on
            if not leave_out(arm, error):
                raise
    samples: list[list[float]] = [[] for _ in peaks]
    for _ in range(rounds):
        for (arm, _), taken in zip(peaks, samples, strict=True):
            if time.time() > until:
                break
            time.sleep(rest)
            try:
                taken.append((clock or seconds)(arm.run))
            except Exception as error:  # a lost accelerator: whose doing it was
                raise RuntimeError(f"while {arm.name} was timed: {error}") from error
    for (arm, _), taken in zip(peaks, samples, strict=True):
        if not taken and not leave_out(arm, over):
            raise over
    return [Measurement(a.name, tuple(taken), peak) for (a, peak), taken in zip(peaks, samples, strict=True) if taken]


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call, device work included; what the call returns is freed outside the clock."""
    synchronize()
    start = time.perf_counter()
    result = run()
    synchronize()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def device_seconds(run: Callable[[], Any]) -> float:
    """What one call takes on the GPU, between two events; wall time without one.

    A long write comes first: it empties the caches, and meanwhile the host runs ahead, so that launches cost nothing.
    """
    if not torch.cuda.is_available():
        return seconds(run)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _sweep().zero_()
    start.record()
    result = run()
    end.record()
    torch.cuda.synchronize()
    del result
    return start.elapsed_time(end) / 1e3


@functools.cache
def _sweep() -> torch.Tensor:
    return torch.empty(2**30, dtype=torch.uint8, device="cuda")  # a quarter of a millisecond


def synchronize() -> None:
    """Waits for the accelerator, if the machine has one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def peak_memory(run: Callable[[], Any]) -> tuple[Any, int | None]:
    """The result of one call, and the bytes it needed above what was held before.

    On an accelerator that did any work: its allocator's peak. Otherwise the growth of the process's resident
    set, from the kernel's own high-water mark (Linux; None where the system keeps none that can be reset).
    """
    gc.collect()
    synchronize()
    _return_free_heap()
    device_before, host_before = _reset_device_peak(), _reset_host_peak()
    result = run()
    synchronize()
    device = torch.accelerator.max_memory_allocated() - device_before if torch.accelerator.is_available() else 0
    if device:
        return result, device
    return result, None if host_before is None else _high_water_mark() - host_before


def resident_memory() -> int | None:
    """Bytes of this process that are in memory once freed heap has gone back; None where the system does not say."""
    gc.collect()
    _return_free_heap()
    with suppress(OSError):
        return _status_bytes("VmRSS")
    return None


def machine_facts() -> dict[str, Any]:
    """What a reader must know to compare a number with his own."""
    from modernbert_fast import __version__, library

    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "modernbert-fast": __version__,
        **{name: version(name) for name in ("torch", "transformers", "triton")},
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": library.isa(),
        "cpu_flags": sorted(library.cpu_flags()),
        "accelerators": accelerators(),
    }


def accelerators() -> list[dict[str, Any]]:
    """Name, compute capability and memory of every visible accelerator."""
    if not torch.accelerator.is_available():
        return []
    module = torch.get_device_module()
    found = []
    for index in range(torch.accelerator.device_count()):
        properties = module.get_device_properties(index)
        major, minor = getattr(properties, "major", None), getattr(properties, "minor", None)
        found.append(
            {
                "name": properties.name,
                "capability": None if major is None else f"{major}.{minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return found


def free_memory() -> int | None:
    """Bytes that the GPU still has; None without one."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def driver_facts() -> dict[str, str | None]:
    """What nvidia-smi says of driver, power limit and clocks; None where there is none."""
    names = {"driver": "driver_version", "power_limit": "power.limit", "max_sm_clock": "clocks.max.sm"}
    command = ["nvidia-smi", f"--query-gpu={','.join(names.values())}", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(names)
    return dict(zip(names, map(str.strip, printed.splitlines()[0].split(",")), strict=True))


def version(package: str) -> str | None:
    """Installed version of a package, read without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_commit(root: Path | None = None) -> str | None:
    """Commit of a checkout, this package's unless told, `+changes` if files differ; None where there is none."""
    root = root or Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _warm_up(arm: Arm, times: int) -> int | None:
    """Runs an arm untimed and checks what it gives; the last run's peak memory."""
    for _ in range(times - 1):
        arm.run()
    if times == 0:
        return None
    result, peak = peak_memory(arm.run)
    if arm.check is not None:
        arm.check(result)
    return peak


def _quantile(samples: Sequence[float], fraction: float) -> float:
    """Linear interpolation between the two nearest ranks."""
    ordered = sorted(samples)
    rank = fraction * (len(ordered) - 1)
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (rank - low) * (ordered[high] - ordered[low])


def _reset_host_peak() -> int | None:
    """Starts a new peak of the resident set; returns the bytes resident now, None where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _high_water_mark()


def _high_water_mark() -> int:
    """The largest resident set since the last reset, in bytes."""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _reset_device_peak() -> int:
    """Starts a new peak on the accelerator; returns the bytes held now."""
    if not torch.accelerator.is_available():
        return 0
    torch.accelerator.reset_peak_memory_stats()
    return torch.accelerator.memory_allocated()


def _return_free_heap() -> None:
    """Gives freed heap back to the system: what one arm left must not hide the next one's growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
