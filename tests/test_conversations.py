"""Labels and published conversations to conversations, as a user runs the command."""

import json
import string
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import conversations
from data_prep.conversations import validation_path
from data_prep.questions.entity_types import IRREGULAR, is_same_type, normalize_definition, type_keys
from data_prep.questions.negatives import NegativeSampler
from uner_jax.command import run_command
from uner_jax.records import check_conversation, read_rows, write_json, write_rows

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data_prep" / "sample" / "labels.jsonl"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        run_command(conversations.main, [str(argument) for argument in arguments])
    return left.value.code


def converse(output: Path, *arguments: object, labels: Path = SAMPLE) -> list[dict]:
    assert run("--labels", labels, "--output", output, *arguments) == 0
    return [check_conversation(row, where) for where, row in read_rows(output)]


def questions(row: dict) -> dict[str, list[str]]:
    """Type -> spans of a conversation."""
    values = [turn["value"] for turn in row["conversations"]][2:]
    prefix, suffix = "What describes ", " in the text?"
    return {q[len(prefix) : -len(suffix)]: json.loads(a) for q, a in zip(values[::2], values[1::2], strict=True)}


def positives(row: dict) -> dict[str, list[str]]:
    return {name: spans for name, spans in questions(row).items() if spans}


def negatives(row: dict) -> list[str]:
    return [name for name, spans in questions(row).items() if not spans]


def text_of(row: dict) -> str:
    return row["conversations"][0]["value"].removeprefix("Text: ")


def label(name: str, text: str, *entities: tuple[str, str], **more: object) -> dict:
    return {"id": name, "text": text, "entities": [{"text": span, "type": kind} for span, kind in entities]} | more


def published(name: str, text: str, *answers: tuple[str, list[str]], first: str = "Text: ") -> dict:
    values = [first + text, "I've read this text."]
    for kind, spans in answers:
        values += [f"What describes {kind} in the text?", json.dumps(spans)]
    turns = [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]
    return {"id": name, "conversations": turns}


def labels_file(path: Path, *rows: object) -> Path:
    write_rows(path, rows)
    return path


# The labels


def test_positives_are_the_labels_and_negatives_are_not(tmp_path):
    labels = {row["id"]: row for _, row in read_rows(SAMPLE)}
    rows = converse(tmp_path / "c.jsonl", "--negatives-per-passage", 4)
    assert [row["id"] for row in rows] == list(labels)
    for row in rows:
        wanted: dict[str, list[str]] = {}
        for entity in labels[row["id"]]["entities"]:
            wanted.setdefault(" ".join(entity["type"].lower().split()), []).append(entity["text"])
        assert positives(row) == wanted
        assert len(negatives(row)) == 4


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        converse(tmp_path / f"{name}.jsonl", "--seed", seed)
    first, second, third = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert first == second != third


def test_a_passage_is_asked_the_same_wherever_it_stands(tmp_path):
    reordered = labels_file(tmp_path / "labels.jsonl", *[row for _, row in read_rows(SAMPLE)][::-1])
    assert converse(tmp_path / "a.jsonl") == converse(tmp_path / "b.jsonl", labels=reordered)[::-1]


def test_no_negatives(tmp_path):
    assert all(all(questions(row).values()) for row in converse(tmp_path / "c.jsonl", "--negatives", "none"))


def test_a_span_that_is_not_in_its_passage_is_dropped_and_counted(tmp_path, capsys):
    entities = ("Ann", "Person"), ("Bob", "person"), ("X", "city")
    labels = labels_file(tmp_path / "labels.jsonl", label("1", "Ann sings.", *entities))
    (row,) = converse(tmp_path / "c.jsonl", labels=labels)
    assert questions(row) == {"person": ["Ann"]}
    assert "2 entities that are not in their passage" in capsys.readouterr().err


def test_a_type_whose_spans_are_lost_is_no_negative_of_its_passage(tmp_path):
    # the teacher saw a city here: "none" would be a wrong answer.
    rows = [label(str(n), "Ann saw Paris.", ("Ann", "person"), ("PARIS", "City ")) for n in range(20)]
    other = label("x", "Rome in May", ("Rome", "city"))
    may = label("y", "May in Rome", ("May", "month"))
    labels = labels_file(tmp_path / "labels.jsonl", *rows, other, may)
    for row in converse(tmp_path / "c.jsonl", labels=labels)[:20]:
        assert questions(row) == {"person": ["Ann"], "month": []}


