"""What gets installed, from what, and that the folder named `kernels` harms nobody."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OLD_TRANSFORMERS = ROOT / ".venv" / "transformers-5.17"

TINY = {f"modernbert_fast/tiny/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md")}

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree")


def python(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a fresh interpreter; fails with what it printed."""
    names = ("CC", "CXX", "PYTHONPATH", "MODERNBERT_FAST_SKIP_BUILD", "MODERNBERT_FAST_CUDA")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd, env=clean | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(what: str, source: Path, output: Path, **environment: str) -> tuple[Path, str]:
    """Runs a build as pip does it, without isolation: the file, and what the build printed."""
    output.mkdir(exist_ok=True)
    script = f"import sys; from setuptools import build_meta as b; print('built', b.build_{what}(sys.argv[1]))"
    printed = python("-P", "-c", script, output, cwd=source, **environment)
    return output / re.findall(r"^built (.*)$", printed, re.M)[-1], printed


def unzip(wheel: Path) -> Path:
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def tree(folder: str, *suffixes: str) -> set[str]:
    files = (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return {str(path.relative_to(ROOT)) for path in files}


@pytest.fixture(scope="session")
def unpacked_sdist(tmp_path_factory) -> Path:
    """The source distribution of a copy of this tree, unpacked."""
    folder = tmp_path_factory.mktemp("packaging")
    checkout = folder / "checkout"
    unwanted = (".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "results")
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*unwanted))
    (checkout / "modernbert_fast" / "_ops_left_over.so").touch()
    archive, _ = build("sdist", checkout, folder / "sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def pure_wheel(unpacked_sdist) -> Path:
    return build("wheel", unpacked_sdist, unpacked_sdist.parent / "pure", MODERNBERT_FAST_SKIP_BUILD="1")[0]


def test_sdist_holds_all_sources_and_no_binaries(unpacked_sdist):
    packed = {str(path.relative_to(unpacked_sdist)) for path in unpacked_sdist.rglob("*") if path.is_file()}
    wanted = tree("csrc", ".cpp", ".h", ".cu", ".cuh") | tree("kernels", ".py") | tree("modernbert_fast", ".py") | TINY
    assert wanted | {"setup.py", "CMakeLists.txt", "pyproject.toml", "LICENSE"} <= packed
    assert not {name for name in packed if name.endswith((".so", "_build_info.json"))}


def test_wheel_installs_one_package(pure_wheel):
    with zipfile.ZipFile(pure_wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"modernbert_fast"}
    moved = {f"modernbert_fast/{name}" for name in tree("kernels", ".py")}
    assert tree("modernbert_fast", ".py") | moved | {"modernbert_fast/py.typed"} | TINY <= set(names)
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in names if name.endswith(".so")]


def test_install_without_a_compiler_works_and_says_why(unpacked_sdist, tmp_path):
    wheel, printed = build("wheel", unpacked_sdist, tmp_path, CC="false")
    assert wheel.name.endswith("-py3-none-any.whl")
    reason = "no C++ compiler: CC=false cannot compile a program"
    assert f"modernbert-fast: _ops_cpu not built: {reason}" in printed
    installed = unzip(wheel)
    info = json.loads((installed / "modernbert_fast" / "_build_info.json").read_text())
    assert info["parts"]["_ops_cpu"] == {"built": False, "reason": reason}
    script = """
import sys
# An editable install would add the compiled parts of this tree to the package under test.
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
import torch, modernbert_fast as mf
from modernbert_fast import packing
x = torch.randn(3, 8)
torch.testing.assert_close(mf.ops.layer_norm(x, torch.ones(8)), torch.nn.functional.layer_norm(x, (8,)))
print(packing._host, mf.__file__)
"""
    assert f"None {installed}" in python("-P", "-c", script, cwd=tmp_path, PYTHONPATH=str(installed))


def test_a_forced_part_that_cannot_be_built_fails_the_install(unpacked_sdist, tmp_path):
    with pytest.raises(AssertionError, match="MODERNBERT_FAST_CUDA=1, but: no C.. compiler"):
        build("wheel", unpacked_sdist, tmp_path, CC="false", MODERNBERT_FAST_CUDA="1")


