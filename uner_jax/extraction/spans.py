"""From an answer to spans of the document: where each item occurs, and how probable it was."""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol, TypedDict

from uner_jax.extraction.answers import Answer, Item, parse_answer
from uner_jax.extraction.engine import Generation


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


def ground(text: str, label: str, answer: Answer, scores: Sequence[float]) -> tuple[list[Span], int]:
    """Every occurrence in `text` of every item, and the number of items that do not occur there."""
    spans: list[Span] = []
    missing = 0
    for item, score in zip(answer.items, scores, strict=True):
        found = list(occurrences(text, item.text))
        missing += not found
        spans += [Span(start=start, end=end, text=item.text, label=label, score=score) for start, end in found]
    return spans, missing


def merge(spans: Sequence[Span]) -> list[Span]:
    """Each (start, end, label) once, with its best score, in the order of the text."""
    best: dict[tuple[int, int, str], Span] = {}
    for span in spans:
        key = (span["start"], span["end"], span["label"])
        if key not in best or span["score"] > best[key]["score"]:
            best[key] = span
    return [best[key] for key in sorted(best, key=lambda key: (key[0], -key[1], key[2]))]
