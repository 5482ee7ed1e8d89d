"""The output of a shard: parts of records, and a manifest of those that are whole.

The manifest is a file of JSON lines: what job this is, then each finished part with its counts and its checksum,
and at the end what they are together. A part is listed after it stands on the disk under its name. The process
that works on a shard holds a lock on its manifest, which ends with the process, however it ends.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from uner_jax.extraction.corpus.documents import as_json
from uner_jax.extraction.corpus.job import Job, Source, differences
from uner_jax.records import InputError, atomic_path, content_suffix, open_parquet, write_rows

_SPAN = pa.struct(
    [("start", pa.int64()), ("end", pa.int64()), ("text", pa.string()), ("label", pa.string()), ("score", pa.float64())]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("entities", pa.list_(_SPAN)),
        ("chunks", pa.int64()),
        ("error", pa.string()),
    ]
)


@contextmanager
def locked_manifest(output: Path, job: Job) -> Iterator[BinaryIO]:
    """The shard's manifest, open and locked. Raises InputError if another process works on this shard."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / f"{job.name('manifest')}.jsonl").open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{output}: another process is at work on shard {job.shard}/{job.shards} of it; let it end first"
            ) from error
        yield file


class Manifest:
    """What is done of a shard, on the disk; `parts` are the finished ones by number, `end` is there if all are."""

    def __init__(self, file: BinaryIO, output: Path, job: Job):
        self._file, self._output, self._job = file, output, job
        self.header: dict[str, Any] | None = None
        self.parts: dict[int, dict[str, Any]] = {}
        self.end: dict[str, Any] | None = None
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        self._take([json_line(line) for line in lines if line.endswith(b"\n")])

    def _take(self, entries: Sequence[dict[str, Any] | None]) -> None:
        """What the lines say as far as they can be read: after a crash of the machine the last may be torn."""
        for entry in entries:
            if entry is None:
                return
            if "job" in entry:
                self.header = entry
            elif "complete" in entry:
                self.end = entry["complete"]
            else:
                self.parts[entry["number"]] = entry

    def begin(self, identity: dict[str, Any], resume: bool) -> None:
        """Go on with what is there, or begin anew. Raises InputError if that is another job."""
        _check_other_shards(self._output, self._job, identity, resume)
        if not resume:
            self.header, self.parts, self.end = None, {}, None
        if self.header is not None:
            _check_same(self._output, self.header["job"], identity)
        self.header = {"job": identity}
        whole = {number: part for number, part in self.parts.items() if is_whole(self._output / part["part"], part)}
        if len(whole) < len(self.parts):
            self.parts, self.end = whole, None
        self._write_all()
        self._remove_unlisted()

    def add(self, number: int, part: dict[str, Any]) -> None:
        """List a part that stands on the disk."""
        last = max(self.parts, default=-1)
        self.parts[number] = {"number": number, **part}
        if number > last:
            self._append(self.parts[number])
        else:
            self._write_all()  # one that was gone, done again

    def finish(self, end: dict[str, Any]) -> None:
        """Say that all parts are there."""
        self.end = end
        self._append({"complete": end})

    def _entries(self) -> list[dict[str, Any]]:
        entries = [self.header or {}, *(self.parts[number] for number in sorted(self.parts))]
        return entries + ([{"complete": self.end}] if self.end is not None else [])

    def _write_all(self) -> None:
        data = b"".join(_line(entry) for entry in self._entries())
        self._file.seek(0)
        # killed between the two, some parts are done again.
        if self._file.read() != data:
            self._file.truncate(0)
            self._write(data)

    def _append(self, entry: dict[str, Any]) -> None:
        self._write(_line(entry))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _remove_unlisted(self) -> None:
        """What a killed process left, or an earlier job."""
        listed = {part["part"] for part in self.parts.values()}
        for path in self._output.glob(f"{self._job.name('part')}-*"):
            if path.name not in listed:
                path.unlink()
        for path in self._output.glob(f".tmp-*-{self._job.name('*')}*"):
            path.unlink()


def json_line(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None if it holds none."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def is_whole(path: Path, part: Mapping[str, Any]) -> bool:
    """Whether the part stands there as it was written."""
    if not path.is_file() or path.stat().st_size != part["bytes"]:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == part["sha256"]


def _check_same(output: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = differences(old, new)
    if changed:
        raise InputError(
            f"{output}: was begun with other {'; '.join(changed)}. Give another --output, or --no-resume to do it anew"
        )


def _check_other_shards(output: Path, job: Job, identity: dict[str, Any], resume: bool) -> None:
    """The shards of a directory are those of one job."""
    for path in sorted(output.glob("manifest-*-of-*.jsonl")):
        shards = int(path.stem.rpartition("-")[2])
        if shards != job.shards:
            raise InputError(
                f"{output}: was begun in {shards} shard(s), not in {job.shards}; give --shard I/{shards} or another "
                "--output"
            )
        with path.open("rb") as file:
            header = json_line(file.readline())
        if resume and path.stem != job.name("manifest") and header and "job" in header:
            _check_same(output, header["job"], identity)


def write_part(path: Path, records: list[dict[str, Any]], carried: pa.Schema) -> dict[str, Any]:
    """Write a part, to the disk and under its name when it is whole; its name, size and checksum."""
    if content_suffix(path) == ".parquet":
        with atomic_path(path) as temporary:
            pq.write_table(parquet_table(records, carried), temporary, write_page_checksum=True)
    else:
        write_rows(path, ({name: as_json(value) for name, value in record.items()} for record in records))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"part": path.name, "bytes": path.stat().st_size, "sha256": digest}


def parquet_table(records: list[dict[str, Any]], carried: pa.Schema) -> pa.Table:
    """The records in the columns that every part has."""
    schema = pa.schema([*SCHEMA, *carried])
    texts = {field.name for field in carried if field.type == pa.string()}
    rows = [{name: _as_text(value) if name in texts else value for name, value in row.items()} for row in records]
    return pa.Table.from_pylist(rows, schema)


def _as_text(value: Any) -> str | None:
    """A string as it is, but for half of a surrogate pair; any other value as JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(as_json(value), ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def carried_schema(job: Job, sources: Sequence[Source]) -> pa.Schema:
    """The types of the carried columns in Parquet: the input's own where all is Parquet and agrees, else strings."""
    schemas = []
    for source in sources:
        if content_suffix(source.path) != ".parquet":
            schemas.append(pa.schema([]))
            continue
        with contextlib.suppress(OSError, pa.ArrowException), open_parquet(source.path) as file:
            schemas.append(file.schema_arrow)
    return pa.schema([(name, _common_type(name, schemas)) for name in job.carry])


def _common_type(name: str, schemas: Sequence[pa.Schema]) -> pa.DataType:
    types = {schema.field(name).type if name in schema.names else pa.null() for schema in schemas}
    found = types.pop() if len(types) == 1 else pa.string()
    simple = (
        pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_date, pa.types.is_timestamp,
        pa.types.is_decimal,
    )  # fmt: skip
    return found if any(check(found) for check in simple) else pa.string()
