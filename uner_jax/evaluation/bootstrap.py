"""95 % intervals and paired differences of F1, by the bootstrap over passages (Efron and Tibshirani 1993, chapter 13).

Passages are drawn, not questions: the questions of a passage stand and fall together. A passage that a set has twice
is drawn as one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from uner_jax.evaluation.protocols import PROTOCOLS, counted_by
from uner_jax.evaluation.rows import Row

# S samples, P passages

SAMPLES = 1000
# samples at a time: their weights are (S, P) in memory.
AT_A_TIME = 50


def interval(rows: Sequence[Row], protocol: str, seed: int = 0) -> list[float] | None:
    """The 2.5th and the 97.5th percentile of F1; None if the protocol counts none of the rows."""
    counts_P3 = _by_passage(rows, protocol, _passages(rows))
    if not len(counts_P3):
        return None
    return _percentiles(np.concatenate([_f1(weights @ counts_P3) for weights in _weights(len(counts_P3), seed)]))


def difference(rows: Sequence[Row], others: Sequence[Row], protocol: str, seed: int = 0) -> dict[str, Any] | None:
    """F1 of `others` less that of `rows`, of answers to the same questions: its 95 % interval and a two-sided p-value.

    The same passages are drawn for both. The p-value is twice the smaller share of samples on one side of zero, at
    least 1 / `SAMPLES`. None if the protocol counts none of the rows.
    """
    passages = _passages(rows)
    first_P3, second_P3 = _by_passage(rows, protocol, passages), _by_passage(others, protocol, passages)
    if not len(first_P3):
        return None
    drawn = [_f1(weights @ second_P3) - _f1(weights @ first_P3) for weights in _weights(len(first_P3), seed)]
    differences_S = np.concatenate(drawn)
    below, above = float((differences_S <= 0).mean()), float((differences_S >= 0).mean())
    found = float(_f1(second_P3.sum(0)) - _f1(first_P3.sum(0)))
    p = min(1.0, max(2 * min(below, above), 1 / SAMPLES))
    return {"difference": found, "interval": _percentiles(differences_S), "p": p}


def _passages(rows: Sequence[Row]) -> dict[str, int]:
    """A number for each passage."""
    return {turn: number for number, turn in enumerate(sorted({row.question.passage_turn for row in rows}))}


def _by_passage(rows: Sequence[Row], protocol: str, passages: dict[str, int]) -> np.ndarray:
    """The counts of each passage, (P, 3); without passages if nothing is counted."""
    counted = counted_by(protocol, rows)
    counts_P3 = np.zeros((len(passages) if counted else 0, 3))
    for row in counted:
        counts_P3[passages[row.question.passage_turn]] += PROTOCOLS[protocol].count(row)
    return counts_P3


def _weights(passages: int, seed: int) -> Iterator[np.ndarray]:
    """How often each passage is drawn in each sample."""
    generator = np.random.default_rng(seed)
    for _ in range(SAMPLES // AT_A_TIME):
        yield generator.multinomial(passages, np.full(passages, 1 / passages), AT_A_TIME).astype(float)


def _f1(counts: np.ndarray) -> np.ndarray:
    correct, answered = counts[..., 0], counts[..., 1] + counts[..., 2]
    return np.divide(2 * correct, answered, out=np.zeros_like(correct), where=answered > 0)


def _percentiles(values_S: np.ndarray) -> list[float]:
    return [float(value) for value in np.percentile(values_S, [2.5, 97.5])]
