"""Token-per-line files of entities: every dialect of them, and the conversations that they become."""

import gzip
import json
import re
from collections import Counter
from itertools import groupby, pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep import bio
from data_prep.tagged.columns import read_tagged
from data_prep.tagged.schemes import decode
from data_prep.tagged.type_names import read_type_names
from uner_jax.command import run_command
from uner_jax.records import InputError, check_conversation, read_rows

FILES = [
    f"{name}/{part}"
    for name, parts in {
        "bc5cdr": ("train.tsv", "devel.tsv", "test.tsv"),
        "broad_twitter": ("train.conll", "dev.conll", "test.conll"),
        "crossner_ai": ("train.txt", "dev.txt", "test.txt"),
        "wnut17": ("train.conll", "dev.conll", "test.annotated"),
    }.items()
    for part in parts
]
CONLL = """-DOCSTART- -X- -X- O

U.N. NNP I-NP I-ORG
official NN I-NP O
Ekeus NNP I-NP I-PER
heads VBZ I-VP O
for IN I-PP O
Baghdad NNP I-NP I-LOC
. . O O

Rome NNP I-NP I-LOC
Oslo NNP I-NP B-LOC
German JJ I-NP I-MISC
"""


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        run_command(bio.main, [str(argument) for argument in arguments])
    return left.value.code


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def ask(
    tmp_path: Path, *sources: Path, name: str = "Set", output: str = "out.jsonl", options: tuple = ()
) -> list[dict]:
    """The rows that the command makes of the files."""
    place = tmp_path / output
    assert run("--input", *sources, "--dataset", name, "--output", place, *options) == 0
    return [check_conversation(row, where) for where, row in read_rows(place)]


def text_of(row: dict) -> str:
    return row["conversations"][0]["value"].split("Text: ", 1)[1]


def answers_of(row: dict) -> dict[str, list[str]]:
    values = [turn["value"] for turn in row["conversations"]][2:]
    prefix, suffix = "What describes ", " in the text?"
    return {q[len(prefix) : -len(suffix)]: json.loads(a) for q, a in zip(values[::2], values[1::2], strict=True)}


def error_of(capsys, tmp_path: Path, *sources: Path, options: tuple = ()) -> str:
    """The message of a command that fails, which leaves no output."""
    output = tmp_path / "none.jsonl"
    assert run("--input", *sources, "--dataset", "Set", "--output", output, *options) == 1
    assert not output.exists()
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    return message


# the published data


def test_the_published_file_comes_out_but_for_the_entities_that_it_lost(tmp_path, shared_data):
    published = json.loads((shared_data / "eval" / "CrossNER_AI.json").read_text(encoding="utf-8"))
    source = shared_data / "bio" / "crossner_ai" / "test.txt"
    options = ("--questions", "apart", "--template", "zero-shot")
    made = ask(tmp_path, source, name="CrossNER_AI", options=options)
    assert [row["id"] for row in made] == [row["id"] for row in published]
    types = 13
    differing = []
    for start in range(0, len(published), types):
        # the order of a passage's types was drawn at random for the published file.
        ours, theirs = (
            {json.dumps(row["conversations"][:3]): row["conversations"][3] for row in rows[start : start + types]}
            for rows in (made, published)
        )
        assert ours.keys() == theirs.keys() and len(ours) == types
        differing += [(json.loads(key)[0]["value"], ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]]
    assert len(differing) == 4
    for passage, our_turn, their_turn in differing:
        *shared, last = json.loads(our_turn["value"])
        assert shared == json.loads(their_turn["value"]) and passage.endswith(last)


def sentences_of(path: Path) -> list[list[tuple[str, str]]]:
    lines = path.read_bytes().decode().split("\n")
    groups = [list(lines) for full, lines in groupby(lines, key=lambda line: bool(line.strip())) if full]
    return [[tuple(line.split("\t")) for line in group] for group in groups]


