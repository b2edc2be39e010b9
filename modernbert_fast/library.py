"""define(): one schema, one fake and one check become one torch op; and the loading of the compiled parts.

An op `<op>_<function>` is opaque to torch.compile. Its body checks its arguments, lets dispatch pick a row of the
table, and calls `<function>` of that row's backend. Compiled CPU ops check their arguments themselves.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import pathlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from modernbert_fast import dispatch

PACKAGE = pathlib.Path(__file__).resolve().parent
NAMESPACE = "modernbert_fast"
NATIVE_NAMESPACE = "modernbert_fast_C"
# The CUDA ops compiled for CPU tensors by tests/simt: a library, and the namespace of its ops.
CUDA_ON_HOST = os.environ.get("MODERNBERT_FAST_CUDA_ON_HOST", "")
HOST_NAMESPACE = "modernbert_fast_host"

_CHECKS = "checks_its_arguments"

# Keeping the Library object alive keeps its registrations alive.
_library = torch.library.Library(NAMESPACE, "DEF")


def define(schema: str, *, op: str, fake: Callable, call: Callable[..., dispatch.Call], check: Callable) -> Callable:
    """Registers one torch op and returns the function that calls it.

    Args:
        schema: torch schema whose name is `<op>_<function>`.
        op: the row of `dispatch.TABLE` that serves it.
        fake: shapes and dtypes of the results, for tracing.
        call: the static facts a row may object to, from the op's arguments.
        check: raises ValueError, TypeError or IndexError on arguments no backend may see; for those that a compiled
            op refused it finds the words.
    """
    name = schema.partition("(")[0]
    function = name.removeprefix(f"{op}_")

    def run(*args: Any) -> Any:
        try:
            backend = dispatch.pick(op, call(*args))
            if not getattr(backend, _CHECKS, False):
                check(*args)
            return getattr(backend, function)(*args)
        except Exception:
            check(*args)
            raise

    def trace(*args: Any) -> Any:
        if len(devices := {x.device for x in args if isinstance(x, torch.Tensor)}) > 1:
            raise ValueError(f"the arguments of {name} live on {' and '.join(sorted(map(str, devices)))}")
        return fake(*args)

    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", trace, lib=_library)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default

    def enter(*args: Any) -> Any:
        return run(*args) if _nobody_looks(args) else overload(*args)

    return enter


_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None)))


def _nobody_looks(args: tuple[Any, ...]) -> bool:
    """Whether torch's dispatcher would only call the op's body again, for as much as a kernel of a short text takes."""
    return (
        not torch.compiler.is_compiling()
        and not wants_gradients()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch.autograd._profiler_enabled()  # which shows ops by the names that they have there
        and _PLAIN.issuperset(map(type, args))
        and not args[0].is_meta
    )


def differentiable(function: type[torch.autograd.Function], op: Callable) -> Callable:
    """`function.apply` where a derivative may be asked for, else `op` itself, which takes the same arguments.

    An autograd Function costs as much as a product of a short text does.
    """
    return function.apply if wants_gradients() else op


def wants_gradients(*inputs: torch.Tensor) -> bool:
    """Whether a derivative of what is computed now, from these inputs where some are named, may be asked for."""
    tracked = torch.is_grad_enabled() and (len(inputs) == 0 or any(x.requires_grad for x in inputs))
    return tracked or (not torch.compiler.is_compiling() and is_transformed())


def is_transformed() -> bool:
    """Whether functorch or forward mode is at work: no_grad stops neither; what a Function cannot do there it says."""
    return torch._C._functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0


def python_backend(package: str) -> Callable[[str], ModuleType]:
    """A backend of Python files: `modernbert_fast.<package>.<op>`."""
    return lambda op: importlib.import_module(f"{NAMESPACE}.{package}.{op}")


def interprets(backend: str) -> bool:
    """Whether kernels written for a GPU run on CPU tensors in this process."""
    return interprets_triton() if backend == "triton" else backend == "cuda" and CUDA_ON_HOST != ""


@functools.cache
def interprets_triton() -> bool:
    """Whether Triton runs kernels in its interpreter, which takes tensors of any device (TRITON_INTERPRET=1)."""
    try:
        import triton
    except ImportError:
        return False
    return triton.knobs.runtime.interpret


class Reading:
    """Values of a tensor on their way to the host, which waits for them no sooner than get() is called.

    What is asked for before something that the host waits for anyway, such as the number of tokens, costs no wait.
    """

    def __init__(self, x: torch.Tensor) -> None:
        self._values = x.to("cpu", non_blocking=x.is_cuda)
        self._ready = torch.cuda.current_stream(x.device).record_event() if x.is_cuda else None

    def get(self) -> Any:
        """The number, or the list of them."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._values.tolist()


