"""The demo's page in Chromium, with a server and an extractor behind it whose model knows a few names."""

import json
import re
import threading

import pytest
from playwright.sync_api import expect, sync_playwright
from tiny_model import CONFIG, blank_model

from uner_jax.extraction.engine import Engine, Generation
from uner_jax.extraction.extractor import Extractor
from uner_jax.tokenizer import load_tokenizer
from uner_jax.view.demo.question import Limits
from uner_jax.view.demo.server import DemoServer

HOSTILE = "<img src=x onerror=alert(1)>"
TEXT = f"Ada of the University of London wrote {HOSTILE} in القاهرة.\n\nNext: Bob."
KNOWN = {
    "person": ["Ada", "Bob", "Amara Okafor"],
    "school": ["University of London", "of London wrote"],
    "place": ["London", "القاهرة"],
    HOSTILE: [HOSTILE],
}


@pytest.fixture(scope="module")
def go():
    """While it is clear, the model answers nothing."""
    event = threading.Event()
    event.set()
    return event


@pytest.fixture(scope="module")
def demo(shared_data, go):
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")

    def answers(self, asked):
        assert go.wait(60)
        for place, request in enumerate(asked):
            passage, question = tokenizer.decode(request.context), tokenizer.decode(request.question)
            (label,) = re.findall(r"What describes (.*) in the text", question)
            names = json.dumps([name for name in KNOWN.get(label, ()) if name in passage])
            ids = tuple(tokenizer.encode(names))
            yield place, Generation(ids, (-0.1,) * len(ids), True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "generate", answers)
        with DemoServer("127.0.0.1", 0, "a model", Limits(characters=1000, types=8, waiting=1)) as server:
            server.extractor = Extractor(blank_model(CONFIG), tokenizer)
            thread = threading.Thread(target=server.serve_forever, args=[0.01])
            thread.start()
            yield server
            go.set()
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=["wide", "narrow"])
def page(request, browser, demo):
    """The page, wide and light or narrow and dark; nothing may go wrong in it, nor leave for another address."""
    scheme, width = request.param
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    wrong = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda sent: sent.url.startswith((demo.url, "data:")) or wrong.append(sent.url))
    opened.goto(demo.url)
    yield opened
    # nothing is cut off at the side, whatever was shown.
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    opened.close()
    assert wrong == []


def types(page):
    return [name.strip() for name in page.locator("#types .name").all_inner_texts()]


def ask(page, text=TEXT, labels="person, school,place"):
    page.get_by_role("button", name="remove all").click()
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_label("Entity types").fill(labels + ",")
    page.get_by_role("button", name="Find entities").click()
    expect(page.locator("#find")).to_be_enabled()
    expect(page.locator("#result article")).to_be_visible()


def marked(page):
    """The words of each mark, a mark's parts put together."""
    parts = page.locator("#result mark").evaluate_all("all => all.map(m => [m.dataset.entity, m.textContent])")
    words = {}
    for entity, part in parts:
        words[entity] = words.get(entity, "") + part
    return sorted(words.values())


def test_entities_nested_and_crossing_are_marked_and_listed(page):
    ask(page)
    assert marked(page) == sorted(["Ada", "University of London", "of London wrote", "London", "القاهرة", "Bob"])
    assert page.locator("#result .text").evaluate("element => element.textContent") == TEXT
    rows = [re.split(r"\t", row) for row in page.locator("#result tbody tr").all_inner_texts()]
    assert ["school", "University of London", "11–31"] in [[*row[:2], row[3]] for row in rows] and len(rows) == 6
    assert all(TEXT[int(start) : int(end)] == row[1] for row in rows for start, end in [row[3].split("–")])
    counts = page.locator("#types .number").all_inner_texts()
    assert dict(zip(types(page), counts, strict=True)) == {"person": "2", "school": "2", "place": "2"}


def test_a_type_has_one_colour_everywhere_and_the_score_stands_behind_it(page):
    ask(page, "Ada. Bob.", "person")
    ink = "element => getComputedStyle(element).getPropertyValue('--ink')"
    places = ("#types .chip", "#result mark", "#result td.type")
    assert len({page.locator(place).first.evaluate(ink) for place in places}) == 1
    drawn = page.locator("#result mark").first.evaluate("mark => getComputedStyle(mark, '::after').content")
    score = page.locator("#result tbody td").nth(2).inner_text()
    assert re.fullmatch(r"0\.\d\d", score) and "person" in drawn and score in drawn


