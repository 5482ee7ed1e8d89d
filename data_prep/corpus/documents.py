"""A raw record of a file -> a document, or what is wrong with it."""

import json
from typing import Any, NamedTuple

from data_prep.corpus.files import LONGEST_LINE, Form


class Document(NamedTuple):
    """A text, the same in UTF-8, and where it is from, if that is known."""

    text: str
    data: bytes
    source: str | None


class RecordError(ValueError):
    """A record that is no document; the message says why in words that are the same for all of its kind."""


def read_document(record: Any, form: Form) -> Document:
    """The document of a raw record; RecordError if it holds none."""
    if record is None:
        raise RecordError(f"a line longer than {LONGEST_LINE >> 20} MiB")
    if form == "text":
        return _document(_decoded(record), None)
    row = _parsed(record) if form == "json" else record
    if not isinstance(row, dict):
        raise RecordError("not a JSON object")
    text = row.get("text")
    if text is None:
        raise RecordError('no "text"')
    if isinstance(text, bytes):
        text = _decoded(text)
    if not isinstance(text, str):
        raise RecordError('"text" is not a string')
    return _document(text, _source_of(row))


def is_blank(record: Any, form: Form) -> bool:
    """Whether this is an empty line or an empty text file, which is no record."""
    return isinstance(record, bytes) and form != "row" and not record.strip()


def _document(text: str, source: str | None) -> Document:
    if not text.strip():
        raise RecordError('an empty "text"')
    try:
        data = text.encode()
        (source or "").encode()
    except UnicodeEncodeError as error:
        raise RecordError("half a surrogate pair, which is no character") from error
    return Document(text, data, source)


def _source_of(row: dict[str, Any]) -> str | None:
    meta = row.get("meta")
    names = (meta.get("pile_set_name") if isinstance(meta, dict) else None, row.get("source"))
    return next((name for name in names if isinstance(name, str) and name.strip()), None)


def _decoded(record: bytes) -> str:
    try:
        return record.decode()
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8") from error


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(_decoded(line))
    except RecordError:
        raise
    # ValueError: also a number of too many digits.
    except (ValueError, RecursionError) as error:
        raise RecordError("not JSON") from error
