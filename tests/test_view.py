import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import combinations, product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uner_jax.records import InputError, write_rows
from uner_jax.view.layout import lanes, segments
from uner_jax.view.markup import HUES, RULES, colours
from uner_jax.view.page import render_page, write_page

HOSTILE = (
    "<script>alert(1)</script>", '"', "'", "&amp;", "&#60;b>", "]]>", "</style>", "<!--", "--!>",
    "</div></article>", '" onmouseover="alert(1)', "🎓👩‍👩‍👧",
    "é\u0301\u200f", "\r\n", "\r", "\n", "\0", "\ud800", "$title", "\u202e", "\x85\x0c",
)  # fmt: skip
VOID = {"meta", "link", "input"}


class Page(HTMLParser):
    """What a browser would make of the page, as far as the tests ask."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.texts, self.errors, self.spans = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes))
        if attributes.get("class") == "text":
            self.texts.append("")
            self.spans.append({})
        if attributes.get("class") == "error":
            self.errors.append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        classes = [attributes.get("class") for _, attributes in self.open]
        if "error" in classes:
            self.errors[-1] += data
        if "text" not in classes:
            return
        self.texts[-1] += data
        for tag, attributes in self.open:
            if tag == "mark":
                index = int(attributes["data-entity"])
                self.spans[-1][index] = self.spans[-1].get(index, "") + data

    def shape(self):
        return [(tag, sorted(attributes)) for tag, attributes in self.elements]


def entity(text, start, end, label="person", score=0.5):
    return {"start": start, "end": end, "text": text[start:end], "label": label, "score": score}


def record(text, *entities, **more):
    fields = {"id": "a", "text": text, "labels": [], "entities": list(entities), "chunks": 1, "error": None}
    return fields | more


pieces = st.sampled_from(HOSTILE) | st.text(max_size=8)
strings = st.lists(pieces, max_size=6).map("".join)


@st.composite
def records(draw):
    text = draw(strings)
    at = st.integers(0, len(text))
    ends = st.tuples(at, at).map(sorted).filter(lambda span: span[0] < span[1])
    spans = draw(st.lists(ends, max_size=8)) if text else []
    scores = st.floats(0, 1)
    return record(text, *[entity(text, *span, draw(strings), draw(scores)) for span in spans], id=draw(strings))


def shown(text):
    """The text as HTML can hold it: without NUL and without lone surrogates."""
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)


@settings(deadline=None)
@given(st.lists(records(), max_size=4), strings)
@example([record("".join(HOSTILE), entity("".join(HOSTILE), 3, 90, "".join(HOSTILE)))], "".join(HOSTILE))
def test_the_text_of_the_page_is_the_text_of_the_documents(documents, title):
    page = render_page(documents, title)
    parsed = Page(page)
    assert parsed.texts == [shown(document["text"]) for document in documents]
    for document, spans in zip(documents, parsed.spans, strict=True):
        assert spans == {i: shown(found["text"]) for i, found in enumerate(document["entities"])}
    assert render_page(documents, title) == page
    page.encode()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_strings_make_no_element_and_no_attribute(hostile):
    def shape(word):
        text = f"{word} {word}"
        found = [entity(text, 0, len(word), word), entity(text, 0, len(text), f"b{word}")]
        failed = record(None, id=word, entities=[], error=word)
        page = render_page([record(text, *found, id=word, source=word), failed], title=word)
        return Page(page).shape()

    assert shape(hostile) == shape("word")


def test_all_that_is_known_of_an_entity_is_on_its_mark():
    text = "Marie Curie"
    page = Page(render_page([record(text, entity(text, 6, 11, "family name", 0.987))]))
    marks = [attributes for tag, attributes in page.elements if tag == "mark"]
    assert [mark["title"] for mark in marks] == ["family name · 0.99 · 6–11"]
    assert [mark["data-label"] for mark in marks] == ["family name"]
    chips = [attributes for tag, attributes in page.elements if "chip" in (attributes.get("class") or "").split()]
    assert [(chip["aria-pressed"], chip["data-type"]) for chip in chips] == [("true", marks[0]["data-type"])]


def test_crossing_spans_are_ended_once_each():
    text = "Bank of New York Mellon"
    page = Page(render_page([record(text, entity(text, 0, 16), entity(text, 8, 23), entity(text, 8, 16))]))
    last = [dict(a)["data-entity"] for tag, a in page.elements if tag == "mark" and "last" in a["class"].split()]
    assert sorted(last) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("text", "start", "leftwards"),
    [
        ("in Cairo", 3, False),
        ("في القاهرة", 3, True),
        ("في Cairo", 3, False),
        ("عام 1891", 4, True),
        ("في\n1891", 3, False),
    ],
)
def test_a_label_stands_where_its_text_runs_to(text, start, leftwards):
    page = Page(render_page([record(text, entity(text, start, len(text)))]))
    (mark,) = [attributes for tag, attributes in page.elements if tag == "mark"]
    assert ("rtl" in mark["class"].split()) is leftwards


def test_the_page_asks_for_nothing():
    page = render_page([record("http://example.org/", error=None)])
    elements = Page(page).elements
    policy = next(a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert {a["href"] for _, a in elements if "href" in a} == {"data:,", "#d1"}
    assert not [a for _, a in elements if "src" in a]
    assert "url(" not in page and "@import" not in page


@settings(deadline=None)
@given(records())
def test_a_lane_holds_no_overlap_and_inner_spans_lie_above(document):
    found = document["entities"]
    lane = lanes(found)
    for i, j in combinations(range(len(found)), 2):
        inner, outer = sorted((i, j), key=lambda k: (found[k]["end"] - found[k]["start"], k))
        if found[i]["start"] < found[j]["end"] and found[j]["start"] < found[i]["end"]:
            assert lane[i] != lane[j]
            if found[outer]["start"] <= found[inner]["start"] and found[inner]["end"] <= found[outer]["end"]:
                assert lane[inner] < lane[outer]


@settings(deadline=None)
@given(records())
def test_segments_tile_the_text_and_know_all_that_covers_them(document):
    found = document["entities"]
    pieces = list(segments(document["text"], found))
    assert "".join(document["text"][start:end] for start, end, _ in pieces) == document["text"]
    for start, end, covering in pieces:
        assert sorted(covering) == [i for i, e in enumerate(found) if e["start"] < end and start < e["end"]]


def test_types_have_a_colour_each_that_does_not_depend_on_their_order():
    labels = [f"type {n}" for n in range(HUES * RULES)]
    assert len(set(colours(labels).values())) == len(labels)
    assert colours(labels) == colours(labels[::-1])
    assert all(colours([label])[label].endswith(" r0") for label in labels)
    assert set(colours([*labels, "\ud800"])) == {*labels, "\ud800"}


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_labels_can_be_read_on_every_tint(scheme):
    style = files("uner_jax.view").joinpath("page.css").read_text(encoding="utf-8")
    pairs = dict(re.findall(r"(--card|\.c\d+)[ {:]+(?:--ink: )?light-dark\((#\w+, #\w+)\)", style))
    card, *inks = (rgb(pairs[name].split(", ")[scheme]) for name in ["--card", *(f".c{n}" for n in range(HUES))])
    share = [int(found) / 100 for found in re.findall(r"var\(--ink\) (\d+)%", style)][scheme]
    for outer, ink in product(inks, inks):
        tint = mix(ink, mix(outer, card, share), share)
        assert contrast(ink, tint) >= 4.5


def rgb(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def mix(over, under, share):
    return [a * share + b * (1 - share) for a, b in zip(over, under, strict=True)]


def contrast(a, b):
    """The contrast ratio of WCAG 2."""

    def luminance(colour):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_an_error_is_shown_with_or_without_its_text():
    lost = record(None, id="lost", entities=None, error="too long: <2048>")
    page = Page(render_page([lost, record("half", error="stopped"), record("whole")]))
    assert page.errors == ["Error too long: <2048>", "Error stopped"]
    assert page.texts == ["half", "whole"]


def test_no_records_make_a_page():
    assert "There are no documents." in render_page(iter([]))


@pytest.mark.parametrize("name", ["found.jsonl", "found.jsonl.gz", "found.parquet"])
def test_a_file_of_records_becomes_a_page(tmp_path, name):
    documents = [record("Ada", entity("Ada", 0, 3)), record(None, entities=[], error="too long")]
    write_rows(tmp_path / name, documents)
    assert write_page(tmp_path / name, tmp_path / "page.html") == 2
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == render_page(documents, title=name)


def test_a_directory_of_parts_becomes_a_page_under_its_name(tmp_path):
    documents = [record(name, entity(name, 0, 3)) for name in ("Ada", "Bob", "Eve")]
    write_rows(tmp_path / "entities" / "part-00000-of-00001-00001.jsonl", documents[2:])
    write_rows(tmp_path / "entities" / "part-00000-of-00001-00000.jsonl", documents[:2])
    (tmp_path / "entities" / "manifest-00000-of-00001.json").write_text("{}")
    assert write_page(tmp_path / "entities", tmp_path / "page.html") == 3
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == render_page(documents, title="entities")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7}, '"id" must be a string, found 7'),
        ({"source": 7}, '"source" must be a string'),
        ({"text": None}, '"text" must be a string, found None'),
        ({"error": True}, '"error" must be a string or null'),
        ({"entities": None}, '"entities" must be a list'),
        ({"entities": ["Ada"]}, "entity 0: must be a JSON object"),
        ({"entities": [entity("Bob", 0, 3)]}, "the text has 'Ada' there, the entity 'Bob'"),
        ({"entities": [entity("Ada", 0, 3) | {"end": 4}]}, "0 to 4 is no span in a text of 3 code points"),
        ({"entities": [entity("Ada", 1, 1)]}, "1 to 1 is no span"),
        ({"entities": [entity("Ada", 0, 3) | {"start": -3}]}, "-3 to 3 is no span"),
        ({"entities": [entity("Ada", 0, 3) | {"start": False}]}, '"start" must be an integer'),
        ({"entities": [entity("Ada", 0, 3, label=None)]}, '"label" must be a string'),
        ({"entities": [entity("Ada", 0, 3, score=1.5)]}, '"score" must be from 0 to 1, found 1.5'),
        ({"entities": [entity("Ada", 0, 3, score=float("nan"))]}, '"score" must be from 0 to 1'),
        ({"entities": [entity("Ada", 0, 3, score="0.5")]}, '"score" must be a number'),
    ],
)
def test_a_wrong_record_is_named_with_its_line_and_no_page_is_written(tmp_path, change, message):
    source = tmp_path / "found.jsonl"
    write_rows(source, [record("Ada"), record("Ada") | change])
    with pytest.raises(InputError, match=re.escape(message)) as error:
        write_page(source, tmp_path / "page.html")
    assert str(error.value).startswith(f"{source}, line 2: ")
    assert [path.name for path in tmp_path.iterdir()] == ["found.jsonl"]
    with pytest.raises(InputError, match=r"^record 1: "):
        render_page([record("Ada") | change])


def test_a_row_that_is_no_record_is_named(tmp_path):
    (tmp_path / "found.jsonl").write_text("[1]\n", encoding="utf-8")
    with pytest.raises(InputError, match="item 1: an extraction record must be a JSON object, found 1"):
        write_page(tmp_path / "found.jsonl", tmp_path / "page.html")
