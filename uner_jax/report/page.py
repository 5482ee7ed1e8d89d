"""A report's page: sections of tables and pictures in one frame. The same numbers make the same bytes."""

import base64
import dataclasses
import html
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from uner_jax.records import atomic_path
from uner_jax.report.plots import DPI, HEIGHT, WIDTH, Plot

# HTML cannot hold NUL or a lone surrogate.
NOT_IN_HTML = dict.fromkeys([0, *range(0xD800, 0xE000)], "\ufffd")


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page shows: what kind of report it is, of what, numbers with their words, HTML, and what made it."""

    kind: str
    title: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[str]
    footer: str

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        facts = "".join(f"<li><b>{escape(number)}</b> {escape(words)}</li>\n" for number, words in self.facts)
        page = Template(_part("page.html")).substitute(
            kind=escape(self.kind),
            title=escape(self.title),
            style=_part("page.css"),
            facts=facts,
            sections="".join(self.sections),
            footer=self.footer,
        )
        with atomic_path(path) as temporary:
            temporary.write_bytes(page.encode())


def section(title: str, note: str, *body: str) -> str:
    """A card with a heading, a note in plain text, and HTML below it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(note)}</p>\n{''.join(body)}\n</section>\n"


def table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table under the names of its columns; its cells are HTML, the first of a row its name."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>\n' for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def number(value: float | None) -> str:
    """A number as a table shows it: thousands apart, one place after the point of what is not whole, – for None."""
    if value is None:
        return "–"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def picture(plot: Plot, words: str) -> str:
    """A plot that is dark on a dark page; `words` say what it shows to who does not see it."""
    light, dark = (f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in (plot.light, plot.dark))
    size = f'width="{round(WIDTH * DPI)}" height="{round(HEIGHT * DPI)}"'
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" {size} alt="{escape(words)}"></picture>'
    )


def escape(text: str) -> str:
    """A text for an HTML text node or a quoted attribute."""
    return html.escape(text.translate(NOT_IN_HTML))


def _part(name: str) -> str:
    return files("uner_jax.report").joinpath(name).read_text(encoding="utf-8")
