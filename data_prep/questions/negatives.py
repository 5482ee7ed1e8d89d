"""Negative types: those that a passage does not have and is asked about all the same.

Source: arXiv 2308.03279, section 4.1, "negative sampling".
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Literal

import numpy as np

from data_prep.questions.entity_types import type_keys

Negatives = Literal["frequency", "uniform", "none"]


class NegativeSampler:
    """Draws types that a passage does not have, one after the other, without replacement.

    A passage gets `per_passage` of them and `ratio` for each of its own types; a fraction is drawn too, so
    that the mean is exact. A draw depends on the seed, the passage's id and the counts, and on nothing else.
    """

    def __init__(
        self, counts: Counter[str], strategy: Negatives, seed: int = 0, per_passage: int = 0, ratio: float = 0.0
    ):
        self._types = sorted(counts) if strategy != "none" else []
        weights = [counts[name] if strategy == "frequency" else 1 for name in self._types]
        self._weights = np.array(weights, np.float64)
        self._cumulative = np.cumsum(self._weights)
        self._places: dict[str, list[int]] = {}
        for place, name in enumerate(self._types):
            for key in type_keys(name):
                self._places.setdefault(key, []).append(place)
        self._per_passage, self._ratio, self._seed = per_passage, ratio, seed

    def generator(self, passage_id: str) -> np.random.Generator:
        """The random numbers of one passage."""
        digest = hashlib.blake2b(passage_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return np.random.default_rng([self._seed, int.from_bytes(digest, "big")])

    def draw(self, present: Iterable[str], positives: int, random: np.random.Generator) -> list[str]:
        """Types that are none of `present` under any name, for a passage with `positives` types of its own.

        Fewer than asked for if there are no more. The time grows with the number drawn and the logarithm of
        the number of types.
        """
        wanted = self._per_passage + int(self._ratio * positives + random.random())
        keys = {key for name in present for key in type_keys(name)}
        excluded = {place for key in keys for place in self._places.get(key, ())}
        available = len(self._types) - len(excluded)
        chosen = self._propose(excluded, wanted, random) if wanted < available else []
        missing = min(wanted, available) - len(chosen)
        if missing:
            chosen += self._draw_rest(excluded.union(chosen), missing, random)
        return [self._types[place] for place in chosen]

    def _propose(self, excluded: set[int], wanted: int, random: np.random.Generator) -> list[int]:
        """Draws from all types and passes over those that are excluded or drawn already.

        Ends when it has as many as wanted, or has tried as often as there are types: where nearly all the
        weight is excluded, looking at every type is cheaper.
        """
        chosen: dict[int, None] = {}
        tried, size = 0, 2 * wanted + 8
        while len(chosen) < wanted and tried < len(self._types):
            uniform = random.random(size) * self._cumulative[-1]
            places = np.searchsorted(self._cumulative, uniform, side="right")
            chosen |= dict.fromkeys(place for place in places.tolist() if place not in excluded)
            tried, size = tried + size, 2 * size
        return list(chosen)[:wanted]

    def _draw_rest(self, excluded: set[int], missing: int, random: np.random.Generator) -> list[int]:
        """The Gumbel-top-k trick (arXiv 1903.06059): the order of draws one after the other, from one sort."""
        keys = np.log(self._weights) + random.gumbel(size=len(self._types))
        keys[list(excluded)] = -np.inf
        return np.argsort(-keys, kind="stable")[:missing].tolist()
