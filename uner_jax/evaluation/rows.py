"""A question with what was answered, and its spans in the passage."""

import dataclasses
from functools import cached_property

from uner_jax.evaluation.questions import Question
from uner_jax.extraction.answers import Answer, parse_answer
from uner_jax.extraction.spans import occurrences


@dataclasses.dataclass(frozen=True)
class Row:
    """A question of a benchmark and its answer, as it came; `scores` has the probability of each of its items."""

    question: Question
    prediction: str
    scores: tuple[float, ...] = ()

    @cached_property
    def answer(self) -> Answer:
        """The answer, read without loss."""
        return parse_answer(self.prediction)

    @cached_property
    def gold(self) -> Answer:
        """The gold answer, read without loss."""
        return parse_answer(self.question.gold)

    @cached_property
    def predicted_spans(self) -> frozenset[tuple[int, int]]:
        """Every occurrence in the passage of every item of the answer."""
        return _occurrences(self.question.text, self.answer)

    @cached_property
    def gold_spans(self) -> frozenset[tuple[int, int]]:
        """Where the gold entities stand, or where the file does not say, every occurrence of them."""
        if self.question.spans is not None:
            return frozenset(self.question.spans)
        return _occurrences(self.question.text, self.gold)

    @property
    def invented(self) -> list[str]:
        """The items of the answer that do not stand in the passage, each once."""
        items = dict.fromkeys(item.text for item in self.answer.items)
        return [text for text in items if text not in self.question.text]


def _occurrences(text: str, answer: Answer) -> frozenset[tuple[int, int]]:
    return frozenset(span for item in answer.items for span in occurrences(text, item.text))
