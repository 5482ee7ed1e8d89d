"""The walk over all passages in their random order, which accepts or drops each until there are enough."""

import hashlib
from collections import Counter

from data_prep.corpus.duplicates import Duplicates
from data_prep.corpus.harvest import Candidate
from data_prep.corpus.reserve import Reserve
from uner_jax.records import Passage

REPEATED = {"exact": "exact duplicate", "near": "near duplicate"}


class Walk:
    """Accepts passages of the groups in turn, one a group in each round, until there are `count`.

    A group that has no more leaves its share to the others. The walk goes from one reserve to the next:
    what it accepts does not depend on how large they are.
    """

    def __init__(self, count: int):
        self._count = count
        self._duplicates = Duplicates()
        self._next_group = ""
        self.accepted: list[Passage] = []
        self.dropped: Counter[str] = Counter()
        self.floors: dict[str, int] = {}

    def go(self, reserve: Reserve) -> bool:
        """Walk on as far as this reserve reaches; whether the walk is at its end.

        If it is not, the next reserve must begin at `floors`.
        """
        groups = reserve.groups()
        while groups:
            for group in [name for name in groups if name >= self._next_group]:
                if len(self.accepted) == self._count:
                    return True
                if self._accept_one(reserve, group):
                    continue
                if not reserve.is_whole(group):
                    self._next_group = group
                    return False
                groups.remove(group)
            self._next_group = ""
        return True

    def _accept_one(self, reserve: Reserve, group: str) -> bool:
        while popped := reserve.pop(group):
            candidate, copies = popped
            self.floors[group] = candidate.priority + 1
            if candidate.text is None:
                self.dropped[str(candidate.fault)] += copies
            elif repeated := self._duplicates.kind(candidate.text):
                self.dropped[REPEATED[repeated]] += copies
            else:
                self.dropped[REPEATED["exact"]] += copies - 1
                self.accepted.append(_passage(candidate.text, candidate))
                return True
        return False


def _passage(text: str, candidate: Candidate) -> Passage:
    passage: Passage = {"id": hashlib.sha256(text.encode()).hexdigest()[:16], "text": text}
    if candidate.source:
        passage["source"] = candidate.source
    return passage
