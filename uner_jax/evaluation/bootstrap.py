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
    """The 2.5th and the 97.5th percentile of F1; None if the protocol counts rows of less than two passages."""
    counts_P3 = _by_passage(rows, protocol)
    if len(counts_P3) < 2:
        return None
    return _percentiles(np.concatenate([_f1(weights @ counts_P3) for weights in _weights(len(counts_P3), seed)]))


def difference(rows: Sequence[Row], others: Sequence[Row], protocol: str, seed: int = 0) -> dict[str, Any]:
    """F1 of `others` less that of `rows`, of answers to the same questions: its 95 % interval and a two-sided p-value.

    The same passages are drawn for both. The p-value is twice the smaller share of samples on one side of zero, at
    least 1 / `SAMPLES`, and at least 2 ** (1 - P): P passages that all say the same would do so by chance as often.
    The last two are None if the protocol counts rows of less than two passages.
    """
    first_P3, second_P3 = _by_passage(rows, protocol), _by_passage(others, protocol)
    found = float(_f1(second_P3.sum(0)) - _f1(first_P3.sum(0)))
    passages = len(first_P3)
    if passages < 2:
        return {"difference": found, "interval": None, "p": None}
    drawn = [_f1(weights @ second_P3) - _f1(weights @ first_P3) for weights in _weights(passages, seed)]
    differences_S = np.concatenate(drawn)
    below, above = float((differences_S <= 0).mean()), float((differences_S >= 0).mean())
    p = min(1.0, max(2 * min(below, above), 1 / SAMPLES, 2.0 ** (1 - passages)))
    return {"difference": found, "interval": _percentiles(differences_S), "p": p}


def _by_passage(rows: Sequence[Row], protocol: str) -> np.ndarray:
    """The counts of each passage that has rows that are counted, (P, 3), in the order of their texts."""
    counted = counted_by(protocol, rows)
    # not the turn: two runs may have shown the same passage in different templates.
    numbers = {text: number for number, text in enumerate(sorted({row.question.text for row in counted}))}
    counts_P3 = np.zeros((len(numbers), 3))
    for row in counted:
        counts_P3[numbers[row.question.text]] += PROTOCOLS[protocol].count(row)
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