def test_a_passage_without_entities_is_asked_what_it_has_not(tmp_path, capsys):
    ann = label("1", "Ann in Oslo", ("Ann", "person"), ("Ann", "Person"), ("Oslo", "city"))
    labels = labels_file(tmp_path / "labels.jsonl", ann, label("2", "Nothing."))
    first, second = converse(tmp_path / "c.jsonl", labels=labels)
    # two types in all: no more can be asked, and a span that is labelled twice is answered once.
    assert questions(first) == {"person": ["Ann"], "city": ["Oslo"]}
    assert questions(second) == {"person": [], "city": []}
    capsys.readouterr()
    (only,) = converse(tmp_path / "c.jsonl", "--negatives", "none", labels=labels)
    assert only["id"] == "1" and "1 passages without a question" in capsys.readouterr().err


def test_the_questions_come_in_random_order(tmp_path):
    answers = [list(questions(row).values()) for row in converse(tmp_path / "c.jsonl")]
    places = [place / (len(row) - 1) for row in answers for place, spans in enumerate(row) if spans]
    # a place has a standard deviation of 0.3, and 2,188 questions have entities.
    assert len(places) == 2188 and abs(sum(places) / len(places) - 0.5) < 5 * 0.3 / 2188**0.5


def test_what_one_record_finds_in_a_text_is_no_negative_of_another(tmp_path):
    rows = [label("1", "Ann in Oslo", ("Ann", "person")), label("2", "Ann in Oslo", ("Oslo", "cities"))]
    other = label("3", "May", ("May", "month"), ("May", "city"))
    first, second, _ = converse(tmp_path / "c.jsonl", labels=labels_file(tmp_path / "labels.jsonl", *rows, other))
    assert questions(first) == {"person": ["Ann"], "month": []}
    assert questions(second) == {"cities": ["Oslo"], "month": []}


def test_ids_that_stand_twice_are_numbered(tmp_path):
    names = ["7", "7#2", "7", "7", "8"]
    rows = [label(name, f"Ann {n}", ("Ann", f"type {n}")) for n, name in enumerate(names)]
    others = [label(f"other {n}", f"Bob {n}", ("Bob", f"kind {n}")) for n in range(100)]
    labels = labels_file(tmp_path / "labels.jsonl", *rows, *others)
    made = converse(tmp_path / "c.jsonl", labels=labels)[:5]
    assert [row["id"] for row in made] == ["7", "7#2", "7#3", "7#4", "8"]
    assert [text_of(row) for row in made] == [row["text"] for row in rows]
    assert len({tuple(sorted(negatives(row))) for row in made}) == 5


def test_definitions_keep_their_case_and_lose_their_period(tmp_path):
    definition = "A  city in the\nUnited States."
    mine = label("1", "Boston", ("Boston", definition), teacher={"variant": "definition"})
    other = label("2", "Ann", ("Ann", "A person who Sings"), teacher={"variant": "definition"})
    first, second = converse(tmp_path / "c.jsonl", labels=labels_file(tmp_path / "labels.jsonl", mine, other))
    assert questions(first) == {"A city in the United States": ["Boston"], "A person who Sings": []}
    assert questions(second) == {"A city in the United States": [], "A person who Sings": ["Ann"]}


def test_the_variant_of_published_files_is_an_option(tmp_path):
    labels = labels_file(tmp_path / "p.jsonl", published("1", "Boston", ("A City", ["Boston"])))
    for options, name in (((), "a city"), (("--variant", "definition"), "A City")):
        (row,) = converse(tmp_path / "c.jsonl", *options, labels=labels)
        assert questions(row) == {name: ["Boston"]}


@pytest.mark.parametrize(
    ("definition", "normal"),
    [
        ("A town in the U.S.", "A town in the U.S."),
        (" A  town. ", "A town"),
        ("A town", "A town"),
        (".", "."),
        ("Is it? No.", "Is it? No"),
    ],
)
def test_definitions_in_normal_form(definition, normal):
    assert normalize_definition(definition) == normal == normalize_definition(normal)


# The draw


def skewed(path: Path) -> Path:
    """1,200 passages: one with the rare type, three with the common one, the others with neither."""
    types = ["rare"] + ["common"] * 3 + ["own"] * 1196
    return labels_file(path, *(label(str(n), f"Ann {n}", ("Ann", name)) for n, name in enumerate(types)))


