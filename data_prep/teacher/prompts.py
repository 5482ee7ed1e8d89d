"""What the teacher is asked: the published prompts, their structured twins, and a prompt of the user's own."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uner_jax.records import InputError

Variant = Literal["type", "definition"]

# arXiv 2308.03279, tables 1 and 2, to the letter, the unbalanced full stops included.
SYSTEM = "You are a helpful information extraction system."
PUBLISHED: dict[Variant, str] = {
    "type": (
        "Given a passage, your task is to extract all entities and identify their entity types. The output should be "
        'in a list of tuples of the following format: [("entity 1", "type of entity 1"), ... ].\n'
        "\n"
        "Passage: {input_passage}"
    ),
    "definition": (
        "Given a paragraph, your task is to extract all entities and concepts, and define their type using a short "
        "sentence. The output should be in the following format: "
        '[("entity", "definition of entity type in a short sentence"), ... ]\n'
        "\n"
        "Paragraph: {sentence}"
    ),
}
# The same tasks; only the form of the output is another.
STRUCTURED: dict[Variant, str] = {
    "type": (
        "Given a passage, your task is to extract all entities and identify their entity types. The output should be "
        'a JSON object of the following format: {"entities": [{"text": "entity 1", "type": "type of entity 1"}, ... ]}.'
        " Copy each entity from the passage as it is written there.\n"
        "\n"
        "Passage: {input_passage}"
    ),
    "definition": (
        "Given a paragraph, your task is to extract all entities and concepts, and define their type using a short "
        "sentence. The output should be a JSON object of the following format: "
        '{"entities": [{"text": "entity", "type": "definition of entity type in a short sentence"}, ... ]}.'
        " Copy each entity from the paragraph as it is written there.\n"
        "\n"
        "Paragraph: {sentence}"
    ),
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "entities": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"text": {"type": "string"}, "type": {"type": "string"}},
                "required": ["text", "type"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["entities"],
    "additionalProperties": False,
}

# The second and third are the published names.
_PLACE = re.compile(r"\{(?:passage|input_passage|sentence)\}")
_RULE = re.compile(r"^---[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """A prompt with exactly one place for the passage, in its user message.

    `name` is "type", "definition" or the name of the user's file; `schema` is set in structured mode.
    """

    name: str
    system: str | None
    user: str
    schema: dict[str, Any] | None = None

    def messages(self, passage: str) -> list[dict[str, str]]:
        """The messages that ask about a passage, which goes in as it is: its braces and backslashes mean nothing."""
        before, after = _PLACE.split(self.user, maxsplit=1)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": f"{before}{passage}{after}"}]

    def response_format(self) -> dict[str, Any] | None:
        """The `response_format` of the request in structured mode, else None."""
        if self.schema is None:
            return None
        return {"type": "json_schema", "json_schema": {"name": "entities", "strict": True, "schema": self.schema}}


def load_prompt(variant: Variant, path: Path | None = None, structured: bool = False) -> Prompt:
    """The published prompt of a variant, or the one in the file `path`.

    The file is UTF-8 text with one `{passage}` (or `{input_passage}`, `{sentence}`). A line `---` ends the
    system message; without one there is none, and later lines `---` belong to the prompt. Empty lines around
    either part are dropped. With `structured` the answer is bound to a JSON schema: the published prompts then
    ask for it in their words, and the user's own should.
    Raises InputError for a file that is missing, not UTF-8, or has not exactly one place for the passage.
    """
    schema = SCHEMA if structured else None
    if path is None:
        return Prompt(variant, SYSTEM, (STRUCTURED if structured else PUBLISHED)[variant], schema)
    system, user = _parts(_read(path))
    _check_places(path, system, user)
    return Prompt(path.name, system, user, schema)


def _read(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file; --prompt takes a text file with {{passage}} in it")
    try:
        # universal newlines, and no byte order mark: an editor's habits do not change what is asked.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); save the prompt as UTF-8") from error


def _parts(text: str) -> tuple[str | None, str]:
    parts = _RULE.split(text, maxsplit=1)
    *system, user = (part.strip("\n") for part in parts)
    return (system[0] or None if system else None), user


def _check_places(path: Path, system: str | None, user: str) -> None:
    if misplaced := _PLACE.search(system or ""):
        raise InputError(
            f"{path}: {misplaced[0]} stands in the system message, above the line ---; put it below. A prompt without "
            "a system message that has such lines begins with one"
        )
    places = _PLACE.findall(user)
    if len(places) != 1:
        found = f"{len(places)} ({', '.join(places)})" if places else "none"
        raise InputError(
            f"{path}: the prompt needs exactly one place for the passage, {{passage}} (or {{input_passage}}, "
            f"{{sentence}}), found {found}"
        )
