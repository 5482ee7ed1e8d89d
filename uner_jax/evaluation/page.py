"""The page of a benchmark run: its scores beside those of papers, its types and its errors."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from uner_jax.evaluation.errors import KINDS
from uner_jax.evaluation.protocols import PROTOCOLS
from uner_jax.evaluation.report import mean_f1
from uner_jax.report.page import Page, escape, number, picture, section, table
from uner_jax.report.plots import Colours, draw_plot

Report = Mapping[str, Any]

TYPES_ON_PAGE = 40
FIRST = next(iter(PROTOCOLS))
PAPER_IN_PLOT = "UniNER-7B"
FOOTER = (
    "Made by <code>uner evaluate</code>. The numbers are in <code>report.json</code>, the answers in "
    "<code>predictions.jsonl</code> beside this page."
)


def write_page(report: Report, path: Path) -> None:
    """Write the page of a run's report."""
    datasets = report["datasets"]
    sections = [
        _scores_section(datasets),
        _plot_section(datasets),
        _papers_section(datasets),
        _emptiness_section(datasets),
        _errors_section(datasets),
        *(part for name, scores in datasets.items() for part in _dataset_sections(name, scores)),
        _settings_section(report),
    ]
    facts = [
        (percent(mean_f1(datasets, "published")), "published F1, %"),
        (percent(mean_f1(datasets, "exact_span")), "exact-span F1, %"),
        (number(sum(scores["questions"] for scores in datasets.values())), "questions"),
        (number(report["seconds"]), "seconds"),
    ]
    Page("Evaluation of open named-entity recognition", report["model"], facts, sections, FOOTER).write(path)


def _scores_section(datasets: Report) -> str:
    rows = []
    for name, scores in datasets.items():
        for protocol in PROTOCOLS:
            if scores[protocol]:
                rows.append([_first_cell(name, protocol), *_score_cells(scores, protocol)])
    explained = "".join(f"<p><b>{escape(words(name))}</b>: {escape(one.words)}.</p>" for name, one in PROTOCOLS.items())
    note = (
        "In percent, with the 95 % interval of F1 from a bootstrap over the passages; one passage alone has none (–)."
    )
    return section(
        "Scores by protocol",
        note,
        table(["", "precision", "recall", "F1", "95 % of F1", "questions", "passages"], rows),
        f'<div class="notes">{explained}</div>',
    )


def _first_cell(name: str, protocol: str) -> str:
    if protocol == FIRST:
        return escape(f"{name}, {words(protocol)}")
    return f'<span class="part">{words(protocol)}</span>'


def _score_cells(scores: Report, protocol: str) -> list[str]:
    found = scores[protocol]
    values = [percent(found[name]) for name in ("precision", "recall", "f1")]
    sizes = [number(scores[name]) if protocol == FIRST else "" for name in ("questions", "passages")]
    return [*values, spread(scores["intervals"][protocol]), *sizes]


def _plot_section(datasets: Report) -> str:
    plot = draw_plot(partial(_draw_scores, datasets))
    note = f"Published-protocol F1 with its interval; the mark is what the paper gives for {PAPER_IN_PLOT}."
    return section("F1 by data set", note, picture(plot, "F1 of each data set with its 95 % interval"))


def _draw_scores(datasets: Report, axes: Axes, colours: Colours) -> None:
    for place, scores in enumerate(datasets.values()):
        if scores["published"]:
            f1 = scores["published"]["f1"]
            axes.barh(place, 100 * f1, height=0.55, color=colours.first, label=None if place else "this run")
        if scores["intervals"]["published"]:
            ends = [100 * end for end in scores["intervals"]["published"]]
            axes.plot(ends, [place, place], color=colours.text, linewidth=1.2)
        paper = scores["paper"].get(PAPER_IN_PLOT)
        if paper:
            axes.plot(100 * paper["f1"], place, marker="D", color=colours.second, linestyle="", markersize=6)
    if any(scores["paper"] for scores in datasets.values()):
        axes.plot([], [], marker="D", color=colours.second, linestyle="", label=f"{PAPER_IN_PLOT}, as published")
    axes.set(xlim=(0, 100), xlabel="F1, %", ylim=(len(datasets) - 0.4, -1.4))
    axes.set_yticks(range(len(datasets)), list(datasets), parse_math=False)


def _papers_section(datasets: Report) -> str:
    known = {name: scores for name, scores in datasets.items() if scores["paper"]}
    if not known:
        return ""
    models = dict.fromkeys(model for scores in known.values() for model in scores["paper"])
    rows = [["this run", *(percent(scores["published"] and scores["published"]["f1"]) for scores in known.values())]]
    for model in models:
        cells = [scores["paper"].get(model) for scores in known.values()]
        source = next(cell["source"] for cell in cells if cell)
        label = f'{escape(model)} <span class="part">published, {escape(source)}</span>'
        rows.append([label, *(percent(cell and cell["f1"]) for cell in cells)])
    note = (
        "F1 in percent on the whole test sets, as papers give it: not measured here, and comparable only where this "
        "run asked all questions of the same file."
    )
    return section("Beside published numbers", note, table(["", *known], rows))


