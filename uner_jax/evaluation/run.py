"""A benchmark run: question files in, predictions and scores out, as the paper's protocol has them."""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uner_jax.command import progress
from uner_jax.evaluation.calibration import calibration, draw_reliability
from uner_jax.evaluation.scorers import correct_score, exact_span_score, published_score
from uner_jax.extraction.answers import parse_answer
from uner_jax.extraction.engine import Engine, Generation, Request
from uner_jax.extraction.spans import occurrences, scored_answer
from uner_jax.model.llama import Llama
from uner_jax.records import NO_PASSAGE, InputError, check_conversation, read_rows, write_json, write_rows
from uner_jax.template import answer_turn, encode_answer, encode_context, encode_question
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights import load_model, load_model_tokenizer


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of a file, with its context's turns and its gold answer."""

    id: str
    dataset: str
    passage_turn: str
    acknowledgement: str
    question: str
    gold: str


def read_questions(path: Path, passages: int | None = None) -> list[Question]:
    """The questions of a file of conversations, one or more a row, of its first `passages` passages if given."""
    questions = []
    seen: set[str] = set()
    for where, row in read_rows(path):
        values = [turn["value"] for turn in check_conversation(row, where)["conversations"]]
        if passages is not None and values[0] not in seen:
            if len(seen) >= passages:
                continue
            seen.add(values[0])
        questions += [
            Question(row["id"], path.stem, values[0], values[1], asked, gold)
            for asked, gold in zip(values[2::2], values[3::2], strict=True)
        ]
    if not questions:
        raise InputError(f"{path}: has no questions")
    return questions


def evaluate(
    model: str,
    data: Sequence[Path],
    output: Path,
    passages: int | None = None,
    dtype: str = "float32",
    batch_size: int = 32,
    max_new_tokens: int = 256,
    calibrate: bool = False,
) -> dict[str, Any]:
    """Answer every question greedily, write `predictions.jsonl` and `report.json`, and return the report.

    With `calibrate` also `calibration.json` and `reliability.png`. A file is a data set of its name. Raises
    InputError for two files of one name.
    """
    names = [path.stem for path in data]
    if len(set(names)) < len(names):
        raise InputError(
            f"{', '.join(map(str, data))}: a file is a data set of its name, and these are not all different"
        )
    questions = [question for path in data for question in read_questions(path, passages)]
    tokenizer = load_model_tokenizer(model)
    engine = _engine(load_model(model, dtype), tokenizer, batch_size, max_new_tokens)
    started = time.monotonic()
    generations = _generations(engine, tokenizer, questions)
    predictions = [tokenizer.decode(generation.tokens).strip() for generation in generations]
    seconds = time.monotonic() - started
    write_rows(
        output / "predictions.jsonl",
        (
            {"id": q.id, "dataset": q.dataset, "question": q.question, "gold": q.gold, "prediction": prediction}
            for q, prediction in zip(questions, predictions, strict=True)
        ),
    )
    settings = {"model": model, "dtype": dtype, "max_new_tokens": max_new_tokens, "passages": passages}
    report = settings | {"seconds": round(seconds, 1), "datasets": _scores(questions, predictions)}
    if calibrate:
        report["calibration"] = found = calibration(*_judged(generations, questions, tokenizer))
        write_json(output / "calibration.json", found)
        draw_reliability(found, output / "reliability.png")
    write_json(output / "report.json", report)
    return report


def _judged(
    generations: Sequence[Generation], questions: Sequence[Question], tokenizer: Tokenizer
) -> tuple[list[float], list[bool]]:
    """The score of each item that was answered, and whether it is one of the gold answer's."""
    scores, right = [], []
    for generation, question in zip(generations, questions, strict=True):
        answer, probabilities = scored_answer(generation, tokenizer)
        gold = {item.text for item in parse_answer(question.gold).items}
        scores += probabilities
        right += [item.text in gold for item in answer.items]
    return scores, right


