"""A file of labelled passages, read as often as need be instead of held in memory."""

import os
from array import array
from collections import Counter
from collections.abc import Iterator

import numpy as np

from data_prep.questions.labelled_passages import LabelledPassage, Variant, digest, parse_record
from data_prep.questions.statistics import FileStatistics
from uner_jax.command import progress
from uner_jax.records import InputError, read_rows


class LabelFile:
    """A file of labels or of published conversations, read anew each time, so that memory holds its keys only.

    Published records of one passage are one passage, in the place of the last of them and with the id of the
    first. Label records are not merged. Of passages with the same id all but the first get a number: "7#2".
    """

    def __init__(self, path: str | os.PathLike, variant: Variant | None = None):
        """Read the file once. Raises InputError for a record that is neither a label nor a conversation."""
        self._path, self._variant = path, variant
        self.statistics = FileStatistics()
        keys, published, ids = array("Q"), array("Q"), array("Q")
        for passage in self._records(f"reading {path}"):
            self.statistics.add(passage)
            keys.append(passage.key)
            ids.append(digest(passage.id))
            if passage.is_published:
                published.append(passage.key)
        if not keys:
            raise InputError(f"{path}: has no records")
        self._records_of = _repeated(published)
        self._ids = np.unique(np.array(ids, np.uint64))
        self._repeated_ids = _repeated(ids)
        self.repeated = _repeated(keys).keys()
        self.statistics.passages = len(np.unique(np.array(keys, np.uint64)))

    def passages(self, what: str) -> Iterator[LabelledPassage]:
        """Every passage; `what` is said of the progress."""
        given: Counter[str] = Counter()
        for passage in self._merged(self._records(what)):
            if digest(passage.id) in self._repeated_ids:
                given[passage.id] += 1
                passage.id = self._numbered(passage.id, given)
            yield passage

    def _records(self, what: str) -> Iterator[LabelledPassage]:
        total = self.statistics.records or None
        for where, row in progress(read_rows(self._path), what, total, unit="records"):
            yield parse_record(row, where, self._variant)

    def _merged(self, records: Iterator[LabelledPassage]) -> Iterator[LabelledPassage]:
        waiting: dict[int, LabelledPassage] = {}
        left = Counter(self._records_of)
        for passage in records:
            key = passage.key
            if not passage.is_published or key not in left:
                yield passage
                continue
            first = waiting.setdefault(key, passage)
            if first is not passage:
                first.merge(passage)
            left[key] -= 1
            if not left[key]:
                yield waiting.pop(key)
        if waiting:
            raise InputError(f"{self._path}: was changed while it was read; run the command again")

    def _numbered(self, name: str, given: Counter[str]) -> str:
        if given[name] == 1:
            return name
        while self._is_id(f"{name}#{given[name]}"):
            given[name] += 1
        return f"{name}#{given[name]}"

    def _is_id(self, name: str) -> bool:
        wanted = np.uint64(digest(name))
        place = np.searchsorted(self._ids, wanted)
        return bool(place < len(self._ids) and self._ids[place] == wanted)


def _repeated(numbers: "array[int]") -> dict[int, int]:
    """How often each number stands that does so more than once."""
    values, counts = np.unique(np.array(numbers, np.uint64), return_counts=True)
    return dict(zip(values[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True))