@pytest.mark.parametrize("name", FILES)
def test_a_real_file_is_read_whole(tmp_path, shared_data, name):
    expected = [
        sentence for sentence in sentences_of(shared_data / "bio" / name) if any(token.strip() for token, _ in sentence)
    ]
    rows = ask(tmp_path, shared_data / "bio" / name)
    assert [text_of(row) for row in rows] == [" ".join(token for token, _ in sentence) for sentence in expected]
    tags = [[tag for _, tag in sentence] for sentence in expected]
    begun = Counter(tag[2:] for sentence in tags for tag in sentence if tag[0] == "B")
    begun.pop("misc", None)
    found = Counter(dict.fromkeys(begun, 0))
    names = read_type_names()
    for row, sentence in zip(rows, tags, strict=True):
        answers = answers_of(row)
        assert list(answers) == names.ordered(begun)
        assert all(span in text_of(row) and span == span.strip() != "" for spans in answers.values() for span in spans)
        for label in begun:
            found[label] += len(answers[names.name(label)])
            assert len(answers[names.name(label)]) == sentence.count(f"B-{label}")
    assert found == begun


def test_the_splits_of_a_set_are_one_set(tmp_path, shared_data):
    parts = [shared_data / "bio" / "wnut17" / part for part in ("train.conll", "dev.conll", "test.annotated")]
    whole = ask(tmp_path, *parts)
    assert [row["id"] for row in whole] == [f"Set_{number}" for number in range(3394 + 1009 + 1287)]
    alone = [row["conversations"] for part in parts for row in ask(tmp_path, part)]
    assert [row["conversations"] for row in whole] == alone


# the dialects

LETTERS = {"IOBES": "BIES", "BILOU": "BILU", "BMEWO": "BMEW", "BMESO": "BMES"}


def tags_of(scheme: str, segments: list[tuple[str | None, int]]) -> list[str]:
    """The tags of a sentence that is cut into entities and what is between them."""
    tags: list[str] = []
    for (before, _), (label, length) in pairwise([(None, 0), *segments]):
        if label is None:
            tags += ["O"] * length
        elif scheme in LETTERS:
            begin, inside, end, single = LETTERS[scheme]
            places = single if length == 1 else begin + inside * (length - 2) + end
            tags += [f"{place}-{label}" for place in places]
        else:
            first = "B" if scheme == "IOB2" or before == label else "I"
            tags += [f"{place}-{label}" for place in first + "I" * (length - 1)]
    return tags


def spans_of(segments: list[tuple[str | None, int]]) -> list[tuple[int, int, str]]:
    spans, start = [], 0
    for label, length in segments:
        if label is not None:
            spans.append((start, start + length, label))
        start += length
    return spans


labels = st.sampled_from(["PER", "LOC", "creative-work", "B-x", "日本 語"])
segments = st.lists(st.tuples(st.none() | labels, st.integers(1, 4)), min_size=1, max_size=6)
# everything that ends a line or a word somewhere, and must not here.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\n\t\r \ufeff") | st.sampled_from(
    "\x0b\x0c\x1c\x85\u2028\u2029\xa0\ufe0f#-"
)
words = st.text(characters, min_size=1, max_size=5)
# a token that is itself a tag, or a document separator, is what the options are for.
words = words.filter(lambda word: not re.match(r"O$|[BIESLUMW]-|-DOC|###MED", word.strip()) and not word.isdecimal())


@st.composite
def corpora(draw):
    """Sentences of tokens and segments."""
    made = []
    for parts in draw(st.lists(segments, min_size=1, max_size=4)):
        length = sum(length for _, length in parts)
        made.append((draw(st.lists(words, min_size=length, max_size=length)), parts))
    return made


def render(corpus, scheme: str, separator: str, layout: str, blank: str, newline: str) -> str:
    lines = []
    for tokens, parts in corpus:
        for token, tag in zip(tokens, tags_of(scheme, parts), strict=True):
            cells = {"last": [token, tag], "first": [tag, token], "conll": [token, "NN", "_", tag]}[layout]
            lines.append(separator.join(cells))
        lines.append(blank)
    return newline.join(lines)


