"""Entities of the types that you name, from any text: `Extractor`."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from uner_jax.extraction.answers import parse_answer
from uner_jax.extraction.document import Extraction, Tally
from uner_jax.extraction.engine import Engine, Generation, Request
from uner_jax.extraction.grounding import Grammar, ListConstraint, satisfies
from uner_jax.extraction.options import DEFAULTS, Options
from uner_jax.extraction.spans import Span
from uner_jax.extraction.windows import windows
from uner_jax.mesh import make_mesh
from uner_jax.model.adapters import freeze
from uner_jax.model.llama import Llama
from uner_jax.records import InputError
from uner_jax.template import (
    answer_turn,
    encode_answer,
    encode_context,
    encode_question,
    passage_turn,
)
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights import load_model, load_model_tokenizer
from uner_jax.weights.origin import read_origin

# Training passages are as long: 256 tokens at most (UniversalNER's data).
WINDOW_TOKENS = 256
OVERLAP_TOKENS = 64
# As many answers that fail are written again together.
HELD_TOGETHER = 64


@dataclasses.dataclass(frozen=True)
class _Window:
    """A passage of a document, with the ids of its context."""

    document: int
    start: int
    passage: str
    context: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Question:
    window: _Window
    label: str
    ids: tuple[int, ...]

    @property
    def request(self) -> Request:
        return Request(self.window.context, self.ids)


# A question, its answer, and whether that was written under a constraint.
Answered = tuple[_Question, Generation, bool]

# Entity types, or descriptions of them by their labels.
Labels = Sequence[str] | Mapping[str, str]


class Extractor:
    """Finds entities with a model that was trained on the UniversalNER prompt."""

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        batch_size: int = 32,
        max_new_tokens: int = 256,
        options: Options = DEFAULTS,
        mesh: Mesh | None = None,
    ):
        self._tokenizer = tokenizer
        self._options = options
        self._empty = tuple(encode_answer(answer_turn([]), tokenizer))
        self._engine = Engine(
            model, tokenizer.eos_id, batch_size, max_new_tokens, self._empty, mesh=mesh, copied=options.draft
        )
        self._vocabulary = model.config.vocab_size
        longest = model.config.longest_row
        room = longest - len(self._context(""))
        self._window = min(WINDOW_TOKENS, room // 2)
        # the rest is for the answer, and for the few tokens that a passage has more in its turn than alone.
        self._longest_question = (room - self._window) // 2
        if len(self._question("person")) > self._longest_question:
            raise InputError(f"the model reads {longest} tokens, which is too few for the prompt and a passage")

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        dtype: str = "float32",
        batch_size: int = 32,
        max_new_tokens: int = 256,
        options: Options = DEFAULTS,
        tensor: int = 1,
    ) -> "Extractor":
        """Load a Hugging Face directory, a checkpoint or run directory of ours, or a GGUF file.

        `dtype` float32, bfloat16 or int8 (weights only, computed in bfloat16); `batch_size` answers are written at a
        time, with at most `max_new_tokens` tokens each. On a machine with several devices each `tensor` of them
        hold a model. Raises InputError if the path is no model.
        """
        mesh = _mesh_of(jax.local_devices(), tensor)
        options = dataclasses.replace(options, noun=options.noun or read_origin(Path(path)).noun)
        model = load_model(path, "bfloat16" if dtype == "int8" else dtype, mesh)
        if dtype == "int8":
            model = freeze(model, "int8")
        return cls(model, load_model_tokenizer(path), batch_size, max_new_tokens, options, mesh)

    def predict_entities(self, text: str, labels: Labels) -> list[Span]:
        """The entities of one text, for each of the labels, in the order of the text.

        `labels` are entity types, or a dictionary of descriptions by type. `text[start:end] == entity["text"]`,
        always; every occurrence of an entity is listed.
        """
        return self.inference([text], labels)[0]

    def inference(self, texts: Sequence[str], labels: Labels | Sequence[Labels]) -> list[list[Span]]:
        """The entities of each text; `labels` is one list (or dictionary) for all texts, or one a text."""
        return [extraction.entities for extraction in self.extract(texts, labels)]

    def extract(self, texts: Sequence[str], labels: Labels | Sequence[Labels]) -> list[Extraction]:
        """Like `inference`, with the counts of each text. Raises InputError for a text or label that is no text."""
        found = dict(self.stream(texts, labels))
        return [found[document] for document in sorted(found)]

    def stream(self, texts: Sequence[str], labels: Labels | Sequence[Labels]) -> Iterator[tuple[int, Extraction]]:
        """Yield (place in `texts`, what is found there) as the texts are done, in any order."""
        texts = _listed(texts, "texts")
        per_text = _labels_per_text(texts, labels)
        asked = self._questions(description for wanted in per_text for description in wanted.values())
        windows_of = [self._windows(document, text) for document, text in enumerate(texts)]
        questions = [
            _Question(window, label, asked[description])
            for found, wanted in zip(windows_of, per_text, strict=True)
            for window in found
            for label, description in wanted.items()
        ]
        tallies = [Tally(len(found), self._options, self._tokenizer) for found in windows_of]
        for window, group in itertools.groupby(questions, lambda question: question.window):
            sizes = [len(question.ids) for question in group]
            tallies[window.document].expect(len(sizes), len(window.context) + sum(sizes))
        yield from ((document, tally.extraction()) for document, tally in enumerate(tallies) if tally.done)
        for question, generation, held in self._answers(questions):
            window = question.window
            tally = tallies[window.document]
            tally.add(window.passage, window.start, question.label, generation, held)
            if tally.done:
                yield window.document, tally.extraction()

    def _answers(self, questions: Sequence[_Question]) -> Iterator[Answered]:
        """Each question with its answer, and whether that was held to the constraint."""
        failed: list[tuple[_Question, Generation]] = []
        for place, generation in self._engine.generate([question.request for question in questions]):
            if self._is_sound(questions[place], generation):
                yield questions[place], generation, False
                continue
            failed.append((questions[place], generation))
            if len(failed) == HELD_TOGETHER:
                yield from self._held(failed)
                failed = []
        yield from self._held(failed)

    def _held(self, failed: Sequence[tuple[_Question, Generation]]) -> Iterator[Answered]:
        """The answers again, within their constraints; one for which there is no constraint stays as it is."""
        constraints: dict[str, ListConstraint | None] = {}
        again, within = [], []
        for question, generation in failed:
            passage = question.window.passage
            if passage not in constraints:
                constraints[passage] = self._grammar.constraint(passage, self._options.grounding)
            constraint = constraints[passage]
            if constraint is None:
                yield question, generation, False
            else:
                again.append(question)
                within.append(constraint.again())
        for place, generation in self._engine.generate_within([question.request for question in again], within):
            yield again[place], generation, True

    def _is_sound(self, question: _Question, generation: Generation) -> bool:
        """Whether an answer satisfies the grounding; of one that was cut, what there is of it."""
        grounding = self._options.grounding
        if grounding == "none" or generation.tokens == self._empty:
            return True
        text = self._tokenizer.decode(generation.tokens)
        if not generation.ended:
            whole = answer_turn(item.text for item in parse_answer(text).items)
            if not text.strip().startswith(whole.removesuffix("]")):
                return False
            text = whole
        return satisfies(text, question.window.passage, grounding)

    @functools.cached_property
    def _grammar(self) -> Grammar:
        return Grammar(self._tokenizer, self._vocabulary)

    def _context(self, passage: str) -> tuple[int, ...]:
        turn = passage_turn(passage, self._options.dataset)
        return tuple(encode_context(turn, self._tokenizer, noun=self._options.noun or "text"))

    def _question(self, description: str) -> tuple[int, ...]:
        return tuple(encode_question(self._options.question.replace("{type}", description), self._tokenizer))

    def check(self, text: str, labels: Labels) -> None:
        """Raise InputError if the text or a label cannot be read (a lone surrogate, say), or a label is too long."""
        self._questions(_described(labels).values())
        self._windows(0, text)

    def _questions(self, descriptions: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """The ids of the question for each type or description."""
        asked = {description: self._question(description) for description in dict.fromkeys(descriptions)}
        for description, ids in asked.items():
            if len(ids) > self._longest_question:
                raise InputError(
                    f"the label {description[:40]!r} makes a question of {len(ids)} tokens; more than "
                    f"{self._longest_question} leave no room for the passage and the answer"
                )
        return asked

    def _windows(self, document: int, text: str) -> list[_Window]:
        if not isinstance(text, str):
            raise InputError(f"a text must be a string, found {type(text).__name__}")
        if not text.strip():
            return []
        overlap = min(OVERLAP_TOKENS, self._window // 4)
        spans = windows(text, self._tokenizer, self._window, overlap)
        return [_Window(document, start, text[start:end], self._context(text[start:end])) for start, end in spans]


def _mesh_of(devices: Sequence[jax.Device], tensor: int) -> Mesh | None:
    return make_mesh(data=-1, fsdp=1, tensor=tensor, devices=devices) if len(devices) > 1 or tensor > 1 else None


def _labels_per_text(texts: Sequence[str], labels: Labels | Sequence[Labels]) -> list[dict[str, str]]:
    """The description of each label, which may be itself, for each text."""
    if isinstance(labels, Mapping):
        per_text: list[Any] = [labels] * len(texts)
    else:
        listed = _listed(labels, "labels")
        per_text = [listed] * len(texts) if all(isinstance(label, str) for label in listed) else listed
    if len(per_text) != len(texts):
        raise InputError(f"{len(texts)} texts, but {len(per_text)} lists of labels")
    return [_described(wanted) for wanted in per_text]


def _described(labels: Any) -> dict[str, str]:
    if not isinstance(labels, Mapping):
        listed = _listed(labels, "the labels of a text")
        labels = {label: label for label in listed if isinstance(label, str)} if listed else {}
        if len(labels) < len(set(map(repr, listed))):
            found = next(label for label in listed if not isinstance(label, str))
            raise InputError(f"a label must be a non-empty string, found {found!r}")
    for text in (*labels, *labels.values()):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"a label must be a non-empty string, found {text!r}")
    return dict(labels)


def _listed(value: Any, what: str) -> list:
    # a string is a list of its letters, which nobody means.
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(f"{what} must be a list of strings, found {value!r:.80}")
    return list(value)
