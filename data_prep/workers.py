"""A function over many items, in several processes, in the order of the items and in bounded memory."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

from uner_jax.records import InputError

T = TypeVar("T")
R = TypeVar("R")

# Items that wait or whose results wait, a worker: enough that none is idle, few enough to hold in memory.
AHEAD = 4


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    start: Callable[..., None],
    arguments: tuple[Any, ...] = (),
) -> Iterator[R]:
    """Yield `function(item)` for every item, in order; `start(*arguments)` prepares each process once.

    Items are taken only as fast as results are. With one worker all happens in this process. The functions
    must be importable by name. Raises what `function` raises, and InputError if `workers` is less than 1.
    """
    if workers < 1:
        raise InputError(f"--workers must be at least 1, found {workers}")
    if workers == 1:
        start(*arguments)
        yield from map(function, items)
        return
    # not fork: tokenizers and jax have threads, which a forked process does not have.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(start, *arguments))
    try:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= workers * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(start: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*arguments)


def _end_with_parent() -> None:
    """End this process with the one that started it: if that is killed, nobody else tells the workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
