"""The candidates of least priority that were met so far, in bounded memory."""

import heapq
from collections.abc import Mapping

from data_prep.corpus.harvest import Candidate, Stretch
from uner_jax.records import InputError

MOST_GROUPS = 1000


class Reserve:
    """Holds `capacity` candidates of all groups together, of each group those of least priority.

    What is too much is taken from the largest group, so that each keeps as many as its share of the sample
    can be. `floors` says where a group's candidates begin: those below were dealt with before. There must be
    room for one of each group, so a capacity of MOST_GROUPS is always enough.
    """

    def __init__(self, capacity: int, floors: Mapping[str, int]):
        self._capacity = capacity
        self._floors = floors
        self._groups: dict[str, _Group] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, group: str, candidate: Candidate) -> None:
        """Take a candidate in, or count it as a copy of the same one: of an equal document of the same source."""
        if group not in self._groups:
            if len(self._groups) == MOST_GROUPS:
                raise InputError(
                    f"--per-source: more than {MOST_GROUPS:,} sources, among them {group!r}; a source should be a kind "
                    "of text, not a single document's address"
                )
            self._groups[group] = _Group(Stretch(self._floors.get(group, 0)))
        self._size += self._groups[group].add(candidate)
        if self._size > self._capacity:
            max(self._groups.values(), key=len).evict()
            self._size -= 1

    def groups(self) -> list[str]:
        """The names of all groups that were met, sorted."""
        return sorted(self._groups)

    def stretches(self) -> dict[str, Stretch]:
        """Of each group the priorities that it still takes in."""
        untouched = {name: Stretch(floor) for name, floor in self._floors.items()}
        return untouched | {name: group.stretch for name, group in self._groups.items()}

    def pop(self, group: str) -> tuple[Candidate, int] | None:
        """The group's candidate of least priority, and how often it was met; None if there is no more."""
        return self._groups[group].pop() if group in self._groups else None

    def is_whole(self, group: str) -> bool:
        """Whether nothing of the group was lost for lack of room."""
        return group not in self._groups or self._groups[group].stretch.ceiling == Stretch.ceiling


class _Group:
    def __init__(self, stretch: Stretch):
        self.stretch = stretch
        self._copies: dict[int, int] = {}
        self._candidates: dict[int, Candidate] = {}
        self._largest_first: list[int] = []
        self._smallest_last: list[int] | None = None

    def __len__(self) -> int:
        return len(self._candidates)

    def add(self, candidate: Candidate) -> bool:
        """Take it in if it is in the stretch; whether that takes room."""
        priority = candidate.priority
        if not self.stretch.floor <= priority < self.stretch.ceiling:
            return False
        # equal priorities: copies, since 63 bits do not meet by chance.
        self._copies[priority] = self._copies.get(priority, 0) + 1
        if priority in self._candidates:
            return False
        self._candidates[priority] = candidate
        heapq.heappush(self._largest_first, -priority)
        return True

    def evict(self) -> None:
        largest = -heapq.heappop(self._largest_first)
        del self._candidates[largest], self._copies[largest]
        self.stretch = Stretch(self.stretch.floor, largest)

    def pop(self) -> tuple[Candidate, int] | None:
        if self._smallest_last is None:
            self._smallest_last = sorted(self._candidates, reverse=True)
        if not self._smallest_last:
            return None
        priority = self._smallest_last.pop()
        return self._candidates.pop(priority), self._copies.pop(priority)
