"""Fine-tuning inside transformers' Trainer: packed batches in, the best checkpoint and its predictions out."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from modernbert_fast import accelerate
from modernbert_fast.training.collators import a_row_a_text
from modernbert_fast.training.kinds import KINDS, Feature
from modernbert_fast.training.tasks import Examples, Recipe, Task, score

logger = logging.getLogger("modernbert_fast")
if not sys.stderr.isatty():
    transformers.utils.logging.disable_progress_bar()

PER_TOKEN = ("tokens", "spans")
WARM_UP = 0.06  # share of the steps


@dataclass(frozen=True)
class Settings:
    """How to train, beside the task's recipe.

    Attributes:
        max_length: tokens of a text; the model's limit when None.
        accumulate: micro-batches a batch.
        evaluations: of the development set, evenly spread; the best of these checkpoints is kept.
        patience: so many in a row without a better one end the training.
        dtype: of matrix products; weights stay float32.
        lora: rank of adapters on every matrix of the encoder, merged at the end; 0 trains all weights.
        cpu: not on the accelerator, even if there is one.
    """

    max_length: int | None = None
    accumulate: int = 1
    evaluations: int = 10
    patience: int = 3
    dtype: str = "float32"
    lora: int = 0
    cpu: bool = False


class FineTuner(transformers.Trainer):
    """transformers.Trainer over the examples of one task, whose predictions have a row a text however batches are laid.

    With gradient accumulation and several processes the loss is the mean over micro-batches, as it is without them;
    a plain Trainer takes these models' `**kwargs` for a promise to divide by num_items_in_batch, and sums instead.
    """

    def __init__(
        self,
        task: Task,
        model: Any,
        tokenizer: Any,
        args: transformers.TrainingArguments,
        *,
        max_length: int | None = None,
        train: Examples = (),
        dev: Examples = (),
        callbacks: Sequence[transformers.TrainerCallback] = (),
    ):
        self.task, self.kind, self.tokenizer = task, KINDS[task.kind], tokenizer
        self.max_length = max_length or model.config.max_position_embeddings
        self.dev = dev
        super().__init__(
            model,
            args,
            self.kind.collate,
            train_dataset=self.features(train) if train else None,
            eval_dataset=self.features(dev) if dev else None,
            callbacks=list(callbacks),
        )
        self.model_accepts_loss_kwargs = False

    def features(self, examples: Examples) -> list[Feature]:
        """What the collator takes; says how many texts the limit may have cut."""
        features = self.kind.encode(self.tokenizer, examples, self.task.labels, self.max_length)
        texts = [feature["input_ids"] for feature in features]
        if self.task.kind == "choices":
            texts = [choice for choices in texts for choice in choices]
        full = sum(len(text) >= self.max_length for text in texts)
        if full and self.task.kind != "spans":  # whose windows cut nothing
            logger.warning("%d of %d texts reach %d tokens and may be cut", full, len(texts), self.max_length)
        return features

    def outputs(self, examples: Examples, features: list[Feature] | None = None) -> list[Any]:
        """A prediction an example, as its kind decodes them."""
        features = self.features(examples) if features is None else features
        given = self.predict(features).predictions
        return self.kind.decode(examples, features, given, self.task.labels)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """The task's metrics of the development set, and their mean as "score"."""
        values = self.task.measure(self.dev, self.outputs(self.dev, self.eval_dataset))
        logs = {f"{metric_key_prefix}_{name}": value for name, value in {**values, "score": score(values)}.items()}
        self.log(logs)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        loss, given, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self.task.kind in PER_TOKEN:
            bounds = inputs["cu_seq_lens_q"]
            given = (
                tuple(a_row_a_text(flat, bounds) for flat in given)
                if isinstance(given, tuple)
                else a_row_a_text(given, bounds)
            )
        return None, given, None


