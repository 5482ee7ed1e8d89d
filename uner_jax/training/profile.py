"""A trace of some steps, for TensorBoard's profile page or XProf."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from uner_jax.training.config import TrainConfig
from uner_jax.training.console import say


class Profile:
    """Traces the steps that the recipe names; a run that ends among them keeps what it has."""

    def __init__(self, config: TrainConfig):
        self._steps = config.profiled_steps
        self._directory = Path(config.run_dir, "profile")
        self._tracing = False

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one step, until its results are there."""
        if number in self._steps and not self._tracing:
            jax.profiler.start_trace(self._directory)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        if number >= self._steps.stop - 1:
            self.close()

    def close(self) -> None:
        """End the trace, and write it, if one is being made."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            say(f"profile    {self._directory}: tensorboard --logdir {self._directory}")
