"""Which passages are no text: tables of numbers, markup, minified code, encoded bytes.

The bounds are loose on purpose: what is a little like text stays. Of 882 passages of The Pile that nobody had
filtered they drop 3 (0.3 %): a table of metrics, the head of an HTML page and a PHP test file. Prose has 75 to 98 %
letters, formulas and citations 40 %, tables and dumps of bytes below 30 %. Prose has 5 characters a word, code 8 to
15, minified code, base64 and DNA 20 and more.
"""

import re
import unicodedata
from collections import Counter

FEWEST_LETTERS = 0.35
MOST_MARKUP = 0.6
MOST_CONTROLS = 0.01
LONGEST_MEAN_WORD = 16.0

TOO_SHORT = "too short"
CONTROLS = "no text: control characters"
FEW_LETTERS = "no text: few letters"
MARKUP = "no text: markup"
NO_WORDS = "no text: no words"

# a tag, a comment or a character reference of HTML or XML.
TAG = re.compile(r"<[/!?a-zA-Z][^<>]*>|&#?\w{1,30};")
SYMBOLS = frozenset("{}[]()<>=;|\\&$#_^~@*`+/")
ASCII_WORD = re.compile(r"[!-~]+")


def find_fault(text: str, tokens: int, min_tokens: int) -> str | None:
    """Why a passage of that many tokens is not worth a question, None if it is."""
    if tokens < min_tokens:
        return TOO_SHORT
    visible = Counter(text)
    for character in [one for one in visible if one.isspace()]:
        del visible[character]
    total = visible.total()
    kinds: Counter[str] = Counter()
    for character, count in visible.items():
        kinds[_kind(character)] += count
    if kinds["control"] > MOST_CONTROLS * total:
        return CONTROLS
    if kinds["letter"] < FEWEST_LETTERS * total:
        return FEW_LETTERS
    if _markup(text) > MOST_MARKUP * total:
        return MARKUP
    return NO_WORDS if _mean_ascii_word(text) > LONGEST_MEAN_WORD else None


def _kind(character: str) -> str:
    category = unicodedata.category(character)
    # marks are the vowels of many scripts.
    if category[0] in "LM":
        return "letter"
    # U+FFFD stands where bytes were no text.
    return "control" if category in ("Cc", "Cn", "Co") or character == "\ufffd" else "other"


def _markup(text: str) -> int:
    """The visible characters in tags, and the symbols outside of them."""
    in_tags = sum(len("".join(tag.split())) for tag in TAG.findall(text))
    return in_tags + sum(character in SYMBOLS for character in TAG.sub("", text))


def _mean_ascii_word(text: str) -> float:
    # ASCII only: Chinese and Thai have no spaces between words.
    words = ASCII_WORD.findall(text)
    return sum(map(len, words)) / max(1, len(words))
