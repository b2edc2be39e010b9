"""Where the commands get their model, tokenizer, device and dtype."""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch

import modernbert_fast as mf
from modernbert_fast.commands import CommandError, require
from modernbert_fast.commands.flags import shared as flags
from modernbert_fast.config import EncoderConfig

DTYPES = {name: getattr(torch, name) for name in flags.DTYPES}
SEED = 0


def choose_device(args: argparse.Namespace) -> torch.device:
    """The device asked for, or the accelerator, or the CPU; applies --threads on the way.

    Raises:
        CommandError: torch cannot use the device here.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = torch.device(args.device or present or "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    return device


def load_pair(args: argparse.Namespace, device: torch.device) -> tuple[Any, Any]:
    """The stock transformers encoder and an accelerated one, on the same parameters, in eval mode.

    The weights are --model's, or random ones of --preset's shape.
    """
    require("transformers", "hf")
    from transformers import AutoModel

    dtype = DTYPES[args.dtype]
    try:
        if args.model:
            stock = AutoModel.from_pretrained(
                folder_of(args.model), dtype=dtype, local_files_only=True, use_safetensors=True
            )
        else:
            stock = random_model(AutoModel, EncoderConfig.preset(args.preset), dtype)
        stock.set_attn_implementation("sdpa")
        stock = stock.to(device).eval()
        return stock, mf.accelerate(twin(stock))
    except (OSError, TypeError, ValueError) as error:
        raise CommandError(f"{args.model}: {error}") from error


def random_model(kind: Any, config: EncoderConfig, dtype: torch.dtype) -> Any:
    """A model of `kind`, one of transformers' Auto classes, with weights drawn from SEED."""
    from transformers import ModernBertConfig

    torch.manual_seed(SEED)
    return kind.from_config(ModernBertConfig.from_dict(config.to_dict()), dtype=dtype)


def twin(model: torch.nn.Module) -> Any:
    """A second module on the same parameters: two arms for the memory of one."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def load_tokenizer(name: str) -> Any:
    """The `tokenizers.Tokenizer` of a checkpoint, set to neither pad nor cut."""
    tokenizers = require("tokenizers", "hf")
    file = folder_of(name) / "tokenizer.json"
    if not file.is_file():
        raise CommandError(f"{name}: no tokenizer.json there (choose a tokenizer with --tokenizer)")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def folder_of(name: str) -> Path:
    """The folder of a checkpoint: itself, or fetched by its Hugging Face name where HF_HUB_OFFLINE allows.

    Raises:
        CommandError: neither a folder nor a name that can be fetched.
    """
    if Path(name).is_dir():
        return Path(name)
    hub = require("huggingface_hub", "hf")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise CommandError(f"{name} is no folder here, nor can it be fetched: {error}") from error
