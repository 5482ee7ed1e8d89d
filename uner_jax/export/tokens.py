"""Words of a text with their places, and entities as runs of words.

A word is letters, digits and marks of one script run, joined by hyphens; anything else but white space
stands alone. Scripts that are written without spaces have one word a letter: so an entity in them has
words of its own.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from uner_jax.export.losses import Loss, Losses
from uner_jax.extraction.spans import flat

# (start, end) in code points, end exclusive
Place = tuple[int, int]

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "BOPOMOFO")
# over the kinds of the letters: w word, m mark, u letter of a script without spaces, - hyphen, s space, p other
_WORD = re.compile(r"w[wm]*(?:-w[wm]*)*|[^s]m*")


class Placed(NamedTuple):
    """An entity and the words it covers: `first` to `last`, `last` exclusive."""

    first: int
    last: int
    entity: dict


@lru_cache(maxsize=1 << 16)
def _kind(letter: str) -> str:
    if letter.isspace():
        return "s"
    category = unicodedata.category(letter)
    if category[0] == "M" or category == "Cf":
        return "m"
    if letter == "-":
        return "-"
    if not (letter.isalnum() or letter == "_"):
        return "p"
    return "u" if unicodedata.name(letter, "").startswith(UNSPACED) else "w"


def words(text: str) -> list[Place]:
    """The places of the words of a text; every character but white space is in one."""
    return [word.span() for word in _WORD.finditer("".join(map(_kind, text)))]


def with_spaces(places: Iterable[Place], text: str) -> list[Place]:
    """The words, and the white space between them as words of its own, less one space after each word.

    So tokens of spaCy are laid out: the text is the words, with a space behind those that one follows.
    """
    filled: list[Place] = []
    end = 0
    for start, stop in [*places, (len(text), len(text))]:
        begin = end + 1 if filled and text[end:start].startswith(" ") else end
        if begin < start:
            filled.append((begin, start))
        if stop > start:
            filled.append((start, stop))
        end = stop
    return filled


def align(
    text: str, entities: Sequence[dict], places: Sequence[Place], split: bool, flatten: bool, losses: Losses
) -> tuple[list[Place], list[Placed]]:
    """The words, cut where an entity begins or ends inside one, and the entities as runs of them.

    Without `split` no word is cut, and such an entity is left out; with `flatten` none overlap. White space at
    the ends of an entity is no part of it.
    """
    sound = list(_trimmed(text, entities, losses))
    if not split:
        ends = {place for word in places for place in word}
        # trimmed, an entity begins and ends with a letter, which is in a word: so an end of it is an end of a word.
        whole = [entity for entity in sound if entity["start"] in ends and entity["end"] in ends]
        losses[Loss.PARTIAL] += len(sound) - len(whole)
        sound = whole
    if flatten:
        kept = flat(sound)
        losses[Loss.OVERLAP] += len(sound) - len(kept)
        sound = kept
    cut = _cut(places, {entity[side] for entity in sound for side in ("start", "end")})
    losses[Loss.SPLIT] += len(cut) - len(places)
    starts, stops = [start for start, _ in cut], [stop for _, stop in cut]
    return cut, [
        Placed(bisect_left(starts, entity["start"]), bisect_right(stops, entity["end"]), entity) for entity in sound
    ]


def _trimmed(text: str, entities: Iterable[dict], losses: Losses) -> Iterable[dict]:
    for entity in entities:
        part = text[entity["start"] : entity["end"]]
        start = entity["start"] + len(part) - len(part.lstrip())
        stripped = part.strip()
        if not stripped:
            losses[Loss.BLANK] += 1
            continue
        losses[Loss.TRIMMED] += stripped != part
        yield entity | {"start": start, "end": start + len(stripped), "text": stripped}


def _cut(places: Sequence[Place], at: Iterable[int]) -> list[Place]:
    borders = sorted(set(at))
    pieces: list[Place] = []
    for start, end in places:
        inside = borders[bisect_right(borders, start) : bisect_left(borders, end)]
        pieces += pairwise([start, *inside, end])
    return pieces


def tags(count: int, placed: Iterable[Placed]) -> list[tuple[str, str]]:
    """For each of `count` words `(prefix, label)`: "B" or "I" in an entity, ("O", "") outside; none may overlap."""
    found = [("O", "")] * count
    for first, last, entity in placed:
        found[first:last] = [("B", entity["label"])] + [("I", entity["label"])] * (last - first - 1)
    return found
