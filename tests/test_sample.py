"""The data sample in data_prep/sample: the properties that its README states and that the pipeline relies on."""

import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from uner_jax.records import check_label, check_passage, read_rows

SAMPLE = Path(__file__).parent.parent / "data_prep" / "sample"


def read(name, check):
    return [check(row, where) for where, row in read_rows(SAMPLE / name)]


@pytest.fixture(scope="module")
def train():
    return read("labels.jsonl", check_label)


@pytest.fixture(scope="module")
def held_out():
    return read("heldout.jsonl", check_label)


@pytest.fixture(scope="module")
def labels(train, held_out):
    return train + held_out


@pytest.fixture(scope="module")
def documents():
    return read("documents.jsonl", check_passage)


def count_types(records):
    return Counter(entity["type"] for record in records for entity in record["entities"])


def split_sentences(text):
    """The sentences of at least four words, case and space normalised."""
    sentences = (" ".join(part.split()).casefold() for part in re.split(r"[.!?\n]+", text))
    return {sentence for sentence in sentences if len(sentence.split()) >= 4}


def split_words(text):
    return re.findall(r"[^\W_]+", text.casefold())


def find_mention(text, mention):
    """Where the mention first stands as a whole word."""
    match = re.search(rf"(?<!\w){re.escape(mention)}(?!\w)", text)
    assert match, f"{mention!r} is not in {text[:60]!r} as a whole word"
    return match.start()


def test_counts(train, held_out, documents):
    assert (len(train), len(held_out), len(documents)) == (240, 60, 5)


def test_ids_are_unique(labels, documents):
    ids = Counter(record["id"] for record in labels + documents)
    assert [name for name, count in ids.items() if count > 1] == []


def test_record_form(labels, documents):
    for record in labels:
        assert set(record) == {"id", "text", "entities", "source", "teacher"}
        assert record["teacher"] == {
            "model": "project-sample",
            "variant": "type",
            "prompt_tokens": 0,
            "completion_tokens": 0,
        }
        assert len(record["entities"]) >= 2, record["id"]
        assert all(set(entity) == {"text", "type"} for entity in record["entities"])
    assert all(set(document) == {"id", "text", "source"} for document in documents)


def test_spans_are_verbatim_whole_words(labels):
    for record in labels:
        for entity in record["entities"]:
            assert entity["text"] in record["text"], (record["id"], entity)
            assert entity["text"] == entity["text"].strip()
            find_mention(record["text"], entity["text"])


def test_entities_stand_in_order_of_first_occurrence(labels):
    for record in labels:
        starts = [find_mention(record["text"], entity["text"]) for entity in record["entities"]]
        assert starts == sorted(starts), record["id"]


def test_no_pair_twice(labels):
    for record in labels:
        pairs = Counter((entity["text"], entity["type"]) for entity in record["entities"])
        assert [pair for pair, count in pairs.items() if count > 1] == [], record["id"]


def test_length(labels):
    lengths = {record["id"]: len(record["text"].split()) for record in labels}
    assert {name: length for name, length in lengths.items() if not 40 <= length <= 120} == {}


def test_sources(train, held_out):
    sources = Counter(record["source"] for record in train)
    assert len(sources) >= 20
    assert set(sources.values()) <= {9, 10}
    assert {record["source"] for record in held_out} == set(sources)


def test_order_mixes_the_sources(train, held_out):
    for records in (train, held_out):
        count = len({record["source"] for record in records})
        assert len({record["source"] for record in records[:count]}) == count


def test_no_sentence_is_shared(labels, documents):
    owners = defaultdict(set)
    for record in labels + documents:
        for sentence in split_sentences(record["text"]):
            owners[sentence].add(record["id"])
    assert len(owners) > 1000
    assert {sentence: names for sentence, names in owners.items() if len(names) > 1} == {}


def test_no_template(labels):
    openings = Counter(tuple(split_words(record["text"])[:5]) for record in labels)
    assert openings.most_common(1)[0][1] <= 2
    owners = defaultdict(set)
    for record in labels:
        words = split_words(record["text"])
        for start in range(len(words) - 5):
            owners[tuple(words[start : start + 6])].add(record["id"])
    sharing = set().union(*(names for names in owners.values() if len(names) > 1))
    # two passages cite the same section of the same act, by its full name
    assert len(sharing) / len(labels) <= 0.02, sharing


def test_types_are_many(train):
    assert len(count_types(train)) >= 150


def test_types_have_a_strong_head(train):
    types = count_types(train)
    head = types.most_common(max(3, math.ceil(len(types) / 100)))
    assert {"person", "location", "date"} <= {name for name, _ in head}
    assert sum(count for _, count in head) >= 0.3 * types.total()


def test_types_have_a_long_tail(train):
    types = count_types(train)
    assert sum(count <= 2 for count in types.values()) >= 0.5 * len(types)


def test_type_names_are_harmonised(labels):
    types = set(count_types(labels))
    assert {name.casefold() for name in types}.isdisjoint({"none", "na", "n/a", "misc", "else", "other"})
    # lower case but for initialisms: "RNA", "SQL command"
    words = [word for name in types for word in re.findall(r"\w+", name)]
    assert [word for word in words if word != word.lower() and not re.fullmatch(r"[A-Z]{2,}", word)] == []
    assert {name for name in types if f"{name}s" in types or f"{name}es" in types} == set()
    assert types.isdisjoint(
        {"organisation", "place", "country", "era", "money", "price", "job title", "colour", "means of transport"}
    )


def test_held_out_mentions_mostly_have_a_known_type(train, held_out):
    known = set(count_types(train))
    types = count_types(held_out)
    assert sum(count for name, count in types.items() if name in known) >= 0.9 * types.total()


def test_readme_gives_the_counts(train, held_out):
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    for records in (train, held_out):
        types = count_types(records)
        assert f"{types.total()} mentions of {len(types)} types" in readme
    for name, count in count_types(train).most_common(8):
        assert f"{name} {count}" in readme
