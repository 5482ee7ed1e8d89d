"""SIGTERM, by which a cluster asks for its machine back: the run saves and leaves."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Hears SIGTERM from `with` on; a second one ends the process at once.

    On several hosts JAX's coordination service hears it instead, and names a step after which all stop.
    """

    def __enter__(self) -> "Preemption":
        self._heard = False
        # the service has its own handler, which ours would replace.
        self._alone = jax.process_count() == 1
        self._before = signal.signal(signal.SIGTERM, self._hear) if self._alone else None
        return self

    def __exit__(self, *error: object) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step: the same answer on every host; to be asked after each step."""
        return self._heard if self._alone else multihost_utils.reached_preemption_sync_point(step)
