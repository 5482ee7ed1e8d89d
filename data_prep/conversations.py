"""Labelled passages -> conversations: a question for each type of a passage, and for types that it has not.

python -m data_prep.conversations --labels labels.jsonl --output conversations.jsonl
"""

import math
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from uner_jax.command import progress, run_command
from uner_jax.records import Conversation, InputError, Label, check_label, read_rows, write_rows
from uner_jax.template import ACKNOWLEDGEMENT, answer_turn, passage_turn, question_turn

Negatives = Literal["frequency", "uniform", "none"]


@dataclass
class Statistics:
    """What was made, and what was left out."""

    passages: int = 0
    conversations: int = 0
    positive_questions: int = 0
    negative_questions: int = 0
    types: set[str] = field(default_factory=set)
    entities: int = 0
    not_in_passage: int = 0
    without_question: int = 0

    def __str__(self) -> str:
        asked = self.positive_questions + self.negative_questions
        return (
            f"{self.conversations:,} conversations from {self.passages:,} passages; "
            f"{asked:,} questions ({self.positive_questions:,} with entities, {self.negative_questions:,} without; "
            f"{asked / max(1, self.conversations):.1f} a passage); "
            f"{self.entities:,} entities of {len(self.types):,} types; left out: "
            f"{self.not_in_passage:,} entities that are not in their passage, "
            f"{self.without_question:,} passages without a question"
        )


def normalize_type(name: str) -> str:
    """A type's name in lower case with single spaces."""
    return " ".join(name.lower().split())


def types_of(label: Label) -> set[str]:
    """The normalised types that the teacher found, those too of which no span stands in the passage."""
    return {normalize_type(entity["type"]) for entity in label["entities"]}


def spans_by_type(label: Label) -> dict[str, list[str]]:
    """The spans that stand in the passage, by normalised type, each once, in the teacher's order."""
    spans: dict[str, list[str]] = {}
    for entity in label["entities"]:
        known = spans.setdefault(normalize_type(entity["type"]), [])
        if entity["text"] in label["text"] and entity["text"] not in known:
            known.append(entity["text"])
    return {name: found for name, found in spans.items() if found}


class NegativeSampler:
    """Draws types that a passage does not have (arXiv 2308.03279, section 4.1, "negative sampling").

    The draw depends on the seed and on the passage's id, not on what else is in the file's order.
    """

    def __init__(self, counts: Counter[str], strategy: Negatives, per_passage: int, seed: int):
        self._types = sorted(counts)
        weights = [float(counts[name]) if strategy == "frequency" else 1.0 for name in self._types]
        self._log_weights = np.log(np.array(weights)) if weights else np.zeros(0)
        self._places = {name: place for place, name in enumerate(self._types)}
        self._per_passage = 0 if strategy == "none" else per_passage
        self._seed = seed

    def generator(self, passage_id: str) -> np.random.Generator:
        """The random numbers of one passage."""
        return np.random.default_rng([self._seed, zlib.crc32(passage_id.encode("utf-8", "surrogatepass"))])

    def draw(self, present: set[str], random: np.random.Generator) -> list[str]:
        """Types outside `present`, without replacement, with probability proportional to their weights."""
        # the Gumbel-top-k trick (arXiv 1903.06059): one sort instead of a draw at a time.
        keys = self._log_weights + random.gumbel(size=len(self._types))
        known = present & self._places.keys()
        for name in known:
            keys[self._places[name]] = -math.inf
        count = min(self._per_passage, len(self._types) - len(known))
        return [self._types[place] for place in np.argsort(-keys, kind="stable")[:count]]


def make_conversations(labels: list[Label], sampler: NegativeSampler, statistics: Statistics) -> Iterator[Conversation]:
    """A conversation for each passage that has a question; the questions are in random order."""
    for label in labels:
        random = sampler.generator(label["id"])
        spans = spans_by_type(label)
        statistics.passages += 1
        statistics.not_in_passage += sum(entity["text"] not in label["text"] for entity in label["entities"])
        questions = [*spans.items(), *((name, []) for name in sampler.draw(types_of(label), random))]
        if not questions:
            statistics.without_question += 1
            continue
        statistics.conversations += 1
        statistics.positive_questions += len(spans)
        statistics.negative_questions += len(questions) - len(spans)
        statistics.types.update(spans)
        statistics.entities += sum(map(len, spans.values()))
        yield _conversation(label, [questions[place] for place in random.permutation(len(questions))])


def _conversation(label: Label, questions: list[tuple[str, list[str]]]) -> Conversation:
    values = [passage_turn(label["text"]), ACKNOWLEDGEMENT]
    for name, spans in questions:
        values += [question_turn(name), answer_turn(spans)]
    turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return {"id": label["id"], "conversations": turns}  # type: ignore[typeddict-item]


def conversations(
    labels: Path,
    output: Path,
    negatives: Negatives = "frequency",
    negatives_per_passage: Annotated[int, tyro.conf.arg(metavar="N")] = 5,
    seed: int = 0,
) -> None:
    """Turn labelled passages into conversations, with questions about types that a passage does not have.

    Args:
        labels: Label records (JSON, JSON lines or Parquet): id, text, entities of text and type.
        output: Conversations in the published form, by the suffix .jsonl or .parquet (.gz, .zst).
        negatives: How types that are not in the passage are drawn: by their frequency in the data, uniformly, or none.
        negatives_per_passage: Questions without an answer that each passage gets.
        seed: Seed of the draw and of the order of the questions.
    """
    if negatives_per_passage < 0:
        raise InputError(f"--negatives-per-passage must be at least 0, found {negatives_per_passage}")
    if seed < 0:
        raise InputError(f"--seed must be at least 0, found {seed}")
    rows = [check_label(row, where) for where, row in progress(read_rows(labels), f"reading {labels}", unit="passages")]
    if not rows:
        raise InputError(f"{labels}: has no records")
    counts: Counter[str] = Counter()
    for row in rows:
        for name, spans in spans_by_type(row).items():
            counts[name] += len(spans)
    statistics = Statistics()
    sampler = NegativeSampler(counts, negatives, negatives_per_passage, seed)
    write_rows(output, make_conversations(rows, sampler, statistics))
    print(f"{output}: {statistics}", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(conversations, prog="python -m data_prep.conversations", args=arguments)


if __name__ == "__main__":
    run_command(main)
