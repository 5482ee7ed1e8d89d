"""The published prompts to the letter, their structured twins, and a prompt from a file."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.teacher.answers import parse_answer
from data_prep.teacher.prompts import load_prompt
from uner_jax.records import InputError

SYSTEM = {"role": "system", "content": "You are a helpful information extraction system."}
TYPE = """Given a passage, your task is to extract all entities and identify their entity types. \
The output should be in a list of tuples of the following format: \
[("entity 1", "type of entity 1"), ... ].

Passage: """
DEFINITION = """Given a paragraph, your task is to extract all entities and concepts, and define their type using a \
short sentence. The output should be in the following format: \
[("entity", "definition of entity type in a short sentence"), ... ]

Paragraph: """
HOSTILE = "{input_passage} {sentence} {passage} {0} {} %s $x \\1 \\g<0>\n---\n"


@pytest.mark.parametrize(("variant", "words"), [("type", TYPE), ("definition", DEFINITION)])
def test_the_published_prompts_are_sent_to_the_letter(variant, words):
    prompt = load_prompt(variant)
    assert (prompt.name, prompt.schema, prompt.response_format()) == (variant, None, None)
    assert prompt.messages("Ann is here.") == [SYSTEM, {"role": "user", "content": words + "Ann is here."}]


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("variant", ["type", "definition"])
@given(st.text() | st.just(HOSTILE))
def test_a_passage_goes_in_as_it_is(variant, structured, passage):
    prompt = load_prompt(variant, structured=structured)
    *_, user = prompt.messages(passage)
    assert user["content"].endswith(passage)
    assert user["content"].removesuffix(passage) + "x" == prompt.messages("x")[-1]["content"]


@pytest.mark.parametrize("variant", ["type", "definition"])
def test_structured_mode_states_the_task_and_binds_the_form(variant):
    plain, structured = load_prompt(variant), load_prompt(variant, structured=True)
    task = plain.user.split(" The output")[0]
    assert structured.user.startswith(task) and "JSON object" in structured.user and "tuples" not in structured.user
    assert structured.user.splitlines()[-1] == plain.user.splitlines()[-1]
    assert structured.system == plain.system
    wanted = structured.response_format()
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["name"] == "entities" and wanted["json_schema"]["strict"] is True
    assert_strict(wanted["json_schema"]["schema"])
    assert json.loads(json.dumps(wanted)) == wanted


def assert_strict(schema: dict) -> None:
    """What servers ask of a strict schema: every object is closed, and requires all that it has."""
    if schema["type"] == "object":
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])
        for inner in schema["properties"].values():
            assert_strict(inner)
    elif schema["type"] == "array":
        assert_strict(schema["items"])
    else:
        assert schema == {"type": "string"}


@pytest.mark.parametrize("variant", ["type", "definition"])
@pytest.mark.parametrize("structured", [False, True])
def test_an_answer_in_the_form_that_is_asked_for_is_read(variant, structured):
    words = load_prompt(variant, structured=structured).user
    example = words[words.index("{" if structured else "[") : words.index(", ... ]")]
    assert len(parse_answer(example + ("]}" if structured else "]")).pairs) == 1


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("Find names in {passage}!\n", [("user", "Find names in X!")]),
        ("{input_passage}", [("user", "X")]),
        ("Be brief.\n---\n\nText: {sentence}\n", [("system", "Be brief."), ("user", "Text: X")]),
        (
            "One\ntwo\n--- \nA {other} {passage} {{}}\n---\nB",
            [("system", "One\ntwo"), ("user", "A {other} X {{}}\n---\nB")],
        ),
        ("---\nA\n---\n{passage}", [("user", "A\n---\nX")]),
        ("\ufeffA\r\n---\r\nÉ{passage}\r\n", [("system", "A"), ("user", "ÉX")]),
        ("A --- b ---- {passage}\n----", [("user", "A --- b ---- X\n----")]),
    ],
)
@pytest.mark.parametrize("structured", [False, True])
def test_a_prompt_from_a_file(tmp_path, content, messages, structured):
    path = tmp_path / "mine.txt"
    path.write_bytes(content.encode())
    prompt = load_prompt("type", path, structured)
    assert prompt.name == "mine.txt"
    assert prompt.messages("X") == [{"role": role, "content": text} for role, text in messages]
    assert (prompt.response_format() is not None) == structured


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "exactly one place for the passage, {passage} (or {input_passage}, {sentence}), found none"),
        (b"Find {Passage} { passage } {{}}", "found none"),
        (b"{passage} and {sentence}", "found 2 ({passage}, {sentence})"),
        (b"{passage}\n---\nFind.", "{passage} stands in the system message, above the line ---"),
        ("caf\u00e9 {passage}".encode("latin-1"), "not UTF-8 text"),
    ],
)
def test_a_prompt_that_cannot_be_sent_is_one_clear_message(tmp_path, content, said):
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_prompt("type", path)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)


def test_a_directory_is_no_prompt(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        load_prompt("type", tmp_path)