def test_hostile_texts_and_types_are_shown_as_they_are(page):
    ask(page, TEXT, HOSTILE)
    assert marked(page) == [HOSTILE] and types(page) == [HOSTILE]
    assert page.locator("img").count() == 0
    assert page.locator("#result td.type").inner_text() == HOSTILE


def test_types_come_and_go(page):
    page.get_by_role("button", name="remove all").click()
    assert types(page) == []
    field = page.get_by_label("Entity types")
    field.fill("person, place,person,")
    field.press_sequentially("rare bird")
    field.press("Enter")
    field.press_sequentially("place")
    field.press("Enter")
    assert types(page) == ["person", "place", "rare bird"]
    page.get_by_role("button", name="Remove place").click()
    assert types(page) == ["person", "rare bird"]
    expect(field).to_be_focused()
    field.press("Backspace")
    assert types(page) == ["person"]
    # what stands in the field is asked for too.
    field.fill("school")
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#result article")).to_be_visible()
    assert types(page) == ["person", "school"]


def test_examples_are_a_click_away_and_run_as_their_script_does(page):
    buttons = page.locator("#examples button")
    texts = set()
    for number in range(buttons.count()):
        buttons.nth(number).click()
        texts.add(page.locator("#text").input_value())
        assert 3 <= len(types(page)) <= 8
    assert len(texts) == buttons.count() > 5
    page.get_by_role("button", name="العربية").click()
    assert page.locator("#text").evaluate("element => element.matches(':dir(rtl)')")


def test_an_answer_to_another_question_is_faint(page):
    ask(page)
    result = page.locator("#result")
    assert "stale" not in (result.get_attribute("class") or "")
    page.get_by_label("Text", exact=True).press_sequentially("x")
    assert "stale" in result.get_attribute("class")
    ask(page)
    page.get_by_role("button", name="Remove person").click()
    assert "stale" in result.get_attribute("class")


def test_a_text_that_is_too_long_is_kept_and_refused(page):
    text = "🎓" * 1001
    page.get_by_label("Text", exact=True).fill(text)
    expect(page.locator("#count")).to_have_text("1,001 of 1,000 characters")
    expect(page.locator("#count")).to_have_class("over")
    page.get_by_role("button", name="Find entities").click()
    expect(page.get_by_role("alert")).to_contain_text("The text has 1,001 characters, and the demo reads 1,000")
    assert page.locator("#text").input_value() == text
    page.get_by_label("Text", exact=True).fill(text[:-1])
    expect(page.locator("#count")).not_to_have_class("over")


def test_a_reader_can_stop_waiting_and_is_told_of_a_full_line(page, browser, demo, go):
    go.clear()
    try:
        page.get_by_role("button", name="Find entities").click()
        expect(page.get_by_role("status")).to_contain_text("reading")
        others = [browser.new_page() for _ in range(2)]
        others[0].goto(demo.url)
        others[0].locator("#find").click()
        expect(others[0].get_by_role("status")).to_contain_text("reading")
        while demo.line.places.free:
            page.wait_for_timeout(10)
        others[1].goto(demo.url)
        others[1].locator("#find").click()
        expect(others[1].get_by_role("alert")).to_contain_text("wait for the model already; try again")
        page.get_by_role("button", name="stop waiting").click()
        expect(page.locator("#find")).to_be_enabled()
        expect(page.get_by_role("alert")).to_be_empty()
    finally:
        go.set()
    expect(others[0].locator("#result article")).to_be_visible()
    for other in others:
        other.close()
    ask(page)


def test_the_page_may_ask_its_own_server_only(page, demo):
    elsewhere = f"http://localhost:{demo.server_port}/"
    asked = page.evaluate("address => fetch(address).then(() => 'answered', () => 'refused')", elsewhere)
    assert asked == "refused"
    assert page.evaluate("fetch('/').then((reply) => reply.status)") == 200


def test_a_demo_that_has_ended_is_said(page):
    page.route("**/extract", lambda route: route.abort())
    page.get_by_role("button", name="Find entities").click()
    expect(page.get_by_role("alert")).to_contain_text("The demo does not answer")
    page.unroute("**/extract")
    ask(page)
