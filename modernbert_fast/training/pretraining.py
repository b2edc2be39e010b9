"""A recipe carried out: stores from documents, a model from a config or from other weights, one Trainer a phase."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import transformers
from transformers.trainer_utils import get_last_checkpoint

import modernbert_fast as mf
from modernbert_fast.config import EncoderConfig
from modernbert_fast.training import averaging, checkpoints, initialise
from modernbert_fast.training.dataset import TextDataset
from modernbert_fast.training.documents import read_documents
from modernbert_fast.training.extension import extended_config
from modernbert_fast.training.loader import Batch, PackedLoader
from modernbert_fast.training.masking import MaskedLMCollator
from modernbert_fast.training.modeling import ModernBertForPreTraining
from modernbert_fast.training.pairs import PairDataset, pair_pieces
from modernbert_fast.training.presets import Phase
from modernbert_fast.training.sampler import PackedSampler, pieces
from modernbert_fast.training.schedules import MicroBatchTokens, learning_rate_arguments
from modernbert_fast.training.store import TokenStore, build_store
from modernbert_fast.training.trainer import PretrainingTrainer, pretraining_arguments

VOCABULARY_MULTIPLE = 64


@dataclass(frozen=True)
class Objective:
    """What is predicted.

    Attributes:
        ways: of sentence order, 2 or 3; 0 for masked tokens alone.
        special_tokens: "keep" never masks one, "mask" makes no difference.
        seed: of order, masks and pairs.
    """

    ways: int = 0
    special_tokens: str = "keep"
    seed: int = 0

    def dataset(self, store: TokenStore, max_length: int) -> Any:
        """The pieces of a store at one length."""
        if self.ways:
            return PairDataset(store, pair_pieces(store, max_length), ways=self.ways, seed=self.seed)
        return TextDataset(store, pieces(store.lengths, max_length))

    def collator(self, store: TokenStore, rate: float, on_device: bool = False) -> MaskedLMCollator:
        """Masks at a rate, or leaves that to the trainer."""
        options: dict[str, Any] = {"seed": self.seed, "rate": rate, "special_tokens": self.special_tokens}
        return MaskedLMCollator.from_store(store, on_device=on_device, **options)


@dataclass(frozen=True)
class Options:
    """How a phase is run, of what does not change its losses, or hardly.

    Attributes:
        precision: "fp32", "bf16" or "fp16": of autocast; weights stay fp32.
        checkpointing: activations are computed again in the backward pass.
        shard: FSDP2 instead of DDP.
        workers: processes that prepare batches, for each rank.
        mask_on_device: mask where the model is, not in the workers; the same masks.
        cpu: train on the CPU though there is an accelerator.
        log_steps, save_steps: steps between records and between checkpoints with evaluation; None chooses.
        keep: checkpoints that stay.
        held_out_tokens: to evaluate on, at most.
        reports: who gets the log, as transformers' report_to.
    """

    precision: str = "fp32"
    checkpointing: bool = False
    shard: bool = False
    workers: int = 0
    mask_on_device: bool = False
    cpu: bool = False
    log_steps: int | None = None
    save_steps: int | None = None
    keep: int = 3
    held_out_tokens: int = 262_144
    reports: tuple[str, ...] = ("tensorboard",)

    def arguments(self, steps: int) -> dict[str, Any]:
        """Of pretraining_arguments."""
        log = self.log_steps or max(1, steps // 200)
        if self.save_steps and not self.log_steps:  # they must be a multiple
            log = next(fewer for fewer in range(min(log, self.save_steps), 0, -1) if self.save_steps % fewer == 0)
        save = self.save_steps or max(1, steps // 10 // log) * log
        return {
            "logging_steps": log,
            "save_steps": save,
            "eval_steps": save,
            "save_total_limit": self.keep,
            "checkpointing": self.checkpointing,
            "bf16": self.precision == "bf16",
            "fp16": self.precision == "fp16",
            "use_cpu": self.cpu,
            "disable_tqdm": not sys.stderr.isatty(),
            "report_to": list(self.reports) or "none",
        }


def every_kth(documents: Iterable[str], k: int, chosen: bool) -> Iterator[str]:
    """Every k-th document from the first on, or all the others; k = 0 chooses none."""
    for number, document in enumerate(documents):
        if (k > 0 and number % k == 0) == chosen:
            yield document


def open_stores(
    sources: Sequence[str], field: str, tokenizer: Path, folder: Path, *, held_out: float, workers: int, sentences: bool
) -> tuple[TokenStore, TokenStore | None]:
    """The store to train on and the one to evaluate on, built where they are not there yet.

    Args:
        sources: of read_documents, one after the other.
        field: key or column of the text.
        tokenizer: folder.
        folder: gets `train` and `held-out`.
        held_out: share of documents to evaluate on: every k-th. 0 for none.
        workers: processes that tokenise.
        sentences: whether sentence starts are needed.

    Raises:
        OSError, ValueError: of read_documents and build_store; or a store without the sentences that are needed.
    """
    k = round(1 / held_out) if held_out else 0
    stores: list[TokenStore | None] = []
    for name, chosen in (("train", False), ("held-out", True)):
        if chosen and not k:
            stores.append(None)
            continue
        path = folder / name
        if not path.exists():
            documents = (text for source in sources for text in read_documents(source, field))
            try:
                build_store(every_kth(documents, k, chosen), tokenizer, path, workers=workers)
            except ValueError as error:
                why = f" ({name}; the first of each {k} documents is held out, with a share of 0 none)" if k else ""
                raise ValueError(f"{error}{why}") from error
        store = TokenStore(path)
        if sentences and not store.has_sentences:
            raise ValueError(f"{path} was built without sentences, which sentence order needs")
        stores.append(store)
    assert stores[0] is not None
    return stores[0], stores[1]


def new_config(sizes: dict[str, Any], tokenizer: Any) -> transformers.ModernBertConfig:
    """A config of these sizes for a tokenizer, the vocabulary rounded up for the matrix product."""
    tokens = {
        "vocab_size": -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    return transformers.ModernBertConfig.from_dict(EncoderConfig.from_dict({**sizes, **tokens}).to_dict())


def build_model(config: Any, phase: Phase, objective: Objective, source: Path | None, seed: int) -> Any:
    """The model of a phase, in fp32, accelerated.

    Args:
        config: its config, but for the phase's length and rope base.
        phase: gives those.
        objective: whether there is an order head.
        source: folder of weights to start from: of the same sizes, or smaller, which are then tiled. None: random.
        seed: of random weights.

    Raises:
        OSError, ValueError: the weights cannot be read, or do not fit.
    """
    config = extended_config(config, phase.max_length, phase.rope_theta)
    config.architectures = None
    kind: Any = transformers.ModernBertForMaskedLM
    if objective.ways:
        kind, config.sentence_order_labels = ModernBertForPreTraining, objective.ways
    transformers.set_seed(seed)
    if source is None:
        model = kind(config)
    elif _shape(transformers.ModernBertConfig.from_pretrained(source)) == _shape(config):
        model = _load(kind, source, config=config)
    else:
        small = _load(kind, source)
        model = kind(config)
        sizes = EncoderConfig.from_hf(small.config), EncoderConfig.from_hf(config)
        model.load_state_dict(initialise.from_smaller(small.state_dict(), sizes[0], model.state_dict(), sizes[1]))
    return mf.accelerate(model, loss_only=True)


def _load(kind: Any, source: Path, **options: Any) -> Any:
    with checkpoints.reading(source):
        return kind.from_pretrained(source, dtype="float32", use_safetensors=True, **options)


def _shape(config: Any) -> tuple[int, ...]:
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return tuple(getattr(config, key) for key in keys)


def held_out_batches(store: TokenStore | None, objective: Objective, phase: Phase, tokens: int) -> list[Batch]:
    """Masked micro-batches of held-out documents, the same at every call; at most `tokens` tokens."""
    if store is None:
        return []
    dataset = objective.dataset(store, phase.max_length)
    size = max(phase.max_length, min(phase.micro_batch * phase.max_length, 16_384))
    sampler = PackedSampler(dataset.lengths, size, seed=objective.seed, epochs=1)
    loader = PackedLoader(dataset, sampler, objective.collator(store, phase.masked))
    return list(islice(loader, max(1, tokens // size)))


def trainer_of(
    phase: Phase,
    model: Any,
    folder: Path,
    stores: tuple[TokenStore, TokenStore | None],
    objective: Objective,
    options: Options,
    *,
    tokenizer: Any = None,
    moments: Path | None = None,
) -> PretrainingTrainer:
    """The Trainer of a phase, for this process.

    Raises:
        ValueError: the phase does not fit the number of processes, or its schedule the number of its steps.
    """
    store, held_out = stores
    schedule, steps = phase.batches, phase.batches.steps(phase.tokens)
    decay_steps = steps - schedule.steps(phase.tokens - phase.decay_tokens)  # of full batches, unlike the first ones
    rates = learning_rate_arguments(steps, schedule.steps(phase.warmup_tokens), decay_steps)
    args = pretraining_arguments(
        folder,
        learning_rate=phase.learning_rate,
        weight_decay=phase.weight_decay,
        seed=objective.seed,
        save_strategy="steps",
        eval_strategy="steps" if held_out else "no",
        **rates,
        **options.arguments(steps),
    )
    accumulation = phase.accumulation(args.world_size)
    args.gradient_accumulation_steps = accumulation
    dataset = objective.dataset(store, phase.max_length)
    sampler = PackedSampler(
        dataset.lengths,
        MicroBatchTokens(schedule, accumulation * args.world_size, phase.max_length),
        seed=objective.seed,
        rank=args.process_index,
        world=args.world_size,
    )
    collator = objective.collator(store, phase.masked, options.mask_on_device)
    loader = PackedLoader(
        dataset,
        sampler,
        collator,
        options.workers,
        pin_memory=not args.use_cpu,
    )
    batches = held_out_batches(held_out, objective, phase, options.held_out_tokens)
    return PretrainingTrainer(
        model,
        args,
        loader,
        batches,
        tokenizer=tokenizer,
        shard=options.shard,
        moments=moments,
        mask=collator.mask if options.mask_on_device else None,
    )


def run(
    phases: Sequence[Phase],
    config: Any,
    output: Path,
    stores: tuple[TokenStore, TokenStore | None],
    objective: Objective,
    options: Options,
    *,
    tokenizer: Any = None,
    source: Path | None = None,
    average: int = 1,
) -> Path:
    """Trains every phase that is not finished yet, each in its own folder from the weights and moments of the last.

    A phase goes on from its last complete checkpoint. In the end `output / "model"` has the weights, or the mean of the
    last `average` checkpoints.

    Returns:
        That folder.
    """
    checkpoint: Path | None = None
    for number, phase in enumerate(phases, 1):
        folder = output / f"{number}-{phase.name}"
        last = get_last_checkpoint(folder) if folder.is_dir() else None
        finished = folder / f"checkpoint-{phase.batches.steps(phase.tokens)}"
        if last != str(finished):
            model = build_model(config, phase, objective, checkpoint or source, objective.seed)
            trainer = trainer_of(
                phase, model, folder, stores, objective, options, tokenizer=tokenizer, moments=checkpoint
            )
            trainer.train(last)
            trainer.accelerator.wait_for_everyone()
        checkpoint = finished
    assert checkpoint is not None
    model_folder = output / "model"
    if transformers.training_args.PartialState().is_main_process and not model_folder.exists():
        kept = sorted(checkpoint.parent.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        averaging.average(kept[-average:], model_folder)
    return model_folder
