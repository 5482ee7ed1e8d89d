"""The line before the model: one extraction at a time, and a bounded number that wait."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class LineFullError(Exception):
    """As many wait as may wait."""


class Places:
    """A number of places that threads take and give back; `free` says how many are left."""

    def __init__(self, number: int):
        self.free = number
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a place; False if none is left."""
        with self._lock:
            taken = self.free > 0
            self.free -= taken
        return taken

    def give_back(self) -> None:
        """Give a place back that was taken."""
        with self._lock:
            self.free += 1


class Line:
    """Runs calls one at a time, first come, first served; `waiting` of them may wait."""

    def __init__(self, waiting: int):
        self.places = Places(waiting + 1)
        self._worker = ThreadPoolExecutor(1, "extraction")

    def enter(self, call: Callable[[], T]) -> "Future[T]":
        """The future of the call; cancelled while it waits, it gives its place back at once.

        Raises LineFullError when as many wait as may, and CancelledError once the line is closed.
        """
        if not self.places.take():
            raise LineFullError
        try:
            future = self._worker.submit(call)
        except RuntimeError:
            self.places.give_back()
            raise CancelledError from None
        future.add_done_callback(lambda _: self.places.give_back())
        return future

    def close(self) -> None:
        """Cancel what waits, and wait for what runs: a computation cannot be stopped half-way."""
        self._worker.shutdown(wait=True, cancel_futures=True)