@settings(deadline=None, max_examples=300)
@given(
    corpus=corpora(),
    scheme=st.sampled_from(["IOB1", "IOB2", *LETTERS]),
    separator=st.sampled_from(["\t", " "]),
    layout=st.sampled_from(["last", "first", "conll"]),
    blank=st.sampled_from(["", "\t", "  ", "\n", "\n-DOCSTART-\n", "\n-DOCSTART- -X- O O\n", "\n# id 7 domain=en"]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
@example([(["a", "b"], [("PER", 1), ("PER", 1)])], "IOB1", " ", "last", "", "\n")
@example([(["x"] * 16, [("PER", 16)])], "BILOU", "\t", "first", "", "\n")
def test_entities_come_back_from_every_dialect(tmp_path_factory, corpus, scheme, separator, layout, blank, newline):
    if separator == " ":
        corpus = [
            (tokens, [(label and label.replace(" ", ""), length) for label, length in parts])
            for tokens, parts in corpus
        ]
    path = tmp_path_factory.getbasetemp() / "corpus.txt"
    write(path, render(corpus, scheme, separator, layout, blank, newline))
    file = read_tagged(path)
    assert [[token.text for token in sentence] for sentence in file.sentences] == [tokens for tokens, _ in corpus]
    name, spans = decode(path, file.sentences)
    assert spans == [spans_of(parts) for _, parts in corpus]
    has_entities = any(label for _, parts in corpus for label, _ in parts)
    assert name == scheme or scheme in LETTERS or not has_entities
    assert decode(path, file.sentences, "iobes" if scheme in LETTERS else scheme.lower())[1] == spans


def test_conll_2003(tmp_path, capsys):
    rows = ask(tmp_path, write(tmp_path / "eng.train", CONLL))
    assert [text_of(row) for row in rows] == ["U.N. official Ekeus heads for Baghdad .", "Rome Oslo German"]
    assert [answers_of(row) for row in rows] == [
        {"person": ["Ekeus"], "organization": ["U.N."], "location": ["Baghdad"]},
        {"person": [], "organization": [], "location": ["Rome", "Oslo"]},
    ]
    report = capsys.readouterr().err
    assert "spaces, 4 columns, token in column 1, tag in column 4, IOB1; 2 sentences, 1 document separators" in report
    assert "type ORG -> organization" in report and "1 entities of the type MISC" in report
    assert "6 questions (4 with entities, 2 without); 5 entities: person 1, organization 1, location 3" in report


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("0\tAnn\tB-PER\n1\tsang\tO\n\n0\tBob\tB-PER\n", ()),
        ("# id 5f domain=en\nAnn _ _ B-PER\nsang _ _ O\n\n# id 60 domain=en\nBob _ _ B-PER\n", ()),
        ("B-PER Ann\nO sang\n\nB-PER Bob\n", ()),
        ("Ann\tB-PER\tx\nsang\tO\ty\n\nBob\tB-PER\tz\n", ()),
        ("Ann\tB-PER\t\nsang\tO\n\nBob\tB-PER\t\n", ()),
        ("B-PER\tNNP\tAnn\nO\tVB\tsang\n\nB-PER\tNNP\tBob\n", ("--token-column", 3)),
        ("Ann\tB-PER\tO\nsang\tO\tO\n\nBob\tB-PER\tO\n", ("--tag-column", 2)),
        ("\ufeffAnn B-PER\nsang O\n###MEDLINE:12\nBob B-PER", ()),
        ("Ann S-PER\r\nsang O\r\n\t\r\nBob S-PER\r\n", ("--scheme", "iobes")),
    ],
)
def test_columns_are_found_or_said(tmp_path, text, options):
    rows = ask(tmp_path, write(tmp_path / "in.txt", text), options=options)
    assert [(text_of(row), answers_of(row)) for row in rows] == [
        ("Ann sang", {"person": ["Ann"]}),
        ("Bob", {"person": ["Bob"]}),
    ]