def _emptiness_section(datasets: Report) -> str:
    names = ["with_entities", "with_entities_answered", "without_entities", "without_entities_answered"]
    rows = []
    for name, scores in datasets.items():
        found = scores["emptiness"]
        rows.append([escape(name), *(number(found[one]) for one in names), percent(found["hallucination_rate"])])
    columns = ["", "questions with entities", "answered with some", "without entities", "answered with some", "rate, %"]
    note = "How often a question that has no gold entity was answered with one: hallucination on negatives."
    return section("Empty answers", note, table(columns, rows))


def _errors_section(datasets: Report) -> str:
    rows = [
        [
            escape(name),
            *(number(scores["errors"]["kinds"][kind]) for kind in KINDS),
            number(scores["lost_by_published_parser"]),
        ]
        for name, scores in datasets.items()
    ]
    columns = ["", *map(words, KINDS), "lost by the published parser"]
    explained = "".join(f"<p><b>{words(kind)}</b>: {escape(meaning)}.</p>" for kind, meaning in KINDS.items())
    plot = draw_plot(partial(_draw_errors, datasets))
    return section(
        "Kinds of errors",
        "Spans, and for answers that are no whole list, answers.",
        picture(plot, "Errors of each kind, by data set"),
        table(columns, rows),
        f'<div class="notes">{explained}</div>',
    )


def _draw_errors(datasets: Report, axes: Axes, colours: Colours) -> None:
    shades = (colours.first, colours.second, colours.third, colours.quiet, colours.text)
    lefts = [0] * len(datasets)
    for kind, colour in zip(KINDS, shades, strict=True):
        counts = [scores["errors"]["kinds"][kind] for scores in datasets.values()]
        axes.barh(range(len(datasets)), counts, left=lefts, height=0.55, color=colour, label=words(kind))
        lefts = [left + count for left, count in zip(lefts, counts, strict=True)]
    axes.set(xlabel="errors", ylim=(len(datasets) - 0.4, -1.4))
    axes.set_yticks(range(len(datasets)), list(datasets), parse_math=False)


def _dataset_sections(name: str, scores: Report) -> list[str]:
    parts = [
        section(f"{name}: types", "Sorted by gold entities; bars are published F1.", _types_table(scores["types"]))
    ]
    confused = scores["errors"]["confused_types"]
    if confused:
        rows = [[escape(one["gold"]), escape(one["answered"]), number(one["count"])] for one in confused]
        note = "How often an answer overlaps gold entities of another type only."
        parts.append(section(f"{name}: types taken for others", note, table(["gold", "answered as", "times"], rows)))
    examples = [one for found in scores["errors"]["examples"].values() for one in found]
    if examples:
        columns = ["kind", "asked for", "answered, or missed", "gold there", "passage"]
        note = "The first of each kind, passages cut for the page."
        parts.append(
            section(f"{name}: examples", note, f'<div class="words">{table(columns, map(_example, examples))}</div>')
        )
    return parts


def _example(error: Report) -> list[str]:
    gold = "; ".join(f"{one['text']} ({one['type']})" for one in error["gold"])
    return [words(error["kind"]), *map(escape, (error["type"], error["text"][:80], gold[:120], error["passage"]))]


def _types_table(types: Sequence[Report]) -> str:
    rows = []
    for line in types[:TYPES_ON_PAGE]:
        f1 = line["published"]["f1"] if line["published"] else 0.0
        bar = f'<span class="fill"><i style="width:{100 * f1:.1f}%"></i></span>'
        exact = line["exact_span"] and line["exact_span"]["f1"]
        counts = [number(line[name]) for name in ("questions", "entities", "answered")]
        rows.append([escape(line["type"]), bar, *counts, percent(f1), percent(exact)])
    return table(["type", "", "questions", "gold spans", "answered spans", "published F1", "exact-span F1"], rows)


def _settings_section(report: Report) -> str:
    settings = {
        **report["settings"],
        "questions a second": report["questions_per_second"],
        "too long": report["too_long"],
    }
    rows = [[escape(words(name)), escape("–" if value is None else str(value))] for name, value in settings.items()]
    return section("Settings", "How the questions were asked and answered.", table(["", ""], rows))


def words(name: str) -> str:
    """The name of a field as a reader has it."""
    return name.replace("_", " ")


def percent(value: float | None) -> str:
    """A part of one in percent; – for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def spread(interval: Sequence[float] | None, sign: str = "") -> str:
    """An interval of parts of one in percent, its ends with the sign that is told; – for None."""
    return "–" if interval is None else " to ".join(f"{100 * end:{sign}.1f}" for end in interval)
