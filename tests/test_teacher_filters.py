"""Which pairs are entities of a passage, and why the others are not."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.teacher.filters import find_span, is_english, keep_entities
from uner_jax.records import read_rows

PASSAGE = "Ann Lee met\n  Bob in\u00a0Paris; α-synuclein, 東京 and Zürich are in it, with Ann."


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (("", "city"), "empty"),
        ((" \n\u3000", "city"), "empty"),
        (("Ann", " \t"), "type_empty"),
        (("Ann", "None"), "type_none"),
        (("Ann", " NA"), "type_none"),
        (("Ann", "n/a"), "type_none"),
        (("Ann", "MISC"), "type_none"),
        (("Ann", "else\n"), "type_none"),
        (("Nobody", "none"), "type_none"),
        (("東京", "city"), "not_english"),
        (("Ann", "город"), "not_english"),
        (("Ann", "person \ud83d"), "not_text"),
        (("ann lee", "person"), "not_in_passage"),
        (("AnnLee", "person"), "not_in_passage"),
        (("Ann  Leemet", "person"), "not_in_passage"),
        (("Ann.*Bob", "person"), "not_in_passage"),
    ],
)
def test_every_pair_left_out_has_its_reason(pair, reason):
    kept, left_out = keep_entities([("Paris", "city"), pair], PASSAGE)
    assert kept == [{"text": "Paris", "type": "city"}]
    assert left_out == Counter({reason: 1})


@pytest.mark.parametrize("name", ["nonetheless", "miscellaneous", "Na", "nation", "else-if", "none of these"])
def test_only_the_whole_name_is_no_type(name):
    kept, _ = keep_entities([("Ann", name)], PASSAGE)
    assert len(kept) == (name != "Na")


def test_the_span_is_the_passage_s_own():
    pairs = [
        (" Ann Lee met Bob ", "group  of\npeople"),
        ("in Paris;", "Place"),
        ("α-synuclein", "protein"),
        ("Zürich", "city"),
    ]
    kept, left_out = keep_entities(pairs, PASSAGE)
    assert [(entity["text"], entity["type"]) for entity in kept] == [
        ("Ann Lee met\n  Bob", "group of people"),
        ("in\u00a0Paris;", "Place"),
        ("α-synuclein", "protein"),
        ("Zürich", "city"),
    ]
    assert not left_out


def test_the_same_entity_is_kept_once():
    pairs = [("Ann Lee met", "x y"), ("Ann  Lee met ", "x  y"), ("Ann", "x y"), ("Ann", "X y"), ("Ann", "x\ty")]
    kept, left_out = keep_entities(pairs, PASSAGE)
    assert [(entity["text"], entity["type"]) for entity in kept] == [
        ("Ann Lee met", "x y"),
        ("Ann", "x y"),
        ("Ann", "X y"),
    ]
    assert left_out == {"duplicate": 2}


ENGLISH = [
    "Paris",
    "Bắc Giang",
    "naïve",
    "1961",
    "",
    "—",
    "α-synuclein",
    "λ",
    "Δψ",
    "γδ T cells",
    "ℝ",
    "𝑥",
    "ＡＢ",
    "ﬁre",
]
ENGLISH_TOO = ["Hawaiʻi", "µm", "48″ High", "Østergård", "IL-1β", "Ω", "Tokyo (東京)", "Ångström", "e\u0301te\u0301"]


@pytest.mark.parametrize("text", ENGLISH + ENGLISH_TOO)
def test_english_as_far_as_script_tells(text):
    assert is_english(text)


@pytest.mark.parametrize(
    "text", ["折扣券报告", "Москва", "Αθήνα", "도쿄", "القاهرة", "東京 T", "दिल्ली", "ב", "カナ", "Москва RU"]
)
def test_other_scripts(text):
    assert not is_english(text)


def test_real_answers_pass_but_for_other_scripts(shared_data):
    left_out: Counter[str] = Counter()
    kept = asked = 0
    for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl"):
        values = [turn["value"] for turn in row["conversations"]]
        passage = values[0].removeprefix("Text: ")
        pairs = [
            (span, question)
            for question, answer in zip(values[2::2], values[3::2], strict=True)
            for span in json.loads(answer)
        ]
        entities, reasons = keep_entities(pairs, passage)
        assert [(entity["text"], entity["type"]) for entity in entities] == [
            p for p in dict.fromkeys(pairs) if is_english(p[0])
        ]
        left_out += reasons
        kept, asked = kept + len(entities), asked + len(pairs)
    assert kept == asked - left_out.total() and kept > 1500
    assert left_out["not_english"] == 2 and left_out.keys() <= {"not_english", "duplicate"}


spaces = st.sampled_from([" ", "\n", "  ", "\t", "\u00a0", "\r\n", "\u3000"])
words = st.lists(st.text("ab.*+(\\é", min_size=1, max_size=3), min_size=1, max_size=5)


@given(words, st.data())
def test_white_space_alone_never_loses_a_span(names, data):
    there = "".join(data.draw(spaces) + name for name in names).lstrip()
    asked = "".join(data.draw(spaces) + name for name in names).lstrip()
    found = find_span(asked, f"x {there} y")
    assert found is not None and found.split() == names and found in f"x {there} y"


texts = (
    st.text("ab \n\u00a0é東α/nNoOeEaA", max_size=8) | st.sampled_from(["none", "N/A", "\ud800"]) | st.text(max_size=5)
)


@given(st.lists(st.tuples(texts, texts), max_size=8), st.text("ab \n\u00a0é東αnNoO", max_size=30))
def test_all_pairs_are_kept_or_counted_and_all_that_is_kept_is_in_the_passage(pairs, passage):
    kept, left_out = keep_entities(pairs, passage)
    assert len(kept) + left_out.total() == len(pairs)
    assert all(count > 0 for count in left_out.values())
    assert len({(entity["text"], entity["type"]) for entity in kept}) == len(kept)
    for entity in kept:
        assert entity["text"] in passage and entity["text"].strip() == entity["text"] != ""
        assert " ".join(entity["type"].split()) == entity["type"] != ""
    again = [(entity["text"], entity["type"]) for entity in kept]
    assert keep_entities(again, passage) == (kept, Counter())


def test_white_space_is_no_span():
    assert find_span(" ", "x") is None
