"""Plots as PNG, for a light and for a dark page. The same numbers make the same bytes."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 7.2, 4.0, 160


@dataclass(frozen=True)
class Colours:
    """The colours of a page, as those of page.css."""

    paper: str
    text: str
    quiet: str
    line: str
    first: str
    second: str
    third: str


LIGHT = Colours("#ffffff", "#1d1c1a", "#67635b", "#e3dfd6", "#0b58bb", "#c0652a", "#b9b3a6")
DARK = Colours("#1c1d20", "#e9e6df", "#a09b91", "#303236", "#90bcfe", "#f0a875", "#55585e")


class Plot(NamedTuple):
    """The bytes of two PNG files."""

    light: bytes
    dark: bytes


def draw_plot(draw: Callable[[Axes, Colours], None]) -> Plot:
    """What `draw` draws, in the colours of both pages."""
    return Plot(_draw(draw, LIGHT), _draw(draw, DARK))


def _draw(draw: Callable[[Axes, Colours], None], colours: Colours) -> bytes:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor=colours.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _set_style(axes, colours)
    draw(axes, colours)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=colours.text)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # a box stands for each: the names are in the page's tables too.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        # without the version of the library: the same numbers make the same bytes.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _set_style(axes: Axes, colours: Colours) -> None:
    axes.set_facecolor(colours.paper)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(colours.line)
    axes.tick_params(which="both", colors=colours.quiet, labelsize=9, length=3, width=0.6)
    axes.xaxis.label.set(color=colours.text, fontsize=10)
    axes.yaxis.label.set(color=colours.text, fontsize=10)
    axes.grid(True, axis="y", color=colours.line, linewidth=0.7)
    axes.set_axisbelow(True)
