"""What a worker process does: batches of raw records -> the passages that the sample can need."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from data_prep.corpus.cutting import Cut, Cutter
from data_prep.corpus.documents import Document, RecordError, is_blank, read_document
from data_prep.corpus.files import Batch
from data_prep.corpus.priority import PRIORITIES, most_passages, priorities
from data_prep.corpus.quality import find_fault
from uner_jax.tokenizer import Tokenizer

# Bad records that are named, of a batch and in all.
NAMED = 5
UNBREAKABLE = "too long, without a place to cut at"


@dataclass(frozen=True)
class Settings:
    """What decides which passages a corpus has, and their order."""

    max_tokens: int
    min_tokens: int
    seed: int
    per_source: bool

    def group(self, source: str | None) -> str:
        """The group that a source's passages are sampled in: its own, or the one of all."""
        return (source or "") if self.per_source else ""


@dataclass(frozen=True)
class Stretch:
    """The priorities `floor <= priority < ceiling` that are wanted of a group."""

    floor: int = 0
    ceiling: int = PRIORITIES


@dataclass(frozen=True)
class Task:
    """A batch, and what is wanted of it; a group that has no stretch yet is wanted whole."""

    batch: Batch
    stretches: Mapping[str, Stretch]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage with its place in the order of all; one with a fault needs no text."""

    priority: int
    source: str | None
    text: str | None
    fault: str | None


@dataclass
class Harvest:
    """What came out of a batch: candidates, counts, and bad records by reason, the first of them named."""

    read: int
    documents: int = 0
    passages: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)


class Harvester:
    """Finds the candidates of documents."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings):
        self._cutter = Cutter(tokenizer, settings.max_tokens)
        self._settings = settings

    def harvest(self, task: Task) -> Harvest:
        """The candidates of all documents of a batch."""
        batch = task.batch
        result = Harvest(batch.read)
        for place, record in enumerate(batch.records):
            if is_blank(record, batch.form):
                continue
            try:
                document = read_document(record, batch.form)
            except RecordError as error:
                result.bad[str(error)] += 1
                if len(result.named) < NAMED:
                    result.named.append(f"{batch.where(place)}: {error}")
                continue
            result.documents += 1
            result.candidates += self._candidates(document, task.stretches, result)
        return result

    def _candidates(self, document: Document, stretches: Mapping[str, Stretch], result: Harvest) -> Iterator[Candidate]:
        stretch = stretches.get(self._settings.group(document.source), Stretch())
        order = priorities(document, self._settings.seed, most_passages(document.data, self._settings.max_tokens))
        wanted = np.flatnonzero((order >= np.uint64(stretch.floor)) & (order < np.uint64(stretch.ceiling)))
        if not len(wanted):
            return
        last, wanted_places = wanted[-1], set(wanted.tolist())
        for place, cut in enumerate(self._cutter.cut(document.text)):
            result.passages += 1
            if place in wanted_places:
                yield self._candidate(int(order[place]), document.source, cut)
            if place == last:
                return

    def _candidate(self, priority: int, source: str | None, cut: Cut) -> Candidate:
        if cut.text is None:
            return Candidate(priority, source, None, UNBREAKABLE)
        fault = find_fault(cut.text, cut.tokens, self._settings.min_tokens)
        return Candidate(priority, source, None if fault else cut.text, fault)


_harvester: Harvester | None = None


def start_worker(tokenizer: Tokenizer, settings: Settings) -> None:
    """Prepare this process for `harvest`."""
    global _harvester
    _harvester = Harvester(tokenizer, settings)


def harvest(task: Task) -> Harvest:
    """`Harvester.harvest` of this process."""
    assert _harvester is not None, "start_worker comes first"
    return _harvester.harvest(task)
