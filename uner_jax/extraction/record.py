"""The extraction record, as `uner extract` writes it: read from a file or a directory of parts, and checked once.

{"id", "text", "labels", "entities": [{"start", "end", "text", "label", "score"}], "chunks", "error"}
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uner_jax.records import InputError, read_rows


def read_extractions(source: str | os.PathLike) -> Iterator[dict]:
    """The checked records of a file, or of all `part-*` files of a directory in the order of their names.

    Raises InputError, naming file and line, for what is not an extraction record.
    """
    for path in _parts(Path(source)):
        for where, row in read_rows(path):
            yield check_extraction(row, where)


def _parts(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    parts = sorted(path for path in source.glob("part-*") if path.is_file())
    if not parts:
        raise InputError(f'{source}: has no files "part-*"; give a file of records, or a directory of uner extract')
    return parts


def check_extraction(row: Any, where: str) -> dict:
    """The row as an extraction record; InputError names the field that is wrong.

    A record with an error may lack its text and its entities; no other may.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: an extraction record must be a JSON object, found {row!r:.80}")
    _check_field(row, "id", "a string", str, where)
    _check_field(row, "source", "a string", str | None, where)
    _check_field(row, "error", "a string or null", str | None, where)
    failed = row.get("error") is not None
    _check_field(row, "text", "a string", str | None if failed else str, where)
    _check_field(row, "entities", "a list", list | None if failed else list, where)
    for number, entity in enumerate(row.get("entities") or []):
        _check_entity(entity, row.get("text") or "", f"{where}: entity {number}")
    return row


def _check_entity(entity: Any, text: str, where: str) -> None:
    if not isinstance(entity, dict):
        raise InputError(f"{where}: must be a JSON object, found {entity!r:.80}")
    for name in ("text", "label"):
        _check_field(entity, name, "a string", str, where)
    for name in ("start", "end"):
        _check_field(entity, name, "an integer", int, where)
    _check_field(entity, "score", "a number", int | float, where)
    start, end, score = entity["start"], entity["end"], entity["score"]
    if not 0 <= start < end <= len(text):
        raise InputError(f"{where}: {start} to {end} is no span in a text of {len(text)} code points")
    if text[start:end] != entity["text"]:
        found = f"the text has {text[start:end]!r:.80} there, the entity {entity['text']!r:.80}"
        raise InputError(f"{where}: {start} to {end}: {found}; offsets count code points, end exclusive")
    if not (math.isfinite(score) and 0 <= score <= 1):
        raise InputError(f'{where}: "score" must be from 0 to 1, found {score!r}')


def _check_field(row: dict, name: str, expected: str, kind: Any, where: str) -> None:
    value = row.get(name)
    # True is an int to Python, but neither an offset nor a score.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f'{where}: "{name}" must be {expected}, found {value!r:.80}')
