"""Names of entity types: their normal form, and which of them name the same type."""

import re
import unicodedata
from functools import lru_cache

# Where words join: "e-mail", "user_name", "city/town", and "data base" for "database".
SEPARATORS = re.compile(r"[\s_/\-\u2010-\u2015]+")
# "person's", "person(s)", "U.S."
IGNORED = re.compile(r"['\u2019.]|\((?:s|es)\)")
AROUND = ' .,:;!?"()[]{}\u201c\u201d'
# The plurals among names of types that no ending tells, and a foreign singular or two.
IRREGULAR = {
    "people": "person",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "oxen": "ox",
    "quizzes": "quiz",
    "datum": "data",
    "media": "medium",
    "bacteria": "bacterium",
    "mitochondria": "mitochondrion",
    "phenomena": "phenomenon",
    "criteria": "criterion",
    "taxa": "taxon",
    "phyla": "phylum",
    "strata": "stratum",
    "spectra": "spectrum",
    "genera": "genus",
    "corpora": "corpus",
    "fungi": "fungus",
    "nuclei": "nucleus",
    "stimuli": "stimulus",
    "loci": "locus",
    "alumni": "alumnus",
    "indices": "index",
    "matrices": "matrix",
    "vertices": "vertex",
    "appendices": "appendix",
}
# Singular and plural lose the same letters: "class" and "classes", "analysis" and "analyses", "case" and "cases".
PLURAL_ENDING = re.compile(r"(sse?s?|s?[ei]s?|s)$")
SHORTEST_STEM = 2
# "status", "campus" and "genus" without "us" would be "state", "camp" and "gene".
NO_LATIN_PLURAL = {"statu", "campu", "genu"}
# Of Latin and Greek words both numbers become one: "curriculum" and "curricula", "ganglion" and "ganglia", "cortex" and
# "cortices". And of compounds of the irregular ones.
FOREIGN_ENDINGS = (
    (re.compile(r"(?<=.)people$"), "person"),
    (re.compile(r"(?<=.)children$"), "child"),
    (re.compile(r"(?<=...)(um|on)s?$"), "a"),
    (re.compile(r"(?<=..)[ei]x(es)?$"), "ic"),
    (re.compile(r"eau[xs]$"), "eau"),
)


def normalize_type(name: str) -> str:
    """A type's name in lower case with single spaces, as the published data has it."""
    return " ".join(name.lower().split())


def normalize_definition(definition: str) -> str:
    """A definition with single spaces and without the period that ends it; a sentence keeps its capitals.

    The period of an abbreviation ("a town in the U.S.") stays.
    """
    words = definition.split()
    if words and words[-1].endswith(".") and "." not in words[-1][:-1]:
        words[-1] = words[-1][:-1]
    return " ".join(words).rstrip() or " ".join(definition.split())


def type_keys(name: str) -> set[str]:
    """Keys of a name, whatever its case, number, hyphens and spaces: names that share one are of one type.

    A small set of rules for English. In doubt two names share a key ("new" and "news"): who asks about a
    type that a passage might have under another name teaches a wrong answer, who does not ask loses nothing.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    bare = " ".join(IGNORED.sub("", folded).split()).strip(AROUND)
    words = [word for word in SEPARATORS.split(bare) if word]
    if not words:
        return {folded.strip()}
    *before, last = map(_stem, words)
    # in "filename" the first word has its ending, in "sport teams" it has lost one.
    return {"".join(words[:-1]) + last, "".join(before) + last}


def is_same_type(one: str, other: str) -> bool:
    """Whether two names are of one type, as far as their keys tell."""
    return not type_keys(one).isdisjoint(type_keys(other))


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    """What the singular and the plural of a word have in common."""
    word = IRREGULAR.get(word.removesuffix("s"), IRREGULAR.get(word, word))
    for ending, one in FOREIGN_ENDINGS:
        word = ending.sub(one, word)
    word = re.sub(r"mens?$", "man", word)
    word = re.sub(r"(ies?|ys)$", "y", word)
    stem = PLURAL_ENDING.sub("", word)
    if len(stem) < SHORTEST_STEM:
        return word.rstrip("s") or word
    # "cactus" and "cacti"
    if stem.endswith("u") and len(stem) > SHORTEST_STEM + 1 and stem not in NO_LATIN_PLURAL:
        stem = stem[:-1]
    # "knife" and "knives"
    return stem[:-1] + "f" if stem.endswith("v") else stem