def no_graphs(device: torch.device) -> str:
    """Why nothing is recorded on this device to be replayed; empty where it can be."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"no CUDA graphs on {device.type}"
    return "somebody else is recording a graph" if torch.cuda.is_current_stream_capturing() else ""


def native_backend(library: str) -> Callable[[str], SimpleNamespace]:
    """A backend of compiled ops: `torch.ops.modernbert_fast_C.<op>_<function>`, once `library` is loaded."""
    namespace = HOST_NAMESPACE if library == "_ops_cuda" and CUDA_ON_HOST else NATIVE_NAMESPACE

    def load(op: str) -> SimpleNamespace:
        if why := _load_shared(library):
            raise ImportError(why)
        functions = {
            overload.partition("::")[2].removeprefix(f"{op}_"): overload.partition("::")[2]
            for overload in torch._C._dispatch_get_all_op_names()
            if overload.startswith(f"{namespace}::{op}_")
        }
        if not functions:
            raise ImportError(f"{library} holds no {op}")
        native = getattr(torch.ops, namespace)
        ops = {short: getattr(native, full).default for short, full in functions.items()}
        from modernbert_fast.ops import checks  # which imports this file

        # What lies on a GPU is read by nobody but strict checks; what stands for it on the host, by ours.
        checks_itself = library == "_ops_cpu" or not (checks.STRICT or CUDA_ON_HOST)
        return SimpleNamespace(**ops, **{_CHECKS: checks_itself})

    return load


def native_status() -> dict[str, str]:
    """Each compiled library: "loaded", or why it is not."""
    return {name: _load_shared(name) or "loaded" for name in ("_ops_cpu", "_ops_cuda")}


def build_info() -> dict[str, Any]:
    """What setup.py built and with which compiler, as it wrote it down; empty for a source tree never built."""
    path = PACKAGE / "_build_info.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@functools.cache
def _load_shared(name: str) -> str:
    """Loads `<name>.so`; returns "" or the reason it is not usable here."""
    on_host = name == "_ops_cuda" and CUDA_ON_HOST
    path = pathlib.Path(CUDA_ON_HOST) if on_host else PACKAGE / f"{name}.so"
    if not path.is_file():
        return f"{name}.so was not built: {build_info().get('parts', {}).get(name, {}).get('reason', 'no build here')}"
    if name == "_ops_cuda" and not on_host:
        if torch.version.cuda is None:
            return "_ops_cuda.so needs a CUDA build of torch"
        if why := _load_shared("_ops_cpu"):  # the schemas live there
            return why
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{name}.so does not load: {error}"
    return ""


def isa() -> str:
    """Loops that the compiled CPU ops run: amx, avx512bf16, avx512, avx2, baseline; none where they are not built.

    Raises:
        ValueError: MODERNBERT_FAST_ISA names one that is unknown or that this processor cannot run.
    """
    return "none" if _load_shared("_ops_cpu") else getattr(torch.ops, NATIVE_NAMESPACE).cpu_isa()


def device_facts(device: torch.device) -> dict[str, Any]:
    """What the bits of the ops depend on, of a device and what is installed for it: JSON values.

    On a GPU the CPU beside it is left out, as no op runs there.
    """
    if device.type != "cuda":
        return {"device": device.type, "isa": isa()}
    try:
        import triton
    except ImportError:
        triton = None
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": device.type,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,  # torch's matrix products are chosen by their number too
        "sm": os.environ.get("MODERNBERT_FAST_SM", ""),
        "cuda ops": not _load_shared("_ops_cuda"),
        "triton": triton.__version__ if triton else "",
    }


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU that matter here, by the names of /proc/cpuinfo (avx2, amx_bf16 ...)."""
    try:
        import modernbert_fast._host as _host
    except ImportError:
        known = {
            "avx2": torch.cpu._is_avx2_supported,
            "avx512f": torch.cpu._is_avx512_supported,
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported,
            "amx_bf16": torch.cpu._is_amx_tile_supported,
        }
        return frozenset(flag for flag, supported in known.items() if supported())
    return frozenset(_host.cpu_flags())
