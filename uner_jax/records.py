"""The records that flow between the steps, and reading and writing files of them.

A record is a plain dict in the form that stands in the file, so that a row read from anybody's
JSON is already one; the `check_*` functions say once, with file and row number, what is wrong.
Files are JSON arrays, JSON lines or Parquet, plain or compressed (`.gz`, `.zst`).
"""

import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NotRequired, TypedDict, cast

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

PARQUET_ROWS = 1024
READ_BYTES = 1 << 20
# Of a compressed file that is cut off, what is read together with its end is lost: little of it.
DECOMPRESSED_BYTES = 1 << 13
COMPRESSED = (".gz", ".zst")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# the first turn of `template.passage_turn`, with and without a data set's name, on no passage.
_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)
NO_PASSAGE = re.compile(r"(Dataset: .* \n )?(Text:)?\s*")


class InputError(ValueError):
    """Something that the user gave is wrong; the message names the file, the record and the fix."""


class LostRecordsError(RuntimeError):
    """What was written does not add up to what was read."""


class Passage(TypedDict):
    """A piece of a document, short enough for one prompt."""

    id: str
    text: str
    source: NotRequired[str]


class Entity(TypedDict):
    """A mention, verbatim, and its type, as the teacher gave it."""

    text: str
    type: str


class Label(TypedDict):
    """A passage with the teacher's answer on it."""

    id: str
    text: str
    entities: list[Entity]
    teacher: NotRequired[dict[str, Any]]


# "from" is no Python name: hence the call form.
Turn = TypedDict("Turn", {"from": str, "value": str})


class Conversation(TypedDict):
    """The published form: a passage, its acknowledgement, then questions and answers in turn."""

    id: str
    conversations: list[Turn]


