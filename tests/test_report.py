"""The report of a data set: numbers that others count too, plots, and a page that is safe to open."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_prep import conversations
from data_prep.questions.statistics import mention_share, quantiles
from uner_jax.command import run_command
from uner_jax.records import read_rows, write_rows
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import load_tokenizer

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data_prep" / "sample" / "labels.jsonl"
PLOTS = {"type_frequency.png", "lengths.png", "questions.png", "negatives.png"}


def report(tmp_path: Path, labels: Path, *options: object, name: str = "report") -> dict:
    arguments = ["--labels", labels, "--output", tmp_path / "c.jsonl", "--report", tmp_path / name, *options]
    with pytest.raises(SystemExit) as left:
        run_command(conversations.main, [str(argument) for argument in arguments])
    assert left.value.code == 0
    return json.loads((tmp_path / name / "tables.json").read_text())


def page_of(tmp_path: Path, name: str = "report") -> str:
    return (tmp_path / name / "index.html").read_text()


@pytest.fixture(scope="module")
def pile(tmp_path_factory, shared_data) -> tuple[dict, Path]:
    """The tables of the published sample, and where they and the conversations lie."""
    folder = tmp_path_factory.mktemp("pile")
    return report(folder, shared_data / "teacher" / "pile_ner_sample.jsonl"), folder


def plain_counts(path: Path) -> tuple[Counter, Counter, Counter]:
    """Spans, questions with spans and questions without by type, with nothing but json and string methods."""
    spans, asked, vain = Counter(), Counter(), Counter()
    for line in path.read_text().splitlines():
        turns = [turn["value"] for turn in json.loads(line)["conversations"]]
        for question, answer in zip(turns[2::2], turns[3::2], strict=True):
            name = question[len("What describes ") : question.rindex(" in the text?")]
            found = json.loads(answer)
            spans[name] += len(found)
            (asked if found else vain)[name] += 1
    return +spans, asked, vain


def test_the_numbers_of_the_published_sample_are_those_of_a_plain_count(pile, shared_data):
    tables, _ = pile
    spans, asked, vain = plain_counts(shared_data / "teacher" / "pile_ner_sample.jsonl")
    file = tables["file"]
    assert (file["records"], file["passages"]) == (882, 882)
    assert (file["positive_questions"], file["negative_questions"]) == (717, 603) == (asked.total(), vain.total())
    assert file["types_asked"] == 384 == len(asked | vain)
    assert file["types"] == len(spans) and file["entities"] == spans.total()


def test_the_numbers_of_what_was_made_are_those_of_a_plain_count(pile):
    tables, folder = pile
    spans, asked, vain = plain_counts(folder / "c.jsonl")
    made = tables["training"]
    assert tables["whole"] == made and tables["validation"] is None
    assert (made["conversations"], made["entities"], made["types"]) == (882, spans.total(), len(spans))
    assert (made["positive_questions"], made["negative_questions"]) == (asked.total(), vain.total())
    assert [(row["type"], row["mentions"]) for row in tables["top_types"]] == sorted(
        spans.items(), key=lambda item: (-item[1], item[0])
    )[:100]
    for row in tables["top_types"]:
        assert (row["positive_questions"], row["negative_questions"]) == (asked[row["type"]], vain[row["type"]])
    ordered = sorted(spans.values(), reverse=True)
    one, ten = round(len(ordered) * 0.01), round(len(ordered) * 0.1)
    parts = [sum(ordered[:one]), sum(ordered[one:ten]), sum(ordered[ten:])]
    assert [row["mentions"] for row in tables["mention_share"]] == parts
    assert [row["types"] for row in tables["mention_share"]] == [one, ten - one, len(ordered) - ten]


def test_lengths_in_tokens_are_those_of_training(tmp_path, shared_data, llama_tokenizer_path):
    few = [row for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl")][:40]
    write_rows(tmp_path / "few.jsonl", few)
    tables = report(tmp_path, tmp_path / "few.jsonl", "--tokenizer", llama_tokenizer_path)
    tokenizer = load_tokenizer(llama_tokenizer_path)
    made = [row for _, row in read_rows(tmp_path / "c.jsonl")]
    lengths = sorted(len(encode_conversation(row, tokenizer)[0]) for row in made)
    passages = sorted(len(tokenizer.encode(row["conversations"][0]["value"][len("Text: ") :])) for row in made)
    assert tables["lengths"]["unit"] == "tokens"
    for found, expected in ((tables["lengths"]["conversation"], lengths), (tables["lengths"]["passage"], passages)):
        assert (found["min"], found["max"], found["median"]) == (expected[0], expected[-1], expected[19])
        assert found["mean"] == pytest.approx(sum(expected) / 40, abs=0.01)


def test_lengths_in_words_and_sources_of_labels(tmp_path):
    tables = report(tmp_path, SAMPLE, "--validation-fraction", 0.1)
    rows = [row for _, row in read_rows(SAMPLE)]
    words = [len(row["text"].split()) for row in rows]
    assert tables["lengths"]["unit"] == "words"
    assert tables["lengths"]["passage"]["max"] == max(words) and tables["lengths"]["passage"]["min"] == min(words)
    sources = {row["source"]: row["passages"] for row in tables["sources"]}
    assert sources == Counter(row["source"] for row in rows)
    parts = tables["training"], tables["validation"]
    for name in ("passages", "conversations", "questions", "entities"):
        assert sum(part[name] for part in parts) == tables["whole"][name]
    assert parts[1]["passages"] > 0 and tables["whole"]["types"] > parts[1]["types"]


def test_the_same_labels_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        report(tmp_path, SAMPLE, name=name)
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files == PLOTS | {"tables.json", "index.html"}
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_plots_are_png_of_some_size(pile):
    for name in PLOTS:
        content = (pile[1] / "report" / name).read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 5000
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert width > 1000 and height > 500


class Page(HTMLParser):
    """The elements of a page, and the texts of its cells."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


