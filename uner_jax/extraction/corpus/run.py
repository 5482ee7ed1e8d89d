"""A corpus of documents to a directory of extraction records, in parts, restartable.

A part is a few hundred documents that follow each other in a shard. It is computed alone and written whole, so a
job that was stopped, however it was, leaves the parts that an undisturbed one would have written, byte for byte.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from uner_jax.command import Progress
from uner_jax.extraction.corpus.documents import Document, read_document
from uner_jax.extraction.corpus.files import Raw, check_columns, read_raw
from uner_jax.extraction.corpus.job import STDIN, Job, Source, identity, model_digest
from uner_jax.extraction.corpus.parts import Manifest, carried_schema, locked_manifest, write_part
from uner_jax.extraction.corpus.stdin import spooled
from uner_jax.extraction.extractor import Extraction
from uner_jax.records import InputError, write_json

# A part ends after so many documents, or after the document with which it has so many characters.
PART_DOCUMENTS = 256
PART_CHARACTERS = 1 << 20

# What is counted of each document; `documents` and `errors` of records.
COUNTS = ("documents", "entities", "windows", "questions", "empty", "tokens", "ungrounded", "cut", "errors")


class Extracts(Protocol):
    """What a job needs of an `Extractor`."""

    def check(self, text: str, labels: Sequence[str]) -> None: ...  # noqa: D102
    def stream(self, texts: Sequence[str], labels: Sequence[Sequence[str]]) -> Iterator[tuple[int, Extraction]]: ...  # noqa: D102


def extract_corpus(open_extractor: Callable[[], Extracts], job: Job, output: Path, resume: bool = True) -> dict:
    """Write a record for each document of the job's shard, and return its summary: the counts of all its parts.

    Run again, a job goes on after the parts that it finished. The extractor is opened only if there is something to
    do. A document that cannot be read is written with its `error`. Without `resume` the shard is done anew. Raises
    InputError if the directory belongs to another job, or another process works on this shard of it.
    """
    model = model_digest(Path(job.model))
    check_inputs(job.inputs, output)
    with locked_manifest(output, job) as file:
        sources = _sources(job, output, resume)
        for source in sources:
            check_columns(source, job)
        manifest = Manifest(file, output, job)
        manifest.begin(identity(job, model, sources), resume)
        if manifest.end is not None:
            print(f"{output}: shard {job.shard}/{job.shards} is finished already", file=sys.stderr)
        else:
            manifest.finish(_Run(open_extractor, job, output, manifest, sources).run())
        for source in sources:
            if STDIN in job.inputs:
                source.path.unlink()
    return _totals(manifest)


def check_inputs(inputs: Iterable[Path], output: Path) -> None:
    """Raise InputError for an input that is missing, or is of the output itself."""
    for path in inputs:
        if path != STDIN and not path.is_file():
            raise InputError(f"{path}: no such file")
        if path.resolve().parent == output.resolve() and path.name.startswith(("part-", "manifest-", "summary-")):
            raise InputError(f"--input {path}: is of the output itself; write to another --output")


def _sources(job: Job, output: Path, resume: bool) -> list[Source]:
    if STDIN in job.inputs:
        return [spooled(output, job, resume)]
    return [Source(path, str(path)) for path in job.inputs]


def _totals(manifest: Manifest) -> dict[str, int]:
    return {key: sum(part[key] for part in manifest.parts.values()) for key in COUNTS}


@dataclasses.dataclass
class _Run:
    """One process's work on a shard."""

    open_extractor: Callable[[], Extracts]
    job: Job
    output: Path
    manifest: Manifest
    sources: list[Source]

    def run(self) -> dict[str, Any]:
        """Write the parts that are not there; returns how many documents the shard and the whole corpus have."""
        self.done = dict.fromkeys(COUNTS, 0)
        self.first_error: str | None = None
        self.corpus = 0
        started = time.monotonic()
        if self.manifest.parts:
            print(f"{self.output}: going on after {len(self.manifest.parts)} finished part(s)", file=sys.stderr)
        size = sum(source.path.stat().st_size for source in self.sources)
        with Progress("extracting", size, "B") as self.shown:
            self.started = time.monotonic()
            self._do_parts()
            self.shown.advance(0, self._note())
        totals = _totals(self.manifest)
        self._summarise(totals, time.monotonic() - started)
        return {"documents": totals["documents"], "corpus": self.corpus}

    def _do_parts(self) -> None:
        raws = self._raws()
        carried = carried_schema(self.job, self.sources)
        extractor: Extracts | None = None
        for number in itertools.count():
            if number in self.manifest.parts:
                self._skip(raws, self.manifest.parts[number]["documents"])
                continue
            documents = next_part((read_document(raw, self.job) for raw in raws), self.job)
            if not documents:
                return
            extractor = extractor or self.open_extractor()
            records, counts = self._extract(extractor, documents)
            name = f"{self.job.name('part')}-{number:05d}.{self.job.format}"
            self.manifest.add(number, write_part(self.output / name, records, carried) | counts)

    def _raws(self) -> Iterator[Raw]:
        """The records of this shard; what was read for others since counts as read for the next."""
        read, left = 0, sum(source.path.stat().st_size for source in self.sources)
        for raw in (raw for source in self.sources for raw in read_raw(source, self.job)):
            read, left = read + raw.read, left - raw.read
            if self.corpus % self.job.shards == self.job.shard:
                yield dataclasses.replace(raw, read=read)
                read = 0
            self.corpus += 1
        self.shown.skip(read + left)

    def _skip(self, raws: Iterator[Raw], documents: int) -> None:
        for raw in itertools.islice(raws, documents):
            self.shown.skip(raw.read)

    def _extract(self, extractor: Extracts, documents: list[Document]) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """The records of a part, and their counts."""
        sound = [document for document in documents if is_sound(extractor, document)]
        counts = dict.fromkeys(COUNTS, 0) | {"documents": len(documents), "errors": len(documents) - len(sound)}
        failed = [document for document in documents if document.error is not None]
        self.first_error = self.first_error or (failed[0].error if failed else None)
        self._advance({"documents": len(failed), "errors": len(failed)}, sum(document.read for document in failed))
        found: dict[int, Extraction] = {}
        texts, labels = [document.text for document in sound], [document.labels for document in sound]
        for place, extraction in extractor.stream(texts, labels) if sound else ():
            found[id(sound[place])] = extraction
            own = counts_of(extraction)
            counts |= {name: counts[name] + value for name, value in own.items() if name != "documents"}
            self._advance(own, sound[place].read)
        return [record_of(document, found.get(id(document))) for document in documents], counts

    def _advance(self, counts: dict[str, int], read: int) -> None:
        self.done |= {name: self.done[name] + value for name, value in counts.items()}
        self.shown.advance(read, self._note())

    def _note(self) -> str:
        """What the run has done, for the progress line."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        rates = [f"{self.done[name] / seconds:,.1f} {name}/s" for name in ("windows", "questions", "tokens")]
        empty = self.done["empty"] / max(self.done["questions"], 1)
        parts = [f"{self.done['documents']:,} documents", *rates, f"{empty:.0%} empty"]
        return ", ".join([*parts, f"{self.done['errors']:,} errors"] if self.done["errors"] else parts)

    def _summarise(self, totals: dict[str, int], seconds: float) -> None:
        """Write the counts of the whole shard, and what this run did of it how fast."""
        rates = {
            f"{name}_per_second": round(self.done[name] / seconds, 2) for name in ("documents", "questions", "tokens")
        }
        summary = totals | {
            "seconds": round(seconds, 1),
            "first_error": self.first_error,
            "this_run": self.done | rates,
        }
        write_json(self.output / f"{self.job.name('summary')}.json", summary)


def next_part(documents: Iterable[Document], job: Job) -> list[Document]:
    """The documents of a part; none if there are no more."""
    most = job.part_documents or PART_DOCUMENTS
    part: list[Document] = []
    characters = 0
    for document in documents:
        part.append(document)
        characters += len(document.text)
        if len(part) == most or characters >= PART_CHARACTERS:
            break
    return part


def is_sound(extractor: Extracts, document: Document) -> bool:
    """Whether it can be extracted from; if not, its `error` says why."""
    if document.error is None:
        try:
            extractor.check(document.text, document.labels)
        except InputError as error:
            document.error = str(error)
    return document.error is None


def counts_of(extraction: Extraction) -> dict[str, int]:
    """What is counted of a document."""
    return {
        "documents": 1,
        "entities": len(extraction.entities),
        "windows": extraction.chunks,
        "questions": extraction.questions,
        "empty": extraction.empty,
        "tokens": extraction.tokens,
        "ungrounded": extraction.ungrounded,
        "cut": extraction.cut,
    }


def record_of(document: Document, extraction: Extraction | None) -> dict[str, Any]:
    """The record of a document; without an extraction it has its error."""
    return {
        "id": document.id,
        "text": document.text if extraction else None,
        "labels": document.labels if extraction else [],
        "entities": extraction.entities if extraction else [],
        "chunks": extraction.chunks if extraction else 0,
        "error": document.error,
        **document.carried,
    }
