"""Where spans are drawn: lanes for underlines, and the segments that a text is cut into.

Spans may nest, cross or coincide, which nested elements cannot express. So a text is cut at every
span boundary, each segment knows all entities that cover it, and an entity keeps one lane (the
depth of its underline) over all its segments.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise


def lanes(entities: list[dict]) -> list[int]:
    """A lane for each entity, such that no two entities in one lane overlap.

    Short spans choose first: a span lies nearer to the text than the spans around it.
    """
    taken: list[list[tuple[int, int]]] = []
    chosen = [0] * len(entities)
    for index in sorted(range(len(entities)), key=lambda i: entities[i]["end"] - entities[i]["start"]):
        span = (entities[index]["start"], entities[index]["end"])
        lane = next((lane for lane, spans in enumerate(taken) if _is_free(spans, span)), len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].insert(bisect_left(taken[lane], span), span)
        chosen[index] = lane
    return chosen


def _is_free(spans: list[tuple[int, int]], span: tuple[int, int]) -> bool:
    """Whether `span` overlaps none of `spans`, which are sorted and disjoint."""
    at = bisect_left(spans, span)
    return (at == 0 or spans[at - 1][1] <= span[0]) and (at == len(spans) or spans[at][0] >= span[1])


def segments(text: str, entities: list[dict]) -> Iterator[tuple[int, int, list[int]]]:
    """Yield `(start, end, covering)` for the pieces of `text` between span boundaries, in order.

    `covering` holds indices into `entities`, the span that ends last first: nested in this order,
    a span that goes on is drawn under the label of one that ends. Of equal spans the one in the
    upper lane, that is the earlier entity, is last.
    """
    starting: dict[int, list[int]] = {}
    for index, entity in enumerate(entities):
        starting.setdefault(entity["start"], []).append(index)
    cuts = sorted({0, len(text), *starting, *(entity["end"] for entity in entities)})
    covering: list[int] = []
    for start, end in pairwise(cuts):
        covering = [i for i in covering if entities[i]["end"] > start] + starting.get(start, [])
        covering.sort(key=lambda i: (-entities[i]["end"], entities[i]["start"], -i))
        yield start, end, covering
