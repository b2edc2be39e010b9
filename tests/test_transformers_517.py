"""The parity tests again, on transformers 5.17, which `make` installs beside the newest."""

import os
import subprocess
import sys
from pathlib import Path

import hf_models as hf
import pytest

ROOT = Path(__file__).resolve().parents[1]
OTHER = ROOT / ".venv" / "transformers-5.17"

NAME_THE_VERSION = """
import sys, pytest, transformers
print("transformers", transformers.__version__, flush=True)
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_parity_with_transformers_5_17():
    if not OTHER.is_dir():
        reason = f"{OTHER.relative_to(ROOT)} is missing: run make"
        if os.environ.get("CI") or os.environ.get("MODERNBERT_FAST_REQUIRE_517"):
            pytest.fail(reason)
        pytest.skip(reason)
    env = hf.environment()
    env["PYTHONPATH"] = os.pathsep.join((str(OTHER), env["PYTHONPATH"]))
    args = ["-q", "-p", "no:cacheprovider", "tests/test_parity.py"]
    run = subprocess.run(
        [sys.executable, "-c", NAME_THE_VERSION, *args], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert run.stdout.startswith("transformers 5.17.")
