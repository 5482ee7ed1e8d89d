"""The files of a data set: which record lies where, and writing them so that one process and many agree.

A record's place follows from a hash of its bytes, and the number of files from the size of all records.
So the same records make the same files, in whatever order they come and whoever writes them, and they lie
shuffled. TFDS's own writers cannot take turns: its local one cuts files of equal counts and needs TensorFlow
beyond 1 GB, its Beam one cuts ranges of the hash, and both refuse a record that occurs twice.
"""

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uner_jax.data.example import parse_example
from uner_jax.data.storage import is_remote
from uner_jax.data.tfrecord import TFRecordSource, write_record

# a file on an object store is best read whole by one host: not many small ones, and none that takes minutes.
SHARD_BYTES = 200_000_000
KEY_BYTES = 16
RECORD_OVERHEAD = 16  # bytes of length and checksums around a record in its file
# while records come they wait in so many parts, each in memory up to so many bytes and on disk beyond.
PARTS = 256
PART_BYTES = 1 << 18


class Shard(NamedTuple):
    """What was written into one file: counts of conversations, turns of the assistant and tokens, bytes of records."""

    number: int
    conversations: int
    answers: int
    tokens: int
    size: int


def key_of(record: bytes) -> bytes:
    """The key that places a record; equal records have equal keys."""
    return hashlib.blake2b(record, digest_size=KEY_BYTES).digest()


def shard_count(total_bytes: int, shard_bytes: int) -> int:
    """The number of files, a power of two, so that each holds between half of `shard_bytes` and all of it."""
    count = 1
    while total_bytes > count * shard_bytes:
        count *= 2
    return count


def shard_of(key: bytes, shards: int) -> int:
    """The file that a record with this key lies in; a later file holds higher keys."""
    return int.from_bytes(key[:8], "big") * shards >> 64


def shard_path(prefix: Path, index: int, shards: int) -> Path:
    """The path of a file: `NAME-train.tfrecord-00000-of-00002` for the prefix `NAME-train.tfrecord`."""
    return prefix.with_name(f"{prefix.name}-{index:05d}-of-{shards:05d}")


def write_shard(prefix: Path, index: int, shards: int, records: Iterable[tuple[bytes, bytes]], eos_id: int) -> Shard:
    """Write the `(key, record)` of one file, in the order of their keys, and count what was written.

    The file appears when it is whole and on disk, so that two that write the same one do no harm.
    """
    path = shard_path(prefix, index, shards)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")
    conversations = answers = tokens = size = 0
    try:
        with temporary.open("wb") as file:
            for _, record in sorted(records):
                write_record(file, record)
                ids = parse_example(record).tokens
                conversations += 1
                answers += int(np.count_nonzero(ids == eos_id))
                tokens += len(ids)
                size += len(record)
            if not is_remote(path):
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return Shard(index, conversations, answers, tokens, size)


def write_shards(prefix: Path, records: Iterable[bytes], eos_id: int, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Write records that come in any order; holds one file's records in memory, and all of them on disk once more."""
    with tempfile.TemporaryDirectory(dir=prefix.parent, prefix=".parts-") as directory:
        parts = _Parts(Path(directory))
        for record in records:
            parts.add(record)
        shards = shard_count(parts.size, shard_bytes)
        return [write_shard(prefix, index, shards, parts.of_shard(index, shards), eos_id) for index in range(shards)]


class _Parts:
    """Records that wait until their number is known, apart by the first byte of their key."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._waiting: list[list[bytes]] = [[] for _ in range(PARTS)]
        self._waiting_bytes = [0] * PARTS
        self.size = 0

    def add(self, record: bytes) -> None:
        part = shard_of(key_of(record), PARTS)
        self._waiting[part].append(record)
        self._waiting_bytes[part] += len(record)
        self.size += len(record) + RECORD_OVERHEAD
        if self._waiting_bytes[part] > PART_BYTES:
            with self._path(part).open("ab") as file:
                for waiting in self._waiting[part]:
                    write_record(file, waiting)
            self._waiting[part], self._waiting_bytes[part] = [], 0

    def of_shard(self, index: int, shards: int) -> Iterator[tuple[bytes, bytes]]:
        """The `(key, record)` of one file."""
        for part in range(index * PARTS // shards, max((index + 1) * PARTS // shards, index * PARTS // shards + 1)):
            for record in self._of_part(part):
                key = key_of(record)
                if shard_of(key, shards) == index:
                    yield key, record

    def _of_part(self, part: int) -> Iterator[bytes]:
        if self._path(part).exists():
            source = TFRecordSource([self._path(part)], bytes)
            yield from (source[number] for number in range(len(source)))
        yield from self._waiting[part]

    def _path(self, part: int) -> Path:
        return self._directory / f"{part:03d}"
