"""Entities of the types that you name, from any text: `Extractor`."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

from uner_jax.extraction.engine import Engine, Request
from uner_jax.extraction.spans import Span, ground, merge, scored_answer
from uner_jax.extraction.windows import windows
from uner_jax.model.llama import Llama
from uner_jax.records import InputError
from uner_jax.template import encode_context, encode_question, passage_turn, question_turn
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights import load_model, load_model_tokenizer

# Training passages are as long: 256 tokens at most (UniversalNER's data).
WINDOW_TOKENS = 256
OVERLAP_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Extraction:
    """The entities of a document, the windows it took, and what the model wrote that is not there.

    `ungrounded` counts answers that do not stand in the text, `cut` those that hit the token limit.
    """

    entities: list[Span]
    chunks: int
    ungrounded: int
    cut: int


@dataclasses.dataclass(frozen=True)
class _Question:
    document: int
    window: int
    label: str


class Extractor:
    """Finds entities with a model that was trained on the UniversalNER prompt."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, batch_size: int = 32, max_new_tokens: int = 256):
        self._tokenizer = tokenizer
        self._engine = Engine(model, tokenizer.eos_id, batch_size, max_new_tokens)
        self._window = min(WINDOW_TOKENS, model.config.max_position_embeddings // 2)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike, dtype: str = "float32", batch_size: int = 32, max_new_tokens: int = 256
    ) -> "Extractor":
        """Load a Hugging Face directory, a checkpoint or run directory of ours, or a GGUF file.

        `dtype` float32 or bfloat16; `batch_size` questions are answered at a time, with at most
        `max_new_tokens` tokens each. Raises InputError if the path is no model.
        """
        return cls(load_model(path, dtype), load_model_tokenizer(path), batch_size, max_new_tokens)

    def predict_entities(self, text: str, labels: Sequence[str]) -> list[Span]:
        """The entities of one text, for each of the labels, in the order of the text.

        `text[start:end] == entity["text"]`, always; every occurrence of an entity is listed.
        """
        return self.inference([text], labels)[0]

    def inference(self, texts: Sequence[str], labels: Sequence[str] | Sequence[Sequence[str]]) -> list[list[Span]]:
        """The entities of each text; `labels` is one list for all texts, or one list a text."""
        return [extraction.entities for extraction in self.extract(texts, labels)]

    def extract(self, texts: Sequence[str], labels: Sequence[str] | Sequence[Sequence[str]]) -> list[Extraction]:
        """Like `inference`, with the counts of each text. Raises InputError for a text or label that is no text."""
        per_text = _labels_per_text(texts, labels)
        spans = [self._windows(text) for text in texts]
        questions = [
            _Question(document, window, label)
            for document, wanted in enumerate(per_text)
            for window in range(len(spans[document]))
            for label in wanted
        ]
        found: list[list[Span]] = [[] for _ in texts]
        ungrounded, cut = [0] * len(texts), [0] * len(texts)
        for question, start, passage, generation in self._answers(texts, spans, questions):
            answer, scores = scored_answer(generation, self._tokenizer)
            grounded, missing = ground(passage, question.label, answer, scores)
            found[question.document] += [_moved(span, start) for span in grounded]
            ungrounded[question.document] += missing
            cut[question.document] += not generation.ended
        return [
            Extraction(merge(found[document]), len(spans[document]), ungrounded[document], cut[document])
            for document in range(len(texts))
        ]

    def check(self, text: str, labels: Sequence[str]) -> None:
        """Raise InputError if the tokenizer does not take the text or a label (a lone surrogate, say)."""
        _labels_per_text([text], labels)
        self._tokenizer.encode_batch([text, *labels])

    def _windows(self, text: str) -> list[tuple[int, int]]:
        if not isinstance(text, str):
            raise InputError(f"a text must be a string, found {type(text).__name__}")
        if not text.strip():
            return []
        return windows(text, self._tokenizer, self._window, min(OVERLAP_TOKENS, self._window // 4))

    def _answers(
        self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]], questions: Sequence[_Question]
    ) -> Iterator[tuple]:
        encoded: dict[tuple[int, int], tuple[int, ...]] = {}
        requests = []
        for question in questions:
            key = (question.document, question.window)
            if key not in encoded:
                start, end = spans[question.document][question.window]
                turn = passage_turn(texts[question.document][start:end])
                encoded[key] = tuple(encode_context(turn, self._tokenizer))
            ids = encode_question(question_turn(question.label), self._tokenizer)
            requests.append(Request(encoded[key], tuple(ids)))
        for place, generation in self._engine.generate(requests):
            question = questions[place]
            start, end = spans[question.document][question.window]
            yield question, start, texts[question.document][start:end], generation


def _labels_per_text(texts: Sequence[str], labels: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    """A list of distinct labels for each text."""
    if isinstance(labels, str):
        raise InputError(f"labels must be a list, found the string {labels!r}")
    if all(isinstance(label, str) for label in labels):
        per_text: list[list[str]] = [list(labels)] * len(texts)  # type: ignore[arg-type]
    else:
        per_text = [list(wanted) for wanted in labels]
    if len(per_text) != len(texts):
        raise InputError(f"{len(texts)} texts, but {len(per_text)} lists of labels")
    for wanted in per_text:
        for label in wanted:
            if not isinstance(label, str) or not label.strip():
                raise InputError(f"a label must be a non-empty string, found {label!r}")
    return [list(dict.fromkeys(wanted)) for wanted in per_text]


def _moved(span: Span, by: int) -> Span:
    return Span(
        start=span["start"] + by, end=span["end"] + by, text=span["text"], label=span["label"], score=span["score"]
    )
