"""What Beam builds is what this machine builds, byte for byte, and what goes wrong in a worker is one clear message.

Runs in an environment of its own: make test-beam.
"""

import itertools
import json
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data_prep import tfrecords
from data_prep.tokens import beam, encoding
from uner_jax.command import run_command
from uner_jax.data.builder import dataset_directory
from uner_jax.records import read_rows, write_rows

ONE_PROCESS = ()
TWO_PROCESSES = ("direct_running_mode=multi_processing", "direct_num_workers=2")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        run_command(tfrecords.main, [str(argument) for argument in arguments])
    return left.value.code


@pytest.fixture
def build(tmp_path, llama_tokenizer_path):
    """Build the data set `name` from files; with Beam if its options are given."""

    def build(*sources, name="set", beam_options=None, data_dir=tmp_path / "data", **options) -> int:
        extra = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
        if beam_options is not None:
            extra += ["--beam-runner", "FnApiRunner"]
        if beam_options:
            extra += ["--beam-options", *beam_options]
        place = ["--tokenizer", llama_tokenizer_path, "--data-dir", data_dir, "--name", name]
        return run("--conversations", *sources, *place, *extra)

    return build


@pytest.fixture(scope="module")
def rows(shared_data) -> list[dict]:
    """The 882 real conversations, and 200 with many questions."""
    golden = [row for _, row in read_rows(shared_data / "golden" / "preprocess2_llama.jsonl")]
    pile = [row for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl")]
    asked = [turn for row in pile for turn in row["conversations"][2:]]
    long = [
        {"id": f"long{number}", "conversations": row["conversations"][:2] + asked[number * 24 : number * 24 + 24]}
        for number, row in enumerate(pile[:60])
    ]
    return pile + long + [{"id": row["id"], "conversations": row["conversations"]} for row in golden]


@pytest.fixture
def parts(rows, tmp_path) -> list[Path]:
    """The conversations in four files of all kinds, one of them empty but for a blank line."""
    cuts = {"a.jsonl": (0, 400), "b.jsonl.gz": (400, 500), "c.parquet": (500, 900), "d.jsonl.zst": (900, len(rows))}
    for name, (start, end) in cuts.items():
        write_rows(tmp_path / name, rows[start:end])
    return [tmp_path / name for name in cuts]


def files(tmp_path: Path, name: str) -> dict[str, bytes]:
    directory = dataset_directory(tmp_path / "data", name)
    return {
        str(path.relative_to(directory)).replace(f"{name}-train", "NAME-train"): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def without_name(content: dict[str, bytes]) -> dict[str, bytes]:
    fields = json.loads(content["dataset_info.json"])
    fields.pop("name")
    return content | {"dataset_info.json": json.dumps(fields).encode()}


@pytest.mark.parametrize("options", [ONE_PROCESS, TWO_PROCESSES], ids=["one process", "two processes"])
def test_beam_builds_the_same_bytes(build, parts, tmp_path, options, capfd):
    settings = {"overlong": "split", "max_length": 500, "shard_megabytes": 0.3}
    assert build(*parts, name="local", **settings) == 0
    local = capfd.readouterr().err
    assert build(*parts, name="beam", beam_options=options, **settings) == 0
    beams = capfd.readouterr().err
    assert local.splitlines()[-1] in beams.splitlines(), "the report too"
    built = files(tmp_path, "local")
    assert sum(name.startswith("NAME-train.tfrecord-") for name in built) == 8
    assert without_name(files(tmp_path, "beam")) == without_name(built)


def test_one_file_and_the_same_name_and_version(build, parts, tmp_path):
    assert build(parts[0], data_dir=tmp_path / "data") == 0
    assert build(parts[0], data_dir=tmp_path / "other" / "data", beam_options=ONE_PROCESS) == 0
    local, beams = files(tmp_path, "set"), files(tmp_path / "other", "set")
    assert local == beams and "NAME-train.tfrecord-00000-of-00001" in local
    # what one has built, the other finds built.
    assert build(parts[0], beam_options=ONE_PROCESS) == 0
    assert files(tmp_path, "set") == local
    builder = tfds.builder_from_directory(str(dataset_directory(tmp_path / "data", "set")))
    assert builder.info.splits["train"].num_examples == 400


# ---- what is wrong


@pytest.mark.parametrize("options", [ONE_PROCESS, TWO_PROCESSES], ids=["one process", "two processes"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"id": "1", "conversations": []}\n', "line 1: 0 turns"),
        ('{"id": "1"\n', "line 1: not JSON"),
        ("[3]\n", "item 1: a conversation must be a JSON object, found int"),
    ],
)
def test_bad_conversations_are_the_same_message(build, parts, tmp_path, capfd, content, said, options):
    (tmp_path / "bad.jsonl").write_text(content)
    messages = []
    for beam_options in (None, options):
        assert build(parts[1], tmp_path / "bad.jsonl", beam_options=beam_options) == 1
        messages.append([line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")])
    assert messages[0] == messages[1] and said in messages[0][0] and len(messages[0]) == 1
    assert list((tmp_path / "data" / "set").iterdir()) == []


def test_other_failures_are_the_same_message(build, parts, rows, tmp_path, capfd):
    (tmp_path / "empty.jsonl").write_text("\n")
    odd = rows[0] | {"id": "odd", "conversations": [*rows[0]["conversations"][:-1], {"from": "gpt", "value": "\ud800"}]}
    write_rows(tmp_path / "odd.jsonl", [*rows[:5], odd])
    cases = [
        ([tmp_path / "empty.jsonl"], {}, "empty.jsonl: no conversations"),
        ([parts[1]], {"max_length": 20}, "no question of any conversation fits into --max-length 20 tokens"),
        ([tmp_path / "odd.jsonl"], {}, "conversation 'odd': a text to tokenize must be"),
    ]
    for sources, options, said in cases:
        messages = []
        for beam_options in (None, ONE_PROCESS):
            assert build(*sources, beam_options=beam_options, **options) == 1
            messages.append([line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")])
        assert messages[0] == messages[1] and said in messages[0][0]
    assert list((tmp_path / "data" / "set").iterdir()) == []


def test_the_mode_that_loses_records_is_refused(build, parts, capfd, tmp_path):
    assert build(parts[1], beam_options=("direct_running_mode=multi_threading", "direct_num_workers=2")) == 1
    assert "error: direct_running_mode=multi_threading loses records" in capfd.readouterr().err
    assert not (tmp_path / "data").exists()


def lose(function, number):
    """The function, whose iterator leaves out what it gives at that place."""

    def losing(*arguments):
        return (item for place, item in enumerate(function(*arguments)) if place != number)

    return losing


@pytest.mark.parametrize(
    ("where", "number", "said"),
    [
        # the accounts of a block stand before its records, and what was read behind its blocks.
        ((beam._Encode, "process"), 3, "records encoded and written: 100 and 99"),
        ((beam._Encode, "process"), 0, "records encoded and written: 0 and 100"),
        ((beam._Read, "process"), 0, "conversations read and encoded: 100 and 0"),
        ((beam._Read, "process"), 1, "Beam read 0 of 1 files"),
    ],
)
def test_a_runner_that_loses_an_element_fails_the_build(
    build, parts, capfd, tmp_path, monkeypatch, where, number, said
):
    monkeypatch.setattr(*where, lose(getattr(*where), number))
    assert build(parts[1], beam_options=ONE_PROCESS) == 1
    assert said in capfd.readouterr().err
    assert list((tmp_path / "data" / "set").iterdir()) == []


def test_several_blocks_of_a_file(build, parts, tmp_path, monkeypatch):
    assert build(parts[0], name="local") == 0
    monkeypatch.setattr(encoding, "BLOCK", 7)
    assert build(parts[0], name="beam", beam_options=ONE_PROCESS) == 0
    assert without_name(files(tmp_path, "local")) == without_name(files(tmp_path, "beam"))


def test_more_files_than_records(build, rows, tmp_path):
    write_rows(tmp_path / "few.jsonl", rows[:9])
    for name, options in (("local", None), ("beam", ONE_PROCESS)):
        assert build(tmp_path / "few.jsonl", name=name, beam_options=options, shard_megabytes=0.0005) == 0
    built = files(tmp_path, "local")
    assert b"" in built.values() and without_name(files(tmp_path, "beam")) == without_name(built)


# ---- object stores


def test_input_and_output_in_an_object_store(build, rows, tmp_path, bucket):
    write_rows(bucket / "in" / "rows.jsonl.gz", rows[:100])
    for data_dir, options in ((tmp_path / "data", None), ("gs://bucket/data", ONE_PROCESS)):
        source = bucket / "in" / "rows.jsonl.gz" if options is None else "gs://bucket/in/rows.jsonl.gz"
        assert build(source, data_dir=data_dir, beam_options=options, shard_megabytes=0.05) == 0
    assert files(tmp_path, "set") == files(bucket, "set")
    assert build("gs://bucket/in/rows.jsonl.gz", data_dir="gs://bucket/data", beam_options=ONE_PROCESS) == 0
    assert list(itertools.islice((bucket / "data" / "set").iterdir(), 2)) == [bucket / "data" / "set" / "1.0.0"]
