"""From labels to TFRecords, as a user runs the two commands."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from data_prep import conversations, tfrecords
from uner_jax.command import run_command
from uner_jax.data.builder import open_examples
from uner_jax.records import read_rows, write_json, write_rows
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import load_tokenizer

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data_prep" / "sample" / "labels.jsonl"


def run(module, *arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        run_command(module.main, [str(argument) for argument in arguments])
    return left.value.code


def converse(output: Path, *arguments: object, labels: Path = SAMPLE) -> list[dict]:
    assert run(conversations, "--labels", labels, "--output", output, *arguments) == 0
    return [row for _, row in read_rows(output)]


def questions(row: dict) -> dict[str, list[str]]:
    """Type -> spans of a conversation."""
    values = [turn["value"] for turn in row["conversations"]][2:]
    prefix, suffix = "What describes ", " in the text?"
    return {q[len(prefix) : -len(suffix)]: json.loads(a) for q, a in zip(values[::2], values[1::2], strict=True)}


def test_positives_are_the_labels_and_negatives_are_not(tmp_path):
    labels = {row["id"]: row for _, row in read_rows(SAMPLE)}
    rows = converse(tmp_path / "c.jsonl", "--negatives-per-passage", 4)
    assert [row["id"] for row in rows] == list(labels)
    for row in rows:
        wanted: dict[str, list[str]] = {}
        for entity in labels[row["id"]]["entities"]:
            wanted.setdefault(" ".join(entity["type"].lower().split()), []).append(entity["text"])
        asked = questions(row)
        assert {name: spans for name, spans in asked.items() if spans} == wanted
        assert sum(not spans for spans in asked.values()) == 4


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        converse(tmp_path / f"{name}.jsonl", "--seed", seed)
    first, second, third = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert first == second != third


def test_a_passage_is_asked_the_same_wherever_it_stands(tmp_path):
    reordered = tmp_path / "labels.jsonl"
    write_rows(reordered, [row for _, row in read_rows(SAMPLE)][::-1])
    assert converse(tmp_path / "a.jsonl") == converse(tmp_path / "b.jsonl", labels=reordered)[::-1]


def skewed(path: Path) -> Path:
    """1,200 passages: one with the rare type, three with the common one, the others with neither."""
    types = ["rare"] + ["common"] * 3 + ["own"] * 1196
    rows = [
        {"id": str(n), "text": f"Ann {n}", "entities": [{"text": "Ann", "type": name}]} for n, name in enumerate(types)
    ]
    write_rows(path, rows)
    return path


@pytest.mark.parametrize(("strategy", "share"), [("frequency", 0.75), ("uniform", 0.5)])
def test_negatives_are_drawn_as_the_strategy_says(tmp_path, strategy, share):
    labels = skewed(tmp_path / "labels.jsonl")
    rows = converse(tmp_path / "c.jsonl", "--negatives", strategy, "--negatives-per-passage", 1, labels=labels)
    drawn = Counter(name for row in rows[4:] for name, spans in questions(row).items() if not spans)
    # five standard deviations of a binomial share of 1,196 draws
    assert abs(drawn["common"] / drawn.total() - share) < 5 * (share * (1 - share) / 1196) ** 0.5


def test_no_negatives(tmp_path):
    assert all(all(questions(row).values()) for row in converse(tmp_path / "c.jsonl", "--negatives", "none"))


def test_a_span_that_is_not_in_its_passage_is_dropped_and_counted(tmp_path, capsys):
    labels = tmp_path / "labels.jsonl"
    entities = [{"text": "Ann", "type": "Person"}, {"text": "Bob", "type": "person"}, {"text": "X", "type": "city"}]
    write_rows(labels, [{"id": "1", "text": "Ann sings.", "entities": entities}])
    (row,) = converse(tmp_path / "c.jsonl", labels=labels)
    assert questions(row) == {"person": ["Ann"]}
    assert "2 entities that are not in their passage" in capsys.readouterr().err


def test_a_type_whose_spans_are_lost_is_no_negative_of_its_passage(tmp_path):
    # the teacher saw a city here: "none" would be a wrong answer.
    labels = tmp_path / "labels.jsonl"
    lost = [{"text": "Ann", "type": "person"}, {"text": "PARIS", "type": "City "}]
    rows = [{"id": str(n), "text": "Ann saw Paris.", "entities": lost} for n in range(20)]
    other = {"id": "x", "text": "Rome in May", "entities": [{"text": "Rome", "type": "city"}]}
    may = {"id": "y", "text": "Rome in May", "entities": [{"text": "May", "type": "month"}]}
    write_rows(labels, [*rows, other, may])
    for row in converse(tmp_path / "c.jsonl", labels=labels)[:20]:
        assert questions(row) == {"person": ["Ann"], "month": []}


def test_a_passage_without_entities_is_asked_what_it_has_not(tmp_path, capsys):
    labels = tmp_path / "labels.jsonl"
    ann = [{"text": "Ann", "type": "person"}, {"text": "Ann", "type": "Person"}, {"text": "Oslo", "type": "city"}]
    rows = [{"id": "1", "text": "Ann in Oslo", "entities": ann}, {"id": "2", "text": "Nothing.", "entities": []}]
    write_rows(labels, rows)
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


def test_several_negatives_are_drawn_without_replacement_in_proportion(tmp_path):
    # types of 1, 2, 4 and 8 mentions, and 3,000 passages without any: chance of the pair, drawn one after the other.
    counts = {"a": 1, "b": 2, "c": 4, "d": 8}
    rows = [
        {"id": f"{name}{n}", "text": "Ann", "entities": [{"text": "Ann", "type": name}]}
        for name, count in counts.items()
        for n in range(count)
    ]
    empty = [{"id": str(n), "text": "Nothing.", "entities": []} for n in range(3000)]
    write_rows(tmp_path / "labels.jsonl", rows + empty)
    made = converse(tmp_path / "c.jsonl", "--negatives-per-passage", 2, labels=tmp_path / "labels.jsonl")
    pairs = Counter("".join(sorted(questions(row))) for row in made[len(rows) :])
    assert pairs.total() == 3000
    chi_square = 0.0
    for x, y in combinations(counts, 2):
        p, q = counts[x] / 15, counts[y] / 15
        expected = 3000 * (p * q / (1 - p) + q * p / (1 - q))
        chi_square += (pairs[x + y] - expected) ** 2 / expected
    # one in a thousand draws of six pairs is beyond it
    assert chi_square < 20.5


def build(tmp_path: Path, tokenizer: Path, *sources: Path, name: str = "set", **options: object) -> int:
    extra = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
    place = ["--tokenizer", tokenizer, "--data-dir", tmp_path / "data", "--name", name]
    return run(tfrecords, "--conversations", *sources, *place, *extra)


def records(tmp_path: Path, name: str = "set") -> list[tuple[str, list[int], list[int]]]:
    source = open_examples(tmp_path / "data", name)
    examples = [source[number] for number in range(len(source))]
    return [(example.id, example.tokens.tolist(), example.loss_mask.tolist()) for example in examples]


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("asked") / "c.jsonl"
    converse(path)
    return path


@pytest.fixture(scope="module")
def few(asked, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("few") / "c.jsonl"
    write_rows(path, [row for _, row in read_rows(asked)][:10])
    return path


def test_every_format_gives_the_same_records(tmp_path, asked, llama_tokenizer_path):
    rows = [row for _, row in read_rows(asked)]
    write_json(tmp_path / "array.json", rows)
    write_rows(tmp_path / "rows.parquet", rows)
    sources = {"lines": asked, "array": tmp_path / "array.json", "parquet": tmp_path / "rows.parquet"}
    for name, source in sources.items():
        assert build(tmp_path, llama_tokenizer_path, source, name=name) == 0
    assert records(tmp_path, "lines") == records(tmp_path, "array") == records(tmp_path, "parquet")
    assert len(records(tmp_path, "lines")) == len(rows)


def test_compressed_files_and_several_files_are_read_in_turn(tmp_path, asked, llama_tokenizer_path):
    rows = [row for _, row in read_rows(asked)]
    write_rows(tmp_path / "first.jsonl.gz", rows[:100])
    write_rows(tmp_path / "rest.jsonl.zst", rows[100:])
    parts = tmp_path / "first.jsonl.gz", tmp_path / "rest.jsonl.zst"
    assert build(tmp_path, llama_tokenizer_path, *parts, name="parts") == 0
    assert build(tmp_path, llama_tokenizer_path, asked, name="whole") == 0
    assert records(tmp_path, "parts") == records(tmp_path, "whole")


@pytest.mark.parametrize("scheme", ["whole", "released"])
def test_the_ids_are_those_of_the_scheme(tmp_path, asked, llama_tokenizer_path, scheme):
    tokenizer = load_tokenizer(llama_tokenizer_path)
    assert build(tmp_path, llama_tokenizer_path, asked, scheme=scheme, max_length=2048) == 0
    rows = {row["id"]: row for _, row in read_rows(asked)}
    built = records(tmp_path)
    assert len(built) == len(rows)
    for name, tokens, mask in built:
        assert (tokens, mask) == encode_conversation(rows[name], tokenizer, scheme)


def test_conversations_of_which_nothing_fits_are_left_out(tmp_path, few, llama_tokenizer_path, capsys):
    rows = [row for _, row in read_rows(few)]
    write_rows(tmp_path / "two.jsonl", [rows[0], rows[0] | {"id": "long", "conversations": long_conversation()}])
    whole = sum(len(row["conversations"]) // 2 - 1 for row in rows[:1])
    assert build(tmp_path, llama_tokenizer_path, tmp_path / "two.jsonl") == 0
    assert [name for name, _, _ in records(tmp_path)] == [rows[0]["id"]] and whole > 1
    report = "too long: 0 conversations lost questions, 1 lost all of theirs and were left out; 3 questions in all"
    assert report in capsys.readouterr().err
    assert build(tmp_path, llama_tokenizer_path, tmp_path / "two.jsonl", name="none", max_length=20) == 1
    assert capsys.readouterr().err.endswith("error: no question of any conversation fits into --max-length 20 tokens\n")
    assert not (tmp_path / "data" / "none" / "1.0.0").exists()


def long_conversation() -> list[dict]:
    """A passage of some 2,000 tokens and three questions."""
    turns = [("human", "Text: " + "Ann sings. " * 500), ("gpt", "I've read this text.")]
    turns += [("human", "What describes person in the text?"), ("gpt", '["Ann"]')] * 3
    return [{"from": speaker, "value": value} for speaker, value in turns]


def test_too_long_conversations_lose_whole_questions(tmp_path, asked, llama_tokenizer_path, capsys):
    assert build(tmp_path, llama_tokenizer_path, asked, name="long") == 0
    assert build(tmp_path, llama_tokenizer_path, asked, name="short", max_length=300) == 0
    report = capsys.readouterr().err
    whole, cut = ({row[0]: row for row in records(tmp_path, name)} for name in ("long", "short"))
    lost = 0
    for name, (_, tokens, mask) in cut.items():
        assert len(tokens) <= 300
        assert tokens == whole[name][1][: len(tokens)] and mask == whole[name][2][: len(mask)]
        assert tokens[-1] == 2, "ends with a turn"
        lost += whole[name][1].count(2) - tokens.count(2)
    assert lost > 0 and f"{lost:,} questions in all" in report


@pytest.mark.parametrize(
    ("option", "value"), [("max_length", 500), ("pack_to", 4096), ("scheme", "released"), ("tokenizer", None)]
)
def test_other_options_under_the_same_name_are_refused(
    tmp_path, few, shared_data, llama_tokenizer_path, capsys, option, value
):
    assert build(tmp_path, llama_tokenizer_path, few) == 0
    other = shared_data / "models" / "stories260K" / "tok512.model"
    again = {"tokenizer": other} if option == "tokenizer" else {"tokenizer": llama_tokenizer_path, option: value}
    assert build(tmp_path, again.pop("tokenizer"), few, **again) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"exists, built with other {option}; give another --name or remove it" in message


def test_other_conversations_under_the_same_name_are_refused(tmp_path, few, llama_tokenizer_path, capsys):
    assert build(tmp_path, llama_tokenizer_path, few) == 0
    write_rows(tmp_path / "fewer.jsonl", [row for _, row in read_rows(few)][1:])
    assert build(tmp_path, llama_tokenizer_path, tmp_path / "fewer.jsonl") == 1
    assert "exists, built with other sources" in capsys.readouterr().err


def test_a_second_build_does_nothing_and_another_one_is_refused(tmp_path, few, llama_tokenizer_path, capsys):
    assert build(tmp_path, llama_tokenizer_path, few) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert build(tmp_path, llama_tokenizer_path, few) == 0
    assert "already built" in capsys.readouterr().err
    assert build(tmp_path, llama_tokenizer_path, few, scheme="released") == 1
    assert "scheme" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}


ODD = {"id": "7", "conversations": [{"from": "gpt", "value": "Text: x"}, {"from": "human", "value": "y"}] * 2}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"id": "1"\n', "line 1: not JSON"),
        (json.dumps(ODD) + "\n", "line 1: turn 0 is from 'gpt'"),
        ('{"id": "1", "conversations": []}\n', "line 1: 0 turns"),
        ("", "no conversations"),
        ("[]\n", "no conversations"),
        ("[3]\n", "item 1: a conversation must be a JSON object, found int"),
        (None, "no such file"),
    ],
)
def test_bad_conversations_are_one_clear_message(tmp_path, llama_tokenizer_path, capsys, content, said):
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    assert build(tmp_path, llama_tokenizer_path, path) == 1
    shown = capsys.readouterr().err
    message = shown.strip().splitlines()[-1]
    assert message.startswith("error: ") and str(path) in message and said in message
    assert "Traceback" not in shown and shown.count("error") == 1
    assert not (tmp_path / "data" / "set" / "1.0.0").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_length": 0}, "--max-length 0 must be greater than 0 and at most --pack-to 2048"),
        ({"max_length": 3000}, "--max-length 3000 must be greater than 0 and at most --pack-to 2048"),
        ({"name": "My-Set"}, "--name 'My-Set' must be small letters, digits and underscores"),
        ({"tokenizer": Path("nowhere")}, "nowhere: expected a directory with tokenizer.json"),
    ],
)
def test_wrong_options_are_one_clear_message(tmp_path, few, llama_tokenizer_path, capsys, options, said):
    tokenizer = options.get("tokenizer", llama_tokenizer_path)
    rest = {name: value for name, value in options.items() if name != "tokenizer"}
    assert build(tmp_path, tokenizer, few, **rest) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and said in shown and shown.count("\n") == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "1", "text": "", "entities": []}, "empty text"),
        ({"id": "1", "text": "x", "entities": [{"text": "x", "type": ""}]}, "an entity must be"),
        ({"id": "1", "text": "x"}, '"entities" must be a list'),
        ({"id": 1, "text": "x", "entities": []}, '"id" must be a string, found int'),
        ([], "a label record must be a JSON object, found list"),
    ],
)
def test_bad_labels_are_one_clear_message(tmp_path, capsys, row, said):
    path = tmp_path / "labels.jsonl"
    good = {"id": "0", "text": "x", "entities": []}
    write_rows(path, [good, row])
    assert run(conversations, "--labels", path, "--output", tmp_path / "c.jsonl") == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"error: {path}, line 2" in message and said in message
    assert not (tmp_path / "c.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--negatives-per-passage", "-1"], "--negatives-per-passage must be at least 0, found -1"),
        (["--seed", "-1"], "--seed must be at least 0, found -1"),
        (["--labels", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_wrong_values_are_one_clear_message(tmp_path, capsys, arguments, said):
    assert run(conversations, "--labels", SAMPLE, "--output", tmp_path / "c.jsonl", *arguments) == 1
    assert capsys.readouterr().err == f"error: {said}\n"


def test_labels_without_a_record(tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("\n")
    assert run(conversations, "--labels", tmp_path / "empty.jsonl", "--output", tmp_path / "c.jsonl") == 1
    assert "empty.jsonl: has no records" in capsys.readouterr().err


@pytest.mark.parametrize("module", [conversations, tfrecords])
def test_help_and_missing_arguments(module, capsys):
    assert run(module, "--help") == 0
    assert run(module) == 2
    assert "--" in capsys.readouterr().out
