"""Two runs over the same questions, side by side: is one better, or was it the draw of the passages?"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from uner_jax.evaluation.bootstrap import difference
from uner_jax.evaluation.page import percent, spread, words
from uner_jax.evaluation.protocols import PROTOCOLS, score
from uner_jax.evaluation.questions import Question
from uner_jax.evaluation.report import by_dataset
from uner_jax.evaluation.rows import Row
from uner_jax.evaluation.run import PREDICTIONS, REPORT
from uner_jax.records import InputError, read_rows, write_json
from uner_jax.report.page import Page, escape, number, section, table

FOOTER = (
    "Made by <code>uner evaluate --compare</code>. The numbers are in <code>comparison.json</code> beside this page."
)


def compare(first: Path, second: Path, output: Path) -> dict[str, Any]:
    """Compare the runs whose outputs these are, write `comparison.json` and `index.html`, and return the numbers.

    Questions are told apart by data set, passage and words, in any order; what only one run asked is left out and
    counted. Raises InputError for what is no output of `evaluate`, if the runs have no question in common, and if
    `output` is one of them.
    """
    if output.resolve() in (first.resolve(), second.resolve()):
        raise InputError(f"--output {output} would write over the page of one of the runs; give another directory")
    (rows, others), left_out = _paired(_read(first), _read(second))
    if not rows:
        raise InputError(f"{first} and {second} have no question in common")
    datasets = by_dataset(rows), by_dataset(others)
    report = {
        "runs": [_run(first), _run(second)],
        "questions": len(rows),
        "left_out": left_out,
        "datasets": {name: _dataset(datasets[0][name], datasets[1][name]) for name in datasets[0]},
    }
    write_json(output / "comparison.json", report)
    _page(report).write(output / "index.html")
    return report


def _dataset(rows: list[Row], others: list[Row]) -> dict[str, Any]:
    found = {}
    for name in PROTOCOLS:
        first, second = score(name, rows), score(name, others)
        if first and second:
            found[name] = {"f1": [first["f1"], second["f1"]], **difference(rows, others, name)}
    return found


def _run(directory: Path) -> dict[str, Any]:
    report = json.loads((directory / REPORT).read_text(encoding="utf-8")) if (directory / REPORT).is_file() else {}
    return {"path": str(directory), "model": report.get("model"), "settings": report.get("settings")}


def _read(directory: Path) -> list[Row]:
    path = directory / PREDICTIONS
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the --output of uner evaluate")
    return [_row(where, row) for where, row in read_rows(path)]


def _row(where: str, row: Any) -> Row:
    try:
        spans = None if row["spans"] is None else tuple((start, end) for start, end in row["spans"])
        question = Question.read(row["id"], row["dataset"], row["passage"], row["question"], row["gold"], spans)
        return Row(question, row["prediction"], tuple(row["scores"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: not a prediction of uner evaluate ({error!r}); evaluate again") from error


def _paired(rows: list[Row], others: list[Row]) -> tuple[tuple[list[Row], list[Row]], int]:
    """The rows of both runs in one order, and how many have no partner."""
    keyed, partners = _keyed(rows), _keyed(others)
    common = [key for key in keyed if key in partners]
    left_out = len(keyed) + len(partners) - 2 * len(common)
    return ([keyed[key] for key in common], [partners[key] for key in common]), left_out


def _keyed(rows: list[Row]) -> dict[tuple, Row]:
    times: Counter[tuple] = Counter()
    keyed = {}
    for row in rows:
        key = row.question.dataset, row.question.text, row.question.question, row.question.gold
        keyed[*key, times[key]] = row
        times[key] += 1
    return keyed


def _page(report: dict[str, Any]) -> Page:
    models = [escape(str(run["model"] or run["path"])) for run in report["runs"]]
    rows = [
        [escape(f"{name}, {words(protocol)}"), *_cells(found)]
        for name, protocols in report["datasets"].items()
        for protocol, found in protocols.items()
    ]
    note = (
        "F1 in percent of A and B, what B has more in points, its 95 % interval, and p: twice the smaller share of "
        "samples on one side of zero. The bootstrap draws passages, the same for both; one passage alone has none (–)."
    )
    runs = table(
        ["", "model", "predictions"],
        [[letter, model, escape(run["path"])] for letter, model, run in zip("AB", models, report["runs"], strict=True)],
    )
    sections = [
        section("The runs", "Questions that only one of them was asked are left out.", runs),
        section("Differences", note, table(["", "A", "B", "B – A", "95 %", "p"], rows)),
    ]
    facts = [(number(report["questions"]), "questions in common"), (number(report["left_out"]), "left out")]
    return Page("Comparison of two evaluations", "A and B", facts, sections, FOOTER)


def _cells(found: dict[str, Any]) -> list[str]:
    p = "–" if found["p"] is None else f"{found['p']:.3f}"
    return [*map(percent, found["f1"]), f"{100 * found['difference']:+.1f}", spread(found["interval"], "+"), p]


def print_comparison(report: dict[str, Any]) -> None:
    """A line a data set and protocol."""
    names = [f"{name}, {words(protocol)}" for name, found in report["datasets"].items() for protocol in found]
    width = max(map(len, names))
    lines = [found for protocols in report["datasets"].values() for found in protocols.values()]
    print(f"{'':{width}}      A      B   B - A  {'95 %':>14}      p")
    for name, found in zip(names, lines, strict=True):
        first, second, more, between, p = _cells(found)
        print(f"{name:{width}}  {first:>5}  {second:>5}  {more:>6}  {between:>14}  {p:>5}")
    if report["left_out"]:
        print(f"{report['left_out']:,} questions that only one run was asked are left out", file=sys.stderr)
