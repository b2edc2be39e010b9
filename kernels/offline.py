"""Compiles what a call would launch for a chip that is not here, and reads what it costs from the binary. No GPU."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from modernbert_fast.kernels import launch

SHARED_LIMIT = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a program may have
_TENSOR_CORES = {"mma": r"\bmma\.sync", "wgmma": r"\bwgmma\.mma_async", "tcgen05": r"\btcgen05\.mma"}


class Kernel(NamedTuple):
    """What one launch compiles to.

    Attributes:
        name: file and function.
        chip: 90 for sm_90.
        registers: of a thread.
        spilled: bytes of stack of a thread.
        shared: bytes of shared memory of a program.
        products: instructions on tensor cores, by kind.
    """

    name: str
    chip: int
    registers: int
    spilled: int
    shared: int
    products: dict[str, int]


class _Chip:
    """Stands in for Triton's driver."""

    def __init__(self, chip: int):
        self.chip = chip

    def get_current_device(self) -> int:
        return self.chip  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.chip, 32)


def compiled(call: Callable[[], Any], chip: int) -> list[Kernel]:
    """Every kernel that `call`, on CPU tensors, would launch on sm_`chip`; nothing is computed.

    Raises:
        RuntimeError: in a process that interprets kernels instead.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels cannot be compiled in this process")
    found: list[Kernel] = []

    def compile_only(kernel: Any, grid: tuple[int, ...], x: torch.Tensor, *args: Any, **options: Any) -> None:
        binary = kernel.warmup(*args, grid=grid, **{**launch.FUSED, **options})
        ptx = binary.asm["ptx"]
        products = {kind: len(re.findall(pattern, ptx)) for kind, pattern in _TENSOR_CORES.items()}
        registers, spilled = _resources(binary.asm["cubin"])
        name = f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__.strip('_')}"
        kept = {kind: count for kind, count in products.items() if count}
        found.append(Kernel(name, chip, registers, spilled, binary.metadata.shared, kept))

    with _replaced(launch, "start", compile_only), _replaced(launch, "capability", lambda x: divmod(chip, 10)):
        former = driver._active
        driver.set_active(_Chip(chip))  # type: ignore[arg-type]
        try:
            call()
        finally:
            driver._active = former
    return found


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    former = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, former)


def cuobjdump(*arguments: str) -> str:
    """What NVIDIA's reader of binaries, which comes with Triton, prints."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([str(tool), *arguments], capture_output=True, text=True, check=True).stdout


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack and local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = cuobjdump("--dump-resource-usage", file.name)
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", printed)[1]) for key in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return registers, stack + local
