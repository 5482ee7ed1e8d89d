"""What every command shares: one message on failure, and progress that suits where it is shown."""

import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from uner_jax.records import InputError

T = TypeVar("T")

LOG_SECONDS = 10.0


def run_command(main: Callable[[list[str]], None], arguments: list[str] | None = None) -> None:
    """Run `main(arguments)` and leave the process: 0 on success, 2 on wrong arguments, 1 on failure.

    A failure prints one message; `--debug`, anywhere on the command line, prints the traceback too.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        main([argument for argument in arguments if argument != "--debug"])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif isinstance(error, InputError | OSError):
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"error: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def progress(items: Iterable[T], what: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield the items and show how far they are: a bar on a terminal, a line every ten seconds in a log."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, unit=f" {unit}", file=sys.stderr)
        return
    started = shown = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - shown >= LOG_SECONDS:
            shown = now
            print(_line(what, done, total, unit, now - started), file=sys.stderr, flush=True)
    print(_line(what, done, total, unit, time.monotonic() - started), file=sys.stderr, flush=True)


def _line(what: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    if total is None or done >= total:
        return f"{what}: {done:,} {unit}, {rate:,.1f} {unit}/s, {seconds:.0f} s"
    return f"{what}: {done:,} of {total:,} {unit}, {rate:,.1f} {unit}/s, {(total - done) / max(rate, 1e-9):.0f} s left"
