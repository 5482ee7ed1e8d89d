"""The files of a corpus, read as a stream of raw records: nothing is parsed before it is wanted."""

import csv
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from uner_jax.extraction.corpus.job import Job, Source
from uner_jax.records import InputError, content_suffix, open_bytes, open_parquet, read_lines, strings_as_bytes

Form = Literal["json", "row", "cells", "text", "file", "fault"]

# A line, an item of an array or a cell is held in memory, a few times over.
LONGEST_RECORD = 1 << 26
PARQUET_ROWS = 64
CHUNK = 1 << 16
JSON = (".jsonl", ".json", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
# A line of JSON lines is an object: what begins like this is one array.
_ARRAY = re.compile(rb"\s*\[(?:\s*[{\]]|[ \t\r]*\n)")
_DECODER = json.JSONDecoder()
_BETWEEN = re.compile(r"[\s,]*")
UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error, pa.ArrowException, csv.Error)


@dataclass(frozen=True)
class Raw:
    """A record as it stands in its file, and where.

    By its form `content` is a line ("json", "text"; None for one that was too long), a dict with strings as bytes
    ("row"), the header and the cells of a table ("cells"), a path ("file") or a message ("fault": the rest of the
    file cannot be read). `read` is how many bytes of the file, compressed as it is, were read for it.
    """

    where: str
    form: Form
    content: Any
    read: int


def read_raw(source: Source, job: Job) -> Iterator[Raw]:
    """The records of a file; one that cannot be read to its end has a fault for the last of them."""
    done = 0
    try:
        for raw in _records_of(source, job):
            done += raw.read
            yield raw
    except (InputError, *UNREADABLE) as error:
        message = str(error) if isinstance(error, InputError) else f"cannot be read to its end: {error}"
        yield Raw(source.name, "fault", message, source.path.stat().st_size - done)


def check_columns(source: Source, job: Job) -> None:
    """Raise InputError if a table has no column of text: then the user meant another one."""
    try:
        names = _column_names(source.path)
    except UNREADABLE:
        return  # one fault among the records
    if names is not None and job.text_field not in names:
        listed = ", ".join(names) or "none"
        raise InputError(f'{source.name}: no column "{job.text_field}"; --text-field names it; there are: {listed}')


def _column_names(path: Path) -> list[str] | None:
    kind = content_suffix(path)
    if kind == ".parquet":
        with open_parquet(path) as file:
            return list(file.schema_arrow.names)
    if kind in TABLES:
        with _open_table(path, TABLES[kind]) as (rows, _):
            return next(rows, None)
    return None


def _records_of(source: Source, job: Job) -> Iterator[Raw]:
    kind = content_suffix(source.path)
    if kind == ".parquet":
        yield from _parquet_rows(source, job)
    elif kind in TABLES:
        yield from _table_rows(source, TABLES[kind])
    elif kind in JSON and _is_array(source.path):
        yield from _array_items(source)
    elif kind in JSON or job.text_lines:
        yield from _lines(source, "json" if kind in JSON else "text")
    else:
        yield Raw(source.name, "file", source.path, source.path.stat().st_size)


def _lines(source: Source, form: Form) -> Iterator[Raw]:
    with open_bytes(source.path) as (stream, position):
        plain = source.path.suffix == content_suffix(source.path)
        read, done = 0, 0
        for number, line in enumerate(read_lines(stream, LONGEST_RECORD), 1):
            read = position() if line is None or not plain else read + len(line)
            if line is None or line.strip():
                yield Raw(f"{source.name}, line {number}", form, line, read - done)
                done = read


def _is_array(path: Path) -> bool:
    try:
        with open_bytes(path) as (stream, _):
            return bool(_ARRAY.match(stream.read(CHUNK).removeprefix(b"\xef\xbb\xbf")))
    except UNREADABLE:
        return False  # it is met again where records are read


def _array_items(source: Source) -> Iterator[Raw]:
    with open_bytes(source.path) as (stream, position), io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        done = 0
        for number, item in enumerate(_items(text), 1):
            yield Raw(f"{source.name}, item {number}", "row", item, position() - done)
            done = position()


def _items(text: io.TextIOWrapper) -> Iterator[Any]:
    """The items of a JSON array, of which only a piece is in memory at a time."""
    number, buffer = 1, text.read(CHUNK)
    place = buffer.index("[") + 1
    while True:
        place = _BETWEEN.match(buffer, place).end()  # type: ignore[union-attr]
        if buffer.startswith("]", place):
            break
        item, end, fault = _item_at(buffer, place)
        # what reaches the end of the buffer may go on; twice as much each time, so that it is not read too often.
        longer = text.read(max(CHUNK, len(buffer) - place)) if end in (None, len(buffer)) else ""
        if longer and len(buffer) - place <= LONGEST_RECORD:
            buffer, place = buffer[place:] + longer, 0
            continue
        if end is None or longer:
            fault = f"more than {LONGEST_RECORD >> 20} MiB" if longer else fault
            raise InputError(f"item {number}: not JSON ({fault}); the array is read no further")
        yield item
        number, place = number + 1, end
    if (buffer[place + 1 :] + text.read(CHUNK)).strip():
        raise InputError("more follows where the array ends; it is not read")


def _item_at(buffer: str, place: int) -> tuple[Any, int | None, str]:
    """The value that begins there and its end; None and why not if there is no whole one."""
    try:
        return *_DECODER.raw_decode(buffer, place), ""
    except json.JSONDecodeError as error:
        return None, None, error.msg
    except (ValueError, RecursionError) as error:
        return None, None, str(error)


def _parquet_rows(source: Source, job: Job) -> Iterator[Raw]:
    size, done = source.path.stat().st_size, 0
    with open_parquet(source.path) as file:
        there = file.schema_arrow.names
        names = [name for name in dict.fromkeys(job.wanted_fields()) if name in there]
        total, number = max(1, file.metadata.num_rows), 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=names):
            for row in strings_as_bytes(batch, names).to_pylist():
                number += 1
                yield Raw(f"{source.name}, row {number}", "row", row, size * number // total - done)
                done = size * number // total


def _table_rows(source: Source, delimiter: str) -> Iterator[Raw]:
    with _open_table(source.path, delimiter) as (rows, position):
        header, done = next(rows, []), 0
        for number, cells in enumerate(rows, 2):
            if cells:
                yield Raw(f"{source.name}, row {number}", "cells", (header, cells), position() - done)
                done = position()


@contextmanager
def _open_table(path: Path, delimiter: str) -> Iterator[tuple[Iterator[list[str]], Callable[[], int]]]:
    csv.field_size_limit(LONGEST_RECORD)
    # a byte that is no UTF-8 becomes half a surrogate pair, and is found in its own record.
    with (
        open_bytes(path) as (stream, position),
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        yield csv.reader(text, delimiter=delimiter), position
