"""Passages that were there before, to the letter or nearly."""

import hashlib
import re
from typing import Literal

import numpy as np

SHINGLE_WORDS = 5
PERMUTATIONS = 128
# 16 bands of 8 find 95 % of the pairs at the bound, and nearly all above it; what they find too much is compared.
BANDS = (16, 8)
LEAST_SIMILARITY = 0.8
WORD = re.compile(r"\w+")


class Duplicates:
    """Remembers passages, and knows those of which it has an equal or a near duplicate.

    Near: the estimated Jaccard similarity of their sets of five words in sequence is at least 0.8 (MinHash,
    Broder 1997).
    """

    def __init__(self) -> None:
        # it brings scipy along, 170 MB that a worker process can do without.
        from datasketch import MinHash, MinHashLSH

        self._empty = MinHash(PERMUTATIONS, seed=1)
        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=BANDS)
        self._hashes: list[np.ndarray] = []
        self._digests: set[bytes] = set()

    def kind(self, text: str) -> Literal["exact", "near"] | None:
        """How a passage repeats one that was there before; one that does not is remembered."""
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest in self._digests:
            return "exact"
        sketch = self._empty.copy()
        sketch.update_batch(_shingles(text))
        near = any(
            self._similarity(sketch.hashvalues, place) >= LEAST_SIMILARITY for place in self._index.query(sketch)
        )
        if near:
            return "near"
        self._digests.add(digest)
        self._index.insert(len(self._hashes), sketch)
        self._hashes.append(sketch.hashvalues)
        return None

    def _similarity(self, hashes: np.ndarray, place: int) -> float:
        return float(np.mean(hashes == self._hashes[place]))


def _shingles(text: str) -> list[bytes]:
    words = WORD.findall(text.casefold())
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return [" ".join(words[place : place + SHINGLE_WORDS]).encode() for place in range(last)]
