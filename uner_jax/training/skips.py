"""Steps whose loss or gradient is not finite: they change nothing, are counted, and too many end the run."""

from uner_jax.data.batches import PackedRows, record_ids
from uner_jax.records import InputError
from uner_jax.training.config import TrainConfig
from uner_jax.training.console import say

SHOWN = 20  # record ids in the last message; each step's own line has them all


class Skips:
    """Counts the skipped steps of a run that has skipped `total` already."""

    def __init__(self, config: TrainConfig, rows: PackedRows, total: int):
        self._config = config
        self._rows = rows
        self.total = total
        self.in_a_row = 0
        self._records: list[str] = []

    def count(self, step: int, finite: bool) -> None:
        """Take note of a step that was made; a skipped one is shown with the records of its batch."""
        if finite:
            self.in_a_row, self._records = 0, []
            return
        self.total += 1
        self.in_a_row += 1
        records = record_ids(self._rows, self._config.seed, self._config.data.batch_size, step - 1)
        self._records += records
        say(f"step {step} skipped: its loss or gradient is not finite; its records: {', '.join(records)}")

    def check(self, step: int) -> None:
        """Raises InputError if `max_bad_steps` in a row, the last of them `step`, were skipped."""
        if self.in_a_row < self._config.max_bad_steps:
            return
        more = len(self._records) - SHOWN
        records = ", ".join(self._records[:SHOWN]) + (f" and {more} more, named above" if more > 0 else "")
        raise InputError(
            f"{self._config.run_dir}: stopped after step {step}: the loss or gradient of {self.in_a_row} step(s) in a "
            f"row was not finite (max_bad_steps); the checkpoints are from before; the records: {records}; look at "
            "these, or begin again with a lower optimizer.learning_rate"
        )
