"""Conversations to TFRecords, as a user runs the command: what is built is what was asked, wherever it is built."""

import json
import shutil
import sys
from array import array
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2

from data_prep import conversations, tfrecords
from data_prep.tokens import encoding
from data_prep.tokens.encoding import Counts, Encoder, Encoding, check_totals, fit
from data_prep.tokens.token_cache import Memory, TokenCache, is_word_by_word
from uner_jax.command import run_command
from uner_jax.data import shards
from uner_jax.data.builder import SPLIT, Example, dataset_directory, open_examples, versions
from uner_jax.data.example import parse_example, to_record
from uner_jax.data.shards import Shard, write_shards
from uner_jax.data.tfrecord import TFRecordSource
from uner_jax.records import InputError, LostRecordsError, read_rows, write_json, write_rows
from uner_jax.template import encode_conversation, encode_conversations
from uner_jax.tokenizer import load_tokenizer
from uner_jax.training.config import DataConfig, ModelConfig, TrainConfig
from uner_jax.training.loop import _matching_tokenizer

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data_prep" / "sample" / "labels.jsonl"


def run(module, *arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        run_command(module.main, [str(argument) for argument in arguments])
    return left.value.code


def build(tmp_path: Path, tokenizer: Path, *sources: Path, name: str = "set", **options: object) -> int:
    extra = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
    place = ["--tokenizer", tokenizer, "--data-dir", tmp_path / "data", "--name", name]
    return run(tfrecords, "--conversations", *sources, *place, *extra)


def records(tmp_path: Path, name: str = "set") -> list[tuple[str, list[int], list[int]]]:
    source = open_examples(tmp_path / "data", name)
    examples = [source[number] for number in range(len(source))]
    return [(example.id, example.tokens.tolist(), example.loss_mask.tolist()) for example in examples]


def record_files(tmp_path: Path, name: str) -> list[bytes]:
    paths = sorted(dataset_directory(tmp_path / "data", name).glob("*.tfrecord*"))
    return [path.read_bytes() for path in paths]


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    """The 240 passages of the sample, each with its questions: several, most of them answered."""
    path = tmp_path_factory.mktemp("asked") / "c.jsonl"
    assert run(conversations, "--labels", SAMPLE, "--output", path) == 0
    return path


@pytest.fixture(scope="module")
def rows(asked) -> list[dict]:
    return [row for _, row in read_rows(asked)]


@pytest.fixture(scope="module")
def few(rows, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("few") / "c.jsonl"
    write_rows(path, rows[:10])
    return path


@pytest.fixture(scope="module")
def llama(llama_tokenizer_path):
    return load_tokenizer(llama_tokenizer_path)


def test_every_format_gives_the_same_records(tmp_path, asked, rows, llama_tokenizer_path):
    write_json(tmp_path / "array.json", rows)
    write_rows(tmp_path / "rows.parquet", rows)
    sources = {"lines": asked, "array": tmp_path / "array.json", "parquet": tmp_path / "rows.parquet"}
    for name, source in sources.items():
        assert build(tmp_path, llama_tokenizer_path, source, name=name) == 0
    assert records(tmp_path, "lines") == records(tmp_path, "array") == records(tmp_path, "parquet")
    assert len(records(tmp_path, "lines")) == len(rows)


@pytest.mark.parametrize("scheme", ["whole", "released"])
def test_the_ids_are_those_of_the_scheme(tmp_path, asked, rows, llama, llama_tokenizer_path, scheme):
    assert build(tmp_path, llama_tokenizer_path, asked, scheme=scheme, max_length=2048) == 0
    by_id = {row["id"]: row for row in rows}
    built = records(tmp_path)
    assert len(built) == len(rows)
    for name, tokens, mask in built:
        assert (tokens, mask) == encode_conversation(by_id[name], llama, scheme)


# ---- where a record lies


def test_the_files_depend_on_the_conversations_alone(tmp_path, asked, rows, llama_tokenizer_path, monkeypatch):
    # in another order, in two compressed files, tokenized by two processes, and waiting on disk.
    write_rows(tmp_path / "first.jsonl.gz", rows[:99:-1])
    write_rows(tmp_path / "rest.jsonl.zst", rows[:100])
    parts = tmp_path / "first.jsonl.gz", tmp_path / "rest.jsonl.zst"
    assert build(tmp_path, llama_tokenizer_path, asked, name="whole", shard_megabytes=0.05) == 0
    monkeypatch.setattr(shards, "PART_BYTES", 2000)
    monkeypatch.setattr(encoding, "BLOCK", 16)
    assert build(tmp_path, llama_tokenizer_path, *parts, name="parts", shard_megabytes=0.05, workers=2) == 0
    assert len(record_files(tmp_path, "whole")) > 2
    assert record_files(tmp_path, "parts") == record_files(tmp_path, "whole")
    assert list((tmp_path / "data" / "parts").glob("**/.*")) == []


def test_files_have_the_size_that_was_asked_for(tmp_path, asked, llama_tokenizer_path):
    assert build(tmp_path, llama_tokenizer_path, asked, name="one") == 0
    assert build(tmp_path, llama_tokenizer_path, asked, name="many", shard_megabytes=0.1) == 0
    (one,), many = record_files(tmp_path, "one"), record_files(tmp_path, "many")
    assert len(many) == 4 and sum(map(len, many)) == len(one)
    # 60 records of some 1.4 kB each: five standard deviations
    assert all(0.5 * 100_000 * 0.4 < len(content) < 100_000 * 1.4 for content in many)
    assert records(tmp_path, "many") == records(tmp_path, "one"), "one after the other, the files are the one file"
    info = tfds.builder_from_directory(str(dataset_directory(tmp_path / "data", "many"))).info
    assert info.splits[SPLIT].num_shards == 4 and info.splits[SPLIT].num_examples == 240


@settings(max_examples=100, deadline=None)
@given(total=st.integers(0, 10**13), limit=st.integers(1, 10**9))
def test_the_number_of_files(total, limit):
    count = shards.shard_count(total, limit)
    assert count & (count - 1) == 0 and total <= count * limit
    assert count == 1 or total > count * limit / 2


@settings(max_examples=50, deadline=None)
@given(
    contents=st.lists(st.text(max_size=3), max_size=30),
    limit=st.integers(20, 400),
    memory=st.sampled_from([0, 50, 10**6]),
    seed=st.randoms(use_true_random=False),
)
def test_every_record_is_written_once_in_any_order(contents, limit, memory, seed, tmp_path_factory):
    # also those that are equal, and more files than there are parts to wait in.
    examples = [to_record(Example(text, [7, number % 3, 2], [0, 1, 1])) for number, text in enumerate(contents)]
    directories = [tmp_path_factory.mktemp("shards") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "PART_BYTES", memory)
        patch.setattr(shards, "PARTS", 4)
        first = write_shards(directories[0] / "x", examples, eos_id=2, shard_bytes=limit)
        seed.shuffle(examples)
        assert write_shards(directories[1] / "x", examples, eos_id=2, shard_bytes=limit) == first
    paths = sorted(directories[0].iterdir())
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in sorted(directories[1].iterdir())]
    source = TFRecordSource(paths, bytes)
    assert sorted(source[number] for number in range(len(source))) == sorted(examples)
    assert [shard.conversations for shard in first] == source.shard_lengths
    assert sum(shard.tokens for shard in first) == 3 * len(examples)
    assert sum(shard.answers for shard in first) == len(examples) + len(contents[2::3])


def test_a_conversation_that_stands_twice_is_kept_twice(tmp_path, rows, llama_tokenizer_path):
    write_rows(tmp_path / "twice.jsonl", [rows[0], rows[1], rows[0]])
    assert build(tmp_path, llama_tokenizer_path, tmp_path / "twice.jsonl") == 0
    assert sorted(name for name, _, _ in records(tmp_path)) == sorted(rows[n]["id"] for n in (0, 1, 0))


# ---- what TFDS makes of it


def test_tfds_finds_the_data_set_by_its_name(tmp_path, few, llama_tokenizer_path):
    # `tfds.load` is this and as_dataset, which is TensorFlow's.
    for scheme in ("whole", "released"):
        assert build(tmp_path, llama_tokenizer_path, few, scheme=scheme) == 0
    for asked_for, version, scheme in (("set", "2.0.0", "released"), ("set:1.0.0", "1.0.0", "whole")):
        builder = tfds.builder(asked_for, data_dir=str(tmp_path / "data"))
        assert (builder.name, str(builder.version), builder.info.metadata["scheme"]) == ("set", version, scheme)
        assert builder.info.splits[SPLIT].num_examples == 10
        source = TFRecordSource([Path(path) for path in builder.info.splits[SPLIT].filepaths], bytes)
        decoded = [builder.info.features.deserialize_example_np(source[number]) for number in range(10)]
        assert records(tmp_path, asked_for) == [
            (row["id"].decode(), row["tokens"].tolist(), row["loss_mask"].tolist()) for row in decoded
        ]


@settings(max_examples=50, deadline=None)
@given(
    name=st.text(st.characters(codec="utf-8")),
    tokens=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20),
    data=st.data(),
)
def test_a_record_is_the_one_that_tfds_would_write(name, tokens, data):
    mask = data.draw(st.lists(st.integers(0, 1), min_size=len(tokens), max_size=len(tokens)))
    written = to_record(Example(name, array("i", tokens), bytes(mask)))
    ids = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "tokens": ids, "loss_mask": ids})
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    theirs = features.encode_example({"id": name, "tokens": tokens, "loss_mask": mask})
    message = tf_example_pb2.Example.FromString(serializer.serialize_example(theirs))
    assert message.SerializeToString(deterministic=True) == written == to_record(Example(name, tokens, mask))
    read = parse_example(written)
    assert (read.id, read.tokens.tolist(), read.loss_mask.tolist()) == (name, tokens, mask)


