"""Counts of a data set: of the file that it is made from, and of the conversations that are made."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep.questions.labelled_passages import LabelledPassage

# Shares of the types, the most frequent first, that the paper's table has a row for.
HEAD, MIDDLE = 0.01, 0.10


@dataclass
class FileStatistics:
    """What stands in a file, as it came."""

    records: int = 0
    passages: int = 0
    positive_questions: int = 0
    negative_questions: int = 0
    types: set[str] = field(default_factory=set)
    types_asked: set[str] = field(default_factory=set)
    entities: int = 0
    not_in_passage: int = 0

    def add(self, passage: LabelledPassage) -> None:
        """Count one record."""
        self.records += 1
        self.positive_questions += len(passage.positives)
        self.negative_questions += len(passage.absent)
        self.types.update(passage.positives)
        self.types_asked.update(passage.spans, passage.absent)
        self.entities += sum(map(len, passage.spans.values()))
        self.not_in_passage += passage.not_in_passage

    def counts(self) -> dict[str, int]:
        """The numbers of the table, by their names in JSON."""
        return {
            "records": self.records,
            "passages": self.passages,
            "questions": self.positive_questions + self.negative_questions,
            "positive_questions": self.positive_questions,
            "negative_questions": self.negative_questions,
            "entities": self.entities,
            "types": len(self.types),
            "types_asked": len(self.types_asked),
            "entities_not_in_passage": self.not_in_passage,
        }

    def __str__(self) -> str:
        return (
            f"{self.records:,} records of {self.passages:,} passages; {len(self.types_asked):,} types in "
            f"{self.positive_questions:,} questions with entities and {self.negative_questions:,} without; "
            f"{self.entities:,} entities"
        )


@dataclass
class Statistics:
    """What was made, and what was left out.

    `mentions`, `positives` and `negatives` count spans, questions with and questions without entities by
    type. `questions_a_passage`, `positives_a_passage` and the lengths are histograms: how many conversations
    have that many.
    """

    passages: int = 0
    conversations: int = 0
    not_in_passage: int = 0
    without_question: int = 0
    mentions: Counter[str] = field(default_factory=Counter)
    positives: Counter[str] = field(default_factory=Counter)
    negatives: Counter[str] = field(default_factory=Counter)
    questions_a_passage: Counter[int] = field(default_factory=Counter)
    positives_a_passage: Counter[int] = field(default_factory=Counter)
    passage_lengths: Counter[int] = field(default_factory=Counter)
    conversation_lengths: Counter[int] = field(default_factory=Counter)
    source_passages: Counter[str] = field(default_factory=Counter)
    source_entities: Counter[str] = field(default_factory=Counter)

    def add_passage(self, passage: LabelledPassage, has_question: bool) -> None:
        """Count a passage that was read; without a question it becomes no conversation."""
        self.passages += 1
        self.not_in_passage += passage.not_in_passage
        self.without_question += not has_question

    def add_conversation(self, passage: LabelledPassage, negatives: Sequence[str]) -> None:
        """Count a conversation that asks for what a passage has and for `negatives`."""
        positives = passage.positives
        self.conversations += 1
        self.mentions.update({name: len(spans) for name, spans in positives.items()})
        self.positives.update(positives.keys())
        self.negatives.update(negatives)
        self.questions_a_passage[len(positives) + len(negatives)] += 1
        self.positives_a_passage[len(positives)] += 1
        if passage.source is not None:
            self.source_passages[passage.source] += 1
            self.source_entities[passage.source] += sum(map(len, positives.values()))

    def add_lengths(self, passage: int, conversation: int) -> None:
        """Count the lengths of a passage and of its conversation."""
        self.passage_lengths[passage] += 1
        self.conversation_lengths[conversation] += 1

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def counts(self) -> dict[str, Any]:
        """The numbers of the table, by their names in JSON."""
        asked = self.positives.total() + self.negatives.total()
        return {
            "passages": self.passages,
            "conversations": self.conversations,
            "questions": asked,
            "positive_questions": self.positives.total(),
            "negative_questions": self.negatives.total(),
            "questions_per_conversation": round(asked / max(1, self.conversations), 2),
            "entities": self.mentions.total(),
            "types": len(self.mentions),
            "types_asked": len(self.positives.keys() | self.negatives.keys()),
            "entities_not_in_passage": self.not_in_passage,
            "passages_without_question": self.without_question,
        }

    def __str__(self) -> str:
        counts = self.counts()
        return (
            f"{self.conversations:,} conversations from {self.passages:,} passages; "
            f"{counts['questions']:,} questions ({counts['positive_questions']:,} with entities, "
            f"{counts['negative_questions']:,} without; {counts['questions_per_conversation']:.1f} a passage); "
            f"{counts['entities']:,} entities of {counts['types']:,} types; left out: "
            f"{self.not_in_passage:,} entities that are not in their passage, "
            f"{self.without_question:,} passages without a question"
        )


def ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """The names and their counts, the greatest first, equal ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def mention_share(mentions: Counter[str]) -> list[dict[str, Any]]:
    """The paper's table: how much of all mentions the top 1 %, the next 9 % and the last 90 % of the types have.

    The borders are rounded to whole types, at least one.
    """
    ordered = [count for _, count in ranked(mentions)]
    borders = [0, *(min(len(ordered), max(1, round(share * len(ordered)))) for share in (HEAD, MIDDLE)), len(ordered)]
    rows = []
    for name, start, end in zip(("top 1 %", "next 9 %", "last 90 %"), borders, borders[1:], strict=False):
        part = sum(ordered[start:end])
        share = part / max(1, mentions.total())
        rows.append({"rank": name, "types": end - start, "mentions": part, "share": round(share, 4)})
    return rows


def quantiles(histogram: Counter[int]) -> dict[str, float]:
    """Mean, least, greatest and some quantiles of what a histogram counts; of nothing all are 0.

    A quantile is the least value that has at least that share of all at or below it.
    """
    total = histogram.total()
    names = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    mean = sum(value * count for value, count in histogram.items()) / max(1, total)
    return {"mean": round(mean, 2)} | {name: _quantile(histogram, share * total) for name, share in names.items()}


def _quantile(histogram: Counter[int], below: float) -> int:
    seen = 0
    for value in sorted(histogram):
        seen += histogram[value]
        if seen >= below:
            return value
    return 0
