"""A benchmark run: question files in; predictions, scores by every protocol and a page of them out."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uner_jax.evaluation.answering import answer_all, make_engine, written_answers
from uner_jax.evaluation.calibration import calibration, draw_reliability
from uner_jax.evaluation.page import spread, write_page
from uner_jax.evaluation.protocols import PROTOCOLS
from uner_jax.evaluation.questions import read_benchmark, read_questions
from uner_jax.evaluation.report import by_dataset, dataset_report, mean_f1
from uner_jax.evaluation.rows import Row
from uner_jax.evaluation.scorers import published_score
from uner_jax.evaluation.settings import Answering, Asking, DataSet
from uner_jax.model.llama import Llama
from uner_jax.records import write_json, write_rows
from uner_jax.template import Noun
from uner_jax.tokenizer import Tokenizer

PREDICTIONS, REPORT, PAGE = "predictions.jsonl", "report.json", "index.html"


def evaluate(
    model: str,
    data: Sequence[DataSet],
    output: Path,
    asking: Asking = Asking(),  # noqa: B008 (it is frozen)
    answering: Answering = Answering(),  # noqa: B008 (it is frozen)
    calibrate: bool = False,
    resume: bool = True,
) -> dict[str, Any]:
    """Answer every question greedily, write predictions, report and page, and return the report.

    With `calibrate` also `calibration.json` and `reliability.png`. Raises InputError for two data sets of one name,
    for a file that cannot be read, if `output` has the answers of another run, and, after all else is written, if not
    some of the answered items are right and some wrong, which calibration needs.
    """
    questions = read_benchmark(data, asking)
    answered = answer_all(model, questions, answering, output, resume)
    write_rows(output / PREDICTIONS, map(_prediction, answered.rows))
    settings = dataclasses.asdict(asking) | dataclasses.asdict(answering)
    report = {
        "model": model,
        "settings": settings | {"types": str(asking.types) if asking.types else None},
        "protocols": {name: protocol.words for name, protocol in PROTOCOLS.items()},
        "seconds": answered.seconds,
        "questions_per_second": round(len(questions) / max(answered.seconds, 0.01), 2),
        "too_long": answered.too_long,
        "datasets": {name: dataset_report(name, rows) for name, rows in by_dataset(answered.rows).items()},
    }
    write_json(output / REPORT, report)
    write_page(report, output / PAGE)
    if calibrate:
        # last: scores may have nothing to go by, and the report stands then.
        report["calibration"] = found = calibration(*_judged(answered.rows))
        write_json(output / "calibration.json", found)
        draw_reliability(found, output / "reliability.png")
    return report


def _prediction(row: Row) -> dict[str, Any]:
    asked = row.question
    fields = {"id": asked.id, "dataset": asked.dataset, "passage": asked.passage_turn, "question": asked.question}
    return fields | {"gold": asked.gold, "spans": asked.spans, "prediction": row.prediction, "scores": row.scores}


def _judged(rows: Sequence[Row]) -> tuple[list[float], list[bool]]:
    """The score of each item that was answered, and whether it is one of the gold answer's."""
    scores: list[float] = []
    right: list[bool] = []
    for row in rows:
        gold = {item.text for item in row.gold.items}
        scores += row.scores
        right += [item.text in gold for item in row.answer.items]
    return scores, right


def sampled_f1(
    path: Path, sample: int, max_new_tokens: int, noun: Noun = "text"
) -> Callable[[Llama, Tokenizer], float]:
    """The published F1, in 0..1, of a model on questions of a file: `sample` of them, drawn once and uniformly.

    `noun` is what the prompts of training call the passage.
    """
    questions = read_questions(DataSet(path.stem, path))
    drawn = np.random.default_rng(0).choice(len(questions), min(sample, len(questions)), replace=False)
    asked = [questions[place] for place in sorted(drawn)]
    answering = Answering(max_new_tokens=max_new_tokens)

    def score(model: Llama, tokenizer: Tokenizer) -> float:
        engine = make_engine(model, tokenizer, answering)
        answers = written_answers(engine, tokenizer, asked, noun)
        return published_score(answers, [question.gold for question in asked])["f1"]

    return score


def print_report(report: dict[str, Any]) -> None:
    """A line a data set with its scores in percent, and their average."""
    datasets = report["datasets"]
    names = [name for name in PROTOCOLS if any(scores[name] for scores in datasets.values())]
    width = max(map(len, [*datasets, "average"]))
    print("  ".join([" " * width, *names, "95 % of published", "questions", "empty"]))
    for name, scores in datasets.items():
        cells = [_cell(scores[protocol] and scores[protocol]["f1"], protocol) for protocol in names]
        cells.append(spread(scores["intervals"]["published"]).rjust(len("95 % of published")))
        print("  ".join([f"{name:{width}}", *cells, f"{scores['questions']:9,}", f"{scores['empty_answers']:5.0%}"]))
    if len(datasets) > 1:
        print(
            "  ".join([f"{'average':{width}}", *(_cell(mean_f1(datasets, protocol), protocol) for protocol in names)])
        )


def _cell(f1: float | None, protocol: str) -> str:
    return ("–" if f1 is None else f"{100 * f1:.1f}").rjust(len(protocol))