@pytest.mark.parametrize(("strategy", "share"), [("frequency", 0.75), ("uniform", 0.5)])
def test_negatives_are_drawn_as_the_strategy_says(tmp_path, strategy, share):
    labels = skewed(tmp_path / "labels.jsonl")
    rows = converse(tmp_path / "c.jsonl", "--negatives", strategy, "--negatives-per-passage", 1, labels=labels)
    drawn = Counter(name for row in rows[4:] for name in negatives(row))
    # five standard deviations of a binomial share of 1,196 draws
    assert abs(drawn["common"] / drawn.total() - share) < 5 * (share * (1 - share) / 1196) ** 0.5


def expected_pairs(counts: dict[str, int]) -> dict[frozenset[str], float]:
    """Chance of each pair of types, drawn one after the other in proportion to their counts."""
    total = sum(counts.values())
    chances = {}
    for x, y in combinations(counts, 2):
        p, q = counts[x] / total, counts[y] / total
        chances[frozenset((x, y))] = p * q / (1 - p) + q * p / (1 - q)
    return chances


# the present type has so much of the weight that all proposals are in vain, or so little that none is, or half.
@pytest.mark.parametrize("present", [10**9, 15, 0])
def test_several_negatives_are_drawn_without_replacement_in_proportion(present):
    counts = {"a": 1, "b": 2, "c": 4, "d": 8}
    sampler = NegativeSampler(Counter(counts | {"own": present} if present else counts), "frequency", 3, per_passage=2)
    pairs = Counter(frozenset(sampler.draw({"own"}, 1, sampler.generator(str(n)))) for n in range(3000))
    chances = expected_pairs(counts)
    assert pairs.keys() <= chances.keys()
    chi_square = sum((pairs[pair] - 3000 * chance) ** 2 / (3000 * chance) for pair, chance in chances.items())
    # one in a thousand draws of six pairs is beyond it
    assert chi_square < 20.5


def test_the_command_draws_as_the_sampler_does(tmp_path):
    counts = {"a": 1, "b": 2, "c": 4, "d": 8}
    rows = [
        label(f"{name}{n}", f"Ann {name}{n}", ("Ann", name)) for name, count in counts.items() for n in range(count)
    ]
    empty = [label(str(n), "Nothing.") for n in range(200)]
    labels = labels_file(tmp_path / "labels.jsonl", *rows, *empty)
    made = converse(tmp_path / "c.jsonl", "--negatives-per-passage", 2, "--seed", 3, labels=labels)
    sampler = NegativeSampler(Counter(counts), "frequency", 3, per_passage=2)
    for n, row in enumerate(made[len(rows) :]):
        assert set(questions(row)) == set(sampler.draw((), 0, sampler.generator(str(n))))


@pytest.mark.parametrize("ratio", [0, 0.5, 1, 2.25])
def test_negatives_in_ratio_to_the_types_of_a_passage(tmp_path, ratio):
    rows = converse(tmp_path / "c.jsonl", "--negatives-ratio", ratio)
    has = np.array([len(positives(row)) for row in rows])
    has_not = np.array([len(negatives(row)) for row in rows])
    assert np.all(abs(has_not - ratio * has) < 1)
    # a fraction is drawn, with a standard deviation of at most a half.
    assert abs(has_not.sum() - ratio * has.sum()) <= 5 * 0.5 * len(rows) ** 0.5
    if ratio == int(ratio):
        assert np.all(has_not == ratio * has)


@given(
    counts=st.dictionaries(st.text(string.ascii_lowercase, min_size=3, max_size=5), st.integers(1, 1000), min_size=1),
    data=st.data(),
    strategy=st.sampled_from(["frequency", "uniform"]),
    wanted=st.integers(0, 40),
)
def test_a_draw_is_of_other_types_each_once_and_as_many_as_there_are(counts, data, strategy, wanted):
    present = data.draw(st.sets(st.sampled_from(sorted(counts))))
    sampler = NegativeSampler(Counter(counts), strategy, 0, per_passage=wanted)
    possible = {name for name in counts if not any(is_same_type(name, other) for other in present)}
    drawn = sampler.draw(present, 1, sampler.generator("1"))
    assert len(drawn) == len(set(drawn)) == min(wanted, len(possible)) and set(drawn) <= possible
    assert drawn == sampler.draw(present, 1, sampler.generator("1"))


