"""Extraction on Apache Beam: a fleet of workers writes the records that this machine would write.

A part of documents, as a local job has it, goes through the pipeline as one: a worker reads it, another one extracts
and writes it. So no records are shuffled, the parts that stand are kept when the job is run again, and a bundle that a
runner repeats writes the same bytes. What was read and written comes back as one summary, which is compared: a runner
that loses an element fails the job.
"""

import dataclasses
import itertools
import json
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsIter, TaggedOutput

from uner_jax.data.storage import as_path, is_remote, local_copy
from uner_jax.extraction.corpus.beam_output import BeamManifest, Entry, PartFiles, Place, replace_text, size_of
from uner_jax.extraction.corpus.documents import Document, read_document
from uner_jax.extraction.corpus.files import check_columns, read_raw
from uner_jax.extraction.corpus.job import STDIN, Job, Settings, Source
from uner_jax.extraction.corpus.parts import carried_schema, locked_manifest
from uner_jax.extraction.corpus.run import COUNTS, check_inputs, counts_of, is_sound, next_part, record_of
from uner_jax.extraction.extractor import Extractor
from uner_jax.records import InputError, LostRecordsError

# Input files that follow each other are read by one worker until they have so many bytes.
GROUP_BYTES = 1 << 20

# address of an input file, what it is called in ids and messages
NamedFile = tuple[str, str]


@dataclasses.dataclass
class Part:
    """Documents that follow each other in a group of input files."""

    place: Place
    documents: list[Document]


@dataclasses.dataclass
class ExtractedPart:
    """The records of a part, their counts, and the first error among them."""

    place: Place
    records: list[dict[str, Any]]
    counts: dict[str, int]
    first_error: str | None


class HeldExtractor:
    """An extractor that one thread uses at a time, as a device has room for one batch; Beam refers to it weakly."""

    def __init__(self, extractor: Extractor):
        self.extractor = extractor
        self.lock = threading.Lock()


class ExtractionHandler(ModelHandler[Part, ExtractedPart, HeldExtractor]):
    """For `RunInference`: parts of documents -> their records.

    The model is loaded once a process, from an address that means the same on all workers. A batch is one part: the
    engine itself reads its questions by length and keeps its pool of answers full.
    """

    def __init__(self, model: str, settings: Settings):
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._model, self._settings = model, settings

    def load_model(self) -> HeldExtractor:
        """The model, in the memory of this worker's devices."""
        with local_copy(as_path(self._model)) as local:
            return HeldExtractor(self._settings.extractor(str(local)))

    def run_inference(
        self, batch: Sequence[Part], model: HeldExtractor, inference_args: dict[str, Any] | None = None
    ) -> Iterator[ExtractedPart]:
        """Each part's records, in its order."""
        for part in batch:
            with model.lock:
                yield _extract(model.extractor, part)

    def get_num_bytes(self, batch: Sequence[Part]) -> int:
        """The characters of the texts: near enough for a metric."""
        return sum(len(document.text) for part in batch for document in part.documents)


def _extract(extractor: Extractor, part: Part) -> ExtractedPart:
    # a runner may hand the same documents to another try: they stay as they are.
    documents = [dataclasses.replace(document) for document in part.documents]
    sound = [place for place, document in enumerate(documents) if is_sound(extractor, document)]
    texts, labels = [documents[place].text for place in sound], [documents[place].labels for place in sound]
    found = {sound[place]: extraction for place, extraction in extractor.stream(texts, labels)} if sound else {}
    each = [counts_of(extraction) for extraction in found.values()]
    counts = dict.fromkeys(COUNTS, 0) | {name: sum(own[name] for own in each) for name in COUNTS if name != "errors"}
    counts |= {"documents": len(documents), "errors": len(documents) - len(sound)}
    records = [record_of(document, found.get(place)) for place, document in enumerate(documents)]
    error = next((document.error for document in documents if document.error is not None), None)
    return ExtractedPart(part.place, records, counts, error)


