"""Builds the package and, where the machine can, its native parts. pyproject.toml holds the metadata.

Each part is optional: what cannot be built is left out, one line says so, and the reason stays in
modernbert_fast/_build_info.json for `modernbert-fast info`.

    MODERNBERT_FAST_SKIP_BUILD=1    the pure Python and Triton package
    MODERNBERT_FAST_CUDA=0          no CUDA operators
    MODERNBERT_FAST_CUDA=1          fail without them; by default they need nvcc and a torch with CUDA
    MODERNBERT_FAST_CUDA_ARCHS      such as "90a" or "80;86", or "all"; default: this machine's GPUs, else all
    CC, CXX, CUDA_HOME, MAX_JOBS    as usual, and so is CMAKE_ARGS: more options for CMake
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SUBPACKAGES = (
    "aten",
    "commands",
    "commands.flags",
    "kernels",
    "ops",
    "reference",
    "retrieval",
    "testing",
    "tiny",
    "training",
)
SKIP_BUILD = os.environ.get("MODERNBERT_FAST_SKIP_BUILD", "") not in ("", "0")
CUDA = os.environ.get("MODERNBERT_FAST_CUDA", "")
CMAKE_ARGS = shlex.split(os.environ.get("CMAKE_ARGS", ""))
ALL_CUDA_ARCHS = "75-real;80-real;86-real;89-real;90a-real;100-real;120"


class CannotBuild(Exception):
    """Why a native part is left out, in words for the user; log is what the failing tool printed."""

    def __init__(self, reason: str, log: str = ""):
        super().__init__(reason)
        self.log = log


def run(*command) -> str:
    """The output of a command; CannotBuild if it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise CannotBuild(f"{words[0]}: {error.strerror}") from error
    if done.returncode:
        errors = [line.strip() for line in done.stdout.splitlines() if "error" in line.lower()]
        reason = errors[0] if errors else f"exit status {done.returncode}"
        raise CannotBuild(f"{Path(words[0]).name} failed: {reason}", done.stdout)
    return done.stdout


def compiles(compiler: str) -> bool:
    """Whether the compiler, with flags if any, compiles a C++ source."""
    with tempfile.TemporaryDirectory() as folder:
        source, compiled = Path(folder, "probe.cpp"), Path(folder, "probe.o")
        source.write_text("#include <cstdint>\nstd::int64_t probe() { return 0; }\n")
        try:
            run(*shlex.split(compiler), "-c", source, "-o", compiled)
        except CannotBuild:
            return False
        return compiled.exists()


def find_compiler() -> str:
    """The C++ compiler. A CC or CXX that does not work means: none."""
    for variable in ("CC", "CXX"):
        value = os.environ.get(variable)
        if value and not compiles(value):
            raise CannotBuild(f"no C++ compiler: {variable}={value} cannot compile a program")
    for compiler in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if compiler and shutil.which(shlex.split(compiler)[0]) and compiles(compiler):
            return compiler
    raise CannotBuild("no C++ compiler found (c++, g++, clang++)")


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise CannotBuild("torch is not installed where the build runs")
    return Path(spec.submodule_search_locations[0])


def torch_version() -> tuple[str, str | None]:
    """Version of torch and of its CUDA, read without importing it."""
    text = (torch_folder() / "version.py").read_text()
    version = re.search(r"^__version__ = '(.*)'", text, re.M)
    cuda = re.search(r"^cuda\b.*= '(.*)'", text, re.M)
    return version[1] if version else "unknown", cuda[1] if cuda else None


def find_nvcc() -> Path:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    on_path = shutil.which("nvcc")
    wheels = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*/bin/nvcc"), reverse=True)
    candidates = [Path(home, "bin", "nvcc") for home in homes if home] + [Path(on_path or "nvcc"), *wheels]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CannotBuild("no nvcc found (CUDA_HOME, PATH, the nvidia wheels)")


def cuda_archs() -> str:
    """Asked for, else those of the GPUs at hand, else all that are supported."""
    archs = os.environ.get("MODERNBERT_FAST_CUDA_ARCHS")
    if archs:
        return ALL_CUDA_ARCHS if archs == "all" else archs
    try:
        found = run("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").split()
    except CannotBuild:
        return ALL_CUDA_ARCHS
    names = {cap.replace(".", "") for cap in found if re.fullmatch(r"\d+\.\d", cap)}
    return ";".join(sorted("90a" if name == "90" else name for name in names)) or ALL_CUDA_ARCHS


def jobs() -> int:
    """Compilers at once: one for each core, and for each 4 GB of memory."""
    asked = os.environ.get("MAX_JOBS")
    if asked:
        return int(asked)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, memory // 4_000_000_000))