def read_rows(
    path: str | os.PathLike, set_aside: Callable[[str, InputError], None] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield `(where, row)` for every row of a JSON array, JSON-lines or Parquet file.

    `where` names file and row ("labels.jsonl, line 7") for error messages. Blank lines are passed
    over. Raises InputError for a missing or unreadable file and for a line that is not JSON; with
    `set_aside`, that gets the line and the error instead, and reading goes on.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if content_suffix(path) == ".parquet":
        yield from _read_parquet(path)
        return
    with open_text(path) as file:
        try:
            yield from _read_json(path, file, set_aside)
        except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
            raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _read_json(
    path: Path, file: IO[str], set_aside: Callable[[str, InputError], None] | None
) -> Iterator[tuple[str, Any]]:
    first = True
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        if first and line.lstrip().startswith("["):
            yield from _read_array(path, "\n" * (number - 1) + line + file.read())
            return
        first = False
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        # ValueError: also a number of too many digits.
        except (ValueError, RecursionError) as error:
            bad = InputError(f"{where}: not JSON ({error}); each line must be one record")
            if set_aside is None:
                raise bad from error
            set_aside(line, bad)
            continue
        yield where, row


def _read_array(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not a JSON array ({error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON array ({error})") from error
    for number, row in enumerate(rows, 1):
        yield f"{path}, item {number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            rows = (row for batch in file.iter_batches(PARQUET_ROWS) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield f"{path}, row {number}", row
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}") from error


def find_files(patterns: Iterable[str]) -> list[Path]:
    """The files that the patterns match, each once: pattern by pattern, those of a pattern in sorted order.

    Raises InputError for a pattern that matches no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        # a name may hold brackets or a star itself; Path.glob takes no pattern that begins at the root.
        names = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)  # noqa: PTH207
        files = sorted({Path(name) for name in names if Path(name).is_file()})
        if not files:
            hint = (
                "a directory; give the files in it, such as DIR/*.jsonl" if Path(pattern).is_dir() else "no such file"
            )
            raise InputError(f"--input {pattern}: {hint}")
        found |= dict.fromkeys(files)
    return list(found)


def named_path(text: str) -> tuple[str, Path]:
    """A name and a path, of `NAME=PATH` or of a path alone, whose stem is its name then."""
    found = _NAMED.fullmatch(text)
    if found and not Path(text).exists():
        return found[1], Path(found[2])
    return Path(text).stem, Path(text)


def content_suffix(path: Path) -> str:
    """The suffix that names the form: `.jsonl` of `a.jsonl.zst`."""
    bare = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return bare.suffix.lower()


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[io.BufferedReader, Callable[[], int]]]:
    """The bytes of a file, plain or decompressed, and a function that says how far in the file itself they are."""
    suffix = path.suffix.lower()
    if suffix == ".zst":
        # Arrow's reader, since that of zstandard takes a file that is cut off for a shorter one.
        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, "zstd") as stream:
            yield io.BufferedReader(cast(io.RawIOBase, stream), DECOMPRESSED_BYTES), file.tell
        return
    with path.open("rb", buffering=0) as raw:
        if suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)
            yield io.BufferedReader(cast(io.RawIOBase, stream), DECOMPRESSED_BYTES), raw.tell
        else:
            yield io.BufferedReader(raw, READ_BYTES), raw.tell


def read_lines(stream: io.BufferedReader, longest: int) -> Iterator[bytes | None]:
    """The lines with their ends, without a byte order mark; None for one of more than `longest` bytes."""
    number = 0
    while line := stream.readline(longest):
        number += 1
        if len(line) < longest or line.endswith(b"\n"):
            yield line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            continue
        while (rest := stream.readline(READ_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file whose batches are read as they are asked for, in little memory."""
    # without pre_buffer, and with a buffer: else a row group is read whole.
    return pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=READ_BYTES)


def strings_as_bytes(batch: pa.RecordBatch, names: Collection[str]) -> pa.RecordBatch:
    """The batch with these columns, if they are strings, as bytes: one that is not UTF-8 would take all with it."""
    kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    for place, field in enumerate(batch.schema):
        if field.name in names and field.type in kinds:
            batch = batch.set_column(place, field.name, batch.column(place).cast(kinds[field.type]))
    return batch


def open_text(path: Path) -> IO[str]:
    """Open a plain, `.gz` or `.zst` file for reading text in UTF-8."""
    # a byte order mark, which Windows puts in front, is no text.
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    if path.suffix.lower() == ".zst":
        # Arrow's reader, since that of zstandard takes a file that is cut off for a shorter one.
        return io.TextIOWrapper(pa.input_stream(str(path), compression="zstd"), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it is synced to disk and renamed to `path`, which is synced too.

    A reader never sees half a file, and a killed writer leaves `path` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the suffixes stay last: they choose the compression.
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file's bytes, or a directory's names, to the disk: after a crash of the machine they may else be gone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_rows(path: str | os.PathLike, rows: Iterable[Any]) -> int:
    """Write rows as JSON lines or Parquet, by the suffix, atomically; returns how many there were.

    The same rows make the same bytes. In Parquet a field that some rows lack is null in them. Raises
    InputError if rows do not fit into Parquet's columns.
    """
    with atomic_path(path) as temporary:
        if content_suffix(Path(path)) == ".parquet":
            return _write_parquet(temporary, list(rows), Path(path))
        count = 0
        with open_for_writing(temporary) as file:
            for row in rows:
                file.write(_to_utf8(json.dumps(row, ensure_ascii=False)) + b"\n")
                count += 1
        return count


def _write_parquet(temporary: Path, rows: list[Any], path: Path) -> int:
    # not Table.from_pylist: it takes the fields of the first row and drops those that only others have.
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
        pq.write_table(table, temporary, write_page_checksum=True)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise InputError(f"{path}: the rows do not fit into Parquet ({error}); write them as .jsonl") from error
    return len(rows)


def _to_utf8(text: str) -> bytes:
    """JSON text as bytes; the backslash form of a lone surrogate, which UTF-8 cannot hold, is JSON's own."""
    return text.encode("utf-8", "backslashreplace")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write one JSON value, indented, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(_to_utf8(json.dumps(value, indent=2, ensure_ascii=False)) + b"\n")


@contextmanager
def open_for_writing(path: Path) -> Iterator[BinaryIO]:
    """Open a plain, `.gz` or `.zst` file for writing bytes; the same bytes make the same file."""
    with path.open("wb") as file:
        if path.suffix.lower() == ".gz":
            # neither time nor the temporary name in the header: the same rows make the same bytes.
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed:
                yield cast(BinaryIO, compressed)
        elif path.suffix.lower() == ".zst":
            # with a checksum, as gzip has of itself: a flipped bit must not become another letter.
            with zstandard.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False) as compressed:
                yield cast(BinaryIO, compressed)
        else:
            yield file


def check_passage(row: Any, where: str) -> Passage:
    """The row as a passage; InputError if a field is missing or of the wrong type, or the text is empty."""
    _check_text_record(row, where, "a passage")
    return row


def check_label(row: Any, where: str) -> Label:
    """The row as a label record; InputError names the field that is wrong."""
    _check_text_record(row, where, "a label record")
    entities = row.get("entities")
    if not isinstance(entities, list):
        raise InputError(f'{where}: "entities" must be a list of {{"text", "type"}}, found {_kind(entities)}')
    for entity in entities:
        if not (isinstance(entity, dict) and _is_text(entity.get("text")) and _is_text(entity.get("type"))):
            raise InputError(
                f'{where}: an entity must be {{"text": ..., "type": ...}} with non-empty strings, found {entity!r}'
            )
    return row


def check_conversation(row: Any, where: str) -> Conversation:
    """The row as a conversation of the published form.

    The turns alternate, human first: the passage and its acknowledgement, then one or more pairs of
    question and answer. InputError says which turn breaks the form.
    """
    _check_mapping(row, where, "a conversation")
    turns = row.get("conversations")
    if not isinstance(row.get("id"), str):
        raise InputError(f'{where}: "id" must be a string, found {_kind(row.get("id"))}')
    if not isinstance(turns, list):
        raise InputError(f'{where}: "conversations" must be a list of turns, found {_kind(turns)}')
    for number, turn in enumerate(turns):
        expected = ("human", "gpt")[number % 2]
        if not (isinstance(turn, dict) and isinstance(turn.get("value"), str)):
            raise InputError(f'{where}: turn {number} must be {{"from": ..., "value": a string}}, found {turn!r:.200}')
        if turn.get("from") != expected:
            raise InputError(
                f"{where}: turn {number} is from {turn.get('from')!r}, not {expected!r}; turns alternate, human first"
            )
    if len(turns) < 4 or len(turns) % 2:
        raise InputError(
            f"{where}: {len(turns)} turns; expected passage, acknowledgement, then pairs of question and answer"
        )
    if NO_PASSAGE.fullmatch(turns[0]["value"]):
        raise InputError(f'{where}: turn 0 must hold a passage ("Text: ..."), found {turns[0]["value"]!r}')
    return row


def _check_text_record(row: Any, where: str, kind: str) -> None:
    _check_mapping(row, where, kind)
    if not isinstance(row.get("id"), str):
        raise InputError(f'{where}: "id" must be a string, found {_kind(row.get("id"))}')
    if not _is_text(row.get("text")):
        found = "an empty text" if isinstance(row.get("text"), str) else _kind(row.get("text"))
        raise InputError(f'{where}: "text" must be a non-empty string, found {found}')


def _check_mapping(row: Any, where: str, kind: str) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{where}: {kind} must be a JSON object, found {_kind(row)}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
