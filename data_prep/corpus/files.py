"""The files of a corpus, read as a stream of batches of raw records."""

import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from uner_jax.records import InputError, read_rows

Form = Literal["json", "row", "text"]

BATCH_BYTES = 1 << 20
# A plain text without blank lines is cut at the end of a line.
LONGEST_TEXT = 1 << 24
# A line is held in memory, a few times over.
LONGEST_LINE = 1 << 28
PARQUET_ROWS = 64
COMPRESSED = (".gz", ".zst")
JSON = (".jsonl", ".json", ".ndjson")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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


def find_files(patterns: Iterable[str]) -> list[Path]:
    """The files that the patterns match, each once, in sorted order.

    Raises InputError for a pattern that matches no file.
    """
    found: set[Path] = set()
    for pattern in patterns:
        # a name may hold brackets or a star itself; Path.glob takes no pattern that begins at the root.
        names = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)  # noqa: PTH207
        files = {Path(name) for name in names if Path(name).is_file()}
        if not files:
            hint = (
                "a directory; give the files in it, such as DIR/*.jsonl" if Path(pattern).is_dir() else "no such file"
            )
            raise InputError(f"--input {pattern}: {hint}")
        found |= files
    return sorted(found)


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
        with _open(path) as (stream, position):
            yield from _group(path, "json", _lines(stream), lambda line: len(line or b""), position)


def content_suffix(path: Path) -> str:
    """The suffix that names the form: `.jsonl` of `a.jsonl.zst`."""
    bare = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return bare.suffix.lower()


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
    with _open(path) as (stream, position):
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
    # without pre_buffer, and with a buffer: else a row group is read whole.
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=BATCH_BYTES) as file:
        names = file.schema_arrow.names
        if "text" not in names:
            raise InputError(f'{path}: no column "text"; the columns are {", ".join(names) or "none"}')
        total, seen = max(1, file.metadata.num_rows), 0

        def rows() -> Iterator[Any]:
            nonlocal seen
            columns = [name for name in ("text", "meta", "source") if name in names]
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                for row in _text_as_bytes(batch).to_pylist():
                    seen += 1
                    yield row

        yield from _group(path, "row", rows(), _row_size, lambda: size * seen // total)


def _text_as_bytes(batch: pa.RecordBatch) -> pa.RecordBatch:
    # one text that is not UTF-8 would else take the whole batch with it.
    place = batch.schema.get_field_index("text")
    kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    kind = batch.schema.field(place).type
    return batch.set_column(place, "text", batch.column(place).cast(kinds[kind])) if kind in kinds else batch


def _row_size(row: Any) -> int:
    text = row.get("text") if isinstance(row, dict) else None
    return len(text) if isinstance(text, str | bytes) else 1


def _is_array(path: Path) -> bool:
    with _open(path) as (stream, _):
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
    """The lines with their ends; None for one that is longer than LONGEST_LINE."""
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            continue
        while (rest := stream.readline(BATCH_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


@contextmanager
def _open(path: Path) -> Iterator[tuple[io.BufferedReader, Callable[[], int]]]:
    """The bytes of a file, plain or decompressed, and a function that says how far in the file itself they are."""
    suffix = path.suffix.lower()
    if suffix == ".zst":
        # Arrow's reader, since that of zstandard takes a file that is cut off for a shorter one.
        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, "zstd") as stream:
            yield io.BufferedReader(cast(io.RawIOBase, stream), BATCH_BYTES), file.tell
        return
    with path.open("rb", buffering=0) as raw:
        stream = gzip.GzipFile(fileobj=raw) if suffix == ".gz" else raw
        yield io.BufferedReader(cast(io.RawIOBase, stream), BATCH_BYTES), raw.tell
