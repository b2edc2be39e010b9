"""Fixtures that more than one test file needs, and the backend as a parameter read from the table.

A test module of one op says `OP = "<op>"`. Its tests that take `backend`, `device` and `dtype` run for every row of
dispatch.TABLE[OP], on every device of this machine that the row takes, in every dtype it takes. Without a GPU Triton's
rows run in its interpreter.
"""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are imported

import modernbert_fast  # noqa: E402
from modernbert_fast import dispatch, testing  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    with_op = "op" in metafunc.fixturenames
    with_dtype = "dtype" in metafunc.fixturenames
    only = metafunc.definition.get_closest_marker("rows")
    cells = []
    for op in dispatch.TABLE if with_op else (metafunc.module.OP,):
        for row in dispatch.TABLE[op]:
            if only is not None and row.backend not in only.args:
                continue
            # A row with no device here is asked once, to say why it does not run.
            devices = [d for d in DEVICES if row.devices is None or d in row.devices] or DEVICES[:1]
            for device in devices:
                for dtype in [d for d in DTYPES if d in row.dtypes] if with_dtype else (None,):
                    cells.append(((op,) if with_op else ()) + (row.backend, device) + ((dtype,) if with_dtype else ()))
    names = ("op",) * with_op + ("backend", "device") + ("dtype",) * with_dtype
    metafunc.parametrize(names, cells, indirect=["backend", "device"], ids=[_words(cell) for cell in cells])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An interpreted row takes about a millisecond for what a program of a GPU does in a microsecond."""
    skip = pytest.mark.skip(reason="too much work for kernels that are interpreted")
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params
        if (
            item.get_closest_marker("heavy")
            and params
            and params.get("backend") in ("triton", "cuda")
            and params["device"] == "cpu"
        ):
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """The objection of the row under test is why the test is skipped."""
    backend = getattr(pyfuncitem, "callspec", None) and pyfuncitem.callspec.params.get("backend")
    try:
        return (yield)
    except dispatch.NoBackend as objection:
        if not backend:
            raise
        pytest.skip(str(objection))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of the row under test, or the best of this machine."""
    return torch.device(getattr(request, "param", DEVICES[0]))


def _op(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("op") if "op" in request.fixturenames else request.module.OP


@pytest.fixture
def any_dtype(request: pytest.FixtureRequest, backend: str) -> torch.dtype:
    """float32, or where the row under test does not take it, its first dtype: for what does not depend on the dtype."""
    (row,) = (row for row in dispatch.TABLE[_op(request)] if row.backend == backend)
    return torch.float32 if torch.float32 in row.dtypes else row.dtypes[0]


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The row under test, forced for its op; what the package leaves uninitialised is full of NaN."""
    op = _op(request)
    with dispatch.use_backend(request.param, op), testing.poisoned():
        yield request.param


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def _words(cell: tuple) -> str:
    return "-".join(str(part).removeprefix("torch.") for part in cell)


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """Undoes what --threads does to this process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer ModernBERT and a tokenizer trained on Python's manual."""
    pytest.importorskip("tokenizers")
    from safetensors.torch import save_file

    from modernbert_fast import ModernBert
    from modernbert_fast.commands.corpus import manual_texts
    from modernbert_fast.config import EncoderConfig
    from modernbert_fast.training.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("checkpoint")
    config = EncoderConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=512,
        local_attention=16,
        cls_token_id=1,
        bos_token_id=1,
        sep_token_id=2,
        eos_token_id=2,
        pad_token_id=3,
    )
    torch.manual_seed(0)
    save_file(ModernBert(config).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    train_tokenizer(manual_texts(), vocab_size=512).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """Tiny models run on one thread: two spend their time waiting for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stock():
    """A tiny random ModernBertModel of transformers."""
    import hf_models as hf  # here, so that tests of the ops need no transformers

    return hf.build("ModernBertModel", hf.tiny_config())


@pytest.fixture
def fast(stock):
    """The same model, accelerated."""
    return modernbert_fast.accelerate(copy.deepcopy(stock))


@pytest.fixture
def mlm():
    """A tiny random ModernBertForMaskedLM of transformers."""
    import hf_models as hf

    return hf.build(hf.MLM, hf.tiny_config())
