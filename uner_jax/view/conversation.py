"""Asking a model for entities in a terminal: one text, or one after another with commands between them."""

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

from uner_jax.extraction.extractor import Extractor
from uner_jax.records import InputError
from uner_jax.view.remarks import remarks
from uner_jax.view.terminal import marked, printable, table

PROMPT = "text> "
HELP = """\
Write or paste a text, then Enter: its entities are marked, and listed with scores and offsets.
  /labels                 show the entity types
  /labels person, city    look for these from now on
  /help                   this
  /quit                   leave; so does Ctrl-D"""


class Conversation:
    """Answers texts with their entities, of the types that are wanted at the time.

    With `as_json` an answer is a line of JSON, an extraction record, otherwise a marked text and a table.
    """

    def __init__(self, extractor: Extractor, labels: list[str], as_json: bool = False, coloured: bool = False):
        self._extractor, self._labels = extractor, labels
        self._as_json, self._coloured = as_json, coloured
        self._texts = 0

    def answer(self, text: str) -> None:
        """Print what is found in one text; InputError if it cannot be read, or if no type is wanted."""
        if not text.strip():
            raise InputError("there is no text: give one, or write it to standard input")
        if not self._labels:
            raise InputError("there are no entity types: give --labels person,city")
        (found,) = self._extractor.extract([text], self._labels)
        self._texts += 1
        if self._as_json:
            record: dict[str, Any] = {"id": str(self._texts), "text": text, "labels": self._labels}
            record |= {"entities": found.entities, "chunks": found.chunks, "error": None}
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            self._show(text, found.entities)
        for remark in remarks(found):
            print(f"  {remark}", file=sys.stderr, flush=True)

    def converse(self, read: Callable[[], str]) -> None:
        """Answer what `read` gives, line by line, until /quit or EOFError; a wrong line is said and forgotten."""
        self._say(f"Looking for {self._wanted()}. /help says more.")
        while True:
            try:
                line = read().strip()
                if line == "/quit":
                    return
                self._obey(line)
            except EOFError:
                self._say("")
                return
            except InputError as error:
                self._say(f"error: {error}")

    def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/labels":
            labels = list(dict.fromkeys(label.strip() for label in rest.split(",") if label.strip()))
            self._extractor.check("", labels)  # a label that is too long is refused now, not with every text
            self._labels = labels or self._labels
            self._say(f"Looking for {self._wanted()}.")
        elif command == "/help":
            self._say(HELP)
        elif line.startswith("/") and command[1:].isalpha():
            raise InputError(f"there is no command {printable(command)}; /help lists them")
        elif line:
            self.answer(line)

    def _show(self, text: str, entities: list[Any]) -> None:
        print(marked(text, entities, self._labels, self._coloured))
        print(f"\n{table(entities, self._labels, self._coloured)}\n" if entities else "  no entities", flush=True)

    def _wanted(self) -> str:
        return printable(", ".join(self._labels)) or "nothing yet: name types with /labels person, city"

    def _say(self, words: str) -> None:
        # what is no answer stays out of a file of answers.
        print(words, file=sys.stderr if self._as_json else sys.stdout, flush=True)


def typed_line() -> str:
    """A line that the user types, with editing and history where there are; a paste of several lines is one."""
    with contextlib.suppress(ImportError):
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")
    if sys.stdout.isatty():
        return input(PROMPT)
    print(PROMPT, end="", file=sys.stderr, flush=True)
    return input()


def piped_text() -> str:
    """All of standard input but the newline at its end; InputError if it is no UTF-8."""
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: byte {error.start} is no UTF-8; convert the text first") from error