# Types under another name

VARIANTS = {
    "upper case": str.upper,
    "title case": str.title,
    "spaces": lambda name: f"  {name.replace(' ', '   ')} ",
    "hyphens": lambda name: name.replace(" ", "-"),
    "underscores": lambda name: name.replace(" ", "_"),
    "joined": lambda name: name.replace(" ", ""),
    "plural": lambda name: plural(name),
    "optional plural": lambda name: f"{name}(s)",
    "full width": lambda name: "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in name),
}


def plural(name: str) -> str:
    """The plural that a school book's rules give."""
    if name.endswith("y") and name[-2:-1] not in tuple("aeiou"):
        return f"{name[:-1]}ies"
    if name.endswith("sis"):
        return f"{name[:-2]}es"
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    return f"{name}s"


@pytest.fixture(scope="module")
def published_types(shared_data) -> list[str]:
    rows = [row for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl")]
    return sorted({name for row in rows for name in questions(row)})


@pytest.mark.parametrize("variant", VARIANTS)
def test_types_of_the_published_data_under_another_name(published_types, variant):
    # of these the school book's rule is wrong, and inside "groupofpeople" nobody finds "person".
    odd = {"plural": ("series", "species"), "joined": tuple(IRREGULAR)}.get(variant, ())
    names = [name for name in published_types if not (odd and name.endswith(odd))]
    assert [name for name in names if not is_same_type(VARIANTS[variant](name), name)] == []
    assert len(names) > 370


def test_the_published_types_are_told_apart(published_types):
    alike = {pair for pair in combinations(published_types, 2) if is_same_type(*pair)}
    assert alike == {("media", "medium"), ("people", "person")}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *IRREGULAR.items(),
        ("analysis", "analyses"),
        ("disease", "diseases"),
        ("bus", "buses"),
        ("class", "classes"),
        ("knife", "knives"),
        ("movie", "movies"),
        ("city", "cities"),
        ("key", "keys"),
        ("businessman", "businessmen"),
        ("woman", "women"),
        ("id", "ids"),
        ("group of people", "groups of persons"),
        ("sports team", "sport teams"),
        ("e-mail", "email"),
        ("data base", "databases"),
        ("file names", "filename"),
        ("sports team", "sportsteam"),
        ("person's name", "persons name"),
        ("STRASSE", "straße"),
        ("curriculum", "curricula"),
        ("sports stadium", "sports stadia"),
        ("virus", "viruses"),
        ("cactus", "cacti"),
        ("radius", "radii"),
        ("helix", "helices"),
        ("cortex", "cortices"),
        ("ganglion", "ganglia"),
        ("polyhedron", "polyhedra"),
        ("grandchild", "grandchildren"),
        ("sportsperson", "sportspeople"),
        ("bureau", "bureaux"),
        ("U.S. state", "US states"),
        ("ΟΔΟΣ", "οδος"),
        ("person.", "“person”"),
    ],
)
def test_two_names_of_one_type(one, other):
    assert is_same_type(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("c", "c++"),
        ("party", "part"),
        ("person", "personality"),
        ("county", "country"),
        ("state", "status"),
        ("date", "data"),
        ("हिन्दी", "हन्द"),
        ("人", "人名"),
        ("i", "e"),
    ],
)
def test_names_of_two_types(one, other):
    assert not is_same_type(one, other)


@given(st.text(min_size=1).filter(str.strip))
def test_every_name_has_a_key_whatever_its_case_and_spaces(name):
    normal = " ".join(name.lower().split())
    assert all(type_keys(normal)) and type_keys(f" {name}  ") == type_keys(normal)


NAMES = ["person", "city", "analysis", "sports team", "file name", "class", "child", "knife", "body part", "c++"]


