"""Entities of the types that you name, from any text: `Extractor`."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

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

    `ungrounded` counts answers that do not stand in the text, `cut` those that hit the token limit, `empty` the
    questions that were answered with nothing, `tokens` those that were read and written.
    """

    entities: list[Span]
    chunks: int
    ungrounded: int
    cut: int
    questions: int = 0
    empty: int = 0
    tokens: int = 0


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
        longest = model.config.max_position_embeddings
        room = longest - len(encode_context(passage_turn(""), tokenizer))
        self._window = min(WINDOW_TOKENS, room // 2)
        # the rest is for the answer, and for the few tokens that a passage has more in its turn than alone.
        self._longest_question = (room - self._window) // 2
        if len(encode_question(question_turn("person"), tokenizer)) > self._longest_question:
            raise InputError(f"the model reads {longest} tokens, which is too few for the prompt and a passage")

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
        texts = _listed(texts, "texts")
        per_text = _labels_per_text(texts, labels)
        asked = self._questions(label for wanted in per_text for label in wanted)
        spans = [self._windows(text) for text in texts]
        questions = [
            _Question(document, window, label)
            for document, wanted in enumerate(per_text)
            for window in range(len(spans[document]))
            for label in wanted
        ]
        found: list[list[Span]] = [[] for _ in texts]
        ungrounded, cut, empty, tokens = ([0] * len(texts) for _ in range(4))
        for question, start, passage, generation in self._answers(texts, spans, questions, asked):
            answer, scores = scored_answer(generation, self._tokenizer)
            grounded, missing = ground(passage, question.label, answer, scores)
            found[question.document] += [_moved(span, start) for span in grounded]
            ungrounded[question.document] += missing
            cut[question.document] += not generation.ended
            empty[question.document] += not answer.items
            tokens[question.document] += len(asked[question.label]) + len(generation.tokens) + generation.ended
        return [
            Extraction(
                merge(found[document]),
                len(spans[document]),
                ungrounded[document],
                cut[document],
                len(spans[document]) * len(per_text[document]),
                empty[document],
                tokens[document],
            )
            for document in range(len(texts))
        ]

    def stream(
        self, texts: Sequence[str], labels: Sequence[str] | Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Extraction]]:
        """Like `extract`: (place in `texts`, what was found), as each text is finished."""
        yield from enumerate(self.extract(texts, labels))

    def check(self, text: str, labels: Sequence[str]) -> None:
        """Raise InputError if the text or a label cannot be read (a lone surrogate, say), or a label is too long."""
        (wanted,) = _labels_per_text([text], [_listed(labels, "labels")])
        self._questions(wanted)
        self._windows(text)

    def _questions(self, labels: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """The ids of the question for each label."""
        asked = {
            label: tuple(encode_question(question_turn(label), self._tokenizer)) for label in dict.fromkeys(labels)
        }
        for label, ids in asked.items():
            if len(ids) > self._longest_question:
                raise InputError(
                    f"the label {label[:40]!r} makes a question of {len(ids)} tokens; more than "
                    f"{self._longest_question} leave no room for the passage and the answer"
                )
        return asked

    def _windows(self, text: str) -> list[tuple[int, int]]:
        if not isinstance(text, str):
            raise InputError(f"a text must be a string, found {type(text).__name__}")
        if not text.strip():
            return []
        return windows(text, self._tokenizer, self._window, min(OVERLAP_TOKENS, self._window // 4))

    def _answers(
        self,
        texts: Sequence[str],
        spans: Sequence[Sequence[tuple[int, int]]],
        questions: Sequence[_Question],
        asked: dict[str, tuple[int, ...]],
    ) -> Iterator[tuple]:
        encoded: dict[tuple[int, int], tuple[int, ...]] = {}
        requests = []
        for question in questions:
            key = (question.document, question.window)
            if key not in encoded:
                start, end = spans[question.document][question.window]
                turn = passage_turn(texts[question.document][start:end])
                encoded[key] = tuple(encode_context(turn, self._tokenizer))
            requests.append(Request(encoded[key], asked[question.label]))
        for place, generation in self._engine.generate(requests):
            question = questions[place]
            start, end = spans[question.document][question.window]
            yield question, start, texts[question.document][start:end], generation


def _labels_per_text(texts: Sequence[str], labels: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    """A list of distinct labels for each text."""
    listed = _listed(labels, "labels")
    if all(isinstance(label, str) for label in listed):
        per_text = [listed] * len(texts)
    else:
        per_text = [_listed(wanted, "the labels of a text") for wanted in listed]
    if len(per_text) != len(texts):
        raise InputError(f"{len(texts)} texts, but {len(per_text)} lists of labels")
    for wanted in per_text:
        for label in wanted:
            if not isinstance(label, str) or not label.strip():
                raise InputError(f"a label must be a non-empty string, found {label!r}")
    return [list(dict.fromkeys(wanted)) for wanted in per_text]


def _listed(value: Any, what: str) -> list:
    # a string is a list of its letters, which nobody means.
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(f"{what} must be a list of strings, found {value!r:.80}")
    return list(value)


def _moved(span: Span, by: int) -> Span:
    return Span(
        start=span["start"] + by, end=span["end"] + by, text=span["text"], label=span["label"], score=span["score"]
    )
