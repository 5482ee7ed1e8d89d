"""The random order of all passages of a corpus, known for each without seeing any other.

Passage i of a document has a random priority that is a function of the seed, the document and i. A sample of n is
the n of least priority: a uniform one, whatever the order in which documents are met.
"""

import hashlib
import json

import numpy as np

from data_prep.corpus.documents import Document

PRIORITIES = 1 << 63
# No Unicode normal form makes more of a byte of UTF-8 (UAX 15, maximum expansion factors: NFKC of U+FDFA).
MOST_EXPANSION = 11


def most_passages(data: bytes, max_tokens: int) -> int:
    """A bound of the number of passages that a document of these bytes (UTF-8) is cut into.

    Tokenizers make at most one token of an ASCII character, and of another as many as it has bytes,
    normalised; one more for a prefix. So what is too long has at least `max_tokens` bytes in this count, and of two
    passages that follow each other, either the first was ended since the next sentence made it too long,
    or one of them is a stretch that is too long by itself: two and two they have that many bytes.
    """
    others = 0 if data.isascii() else int(np.count_nonzero(np.frombuffer(data, np.uint8) > 0x7F))
    return 2 * ((len(data) + (MOST_EXPANSION - 1) * others) // max_tokens) + 1


def priorities(document: Document, seed: int, count: int) -> np.ndarray:
    """The priorities of a document's first `count` passages, uint64 below PRIORITIES."""
    digest = hashlib.blake2b(f"{seed}\n{json.dumps(document.source)}\n".encode(), digest_size=16)
    digest.update(document.data)
    # a counter-based generator has its n-th number ready and costs microseconds to make; its stream is fixed.
    numbers = np.random.Philox(key=int.from_bytes(digest.digest(), "little")).random_raw(count)
    return numbers >> np.uint64(1)