HOSTILE = ['<script>alert("1")</script>', "</table><img src=x onerror=alert(1)>", "$title ${style} %s {x}", "a&lt;b"]


def test_names_in_the_page_are_text(tmp_path):
    odd = ["$\\frac$", "\u202eleft", "nul\x00 \ud800", "人名", "x" * 500]
    rows = [
        {"id": str(n), "text": "Ann", "entities": [{"text": "Ann", "type": name}], "source": f"<b>{name}"}
        for n, name in enumerate([*HOSTILE, *odd])
    ]
    write_rows(tmp_path / "labels.jsonl", rows)
    tables = report(tmp_path, tmp_path / "labels.jsonl")
    page = Page(page_of(tmp_path))
    for name in HOSTILE:
        assert name.lower() in page.texts and f"<b>{name}" in page.texts
    assert {row["type"] for row in tables["top_types"]} == {name.lower() for name in [*HOSTILE, *odd]}
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags and sum(tag == "img" for tag, _ in page.elements) == len(PLOTS)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_the_title_of_the_page_is_text(tmp_path):
    folder = tmp_path / "<script>x"
    folder.mkdir()
    name = "<script>&$title.jsonl"
    arguments = ["--labels", SAMPLE, "--output", tmp_path / name, "--report", tmp_path / "report"]
    with pytest.raises(SystemExit):
        run_command(conversations.main, [str(argument) for argument in arguments])
    page = Page(page_of(tmp_path))
    assert page.texts.count(name) == 2 and "script" not in {tag for tag, _ in page.elements}


def test_the_page_asks_nothing_of_the_network(pile):
    source = page_of(pile[1])
    page = Page(source)
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "action", "data", "poster")
    ]
    assert len(addresses) == 2 * len(PLOTS)
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    (style,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert not re.search(r"url\(|@import", style) and not re.search(r"https?:|//[a-z]", source.split("base64,")[0])
    policy = next(attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": "1", "text": "Nothing.", "entities": []}],
        [{"id": "1", "text": "Ann", "entities": [{"text": "Ann", "type": "person"}]}],
        [{"id": "1", "text": "Ann", "entities": [{"text": "Bob", "type": "person"}]}],
    ],
)
@pytest.mark.parametrize("strategy", ["none", "uniform"])
def test_a_report_on_next_to_nothing(tmp_path, rows, strategy):
    write_rows(tmp_path / "labels.jsonl", rows)
    tables = report(tmp_path, tmp_path / "labels.jsonl", "--negatives", strategy)
    assert tables["file"]["records"] == 1
    assert sum(row["types"] for row in tables["mention_share"]) == tables["whole"]["types"]
    assert {path.name for path in (tmp_path / "report").iterdir()} >= PLOTS


@pytest.mark.parametrize(
    ("counts", "types", "shares"),
    [
        ({}, [0, 0, 0], [0, 0, 0]),
        ({"a": 4}, [1, 0, 0], [1, 0, 0]),
        ({"a": 3, "b": 1}, [1, 0, 1], [0.75, 0, 0.25]),
        (dict.fromkeys(map(str, range(1000)), 1), [10, 90, 900], [0.01, 0.09, 0.9]),
    ],
)
def test_share_of_mentions_by_rank(counts, types, shares):
    rows = mention_share(Counter(counts))
    assert [row["types"] for row in rows] == types and [row["share"] for row in rows] == shares
    assert sum(row["mentions"] for row in rows) == sum(counts.values())


def test_quantiles_of_a_histogram():
    assert quantiles(Counter()) == {"mean": 0, "min": 0, "median": 0, "p90": 0, "p99": 0, "max": 0}
    assert quantiles(Counter(range(1, 101))) == {
        "mean": 50.5,
        "min": 1,
        "median": 50,
        "p90": 90,
        "p99": 99,
        "max": 100,
    }
