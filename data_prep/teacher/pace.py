"""How many requests are under way: as many as allowed, fewer when the server says that it is too much."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Pace:
    """Slots for requests, between one and `most`, under additive increase and multiplicative decrease.

    That is TCP's rule (RFC 5681): a limit that is hit halves the slots, and every round of successes adds
    one. While the server asks to wait, no slot is given.
    """

    def __init__(self, most: int):
        self._most = most
        self._slots = float(most)
        self._busy = 0
        self._free_at = 0.0
        self._slowed_at = 0.0
        self._changed = asyncio.Condition()

    @property
    def slots(self) -> int:
        """How many requests may be under way now."""
        return max(1, int(self._slots))

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a slot and hold it; gives the time at which it was given, for `slow_down`."""
        async with self._changed:
            while self._busy >= self.slots or self._free_at > time.monotonic():
                wait = self._free_at - time.monotonic()
                try:
                    await asyncio.wait_for(self._changed.wait(), wait if wait > 0 else None)
                except TimeoutError:
                    continue
            self._busy += 1
        try:
            yield time.monotonic()
        finally:
            async with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def succeeded(self) -> None:
        """One request was answered."""
        self._slots = min(float(self._most), self._slots + 1 / self._slots)

    def slow_down(self, started: float) -> None:
        """A request that had its slot since `started` hit a limit: halve the slots, once for all that run beside it."""
        if started >= self._slowed_at:
            self._slots = max(1.0, self._slots / 2)
            self._slowed_at = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Give no slot for so many seconds."""
        self._free_at = max(self._free_at, time.monotonic() + seconds)
