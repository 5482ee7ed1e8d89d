"""Standard input, kept on the disk until the job is done: a pipe cannot be read twice, a killed job must be."""

import sys
from pathlib import Path
from typing import BinaryIO

import zstandard

from uner_jax.extraction.corpus.job import Job, Source, digests_of
from uner_jax.records import InputError, atomic_path

NAME = "stdin"
CHUNK = 1 << 20


def spooled(output: Path, job: Job, resume: bool, stream: BinaryIO | None = None) -> Source:
    """Standard input as a file in the output: what is piped in now, or, if that is nothing, what was before.

    Raises InputError if it is a terminal or empty and there is nothing from before, and if the job was begun with
    another input.
    """
    path = output / f"{job.name(NAME)}.jsonl.zst"
    stream = sys.stdin.buffer if stream is None else stream
    if stream.isatty():
        if not path.is_file():
            raise InputError("--input -: standard input is a terminal; pipe JSON lines into it")
        return Source(path, NAME)
    coming = path.with_name(f"{job.name(NAME)}.new.jsonl.zst")
    try:
        size = _copy(stream, coming)
        if path.is_file() and size == 0:
            return Source(path, NAME)
        if resume and path.is_file() and digests_of([path]) != digests_of([coming]):
            raise InputError(
                f"{output}: was begun with another standard input. Pipe in the same, or nothing to go on with what "
                "was read then; or give another --output, or --no-resume to do it anew"
            )
        coming.replace(path)
    finally:
        coming.unlink(missing_ok=True)
    return Source(path, NAME)


def _copy(stream: BinaryIO, path: Path) -> int:
    """Write the bytes of the stream, compressed; returns how many there were."""
    size = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
        with compressor.stream_writer(file, closefd=False) as compressed:
            while chunk := stream.read(CHUNK):
                size += len(chunk)
                compressed.write(chunk)
    return size
