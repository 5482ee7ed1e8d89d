"""Answers that are lists of substrings of the passage: checked, and held to it where they are not.

A greedy answer that satisfies a constraint is also what decoding under the constraint gives, so answers are decoded
freely and only those that fail are decoded again, under a grammar of llguidance.
"""

import json
import re

import llguidance
import llguidance.numpy
import numpy as np

from uner_jax.extraction.options import Grounding
from uner_jax.template import answer_turn
from uner_jax.tokenizer import Tokenizer

# Spans of words begin and end with words: what a tokenizer splits is not split here.
CHUNKS = re.compile(r"\w+|\s+|[^\w\s]")
# As a list is written by `json.dumps`; the prompt ends before the space. Were the space demanded, the library would
# force on a vocabulary without a token for " [" the token that it would begin a text with.
LIST = '%llguidance {}\nstart: " "? "[" (ITEM (", " ITEM)*)? "]"\nITEM: "\\"" TEXT "\\""\n'
# A substring that is not empty, and has no space at its ends.
SUBSTRING = "TEXT: PART & /\\S(.*\\S)?/\nPART: %regex "
ANY_TEXT = r"TEXT: /([^\"\\\x00-\x1f\x7f-\u{10ffff}]|\\([\"\\bfnrt]|u[0-9a-f]{4}))+/" + "\n"
# The library's own limits are for passages of a few hundred words.
LIMITS = llguidance.LLParserLimits(initial_lexer_fuel=10_000_000, step_lexer_fuel=2_000_000, max_lexer_states=1_000_000)


def satisfies(answer: str, passage: str, grounding: Grounding) -> bool:
    """Whether a whole answer is a JSON list of texts, as `template.answer_turn` writes it, and of substrings."""
    if grounding == "none":
        return True
    try:
        items = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
        return False
    if grounding == "substring" and not all(item == item.strip() and item in passage for item in items):
        return False
    return answer.strip() == answer_turn(items)


class Grammar:
    """Makes constraints for the answers of a model with that many ids."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int):
        self._tokenizer = llguidance.LLTokenizer(
            tokenizer.backend.to_str(), n_vocab=vocabulary, eos_token=tokenizer.eos_id
        )

    def constraint(self, passage: str, grounding: Grounding) -> "ListConstraint | None":
        """What may be written of an answer on the passage; None for one that is beyond the library's limits."""
        grammar = LIST + (ANY_TEXT if grounding == "json" else SUBSTRING + _chunks(passage) + "\n")
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, limits=LIMITS)
        return None if matcher.is_error() else ListConstraint(matcher, self._tokenizer.vocab_size)


class ListConstraint:
    """An `engine.Constraint`: a list of texts, as far as it is written."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int):
        self._matcher = matcher
        self._mask = llguidance.numpy.allocate_token_bitmask(1, vocabulary)

    def again(self) -> "ListConstraint":
        """The same for another question, of which nothing is written."""
        return ListConstraint(self._matcher.deep_copy(), self._mask.shape[1] * 32)

    def allowed(self) -> np.ndarray:
        """The bits of the ids that may come next."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask)
        return self._mask[0]

    def written(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token)


def _chunks(passage: str) -> str:
    # the answer is written in ASCII, and so is what it is compared with.
    escaped = [json.dumps(chunk)[1:-1] for chunk in CHUNKS.findall(passage)]
    return json.dumps({"substring_chunks": escaped})
