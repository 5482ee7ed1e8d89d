"""TFRecord files: writing them without TensorFlow, and reading any record of them, checked.

A record is its length (uint64), the masked crc32c of the length, the bytes, and their masked crc32c
(https://www.tensorflow.org/tutorials/load_data/tfrecord). Readers that skip the second check turn a
flipped bit into a wrong token; this one names the file and the record.
"""

import mmap
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np

from uner_jax.records import InputError

LENGTH = struct.Struct("<Q")
CRC = struct.Struct("<I")
HEADER_BYTES = LENGTH.size + CRC.size


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_record(file: BinaryIO, record: bytes) -> None:
    """Append one record."""
    length = LENGTH.pack(len(record))
    file.write(length + CRC.pack(_masked_crc(length)) + record + CRC.pack(_masked_crc(record)))


def index_records(path: Path) -> np.ndarray:
    """The (offset, length) of each record's bytes, int64 of shape (records, 2).

    Raises InputError with the record's number if a header does not match its checksum or the file ends early.
    """
    spans: list[tuple[int, int]] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        while position < size:
            file.seek(position)
            header = file.read(HEADER_BYTES)
            whole = len(header) == HEADER_BYTES and CRC.unpack(header[8:])[0] == _masked_crc(header[:8])
            length = LENGTH.unpack(header[:8])[0] if whole else 0
            end = position + HEADER_BYTES + length + CRC.size
            if not whole or end > size:
                raise InputError(f"{path}: record {len(spans)} is damaged or cut off; build the data set again")
            spans.append((position + HEADER_BYTES, length))
            position = end
    return np.array(spans, np.int64).reshape(-1, 2)


class TFRecordSource:
    """Random access to the records of several files, in their order, each parsed by `parse`.

    The files are mapped into memory, so they must lie on a local or mounted path.
    """

    def __init__(self, paths: Sequence[Path], parse: Callable[[bytes], Any]):
        self._paths = list(paths)
        self._parse = parse
        self._spans = [index_records(path) for path in self._paths]
        self._starts = np.cumsum([0, *(len(spans) for spans in self._spans)])
        self._maps: dict[int, mmap.mmap] = {}

    @property
    def shard_lengths(self) -> list[int]:
        """The number of records of each file."""
        return [len(spans) for spans in self._spans]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        """Record `index`; raises InputError with file and record number if its bytes are damaged."""
        shard = int(np.searchsorted(self._starts, index, "right")) - 1
        record = int(index - self._starts[shard])
        offset, length = self._spans[shard][record]
        mapped = self._map(shard)
        data = mapped[offset : offset + length]
        if CRC.unpack_from(mapped, offset + length)[0] != _masked_crc(data):
            raise InputError(
                f"{self._paths[shard]}: record {record} is damaged (its checksum does not match); "
                "build the data set again"
            )
        return self._parse(data)

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            with self._paths[shard].open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write a file of records."""
    with path.open("wb") as file:
        for record in records:
            write_record(file, record)
