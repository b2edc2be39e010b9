"""transformers' ModernBERT in, the same object out with packed forwards; restore() undoes it exactly.

The `__class__` of the models (hf.py), their embeddings and their layers (hf_encoder.py) becomes a subclass of the same
name. Parameters, buffers, module names, config and hooks stay untouched.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from modernbert_fast import dispatch
from modernbert_fast.config import EncoderConfig
from modernbert_fast.frequencies import inv_freq
from modernbert_fast.graphs import Graphs

logger = logging.getLogger("modernbert_fast")

_SETTINGS = "modernbert_fast_settings"


@dataclass
class Settings:
    """What accelerate() was asked, kept on each accelerated ModernBertModel as `modernbert_fast_settings`.

    Attributes:
        config: the encoder's, read once.
        strict: raise where the stock path would run.
        loss_only: with labels, masked language modelling returns the loss without logits.
        restart_position_ids: a position id of 0 starts a new text.
        static: reasons why this model always takes the stock path.
        said: reasons already logged.
        graphs: the encoder's CUDA graphs, where they were asked for.
    """

    config: EncoderConfig | None
    strict: bool = False
    loss_only: bool = False
    restart_position_ids: bool = False
    static: tuple[str, ...] = ()
    said: set[str] = field(default_factory=set)
    graphs: Graphs | None = None


def accelerate(
    model: nn.Module,
    *,
    strict: bool = False,
    loss_only: bool = False,
    restart_position_ids: bool = False,
    cuda_graphs: bool = False,
) -> Any:
    """Makes every ModernBERT inside `model` run packed: same weights, same outputs, no padding in any layer.

    Call it before DDP, FSDP and torch.compile wrap the model, and before or after PEFT does.

    Args:
        model: a transformers ModernBertModel or ModernBertFor..., or any module that holds one (SentenceTransformer,
            CrossEncoder, a PEFT model). Changed in place.
        strict: raise NotImplementedError where a call would take the stock path, instead of a log line.
        loss_only: with labels, ModernBertForMaskedLM and ModernBertForPreTraining return the loss without logits of
            tokens; only labelled rows meet the vocabulary.
        restart_position_ids: a position id of 0 starts a new text, so that inputs packed that way do not leak.
        cuda_graphs: inference on a GPU, up to 8,192 tokens, replays a CUDA graph of the encoder, recorded at the first
            batch of a size and kept until the model changes: for the latency of small batches. Calls that it does not
            serve run as without it, and report() counts them by reason; on a CPU those are all.

    Returns:
        The same object. Outputs at padding are zero; elsewhere they are those of the stock model. Left-padded
        texts pool their first token, not column 0. Padding takes no part in any loss, whatever its labels say.

    Raises:
        ImportError: without transformers 5.17 or later.
        ValueError: when there is no ModernBERT inside, or it is already compiled or sharded.
    """
    hf = _hf()
    if hasattr(model, "_orig_mod"):
        raise ValueError("accelerate the model before torch.compile wraps it")
    found, accepted = 0, []
    for module in model.modules():
        if "FSDP" in type(module).__name__:
            raise ValueError("accelerate the model before FSDP shards it")
        if not isinstance(module, hf.stock.ModernBertModel):
            continue
        found += 1
        if why := _unfamiliar(hf, module):
            if strict:
                raise NotImplementedError(why)
            logger.warning("modernbert_fast: left as it is: %s", why)
            continue
        config, static = _read_config(module)
        if strict and static:
            raise NotImplementedError("; ".join(static))
        graphs = Graphs() if cuda_graphs else None
        settings = Settings(config, strict, loss_only, restart_position_ids, static, graphs=graphs)
        accepted.append((module, settings))
    if not found:
        raise ValueError(f"found no transformers ModernBertModel inside {type(model).__name__}")
    for module, settings in accepted:  # nothing was changed before every encoder was looked at
        setattr(module, _SETTINGS, settings)
        for part in (module, module.embeddings, *module.layers):
            part.__class__ = hf.CLASSES.get(type(part), type(part))
    for module in model.modules():  # heads, once their encoder is packed
        if type(module) in hf.CLASSES and hasattr(getattr(module, "model", None), _SETTINGS):
            module.__class__ = hf.CLASSES[type(module)]
    pipelines = _pipelines()
    for module in model.modules():
        if type(module) in pipelines and is_accelerated(module):
            module.__class__ = pipelines[type(module)]
    return model


def restore(model: nn.Module) -> Any:
    """Undoes accelerate(): the stock classes again, bit for bit the stock outputs. Returns the same object."""
    stock = {fast: slow for slow, fast in {**_hf().CLASSES, **_pipelines()}.items()}
    for module in model.modules():
        if type(module) in stock:
            module.__class__ = stock[type(module)]
        module.__dict__.pop(_SETTINGS, None)
    return model


def is_accelerated(model: nn.Module) -> bool:
    """Whether any ModernBERT inside `model` runs packed."""
    return any(hasattr(module, _SETTINGS) for module in model.modules())


@contextlib.contextmanager
def accelerated(model: nn.Module, **options: Any) -> Iterator[Any]:
    """accelerate() within the block; after it every class and setting is what it was before."""
    former = [(module, type(module), module.__dict__.get(_SETTINGS)) for module in model.modules()]
    try:
        yield accelerate(model, **options)
    finally:
        for module, kind, settings in former:
            module.__class__ = kind
            module.__dict__.pop(_SETTINGS, None)
            if settings is not None:
                setattr(module, _SETTINGS, settings)


@dataclass(frozen=True)
class Report:
    """What runs on which kernel, and why; `str()` gives a table.

    Attributes:
        encoders: for each ModernBERT found: its name, "packed" or why not, device, dtype, and the rows of each op.
        graphs: for each of them, what its CUDA graphs hold and which calls ran without, if they were asked for.
    """

    encoders: tuple[tuple[str, str, str, str, dict[str, list[tuple[str, list[str]]]]], ...]
    graphs: tuple[list[str], ...]

    def __str__(self) -> str:
        lines = []
        for (name, state, device, dtype, rows), graphs in zip(self.encoders, self.graphs, strict=True):
            lines.append(f"{name or 'model'}: {state} on {device}, {dtype}")
            for op, tried in rows.items():
                taken = next((backend for backend, objections in tried if not objections), "none")
                remark = dispatch.remark(op, taken, getattr(torch, dtype))
                lines.append(f"  {op:<14} {taken}{remark and f' ({remark})'}")
                for backend, objections in tried:
                    if objections:
                        lines.append(f"  {'':<14}   not {backend}: {'; '.join(objections)}")
            lines += [f"  {'' if i else 'CUDA graphs':<14} {line}" for i, line in enumerate(graphs)]
        return "\n".join(lines)


def report(model: nn.Module) -> Report:
    """What accelerate() made of `model`: for every encoder, the backend of each op and the objections of the rest.

    Raises:
        ValueError: when there is no ModernBERT inside.
    """
    hf = _hf()
    encoders, graphs = [], []
    for name, module in model.named_modules():
        if not isinstance(module, hf.stock.ModernBertModel):
            continue
        settings = getattr(module, _SETTINGS, None)
        if settings is None:
            state = "stock; " + (_unfamiliar(hf, module) or "call accelerate()")
        else:
            state = "packed" if not settings.static else "stock path: " + "; ".join(settings.static)
        config = module.config
        rows = dispatch.survey(
            module.device.type,
            module.dtype,
            head_dim=config.hidden_size // config.num_attention_heads,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
        )
        encoders.append((name, state, str(module.device), str(module.dtype).removeprefix("torch."), rows))
        graphs.append(settings.graphs.lines(module.device) if settings and settings.graphs else [])
    if not encoders:
        raise ValueError(f"found no transformers ModernBertModel inside {type(model).__name__}")
    return Report(tuple(encoders), tuple(graphs))


def _hf() -> Any:
    try:
        from modernbert_fast import hf
    except ImportError as error:
        raise ImportError(
            f"accelerate() works on models of transformers 5.17 or later (pip install modernbert-fast[hf]): {error}"
        ) from error
    return hf


def _pipelines() -> dict[type, type]:
    """The classes of sentence-transformers, where a model of its own may be about; older than 6, none."""
    if "sentence_transformers" not in sys.modules:
        return {}
    try:
        from modernbert_fast import sentence
    except ImportError as error:
        logger.warning("modernbert_fast: sentence-transformers' own modules run as they are: %s", error)
        return {}
    return sentence.CLASSES


def _unfamiliar(hf: Any, model: Any) -> str:
    """Why the encoder's module tree is not the one encoder.py drives; empty when it is."""
    familiar = {stock: (stock, fast) for stock, fast in hf.CLASSES.items()}
    expected = [(model, hf.stock.ModernBertModel), (model.embeddings, hf.stock.ModernBertEmbeddings)]
    for layer in model.layers:
        expected += [(layer, hf.stock.ModernBertEncoderLayer)]
        expected += [(layer.attn, hf.stock.ModernBertAttention), (layer.mlp, hf.stock.ModernBertMLP)]
    for module, kind in expected:
        if type(module) not in familiar.get(kind, (kind,)):
            return f"{type(module).__module__}.{type(module).__name__} stands where {kind.__name__} was expected"
    return ""


def _read_config(model: nn.Module) -> tuple[EncoderConfig | None, tuple[str, ...]]:
    """The encoder's config, and the reasons for which it can only run on the stock path."""
    why = []
    config = None
    try:
        config = EncoderConfig.from_hf(model.config)
        for kind in set(config.layer_types):
            inv_freq(config, kind)
    except (ValueError, NotImplementedError) as error:
        why.append(str(error))
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        why.append(f"parameters lie on several devices: {', '.join(sorted(map(str, devices)))}")
    return config, tuple(why)
