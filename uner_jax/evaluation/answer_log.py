"""What a run has been answered, on the disk: a line that says whose answers they are, and one for each as it came.

The run that writes holds a lock on the file, which ends with the process, however it ends.
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from uner_jax.extraction.corpus.job import differences
from uner_jax.records import InputError

FIELDS = {"place": int, "prediction": str, "scores": list, "too_long": bool, "seconds": float}


@contextmanager
def open_log(path: Path, identity: dict[str, Any]) -> Iterator["AnswerLog"]:
    """The log of the run that `identity` tells from others. Raises InputError if another process writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        # a file system that knows no locks raises another OSError: there the run goes on without.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"{path.parent}: another run writes its answers there; let it end first, or give another --output"
                ) from error
        yield AnswerLog(path, file, identity)


class AnswerLog:
    """The answers by the place of their question; `open_log` gives one."""

    def __init__(self, path: Path, file: BinaryIO, identity: dict[str, Any]):
        self._path, self._file, self._identity = path, file, identity
        self._before = 0.0
        self._started = time.monotonic()

    def read(self) -> dict[int, dict[str, Any]]:
        """The answers that are there. Raises InputError if they are of another run, or cannot be read."""
        self._file.seek(0)
        # what follows the last line feed was being written when the run was killed.
        *lines, _ = self._file.read().split(b"\n")
        whole = [self._parsed(number, line) for number, line in enumerate(lines, 1)]
        if len(whole) < 2:  # a run that ended before its first answer is in nobody's way
            return self.clear()
        if whole[0] != self._identity:
            changed = "; ".join(differences(whole[0], self._identity))
            raise InputError(
                f"{self._path}: answers of another run: {changed}. Give another --output, or --no-resume to answer anew"
            )
        self._file.truncate(sum(len(line) + 1 for line in lines))
        entries = {entry.pop("place"): entry for entry in whole[1:]}
        self._before = max(entry["seconds"] for entry in entries.values())
        return entries

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError(f"found {type(entry).__name__}")
            kinds = {name: type(value) for name, value in entry.items()}
            if kinds != FIELDS if number > 1 else entry.keys() != self._identity.keys():
                raise ValueError(f"found the fields {', '.join(entry)}")
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{self._path}: is damaged, or not of uner evaluate: line {number}: {error}; --no-resume answers anew"
            ) from error
        return entry

    def clear(self) -> dict[int, dict[str, Any]]:
        """Begin anew."""
        self._file.truncate(0)
        self._write(self._identity)
        return {}

    def add(self, place: int, entry: dict[str, Any]) -> dict[str, Any]:
        """Write an answer down, with the seconds that answering had taken; returns it so."""
        entry = entry | {"seconds": round(self._before + time.monotonic() - self._started, 2)}
        self._write({"place": place, **entry})
        return entry

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