@settings(max_examples=40, deadline=None)
@given(
    has=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(sorted(VARIANTS))), min_size=1, max_size=5),
    others=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(sorted(VARIANTS))), max_size=8),
)
def test_no_negative_is_a_type_that_the_passage_has(tmp_path_factory, has, others):
    folder = tmp_path_factory.mktemp("alike")
    rows = [
        label("mine", "Ann sings", *(("Ann", VARIANTS[how](name)) for name, how in has)),
        *(label(str(n), f"Ann {n}", ("Ann", VARIANTS[how](name))) for n, (name, how) in enumerate(others)),
    ]
    labels = labels_file(folder / "labels.jsonl", *rows)
    mine = converse(folder / "c.jsonl", "--negatives-per-passage", 50, labels=labels)[0]
    wanted = {" ".join(VARIANTS[how](name).lower().split()) for name, how in others if name not in {n for n, _ in has}}
    assert set(negatives(mine)) == wanted


# Published files


@pytest.fixture(scope="module")
def pile(shared_data) -> list[dict]:
    return [row for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl")]


def test_published_conversations_keep_their_answers(tmp_path, shared_data, pile):
    made = converse(tmp_path / "c.jsonl", labels=shared_data / "teacher" / "pile_ner_sample.jsonl")
    assert [row["id"] for row in made] == [row["id"] for row in pile]
    for row, came in zip(made, pile, strict=True):
        assert text_of(row) == text_of(came) and positives(row) == positives(came)
        assert len(negatives(row)) == 5


@pytest.mark.parametrize("name", ["array.json", "rows.jsonl", "rows.parquet", "rows.jsonl.gz", "rows.jsonl.zst"])
def test_every_format_of_the_published_form_is_read_alike(tmp_path, shared_data, pile, name):
    (write_json if name == "array.json" else write_rows)(tmp_path / name, pile)
    made = converse(tmp_path / "c.jsonl", labels=tmp_path / name)
    assert made == converse(tmp_path / "d.jsonl", labels=shared_data / "teacher" / "pile_ner_sample.jsonl")


def test_labels_and_published_conversations_of_them_give_the_same(tmp_path, pile):
    rows = [
        label(row["id"], text_of(row), *((span, name) for name, spans in positives(row).items() for span in spans))
        for row in pile
    ]
    labels = labels_file(tmp_path / "labels.jsonl", *rows)
    again = labels_file(tmp_path / "published.jsonl", *pile)
    assert converse(tmp_path / "a.jsonl", labels=labels) == converse(tmp_path / "b.jsonl", labels=again)


def test_what_the_command_writes_it_reads(tmp_path):
    # the order of the questions is drawn, and what they are is not.
    first = converse(tmp_path / "a.jsonl")
    again = converse(tmp_path / "b.jsonl", labels=tmp_path / "a.jsonl")
    assert [questions(row) for row in first] == [questions(row) for row in again]


@pytest.mark.parametrize("name", ["CrossNER_AI.json", "mit-restaurant.json"])
def test_one_question_a_row_becomes_one_passage(tmp_path, shared_data, name):
    expected: dict[str, dict[str, list[str]]] = {}
    for row in json.loads((shared_data / "eval" / name).read_text()):
        asked = expected.setdefault(text_of(row), {})
        for kind, spans in positives(row).items():
            asked[kind.lower()] = list(dict.fromkeys(spans))
    made = converse(tmp_path / "c.jsonl", labels=shared_data / "eval" / name)
    assert {text_of(row): positives(row) for row in made} == expected and len(made) == len(expected)


def test_rows_of_a_passage_are_merged_wherever_they_stand(tmp_path):
    rows = [
        published("1", "Ann in Oslo", ("Person", ["Ann"]), ("city", [])),
        published("2", "Bob", ("drink", [])),
        published("3", "Ann in Oslo", ("city", ["Oslo", "Oslo", "Rome", ""]), ("person", ["Ann", "Ann in Oslo"])),
        published("4", "Ann in Oslo", ("person", ["Ann"]), first="Dataset: X \n Text: "),
    ]
    labels = labels_file(tmp_path / "published.jsonl", *rows)
    made = {row["id"]: row for row in converse(tmp_path / "c.jsonl", "--negatives-per-passage", 9, labels=labels)}
    assert made.keys() == {"1", "2", "4"}
    assert questions(made["1"]) == {"person": ["Ann", "Ann in Oslo"], "city": ["Oslo"]}
    assert questions(made["2"]) == {"person": [], "city": []}
    # another data set's types mean something else: its passage is one of its own, and keeps its name.
    assert questions(made["4"]) == {"person": ["Ann"], "city": []}
    assert made["4"]["conversations"][0]["value"] == "Dataset: X \n Text: Ann in Oslo"


@pytest.mark.parametrize("name", ["odd in the text? type", "a\ttype", "a\u2028b", "{}", "%s", "ñ", "\U0001f600"])
@pytest.mark.parametrize("text", ["Text: Ann", "Ann\r\nText: 2", "\u0000 Ann", "Ann\ud800"])
def test_odd_names_and_texts_come_back(tmp_path, name, text):
    labels = labels_file(tmp_path / "p.jsonl", published("1", text, (name, ["Ann"])))
    (row,) = converse(tmp_path / "c.jsonl", labels=labels)
    assert text_of(row) == text_of(published("1", text)) and questions(row) == {" ".join(name.split()): ["Ann"]}


# The validation set


def split(tmp_path: Path, labels: Path, *options: object, fraction: object = 0.2) -> tuple[list[dict], list[dict]]:
    training = converse(tmp_path / "c.jsonl", "--validation-fraction", fraction, *options, labels=labels)
    return training, [row for _, row in read_rows(tmp_path / "c.validation.jsonl")]


def test_a_text_is_on_one_side_only(tmp_path, shared_data):
    passages = [row for _, row in read_rows(SAMPLE)]
    twice = [row | {"id": f"again-{row['id']}"} for row in passages]
    labels = labels_file(tmp_path / "labels.jsonl", *passages, *twice)
    training, held_out = split(tmp_path, labels)
    texts = [{text_of(row) for row in side} for side in (training, held_out)]
    assert texts[0].isdisjoint(texts[1]) and texts[0] | texts[1] == {row["text"] for row in passages}
    assert len(training) + len(held_out) == len(passages) * 2
    # five standard deviations of a binomial share
    assert abs(len(texts[1]) / len(passages) - 0.2) < 5 * (0.2 * 0.8 / len(passages)) ** 0.5
    other_training, _ = split(tmp_path, labels, "--seed", 1)
    assert {text_of(row) for row in other_training} != texts[0]


def test_questions_of_a_passage_stay_together(tmp_path, shared_data):
    training, held_out = split(tmp_path, shared_data / "eval" / "CrossNER_AI.json")
    assert held_out and {text_of(row) for row in training}.isdisjoint(text_of(row) for row in held_out)


def test_passages_keep_their_side_when_others_are_added(tmp_path):
    rows = [row for _, row in read_rows(SAMPLE)]
    _, few = split(tmp_path, labels_file(tmp_path / "few.jsonl", *rows[::2]))
    _, all_of_them = split(tmp_path, SAMPLE)
    halved = {row["id"] for row in rows[::2]}
    assert {row["id"] for row in few} == {row["id"] for row in all_of_them} & halved != set()


def test_a_greater_fraction_holds_out_more_of_the_same(tmp_path):
    held_out = [{row["id"] for row in split(tmp_path, SAMPLE, fraction=fraction)[1]} for fraction in (0.1, 0.3, 0.9)]
    assert held_out[0] < held_out[1] < held_out[2]


def test_types_of_held_out_passages_alone_are_never_asked(tmp_path):
    rows = [label(str(n), f"Ann {n}", ("Ann", f"type {n}")) for n in range(60)]
    training, held_out = split(tmp_path, labels_file(tmp_path / "labels.jsonl", *rows))
    known = {name for row in training for name in positives(row)}
    assert len(held_out) > 2
    assert all(set(negatives(row)) <= known for row in [*training, *held_out])


def test_a_validation_file_of_an_earlier_run_is_pointed_out(tmp_path, capsys):
    split(tmp_path, SAMPLE)
    capsys.readouterr()
    converse(tmp_path / "c.jsonl")
    assert "c.validation.jsonl: is of an earlier run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("c.jsonl", "c.validation.jsonl"),
        ("c.jsonl.gz", "c.validation.jsonl.gz"),
        ("a.b.parquet", "a.b.validation.parquet"),
        ("plain", "plain.validation"),
    ],
)
def test_where_held_out_conversations_stand(output, expected):
    assert validation_path(Path("d") / output) == Path("d") / expected


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "parquet"])
def test_both_sides_have_the_format_of_the_output(tmp_path, ending):
    options = ("--validation-fraction", 0.2)
    plain = converse(tmp_path / "c.jsonl", *options)
    assert converse(tmp_path / f"c.{ending}", *options) == plain
    held_out = [[row for _, row in read_rows(tmp_path / f"c.validation.{name}")] for name in ("jsonl", ending)]
    assert held_out[0] == held_out[1] != []


