"""A pre-training from its flags: a recipe, a folder that is this run's, a tokenizer and stores."""

import argparse
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modernbert_fast import durable
from modernbert_fast.commands import CommandError, require
from modernbert_fast.commands.flags.pretrain import OBJECTIVES
from modernbert_fast.commands.models import folder_of
from modernbert_fast.config import EncoderConfig
from modernbert_fast.training import presets
from modernbert_fast.training.documents import HUB
from modernbert_fast.training.token_store import TokenStore
from modernbert_fast.untrusted import read_json

PLAN = "plan.json"
HEAD_DIM = 64


def run(args: argparse.Namespace) -> int:
    for module in ("transformers", "accelerate", "optimi", "tokenizers"):
        require(module, "train")
    try:
        return _run(args)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error


def _run(args: argparse.Namespace) -> int:
    recipe = recipe_of(args)
    for source in args.data:
        if not source.startswith(HUB) and not Path(source).exists():
            raise CommandError(f"--data {source}: no such file or folder")
    main = int(os.environ.get("RANK", 0)) == 0  # of torchrun and accelerate launch
    if main:
        print(presets.table(recipe), flush=True)
    if args.dry_run:
        return 0
    import torch
    import transformers
    from accelerate import PartialState

    from modernbert_fast.training import pretraining

    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()  # of saving, which would break the one of training
    cpu = args.device == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu)
    plan = {**_plan(args), "recipe": json.loads(json.dumps(dataclasses.asdict(recipe)))}
    if not main:
        logging.getLogger("modernbert_fast").setLevel(logging.ERROR)  # the first process says it
    ways = OBJECTIVES[args.objective]
    with state.main_process_first():
        if state.is_main_process:
            _claim(args, plan)
        tokenizer_folder = _tokenizer(args)
        stores = pretraining.open_stores(
            args.data,
            args.field,
            tokenizer_folder,
            args.output / "store",
            held_out=args.held_out,
            workers=args.workers,
            sentences=ways > 0,
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    source = folder_of(args.init_from) if args.init_from else None
    if source and not _sized(args):
        config = transformers.ModernBertConfig.from_pretrained(source)
    else:
        config = pretraining.new_config(dict(recipe.model), tokenizer)
    if main:
        print("\n".join(describe(stores)))
        print(f"{'model':<12}{EncoderConfig.from_hf(config).num_parameters():,} parameters, head aside", flush=True)
    objective = pretraining.Objective(ways, "mask" if args.mask_special else "keep", args.seed)
    options = pretraining.Options(
        precision=args.precision,
        checkpointing=args.checkpointing,
        shard=args.shard,
        workers=args.workers,
        mask_on_device=args.mask_on_device,
        cpu=cpu,
        log_steps=args.log_steps,
        save_steps=args.save_steps,
        keep=max(3, args.average),
        reports=() if args.no_tensorboard else ("tensorboard",),
    )
    model = pretraining.run(
        recipe.phases,
        config,
        args.output,
        stores,
        objective,
        options,
        tokenizer=tokenizer,
        source=source,
        average=args.average,
    )
    if main:
        print(f"{'done':<12}{model}")
    return 0


def describe(stores: Sequence[TokenStore | None]) -> list[str]:
    """A line a store, to train on and to evaluate on; a few long documents are another share than was asked for."""
    tokens = [0 if store is None else int(store.lengths.sum()) for store in stores]
    return [
        f"{name:<12}{len(store):,} documents, {count:,} tokens ({count / sum(tokens):.1%}) in {store.folder}"
        for name, store, count in zip(("train on", "held out"), stores, tokens, strict=True)
        if store is not None
    ]


def recipe_of(args: argparse.Namespace) -> presets.Recipe:
    """The recipe that the arguments name, or make up.

    Raises:
        OSError, ValueError: a recipe that cannot be read or does not fit together.
    """
    if args.preset or args.recipe:
        recipe = presets.PRESETS[args.preset] if args.preset else presets.from_json(args.recipe)
        own = [name for name in (*_SIZES, *_TRAINING) if getattr(args, name) is not None]
        if own:
            raise ValueError(f"--{own[0].replace('_', '-')} and a preset or recipe: the latter says it already")
        return recipe
    tokens, length, batch = args.tokens or 10_000_000, args.max_length or 512, args.batch or 32
    phase = presets.Phase(
        name="pretraining",
        tokens=tokens,
        max_length=length,
        learning_rate=_given(args.learning_rate, 8e-4),
        batch=batch,
        micro_batch=args.micro_batch or min(batch, 32),
        warmup_tokens=int(_given(args.warmup, 0.02) * tokens),
        decay_tokens=int(_given(args.decay, 0.2) * tokens),
        rope_theta=_given(args.rope_theta, 10_000.0),
        masked=_given(args.masked, 0.3),
    )
    hidden = args.hidden or 256
    if hidden % HEAD_DIM:
        raise ValueError(f"--hidden {hidden} is no multiple of {HEAD_DIM}, the width of a head")
    model = {
        "num_hidden_layers": args.layers or 4,
        "hidden_size": hidden,
        "intermediate_size": args.intermediate or hidden * 3 // 2,
        "num_attention_heads": hidden // HEAD_DIM,
        "local_attention": args.local_attention or 128,
    }
    EncoderConfig.from_dict(model)
    return presets.Recipe("own sizes" if not args.init_from or _sized(args) else "as it is", (phase,), model)


def _given(value: float | None, default: float) -> float:
    return default if value is None else value  # 0 is given, and Phase says what it must not be


_SIZES = ("layers", "hidden", "intermediate", "local_attention")
_TRAINING = (
    *("tokens", "max_length", "rope_theta", "batch", "micro_batch"),
    *("learning_rate", "warmup", "decay", "masked"),
)


def _sized(args: argparse.Namespace) -> bool:
    """Whether the arguments say how large the model is."""
    return bool(args.preset or args.recipe or any(getattr(args, name) for name in _SIZES))


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    """What a resumed run must agree with, besides the recipe."""
    names = ("data", "field", "held_out", "tokenizer", "vocabulary", "objective", "init_from", "mask_special", "seed")
    return {name: getattr(args, name) for name in names}


def _claim(args: argparse.Namespace, plan: dict[str, Any]) -> None:
    """Makes the folder this run's, or finds that it is.

    Raises:
        CommandError: it holds another run, or this one and nobody said --resume.
    """
    path = args.output / PLAN
    if not path.exists():
        if args.output.exists() and any(args.output.iterdir()):
            raise CommandError(f"{args.output} is not empty and holds no run")
        durable.write_json(path, plan)
        return
    former = read_json(path)
    differing = sorted(key for key in plan if former.get(key) != plan[key])
    if differing:
        raise CommandError(f"{args.output} holds a run whose {differing[0]} differs; choose another folder")
    if not args.resume and any(args.output.glob("*/checkpoint-*")):
        raise CommandError(f"{args.output} holds a run that has begun: --resume goes on with it")


def _tokenizer(args: argparse.Namespace) -> Path:
    """The folder of the run's tokenizer: given, of the weights to start from, or trained here."""
    from modernbert_fast.training.documents import read_documents
    from modernbert_fast.training.tokenizer import save_tokenizer, train_tokenizer

    if args.tokenizer or args.init_from:
        return folder_of(args.tokenizer or args.init_from)
    folder = args.output / "tokenizer"
    if not folder.exists():
        partial = folder.with_name(".tokenizer.unfinished")
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        documents = (text for source in args.data for text in read_documents(source, args.field))
        prefix_space = OBJECTIVES[args.objective] > 0
        save_tokenizer(train_tokenizer(documents, args.vocabulary, prefix_space=prefix_space), partial)
        durable.sync_tree(partial)
        partial.replace(folder)
        durable.sync_folder(args.output)
    return folder
