"""The record of a run: a JSON line a step, TensorBoard events, a line of progress."""

import dataclasses
import json
import math
import time
import uuid
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from uner_jax.records import InputError, write_rows
from uner_jax.training.config import TrainConfig
from uner_jax.training.console import say

LINE_SECONDS = 10.0
# The time left is told from the mean of about so many steps.
STEADY = 20
MEASURES = ("validation_loss", "f1")


class Metrics:
    """Writes `metrics.jsonl`, events and, if asked for, to Weights & Biases, of a run that goes on after `step` steps.

    Later rows are cut off: a killed run may have written rows beyond its last checkpoint, and those steps are
    made again. Of several hosts the first one writes.
    """

    def __init__(self, config: TrainConfig, step: int, steps: int):
        self._steps = steps
        self._shown = 0.0
        self._seconds: float | None = None
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        run_dir = Path(config.run_dir)
        self._wandb = _wandb_run(config) if config.wandb else None
        path = metrics_path(run_dir)
        write_rows(path, [row for row in read_metrics(run_dir) if row["step"] <= step])
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run_dir), purge_step=step + 1, write_to_disk=True)

    def write(self, row: dict[str, float]) -> None:
        """Write one step's row; `row["step"]` counts from 1. What is not finite is null: JSON has no such number."""
        if not self._writes:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        known = {name: value for name, value in finite.items() if value is not None}
        for name, value in known.items():
            if name != "step":
                self._events.add_scalar(f"train/{name}", value, int(row["step"]))
        if self._wandb:
            self._wandb.log(known)
        self._show(row)

    def _show(self, row: dict[str, float]) -> None:
        last = self._seconds or row["seconds"]
        self._seconds = last + (row["seconds"] - last) / STEADY
        measures = "".join(f"  {name.replace('_', ' ')} {row[name]:.4f}" for name in MEASURES if name in row)
        now = time.monotonic()
        if now - self._shown < LINE_SECONDS and row["step"] != self._steps and not measures:
            return
        self._shown = now
        used = f"  MFU {row['mfu']:.1%}" if "mfu" in row else ""
        left = (self._steps - row["step"]) * self._seconds
        say(
            f"step {row['step']}/{self._steps}  loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}  "
            f"grad norm {row['grad_norm']:.2f}  {row['tokens_per_second']:,.0f} tokens/s{used}{measures}  "
            f"{left:,.0f} s left"
        )

    def close(self) -> None:
        """Flush everything to disk."""
        if self._writes:
            self._file.close()
            self._events.close()
            if self._wandb:
                self._wandb.finish()


def metrics_path(run_dir: Path) -> Path:
    """The file of a run's rows."""
    return run_dir / "metrics.jsonl"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's file, whose last line may be cut off."""
    path = metrics_path(run_dir)
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def validation_losses(rows: list[dict[str, Any]]) -> dict[int, float]:
    """The validation losses of the rows that have one, by step."""
    return {row["step"]: row["validation_loss"] for row in rows if row.get("validation_loss") is not None}


def _wandb_run(config: TrainConfig) -> Any:
    """The run there, which goes on when ours does: its id lies in the run_dir."""
    try:
        import wandb
    except ImportError as error:
        raise InputError("wandb is not installed: pip install 'uner-jax[wandb]', or leave --wandb out") from error
    path = Path(config.run_dir, "wandb_id")
    if not path.exists():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    run = wandb.init(
        project=config.wandb,
        id=path.read_text(encoding="utf-8"),
        resume="allow",
        dir=config.run_dir,
        config=dataclasses.asdict(config),
    )
    # by our step: rows of steps that are made again would else be refused.
    run.define_metric("*", step_metric="step")
    return run
