"""Entities in a terminal: what is marked is the text, nothing in it is obeyed, and a conversation goes on."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CONFIG, blank_model, random_model

from uner_jax.extraction.engine import Engine, Generation
from uner_jax.extraction.extractor import Extractor
from uner_jax.extraction.options import Options
from uner_jax.records import InputError
from uner_jax.view.conversation import Conversation, piped_text
from uner_jax.view.markup import HUES, RULES
from uner_jax.view.terminal import BACKGROUNDS, STYLES, marked, printable, shows_colours, table, width
from uner_jax.weights.hf import write_hf

ROOT = Path(__file__).parent.parent
STYLE = re.compile(r"\x1b\[[0-9;]*m")
KNOWN = {"person": ["Ada"], "city": ["London"], "school": ["University of London"]}


def entity(text, start, end, label="person", score=0.5):
    return {"start": start, "end": end, "text": text[start:end], "label": label, "score": score}


@st.composite
def documents(draw):
    text = draw(st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b[]|\n\t"), min_size=1, max_size=30))
    at = st.integers(0, len(text))
    spans = draw(st.lists(st.tuples(at, at).map(sorted).filter(lambda span: span[0] < span[1]), max_size=6))
    return text, [entity(text, *span, draw(st.sampled_from(["a", "b", "\x1b[2J"]))) for span in spans]


LABELS = ["a", "b", "\x1b[2J"]


@settings(deadline=None)
@given(documents())
def test_a_marked_text_without_its_marks_is_the_text(document):
    text, entities = document
    plain = marked(text, entities, LABELS, False)
    assert plain.count("[") == text.count("[") + len(entities) + sum(e["label"] == "\x1b[2J" for e in entities)
    assert "\x1b" not in plain
    coloured = marked(text, entities, LABELS, True)
    assert "\x1b" not in STYLE.sub("", coloured)
    # colours begin and end within a line.
    for line in coloured.split("\n"):
        styles = STYLE.findall(line)
        assert styles[1::2] == ["\x1b[0m"] * (len(styles) // 2) and "\x1b[0m" not in styles[::2]
    labels = re.compile(r"\x1b\[[0-9;]*;1m [^\x1b]*\x1b\[0m")
    assert STYLE.sub("", labels.sub("", coloured)) == printable(text)


def test_nested_and_crossing_entities_are_each_marked():
    text = "Bank of New York Mellon"
    entities = [entity(text, 0, 16, "b"), entity(text, 8, 23, "a"), entity(text, 8, 16, "c")]
    assert marked(text, entities, ["a", "b", "c"], False) == "[Bank of [[New York|c]|b] Mellon|a]"
    nested = [entity("University of London", 0, 20, "b"), entity("University of London", 14, 20, "a")]
    outer, inner = STYLE.findall(marked("University of London", nested, ["a", "b"], True))[0:4:2]
    assert outer != inner


def test_a_table_is_in_line_in_wide_scripts_too():
    text = "林晓雯 in 南海 and Zoe\u0301"
    found = [entity(text, 0, 3, "人名"), entity(text, 7, 9, "place"), entity(text, 14, 18, "person", 1.0)]
    lines = table(found, ["人名", "place", "person"], False).splitlines()
    assert [line.split() for line in lines] == [
        ["type", "score", "offsets", "text"],
        ["人名", "0.50", "0–3", "林晓雯"],
        ["place", "0.50", "7–9", "南海"],
        ["person", "1.00", "14–18", "Zoe\u0301"],
    ]
    assert len({width(line[: re.search(r"\d–\d+|offsets", line).end()]) for line in lines}) == 1
    assert STYLE.sub("", table(found, ["人名", "place", "person"], True)).splitlines() == lines


def test_a_long_or_broken_entity_takes_one_line():
    text = "a\nb\x1b[31m" + "c" * 100
    (_, line) = table([entity(text, 0, len(text))], ["person"], False).splitlines()
    assert "a b\ufffd[31mccc" in line and line.endswith("c…") and len(line) < 100


def test_every_colour_of_the_page_has_one_here():
    assert (len(BACKGROUNDS), len(STYLES)) == (HUES, RULES) == (len(set(BACKGROUNDS)), len(set(STYLES)))


# ---- the conversation


@pytest.fixture
def extractor(tok512, monkeypatch):
    """An extractor whose engine knows the names of KNOWN: it lists those that stand in the passage."""

    def answers(self, asked):
        for place, request in enumerate(asked):
            passage, question = tok512.decode(request.context), tok512.decode(request.question)
            (label,) = re.findall(r"What describes (.*) in the text", question)
            listed = [name for name in KNOWN.get(label, ["absent"]) if name in passage or name == "absent"]
            ids = tuple(tok512.encode(json.dumps(listed)))
            yield place, Generation(ids, (-0.01,) * len(ids), True)

    monkeypatch.setattr(Engine, "generate", answers)
    # no grounding while it writes: what is not in the text comes as it is, and must be counted.
    return Extractor(blank_model(CONFIG), tok512, options=Options(grounding="none"))


def lines(*typed):
    """What a user types, and then the end of the input."""
    left = iter(typed)

    def read():
        for line in left:
            return line
        raise EOFError

    return read


def test_labels_change_and_a_wrong_line_is_forgotten(extractor, capsys):
    conversation = Conversation(extractor, ["person"])
    text = "Ada of the University of London"
    wrong = ["/labels " + "x" * 2000, "/nonsense", ""]
    conversation.converse(lines(text, "/labels city , school,city", text, *wrong, "/labels", "/help", "/quit", text))
    out, error = capsys.readouterr()
    assert error == ""
    assert out.count("[Ada|person] of the University of London\n") == 1
    assert out.count("Ada of the [University of [London|city]|school]\n") == 1
    assert out.count("Looking for city, school.\n") == 2 and "\nerror: the label 'xxxx" in out
    assert "error: there is no command /nonsense; /help lists them" in out and "/labels person, city" in out


def test_json_is_all_that_goes_to_the_output(extractor, capsys):
    conversation = Conversation(extractor, ["person", "other"], as_json=True)
    conversation.converse(lines("Ada", "/labels city", "/etc/hosts of London", "/x"))
    out, error = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    assert [list(record) for record in records] == [["id", "text", "labels", "entities", "chunks", "error"]] * 2
    assert [record["labels"] for record in records] == [["person", "other"], ["city"]]
    assert records[0]["entities"] == [entity("Ada", 0, 3) | {"score": records[0]["entities"][0]["score"]}]
    assert (records[1]["id"], records[1]["text"]) == ("2", "/etc/hosts of London")
    assert records[1]["entities"][0]["start"] == 14
    assert "left out 1 answer of the model" in error and "no command /x" in error


def test_nothing_to_do_is_an_error(extractor):
    for text, labels, message in ((" \n", ["a"], "there is no text"), ("Ada", [], "there are no entity types")):
        with pytest.raises(InputError, match=message):
            Conversation(extractor, labels).answer(text)


def test_input_that_is_no_text_is_named(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    with pytest.raises(InputError, match="standard input: byte 2 is no UTF-8"):
        piped_text()


# ---- the command


@pytest.fixture(scope="module")
def command(tok512, tmp_path_factory):
    """`uner ask` with a small model that decodes in earnest; what it writes is noise."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    write_hf(random_model(), tok512, directory)
    return [sys.executable, "-m", "uner_jax.cli", "ask", "--model", str(directory), "--max-new-tokens", "2"]


