"""A data set's report: `tables.json`, plots as PNG, and one page of them all that asks nothing of the network."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from data_prep.questions import plots
from data_prep.questions.statistics import FileStatistics, Statistics, mention_share, quantiles, ranked
from uner_jax.records import atomic_path, write_json

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
# HTML cannot hold NUL or a lone surrogate.
NOT_IN_HTML = dict.fromkeys([0, *range(0xD800, 0xE000)], "\ufffd")


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
        light, dark = (plots.draw_png(draw, data.whole, colours) for colours in (plots.LIGHT, plots.DARK))
        with atomic_path(directory / f"{name}.png") as temporary:
            temporary.write_bytes(light)
        images[name] = _picture(light, dark, words)
    with atomic_path(directory / PAGE) as temporary:
        temporary.write_bytes(_page(data.name, tables, images).encode())
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


def _page(title: str, tables: dict[str, Any], images: Mapping[str, str]) -> str:
    sections = [
        _counts_section(tables),
        _share_section(tables["mention_share"]),
        _section("Type frequency", "Mentions of each type by its rank, on logarithmic axes.", images["type_frequency"]),
        _types_section(tables["top_types"]),
        _section(
            "Negatives and positives",
            "How often each type is asked of passages that do not have it, by its mentions in those that do. "
            "Drawn by frequency, the types lie along the line.",
            images["negatives"],
        ),
        _lengths_section(tables["lengths"], images["lengths"]),
        _questions_section(tables["questions_a_passage"], images["questions"]),
        _sources_section(tables["sources"]),
    ]
    return Template(_part("report.html")).substitute(
        title=escape(title), style=_part("report.css"), facts=_facts(tables["whole"]), sections="".join(sections)
    )


def _facts(counts: Mapping[str, int]) -> str:
    names = ("conversations", "questions", "entities", "types")
    return "".join(f"<li><b>{counts[name]:,}</b> {name}</li>\n" for name in names)


def _counts_section(tables: dict[str, Any]) -> str:
    columns = {"as it came": tables["file"], "training": tables["training"], "validation": tables["validation"]}
    columns = {name: column for name, column in columns.items() if column is not None}
    rows = []
    for name, (words, is_part) in ROWS.items():
        first = f'<span class="part">{words}</span>' if is_part else words
        rows.append([first, *(_number(column.get(name)) for column in columns.values())])
    note = "The file that was read, and the conversations that were made of it."
    return _section("Counts", note, _table(["", *columns], rows))


def _share_section(shares: Sequence[Mapping[str, Any]]) -> str:
    bar = "".join(f'<span style="flex:{row["share"]:.4f}"></span>' for row in shares)
    rows = [
        [
            f'<span class="swatch"></span>{escape(row["rank"])}',
            _number(row["types"]),
            _number(row["mentions"]),
            f"{row['share']:.1%}",
            paper,
        ]
        for row, paper in zip(shares, PAPER_SHARES, strict=True)
    ]
    table = _table(["by frequency", "types", "mentions", "share", "in UniversalNER's data"], rows)
    note = "How much of all mentions the frequent types have."
    return _section("Mentions by type rank", note, f'<div class="shares" aria-hidden="true">{bar}</div>{table}')


def _types_section(types: Sequence[Mapping[str, Any]]) -> str:
    most = max((row["mentions"] for row in types), default=1)
    rows = [
        f'<tr><td class="rank">{row["rank"]}</td><th scope="row">{escape(row["type"])}</th>'
        f'<td class="bar"><i style="width:{100 * row["mentions"] / most:.1f}%"></i></td>'
        + "".join(f"<td>{_number(row[name])}</td>" for name in ("mentions", "positive_questions", "negative_questions"))
        + f"<td>{row['share']:.1%}</td></tr>\n"
        for row in types[:TYPES_ON_PAGE]
    ]
    head = (
        '<th></th><th class="name" scope="col">type</th><th class="bar"></th><th scope="col">mentions</th>'
        '<th scope="col">asked with</th><th scope="col">asked without</th><th scope="col">share</th>'
    )
    body = f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody></table></div>'
    note = "Mentions, and the passages that are asked about the type with entities in the answer and without."
    return _section("Most frequent types", note, body)


def _lengths_section(lengths: Mapping[str, Any], image: str) -> str:
    unit = lengths["unit"]
    words = "of the tokenizer that was given" if unit == "tokens" else "between spaces"
    table = _quantile_table({"passage": lengths["passage"], "conversation": lengths["conversation"]})
    return _section("Lengths", f"In {unit} {words}.", image + table)


def _questions_section(questions: Mapping[str, Any], image: str) -> str:
    table = _quantile_table({"all questions": questions["all"], "with entities": questions["with_entities"]})
    return _section("Questions a passage", "How many questions the passages have.", image + table)


def _quantile_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    names = ["mean", "min", "median", "p90", "p99", "max"]
    return _table(["", *names], [[name, *(_number(row[column]) for column in names)] for name, row in rows.items()])


def _sources_section(sources: Sequence[Mapping[str, Any]]) -> str:
    if not sources:
        return ""
    shown = sources[:SOURCES_ON_PAGE]
    rows = [[escape(row["source"]), _number(row["passages"]), _number(row["entities"])] for row in shown]
    more = "" if len(shown) == len(sources) else f" The {len(shown)} largest of {len(sources):,}."
    return _section("Sources", f"Where the passages are from.{more}", _table(["source", "passages", "entities"], rows))


def _section(title: str, note: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(note)}</p>\n{body}\n</section>\n"


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells in HTML, the first of a row its name."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>\n' for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _picture(light: bytes, dark: bytes, words: str) -> str:
    sources = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in (light, dark)]
    size = f'width="{_pixels(plots.WIDTH)}" height="{_pixels(plots.HEIGHT)}"'
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{sources[1]}">'
        f'<img src="{sources[0]}" {size} alt="{escape(words)}"></picture>'
    )


def _pixels(inches: float) -> int:
    return round(inches * plots.DPI)


def escape(text: str) -> str:
    """A text for an HTML text node or a quoted attribute."""
    return html.escape(text.translate(NOT_IN_HTML))


def _part(name: str) -> str:
    return files("data_prep.questions").joinpath(name).read_text(encoding="utf-8")