# What is wrong


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "1", "text": "", "entities": []}, "empty text"),
        ({"id": "1", "text": "x", "entities": [{"text": "x", "type": ""}]}, "an entity must be"),
        ({"id": "1", "text": "x"}, '"entities" must be a list'),
        ({"id": 1, "text": "x", "entities": []}, '"id" must be a string, found int'),
        ([], "a label record must be a JSON object, found list"),
        ({"prompt": "x"}, "neither a label record (id, text, entities) nor a conversation (id, conversations)"),
        ({}, "neither a label record"),
        ({"id": "1", "conversations": []}, "0 turns"),
        (published("1", "x", ("a", ["x"]), first="Passage: "), "turn 0 must be"),
        (published("1", "x", ("a", [1])), "turn 3 must be a JSON list of strings, found '[1]'"),
        (published("1", "x", ("a", "x")), "turn 3 must be a JSON list of strings"),
        (published("1", "x", (" ", ["x"])), 'turn 2 must be "What describes TYPE in the text?"'),
    ],
)
def test_bad_records_are_one_clear_message(tmp_path, capsys, row, said):
    labels = labels_file(tmp_path / "labels.jsonl", label("0", "x"), row)
    assert run("--labels", labels, "--output", tmp_path / "c.jsonl", "--validation-fraction", 0.5) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"error: {labels}, line 2" in message and said in message
    assert list(tmp_path.iterdir()) == [labels]