def extract_on_beam(job: Job, output: str, options: PipelineOptions, resume: bool = True) -> dict[str, int]:
    """Write a record for each document, as `extract_corpus` does, with the runner of the options; returns the counts.

    Model, inputs and output must have addresses that mean the same on all workers; they may lie in an object store.
    Raises InputError if the directory belongs to another job, and LostRecordsError if the runner lost a part.
    """
    if STDIN in job.inputs or job.shards > 1:
        raise InputError("--beam-runner reads whole files: leave out --input - and --shard")
    check_inputs([path for path in job.inputs if not is_remote(path)], Path(output))
    # for workers of another directory
    address = output if is_remote(output) else str(Path(output).resolve())
    with nullcontext() if is_remote(output) else locked_manifest(Path(address), job):
        manifest = BeamManifest(address, job)
        manifest.begin(resume)
        if manifest.is_finished:
            print(f"{output}: is finished already", file=sys.stderr)
            return manifest.totals()
        sources = [Source(path, str(path)) for path in job.inputs]
        near = [source for source in sources if not is_remote(source.path)]
        for source in near:
            check_columns(source, job)
        # a column that is carried from a remote file is text.
        carried = carried_schema(job, near if len(near) == len(sources) else [])
        files = PartFiles(address, job.name("part"), job.format, carried)
        groups = _groups(sources)
        with beam.Pipeline(options=options) as pipeline:
            _construct(pipeline, job, groups, files)
        manifest.finish(_entries(files, len(groups)))
        return manifest.totals()


def _groups(sources: Sequence[Source]) -> list[list[NamedFile]]:
    """The input files, small neighbours together."""
    groups: list[list[NamedFile]] = []
    size = GROUP_BYTES
    for source in sources:
        own = size_of(source.path)
        if size + own > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append((str(source.path if is_remote(source.path) else source.path.resolve()), source.name))
        size += own
    return groups


def _construct(pipeline: beam.Pipeline, job: Job, groups: list[list[NamedFile]], files: PartFiles) -> None:
    model = job.model if is_remote(job.model) else str(Path(job.model).resolve())
    read = (
        pipeline
        | "Groups" >> beam.Create(list(enumerate(groups)))
        | "SpreadGroups" >> beam.Reshuffle()
        | "Read"
        >> beam.ParDo(_Read(dataclasses.replace(job, inputs=()), files)).with_outputs("read", "kept", main="parts")
    )
    written = (
        read.parts
        | "SpreadParts" >> beam.Reshuffle()
        | "Extract" >> RunInference(ExtractionHandler(model, job.settings))
        | "Write" >> beam.Map(_write, files)
    )
    entries = (written, read.kept) | "Entries" >> beam.Flatten()
    _ = (
        pipeline
        | "Outcome" >> beam.Create([files])
        | "WriteOutcome" >> beam.Map(_write_outcome, read=AsIter(read.read), entries=AsIter(entries))
    )


class _Read(beam.DoFn):
    """A numbered group of files -> the parts of its documents, but for those that stand in the output already."""

    def __init__(self, job: Job, files: PartFiles):
        self._job, self._files = job, files

    def process(self, numbered: tuple[int, list[NamedFile]]) -> Iterator[Any]:
        group, named = numbered
        documents = self._documents(named)
        read = count = 0
        for number in itertools.count():
            found = next_part(documents, self._job)
            if not found:
                break
            read, count = number + 1, count + len(found)
            entry = self._files.kept((group, number))
            yield TaggedOutput("kept", json.dumps(entry)) if entry else Part((group, number), found)
        yield TaggedOutput("read", (group, read, count))

    def _documents(self, named: list[NamedFile]) -> Iterator[Document]:
        for address, name in named:
            with local_copy(as_path(address)) as local:
                source = Source(local, name)
                check_columns(source, self._job)
                yield from (read_document(raw, self._job) for raw in read_raw(source, self._job))


def _write(part: ExtractedPart, files: PartFiles) -> str:
    """Write a part; its entry in JSON, as Beam's own coding of strings fails on half a surrogate pair."""
    return json.dumps(files.write(part.place, part.records, part.counts, part.first_error))


def _write_outcome(files: PartFiles, read: Iterable[tuple[int, int, int]], entries: Iterable[str]) -> None:
    found = {"read": list(read), "entries": [json.loads(entry) for entry in entries]}
    replace_text(files.outcome, json.dumps(found))


def _entries(files: PartFiles, groups: int) -> list[Entry]:
    """The entries of all parts. Raises LostRecordsError if they are not those of what was read."""
    found = json.loads(files.outcome.read_bytes())
    files.outcome.unlink()
    read, entries = sorted(found["read"]), found["entries"]
    if [group for group, _, _ in read] != list(range(groups)):
        raise LostRecordsError(f"Beam read {len(read)} of {groups} groups of files; run the job again")
    parts = [[group, number] for group, count, _ in read for number in range(count)]
    if sorted(entry["place"] for entry in entries) != parts:
        raise LostRecordsError(f"parts read and written: {len(parts)} and {len(entries)}; run the job again")
    documents, written = sum(row[2] for row in read), sum(entry["documents"] for entry in entries)
    if documents != written:
        raise LostRecordsError(f"documents read and written: {documents} and {written}; run the job again")
    return entries