# ---- tokenizing many at once

FRAGMENTS = [
    "</s>", "<s>", "<unk>", "<|im_end|>", "<0x0A>", "USER:", " ASSISTANT:", "ASSISTANT: ", "[]", '["x"]', " ", "  ",
    "\t", "\n", "\x00", "▁", " ▁", "▁ ", "👩‍🚀", "e\u0301", "Ω", "12", ":", "word", " a word", "word, ", "x" * 70,
]  # fmt: skip
strings = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(codec="utf-8"), max_size=4), max_size=6).map(
    "".join
)
NAMES = "llama2", "tok512", "smollm2"


@pytest.fixture(scope="module")
def tokenizers(shared_data, llama_tokenizer_path, smollm2_path):
    tok512 = shared_data / "models" / "stories260K" / "tok512.model"
    paths = {"llama2": llama_tokenizer_path, "tok512": tok512, "smollm2": smollm2_path}

    @cache
    def load(name):
        tokenizer = load_tokenizer(paths[name])
        # tables of two entries: everything is forgotten all the time.
        return tokenizer, TokenCache(tokenizer, words=2), TokenCache(tokenizer)

    return load


def conversation_of(values: list[str]) -> dict:
    turns = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]
    return {"id": "a", "conversations": turns}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(strings, max_size=5))
