"""transformers' Trainer on packed micro-batches: losses over all ranks, exact resume, tokens/s, a held-out score."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.trainer_utils import rotate_checkpoints

from modernbert_fast import heads
from modernbert_fast.config import EncoderConfig
from modernbert_fast.training import checkpoints, history, sharding
from modernbert_fast.training.loader import Batch, PackedLoader
from modernbert_fast.training.optimizer import stable_adamw
from modernbert_fast.training.throughput import Meter, product_rate

_MEANINGLESS = ("train_samples_per_second", "eval_samples_per_second")  # of texts, which Trainer cannot count here


def pretraining_arguments(
    output: Path | str, *, checkpointing: bool = False, **changes: Any
) -> transformers.TrainingArguments:
    """TrainingArguments with what PretrainingTrainer needs; `changes` are theirs.

    No gradient is clipped, for StableAdamW clips updates; data is resumed by the loader's own state, not by replay.

    Args:
        output: folder of the run.
        checkpointing: activations of a layer are computed again in its backward.
    """
    if checkpointing:
        known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
        name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
        changes |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    fixed = {
        "ignore_data_skip": True,
        "average_tokens_across_devices": True,
        "logging_nan_inf_filter": False,
        "ddp_find_unused_parameters": False,
    }
    usual = {"max_grad_norm": 0.0, "logging_first_step": True, "save_total_limit": 3}
    # Without an accelerator transformers sees several processes only where it is told to use the CPU.
    changes["use_cpu"] = changes.get("use_cpu", False) or not torch.accelerator.is_available()
    args = transformers.TrainingArguments(output_dir=str(output), **{**usual, **changes, **fixed})
    args._n_gpu = min(args.n_gpu, 1)  # a process trains on one GPU, whatever it sees
    return args


class PretrainingTrainer(transformers.Trainer):
    """Trains an accelerated ModernBertForMaskedLM or ModernBertForPreTraining on flattened micro-batches.

    A checkpoint holds weights, optimizer, schedule, the loader's position and the random state, no pickle among them,
    and appears under its name when it is complete. A resumed run gives the bits of an undisturbed one, on as many
    processes as before and with the same kernels.

    Args:
        model: fp32 weights; bf16 and fp16 in `args` mean autocast.
        args: from pretraining_arguments, with max_steps.
        loader: micro-batches of this rank, without end; `args.gradient_accumulation_steps` of them make a step.
        held_out: micro-batches to evaluate on, the same list on every rank.
        tokenizer: saved beside the weights.
        shard: FSDP2: parameters, gradients and moments are spread over the ranks, layer by layer.
        moments: folder of a checkpoint whose optimizer moments a new phase starts from.
        mask: what a collator with `on_device` left undone, done where the model is; `held_out` is masked already.
        share: measure the device's matrix products, and log what share of their rate the training has.

    Raises:
        ValueError: the arguments do not fit together.
    """

    def __init__(
        self,
        model: Any,
        args: transformers.TrainingArguments,
        loader: PackedLoader,
        held_out: Sequence[Batch] = (),
        *,
        tokenizer: Any = None,
        shard: bool = False,
        moments: Path | None = None,
        mask: Callable[[Batch], Batch] | None = None,
        share: bool = True,
        **kwargs: Any,
    ) -> None:
        if args.max_steps < 1 or not args.ignore_data_skip:
            raise ValueError("PretrainingTrainer needs max_steps, and arguments made by pretraining_arguments")
        if args.save_strategy == "steps" and args.save_steps % args.logging_steps:
            raise ValueError(
                f"save_steps ({args.save_steps}) must be a multiple of logging_steps ({args.logging_steps})"
            )
        if args.fp16 and args.use_cpu:
            raise ValueError("fp16 needs an accelerator; a CPU trains in fp32 or bf16")
        self.is_sharded = shard and args.world_size > 1
        triton = torch.cuda.is_available() and not args.use_cpu and not self.is_sharded
        super().__init__(
            model,
            args,
            train_dataset=loader,
            eval_dataset=held_out,
            processing_class=tokenizer,
            optimizer_cls_and_kwargs=stable_adamw(args.learning_rate, args.weight_decay, triton=triton),
            **kwargs,
        )
        self.add_callback(history.History)
        self.loader, self.moments, self.mask = loader, moments, mask
        if self.is_sharded:
            if not hasattr(self, "is_distributed_loading_by_transformers"):
                raise ValueError(f"sharding needs a later transformers than {transformers.__version__}: 5.23 has it")
            sharding.shard(self.model)
            self.is_distributed_loading_by_transformers = True  # Trainer: the model sees to its own placement
        self._meter = Meter(EncoderConfig.from_hf(model.config))
        self._rate: float | None = None
        self._share = share
        self._losses = torch.zeros(2, dtype=torch.float64, device=args.device)  # of tokens, of order
        self._lapped = 0
        self._num_texts: torch.Tensor | None = None

    def get_train_dataloader(self) -> Any:
        return self.loader

    # Losses

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device) -> Any:
        if (mask := self.mask) is not None:
            epoch_iterator = map(lambda batch: mask(self._prepare_inputs(batch)), epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        """Labelled tokens of the step over all ranks; the texts with an order are counted beside."""
        self._num_texts = None
        if batch_samples and "sentence_order_label" in batch_samples[0]:
            texts = torch.stack([(batch["sentence_order_label"] != heads.IGNORE).sum() for batch in batch_samples])
            self._num_texts = self.accelerator.reduce(texts.sum().to(device))
        items = super()._get_num_items_in_batch(batch_samples, device)
        return items.clamp_min(1)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self._num_texts is not None:
            inputs = {**inputs, "num_texts_in_batch": self._num_texts.clamp_min(1)}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        total, order = loss.detach() / self.accelerator.num_processes, torch.zeros_like(loss)
        if self._num_texts is not None:
            labels = inputs["sentence_order_label"]
            order = heads.rows_loss(outputs["sop_logits"].detach(), labels, inputs["num_texts_in_batch"])
        self._losses += torch.stack([total - order, order])
        return (loss, outputs) if return_outputs else loss

    # Log

    def floating_point_ops(self, inputs: Batch) -> float:
        """Trainer asks this of every micro-batch that was trained."""
        return self._meter.add(inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._lap())
        for key in _MEANINGLESS:
            logs.pop(key, None)
        self.state.epoch = self.state.global_step / self.args.max_steps  # Trainer counts from where it resumed
        super().log(logs, start_time)

    def _lap(self) -> dict[str, float]:
        """Losses apart, and speed, since the last lap."""
        steps = self.state.global_step - self._lapped
        tokens, flops, seconds = self._meter.lap()
        counts = torch.tensor([tokens, flops], dtype=torch.float64, device=self._losses.device)
        sums = self.accelerator.reduce(torch.cat([self._losses, counts]))
        mlm, order, tokens, flops = sums.tolist()
        self._losses.zero_()
        self._lapped = self.state.global_step
        logs = {"mlm_loss": mlm / steps, "tokens_per_second": tokens / seconds, "step_tokens": tokens / steps}
        if self._num_texts is not None:
            logs["order_loss"] = order / steps
        if self._rate:
            logs["share_of_limit"] = flops / seconds / self._rate / self.accelerator.num_processes
        return logs

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        if self._share and self._rate is None:
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision, torch.float32)
            self._rate = product_rate(self.args.device, dtype)
        torch.manual_seed(self.args.seed + self.args.process_index)  # dropout differs from rank to rank
        self._meter.lap()
        output = super().train(resume_from_checkpoint, **kwargs)
        self._plot()
        return output

    def _plot(self) -> None:
        if self.is_world_process_zero():
            history.plot(self.state.log_history, Path(self.args.output_dir) / history.PLOT)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Called when the optimizer is what it will stay."""
        if self.moments is not None:
            checkpoints.load_optimizer(self.moments, self.model, self.optimizer.optimizer, rates=False)
        return super().create_scheduler(num_training_steps, optimizer)

    @contextlib.contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        with self._meter.paused(), checkpoints.staged(output, name, self.args.should_save) as staging:
            self.accelerator.wait_for_everyone()
            self.args.output_dir = str(staging)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = str(output)
            self.accelerator.wait_for_everyone()
        with self._meter.paused():
            if self.args.should_save:
                rotate_checkpoints(str(output), self.args.save_total_limit)
            self._plot()
            self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink()  # a pickle
            (folder / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_sharded:
            return super().save_model(output_dir, _internal_call)
        state = sharding.gathered(self.model)
        if self.args.should_save:
            self._save(output_dir, state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        weights = checkpoints.check(folder, adapter=hasattr(self.model, "peft_config"))
        with checkpoints.reading(weights):
            if self.is_sharded:
                sharding.load(self.model, folder)
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        checkpoints.save_optimizer(folder, self.model, self.optimizer.optimizer, self.args.should_save)
        if self.args.should_save:
            checkpoints.save_values(folder, "scheduler", self.lr_scheduler.state_dict())
            checkpoints.save_data_state(folder, self.loader.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        checkpoints.load_optimizer(folder, self.model, self.optimizer.optimizer)
        schedule, data = checkpoints.load_values(folder, "scheduler"), checkpoints.load_data_state(folder)
        with checkpoints.reading(folder / "scheduler.json"):
            self.lr_scheduler.load_state_dict(schedule)
        with checkpoints.reading(folder / checkpoints.DATA):
            self.loader.load_state_dict(data)
        self._lapped = self.state.global_step

    def _save_scaler(self, output_dir: str) -> None:
        if self.accelerator.scaler is not None and self.args.should_save:
            checkpoints.save_values(Path(output_dir), "scaler", self.accelerator.scaler.state_dict())

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.accelerator.scaler is not None and checkpoint is not None:
            values = checkpoints.load_values(Path(checkpoint), "scaler")
            with checkpoints.reading(Path(checkpoint) / "scaler.json"):
                self.accelerator.scaler.load_state_dict(values)

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        checkpoints.save_random_state(Path(output_dir), self.args.process_index)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_random_state(Path(checkpoint), self.args.process_index)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """MLM loss and perplexity, accuracy at masked tokens and, with pairs, loss and accuracy of their order."""
        batches = self.eval_dataset if eval_dataset is None else eval_dataset
        with self._meter.paused(), torch.no_grad(), _with_logits(self.model):
            self.model.eval()
            sums = torch.zeros(6, dtype=torch.float64, device=self.args.device)
            world, rank = self.args.world_size, self.args.process_index
            for first in range(0, len(batches), world):  # a rank without a batch goes along, for its shards are needed
                sums += self._score(batches[min(first + rank, len(batches) - 1)]) * (first + rank < len(batches))
            sums = self.accelerator.reduce(sums)
            self.model.train()
        mlm, correct, labelled, order, ordered, texts = sums.tolist()
        loss = mlm / max(labelled, 1)
        metrics = {
            "loss": loss,
            "mlm_loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "masked_accuracy": correct / max(labelled, 1),
        }
        if texts:
            metrics |= {"loss": loss + order / texts, "order_loss": order / texts, "order_accuracy": ordered / texts}
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in metrics.items()}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _score(self, batch: Batch) -> torch.Tensor:
        """(6,): loss, hits and number of masked tokens; loss, hits and number of ordered texts."""
        batch = self._prepare_inputs(batch)
        with self.accelerator.autocast():
            outputs = self.model(**batch)
        logits = outputs["logits"] if "logits" in outputs else outputs["prediction_logits"]
        sums = _sums(logits, batch["labels"][batch["labels"] != heads.IGNORE])
        if "sentence_order_label" in batch:
            return torch.cat([sums, _sums(outputs["sop_logits"], batch["sentence_order_label"])])
        return torch.cat([sums, torch.zeros_like(sums)])


def _sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(3,) fp64: cross entropy, hits and count of labelled rows."""
    labelled = labels != heads.IGNORE
    hits = (logits.argmax(-1) == labels)[labelled].sum()
    return torch.stack([heads.rows_loss(logits, labels, 1).double(), hits.double(), labelled.sum().double()])


@contextlib.contextmanager
def _with_logits(model: torch.nn.Module) -> Iterator[None]:
    """Within the block a forward with labels gives the logits of labelled rows, and of these alone."""
    former = []
    for module in model.modules():
        for owner, name, value in (
            (module, "sparse_prediction", True),
            (getattr(module, "modernbert_fast_settings", None), "loss_only", False),
        ):
            if owner is not None and name in vars(owner):
                former.append((owner, name, getattr(owner, name)))
                setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in former:
            setattr(owner, name, value)