def test_compressed_files_read_alike(tmp_path):
    plain = write(tmp_path / "in.txt", CONLL)
    (tmp_path / "in.txt.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "in.txt.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    rows = ask(tmp_path, plain)
    assert ask(tmp_path, tmp_path / "in.txt.gz") == ask(tmp_path, tmp_path / "in.txt.zst") == rows
    assert ask(tmp_path, plain, output="out.parquet") == ask(tmp_path, plain, output="out.jsonl.zst") == rows


def test_a_token_is_what_stands_in_its_column(tmp_path, capsys):
    tokens = ["", "a\u2028b", "\x85", "c\rd", "# x", "😘 ", "\ufe0f", "New York", " "]
    lines = [f"{token}\t{'B-LOC' if token == 'New York' else 'O'}" for token in tokens]
    (row,) = ask(tmp_path, write(tmp_path / "in.txt", "\n".join(lines) + "\n\n \tO\n\tO\n"))
    assert text_of(row) == " ".join(tokens) and answers_of(row) == {"location": ["New York"]}
    assert "1 conversations from 1 of 2 sentences" in (report := capsys.readouterr().err)
    assert "left out: 1 sentences without text" in report


# what is wrong in a file

GOOD = "Ann\tB-PER\nLee\tI-PER\nsaw\tO\nRome\tB-LOC\n\n" * 3
GOOD_IOBES = "Ann\tB-PER\nLee\tE-PER\nsaw\tO\nRome\tS-LOC\n\n" * 3
GOOD_IOB1 = "Ann\tI-PER\nLee\tI-PER\nsaw\tO\nRome\tI-LOC\n\n" * 11
BROKEN = [
    (GOOD + "Bob\tB_PER\n", 16, "'B_PER'"),
    (GOOD + "Bob\tPER\n", 16, "expected O, or B, I"),
    (GOOD + "Bob\tB-\n", 16, "'B-'"),
    (GOOD + "Bob\to\n", 16, "'o'"),
    (GOOD + "Bob\t\n", 16, "''"),
    (GOOD + "Bob\tX-PER\n", 16, "'X-PER'"),
    (GOOD + "Bob\tE-PER\n", 16, "its prefixes are B-, I-"),
    (GOOD + "Bob\n", 16, "1 columns"),
    (GOOD + "Bob O\n", 16, "separated by tabs; expected 2"),
    (GOOD + "Bob\tNNP\tO\n", 16, "3 columns"),
    (GOOD + "Bob\tI-PER\n", 16, "write B-PER"),
    (GOOD + "Bob\tB-PER\nRome\tI-LOC\n", 17, "breaks IOB2"),
    (GOOD + "saw\tO\n# Bob\n", 17, "1 columns"),
    (GOOD + "\tB-PER\n", 16, "stands on no text"),
    (GOOD_IOBES + "Bob\tI-PER\n", 16, "no PER is open"),
    (GOOD_IOBES + "Bob\tE-PER\n", 16, "no PER is open"),
    (GOOD_IOBES + "Bob\tB-PER\n", 16, "PER is open after it"),
    (GOOD_IOBES + "Bob\tB-PER\nLee\tS-PER\n", 16, "PER is open after it"),
    (GOOD_IOBES + "Bob\tU-PER\n", 16, "its prefixes are B-, I-, E-, S-"),
    (GOOD_IOB1 + "Bob\tB-PER\n", 56, "expected I-PER"),
    ("Ann\tX-PER\n", 1, "neither 'Ann' nor 'X-PER'"),
    ("Ann\n", 1, "one column ('Ann')"),
    ("Ann\tB-PER\nBob\n", 2, "1 columns"),
    ("Ann B-PER\nBob\tO\nRome O\n", 2, "separated by spaces; expected 2"),
    ("Ann B-PER\nBob I-LOC\n", 2, "write B-LOC"),
]


@pytest.mark.parametrize(("text", "line", "words"), BROKEN)
def test_a_malformed_line_is_named(tmp_path, capsys, text, line, words):
    path = write(tmp_path / "in.txt", text)
    message = error_of(capsys, tmp_path, path)
    assert f"{path}, line {line}: " in message and words in message


def test_a_scheme_that_is_said_is_kept_to(tmp_path, capsys):
    iob1 = write(tmp_path / "in.txt", GOOD_IOB1)
    assert f"{iob1}, line 1: " in error_of(capsys, tmp_path, iob1, options=("--scheme", "iob2"))
    assert f"{iob1}, line 1: " in error_of(capsys, tmp_path, iob1, options=("--scheme", "iobes"))
    iob2 = write(tmp_path / "in.txt", GOOD)
    assert "line 1: tag 'B-PER' of the token 'Ann' breaks IOB1" in error_of(
        capsys, tmp_path, iob2, options=("--scheme", "iob1")
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no sentences"),
        ("\n\t\n -DOCSTART-\n", "has no sentences"),
        ("# one\n\n# two\n", "comments and no sentences"),
        ("Ann O\nBob O\n", "nothing to ask for"),
        ("Ann B-MISC\nBob O\n", "nothing to ask for"),
        ("O\tO\n", "--tag-column 1 or --tag-column 2"),
        ("O a b\nB-PER c d\n", "say which with --token-column"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, capsys, text, words):
    path = write(tmp_path / "in.txt", text)
    message = error_of(capsys, tmp_path, path)
    assert str(path) in message and words in message


def test_a_file_that_cannot_be_read(tmp_path, capsys):
    assert "--input names no file" in error_of(capsys, tmp_path)
    assert "no such file" in error_of(capsys, tmp_path, tmp_path / "in.txt")
    path = tmp_path / "in.txt"
    path.write_bytes(b"Ann B-PER\n\xff O\n")
    assert f"{path}, line 2: not UTF-8" in error_of(capsys, tmp_path, path)
    for suffix, data in ((".gz", gzip.compress(CONLL.encode())), (".zst", zstandard.compress(CONLL.encode()))):
        cut = tmp_path / f"in{suffix}"
        cut.write_bytes(data[:-10])
        assert f"{cut}: cannot be read" in error_of(capsys, tmp_path, cut)


@pytest.mark.parametrize(
    "options",
    [
        ("--limit", 0),
        ("--seed", -1),
        ("--dataset", ""),
        ("--dataset", "a\nb"),
        ("--tag-column", 5),
        ("--token-column", 0),
        ("--token-column", 4),
    ],
)
def test_options_without_sense(tmp_path, capsys, options):
    assert options[0] in error_of(capsys, tmp_path, write(tmp_path / "in.txt", CONLL), options=options)


# the types


def test_miscellaneous_is_left_out_in_any_case(tmp_path, capsys):
    text = "a B-MISC\nb B-misc\nc B-Miscellaneous\nd B-PER\ne B-miscible\n"
    (row,) = ask(tmp_path, write(tmp_path / "in.txt", text))
    assert answers_of(row) == {"person": ["d"], "miscible": ["e"]}
    assert "3 entities of the type MISC" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("t.json", '{"loc": "place", "PER": "Human Being", "GPE": "place"}'),
        ("t.toml", 'loc="place"\nPER="Human Being"'),
    ],
)
def test_a_table_of_ones_own_names_and_orders_the_types(tmp_path, capsys, name, table):
    text = "Ann B-PER\nin O\nRome B-LOC\nand O\nRome B-LOC\nCellLine_2 B-OtherLOC\n"
    (row,) = ask(tmp_path, write(tmp_path / "in.txt", text), options=("--types", write(tmp_path / name, table)))
    expected = {"place": ["Rome", "Rome"], "Human Being": ["Ann"], "other loc": ["CellLine_2"]}
    assert list(answers_of(row).items()) == list(expected.items())
    report = capsys.readouterr().err
    assert "type LOC -> place\n" in report and "type OtherLOC -> other loc (not in the table of names" in report