@pytest.mark.parametrize(("turn", "value"), [(3, "['x']"), (3, ""), (2, "Which a?"), (2, "What describes a?")])
def test_bad_turns_are_one_clear_message(tmp_path, capsys, turn, value):
    row = published("1", "x", ("a", ["x"]))
    row["conversations"][turn]["value"] = value
    labels = labels_file(tmp_path / "labels.jsonl", row)
    assert run("--labels", labels, "--output", tmp_path / "c.jsonl") == 1
    assert f"error: {labels}, line 1: turn {turn} must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--negatives-per-passage", "-1"], "--negatives-per-passage must be at least 0, found -1"),
        (["--negatives-ratio", "-0.5"], "--negatives-ratio must be a number of at least 0, found -0.5"),
        (["--negatives-ratio", "nan"], "--negatives-ratio must be a number of at least 0, found nan"),
        (
            ["--negatives-ratio", "1", "--negatives-per-passage", "3"],
            "--negatives-per-passage and --negatives-ratio exclude each other: give one of them",
        ),
        (
            ["--validation-fraction", "1"],
            "--validation-fraction must be at least 0 and less than 1, found 1.0",
        ),
        (["--tokenizer", "t"], "--tokenizer is for the lengths in the report: give --report DIR too"),
        (["--seed", "-1"], "--seed must be at least 0, found -1"),
        (["--labels", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--report", str(SAMPLE)], f"--report {SAMPLE}: is a file; give a directory"),
    ],
)
def test_wrong_values_are_one_clear_message(tmp_path, capsys, arguments, said):
    assert run("--labels", SAMPLE, "--output", tmp_path / "c.jsonl", *arguments) == 1
    assert capsys.readouterr().err == f"error: {said}\n"


def test_the_labels_are_not_written_over(tmp_path, capsys):
    labels = labels_file(tmp_path / "labels.jsonl", label("1", "Ann", ("Ann", "person")))
    before = labels.read_bytes()
    assert run("--labels", labels, "--output", labels) == 1
    assert "would write over --labels" in capsys.readouterr().err and labels.read_bytes() == before


@pytest.mark.parametrize("content", ["\n", "", "[]"])
def test_labels_without_a_record(tmp_path, capsys, content):
    (tmp_path / "empty.jsonl").write_text(content)
    assert run("--labels", tmp_path / "empty.jsonl", "--output", tmp_path / "c.jsonl") == 1
    assert "empty.jsonl: has no records" in capsys.readouterr().err


def test_labels_of_which_none_has_an_entity(tmp_path, capsys):
    labels = labels_file(tmp_path / "labels.jsonl", label("1", "Nothing."), label("2", "Nor here."))
    assert converse(tmp_path / "c.jsonl", labels=labels) == []
    assert "2 passages without a question" in capsys.readouterr().err
