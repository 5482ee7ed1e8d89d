"""From an answer to spans of the document: where each item occurs, and how probable it was."""

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypedDict, TypeVar

from uner_jax.extraction.answers import Answer, Item, parse_answer
from uner_jax.extraction.engine import Generation
from uner_jax.extraction.options import Occurrences

# A `Span`, or a row of a file that has its fields.
Spanned = TypeVar("Spanned", bound=Any)


class Span(TypedDict):
    """An entity of a document; offsets count code points, `end` is exclusive, `score` lies in 0..1."""

    start: int
    end: int
    text: str
    label: str
    score: float


class Decoder(Protocol):
    """What is needed of a tokenizer here."""

    def decode(self, ids: Sequence[int]) -> str: ...  # noqa: D102


def occurrences(text: str, part: str) -> Iterator[tuple[int, int]]:
    """Where `part` stands in `text`, from left to right, not overlapping itself."""
    start = text.find(part) if part else -1
    while start >= 0:
        yield start, start + len(part)
        start = text.find(part, start + len(part))


def scored_answer(generation: Generation, tokenizer: Decoder) -> tuple[Answer, list[float]]:
    """The parsed answer, and for each item the probability of its tokens given all before them."""
    text = tokenizer.decode(generation.tokens)
    answer = parse_answer(text)
    if not answer.items:
        return answer, []
    prefixes = (tokenizer.decode(generation.tokens[:count]) for count in range(len(generation.tokens) + 1))
    done = [_written(prefix, text) for prefix in prefixes]
    return answer, [_probability(item, done, generation.log_probs) for item in answer.items]


def _written(prefix: str, text: str) -> int:
    """How many characters of the text its first tokens have written; one whose bytes are not all there is not."""
    return len(prefix if text.startswith(prefix) else prefix.rstrip("\ufffd"))


def _probability(item: Item, done: Sequence[int], log_probs: Sequence[float]) -> float:
    """The product over the tokens that write a character of the item, or a byte of one."""
    covering = [
        log_prob
        for start, end, log_prob in zip(done, done[1:], log_probs, strict=False)
        if start < item.end and max(end, start + 1) > item.start
    ]
    return math.exp(min(0.0, sum(covering)))


def ground(
    text: str, label: str, answer: Answer, scores: Sequence[float], policy: Occurrences = "all"
) -> tuple[list[Span], int]:
    """Every occurrence in `text` of every item, or its first, and the number of items that do not occur there."""
    spans: list[Span] = []
    missing = 0
    for item, score in zip(answer.items, scores, strict=True):
        found = list(itertools.islice(occurrences(text, item.text), None if policy == "all" else 1))
        missing += not found
        spans += [Span(start=start, end=end, text=item.text, label=label, score=score) for start, end in found]
    return spans, missing


def calibrated(probability: float, temperature: float) -> float:
    """The probability whose log-odds are those of the given one, divided by the temperature (arXiv 1706.04599)."""
    if temperature == 1.0 or probability in (0.0, 1.0):
        return probability
    odds = math.log(probability) - math.log1p(-probability)
    return (1 + math.tanh(odds / temperature / 2)) / 2


def flat(spans: Sequence[Spanned]) -> list[Spanned]:
    """Spans of which no two overlap, in the order of the text: the best score first, then the longest.

    Of spans that are equal in both the one that begins first is kept, then the first by its label.
    """
    order = sorted(spans, key=lambda span: (-span["score"], span["start"] - span["end"], span["start"], span["label"]))
    kept: list[Spanned] = []
    for span in order:
        place = bisect.bisect(kept, span["start"], key=lambda one: one["start"])
        before_fits = place == 0 or kept[place - 1]["end"] <= span["start"]
        if before_fits and (place == len(kept) or span["end"] <= kept[place]["start"]):
            kept.insert(place, span)
    return kept


def merge(spans: Sequence[Span]) -> list[Span]:
    """Each (start, end, label) once, with its best score, in the order of the text."""
    best: dict[tuple[int, int, str], Span] = {}
    for span in spans:
        key = (span["start"], span["end"], span["label"])
        if key not in best or span["score"] > best[key]["score"]:
            best[key] = span
    return [best[key] for key in sorted(best, key=lambda key: (key[0], -key[1], key[2]))]
