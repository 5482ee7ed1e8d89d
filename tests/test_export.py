"""What was exported is read back by readers of its own, and what is not there was counted."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.tagged.columns import read_tagged
from uner_jax import cli
from uner_jax.command import run_command
from uner_jax.export import conll
from uner_jax.export.documents import Choices
from uner_jax.export.formats import FORMATS, export
from uner_jax.export.losses import Loss
from uner_jax.export.names import names
from uner_jax.export.tokens import align, with_spaces, words
from uner_jax.extraction.record import read_extractions
from uner_jax.extraction.spans import flat
from uner_jax.records import InputError, read_rows, write_rows

ROOT = Path(__file__).parent.parent
HERE = [name for name in FORMATS if name != "spacy"]  # which is read back in tests/spacy

# white space of every kind, line ends, marks, letters beyond U+FFFF, scripts without spaces, and what forms use.
PIECES = (
    "Ada", " ", "  ", "\t", "\n", "\r\n", "\r", "\n\n", "\x85", "\u2028", "\xa0", "\0", "-DOCSTART-", "O", "e\u0301",
    "हिन्दी", "東京都", "กรุงเทพ", "🎓👩‍👩‍👧", "𝒜lgebra", "well-known", "\ud800", '"', "\\", "|", ";", "</View>", "\x1c",
    "#",
)  # fmt: skip
LABELS = (
    "person",
    "family name",
    "family_name",
    "family\tname",
    "личность",
    "a|b",
    "B-x",
    "\ud800",
    "𝒜",
    '"&<',
    "yes:",
)


def entity(text, start, end, label="person", score=0.5):
    return {"start": start, "end": end, "text": text[start:end], "label": label, "score": score}


def record(text, *entities, **more):
    labels = sorted({found["label"] for found in entities} | {"never found"})
    fields = {"id": "a", "text": text, "labels": labels, "entities": list(entities), "chunks": 1, "error": None}
    return fields | more


texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=10).map("".join)


@st.composite
def records(draw):
    text = draw(texts)
    at = st.integers(0, len(text))
    ends = st.tuples(at, at).map(sorted).filter(lambda span: span[0] < span[1])
    spans = draw(st.lists(ends, max_size=6)) if text else []
    scores = st.sampled_from([0.25, 0.5, 0.75, 1.0])
    labels = st.sampled_from(LABELS)
    return record(text, *[entity(text, *span, draw(labels), draw(scores)) for span in spans], id=draw(texts))


corpora = st.lists(records(), max_size=4)
choices = st.builds(Choices, flat=st.booleans(), partial=st.sampled_from(["split", "drop"]))
many = settings(deadline=None, max_examples=60)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports records in one of the forms; gives the output and what could not be written."""

    def run(rows, to, chosen=None, name=None):
        directory = tmp_path_factory.mktemp("export")
        write_rows(directory / "found.jsonl", rows)
        suffix = FORMATS[to].suffix.replace("/", "") or ".out"
        output = directory / (name or f"out{suffix}")
        return output, export(directory / "found.jsonl", to, output, chosen)

    return run


def clean(text):
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def stripped(found):
    """An entity as a run of words has it: its place without white space at the ends, its label."""
    inner = found["text"].strip()
    start = found["start"] + found["text"].index(inner)
    return start, start + len(inner), clean(found["label"])


def spans_of(row):
    return Counter(stripped(found) for found in row["entities"] if found["text"].strip())


def place(tokens, text):
    """Where the tokens stand, one after the other, with nothing but white space between them."""
    places, end = [], 0
    for token in tokens:
        start = text.index(token, end)
        assert not text[end:start].strip()
        end = start + len(token)
        places.append((start, end))
    assert not text[end:].strip()
    return places


def accounted(tally, rows, written):
    """Every entity that was read was written, or is counted as left out."""
    assert tally.entities == sum(len(row["entities"]) for row in rows)
    assert tally.expressed == written


# ---- flat, words and names


@many
@given(records())
def test_flat_spans_are_the_best_of_those_they_exclude(row):
    kept = flat(row["entities"])
    assert all(a["end"] <= b["start"] for a, b in pairwise(kept))
    rank = lambda found: (found["score"], found["end"] - found["start"])  # noqa: E731
    for left in row["entities"]:
        if left not in kept:
            rivals = [found for found in kept if found["start"] < left["end"] and left["start"] < found["end"]]
            assert any(rank(found) >= rank(left) for found in rivals)
    assert flat(row["entities"][::-1]) == kept


