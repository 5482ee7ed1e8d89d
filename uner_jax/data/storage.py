"""Files in an object store (`gs://`, `s3://`), for what reads and writes local files only.

Needs the library of the store beside the project: gcsfs or s3fs.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from etils import epath


def as_path(path: str | os.PathLike) -> Path:
    """A local path as it is; an address `scheme://...` as a path of the same methods."""
    # pathlib would take gs://bucket for gs:/bucket
    return cast(Path, epath.Path(path)) if is_remote(path) else Path(path)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether the path is an address in an object store."""
    return "://" in os.fspath(path)


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """The file or directory as a local one: itself, or a copy of all of it for as long as the block runs."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / path.name
        _copy(path, copy)
        yield copy


@contextmanager
def local_directory(path: Path) -> Iterator[Path]:
    """A local directory to write files into, that are at `path` after the block."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        for file in Path(directory).iterdir():
            _copy(file, path / file.name)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for inner in source.iterdir():
            _copy(inner, target / inner.name)
        return
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer)