class _LastStep(transformers.TrainerCallback):
    """The end of training is evaluated too, wherever the last regular evaluation was."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


def load_model(task: Task, folder: str | Path, lora: int = 0) -> Any:
    """An accelerated model with the task's head on a checkpoint's encoder.

    The classifier is drawn anew unless the checkpoint is of this very architecture and these labels. Weights are read
    from safetensors alone.

    Raises:
        OSError, ValueError: transformers cannot load the checkpoint, or it is no ModernBERT.
    """
    pickled = Path(folder, "adapter_model.bin")  # use_safetensors does not keep transformers from it
    if pickled.exists():
        raise ValueError(f"{pickled} is pickled, which runs code when loaded: save it as safetensors")
    kind = getattr(transformers, KINDS[task.kind].architecture)
    config = transformers.AutoConfig.from_pretrained(folder)
    names = {
        "texts": task.labels or ("value",),
        "tokens": task.labels,
        "choices": ("choice",),
        "spans": ("start", "end"),
    }
    id2label = dict(enumerate(names[task.kind]))
    known = config.id2label == id2label and config.architectures == [
        KINDS[task.kind].architecture.replace("AutoModel", "ModernBert")
    ]
    config.id2label, config.label2id = id2label, {name: number for number, name in id2label.items()}
    config.problem_type = {"texts": "single_label_classification" if task.labels else "regression"}.get(task.kind)
    model = kind.from_pretrained(
        folder, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, use_safetensors=True
    )
    if not known:  # as transformers draws a new one
        std = config.hidden_size**-0.5
        cut = std * (config.initializer_cutoff_factor or 3)
        torch.nn.init.trunc_normal_(model.classifier.weight, std=std, a=-cut, b=cut)
        torch.nn.init.zeros_(model.classifier.bias)
    if lora:
        from peft import LoraConfig, get_peft_model

        matrices = ["Wqkv", "Wo", "Wi"]
        model = get_peft_model(
            model,
            LoraConfig(r=lora, lora_alpha=2 * lora, target_modules=matrices, modules_to_save=["head", "classifier"]),
        )
    return accelerate(model)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer beside a model."""
    return transformers.AutoTokenizer.from_pretrained(folder)


def finetune(
    task: Task,
    checkpoint: str | Path,
    train: Examples,
    dev: Examples,
    folder: Path,
    recipe: Recipe,
    settings: Settings,
    seed: int = 0,
) -> FineTuner:
    """Trains, keeps the best of the evaluated checkpoints, and saves it with its tokenizer.

    Args:
        checkpoint: where encoder and tokenizer come from.
        folder: of the result, which AutoModelFor... loads.
        seed: of the new head, the order of the examples and dropout.

    Raises:
        OSError, ValueError: the checkpoint cannot be loaded, or a batch not divided into so many micro-batches.
    """
    if recipe.batch_size % settings.accumulate:
        raise ValueError(f"a batch of {recipe.batch_size} does not divide into {settings.accumulate} micro-batches")
    transformers.set_seed(seed)
    model = load_model(task, checkpoint, settings.lora)
    checkpoints = _empty(folder / ".training")
    micro = recipe.batch_size // settings.accumulate
    batches = math.ceil(len(train) / (micro * int(os.environ.get("WORLD_SIZE", 1))))
    steps = math.ceil(batches / settings.accumulate) * recipe.epochs
    every = max(1, round(steps / settings.evaluations))
    args = arguments(
        checkpoints,
        settings,
        recipe.batch_size,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        num_train_epochs=recipe.epochs,
        lr_scheduler_type="linear",
        warmup_steps=WARM_UP,
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        seed=seed,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    trainer = FineTuner(
        task,
        model,
        load_tokenizer(checkpoint),
        args,
        max_length=settings.max_length,
        train=train,
        dev=dev,
        callbacks=[_LastStep(), transformers.EarlyStoppingCallback(settings.patience)],
    )
    trainer.train()
    if settings.lora:
        trainer.model = trainer.model.merge_and_unload()
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(folder)
        trainer.tokenizer.save_pretrained(folder)
        shutil.rmtree(checkpoints)
    trainer.accelerator.wait_for_everyone()  # the next training may start from this folder
    return trainer


def _empty(checkpoints: Path) -> Path:
    """The folder of a training's checkpoints, without those that a killed training left.

    Raises:
        ValueError: it holds something else.
    """
    if checkpoints.exists() and os.environ.get("RANK", "0") == "0":
        others = [path.name for path in checkpoints.iterdir() if not path.name.startswith("checkpoint-")]
        if others:
            raise ValueError(f"{checkpoints} is where training keeps its checkpoints, but it holds {others[0]}")
        shutil.rmtree(checkpoints)
    return checkpoints


def arguments(folder: Path, settings: Settings, batch_size: int, **more: Any) -> transformers.TrainingArguments:
    """What training and evaluation share. One process drives one accelerator; torchrun starts several."""
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=batch_size,
        eval_accumulation_steps=16,
        bf16=settings.dtype == "bfloat16",
        fp16=settings.dtype == "float16",
        use_cpu=settings.cpu,
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=not sys.stderr.isatty(),
        **more,
    )
    if args.n_gpu > 1:  # DataParallel cannot split a batch that has one row
        args._n_gpu = 1
    return args
