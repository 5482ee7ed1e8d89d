"""How far scores can be trusted: a reliability diagram, and the temperature that mends them (arXiv 1706.04599)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uner_jax.extraction.spans import calibrated
from uner_jax.records import InputError, atomic_path

# N scored items

BINS = 10
TEMPERATURES = np.geomspace(0.1, 10.0, 200)
# a score of exactly 1 that was wrong would weigh without bound.
LEAST = 1e-6


def calibration(scores: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    """The temperature under which the scores, each in 0..1, are likeliest, and what it changes.

    Of both scores and calibrated scores: the mean negative log-likelihood in nats, the expected calibration error, and
    for each of ten bins how many items it has, their mean score, and the share that is right. Raises InputError if
    there is nothing to go by.
    """
    if not scores or all(right) or not any(right):
        raise InputError(
            f"{len(scores)} items, {sum(right)} of them right: calibration needs right and wrong ones; ask more"
        )
    losses = [_loss([calibrated(score, temperature) for score in scores], right) for temperature in TEMPERATURES]
    temperature = float(TEMPERATURES[int(np.argmin(losses))])
    mended = [calibrated(score, temperature) for score in scores]
    return {
        "items": len(scores),
        "temperature": round(temperature, 4),
        "before": _quality(scores, right),
        "after": _quality(mended, right),
    }


def _loss(scores: Sequence[float], right: Sequence[bool]) -> float:
    scores_N = np.clip(scores, LEAST, 1 - LEAST)
    return float(-np.log(np.where(right, scores_N, 1 - scores_N)).mean())


def _quality(scores: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    scores_N, right_N = np.asarray(scores), np.asarray(right)
    places_N = np.minimum((scores_N * BINS).astype(int), BINS - 1)
    bins = [_bin(place, scores_N[places_N == place], right_N[places_N == place]) for place in np.unique(places_N)]
    error = sum(bin["items"] * abs(bin["score"] - bin["right"]) for bin in bins) / len(scores)
    return {"loss": _loss(scores, right), "expected_calibration_error": error, "bins": bins}


def _bin(place: int, scores_N: np.ndarray, right_N: np.ndarray) -> dict[str, Any]:
    mean, share = float(scores_N.mean()), float(right_N.mean())
    return {"from": int(place) / BINS, "items": len(scores_N), "score": mean, "right": share}


def draw_reliability(report: dict[str, Any], path: Path) -> None:
    """The reliability diagram of a `calibration`: the share of right items against their score, before and after."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="score", ylabel="share of items that are right", xlim=(0, 1), ylim=(0, 1))
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":", label="as it should be")
    for name, label in (("before", "as scored"), ("after", f"temperature {report['temperature']:.2f}")):
        bins = report[name]["bins"]
        sizes = [20 + 200 * math.sqrt(bin["items"] / report["items"]) for bin in bins]
        line = axes.plot([bin["score"] for bin in bins], [bin["right"] for bin in bins], label=label)
        axes.scatter(
            [bin["score"] for bin in bins], [bin["right"] for bin in bins], sizes, color=line[0].get_color(), alpha=0.5
        )
    axes.legend(loc="upper left")
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
