"""The record of a run: a JSON line a step, TensorBoard events, a line of progress."""

import json
import math
import time
from pathlib import Path

import jax
from tensorboardX import SummaryWriter

from uner_jax.records import write_rows
from uner_jax.training.console import say

LINE_SECONDS = 10.0


class Metrics:
    """Writes `metrics.jsonl` and events of a run that goes on after `step` steps; later rows are cut off.

    A killed run may have written rows beyond its last checkpoint: those steps are made again. Of several
    hosts the first one writes.
    """

    def __init__(self, run_dir: Path, step: int, steps: int):
        self._steps = steps
        self._shown = 0.0
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._path = run_dir / "metrics.jsonl"
        write_rows(self._path, [row for row in _whole_rows(self._path) if row["step"] <= step])
        self._file = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run_dir), purge_step=step + 1, write_to_disk=True)

    def write(self, row: dict[str, float]) -> None:
        """Write one step's row; `row["step"]` counts from 1. What is not finite is null: JSON has no such number."""
        if not self._writes:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        for name, value in finite.items():
            if name != "step" and value is not None:
                self._events.add_scalar(f"train/{name}", value, int(row["step"]))
        self._show(row)

    def _show(self, row: dict[str, float]) -> None:
        now, last = time.monotonic(), row["step"] == self._steps
        if now - self._shown < LINE_SECONDS and not last:
            return
        self._shown = now
        left = (self._steps - row["step"]) * row["seconds"]
        say(
            f"step {row['step']}/{self._steps}  loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}  "
            f"grad norm {row['grad_norm']:.2f}  {row['tokens'] / row['seconds']:,.0f} tokens/s  {left:,.0f} s left"
        )

    def close(self) -> None:
        """Flush everything to disk."""
        if self._writes:
            self._file.close()
            self._events.close()


def _whole_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a file whose last line may be cut off."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
