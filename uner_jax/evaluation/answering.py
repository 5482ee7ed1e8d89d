"""Asking a model all questions of a benchmark; what has been answered is kept, so that a killed run goes on."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from uner_jax.command import progress
from uner_jax.evaluation.answer_log import open_log
from uner_jax.evaluation.questions import Question
from uner_jax.evaluation.rows import Row
from uner_jax.evaluation.settings import Answering
from uner_jax.extraction.corpus.job import model_digest
from uner_jax.extraction.engine import Engine, Generation, Request
from uner_jax.extraction.spans import scored_answer
from uner_jax.model.llama import Llama
from uner_jax.template import Noun, answer_turn, encode_answer, encode_context, encode_question
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights import load_model, load_model_tokenizer
from uner_jax.weights.origin import read_origin

LOG = "answers.jsonl"


@dataclasses.dataclass(frozen=True)
class Answered:
    """The rows of all questions in their order, how long answering took, and how many did not fit into the model."""

    rows: list[Row]
    seconds: float
    too_long: int


def answer_all(
    model: str, questions: Sequence[Question], answering: Answering, output: Path, resume: bool = True
) -> Answered:
    """Answer every question greedily, those that `output` has answers of already from there.

    A question that leaves no room for an answer is not answered, and counted. Raises InputError if `output` has the
    answers of another run, or another process writes
    there.
    """
    answering = dataclasses.replace(answering, noun=answering.noun or read_origin(Path(model)).noun)
    with open_log(output / LOG, _identity(model, questions, answering)) as log:
        known = log.read() if resume else log.clear()
        left = [place for place in range(len(questions)) if place not in known]
        if left:
            tokenizer = load_model_tokenizer(model)
            engine = make_engine(load_model(model, answering.dtype), tokenizer, answering)
            found = _answer(engine, tokenizer, [questions[place] for place in left], answering.noun or "text")
            for number, entry in progress(found, "answering", len(left), "questions"):
                known[left[number]] = log.add(left[number], entry)
    rows = [
        Row(question, known[place]["prediction"], tuple(known[place]["scores"]))
        for place, question in enumerate(questions)
    ]
    seconds = max((entry["seconds"] for entry in known.values()), default=0.0)
    return Answered(rows, seconds, sum(entry["too_long"] for entry in known.values()))


def make_engine(model: Llama, tokenizer: Tokenizer, answering: Answering) -> Engine:
    """The engine that answers; its draft is the empty list."""
    draft = encode_answer(answer_turn([]), tokenizer)
    return Engine(model, tokenizer.eos_id, answering.batch_size, answering.max_new_tokens, draft)


def written_answers(engine: Engine, tokenizer: Tokenizer, questions: Sequence[Question], noun: Noun) -> list[str]:
    """The answers in the order of the questions; "" to a question without room for one."""
    found = {place: entry["prediction"] for place, entry in _answer(engine, tokenizer, questions, noun)}
    return [found[place] for place in range(len(questions))]


def _generations(
    engine: Engine, tokenizer: Tokenizer, questions: Sequence[Question], noun: Noun
) -> Iterator[tuple[int, Generation | None]]:
    """The place of each question with its answer, as the answers come; None for a question without room for one."""
    contexts: dict[tuple[str, str], tuple[int, ...]] = {}
    requests, places = [], []
    for place, question in enumerate(questions):
        key = (question.passage_turn, question.acknowledgement)
        if key not in contexts:
            contexts[key] = tuple(encode_context(key[0], tokenizer, key[1], noun))
        request = Request(contexts[key], tuple(encode_question(question.question, tokenizer)))
        if engine.fits(request):
            requests.append(request)
            places.append(place)
        else:
            yield place, None
    yield from ((places[number], generation) for number, generation in engine.generate(requests))


def _answer(
    engine: Engine, tokenizer: Tokenizer, questions: Sequence[Question], noun: Noun
) -> Iterator[tuple[int, dict[str, Any]]]:
    for place, generation in _generations(engine, tokenizer, questions, noun):
        if generation is None:
            yield place, {"prediction": "", "scores": [], "too_long": True}
        else:
            prediction = tokenizer.decode(generation.tokens).strip()
            yield (
                place,
                {"prediction": prediction, "scores": scored_answer(generation, tokenizer)[1], "too_long": False},
            )


def _identity(model: str, questions: Sequence[Question], answering: Answering) -> dict[str, Any]:
    asked = [(question.passage_turn, question.acknowledgement, question.question) for question in questions]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    settings = dataclasses.asdict(answering)
    # it decides how fast the answers come, and nothing else.
    del settings["batch_size"]
    return {"model": model_digest(Path(model)), "questions": digest, **settings}
