"""A data set's report: `tables.json`, plots as PNG, and one page of them all that asks nothing of the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.questions import plots
from data_prep.questions.statistics import FileStatistics, Statistics, mention_share, quantiles, ranked
from uner_jax.records import atomic_path, write_json
from uner_jax.report.page import Page, escape, number, picture, section, table
from uner_jax.report.plots import draw_plot

TYPES_IN_TABLES, TYPES_ON_PAGE, SOURCES_ON_PAGE = 100, 25, 40
PAGE, TABLES = "index.html", "tables.json"
# arXiv 2308.03279, section 3.2: the share of the mentions in the teacher's data.
PAPER_SHARES = ("74%", "19%", "7%")
# the name of a number -> its words in the table, and whether it is a part of the row above
ROWS = {
    "passages": ("passages", False),
    "conversations": ("conversations", False),
    "questions": ("questions", False),
    "positive_questions": ("with entities", True),
    "negative_questions": ("without entities", True),
    "questions_per_conversation": ("questions a conversation", False),
    "entities": ("entities", False),
    "types": ("types with entities", False),
    "types_asked": ("types asked about", False),
    "entities_not_in_passage": ("entities left out: not in their passage", False),
    "passages_without_question": ("passages left out: nothing to ask", False),
}
FOOTER = (
    "Made by <code>python -m data_prep.conversations --report</code>. "
    "The numbers are in <code>tables.json</code>, the plots in the <code>.png</code> files beside this page."
)


@dataclass
class DataSet:
    """What a report is about: the file of conversations by its name, and the counts. Lengths are in `unit`."""

    name: str
    file: FileStatistics
    training: Statistics
    validation: Statistics
    unit: str

    def __post_init__(self):
        self.whole = self.training + self.validation


def write_report(directory: Path, data: DataSet) -> Path:
    """Write the report into `directory` and return its page. The same numbers make the same bytes."""
    tables = make_tables(data)
    write_json(directory / TABLES, tables)
    images = {}
    for name, (words, draw) in _plots(data.unit).items():
        plot = draw_plot(partial(draw, data.whole))
        with atomic_path(directory / f"{name}.png") as temporary:
            temporary.write_bytes(plot.light)
        images[name] = picture(plot, words)
    _page(data.name, tables, images).write(directory / PAGE)
    return directory / PAGE


def _plots(unit: str) -> dict[str, tuple[str, plots.Draw]]:
    """What each plot shows, in words, and what draws it, by the name of its file."""
    return {
        "type_frequency": ("Mentions of the types by rank", plots.draw_type_frequency),
        "lengths": (f"Histograms of lengths in {unit}", partial(plots.draw_lengths, unit=unit)),
        "questions": ("Histogram of questions a passage", plots.draw_questions),
        "negatives": ("Questions without entities by mentions of the type", plots.draw_negatives),
    }


def make_tables(data: DataSet) -> dict[str, Any]:
    """The numbers of the report. All but the first three are of training and validation together."""
    whole = data.whole
    return {
        "file": data.file.counts(),
        "training": data.training.counts(),
        "validation": data.validation.counts() if data.validation.passages else None,
        "whole": whole.counts(),
        "mention_share": mention_share(whole.mentions),
        "top_types": _top_types(whole),
        "sources": _sources(whole),
        "lengths": {
            "unit": data.unit,
            "passage": quantiles(whole.passage_lengths),
            "conversation": quantiles(whole.conversation_lengths),
        },
        "questions_a_passage": {
            "all": quantiles(whole.questions_a_passage),
            "with_entities": quantiles(whole.positives_a_passage),
        },
    }


def _top_types(statistics: Statistics) -> list[dict[str, Any]]:
    total = max(1, statistics.mentions.total())
    return [
        {
            "rank": rank,
            "type": name,
            "mentions": count,
            "share": round(count / total, 4),
            "positive_questions": statistics.positives[name],
            "negative_questions": statistics.negatives[name],
        }
        for rank, (name, count) in enumerate(ranked(statistics.mentions)[:TYPES_IN_TABLES], 1)
    ]


def _sources(statistics: Statistics) -> list[dict[str, Any]]:
    return [
        {"source": name, "passages": count, "entities": statistics.source_entities[name]}
        for name, count in ranked(statistics.source_passages)
    ]


def _page(title: str, tables: dict[str, Any], images: Mapping[str, str]) -> Page:
    sections = [
        _counts_section(tables),
        _share_section(tables["mention_share"]),
        section("Type frequency", "Mentions of each type by its rank, on logarithmic axes.", images["type_frequency"]),
        _types_section(tables["top_types"]),
        section(
            "Negatives and positives",
            "How often each type is asked of passages that do not have it, by its mentions in those that do. "
            "Drawn by frequency, the types lie along the line.",
            images["negatives"],
        ),
        _lengths_section(tables["lengths"], images["lengths"]),
        _questions_section(tables["questions_a_passage"], images["questions"]),
        _sources_section(tables["sources"]),
    ]
    whole = tables["whole"]
    facts = [(number(whole[name]), name) for name in ("conversations", "questions", "entities", "types")]
    return Page("Data set for open named-entity recognition", title, facts, sections, FOOTER)


def _counts_section(tables: dict[str, Any]) -> str:
    columns = {"as it came": tables["file"], "training": tables["training"], "validation": tables["validation"]}
    columns = {name: column for name, column in columns.items() if column is not None}
    rows = []
    for name, (words, is_part) in ROWS.items():
        first = f'<span class="part">{words}</span>' if is_part else words
        rows.append([first, *(number(column.get(name)) for column in columns.values())])
    note = "The file that was read, and the conversations that were made of it."
    return section("Counts", note, table(["", *columns], rows))


def _share_section(shares: Sequence[Mapping[str, Any]]) -> str:
    bar = "".join(f'<span style="flex:{row["share"]:.4f}"></span>' for row in shares)
    rows = [
        [
            f'<span class="swatch"></span>{escape(row["rank"])}',
            number(row["types"]),
            number(row["mentions"]),
            f"{row['share']:.1%}",
            paper,
        ]
        for row, paper in zip(shares, PAPER_SHARES, strict=True)
    ]
    numbers = table(["by frequency", "types", "mentions", "share", "in UniversalNER's data"], rows)
    note = "How much of all mentions the frequent types have."
    return section("Mentions by type rank", note, f'<div class="shares" aria-hidden="true">{bar}</div>{numbers}')


def _types_section(types: Sequence[Mapping[str, Any]]) -> str:
    most = max((row["mentions"] for row in types), default=1)
    rows = [
        f'<tr><td class="rank">{row["rank"]}</td><th scope="row">{escape(row["type"])}</th>'
        f'<td class="bar"><i style="width:{100 * row["mentions"] / most:.1f}%"></i></td>'
        + "".join(f"<td>{number(row[name])}</td>" for name in ("mentions", "positive_questions", "negative_questions"))
        + f"<td>{row['share']:.1%}</td></tr>\n"
        for row in types[:TYPES_ON_PAGE]
    ]
    head = (
        '<th></th><th class="name" scope="col">type</th><th class="bar"></th><th scope="col">mentions</th>'
        '<th scope="col">asked with</th><th scope="col">asked without</th><th scope="col">share</th>'
    )
    body = f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody></table></div>'
    note = "Mentions, and the passages that are asked about the type with entities in the answer and without."
    return section("Most frequent types", note, body)


def _lengths_section(lengths: Mapping[str, Any], image: str) -> str:
    unit = lengths["unit"]
    words = "of the tokenizer that was given" if unit == "tokens" else "between spaces"
    numbers = _quantile_table({"passage": lengths["passage"], "conversation": lengths["conversation"]})
    return section("Lengths", f"In {unit} {words}.", image + numbers)


def _questions_section(questions: Mapping[str, Any], image: str) -> str:
    numbers = _quantile_table({"all questions": questions["all"], "with entities": questions["with_entities"]})
    return section("Questions a passage", "How many questions the passages have.", image + numbers)


def _quantile_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    names = ["mean", "min", "median", "p90", "p99", "max"]
    return table(["", *names], [[name, *(number(row[column]) for column in names)] for name, row in rows.items()])


def _sources_section(sources: Sequence[Mapping[str, Any]]) -> str:
    if not sources:
        return ""
    shown = sources[:SOURCES_ON_PAGE]
    rows = [[escape(row["source"]), number(row["passages"]), number(row["entities"])] for row in shown]
    more = "" if len(shown) == len(sources) else f" The {len(shown)} largest of {len(sources):,}."
    return section("Sources", f"Where the passages are from.{more}", table(["source", "passages", "entities"], rows))
