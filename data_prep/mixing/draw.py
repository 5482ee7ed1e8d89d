"""Which conversations of a set are taken, and how often."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uner_jax.records import Conversation, InputError, check_conversation, named_path, read_rows


@dataclass(frozen=True)
class ConversationSet:
    """A file of conversations, the name that it goes by, how many are taken at most, and how often each."""

    name: str
    path: Path
    limit: int | None
    weight: float

    def rows(self) -> Iterator[tuple[str, Conversation]]:
        """Where each conversation stands, and the conversation. Raises InputError for a row that is none."""
        for where, row in read_rows(self.path):
            yield where, check_conversation(row, where)

    def taken(self, count: int, seed: int) -> dict[int, int]:
        """How often each place of `count` is taken; the same whatever other sets there are.

        At most `limit` places are drawn uniformly. Each is taken `weight` times: the whole part of it always, and once
        more as many of them as the rest of it makes of their number, drawn uniformly.
        """
        generator = random.Random(f"{seed} {self.name}")
        drawn = generator.sample(range(count), count if self.limit is None else min(count, self.limit))
        whole = int(self.weight)
        more = round((self.weight - whole) * len(drawn))
        times = {place: whole + (rank < more) for rank, place in enumerate(drawn)}
        return {place: often for place, often in times.items() if often}


def parse_sets(paths: tuple[str, ...], limit: int | None, weights: tuple[str, ...]) -> list[ConversationSet]:
    """The sets of `NAME=PATH` or `PATH`, with weights of `NAME=WEIGHT`.

    Raises InputError for a name that two sets have, and for a weight of no set or that is no number of at least 0.
    """
    named = [named_path(path) for path in paths]
    names = [name for name, _ in named]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"--conversations: more than one set of the name {twice[0]}; name them: NAME=PATH")
    known = dict(_weight(text, names) for text in weights)
    return [ConversationSet(name, path, limit, known.get(name, 1.0)) for name, path in named]


def _weight(text: str, names: list[str]) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    if name not in names:
        raise InputError(f"--weights {text}: expected NAME=WEIGHT with a name of {', '.join(names)}")
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1000:
        raise InputError(f"--weights {text}: expected a number of 0 to 1000, such as 0.5 or 2")
    return name, weight


def numbered(row: Conversation, time: int) -> dict[str, Any]:
    """The conversation as it is taken for the `time`-th time, from 0, under an id of its own."""
    return dict(row) if time == 0 else {**row, "id": f"{row['id']}@{time + 1}"}
