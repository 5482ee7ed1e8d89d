"""A data set's labels -> the natural words that a question asks with ("ORG" -> "organization")."""

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uner_jax.records import InputError

SHIPPED = Path(__file__).with_name("type_names.toml")
# the published rule leaves this type out: what is miscellaneous has no common description.
DROPPED = {"misc", "miscellaneous"}
# "HumanSettlement", "OtherLOC" and "cell_line" are two words each, "DNA" is one.
BETWEEN_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|[\W_]+")


class TypeNames:
    """A table from label to name; case does not count, and its order is that of the questions."""

    def __init__(self, table: dict[str, str]):
        self._names = {label.casefold(): name for label, name in table.items()}
        self._ranks = {name: rank for rank, name in reversed(list(enumerate(table.values())))}

    def __contains__(self, label: str) -> bool:
        return label.casefold() in self._names

    def name(self, label: str) -> str:
        """The label's name in the table, or else its words in lower case."""
        return self._names.get(label.casefold()) or _words(label)

    def ordered(self, labels: Iterable[str]) -> list[str]:
        """The names of the labels, each once, in the table's order; those that it lacks are last, by the alphabet."""
        names = {self.name(label) for label in labels}
        return sorted(names, key=lambda name: (self._ranks.get(name, len(self._ranks)), name))


def _words(label: str) -> str:
    return " ".join(filter(None, BETWEEN_WORDS.split(label))).lower() or label


def is_dropped(label: str) -> bool:
    """Whether the published rule leaves the type out."""
    return label.casefold() in DROPPED


def read_type_names(path: Path | None = None) -> TypeNames:
    """The table of a JSON or TOML file `{"PER": "person", ...}`, without one the table that is shipped.

    Raises InputError for a file that is not such a table, or that has a label twice.
    """
    path = path or SHIPPED
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    table = _read_object(path)
    seen: dict[str, str] = {}
    for label, name in table.items():
        if not (isinstance(name, str) and name.strip() and name == " ".join(name.split())):
            raise InputError(
                f"{path}: the name of {label!r} must be words with single spaces between, found {name!r:.80}"
            )
        other = seen.setdefault(label.casefold(), label)
        if other != label:
            raise InputError(
                f"{path}: {other!r} and {label!r} are one label, since case does not count: keep one of them"
            )
    if not table:
        raise InputError(f'{path}: has no names; expected pairs of a label and its name, as in {{"PER": "person"}}')
    return TypeNames(table)


def _read_object(path: Path) -> dict[str, Any]:
    if path.suffix not in (".json", ".toml"):
        raise InputError(f"{path}: a table of type names is a .json or .toml file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable {path.suffix[1:].upper()} file: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f'{path}: must be an object {{"PER": "person", ...}}, found {type(value).__name__}')
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        labels = [label for label, _ in pairs]
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return table