def test_of_nested_spans_the_score_decides_then_the_length():
    text = "Bank of England"
    outer, inner = entity(text, 0, 15, score=0.5), entity(text, 8, 15, score=0.5)
    assert flat([inner, outer]) == [outer]
    assert flat([outer, better := inner | {"score": 0.6}]) == [better]


@many
@given(texts)
def test_words_hold_every_letter_and_are_laid_out_with_spaces(text):
    found = words(text)
    place([text[start:end] for start, end in found], text)
    assert not any(re.search(r"\s", text[start:end]) for start, end in found)
    laid = with_spaces(found, text)
    ends = [end for _, end in laid]
    gaps = [text[end:start] for end, start in zip([0, *ends], [*(start for start, _ in laid), len(text)], strict=True)]
    assert set(gaps) <= {"", " "} and gaps[0] == ""


@many
@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_are_those_that_gliner_cuts(text):
    # in ASCII \s misses what str.isspace has: the separators U+001C to U+001F are white space to both.
    assert [text[start:end] for start, end in words(text)] == re.findall(r"\w+(?:[-_]\w+)*|\S", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("東京都に行く", list("東京都に行く")),
        ("हिन्दी है", ["हिन्दी", "है"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("don't (3.5)", ["don", "'", "t", "(", "3", ".", "5", ")"]),
    ],
)
def test_words_of_other_scripts_are_whole(text, expected):
    assert [text[start:end] for start, end in words(text)] == expected


@many
@given(records(), st.booleans(), st.booleans())
def test_runs_of_words_are_the_entities(row, split, flatten):
    text, losses = row["text"], Counter()
    places, placed = align(text, row["entities"], words(text), split, flatten, losses)
    got = Counter((places[first][0], places[last - 1][1], clean(e["label"])) for first, last, e in placed)
    assert got <= spans_of(row)
    lost = losses[Loss.BLANK] + losses[Loss.PARTIAL] + losses[Loss.OVERLAP]
    assert got.total() + lost == len(row["entities"])
    assert losses[Loss.PARTIAL] == 0 or not split
    if not split:
        assert places == words(text)
    if flatten:
        assert all(a.last <= b.first for a, b in pairwise(placed))
    elif split:
        assert got == spans_of(row)


@many
@given(st.sets(st.text(max_size=5)), st.sampled_from([r"\s+", "[^A-Za-z0-9_-]+"]))
@example({"a b", "a_b", "a_b_2", "a\tb"}, r"\s+")
def test_names_are_allowed_and_no_two_are_alike(labels, forbidden):
    given_names = names(labels, re.compile(forbidden))
    assert len(set(given_names.values())) == len(labels)
    assert not any(re.search(forbidden, name) for name in given_names.values())
    assert all(given_names[label] == label for label in labels if not re.search(forbidden, label))


# ---- each form


def read_conll(path):
    """Documents as lists of sentences of (word, tag)."""
    found = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.startswith("-DOCSTART- "):
            found.append([[]])
        elif not line:
            if found and found[-1][-1]:
                found[-1].append([])
        else:
            word, pos, chunk, tag = line.split()
            assert (pos, chunk) == ("-X-", "-X-")
            found[-1][-1].append((word, tag))
    return [[sentence for sentence in document if sentence] for document in found]


def tagged_spans(tags, places):
    """(start, end, label) of BIO tags; an I without its B is a mistake."""
    found, before = [], "O"
    for tag, (start, end) in zip(tags, places, strict=True):
        if tag.startswith("I-"):
            assert before[1:] == tag[1:]
            found[-1] = (found[-1][0], end, tag[2:])
        elif tag.startswith("B-"):
            found.append((start, end, tag[2:]))
        else:
            assert tag == "O"
        before = tag
    return found


@many
@given(corpora, choices)
def test_conll_is_read_back(exported, rows, chosen):
    output, tally = exported(rows, "conll", chosen)
    back = read_conll(output)
    assert len(back) == tally.written == len(rows)
    every = {clean(found["label"]) for row in rows for found in row["entities"]} | {"never found"}
    name = names(every, conll.SPACE)
    written = 0
    for document, row in zip(back, rows, strict=True):
        flattened = [pair for sentence in document for pair in sentence]
        places = place([word for word, _ in flattened], clean(row["text"]))
        found = tagged_spans([tag for _, tag in flattened], places)
        assert set(found) <= {(start, end, name[label]) for start, end, label in spans_of(row)}
        assert not any(sentence[0][1].startswith("I-") for sentence in document)
        written += len(found)
    accounted(tally, rows, written)


def test_conll_is_what_our_own_reader_takes(exported, tmp_path):
    text = "Ada Lovelace met Babbage.\n\nIn London they\nworked."
    row = record(text, entity(text, 0, 12, "full name"), entity(text, 30, 36, "city"))
    output, _ = exported([row, row], "conll", name="train.txt")
    sentences = read_tagged(output, None, None).sentences
    assert [[(token.text, token.tag) for token in sentence] for sentence in sentences][:2] == [
        [("Ada", "B-full_name"), ("Lovelace", "I-full_name"), ("met", "O"), ("Babbage", "O"), (".", "O")],
        [("In", "O"), ("London", "B-city"), ("they", "O"), ("worked", "O"), (".", "O")],
    ]


@many
@given(corpora, choices)
def test_hugging_face_is_read_back(exported, rows, chosen):
    output, tally = exported(rows, "hf", chosen, name="set")
    tag_names = json.loads((output / "labels.json").read_text(encoding="utf-8"))
    assert len(set(tag_names)) == len(tag_names)
    back = [row for _, row in read_rows(output / "train.jsonl")]
    written = 0
    for found, row in zip(back, rows, strict=True):
        assert found["id"] == clean(row["id"])
        places = place(found["tokens"], clean(row["text"]))
        spans = tagged_spans([tag_names[number] for number in found["ner_tags"]], places)
        assert set(spans) <= set(spans_of(row))
        written += len(spans)
    accounted(tally, rows, written)
    (output / "README.md").read_text(encoding="ascii")


@many
@given(corpora, choices)
def test_gliner_is_read_back(exported, rows, chosen):
    output, tally = exported(rows, "gliner", chosen)
    back = json.loads(output.read_text(encoding="utf-8"))
    rows_with_words = [row for row in rows if row["text"].strip()]
    assert tally.written == len(rows_with_words)
    written = 0
    for found, row in zip(back, rows_with_words, strict=True):
        places = place(found["tokenized_text"], clean(row["text"]))
        spans = Counter((places[first][0], places[last][1], label) for first, last, label in found["ner"])
        assert spans == spans_of(row) if chosen == Choices() else spans <= spans_of(row)
        assert "never found" in found["ner_negatives"]
        assert not {clean(e["label"]) for e in row["entities"]} & set(found["ner_negatives"])
        written += len(found["ner"])
    accounted(tally, rows, written)


@many
@given(corpora, choices)
def test_prodigy_is_read_back(exported, rows, chosen):
    output, tally = exported(rows, "prodigy", chosen)
    back = [row for _, row in read_rows(output)]
    for found, row in zip(back, rows, strict=True):
        text, tokens = found["text"], found["tokens"]
        assert (text, found["meta"]["id"]) == (clean(row["text"]), clean(row["id"]))
        assert "".join(token["text"] + " " * token["ws"] for token in tokens) == text
        assert all(text[token["start"] : token["end"]] == token["text"] for token in tokens)
        assert [token["id"] for token in tokens] == list(range(len(tokens)))
        spans = Counter((span["start"], span["end"], span["label"]) for span in found["spans"])
        assert spans == spans_of(row) if chosen == Choices() else spans <= spans_of(row)
        for span in found["spans"]:
            assert tokens[span["token_start"]]["start"] == span["start"]
            assert tokens[span["token_end"]]["end"] == span["end"]
    accounted(tally, rows, sum(len(found["spans"]) for found in back))


@many
@given(corpora, st.booleans())
def test_label_studio_is_read_back(exported, rows, flatten):
    output, tally = exported(rows, "label-studio", Choices(flat=flatten))
    tasks = json.loads(output.read_text(encoding="utf-8"))
    interface = ElementTree.parse(output.with_suffix(".xml")).getroot()
    offered = {label.get("value") for label in interface.iter("Label")}
    for task, row in zip(tasks, rows, strict=True):
        text = task["data"]["text"]
        assert "\r" not in text and len(text) == len(row["text"])
        regions = task["predictions"][0]["result"]
        assert len({region["id"] for region in regions}) == len(regions)
        expected = flat(row["entities"]) if flatten else row["entities"]
        got = [(r["value"]["start"], r["value"]["end"], *r["value"]["labels"], r["score"]) for r in regions]
        assert got == [(e["start"], e["end"], clean(e["label"]), e["score"]) for e in expected]
        for region in regions:
            value = region["value"]
            assert value["text"] == text[value["start"] : value["end"]]
            assert set(value["labels"]) <= offered
    accounted(tally, rows, sum(len(task["predictions"][0]["result"]) for task in tasks))
    assert tally.losses[Loss.CARRIAGE] == sum(row["text"].count("\r") for row in rows)


def read_brat(directory, stem):
    """The text, and (fragments, type, score, label) of each entity."""
    text = (directory / f"{stem}.txt").read_bytes().decode()
    notes, found = {}, {}
    # every reader's idea of a line: none may find another one.
    for line in (directory / f"{stem}.ann").read_bytes().decode().splitlines():
        key, middle, last = line.split("\t")
        if key.startswith("#"):
            notes[middle.removeprefix("AnnotatorNotes ")] = json.loads(last)
            continue
        kind, _, places = middle.partition(" ")
        fragments = [tuple(map(int, fragment.split())) for fragment in places.split(";")]
        assert last == " ".join(text[start:end] for start, end in fragments)
        found[key] = fragments, kind
    assert notes.keys() == found.keys()
    return text, [
        (fragments, kind, notes[key]["score"], notes[key]["label"]) for key, (fragments, kind) in found.items()
    ]


@many
@given(corpora, st.booleans())
def test_brat_is_read_back(exported, rows, flatten):
    output, tally = exported(rows, "brat", Choices(flat=flatten), name="collection")
    index = [row for _, row in read_rows(output / "documents.jsonl")]
    types = (output / "annotation.conf").read_text(encoding="ascii").partition("[relations]")[0].split("\n")
    written = 0
    for pair, row in zip(index, rows, strict=True):
        text, found = read_brat(output, pair["file"])
        assert (text, pair["id"]) == (clean(row["text"]), clean(row["id"]))
        written += len(found)
        expected = flat(row["entities"]) if flatten else row["entities"]
        kept = [e for e in expected if e["text"].strip()]
        for (fragments, kind, score, label), e in zip(found, kept, strict=True):
            assert kind in types and (score, label) == (e["score"], clean(e["label"]))
            letters = {at for start, end in fragments for at in range(start, end)}
            left = set(range(e["start"], e["end"])) - letters
            assert letters <= set(range(e["start"], e["end"]))
            assert all(text[at].isspace() for at in left)
    accounted(tally, rows, written)


# ---- what holds for all


@pytest.mark.parametrize("to", HERE)
def test_records_with_an_error_and_doubtful_entities_are_left_out_and_counted(to, exported):
    text = "Ada met Bob"
    rows = [
        record(None, id="lost", entities=[], error="too long"),
        record(text, entity(text, 0, 3, score=0.9), entity(text, 8, 11, score=0.2), entity(text, 8, 11, " ", 0.9)),
    ]
    _, tally = exported(rows, to, Choices(min_score=0.5), name="out" + FORMATS[to].suffix.strip("/"))
    assert (tally.written, tally.expressed) == (1, 1)
    left = {Loss.FAILED: 1, Loss.UNSURE: 1, Loss.UNLABELLED: 1}
    assert {kind: tally.losses[kind] for kind in left} == left
    assert any("error, left out: 1" in line for line in tally.lines())


@pytest.mark.parametrize("to", HERE)
def test_no_documents_are_a_file_too(to, exported):
    output, tally = exported([], to)
    assert output.exists() and tally.written == 0


def test_nested_entities_are_in_all_forms_that_can_nest(exported):
    text = "Bank of England"
    row = record(text, entity(text, 0, 15, "organization"), entity(text, 8, 15, "country"))
    nested = {to: exported([row], to)[1] for to in HERE}
    assert {to for to, tally in nested.items() if tally.losses[Loss.OVERLAP]} == {"conll", "hf"}
    assert all(exported([row], to, Choices(flat=True))[1].expressed == 1 for to in HERE)


@pytest.mark.parametrize("to", HERE)
def test_parts_of_a_directory_are_one_corpus(to, tmp_path):
    parts = tmp_path / "entities"
    rows = [record(f"Ada {n}", entity(f"Ada {n}", 0, 3), id=str(n)) for n in range(4)]
    write_rows(parts / "part-00000-of-00002-00000.jsonl", rows[:2])
    write_rows(parts / "part-00001-of-00002-00000.parquet", rows[2:])
    (parts / "manifest-00000-of-00002.json").write_text("{}")
    write_rows(tmp_path / "all.jsonl", rows)
    assert list(read_extractions(parts)) == rows
    suffix = FORMATS[to].suffix.replace("/", "")
    for source, name in ((parts, "a"), (tmp_path / "all.jsonl", "b")):
        export(source, to, tmp_path / f"{name}{suffix}")
    contents = [
        {path.name: path.read_bytes() for path in sorted(found.iterdir())} if found.is_dir() else found.read_bytes()
        for found in (tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    ]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("to", HERE)
def test_a_wrong_record_is_named_and_nothing_is_written(to, tmp_path):
    write_rows(tmp_path / "found.jsonl", [record("Ada"), record("Ada", entity("Bob", 0, 3))])
    output = tmp_path / ("out" + FORMATS[to].suffix.replace("/", ""))
    with pytest.raises(InputError, match=r"found.jsonl, line 2: entity 0"):
        export(tmp_path / "found.jsonl", to, output)
    assert [path.name for path in tmp_path.iterdir()] == ["found.jsonl"]


@pytest.mark.parametrize("to", ["brat", "hf"])
def test_a_directory_that_holds_something_is_left_alone(to, exported, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    write_rows(tmp_path / "in" / "found.jsonl", [record("Ada")])
    with pytest.raises(InputError, match="exists and is no empty directory"):
        export(tmp_path / "in" / "found.jsonl", to, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_outputs_have_the_suffix_that_their_readers_expect(tmp_path):
    write_rows(tmp_path / "found.jsonl", [record("Ada")])
    for to, form in FORMATS.items():
        if form.suffix.startswith("."):
            with pytest.raises(InputError, match=re.escape(f"must end in {form.suffix}")):
                export(tmp_path / "found.jsonl", to, tmp_path / "out.xyz")


def test_a_directory_without_parts_is_named(tmp_path):
    with pytest.raises(InputError, match='has no files "part-'):
        list(read_extractions(tmp_path))


# ---- the command


def leave(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        run_command(cli.dispatch, [str(argument) for argument in arguments])
    return left.value.code, *capsys.readouterr()


def test_the_command_knows_every_form():
    assert set(get_args(get_type_hints(cli.export)["to"])) == FORMATS.keys()


def test_the_command_says_what_was_lost(tmp_path, capsys):
    text = "Bank of England"
    rows = [record(text, entity(text, 0, 15, "organization", 0.9), entity(text, 8, 15, "country", 0.8))]
    write_rows(tmp_path / "found.jsonl", rows)
    code, out, error = leave(capsys, "export", tmp_path / "found.jsonl", "--to", "conll", "--output", tmp_path / "x")
    assert (code, out) == (0, "")
    assert "x: 1 documents, 1 entities" in error
    assert "entities that overlap one of a better score, left out: 1" in error
    assert "this form has no place for ids, scores" in error


def test_a_score_beyond_one_is_refused(tmp_path, capsys):
    write_rows(tmp_path / "found.jsonl", [record("Ada")])
    arguments = ("export", tmp_path / "found.jsonl", "--to", "conll", "--output", tmp_path / "x", "--min-score", "50")
    code, _, error = leave(capsys, *arguments)
    assert code == 1 and "--min-score 50.0 must be from 0 to 1" in error


def test_a_missing_spacy_is_said_with_the_command_that_helps(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    write_rows(tmp_path / "found.jsonl", [record("Ada")])
    output = tmp_path / "docs.spacy"
    code, _, error = leave(capsys, "export", tmp_path / "found.jsonl", "--to", "spacy", "--output", output)
    assert code == 1 and not output.exists()
    assert error == "error: spaCy is not installed: pip install 'uner-jax[spacy]'\n"


def test_the_examples_of_the_documentation_are_what_comes_out(exported):
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    blocks = {to: re.search(rf"### {to}\n.*?```(?:json)?\n(.*?)```", page, re.DOTALL)[1] for to in HERE}
    row = json.loads(re.search(r"Each example.*?```json\n(.*?)```", page, re.DOTALL)[1])
    output = {to: exported([row], to)[0] for to in HERE}
    assert output["conll"].read_text(encoding="utf-8") == blocks["conll"]
    assert (output["brat"] / "000001-7.ann").read_text(encoding="utf-8") == blocks["brat"]
    files = {"hf": output["hf"] / "train.jsonl"} | {to: output[to] for to in ("label-studio", "prodigy", "gliner")}
    for to, path in files.items():
        assert json.loads(path.read_text(encoding="utf-8")) == json.loads(blocks[to])


def test_combinations_of_labels_are_kept_apart(exported):
    text = "Ada"
    rows = [record(text, *[entity(text, 0, 3, a)]) for a, _ in combinations(LABELS[:4], 2)]
    output, _ = exported(rows, "conll")
    tags = {tag for document in read_conll(output) for sentence in document for _, tag in sentence}
    assert len(tags) == len({row["entities"][0]["label"] for row in rows})
