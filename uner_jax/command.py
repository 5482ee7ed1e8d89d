"""What every command shares: one message on failure, and progress that suits where it is shown."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from uner_jax.records import InputError

T = TypeVar("T")

LOG_SECONDS = 10.0
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES_TUNABLE = "glibc.malloc.hugetlb"


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


def keep_programs() -> None:
    """Keep what JAX compiles in the user's cache, unless the environment says where: call it before JAX is imported."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(caches / "uner_jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def use_huge_pages() -> None:
    """Start this process anew with huge pages for what it allocates, where Linux gives them to those who ask.

    Nothing of the process is left: call it before anything is read or begun.

    On a CPU a step of training takes gigabytes from the system and gives them back, a small page at a time, up to a
    fifth of its time. The environment may say otherwise (GLIBC_TUNABLES=glibc.malloc.hugetlb=0).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if HUGE_PAGES_TUNABLE in tunables or not HUGE_PAGES.is_file() or "[madvise]" not in HUGE_PAGES.read_text():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{HUGE_PAGES_TUNABLE}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class Progress:
    """How far a long job is: a bar on a terminal, a line every ten seconds in a log.

    `total` and `advance` count in `unit`; with `unit="B"` they are bytes. A note stands behind the count:
    what else the user wants to know, as it is now.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "it"):
        self._what, self._total, self._unit = what, total, unit
        self._started = self._shown = time.monotonic()
        self._done, self._skipped, self._note = 0, 0, ""
        self._bar = None
        if sys.stderr.isatty():
            scaled = {"unit_scale": True, "unit_divisor": 1024} if unit == "B" else {}
            spaced = unit if unit == "B" else f" {unit}"
            self._bar = tqdm(desc=what, total=total, unit=spaced, file=sys.stderr, **scaled)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error[0] is None:
            self._print(time.monotonic())

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` to what is done."""
        self._done += count
        self._note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif (now := time.monotonic()) - self._shown >= LOG_SECONDS:
            self._print(now)

    def skip(self, count: int) -> None:
        """Add `count` that were done before: the rate, and so the time left, are of the rest."""
        self._done += count
        self._skipped += count
        if self._bar is not None:
            self._bar.initial += count
            self._bar.update(count)

    def _print(self, now: float) -> None:
        self._shown = now
        line = _line(self._what, self._done, self._total, self._unit, now - self._started, self._skipped)
        print(f"{line}, {self._note}" if self._note else line, file=sys.stderr, flush=True)


def progress(items: Iterable[T], what: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield the items and show how far they are (see `Progress`)."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, total, unit) as shown:
        for item in items:
            yield item
            shown.advance()


def _line(what: str, done: int, total: int | None, unit: str, seconds: float, skipped: int = 0) -> str:
    rate = (done - skipped) / max(seconds, 1e-9)
    if unit == "B":
        count, whole, speed = f"{done / 1e6:,.1f}", f"{(total or 0) / 1e6:,.1f} MB", f"{rate / 1e6:,.1f} MB/s"
    else:
        count, whole, speed = f"{done:,}", f"{total or 0:,} {unit}", f"{rate:,.1f} {unit}/s"
    if total is None or done >= total:
        return f"{what}: {count} {'MB' if unit == 'B' else unit}, {speed}, {seconds:.0f} s"
    left = f"{(total - done) / rate:.0f} s left" if rate > 0 else f"{seconds:.0f} s"
    return f"{what}: {count} of {whole}, {speed}, {left}"
