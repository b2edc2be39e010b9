"""The log of a run as files that anybody reads: history.jsonl, a row a record, and history.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

RECORDS, PLOT = "history.jsonl", "history.png"
_CURVES = (
    ("mlm_loss", "MLM loss"),
    ("order_loss", "order loss"),
    ("eval_mlm_loss", "MLM loss, held out"),
    ("eval_order_loss", "order loss, held out"),
)


class History(TrainerCallback):
    """Appends every record of the log; a resumed run first writes those of its checkpoint, so that none is lost."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            lines = "".join(json.dumps(record) + "\n" for record in state.log_history)
            (Path(args.output_dir) / RECORDS).write_text(lines, encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with open(Path(args.output_dir) / RECORDS, "a", encoding="utf-8") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Losses by step, one curve for each that the records hold; nothing where they hold none."""
    from matplotlib.figure import Figure  # no pyplot: it would choose a window system

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for key, label in _CURVES:
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else None, linewidth=1)
    if axes.lines:
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=120)