def test_labels_of_one_name_are_one_question(tmp_path):
    (row,) = ask(tmp_path, write(tmp_path / "in.txt", "a B-ORG\nb B-organisation\nc I-organisation\nd B-ORG\n"))
    assert answers_of(row) == {"organization": ["a", "b c", "d"]}


@pytest.mark.parametrize(
    ("name", "table", "words"),
    [
        ("t.json", "[]", "must be an object"),
        ("t.json", "{", "not a readable JSON file"),
        ("t.toml", "PER = ", "not a readable TOML file"),
        ("t.json", "{}", "has no names"),
        ("t.json", '{"PER": 1}', "the name of 'PER'"),
        ("t.json", '{"PER": " "}', "the name of 'PER'"),
        ("t.json", '{"PER": "a\\nb"}', "the name of 'PER'"),
        ("t.json", '{"PER": "a", "PER": "b"}', "'PER' stands in it twice"),
        ("t.json", '{"PER": "a", "per": "b"}', "'PER' and 'per' are one label"),
        ("t.txt", "PER person", ".json or .toml"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, capsys, name, table, words):
    source, types = write(tmp_path / "in.txt", CONLL), write(tmp_path / name, table)
    message = error_of(capsys, tmp_path, source, options=("--types", types))
    assert str(types) in message and words in message


def test_the_table_that_is_shipped_is_sound():
    names = read_type_names()
    assert names.ordered(["LOC", "organisation", "ORG", "per"]) == ["person", "organization", "location"]
    with pytest.raises(InputError, match="no such file"):
        read_type_names(Path("nowhere.json"))


# which sentences, in which turns


def numbered(path: Path, count: int) -> Path:
    return write(path, "".join(f"n{number} B-PER\n\n" for number in range(count)))


def test_the_first_turn_names_the_data_set_or_does_not(tmp_path):
    source = write(tmp_path / "in.txt", "Ann B-PER\n")
    (row,) = ask(tmp_path, source, name="CoNLL 2003")
    assert row["conversations"][0]["value"] == "Dataset: CoNLL 2003 \n Text: Ann" and row["id"] == "CoNLL 2003_0"
    (row,) = ask(tmp_path, source, options=("--template", "zero-shot"))
    assert row["conversations"][0]["value"] == "Text: Ann"


def test_apart_is_together_taken_apart(tmp_path, shared_data):
    source = shared_data / "bio" / "wnut17" / "dev.conll"
    together, apart = ask(tmp_path, source), ask(tmp_path, source, options=("--questions", "apart"))
    pairs = [
        (*row["conversations"][:2], *row["conversations"][place : place + 2])
        for row in together
        for place in range(2, 14, 2)
    ]
    assert [tuple(row["conversations"]) for row in apart] == pairs
    assert [row["id"] for row in apart] == [f"Set_{number}" for number in range(6 * len(together))]


def test_a_limit_takes_some_of_the_same_rows_in_their_order(tmp_path, shared_data):
    source = shared_data / "bio" / "crossner_ai" / "test.txt"
    for options in ((), ("--questions", "apart")):
        whole = ask(tmp_path, source, options=options)
        some = ask(tmp_path, source, options=(*options, "--limit", 100))
        texts = Counter(text_of(row) for row in some)
        assert len(some) == 100 * len(whole) // 431 and some == [row for row in whole if row in some]
        assert texts.keys() != {text_of(row) for row in whole[: len(some)]}
        assert ask(tmp_path, source, options=(*options, "--limit", 431)) == whole


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    source = numbered(tmp_path / "in.txt", 200)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ask(tmp_path, source, output=f"{name}.jsonl.gz", options=("--limit", 50, "--seed", seed))
    first, second, third = ((tmp_path / f"{name}.jsonl.gz").read_bytes() for name in "abc")
    assert first == second != third


def test_every_sentence_of_every_file_is_drawn_alike(tmp_path):
    sources = numbered(tmp_path / "a.txt", 6), write(tmp_path / "b.txt", "m0 B-PER\n\nm1 B-PER\n")
    draws = 150
    drawn = Counter(
        text_of(row) for seed in range(draws) for row in ask(tmp_path, *sources, options=("--limit", 2, "--seed", seed))
    )
    assert drawn.total() == 2 * draws and len(drawn) == 8
    # five standard deviations of a binomial share of 150 draws
    assert all(abs(count / draws - 0.25) < 5 * (0.25 * 0.75 / draws) ** 0.5 for count in drawn.values())
