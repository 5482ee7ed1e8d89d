"""What a form cannot express: counted by kind, so that nothing goes without a word."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Loss(StrEnum):
    """A kind of loss or change; the value is how it is reported."""

    FAILED = "documents with an error, left out"
    WORDLESS = "documents without a word, left out"
    UNSURE = "entities under the minimum score, left out"
    UNLABELLED = "entities with a blank label, left out"
    BLANK = "entities of nothing but white space, left out"
    PARTIAL = "entities that begin or end inside a word, left out"
    OVERLAP = "entities that overlap one of a better score, left out"
    NOT_ENTS = "entities in doc.spans that overlap a better one, left out of doc.ents"
    TRIMMED = "entities written without the white space at their ends"
    FRAGMENTED = "entities written in pieces, one a line"
    SPLIT = "words cut where an entity begins or ends"
    RENAMED = "labels written in other letters"
    SURROGATE = "lone surrogates written as U+FFFD"
    CARRIAGE = "carriage returns written as a space or a line feed"


LEFT_OUT = Loss.UNSURE, Loss.UNLABELLED, Loss.BLANK, Loss.PARTIAL, Loss.OVERLAP

Losses = Counter[Loss]


@dataclass
class Tally:
    """What was read, without the documents that have an error, and what of it could not be written."""

    documents: int = 0
    entities: int = 0
    losses: Losses = field(default_factory=Counter)

    @property
    def written(self) -> int:
        """The number of documents that were written."""
        return self.documents - self.losses[Loss.WORDLESS]

    @property
    def expressed(self) -> int:
        """The number of entities that were written."""
        return self.entities - sum(self.losses[kind] for kind in LEFT_OUT)

    def lines(self) -> list[str]:
        """A line for each kind of loss that there was."""
        return [f"{kind}: {self.losses[kind]:,}" for kind in Loss if self.losses[kind]]
