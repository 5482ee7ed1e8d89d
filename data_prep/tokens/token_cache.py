"""A tokenizer that remembers words: it gives the ids of long texts several times as fast.

Texts do not repeat, but their words do, and where no merge of the vocabulary reaches over the space
before a word, a text's ids are those of its words one after the other.
"""

import json
import re
from array import array
from collections.abc import Callable
from operator import itemgetter
from typing import Generic, TypeVar

import tokenizers
from tokenizers import models

from uner_jax.tokenizer import SPACE, Tokenizer

K = TypeVar("K")
V = TypeVar("V")

# entries of a few hundred bytes, twice as many at most: those that were asked for last stay.
WORDS = 200_000
# characters: what is longer is no word and does not come again.
LONGEST_WORD = 64

# C int: half the memory of a list, and copied and compared without a look at the numbers.
IDS = "i"
# a word is written without the one space that is in front of each, but with those before that.
WORD = re.compile(f"{SPACE}({SPACE}*[^{SPACE}]*)")
# the normalizer of LLaMA's tokenizer: a space in front, then every space is the letter "▁".
PLAIN_NORMALIZER = [
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
]
MODEL_OPTIONS = "dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"


class Memory(dict[K, V], Generic[K, V]):
    """A dict of what was set or found missing last: `limit` entries, and up to as many older ones behind them."""

    def __init__(self, limit: int):
        super().__init__()
        self._limit = limit
        self._older: dict[K, V] = {}

    def __missing__(self, key: K) -> V:
        value = self._older[key]
        self[key] = value
        return value

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self._older

    def __setitem__(self, key: K, value: V) -> None:
        if len(self) >= self._limit:
            self._older = dict(self)
            self.clear()
        super().__setitem__(key, value)


class _Words(Memory[str, bytes]):
    """Words and the bytes of their ids, made when they are first asked for."""

    def __init__(self, tokenizer: Tokenizer, limit: int):
        super().__init__(limit)
        self._tokenize: Callable = tokenizer.backend.model.tokenize

    def __missing__(self, word: str) -> bytes:
        ids = self._older.get(word)
        if ids is None:
            ids = array(IDS, [token.id for token in self._tokenize(SPACE + word)]).tobytes()
        if len(word) <= LONGEST_WORD:
            self[word] = ids
        return ids


class TokenCache:
    """The same ids as `tokenizer.encode_batch`, as arrays of C int, sooner and in bounded memory."""

    def __init__(self, tokenizer: Tokenizer, words: int = WORDS):
        self.bos_id, self.eos_id, self.adds_bos = tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos
        self._tokenizer = tokenizer
        self._words = _Words(tokenizer, words) if is_word_by_word(tokenizer) else None

    def encode_batch(self, texts: list[str]) -> list["array[int]"]:
        """The ids of every text. Raises InputError for a lone surrogate."""
        if self._words is None:
            return [array(IDS, ids) for ids in self._tokenizer.encode_batch(texts)]
        try:
            return self._encode_by_word(texts, self._words)
        except UnicodeEncodeError:
            # a lone surrogate, of which the tokenizer speaks in its own words
            return [array(IDS, ids) for ids in self._tokenizer.encode_batch(texts)]

    @staticmethod
    def _encode_by_word(texts: list[str], words: _Words) -> list["array[int]"]:
        encoded: dict[str, bytes] = {"": b""}
        before = ""
        # a prompt stands before the same prompt with its answer, which needs only the answer's words.
        for text in sorted(filter(None, texts)):
            goes_on = text.startswith(before) and text.startswith(" ", len(before)) and before[-1:] not in (" ", SPACE)
            head = before if goes_on else ""
            rest = split_words(text[len(head) + 1 :] if head else text)
            # itemgetter of one word gives no tuple
            ids = b"".join(itemgetter(*rest)(words)) if len(rest) > 1 else words[rest[0]]
            encoded[text] = encoded[head] + ids
            before = text
        return [array(IDS, encoded[text]) for text in texts]


def split_words(text: str) -> list[str]:
    """The words of a text that has one more space in front: each without that space, runs of spaces kept."""
    if text.startswith(" ") or "  " in text or SPACE in text:
        return WORD.findall(SPACE + text.replace(" ", SPACE))
    return text.split(" ")


def is_word_by_word(tokenizer: Tokenizer) -> bool:
    """Whether the ids of a text are those of its words, each with the spaces before it, in a row.

    So it is in LLaMA's own vocabulary and most others of SentencePiece: a BPE of plain merges behind
    the plain normalizer, in which no piece has a space behind another character, no added token is looked
    for in the text, and a space is known, so that no run of unknown characters reaches over it.
    """
    backend = tokenizer.backend
    model = backend.model
    return (
        isinstance(model, models.BPE)
        and not any(getattr(model, option) for option in MODEL_OPTIONS)
        and backend.pre_tokenizer is None
        and _normalizer_fields(backend) == PLAIN_NORMALIZER
        and all(token.special for token in backend.get_added_tokens_decoder().values())
        and SPACE in (vocabulary := backend.get_vocab(with_added_tokens=False))
        and not any(SPACE in piece.lstrip(SPACE) for piece in vocabulary)
    )


def _normalizer_fields(backend: tokenizers.Tokenizer) -> list[dict] | None:
    # of a tokenizer that has nothing else: the fields of the whole one take a tenth of a second to read.
    alone = tokenizers.Tokenizer(models.BPE())
    alone.normalizer = backend.normalizer
    return (json.loads(alone.to_str())["normalizer"] or {}).get("normalizers")
