"""Which of overlapping spans are kept where a form can hold none that overlap."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, TypeVar

# A `Span` of `extraction.spans`, or a row of a file that has its fields.
Spanned = TypeVar("Spanned", bound=Any)


def flat(spans: Sequence[Spanned]) -> list[Spanned]:
    """Spans of which no two overlap, in the order of the text: the best score first, then the longest.

    Of spans that are equal in both the one that begins first is kept, then the first by its label. Every
    span that is left out overlaps one that is kept.
    """
    ranked = sorted(
        range(len(spans)),
        key=lambda i: (-spans[i]["score"], spans[i]["start"] - spans[i]["end"], spans[i]["start"], spans[i]["label"]),
    )
    taken: list[tuple[int, int, int]] = []
    for index in ranked:
        start, end = spans[index]["start"], spans[index]["end"]
        at = bisect_left(taken, (start, end, index))
        if (at == 0 or taken[at - 1][1] <= start) and (at == len(taken) or taken[at][0] >= end):
            taken.insert(at, (start, end, index))
    return [spans[index] for _, _, index in taken]
