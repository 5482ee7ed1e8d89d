"""Plots of a data set."""

from collections import Counter
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from data_prep.questions.statistics import HEAD, MIDDLE, Statistics, quantiles, ranked
from uner_jax.report.plots import Colours

BINS = 40

Draw = Callable[[Statistics, Axes, Colours], None]


def draw_type_frequency(statistics: Statistics, axes: Axes, colours: Colours) -> None:
    """Mentions of a type by its rank, on logarithmic axes; the borders of the paper's table are dotted."""
    counts = [count for _, count in ranked(statistics.mentions)]
    axes.set(xscale="log", yscale="log", xlabel="rank of the type", ylabel="mentions")
    if not counts:
        return
    ranks = range(1, len(counts) + 1)
    axes.plot(ranks, counts, color=colours.first, linewidth=1.6, marker="o", markersize=3, markeredgewidth=0)
    for share, name in ((HEAD, "1 % of types"), (MIDDLE, "10 %")):
        border = max(1, round(share * len(counts)))
        axes.axvline(border, color=colours.quiet, linewidth=0.9, linestyle=":")
        axes.text(border * 1.06, 0.98, name, transform=axes.get_xaxis_transform(), va="top", color=colours.quiet)
    _plain_ticks(axes)


def draw_lengths(statistics: Statistics, axes: Axes, colours: Colours, unit: str) -> None:
    """How many passages and conversations are how long, in `unit`."""
    histograms = {"passages": statistics.passage_lengths, "conversations": statistics.conversation_lengths}
    longest = max((length for histogram in histograms.values() for length in histogram), default=1)
    for (name, histogram), colour in zip(histograms.items(), (colours.second, colours.first), strict=True):
        lengths, counts = list(histogram), list(histogram.values())
        label = f"{name} (median {quantiles(histogram)['median']:,})"
        axes.hist(lengths, BINS, range=(0, longest), weights=counts, color=colour, alpha=0.55, label=label)
    axes.set(xlabel=unit, ylabel="how many")
    axes.yaxis.set_major_formatter(_thousands())
    axes.xaxis.set_major_formatter(_thousands())


def draw_questions(statistics: Statistics, axes: Axes, colours: Colours) -> None:
    """How many questions a passage has: all, and those with entities."""
    histograms = {"with entities": statistics.positives_a_passage, "all": statistics.questions_a_passage}
    for (name, histogram), colour, shift in zip(
        histograms.items(), (colours.second, colours.first), (-0.2, 0.2), strict=True
    ):
        places = [number + shift for number in histogram]
        axes.bar(places, list(histogram.values()), width=0.4, color=colour, label=name)
    axes.set(xlabel="questions of a passage", ylabel="passages")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(_thousands())


def draw_negatives(statistics: Statistics, axes: Axes, colours: Colours) -> None:
    """How often a type is asked of passages that do not have it, by its mentions in those that do; 0 stands apart."""
    names = statistics.mentions.keys() | statistics.negatives.keys()
    # one point for all types in one place: there are many of the rare ones.
    points = Counter((statistics.mentions[name], statistics.negatives[name]) for name in names)
    axes.set(xlabel="mentions of the type", ylabel="questions without entities")
    if not points:
        return
    mentions, negatives = zip(*points, strict=True)
    areas = [10 + 4 * count**0.5 for count in points.values()]
    axes.scatter(mentions, negatives, s=areas, color=colours.first, alpha=0.6, linewidths=0, label="a type, or several")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlim=(-0.2, 2 * max(mentions) + 1), ylim=(-0.2, 2 * max(negatives) + 1))
    ratio = statistics.negatives.total() / max(1, statistics.mentions.total())
    line = [count for count in sorted(set(mentions)) if count]
    expected = [ratio * count for count in line]
    axes.plot(line, expected, color=colours.second, linewidth=1.2, label="in proportion to mentions")
    _plain_ticks(axes)


def _thousands() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{value:,.0f}" if value == int(value) else "")


def _plain_ticks(axes: Axes) -> None:
    """1,000 instead of a power of ten, and nothing between."""
    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_thousands())
