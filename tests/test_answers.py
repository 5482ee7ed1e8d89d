"""Every whole string of an answer is kept, with its place, whatever stands around it."""

import json
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uner_jax.extraction.answers import Answer, parse_answer

FRAGMENTS = [
    "[",
    "]",
    '"',
    "'",
    "\\",
    ",",
    ", ",
    "{",
    "}",
    "(",
    "\n",
    "```json\n",
    "A",
    "a b",
    "1",
    "\\u00e9",
    "é",
    "👩‍🚀",
]
tricky = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)
span = st.text(max_size=8) | tricky
spans = st.lists(span, max_size=5)
garbage = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join) | st.text()
LONG = 100_000


def check_places(answer: str, parsed: Answer) -> None:
    ends = [place for item in parsed.items for place in (item.start, item.end)]
    assert all(left <= right for left, right in pairwise([0, *ends, len(answer)]))
    assert all(item.text.strip() for item in parsed.items)
    for item in parsed.items:
        assert answer[item.start - 1] == answer[item.end] and answer[item.end] in "\"'"


@settings(deadline=None)
@given(spans, st.booleans(), st.sampled_from([None, 2]))
@example(["a] b", 'say "hi"', "C:\\", "\\u0041", "é\u2028", "👩‍🚀", "\x00", "\ud800", "", " \n"], True, None)
def test_round_trip(strings: list[str], ascii_only: bool, indent: int | None):
    answer = json.dumps(strings, ensure_ascii=ascii_only, indent=indent)
    parsed = parse_answer(answer)
    assert [item.text for item in parsed.items] == [string for string in strings if string.strip()]
    assert parsed.complete
    check_places(answer, parsed)
    for item in parsed.items:
        assert json.loads('"' + answer[item.start : item.end] + '"') == item.text


@settings(deadline=None)
@given(spans, st.sampled_from([json.dumps, str]))
@example(["x] y", "]", 'say "x]"', "it's ]", "]\x1f"], str)
def test_cut_anywhere_keeps_the_whole_items(strings: list[str], write: Callable[[list[str]], str]):
    answer = write(strings)
    whole = parse_answer(answer).items
    for end in range(len(answer)):
        cut = parse_answer(answer[:end])
        assert not cut.complete
        assert cut.items == tuple(item for item in whole if item.end < end)


@settings(deadline=None)
@given(
    spans,
    st.sampled_from(["\n", "Sure: ", "```json\n", "As in [note] and [1], ", '{"spans": ', "(see [1, 2]) "]),
    garbage,
)
def test_what_stands_around_the_list_changes_nothing(strings: list[str], before: str, after: str):
    answer = json.dumps(strings)
    plain, framed = parse_answer(answer), parse_answer(before + answer + after)
    assert framed.complete
    shifted = [(item.text, item.start + len(before), item.end + len(before)) for item in plain.items]
    assert [(item.text, item.start, item.end) for item in framed.items] == shifted


@settings(deadline=None)
@given(st.lists(st.text(st.characters(blacklist_categories=["Cc", "Cs"]), min_size=1)))
@example(['King\'s "X"', "it's", 'a "b"', "\\", "\\n", "\xa0x"])
def test_python_lists_are_read(strings: list[str]):
    # repr() writes what cannot be seen as \u and \U escapes, which no model does: str() of what can.
    strings = [string for string in strings if string.isprintable() and string.strip()]
    parsed = parse_answer(str(strings))
    assert [item.text for item in parsed.items] == strings
    assert parsed.complete


@settings(deadline=None, max_examples=400)
@given(garbage)
def test_garbage_never_raises(answer: str):
    check_places(answer, parse_answer(answer))


@pytest.mark.parametrize(
    ("answer", "strings", "complete"),
    [
        # nothing there
        ("", [], False),
        ("none", [], False),
        ("[", [], False),
        ("[]", [], True),
        ("[ \n ]", [], True),
        ('{"a": 1}', [], False),
        ('"A", "B"', [], False),
        # around the list
        ('```json\n["A"]\n```', ["A"], True),
        ('["A"]</s>', ["A"], True),
        ('["A"] ["B"]', ["A"], True),
        ('[] ["B"]', [], True),
        ('[""] ["B"]', [], True),
        ('[Paris] ["A"]', ["A"], True),
        ('[1st try] ["A"]', ["A"], True),
        ('In [1], [2]: ["A"]', ["A"], True),
        # inside strings
        ('["a[1]", "b"]', ["a[1]", "b"], True),
        ('["x] y"]', ["x] y"], True),
        ('["A\n", "B\tC"]', ["A\n", "B\tC"], True),
        (r'["A\"]", "B"]', ['A"]', "B"], True),
        (r'["C:\dir", "\u12", "\x41", "it\'s"]', ["C:\\dir", "\\u12", "A", "it's"], True),
        (r'["\ud83d\ude00"]', ["😀"], True),
        # what is no string
        ('["A", 3, null, true, -1.5e3, "B"]', ["A", "B"], True),
        ('[3, "A"]', ["A"], True),
        ('["a", ["b", "]"], {"c": ["d, e"]}, ("f", 1), "g"]', ["a", "g"], True),
        ('[["a", "b"], ["c"]]', [], True),
        ("[1, 2]", [], True),
        ('["A", unquoted, "B"]', ["A", "B"], True),
        # commas
        ('["A",]', ["A"], True),
        ('["A",, "B" , ]', ["A", "B"], True),
        ('["A"\n"B"]', ["A", "B"], True),
        # cut
        ('["A"', ["A"], False),
        ('["A", ', ["A"], False),
        ('["A", "B', ["A"], False),
        ('["A", "B\\"', ["A"], False),
        ('["A", [1', ["A"], False),
        ("[1, 2", [], False),
        # order and repeats
        ('["B", "A", "B", "", " "]', ["B", "A", "B"], True),
        # quotes of both kinds; a quote inside its own kind closes nothing
        ("['A', \"B's\", 'C']", ["A", "B's", "C"], True),
        (r"['it\'s', 'say \"x\"', 'say " + '"y"' + r"']", ["it's", 'say "x"', 'say "y"'], True),
        ("['King's College', 'B']", ["B"], True),
        ('["The "Boss" Springsteen", "B"]', ["B"], True),
    ],
)
def test_nasty_answers(answer: str, strings: list[str], complete: bool):
    parsed = parse_answer(answer)
    assert ([item.text for item in parsed.items], parsed.complete) == (strings, complete)
    check_places(answer, parsed)


@pytest.mark.parametrize("before", ["", "[", "['A', "])
@pytest.mark.parametrize(
    "hostile",
    [
        *"[\"'\\,{]( 1",
        "[[]",
        "[1]",
        '["',
        "['",
        "\\'",
        '\\"',
        '"\\"',
        "'\\'",
        ",'",
        ",\"'",
        " '",
        "['\\",
        "[ ",
        "[1 ",
        '"x',
        "'x ",
        "\\u",
        "{]",
    ],
)
def test_time_is_linear_for_hostile_answers(before: str, hostile: str):
    answer = before + hostile * (LONG // len(hostile))
    began = time.process_time()
    check_places(answer, parse_answer(answer))
    # A quadratic reader needs minutes for this.
    assert time.process_time() - began < 2
