"""A raw record -> a document to extract from, or what is wrong with it."""

import datetime
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uner_jax.extraction.corpus.files import LONGEST_RECORD, UNREADABLE, Raw
from uner_jax.extraction.corpus.job import Job
from uner_jax.records import InputError, open_bytes

BYTES_A_CHARACTER = 4  # of UTF-8, at most


@dataclass
class Document:
    """A text with the labels that are asked about it, and what is carried along; with an `error`, no text.

    `read` is how many bytes of the input were read for it.
    """

    id: str
    read: int = 0
    text: str = ""
    labels: list[str] = field(default_factory=list)
    carried: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def read_document(raw: Raw, job: Job) -> Document:
    """The document of a raw record; one with an `error` if it holds none."""
    document = Document(raw.where, raw.read, carried=dict.fromkeys(job.carry))
    try:
        fields = _fields(raw, job)
        document.id = _id(fields.get(job.id_field), raw.where)
        document.carried = {name: _carried(fields.get(name)) for name in job.carry}
        text = _text(fields.get(job.text_field), job)
        document.labels = _labels(fields.get("labels"), job, raw.form == "cells")
        document.text = text
    except InputError as error:
        document.error = f"{raw.where}: {error}"
    return document


def _fields(raw: Raw, job: Job) -> dict[str, Any]:
    if raw.form == "fault":
        raise InputError(raw.content)
    if raw.form == "file":
        return {job.text_field: _whole_file(raw.content, job.max_characters)}
    if raw.content is None and raw.form != "row":
        raise InputError(f"a line longer than {LONGEST_RECORD >> 20} MiB")
    if raw.form == "text":
        return {job.text_field: _decoded(raw.content).rstrip("\r\n")}
    if raw.form == "cells":
        return _cells(*raw.content)
    row = _parsed(raw.content) if raw.form == "json" else raw.content
    if not isinstance(row, dict):
        raise InputError(f"a document must be a JSON object, found {type(row).__name__}")
    return row


def _whole_file(path: Path, max_characters: int) -> str:
    try:
        with open_bytes(path) as (stream, _):
            data = stream.read(BYTES_A_CHARACTER * max_characters + 1)
    except UNREADABLE as error:
        raise InputError(f"cannot be read to its end: {error}") from error
    if len(data) > BYTES_A_CHARACTER * max_characters:
        raise InputError(_too_long(f"more than {max_characters:,}", max_characters))
    return _decoded(data.removeprefix(b"\xef\xbb\xbf"))


def _cells(header: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise InputError(f"{len(cells)} cells; the header has {len(header)}")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        raise InputError("not UTF-8 text") from error
    return dict(zip(header, cells, strict=True))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(_decoded(line).rstrip())
    # ValueError: also a number of too many digits.
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(f"not JSON ({error})") from error


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8 text") from error


def _id(value: Any, where: str) -> str:
    """The document's own id, a number as text; else its place. Parquet takes no lone surrogate."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    name = _carried(value)
    sound = isinstance(name, str) and name and not any("\ud800" <= letter <= "\udfff" for letter in name)
    return name if sound else where


def _carried(value: Any) -> Any:
    """The value as it was: a string of Parquet comes as bytes, which may be no text."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _text(value: Any, job: Job) -> str:
    value = _decoded(value) if isinstance(value, bytes) else value
    if not isinstance(value, str) or not value.strip():
        found = "an empty text" if isinstance(value, str) else type(value).__name__
        raise InputError(f'"{job.text_field}" must be a non-empty string, found {found}')
    if len(value) > job.max_characters:
        raise InputError(_too_long(f"{len(value):,}", job.max_characters))
    return value


def _too_long(count: str, limit: int) -> str:
    return f"a text of {count} characters; --max-characters is {limit:,}: cut it into documents"


def _labels(own: Any, job: Job, in_table: bool) -> list[str]:
    # of a table: as for --labels.
    if isinstance(own, bytes) or (in_table and isinstance(own, str)):
        own = [label.strip() for label in str(_carried(own)).split(",") if label.strip()] or None
    labels = list(job.labels) if own is None else own
    if not isinstance(labels, list) or not labels:
        raise InputError('no labels; give --labels, or a list "labels" in the record')
    return labels


def as_json(value: Any) -> Any:
    """A value of a record of the input as JSON can hold it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): as_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