TRAP = """
import sys, torch, transformers
from transformers import ModernBertConfig, ModernBertModel

config = ModernBertConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
    cls_token_id=1, bos_token_id=1, sep_token_id=2, eos_token_id=2,
)
model = ModernBertModel(config).eval()
assert model(torch.arange(10)[None]).last_hidden_state.isfinite().all()
import kernels
print("kernels", kernels.__version__, getattr(kernels, "REAL", False), transformers.__version__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["current", "5.17"])
@pytest.mark.parametrize("real", [True, False], ids=["kernels installed", "kernels absent"])
def test_clone_on_the_path_does_not_disturb_transformers(tmp_path, real, version):
    """The repository root first on sys.path, as `python -m pytest`, notebooks and IDEs put it."""
    pytest.importorskip("transformers")
    if version == "5.17" and not OLD_TRANSFORMERS.is_dir():
        pytest.skip("transformers 5.17 is set up by `make build`")
    path = [ROOT]
    if version == "5.17":
        path.append(OLD_TRANSFORMERS)
    if real:
        package = tmp_path / "site" / "kernels"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("__version__ = '0.0.1'  # too old to be used\nREAL = True\n")
        path.append(tmp_path / "site")
    printed = python("-c", TRAP, cwd=tmp_path, PYTHONPATH=os.pathsep.join(map(str, path)))
    expected = "0.0.1 True" if real else r"\S+ False"
    assert re.search(f"^kernels {expected} {'5.17' if version == '5.17' else ''}", printed, re.M), printed


def test_editable_install_finds_the_kernels(tmp_path):
    try:
        importlib.metadata.distribution("modernbert-fast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("modernbert-fast is not installed here")
    script = "import modernbert_fast.kernels as k; print(k.__name__, k.__file__)"
    assert "modernbert_fast.kernels " in python("-P", "-c", script, cwd=tmp_path)


def test_kernels_import_only_torch_triton_and_each_other():
    """The folder stays fit for the Hugging Face Hub, and never imports the other package of its name."""
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for name in tree("kernels", ".py"):
        assert Path(name).stem not in allowed, f"{name} would hide the module of that name"
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            for module in modules:
                assert module.split(".")[0] in allowed or module.startswith("modernbert_fast.kernels"), (
                    name,
                    module,
                )


def test_pytest_keeps_the_root_off_the_path():
    assert not (ROOT / "conftest.py").exists() and not (ROOT / "tests" / "__init__.py").exists()
    assert "--import-mode=importlib" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
def test_cuda_operators_compile_without_a_gpu(tmp_path):
    """One architecture; the library names libtorch_cuda.so, and so loads with a torch that has CUDA only. Its kernels
    spill no register and move 16 bytes at a time."""
    options = ["-DMODERNBERT_FAST_CPU=OFF", "-DMODERNBERT_FAST_CUDA=ON", "-DMODERNBERT_FAST_CUDA_ARCHS=80-real",
               f"-DPython_EXECUTABLE={sys.executable}", f"-DMODERNBERT_FAST_OUTPUT={tmp_path}"]  # fmt: skip
    for command in (
        ["-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja", *options],
        ["--build", tmp_path / "build"],
    ):
        done = subprocess.run(["cmake", *map(str, command)], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    needed = subprocess.run(["readelf", "-d", tmp_path / "_ops_cuda.so"], capture_output=True, text=True).stdout
    assert "libtorch_cuda.so" in needed and "libcudart" not in needed
    undefined = subprocess.run(
        ["nm", "-D", "-u", "-C", tmp_path / "_ops_cuda.so"], capture_output=True, text=True
    ).stdout
    assert "at::" not in undefined and "c10::" not in undefined
    if importlib.util.find_spec("triton") is not None:  # cuobjdump comes with it
        printed = python(ROOT / "tools" / "lint_cuda.py", tmp_path / "_ops_cuda.so", cwd=tmp_path)
        assert re.search(r"layer_norm_forward_kernel<BFloat16, .* 8> +\d+\n", printed) and "0 faults" in printed


RESOURCES = """
arch = sm_80
 Function _Z24layer_norm_reduce_kernelv:
  REG:32 STACK:0 SHARED:0 LOCAL:0
 Function _Z25layer_norm_forward_kernelIfLi4EEvv:
  REG:64 STACK:16 SHARED:0 LOCAL:0
"""


def test_spills_and_narrow_loads_are_faults(monkeypatch, capsys):
    offline = pytest.importorskip("modernbert_fast.kernels.offline")
    spec = importlib.util.spec_from_file_location("lint_cuda", ROOT / "tools" / "lint_cuda.py")
    lint_cuda = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lint_cuda)
    code = "arch = sm_80\n\t\tFunction : _Z25layer_norm_forward_kernelIfLi4EEvv\n  LDG.E.64 R2, [R4] ;\n"
    monkeypatch.setattr(offline, "cuobjdump", lambda option, _: code if "sass" in option else RESOURCES)
    assert lint_cuda.main("library") == 1
    said = capsys.readouterr().out
    assert re.search(r"layer_norm_forward_kernel<float, 4> +64!16\n", said)
    assert "sm_80 layer_norm_forward_kernel<float, 4>: 16 bytes of stack" in said
    assert "sm_80 layer_norm_forward_kernel<float, 4>: no LDG" in said
    assert "no kernel is called geglu" in said
