"""From labels to TFRecords, as a user runs the two commands."""

import json
from collections import Counter
from pathlib import Path

import pytest

from data_prep import conversations, tfrecords
from uner_jax.command import run_command
from uner_jax.data.builder import open_examples
from uner_jax.records import read_rows, write_json, write_rows

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


def test_every_format_gives_the_same_records(tmp_path, asked, llama_tokenizer_path):
    rows = [row for _, row in read_rows(asked)]
    write_json(tmp_path / "array.json", rows)
    write_rows(tmp_path / "rows.parquet", rows)
    sources = {"lines": asked, "array": tmp_path / "array.json", "parquet": tmp_path / "rows.parquet"}
    for name, source in sources.items():
        assert build(tmp_path, llama_tokenizer_path, source, name=name) == 0
    assert records(tmp_path, "lines") == records(tmp_path, "array") == records(tmp_path, "parquet")
    assert len(records(tmp_path, "lines")) == len(rows)


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


def test_a_second_build_does_nothing_and_another_one_is_refused(tmp_path, asked, llama_tokenizer_path, capsys):
    assert build(tmp_path, llama_tokenizer_path, asked) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert build(tmp_path, llama_tokenizer_path, asked) == 0
    assert "already built" in capsys.readouterr().err
    assert build(tmp_path, llama_tokenizer_path, asked, scheme="released") == 1
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
        (None, "no such file"),
    ],
)
def test_bad_conversations_are_one_clear_message(tmp_path, llama_tokenizer_path, capsys, content, said):
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    assert build(tmp_path, llama_tokenizer_path, path) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and str(path) in message and said in message


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "1", "text": "", "entities": []}, "empty text"),
        ({"id": "1", "text": "x", "entities": [{"text": "x", "type": ""}]}, "an entity must be"),
        ({"id": "1", "text": "x"}, '"entities" must be a list'),
    ],
)
def test_bad_labels_are_one_clear_message(tmp_path, capsys, row, said):
    path = tmp_path / "labels.jsonl"
    write_rows(path, [row])
    assert run(conversations, "--labels", path, "--output", tmp_path / "c.jsonl") == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{path}, line 1" in message and said in message
    assert not (tmp_path / "c.jsonl").exists()


@pytest.mark.parametrize("module", [conversations, tfrecords])
def test_help_and_missing_arguments(module, capsys):
    assert run(module, "--help") == 0
    assert run(module) == 2
    assert "--" in capsys.readouterr().out