def run(command, typed=""):
    return subprocess.run(command, input=typed, capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_piped_text_becomes_a_record(command):
    ended = run([*command, "--labels", "person,city", "--json"], "Ada — in\nLondon\n")
    assert ended.returncode == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert (record["text"], record["labels"], record["chunks"]) == ("Ada — in\nLondon", ["person", "city"], 1)


def test_a_text_that_is_given_is_shown_without_colour_in_a_pipe(command):
    ended = run([*command, "Ada \x1b[2J"])
    assert ended.returncode == 0, ended.stderr
    assert "Ada" in ended.stdout and "\x1b" not in ended.stdout


def test_an_empty_input_is_one_message(command):
    ended = run(command)
    assert (ended.returncode, ended.stdout) == (1, "") and ended.stderr.startswith("error: there is no text")


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command, **environment):
        master, slave = pty.openpty()
        settings = {**os.environ, "TERM": "xterm-256color", **environment}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=settings, start_new_session=True
        )
        os.close(slave)
        self._master, self.shown = master, ""

    def read_to(self, words):
        """What is shown up to and with these words."""
        while words not in self.shown:
            self.shown += os.read(self._master, 4096).decode(errors="replace")
        before, self.shown = self.shown.split(words, 1)
        return before

    def type(self, words):
        os.write(self._master, words.encode())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def test_a_terminal_gets_a_conversation(command):
    with Terminal([*command, "--labels", "person"]) as terminal:
        terminal.read_to("Looking for person.")
        terminal.read_to("text> ")
        terminal.type("/labels city, \x16\x1bschool\n")
        terminal.read_to("Looking for city, \ufffdschool.")
        terminal.read_to("text> ")
        # as a terminal sends a paste: its lines are one text.
        terminal.type("\x1b[200~Ada went\nto London.\x1b[201~\n")
        shown = terminal.read_to("text> ")
        assert "Ada went" in shown and "to London." in shown
        assert shown.count("no entities") + shown.count("offsets") == 1
        terminal.type("/quit\n")
        assert terminal.process.wait(60) == 0


WANTED = {"TERM": "xterm"}


@pytest.mark.parametrize(
    ("is_terminal", "environment", "coloured"),
    [
        (True, WANTED, True),
        (False, WANTED, False),
        (True, WANTED | {"NO_COLOR": "1"}, False),
        (True, WANTED | {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {}, True),
    ],
)
def test_colours_are_for_terminals_that_want_them(is_terminal, environment, coloured):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    assert shows_colours(stream, environment) is coloured