def cmake(name: str, output: Path, compiler: str, *options: str) -> None:
    """Configures and builds the targets that the options select into output."""
    torch, ninja = torch_folder(), shutil.which("ninja")
    if ninja is None:
        raise CannotBuild("ninja is not installed")
    # CMake keeps the paths it was configured with: a folder for each set of them.
    paths = [sys.executable, compiler, ninja, str(torch), str(output)]
    key = hashlib.sha256("\n".join(paths + CMAKE_ARGS).encode()).hexdigest()
    folder = ROOT / "build" / f"cmake-{name}-{key[:8]}"
    common = [
        "-G",
        "Ninja",
        f"-DCMAKE_CXX_COMPILER={';'.join(shlex.split(compiler))}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    run("cmake", "-S", ROOT, "-B", folder, *common, f"-DMODERNBERT_FAST_OUTPUT={output}", *CMAKE_ARGS, *options)
    run("cmake", "--build", folder, "--parallel", jobs())


def build_cpu(output: Path, info: dict) -> str:
    compiler = find_compiler()
    info["compiler"] = run(*shlex.split(compiler), "--version").splitlines()[0]
    cmake("cpu", output, compiler, "-DMODERNBERT_FAST_CPU=ON", "-DMODERNBERT_FAST_CUDA=OFF")
    return f"for {platform.machine()} with {info['compiler']}"


def build_cuda(output: Path, info: dict) -> str:
    if CUDA == "0":
        raise CannotBuild("MODERNBERT_FAST_CUDA=0")
    if CUDA != "1" and info["torch_cuda"] is None:
        raise CannotBuild("this torch is for the CPU only; MODERNBERT_FAST_CUDA=1 builds them all the same")
    compiler, nvcc = find_compiler(), find_nvcc()
    release = re.search(r"release (\d+)\.(\d+)", run(nvcc, "--version"))
    version = f"{release[1]}.{release[2]}" if release else "unknown"
    torch_cuda = info["torch_cuda"]
    if torch_cuda and torch_cuda.split(".")[0] != version.split(".")[0]:
        raise CannotBuild(f"nvcc is CUDA {version}, torch was built with CUDA {torch_cuda}")
    info["nvcc"], info["cuda_archs"] = version, cuda_archs()
    print(f"modernbert-fast: compiling CUDA operators for {info['cuda_archs']}", flush=True)
    cmake("cuda", output, compiler, "-DMODERNBERT_FAST_CPU=OFF", "-DMODERNBERT_FAST_CUDA=ON",
          f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DMODERNBERT_FAST_CUDA_ARCHS={info['cuda_archs']}")  # fmt: skip
    return f"for {info['cuda_archs']} with nvcc {version}"


def git_commit() -> str | None:
    try:
        return run("git", "rev-parse", "HEAD").strip() if (ROOT / ".git").exists() else None
    except CannotBuild:
        return None


def build_native(output: Path) -> None:
    """Builds what can be built, says a line for each part, and records it."""
    for stale in [*output.glob("*.so"), output / "_build_info.json"]:
        stale.unlink(missing_ok=True)
    parts = {"_ops_cpu": build_cpu, "_ops_cuda": build_cuda}
    forced = "_ops_cuda" if CUDA == "1" else None
    info: dict = {"python": platform.python_version(), "git_commit": git_commit(), "parts": {}}
    try:
        info["torch"], info["torch_cuda"] = torch_version()
    except CannotBuild:
        info["torch"] = info["torch_cuda"] = None  # each part will say so
    for part, build in parts.items():
        try:
            if SKIP_BUILD:
                raise CannotBuild("MODERNBERT_FAST_SKIP_BUILD=1")
            began = time.monotonic()
            reason, built = f"{build(output, info)} in {time.monotonic() - began:.0f} s", True
        except CannotBuild as error:
            print(error.log, end="", file=sys.stderr)
            if part == forced:
                raise SystemExit(f"modernbert-fast: MODERNBERT_FAST_CUDA=1, but: {error}") from error
            reason, built = str(error), False
        info["parts"][part] = {"built": built, "reason": reason}
        print(f"modernbert-fast: {part} {'built ' if built else 'not built: '}{reason}", flush=True)
    (output / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")


class BuildPy(build_py):
    """Copies the Python files, then builds the native parts beside them."""

    def run(self):
        super().run()
        build_native((ROOT if self.editable_mode else Path(self.build_lib).resolve()) / "modernbert_fast")


class NativeMarker(build_ext):
    """Nothing left to build: the extension below only makes the wheel a wheel for this platform."""

    def run(self):
        pass

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


def native_possible() -> bool:
    if SKIP_BUILD:
        return False
    try:
        find_compiler()
    except CannotBuild:
        return False
    return True


setup(
    packages=["modernbert_fast", *(f"modernbert_fast.{name}" for name in SUBPACKAGES)],
    # Installed as a top-level `kernels` it would replace the package that Hugging Face gave that name.
    package_dir={"modernbert_fast.kernels": "kernels"},
    package_data={
        "modernbert_fast": ["py.typed"],
        "modernbert_fast.tiny": ["*.safetensors", "*.json", "*.jsonl", "*.png", "README.md"],
    },
    ext_modules=[Extension("modernbert_fast._host", sources=[])] if native_possible() else [],
    cmdclass={"build_py": BuildPy, "build_ext": NativeMarker},
)
