"""The files of a corpus, read as a stream of batches of raw records."""

import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from uner_jax.records import (
    InputError,
    content_suffix,
    open_bytes,
    open_parquet,
    read_lines,
    read_rows,
    strings_as_bytes,
)

Form = Literal["json", "row", "text"]

BATCH_BYTES = 1 << 20
# A plain text without blank lines is cut at the end of a line.
LONGEST_TEXT = 1 << 24
# A line is held in memory, a few times over.
LONGEST_LINE = 1 << 28
PARQUET_ROWS = 64
JSON = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True)
class Batch:
    """Raw records that follow each other in a file: lines of JSON, rows, or one stretch of plain text.

    `first` is the number of the first of them, from 1; `read` the bytes of the file, compressed as it
    is, that were read for them. None stands for a line that was too long to be read.
    """

    path: Path
    form: Form
    first: int
    records: list[Any]
    read: int = 0

    def where(self, place: int) -> str:
        """The file and the number of the record at `place`, for messages."""
        return f"{self.path}, {'row' if self.form == 'row' else 'line'} {self.first + place}"


def read_batches(path: Path) -> Iterator[Batch]:
    """The records of a file in batches of about 1 MiB; the `read` of all of them adds up to its size.

    Raises InputError that names the file if it cannot be read to its end.
    """
    size, done = path.stat().st_size, 0
    try:
        for batch in _batches_of(path, size):
            done += batch.read
            yield batch
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read to its end: {error}") from error
    yield Batch(path, "text", 1, [], size - done)


def _batches_of(path: Path, size: int) -> Iterator[Batch]:
    kind = content_suffix(path)
    if kind == ".parquet":
        yield from _parquet_batches(path, size)
    elif kind not in JSON:
        yield from _text_batches(path)
    elif _is_array(path):
        rows = (row for _, row in read_rows(path))
        yield from _group(path, "row", rows, _row_size, lambda: size)
    else:
        with open_bytes(path) as (stream, position):
            yield from _group(path, "json", _lines(stream), lambda line: len(line or b""), position)


def _group(
    path: Path, form: Form, records: Iterable[Any], size_of: Callable[[Any], int], position: Callable[[], int]
) -> Iterator[Batch]:
    gathered: list[Any] = []
    first, size, done = 1, 0, 0
    for record in records:
        gathered.append(record)
        size += size_of(record)
        if size >= BATCH_BYTES:
            yield Batch(path, form, first, gathered, position() - done)
            first, size, done, gathered = first + len(gathered), 0, position(), []
    if gathered:
        yield Batch(path, form, first, gathered, position() - done)


def _text_batches(path: Path) -> Iterator[Batch]:
    with open_bytes(path) as (stream, position):
        first, number, size, done = 1, 0, 0, 0
        lines: list[bytes] = []
        for number, line in enumerate(_lines(stream), 1):
            if line is None:
                yield Batch(path, "text", number, [None])
                continue
            lines.append(line)
            size += len(line)
            if size >= LONGEST_TEXT or (size >= BATCH_BYTES and not line.strip()):
                yield Batch(path, "text", first, [b"".join(lines)], position() - done)
                first, size, done, lines = number + 1, 0, position(), []
        if lines:
            yield Batch(path, "text", first, [b"".join(lines)], position() - done)


def _parquet_batches(path: Path, size: int) -> Iterator[Batch]:
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        if "text" not in names:
            raise InputError(f'{path}: no column "text"; the columns are {", ".join(names) or "none"}')
        total, seen = max(1, file.metadata.num_rows), 0

        def rows() -> Iterator[Any]:
            nonlocal seen
            columns = [name for name in ("text", "meta", "source") if name in names]
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                for row in strings_as_bytes(batch, ["text"]).to_pylist():
                    seen += 1
                    yield row

        yield from _group(path, "row", rows(), _row_size, lambda: size * seen // total)


def _row_size(row: Any) -> int:
    text = row.get("text") if isinstance(row, dict) else None
    return len(text) if isinstance(text, str | bytes) else 1


def _is_array(path: Path) -> bool:
    with open_bytes(path) as (stream, _):
        lines = (line for line in _lines(stream) if line is None or line.strip())
        first, second = next(lines, None), next(lines, None)
    if first is None or not first.lstrip().startswith(b"["):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    # a whole array, and more lines: JSON lines, of which the first is no record.
    return second is None


def _lines(stream: io.BufferedReader) -> Iterator[bytes | None]:
    return read_lines(stream, LONGEST_LINE)