@example(texts=["", " ", "  ", "▁", "a", " a", "a ", "a b", "a  b", "a ▁b", "a▁ b", "a b ", "a b c", "x" * 65 + " y"])
@example(texts=["a", "a  b", "a ", "a  ", "▁", "▁ a", "a▁", "a▁ b"])
def test_remembered_words_give_the_same_ids(name, texts, tokenizers):
    tokenizer, forgetful, remembering = tokenizers(name)
    expected = [tokenizer.encode(text) for text in texts]
    for cached in (forgetful, remembering, remembering):
        assert [list(ids) for ids in cached.encode_batch(texts)] == expected


def test_which_vocabularies_are_cut_into_words(tokenizers):
    assert [is_word_by_word(tokenizers(name)[0]) for name in NAMES] == [True, False, False]


@pytest.mark.parametrize("scheme", ["whole", "released"])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(turns=st.lists(st.lists(strings, min_size=2, max_size=4).map(lambda t: t[: len(t) // 2 * 2]), max_size=4))
@example(turns=[["Text: a", "b"], ["Text: a", "b"], ["Text: a", "b", "Text: a", "b"]])
def test_many_at_once_are_as_one_by_one(name, scheme, turns, tokenizers):
    tokenizer, forgetful, remembering = tokenizers(name)
    asked = [conversation_of([*values, "q", "[]", *values]) for values in turns]
    expected = [encode_conversation(row, tokenizer, scheme) for row in asked]
    for cached, known in ((tokenizer, None), (forgetful, Memory(1)), (remembering, Memory(100))):
        for _ in range(2):
            encoded = encode_conversations(asked, cached, scheme, known=known)
            assert [(ids.tolist(), list(mask)) for ids, mask in encoded] == expected


def test_memory_is_bounded_and_keeps_what_was_asked_for_last():
    memory = Memory(3)
    for number in range(100):
        memory[number] = number
        assert memory[0 if number < 50 else number] is not None
        assert len(memory) + len(memory._older) <= 6
    assert 99 in memory and memory[99] == 99 and 0 not in memory
    with pytest.raises(KeyError):
        memory[0]


def test_a_vocabulary_with_spaces_inside_its_pieces_is_not_cut_into_words(llama):
    def changed(**fields) -> bool:
        state = json.loads(llama.backend.to_str())
        state["model"] |= fields.pop("model", {})
        backend = type(llama.backend).from_str(json.dumps(state | fields))
        return is_word_by_word(replace(llama, backend=backend))

    model = json.loads(llama.backend.to_str())["model"]
    over = {"vocab": model["vocab"] | {"a▁b": len(model["vocab"])}}
    assert changed()
    assert not changed(model=over)
    assert not changed(model={"ignore_merges": True})
    assert not changed(pre_tokenizer={"type": "Digits", "individual_digits": True})
    assert not changed(normalizer={"type": "NFC"})
    assert not changed(normalizer=None)
    added = {"id": 32000, "content": "b c", "single_word": False, "lstrip": False, "rstrip": False}
    assert not changed(added_tokens=[added | {"normalized": False, "special": False}])


# ---- what is too long


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=9),
    max_length=st.integers(1, 30),
)
def test_every_question_that_fits_is_asked_once(lengths, max_length):
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    parts = fit(ends, max_length, "split")
    assert [question for part in parts for question in part] == [
        question for question in range(1, len(lengths)) if lengths[0] + lengths[question] <= max_length
    ]
    sizes = [lengths[0] + sum(lengths[question] for question in part) for part in parts]
    assert all(parts) and all(size <= max_length for size in sizes)
    # a part ends only where the next question has no room.
    assert all(size + lengths[part[0]] > max_length for size, part in zip(sizes[:-1], parts[1:], strict=True))
    kept = [question for question in range(1, len(lengths)) if ends[question] <= max_length]
    assert fit(ends, max_length, "drop") == ([kept] if kept else [])


@pytest.mark.parametrize("scheme", ["whole", "released"])
def test_a_long_conversation_is_split_into_conversations(scheme, rows, llama):
    built, counts = Encoder(llama, Encoding(scheme, 300, "split")).encode(rows)
    found = {example.id: example for example in map(parse_example, built)}
    assert len(found) == len(built) == counts.written > len(rows) - counts.left_out and counts.split > 10
    asked_again = 0
    for row in rows:
        names = [name for name in found if name.partition("#")[0] == row["id"]]
        assert names == [row["id"], *(f"{row['id']}#{number}" for number in range(2, len(names) + 1))][: len(names)]
        turns, place = row["conversations"], 2
        for name in names:
            tokens = found[name].tokens.tolist()
            assert len(tokens) <= 300
            questions = tokens.count(llama.eos_id) - 1
            # no question of the sample is too long by itself
            part = row | {"conversations": turns[:2] + turns[place : place + 2 * questions]}
            assert (tokens, found[name].loss_mask.tolist()) == encode_conversation(part, llama, scheme)
            place += 2 * questions
            asked_again += questions
    assert asked_again == counts.questions - counts.questions_dropped
    assert counts.shortened == counts.left_out == counts.questions_dropped == 0


def test_split_conversations_are_counted(tmp_path, asked, rows, llama_tokenizer_path, capsys):
    assert build(tmp_path, llama_tokenizer_path, asked, overlong="split", max_length=300) == 0
    report = capsys.readouterr().err
    built = records(tmp_path)
    added = sum("#" in name for name, _, _ in built)
    split = sum(name.endswith("#2") for name, _, _ in built)
    questions = sum(tokens.count(2) - 1 for _, tokens, _ in built)
    dropped = sum(len(row["conversations"]) // 2 - 1 for row in rows) - questions
    assert f"too long: {split:,} conversations were split, which made {added:,} more; " in report and added > split > 0
    assert f"; {dropped:,} questions in all" in report
    assert dict(tfds.builder_from_directory(str(tmp_path / "data/set/1.0.0")).info.metadata)["overlong"] == "split"


def long_conversation() -> list[dict]:
    """A passage of some 2,000 tokens and three questions."""
    asked = ["What describes person in the text?", '["Ann"]']
    return conversation_of(["Text: " + "Ann sings. " * 500, "I've read this text.", *asked * 3])["conversations"]


@pytest.mark.parametrize("overlong", ["drop", "split"])
def test_conversations_of_which_nothing_fits_are_left_out(tmp_path, rows, llama_tokenizer_path, capsys, overlong):
    path = tmp_path / "two.jsonl"
    write_rows(path, [rows[0], rows[0] | {"id": "long", "conversations": long_conversation()}])
    assert build(tmp_path, llama_tokenizer_path, path, overlong=overlong) == 0
    assert [name for name, _, _ in records(tmp_path)] == [rows[0]["id"]]
    report = "too long: 0 conversations lost questions, 1 lost all of theirs and were left out; 3 questions in all"
    assert report in capsys.readouterr().err
    assert build(tmp_path, llama_tokenizer_path, path, name="none", max_length=20, overlong=overlong) == 1
    assert capsys.readouterr().err.endswith("error: no question of any conversation fits into --max-length 20 tokens\n")
    assert list((tmp_path / "data" / "none").iterdir()) == []


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


# ---- totals


def test_a_build_that_loses_a_record_fails_and_leaves_nothing(tmp_path, few, llama_tokenizer_path, capsys, monkeypatch):
    def lose_one(prefix, records, *arguments):
        return write_shards(prefix, list(records)[1:], *arguments)

    monkeypatch.setattr(tfrecords, "write_shards", lose_one)
    assert build(tmp_path, llama_tokenizer_path, few) == 1
    assert "the build lost records and is not kept (records encoded and written: 10 and 9;" in capsys.readouterr().err
    assert list((tmp_path / "data" / "set").iterdir()) == []


def test_every_total_is_compared():
    counts = Counts(conversations=3, questions=8, left_out=1, questions_dropped=2)
    counts.lengths.update({10: 1, 20: 2})
    written = [Shard(0, 1, 3, 20, 100), Shard(1, 2, 6, 30, 100)]
    check_totals(3, 8, counts, written, Encoding("whole", 100, "drop"))
    wrong = [
        (2, 8, counts, written),
        (3, 9, counts, written),
        (3, 8, replace(counts, questions_dropped=1), written),
        *((3, 8, counts, [written[0]._replace(**{field: 0}), written[1]]) for field in ("conversations", "answers")),
        (3, 8, counts, [written[0]._replace(tokens=19), written[1]]),
        (3, 8, counts, written[1:]),
    ]
    for arguments in wrong:
        with pytest.raises(LostRecordsError, match="lost records"):
            check_totals(*arguments, Encoding("whole", 100, "drop"))


# ---- versions


@pytest.mark.parametrize(
    ("option", "value"), [("max_length", 500), ("scheme", "released"), ("overlong", "split"), ("tokenizer", None)]
)
def test_other_options_make_another_version(tmp_path, few, shared_data, llama_tokenizer_path, capsys, option, value):
    assert build(tmp_path, llama_tokenizer_path, few) == 0
    first = record_files(tmp_path, "set")
    other = shared_data / "models" / "stories260K" / "tok512.model"
    again = {"tokenizer": other} if option == "tokenizer" else {"tokenizer": llama_tokenizer_path, option: value}
    assert build(tmp_path, again["tokenizer"], few, **{k: v for k, v in again.items() if k != "tokenizer"}) == 0
    assert f"1.0.0: built with other {option}; building version 2.0.0 beside it" in capsys.readouterr().err
    assert versions(tmp_path / "data", "set") == ["1.0.0", "2.0.0"]
    assert dataset_directory(tmp_path / "data", "set").name == "2.0.0"
    assert record_files(tmp_path, "set:1.0.0") == first


def test_what_was_built_is_not_built_again(tmp_path, few, llama_tokenizer_path, capsys):
    for scheme in ("whole", "released"):
        assert build(tmp_path, llama_tokenizer_path, few, scheme=scheme) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}
    capsys.readouterr()
    for scheme, version in (("whole", "1.0.0"), ("released", "2.0.0")):
        # --pack-to is for the report, and not part of the data set.
        assert build(tmp_path, llama_tokenizer_path, few, scheme=scheme, pack_to=4096) == 0
        assert f"{version}: already built from the same input" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}


def test_other_conversations_under_the_same_name_are_refused(tmp_path, few, llama_tokenizer_path, capsys):
    assert build(tmp_path, llama_tokenizer_path, few) == 0
    write_rows(tmp_path / "fewer.jsonl", [row for _, row in read_rows(few)][1:])
    for options in ({}, {"scheme": "released"}):
        assert build(tmp_path, llama_tokenizer_path, tmp_path / "fewer.jsonl", **options) == 1
        assert "1.0.0: exists, built from other conversations; give another --name" in capsys.readouterr().err
    assert versions(tmp_path / "data", "set") == ["1.0.0"]


def test_versions_are_numbers_and_whole(tmp_path, few, llama_tokenizer_path):
    assert build(tmp_path, llama_tokenizer_path, few) == 0
    directory = tmp_path / "data" / "set"
    for name in ("10.0.0", "9.0.0", "1.0.0.incomplete0ABC", "notes"):
        shutil.copytree(directory / "1.0.0", directory / name)
    (directory / "11.0.0").mkdir()
    assert versions(tmp_path / "data", "set") == ["1.0.0", "9.0.0", "10.0.0"]
    assert dataset_directory(tmp_path / "data", "set").name == "10.0.0"
    with pytest.raises(InputError, match=r"set/3\.0\.0: no data set here; there is 1\.0\.0, 9\.0\.0, 10\.0\.0"):
        open_examples(tmp_path / "data", "set:3.0.0")


def test_training_names_the_version_with_the_model_s_tokenizer(tmp_path, few, shared_data, llama_tokenizer_path):
    other = shared_data / "models" / "stories260K" / "tok512.model"
    for tokenizer in (llama_tokenizer_path, other):
        assert build(tmp_path, tokenizer, few, max_length=2048) == 0

    def matching(source: Path, name: str):
        data = DataConfig(dir=str(tmp_path / "data"), name=name)
        return _matching_tokenizer(TrainConfig(run_dir="", model=ModelConfig(source=str(source)), data=data))

    assert matching(other, "set").fingerprint == load_tokenizer(other).fingerprint
    assert matching(llama_tokenizer_path, "set:1.0.0").fingerprint == load_tokenizer(llama_tokenizer_path).fingerprint
    with pytest.raises(InputError, match=r"has another tokenizer than .*; set data\.name to set:1\.0\.0, which has it"):
        matching(llama_tokenizer_path, "set")


def test_what_a_killed_build_left_is_removed(tmp_path, few, llama_tokenizer_path):
    left = tmp_path / "data" / "set" / "incomplete.ABCDEF_1.0.0"
    (left / ".parts-1").mkdir(parents=True)
    (left / ".parts-1" / "000").write_bytes(b"half a record")
    assert build(tmp_path, llama_tokenizer_path, few) == 0
    assert [path.name for path in (tmp_path / "data" / "set").iterdir()] == ["1.0.0"]


# ---- what is wrong


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


@pytest.mark.parametrize("name", ["llama2", "smollm2"])
def test_a_text_that_is_no_unicode_names_its_conversation(name, tokenizers):
    asked = [conversation_of(["Text: a", "b", "q", "[]"]), conversation_of(["Text: a\ud800 b", "b", "q", "[]"])]
    asked[1]["id"] = "odd"
    with pytest.raises(InputError, match=r"conversation 'odd': a text to tokenize must be .* no lone surrogates"):
        Encoder(tokenizers(name)[0], Encoding("whole", 100, "drop")).encode(asked)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_length": 0}, "--max-length 0 must be greater than 0 and at most --pack-to 2048"),
        ({"max_length": 3000}, "--max-length 3000 must be greater than 0 and at most --pack-to 2048"),
        ({"name": "My-Set"}, "--name 'My-Set' must be small letters, digits and underscores"),
        ({"name": "é"}, "--name 'é' must be small letters, digits and underscores"),
        ({"tokenizer": Path("nowhere")}, "nowhere: expected a directory with tokenizer.json"),
        ({"workers": 0}, "--workers must be at least 1, found 0"),
        ({"shard_megabytes": 0}, "--shard-megabytes must be greater than 0, found 0.0"),
        ({"beam_options": "streaming"}, "--beam-options are for a build with Beam: name its runner"),
        ({"data_dir": "gs://bucket/data"}, "only a build with Beam reads and writes an object store"),
    ],
)
def test_wrong_options_are_one_clear_message(tmp_path, few, llama_tokenizer_path, capsys, options, said):
    tokenizer = options.get("tokenizer", llama_tokenizer_path)
    rest = {name: value for name, value in options.items() if name != "tokenizer"}
    assert build(tmp_path, tokenizer, few, **rest) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and said in shown and shown.count("\n") == 1
    assert not list((tmp_path / "data").rglob("*.*"))


def test_without_beam_its_option_says_how_to_get_it(tmp_path, few, llama_tokenizer_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert build(tmp_path, llama_tokenizer_path, few, beam_runner="FnApiRunner") == 1
    assert "--beam-runner needs Apache Beam, in an environment of its own: pip install" in capsys.readouterr().err


def test_help_and_missing_arguments(capsys):
    assert run(tfrecords, "--help") == 0
    assert run(tfrecords) == 2
    assert "--beam-runner" in capsys.readouterr().out
