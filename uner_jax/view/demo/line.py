"""The line before the model: one extraction at a time, and a bounded number that wait."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class LineFullError(Exception):
    """As many wait as may wait."""


class Line:
    """Runs calls one at a time, first come, first served; `waiting` of them may wait."""

    def __init__(self, waiting: int):
        self._places = threading.BoundedSemaphore(waiting + 1)
        self._worker = ThreadPoolExecutor(1, "extraction")

    def enter(self, call: Callable[[], T]) -> "Future[T]":
        """The future of the call; cancelled while it waits, it gives its place back at once.

        Raises LineFullError when as many wait as may, and CancelledError once the line is closed.
        """
        if not self._places.acquire(blocking=False):
            raise LineFullError
        try:
            future = self._worker.submit(call)
        except RuntimeError:
            self._places.release()
            raise CancelledError from None
        future.add_done_callback(lambda _: self._places.release())
        return future

    def close(self) -> None:
        """Cancel what waits, and wait for what runs: a computation cannot be stopped half-way."""
        self._worker.shutdown(wait=True, cancel_futures=True)
