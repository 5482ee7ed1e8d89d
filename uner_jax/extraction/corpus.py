"""A corpus of documents to a directory of extraction records, in parts, restartable."""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from uner_jax.command import progress
from uner_jax.extraction.extractor import Extractor
from uner_jax.records import InputError, read_rows, write_json, write_rows

PART_DOCUMENTS = 256

Format = Literal["jsonl", "parquet"]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is extracted from where; a directory of output belongs to one job."""

    model: str
    inputs: tuple[Path, ...]
    labels: tuple[str, ...]
    format: Format = "jsonl"
    shard: int = 0
    shards: int = 1
    dtype: str = "float32"
    max_new_tokens: int = 256

    def identity(self) -> dict[str, Any]:
        """What must be the same for an output to be continued."""
        return {
            "model": self.model,
            "labels": list(self.labels),
            "inputs": [{"path": str(path), "sha256": _digest(path)} for path in self.inputs],
            "format": self.format,
            "dtype": self.dtype,
            "max_new_tokens": self.max_new_tokens,
        }


def extract_corpus(extractor: Extractor, job: Job, output: Path, resume: bool = True) -> dict[str, int]:
    """Write a record for each document of the job's shard, and return the counts of all its parts.

    A part is renamed to its name when it is whole and then counted in the manifest, so a job that was
    killed goes on after the last part that it finished. A document that cannot be read is written with
    its `error`. Without `resume` the shard is done anew. Raises InputError if the directory belongs to
    another job.
    """
    manifest_path = output / f"manifest-{job.shard:05d}-of-{job.shards:05d}.json"
    if not resume:
        manifest_path.unlink(missing_ok=True)
        # all of them: anew there may be fewer.
        for old in output.glob(f"part-{job.shard:05d}-of-{job.shards:05d}-*"):
            old.unlink()
    manifest = _open_manifest(manifest_path, job)
    started = time.monotonic()
    documents = progress(_documents(job), "extracting", unit="documents")
    for number, part in enumerate(_parts(documents)):
        name = f"part-{job.shard:05d}-of-{job.shards:05d}-{number:05d}.{job.format}"
        if name in manifest["parts"] and (output / name).is_file():
            continue
        records, counts = _extract_part(extractor, part)
        write_rows(output / name, records)
        manifest["parts"][name] = counts
        write_json(manifest_path, manifest)
    total = {key: sum(counts[key] for counts in manifest["parts"].values()) for key in COUNTS}
    write_json(
        output / f"summary-{job.shard:05d}-of-{job.shards:05d}.json",
        total | {"seconds": round(time.monotonic() - started, 1)},
    )
    return total


COUNTS = ("documents", "entities", "windows", "errors", "ungrounded", "cut")


def _open_manifest(path: Path, job: Job) -> dict[str, Any]:
    identity = job.identity()
    if not path.is_file():
        return {"job": identity, "parts": {}}
    manifest = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in identity if manifest["job"].get(key) != identity[key]]
    if changed:
        raise InputError(
            f"{path.parent}: was begun with other {', '.join(changed)}; give another --output or remove it"
        )
    if manifest["parts"]:
        print(f"{path.parent}: going on after {len(manifest['parts'])} finished part(s)", file=sys.stderr)
    return manifest


def _documents(job: Job) -> Iterator[tuple[str, Any, list[str]]]:
    """(where, row, labels) of each document of this shard."""
    number = 0
    for path in job.inputs:
        for where, row in read_rows(path):
            if number % job.shards == job.shard:
                own = row.get("labels") if isinstance(row, dict) else None
                yield where, row, list(job.labels) if own is None else own
            number += 1


def _parts(documents: Iterable[tuple[str, Any, list[str]]]) -> Iterator[list[tuple[str, Any, list[str]]]]:
    part = []
    for document in documents:
        part.append(document)
        if len(part) == PART_DOCUMENTS:
            yield part
            part = []
    if part:
        yield part


def _extract_part(
    extractor: Extractor, part: Sequence[tuple[str, Any, list[str]]]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    errors = [_fault(extractor, row, labels, where) for where, row, labels in part]
    sound = [place for place, error in enumerate(errors) if error is None]
    found = extractor.extract([part[place][1]["text"] for place in sound], [part[place][2] for place in sound])
    by_place = dict(zip(sound, found, strict=True))
    counts = dict.fromkeys(COUNTS, 0) | {"documents": len(part), "errors": len(part) - len(sound)}
    records = []
    for place, (where, row, labels) in enumerate(part):
        extraction = by_place.get(place)
        if extraction:
            counts["entities"] += len(extraction.entities)
            counts["windows"] += extraction.chunks
            counts["ungrounded"] += extraction.ungrounded
            counts["cut"] += extraction.cut
        fields = row if isinstance(row, dict) else {}
        records.append(
            {
                "id": _id(fields.get("id"), where),
                "text": fields.get("text") if extraction else None,
                "labels": labels if extraction else [],
                "entities": extraction.entities if extraction else [],
                "chunks": extraction.chunks if extraction else 0,
                "error": errors[place],
            }
        )
    return records, counts


def _id(value: Any, where: str) -> str:
    """The document's own id, a number as text; else its place. Parquet takes no lone surrogate."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    sound = isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    return value if sound else where


def _fault(extractor: Extractor, row: Any, labels: Any, where: str) -> str | None:
    """Why a document cannot be extracted from; None if it can."""
    try:
        if not isinstance(row, dict):
            raise InputError(f"{where}: a document must be a JSON object, found {type(row).__name__}")
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            found = "an empty text" if isinstance(text, str) else type(text).__name__
            raise InputError(f'{where}: "text" must be a non-empty string, found {found}')
        if not isinstance(labels, list) or not labels:
            raise InputError(f'{where}: no labels; give --labels, or a list "labels" in the record')
        extractor.check(text, labels)
    except InputError as error:
        return str(error)
    return None


def _digest(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
