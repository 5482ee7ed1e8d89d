"""The report of a mixture: what was taken of each set, and where sets disagree."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uner_jax.records import write_json
from uner_jax.report.page import Page, escape, number, section, table

PAGE, TABLES = "index.html", "tables.json"
ROWS_ON_PAGE = 40
SHOWN = 160  # characters of a passage
FOOTER = (
    "Made by <code>python -m data_prep.mixture --report</code>. "
    "The numbers are in <code>tables.json</code> beside this page."
)


def write_report(directory: Path, title: str, tables: Mapping[str, Any]) -> Path:
    """Write `tables.json` and the page into the directory, and return the page."""
    write_json(directory / TABLES, tables)
    sets = tables["sets"]
    sections = [
        _sets_section(sets),
        _different_section(tables["different_types"]),
        _same_name_section(tables["same_name"]),
        _opposite_section(tables["opposite_answers"]),
    ]
    facts = [
        (number(len(sets)), "sets"),
        (number(sum(row["written"] for row in sets)), "conversations"),
        (number(tables["counts"]["conflicts"]), "pairs of types in conflict"),
        (number(tables["counts"]["opposite_answers"]), "opposite answers"),
    ]
    Page("Mixture of data sets", title, facts, sections, FOOTER).write(directory / PAGE)
    return directory / PAGE


def _sets_section(sets: Sequence[Mapping[str, Any]]) -> str:
    total = max(1, sum(row["written"] for row in sets))
    rows = [
        [
            escape(row["set"]),
            *(number(row[name]) for name in ("conversations", "taken")),
            f"{row['weight']:g}",
            number(row["written"]),
            f"{row['written'] / total:.1%}",
            "yes" if row["named_in_prompt"] else "no",
        ]
        for row in sets
    ]
    columns = ["set", "conversations", "taken", "weight", "written", "share", "named in the prompt"]
    note = (
        "Taken up to the limit, then as often as the weight says. Where the prompt names the set, a type may mean in "
        "it what it means nowhere else; where it does not, the disagreements below teach the model both."
    )
    return section("Sets", note, table(columns, rows))


def _different_section(pairs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            *(escape(f"{row[side]['type']} ({row[side]['set']})") for side in ("first", "second")),
            number(row["mentions"]),
            "yes" if row["conflict"] else "",
            escape(", ".join(row["examples"])),
        ]
        for row in pairs[:ROWS_ON_PAGE]
    ]
    note = (
        "Mentions that two sets give types of different names. It is a conflict where one of the sets asks for the "
        "other's type as well, and so says no where the other says yes."
    )
    return section("Mentions of different types", note, _words(["", "", "mentions", "conflict", "examples"], rows))


def _same_name_section(types: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            escape(row["type"]),
            escape(", ".join(f"{name} {count:,}" for name, count in row["sets"].items())),
            number(row["common_mentions"]),
        ]
        for row in types[:ROWS_ON_PAGE]
    ]
    note = "Types that several sets have by one name, with the mentions of each: do they mean the same?"
    return section("Types of one name", note, _words(["type", "mentions in", "in common"], rows))


def _opposite_section(types: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for row in types[:ROWS_ON_PAGE]:
        example = row["examples"][0]
        said = "; ".join(f"{name}: {', '.join(spans) or 'none'}" for name, spans in example["answers"].items())
        rows.append([escape(row["type"]), number(row["passages"]), escape(said), escape(example["text"][:SHOWN])])
    note = "Passages that stand in several sets, and of which these say different things about one type."
    return section("Opposite answers", note, _words(["type", "passages", "for example", "passage"], rows))


def _words(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f'<div class="words">{table(columns, rows)}</div>' if rows else "<p>None.</p>"
