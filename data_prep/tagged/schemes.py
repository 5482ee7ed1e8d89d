"""Tags -> spans: IOB1, IOB2 and IOBES, under all the letters that the last goes by.

IOB1 (Ramshaw and Marcus 1995): I- is inside an entity, B- begins one that follows another of the same type. IOB2: B-
begins every entity. IOBES: S- is an entity of one token, and a longer one begins with B- and ends with E-.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from data_prep.tagged.columns import TAG, Token
from uner_jax.records import InputError

Scheme = Literal["iob1", "iob2", "iobes"]
# IOB1 is rare: a file that breaks all schemes is a broken IOB1 only where it breaks the others this much more often.
IOB1_ODDS = 10


class Span(NamedTuple):
    """The tokens `start` to `end` (exclusive) of a sentence, and the label of their type as the file has it."""

    start: int
    end: int
    label: str


class Tag(NamedTuple):
    """A token's place in an entity, one of B, I, E, S, and the entity's label."""

    place: str
    label: str
    token: Token


# None stands for O.
Tags = list[Tag | None]


class Fault(NamedTuple):
    """A tag that breaks the scheme, and what to do about it."""

    token: Token
    advice: str


class Dialect(NamedTuple):
    """A scheme with its letters; `places` says what each letter is in IOBES."""

    scheme: Scheme
    places: dict[str, str]
    faults: Callable[[Tags], Iterator[Fault]]


def decode(path: Path, sentences: list[list[Token]], scheme: Scheme | None = None) -> tuple[str, list[list[Span]]]:
    """The name of the file's dialect, and the spans of each sentence in order.

    The dialect is the first, in the order IOB2, IOB1, IOBES, that no tag of the file breaks; `scheme` leaves only its
    own. If all are broken, raises InputError with the first fault, its file and line, by the one that is broken least.
    """
    _check_form(path, sentences)
    known = {name: dialect for name, dialect in DIALECTS.items() if scheme in (None, dialect.scheme)}
    broken: dict[str, dict[int, Fault]] = {name: {} for name in known}
    for name, dialect in known.items():
        for fault in _faults(name, sentences):
            broken[name].setdefault(fault.token.line, fault)
        if not broken[name]:
            return name, [_spans(_tags(sentence, dialect.places)) for sentence in sentences]
    name = min(broken, key=lambda name: len(broken[name]) * (IOB1_ODDS if name == "IOB1" else 1))
    token, advice = broken[name][min(broken[name])]
    raise InputError(
        f"{path}, line {token.line}: tag {token.tag!r} of the token {token.text!r} breaks {name}, the scheme of the "
        f"file: {advice} (lines that break it: {len(broken[name]):,})"
    )


def _check_form(path: Path, sentences: list[list[Token]]) -> None:
    for token in (token for sentence in sentences for token in sentence):
        if not TAG.fullmatch(token.tag):
            raise InputError(
                f"{path}, line {token.line}: tag {token.tag!r} of the token {token.text!r}; expected O, or B, I or "
                "another prefix of the file's scheme, a hyphen and a type, as in B-person: correct the tag"
            )


def _faults(name: str, sentences: list[list[Token]]) -> Iterator[Fault]:
    places = DIALECTS[name].places
    prefixes = ", ".join(f"{letter}-" for letter in places)
    for sentence in sentences:
        for token in sentence:
            if token.tag != "O" and token.tag[0] not in places:
                yield Fault(token, f"its prefixes are {prefixes}")
        yield from DIALECTS[name].faults(_tags(sentence, places))


def _tags(sentence: list[Token], places: dict[str, str]) -> Tags:
    return [
        Tag(places[token.tag[0]], token.tag[2:].strip(), token) if token.tag[0] in places else None
        for token in sentence
    ]


def _continues(previous: Tag | None, tag: Tag | None) -> bool:
    """Whether the two may be of one entity."""
    return previous is not None and tag is not None and previous.label == tag.label


def _faults_of_iob1(tags: Tags) -> Iterator[Fault]:
    for previous, tag in pairwise([None, *tags]):
        if tag is not None and tag.place == "B" and not _continues(previous, tag):
            yield Fault(tag.token, f"B- only separates two entities of one type, so expected I-{tag.label} here")


def _faults_of_iob2(tags: Tags) -> Iterator[Fault]:
    for previous, tag in pairwise([None, *tags]):
        if tag is not None and tag.place == "I" and not _continues(previous, tag):
            yield Fault(tag.token, f"there is no {tag.label} before it to go on with; write B-{tag.label} to begin one")


def _faults_of_iobes(tags: Tags) -> Iterator[Fault]:
    for previous, tag in pairwise([None, *tags, None]):
        goes_on = tag is not None and tag.place in "IE"
        if tag is not None and goes_on and not (_is_open(previous) and _continues(previous, tag)):
            yield Fault(tag.token, f"no {tag.label} is open before it; let the entity begin with B-{tag.label}")
        elif previous is not None and _is_open(previous) and not goes_on:
            yield Fault(previous.token, f"{previous.label} is open after it, and the next token does not go on with it")


def _is_open(tag: Tag | None) -> bool:
    """Whether an entity of IOBES needs another token."""
    return tag is not None and tag.place in "BI"


IOB = {"B": "B", "I": "I"}
DIALECTS = {
    "IOB2": Dialect("iob2", IOB, _faults_of_iob2),
    "IOB1": Dialect("iob1", IOB, _faults_of_iob1),
    "IOBES": Dialect("iobes", {"B": "B", "I": "I", "E": "E", "S": "S"}, _faults_of_iobes),
    "BILOU": Dialect("iobes", {"B": "B", "I": "I", "L": "E", "U": "S"}, _faults_of_iobes),
    "BMEWO": Dialect("iobes", {"B": "B", "M": "I", "E": "E", "W": "S"}, _faults_of_iobes),
    "BMESO": Dialect("iobes", {"B": "B", "M": "I", "E": "E", "S": "S"}, _faults_of_iobes),
}


def _spans(tags: Tags) -> list[Span]:
    """The spans of tags without faults."""
    spans: list[Span] = []
    for place, (previous, tag) in enumerate(pairwise([None, *tags])):
        if tag is None:
            continue
        if tag.place in "BS" or not _continues(previous, tag):
            spans.append(Span(place, place + 1, tag.label))
        else:
            spans[-1] = spans[-1]._replace(end=place + 1)
    return spans