def sampled_f1(
    path: Path, sample: int, max_new_tokens: int, batch_size: int = 32
) -> Callable[[Llama, Tokenizer], float]:
    """The published F1, in 0..1, of a model on questions of a file: `sample` of them, drawn once and uniformly."""
    questions = read_questions(path)
    drawn = np.random.default_rng(0).choice(len(questions), min(sample, len(questions)), replace=False)
    asked = [questions[place] for place in sorted(drawn)]

    def score(model: Llama, tokenizer: Tokenizer) -> float:
        answers = _answers(_engine(model, tokenizer, batch_size, max_new_tokens), tokenizer, asked)
        return published_score(answers, [question.gold for question in asked])["f1"]

    return score


def _engine(model: Llama, tokenizer: Tokenizer, batch_size: int, max_new_tokens: int) -> Engine:
    draft = encode_answer(answer_turn([]), tokenizer)
    return Engine(model, tokenizer.eos_id, batch_size, max_new_tokens, draft)


def _answers(engine: Engine, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[str]:
    return [tokenizer.decode(found.tokens).strip() for found in _generations(engine, tokenizer, questions)]


def _generations(engine: Engine, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[Generation]:
    contexts: dict[tuple[str, str], tuple[int, ...]] = {}
    requests = []
    for question in questions:
        key = (question.passage_turn, question.acknowledgement)
        if key not in contexts:
            contexts[key] = tuple(encode_context(key[0], tokenizer, key[1]))
        requests.append(Request(contexts[key], tuple(encode_question(question.question, tokenizer))))
    found = dict(progress(engine.generate(requests), "answering", len(requests), "questions"))
    return [found[place] for place in range(len(requests))]


def _scores(questions: Sequence[Question], predictions: Sequence[str]) -> dict[str, Any]:
    """The scores of each data set, by the published protocol, read without loss, and by exact spans."""
    datasets: dict[str, Any] = {}
    for name in dict.fromkeys(question.dataset for question in questions):
        places = [place for place, question in enumerate(questions) if question.dataset == name]
        asked = [questions[place] for place in places]
        answers = [predictions[place] for place in places]
        golds = [question.gold for question in asked]
        datasets[name] = {
            "questions": len(places),
            "passages": len({question.passage_turn for question in asked}),
            "published": published_score(answers, golds),
            "correct": correct_score(answers, golds),
            "exact_span": exact_span_score(
                [_spans(question, answer) for question, answer in zip(asked, answers, strict=True)],
                [_spans(question, question.gold) for question in asked],
            ),
            "empty_answers": sum(not parse_answer(answer).items for answer in answers) / len(answers),
        }
    return datasets


def _spans(question: Question, answer: str) -> set[tuple[int, int, str]]:
    """Every occurrence in the passage of every item of the answer."""
    opening = NO_PASSAGE.match(question.passage_turn)
    text = question.passage_turn[opening.end() if opening else 0 :]
    return {
        (start, end, question.question)
        for item in parse_answer(answer).items
        for start, end in occurrences(text, item.text)
    }


def print_report(report: dict[str, Any]) -> None:
    """A line a data set, and their average."""
    names = list(report["datasets"])
    width = max(map(len, [*names, "average"]))
    print(f"{'':{width}}  published F1  correct F1  exact-span F1  questions  empty", file=sys.stdout)
    for name in names:
        scores = report["datasets"][name]
        print(
            f"{name:{width}}  {_percent(scores['published']):>12}  {_percent(scores['correct']):>10}  "
            f"{_percent(scores['exact_span']):>13}  {scores['questions']:>9,}  {scores['empty_answers']:>5.0%}"
        )
    if len(names) > 1:
        average = sum(report["datasets"][name]["published"]["f1"] for name in names) / len(names)
        print(f"{'average':{width}}  {100 * average:>12.1f}")


def _percent(score: dict[str, float]) -> str:
    return f"{100 * score['f1']:.1f}"
