"""The page of entities as a reader has it: what is drawn, what the filters hide, and that a text is only a text.

Runs in an environment of its own: make test-browser.
"""

import re

import pytest

from uner_jax.records import write_rows
from uner_jax.view.page import write_page

HOSTILE = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"', "'", "&amp;", "]]>", "</style>", "<!--", "--!>",
    "</div></article></main>", '" onmouseover="alert(1)', "🎓👩‍👩‍👧", "e\u0301", "عام 1891 في القاهرة",
    "\u202eabc\u202c",
    "\r\n", "\r", "\n", "\0", "\ud800", "$title", "${1}", "\x85\x0c", "javascript:alert(1)",
)  # fmt: skip
TEXT = "Marie Curie met the Bank of England in London."


def entity(text, part, label, score):
    start = text.index(part)
    return {"start": start, "end": start + len(part), "text": part, "label": label, "score": score}


def record(text, *entities, **more):
    fields = {"id": "a", "text": text, "labels": [], "entities": list(entities), "chunks": 1, "error": None}
    return fields | more


DOCUMENTS = [
    record(
        TEXT,
        entity(TEXT, "Marie Curie", "person", 0.98),
        entity(TEXT, "Bank of England", "organization", 0.8),
        entity(TEXT, "England", "country", 0.4),
        entity(TEXT, "London", "city", 0.9),
        id="curie",
    ),
    record("Ada Lovelace", entity("Ada Lovelace", "Ada Lovelace", "person", 0.5), id="ada"),
    record(None, id="lost", entities=[], error="too long"),
]


@pytest.fixture
def show(tab, tmp_path):
    """Shows records in the tab, from a directory of parts; anything that the page asks for is refused and listed."""
    asked = []

    def run(records):
        write_rows(tmp_path / "entities" / "part-00000-of-00001-00000.jsonl", records[:2])
        write_rows(tmp_path / "entities" / "part-00000-of-00001-00001.jsonl", records[2:])
        write_page(tmp_path / "entities", tmp_path / "page.html")
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((tmp_path / "page.html").as_uri())
        return tab

    yield run
    assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "page.html").as_uri()]


def labels_drawn(tab):
    """The labels that are painted now, in the order in which they are opened."""
    drawn = """() => [...document.querySelectorAll("mark.last")]
        .filter((mark) => mark.checkVisibility() && getComputedStyle(mark, "::after").content !== "none")
        .map((mark) => mark.dataset.label)"""
    return tab.evaluate(drawn)


def slide(tab, score):
    tab.locator("#score").fill(str(score))


def test_entities_are_drawn_with_a_colour_for_each_type(show):
    tab = show(DOCUMENTS)
    assert labels_drawn(tab) == ["person", "organization", "country", "city", "person"]
    ink = 'mark => getComputedStyle(mark).getPropertyValue("border-bottom-color")'
    colours = {mark.get_attribute("data-label"): mark.evaluate(ink) for mark in tab.locator("mark").all()}
    assert len(set(colours.values())) == len(colours) == 4
    assert tab.locator(".facts").inner_text().split() == ["3", "documents", "5", "entities", "4", "types", "1", "error"]


def test_a_nested_entity_lies_in_the_one_around_it(show):
    tab = show(DOCUMENTS)
    inner = tab.locator("mark[data-label=country]").bounding_box()
    around = tab.locator("mark[data-label=organization]").last.bounding_box()
    assert around["x"] <= inner["x"] and inner["x"] + inner["width"] < around["x"] + around["width"]
    assert inner["y"] + inner["height"] < around["y"] + around["height"]


def test_the_slider_hides_entities_under_a_score_and_the_counts_follow(show):
    tab = show(DOCUMENTS)
    slide(tab, 0.6)
    assert labels_drawn(tab) == ["person", "organization", "city"]
    assert tab.locator("#shown").inner_text() == "Showing 3 of 5 entities in 3 of 3 documents"
    numbers = {chip.locator(".name").inner_text(): chip.locator(".number").inner_text() for chip in chips(tab)}
    assert numbers == {"person": "1", "organization": "1", "city": "1", "country": "0"}
    slide(tab, 0)
    assert len(labels_drawn(tab)) == 5


def chips(tab):
    return tab.locator(".chip").all()


def test_types_are_hidden_and_shown_by_their_buttons(show):
    tab = show(DOCUMENTS)
    tab.get_by_role("button", name="person").click()
    assert labels_drawn(tab) == ["organization", "country", "city"]
    tab.get_by_role("button", name="hide all").click()
    assert labels_drawn(tab) == []
    tab.get_by_role("button", name="city").press("Enter")
    assert labels_drawn(tab) == ["city"]
    tab.get_by_role("button", name="show all").click()
    assert len(labels_drawn(tab)) == 5


def test_documents_are_found_by_a_part_of_their_text_or_id(show):
    tab = show(DOCUMENTS)
    for words, ids in (("LOVELACE", ["ada"]), ("cur", ["curie"]), ("too long", ["lost"]), ("nowhere", [])):
        tab.get_by_label("Find documents").fill(words)
        assert tab.locator("article:visible .id").all_inner_texts() == ids


def test_scores_stand_beside_the_labels_until_they_are_not_wanted(show):
    tab = show(DOCUMENTS)
    written = """() => getComputedStyle(document.querySelector("mark[data-label=city]"), "::after").content"""
    assert "0.90" in tab.evaluate(written)
    tab.get_by_label("Scores beside the labels").uncheck()
    assert "0.90" not in tab.evaluate(written) and "city" in tab.evaluate(written)


def test_pointing_tells_of_all_entities_that_are_shown_there(show):
    tab = show(DOCUMENTS)
    tab.locator("mark[data-label=country]").hover()
    assert tab.locator("#tip").inner_text().split() == ["country", "0.40", "28–35", "organization", "0.80", "20–35"]
    slide(tab, 0.6)
    tab.locator("#filter").hover()
    tab.locator("mark[data-label=country]").hover()
    assert tab.locator("#tip").inner_text().split() == ["organization", "0.80", "20–35"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_string_is_shown_as_text(hostile, show):
    text = f"{hostile} & {hostile}"
    whole = entity(text, text, hostile, 0.7)
    failed = record(None, id=hostile, entities=[], error=hostile)
    tab = show([record(text, whole, entity(text, hostile, f"b{hostile}", 0.5), id=hostile, source=hostile), failed])
    seen = re.sub("[\0\ud800-\udfff]", "\ufffd", text)
    assert tab.locator(".text").evaluate("element => element.textContent") == seen
    assert tab.locator(".text").evaluate("element => element.querySelectorAll(':not(mark)').length") == 0
    assert tab.locator("script").count() == 1 and tab.locator("img, iframe").count() == 0
    assert tab.locator("article").count() == 2 and len(chips(tab)) == 2
    tab.locator("mark").first.hover()
    chips(tab)[0].click()
    # the counts are written by the script: it ran to its end.
    assert tab.locator("#shown").inner_text() == "Showing 1 of 2 entities in 2 of 2 documents"


def test_a_reader_copies_the_text_alone(show):
    tab = show(DOCUMENTS)
    tab.evaluate("getSelection().selectAllChildren(document.querySelector('.text'))")
    assert tab.evaluate("String(getSelection())") == TEXT


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_page_is_wider_than_its_window(width, show):
    long = "Donaudampfschifffahrtsgesellschaftskapitän" * 5
    tab = show([*DOCUMENTS, record(long, entity(long, long, "x" * 200, 0.5), id="y" * 300)])
    tab.set_viewport_size({"width": width, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
