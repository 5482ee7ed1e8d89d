"""Files and directories that appear under their name when they are whole."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from uner_jax.records import InputError, atomic_path


@contextmanager
def text_file(path: Path) -> Iterator[IO[str]]:
    """Open a file of UTF-8 for writing, with line ends as they are written."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_array(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as one JSON array, a row a line; only one of them is held in memory."""
    with text_file(path) as file:
        between = "[\n"
        for row in rows:
            file.write(between + json.dumps(row, ensure_ascii=False))
            between = ",\n"
        file.write("[]\n" if between == "[\n" else "\n]\n")


@contextmanager
def directory(path: Path) -> Iterator[Path]:
    """Give a temporary directory that becomes `path`. Raises InputError if that exists and is not empty."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: exists and is no empty directory; give another --output or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.absolute().with_name(f".tmp-{os.getpid()}-{path.absolute().name}")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
