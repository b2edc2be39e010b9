"""The rivals on CPU in their best setting: torch.compile with freezing, ONNX Runtime, OpenVINO.

What "best" means was measured (four base layers, 1x64 to 8x256, two Zen 3 cores). Opset 23, whose Attention and
RotaryEmbedding both runtimes fuse, beats opset 20 by up to a quarter. Neither static shapes nor ONNX Runtime's own
transformer optimizer changes anything beyond the noise. No mask goes in where nothing is padded.
"""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from modernbert_fast.commands.comparison import forward

Inputs = Mapping[str, torch.Tensor]
Run = Callable[[Inputs], torch.Tensor]  # input_ids and, where there is padding, attention_mask (B, S) -> (B, S, C)

PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino")
OPSET = 23


class Exported:
    """A stock float32 encoder as ONNX files in `folder`, with and without a mask, each made when first asked for."""

    def __init__(self, model: Any, folder: Path):
        self._model, self._folder = model, folder
        self.file = functools.cache(self._export)

    def _export(self, masked: bool) -> Path:
        for package in ("onnx", "onnxscript"):
            importlib.import_module(package)  # torch.onnx names another error when they are missing
        ids = torch.arange(48).remainder(self._model.config.vocab_size).view(2, 24)
        arguments = (ids, (ids % 7 > 0).long()) if masked else (ids,)
        names = ["input_ids", "attention_mask"][: len(arguments)]
        path = self._folder / f"{'masked' if masked else 'full'}.onnx"
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is not installed, it says
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Encoder(self._model),
                arguments,
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=["hidden"],
                dynamic_shapes=tuple({0: "batch", 1: "tokens"} for _ in arguments),
                opset_version=OPSET,
            )
        program.save(path, external_data=True)
        return path


class _Encoder(torch.nn.Module):
    """Tensors in, tensor out. Positions for every text: ONNX Runtime's RotaryEmbedding does not broadcast them."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        positions = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        return self.model(input_ids, attention_mask=attention_mask, position_ids=positions).last_hidden_state


def stock(model: Any) -> Run:
    """transformers as it is."""
    return functools.partial(forward, model)


def compiled(model: Any) -> Run:
    """torch.compile with the weights frozen into the graph, which lets Inductor prepack them; one graph a shape."""
    from torch._inductor import config

    config.freezing = True
    torch._dynamo.reset()
    return functools.partial(forward, torch.compile(model, dynamic=False))


def onnxruntime(file: Path, threads: int) -> Run:
    """ONNX Runtime, every graph optimization; its threads stop spinning when a run ends."""
    runtime = importlib.import_module("onnxruntime")
    runtime.set_default_logger_severity(3)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {n: x.numpy() for n, x in inputs.items()})[0])


def openvino(file: Path, threads: int, dtype: torch.dtype) -> Run:
    """OpenVINO with the latency hint.

    Raises:
        RuntimeError: it would compute in another dtype.
    """
    runtime = importlib.import_module("openvino")
    core = runtime.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_HYPER_THREADING": True,  # else it leaves out a thread where two share a core
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype],
    }
    model = core.compile_model(core.read_model(file), "CPU", options)
    used = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != options["INFERENCE_PRECISION_HINT"]:
        raise RuntimeError(f"asked for {options['INFERENCE_PRECISION_HINT']}, it computes in {used} on this processor")
    request = model.create_infer_request()

    def run(inputs: Inputs) -> torch.Tensor:
        arrays = {name: x.numpy() for name, x in inputs.items()}
        return torch.from_numpy(request.infer(arrays, share_inputs=True, share_outputs=True)[0])

    return run
