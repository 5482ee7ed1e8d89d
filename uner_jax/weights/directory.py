"""A directory that appears under its name when all of it is written, and not before."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uner_jax.records import InputError, sync

# what a directory of weights needs beside them: a tokenizer, configs, the file system's own blocks.
BESIDE = 64 * 2**20


def make_way(directory: Path) -> None:
    """Remove the directory that is to be written if it is there and empty; InputError if it holds anything."""
    if directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir()):
        directory.rmdir()
    elif directory.exists() or directory.is_symlink():
        raise InputError(f"{directory}: exists and is not empty; give another name or remove it")


def check_room(path: Path, needed: int) -> None:
    """InputError if the disk has less room than that many bytes of weights need; the parent directory must be there."""
    free = shutil.disk_usage(path.parent).free
    if needed and needed + BESIDE > free:
        raise InputError(
            f"{path}: needs {(needed + BESIDE) / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free there; "
            "make room, choose another place, or a smaller --dtype"
        )


@contextmanager
def whole_directory(directory: Path, needed: int = 0) -> Iterator[Path]:
    """Give a new directory to write into, `DIRECTORY.partial`, that gets its name when the block ends well.

    A failure takes it away again; what a killed process left is taken away by the next one. Raises InputError if
    something is there already, or if the disk has less room than `needed`, the bytes of the weights.
    """
    make_way(directory)
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    check_room(directory, needed)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            sync(file)
        partial.rename(directory)
        sync(directory.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
