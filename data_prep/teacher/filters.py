"""Which of the teacher's pairs are kept: the paper's filters, and whether the span stands in the passage."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from itertools import groupby

from uner_jax.records import Entity

# arXiv 2308.03279, section 3.1: None, NA, MISC and ELSE name no type; "N/A" is how teachers spell the second.
NO_TYPE = {"none", "na", "n/a", "misc", "else"}
LONGEST_GREEK_SYMBOL = 2


def keep_entities(pairs: list[tuple[str, str]], passage: str) -> tuple[list[Entity], Counter[str]]:
    """The entities among (span, type) pairs, in order, and how many others were left out, by reason.

    Span and type lose the white space around them, and the type's inner white space becomes single spaces.
    A span that stands in the passage but for its white space is given as the passage has it. The first
    reason that holds is counted:

    - "empty", "type_empty": nothing is left of the span, or of the type;
    - "type_none": the type is None, NA, N/A, MISC or ELSE, in any case;
    - "not_text": half of a surrogate pair, from a broken escape, which no file can hold;
    - "not_english": see `is_english`, of the span or the type;
    - "not_in_passage": the passage has no such substring;
    - "duplicate": the same span with the same type came before.
    """
    # a dict for its order.
    kept: dict[tuple[str, str], None] = {}
    left_out: Counter[str] = Counter()
    for given_span, given_type in pairs:
        span, type_name = given_span.strip(), " ".join(given_type.split())
        reason = _fault(span, type_name)
        found = None if reason else find_span(span, passage)
        if found is None:
            left_out[reason or "not_in_passage"] += 1
        elif (found, type_name) in kept:
            left_out["duplicate"] += 1
        else:
            kept[found, type_name] = None
    return [{"text": span, "type": type_name} for span, type_name in kept], left_out


def _fault(span: str, type_name: str) -> str | None:
    """Why the pair is no entity of any passage."""
    if not span:
        return "empty"
    if not type_name:
        return "type_empty"
    if type_name.casefold() in NO_TYPE:
        return "type_none"
    if _has_surrogate(span) or _has_surrogate(type_name):
        return "not_text"
    return None if is_english(span) and is_english(type_name) else "not_english"


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


def find_span(span: str, passage: str) -> str | None:
    """The span as the passage has it, which may be other white space between its words; None if it has not."""
    if span in passage:
        return span
    words = span.split()
    if len(words) < 2:
        return None
    found = re.search(r"\s+".join(map(re.escape, words)), passage)
    return found[0] if found else None


def is_english(text: str) -> bool:
    """False if most letters of the text are of a script other than Latin.

    A script is what can be told from a span; a French one passes. Accents, ligatures, full-width and mathematical
    letters are Latin. One or two Greek letters in a row are a symbol, as in "α-synuclein", "Δψ" or "λ", and not
    counted; three are a word. Digits and signs are no letters, and a text without letters passes.
    """
    foreign = letters = 0
    # NFKC: ℝ, 𝑥, ª and Ａ are letters like others.
    for script, run in groupby(unicodedata.normalize("NFKC", text), _script):
        length = len(list(run))
        if script is None or (script == "GREEK" and length <= LONGEST_GREEK_SYMBOL):
            continue
        letters += length
        foreign += 0 if script == "LATIN" else length
    return foreign * 2 <= letters


@lru_cache(maxsize=4096)
def _script(char: str) -> str | None:
    """The first word of a letter's Unicode name, None for what is no letter."""
    if not unicodedata.category(char).startswith("L"):
        return None
    return unicodedata.name(char, "UNNAMED").split()[0]
