"""What is found in a document, from the answers on each of its windows."""

import dataclasses
import math
from collections import Counter

from uner_jax.extraction.engine import Generation
from uner_jax.extraction.options import Options
from uner_jax.extraction.spans import Span, calibrated, flat, ground, merge, scored_answer
from uner_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Extraction:
    """The entities of a document, the windows it took, and what the model wrote that is not there.

    `ungrounded` counts items that do not stand in the text, `cut` answers that hit the token limit (their whole
    items are kept), `held` answers that were written again under the constraint. Of the `questions`, `empty` were
    answered with `[]`; `tokens` were read and written. `none` has the probability, by label, that there is no
    such entity.
    """

    entities: list[Span]
    chunks: int
    ungrounded: int = 0
    cut: int = 0
    held: int = 0
    questions: int = 0
    empty: int = 0
    tokens: int = 0
    none: dict[str, float] = dataclasses.field(default_factory=dict)


class Tally:
    """The answers on a document of that many windows, as they come."""

    def __init__(self, chunks: int, options: Options, tokenizer: Tokenizer):
        self._chunks = chunks
        self._options = options
        self._tokenizer = tokenizer
        self._waiting = 0
        self._spans: list[Span] = []
        self._none: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    @property
    def done(self) -> bool:
        """Whether every question has its answer."""
        return self._waiting == 0

    def expect(self, questions: int, tokens: int) -> None:
        """That many questions more, which take that many tokens to read."""
        self._waiting += questions
        self._counts.update(questions=questions, tokens=tokens)

    def add(self, passage: str, start: int, label: str, generation: Generation, held: bool) -> None:
        """An answer on the passage that starts at that place of the document."""
        options = self._options
        answer, probabilities = scored_answer(generation, self._tokenizer)
        scores = [calibrated(probability, options.temperature) for probability in probabilities]
        spans, missing = ground(passage, label, answer, scores, options.occurrences)
        self._spans += [_moved(span, start) for span in spans]
        none = calibrated(math.exp(min(generation.draft_log_prob, 0.0)), options.temperature)
        self._none[label] = self._none.get(label, 1.0) * none
        self._waiting -= 1
        self._counts.update(
            ungrounded=missing,
            cut=not generation.ended,
            held=held,
            empty=generation.ended and not answer.items,
            tokens=len(generation.tokens),
        )

    def extraction(self) -> Extraction:
        """What was found: each span once, by the options."""
        spans = merge([span for span in self._spans if span["score"] >= self._options.threshold])
        entities = flat(spans) if self._options.flat else spans
        return Extraction(entities, self._chunks, none=self._none, **self._counts)


def _moved(span: Span, by: int) -> Span:
    return Span(
        start=span["start"] + by, end=span["end"] + by, text=span["text"], label=span["label"], score=span["score"]
    )
