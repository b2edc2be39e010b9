"""What nvcc makes of the CUDA kernels, without a GPU: the instructions that they are written for, and no spills."""

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton")  # its package holds the reader of binaries

CUDA = Path(__file__).resolve().parents[1] / "csrc" / "cuda"

# source, chip, instructions that must be there, and must not
CASES = [
    ("attention/sm75.cu", 75, ("HMMA.1688.F32", "LDSM.16.MT88.4", "LDG.E.128", "STS.128"), ("HMMA.16816", "LDGSTS")),
    ("attention/sm80.cu", 80, ("HMMA.16816.F32", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS.128"), ("HMMA.1688",)),
    ("attention/sm80.cu", 86, ("HMMA.16816.F32.BF16", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS.128"), ("HMMA.1688",)),
    ("attention/sm90_forward.cu", "90a", ("HGMMA.64x64x16.F32", "UTMALDG.3D"), ("LDGSTS",)),
    ("attention/sm90_backward.cu", "90a", ("HGMMA.64x64x16.F32", "UTMALDG.3D"), ("LDGSTS",)),
]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("source, chip, has, has_not", CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_kernels_compile_to(source, chip, has, has_not, tmp_path):
    cubin = tmp_path / "kernels.cubin"
    done = subprocess.run(
        ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{chip}", f"-I{CUDA}", "-Xptxas", "-v", "-cubin", "-o", cubin,
         CUDA / source], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = re.findall(r"Compiling entry function '(\w+)'", done.stderr)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(names) == len(spills) > 0
    assert {name: spilled for name, spilled in zip(names, spills, strict=True) if set(spilled) != {"0"}} == {}

    sass = importlib.import_module("modernbert_fast.kernels.offline").cuobjdump("--dump-sass", str(cubin))
    kernels = {part.split("\n", 1)[0].strip(): part for part in sass.split("Function : ")[1:]}
    multiplying = {name: code for name, code in kernels.items() if "HMMA" in code or "HGMMA" in code}
    assert {name for name in kernels if "turn_kernel" not in name} == set(multiplying)
    for name, code in multiplying.items():
        of_bfloat16 = "bfloat16" in name
        for instruction in has:
            if ".BF16" not in instruction or of_bfloat16:
                assert instruction in code, f"{name} has no {instruction}"
        for instruction in has_not:
            assert instruction not in code, f"{name} has {instruction}"
