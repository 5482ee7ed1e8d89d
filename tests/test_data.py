"""What is built is what was encoded, every byte of it is checked, and a packed row means what its parts mean."""

import json
import os
import re
import struct
import subprocess
import sys
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import google_crc32c
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uner_jax.data.batches import PackedRows, answers_of, batches
from uner_jax.data.builder import (
    Example,
    build,
    built_metadata,
    dataset_directory,
    dataset_tokenizer,
    open_examples,
)
from uner_jax.data.packing import fill_ratio, pack_best_fit
from uner_jax.data.tfrecord import TFRecordSource, index_records, write_records
from uner_jax.model.config import LlamaConfig
from uner_jax.model.parameters import abstract_model
from uner_jax.records import InputError, read_rows
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import load_tokenizer
from uner_jax.training.loss import answer_loss_sum

tfds.disable_progress_bar()

METADATA = {"scheme": "whole", "sources": ["abc"], "max_length": 1024}
ROW_LENGTH = 1024


@pytest.fixture(scope="session")
def llama(llama_tokenizer_path):
    return load_tokenizer(llama_tokenizer_path)


@pytest.fixture(scope="session")
def encoded(shared_data, llama):
    """The examples of the 882 real conversations."""
    rows = [row for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl")]
    return [Example(row["id"], *encode_conversation(row, llama)) for row in rows]


@pytest.fixture(scope="session")
def data_dir(encoded, llama, tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    assert build(iter(encoded), llama, directory, "real", METADATA) == dataset_directory(directory, "real")
    return directory


@pytest.fixture(scope="session")
def packed(data_dir):
    return PackedRows(data_dir, "real", ROW_LENGTH)


@pytest.fixture
def small(llama, tmp_path):
    """A data set of three conversations, to be damaged."""
    examples = [Example(f"{n}", [1, *range(10, 20 + n), 2], [0] * (10 + n) + [1, 1]) for n in range(3)]
    build(examples, llama, tmp_path, "small", {})
    return tmp_path


def shards(data_dir, name):
    return sorted(dataset_directory(data_dir, name).glob("*.tfrecord*"))


def comparable(examples):
    return sorted((e.id, list(map(int, e.tokens)), list(map(int, e.loss_mask))) for e in examples)


def all_of(source):
    return [source[number] for number in range(len(source))]


# ---- building


def test_reading_back_gives_what_was_encoded(data_dir, encoded):
    source = open_examples(data_dir, "real")
    assert len(source) == len(encoded) == 882
    read = all_of(source)
    assert comparable(read) == comparable(encoded)
    assert {(e.tokens.dtype, e.loss_mask.dtype) for e in read} == {(np.dtype(np.int32),) * 2}


def test_tfds_reads_the_description(data_dir):
    builder = tfds.builder_from_directory(str(dataset_directory(data_dir, "real")))
    assert (builder.name, str(builder.version)) == ("real", "1.0.0")
    assert builder.info.splits["train"].num_examples == 882
    assert dict(builder.info.features.items()).keys() == {"id", "tokens", "loss_mask"}
    assert builder.info.features["tokens"].np_dtype == np.int32
    assert [Path(path) for path in builder.info.splits["train"].filepaths] == shards(data_dir, "real")
    assert dict(builder.info.metadata) == built_metadata(data_dir, "real") == METADATA
    assert built_metadata(data_dir, "none") is None


def test_tfds_decodes_the_records(data_dir, encoded):
    features = tfds.builder_from_directory(str(dataset_directory(data_dir, "real"))).info.features
    raw = TFRecordSource(shards(data_dir, "real"), bytes)
    by_id = {e.id: e for e in encoded}
    for number in (0, 1, 881):
        decoded = features.deserialize_example_np(raw[number])
        expected = by_id[decoded["id"].decode()]
        assert decoded["tokens"].tolist() == expected.tokens
        assert decoded["loss_mask"].tolist() == expected.loss_mask


def test_tokenizer_is_kept_beside_the_records(data_dir, llama):
    assert dataset_tokenizer(data_dir, "real").fingerprint == llama.fingerprint


def test_ids_that_occur_twice_lose_nothing(llama, tmp_path):
    examples = [Example("same é", [1, n], [0, 1]) for n in range(5)]
    build(examples, llama, tmp_path, "twice", {})
    assert comparable(all_of(open_examples(tmp_path, "twice"))) == comparable(examples)


@pytest.mark.parametrize("name", ["", "Real", "a-b", "a/b", "../a", "1a", "é"])
def test_names_that_tfds_does_not_take(name, llama, tmp_path):
    with pytest.raises(InputError, match=f"data set name {name!r}: expected small letters"):
        build([Example("a", [1], [1])], llama, tmp_path / "data", name, {})
    assert not (tmp_path / "data").exists()


def test_nothing_to_build_from(llama, tmp_path):
    with pytest.raises(InputError, match="data set none: there are no conversations"):
        build([], llama, tmp_path, "none", {})
    assert built_metadata(tmp_path, "none") is None


def test_a_data_set_is_never_built_over_another(small, llama):
    before = comparable(all_of(open_examples(small, "small")))
    with pytest.raises(InputError, match=f"{dataset_directory(small, 'small')}: exists already"):
        build([Example("new", [1], [1])], llama, small, "small", {})
    assert comparable(all_of(open_examples(small, "small"))) == before


def test_a_failed_build_leaves_nothing_and_says_why(llama, tmp_path):
    def examples():
        yield Example("a", [1, 2], [0, 1])
        raise InputError("rows.jsonl, line 2: not JSON")

    with pytest.raises(InputError, match=r"^rows\.jsonl, line 2: not JSON$"):
        build(examples(), llama, tmp_path, "broken", {})
    assert not dataset_directory(tmp_path, "broken").exists()
    assert build([Example("a", [1, 2], [0, 1])], llama, tmp_path, "broken", {}).is_dir()


BUILD = """
import json, sys
from pathlib import Path
from uner_jax.data.builder import Example, build
from uner_jax.records import read_rows
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import load_tokenizer
conversations, tokenizer, data_dir, metadata = sys.argv[1:]
tokenizer = load_tokenizer(tokenizer)
examples = [Example(row["id"], *encode_conversation(row, tokenizer)) for _, row in read_rows(conversations)]
build(examples, tokenizer, Path(data_dir), "real", json.loads(metadata))
"""


def test_same_input_same_bytes(shared_data, llama_tokenizer_path, data_dir, tmp_path):
    rows = shared_data / "teacher" / "pile_ner_sample.jsonl"
    # another process, in which every set has another order.
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    command = [sys.executable, "-c", BUILD, rows, llama_tokenizer_path, tmp_path, json.dumps(METADATA)]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, stderr=subprocess.DEVNULL, check=True)
    first, second = dataset_directory(data_dir, "real"), dataset_directory(tmp_path, "real")
    files = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    assert [path.relative_to(second) for path in sorted(second.rglob("*")) if path.is_file()] == files
    names = {"real-train.tfrecord-00000-of-00001", "dataset_info.json", "features.json", "metadata.json"}
    assert {str(path) for path in files} == names | {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes(), path


# ---- TFRecord files


def test_the_checksum_is_the_published_one(tmp_path):
    # crc32c of RFC 3720 B.4 (32 zero bytes), masked as the TFRecord tutorial says.
    record, crc = bytes(32), 0x8A9136AA
    assert google_crc32c.value(record) == crc
    write_records(tmp_path / "one", [record])
    written = (tmp_path / "one").read_bytes()
    assert written[:8] == struct.pack("<Q", 32) and written[12:44] == record
    masked = ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
    assert written[44:] == struct.pack("<I", masked)


@settings(max_examples=50, deadline=None)
@given(files=st.lists(st.lists(st.binary(max_size=20), max_size=4), max_size=4))
@example(files=[[b"a"], [], [], [b""], [b"b", b"c"], []])
def test_random_access_is_sequential_reading(files, tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    paths = [directory / str(number) for number in range(len(files))]
    for path, records in zip(paths, files, strict=True):
        write_records(path, records)
    source = TFRecordSource(paths, bytes)
    expected = [record for records in files for record in records]
    assert len(source) == len(expected) and source.shard_lengths == [len(records) for records in files]
    backwards = [source[number] for number in reversed(range(len(source)))]
    assert backwards[::-1] == all_of(source) == expected
    for outside in (len(source), -1):
        with pytest.raises(IndexError):
            source[outside]


def test_records_of_the_real_file_are_read_in_any_order(data_dir):
    (path,) = shards(data_dir, "real")
    content, sequential, position = path.read_bytes(), [], 0
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        sequential.append(content[position + 12 : position + 12 + length])
        position += 16 + length
    source = TFRecordSource([path], bytes)
    order = np.random.default_rng(0).permutation(len(source))
    assert len(sequential) == len(source) == 882
    assert all(source[int(number)] == sequential[number] for number in order)


@pytest.fixture(scope="module")
def three_records(tmp_path_factory):
    """A file of three records, and the place where each begins, and its end."""
    path = tmp_path_factory.mktemp("three") / "three"
    records = [b"first record", bytes(range(60)), b"x"]
    write_records(path, records)
    starts = np.cumsum([0, *(16 + len(record) for record in records)]).tolist()
    assert path.stat().st_size == starts[-1]
    return path.read_bytes(), starts


@settings(max_examples=300, deadline=None)
@given(data=st.data(), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_and_named(data, bit, three_records, tmp_path_factory):
    content, starts = three_records
    place = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path_factory.getbasetemp() / "flipped"
    path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
    record = next(number for number, (a, b) in enumerate(pairwise(starts)) if a <= place < b)
    message = f"{re.escape(str(path))}: record {record} is damaged"
    if place < starts[record] + 12:
        with pytest.raises(InputError, match=message):
            TFRecordSource([path], bytes)
        return
    source = TFRecordSource([path], bytes)
    for number in range(3):
        if number == record:
            with pytest.raises(InputError, match=message):
                source[number]
        else:
            start = starts[number] + 12
            assert source[number] == content[start : starts[number + 1] - 4]


def test_a_truncated_file_is_found_and_named(three_records, tmp_path):
    content, starts = three_records
    path = tmp_path / "cut"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        record = next(number for number, (a, b) in enumerate(pairwise(starts)) if a <= size < b)
        if size in starts:
            # whole by itself: the data set's description knows how many records there were.
            assert len(index_records(path)) == record
        else:
            with pytest.raises(InputError, match=f"{re.escape(str(path))}: record {record} is damaged or cut off"):
                index_records(path)


def test_a_damaged_data_set_names_file_and_record(small):
    (path,) = shards(small, "small")
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{re.escape(str(path))}: record 2 is damaged"):
        PackedRows(small, "small", 64)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_file_cut_off_between_two_records_is_found(kept, small):
    (path,) = shards(small, "small")
    offset, length = index_records(path)[kept - 1] if kept else (0, -4)
    path.write_bytes(path.read_bytes()[: offset + length + 4])
    with pytest.raises(InputError, match=f"{re.escape(str(path))}: {kept} records, but 3 were written"):
        PackedRows(small, "small", 64)


def test_missing_files(small, tmp_path):
    directory = re.escape(str(dataset_directory(small, "none")))
    with pytest.raises(InputError, match=f"{directory}: no data set here; build it with"):
        PackedRows(small, "none", 64)
    (path,) = shards(small, "small")
    path.unlink()
    with pytest.raises(InputError, match=f"no TFRecords found: {re.escape(str(path))}"):
        PackedRows(small, "small", 64)


def test_an_empty_data_set(small):
    # such as another tool may write; `build` refuses.
    (path,) = shards(small, "small")
    path.write_bytes(b"")
    description = dataset_directory(small, "small") / "dataset_info.json"
    fields = json.loads(description.read_text())
    (split,) = fields["splits"]
    split["shardLengths"] = ["0"]
    description.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=f"{re.escape(str(description.parent))}: the data set has no conversations"):
        PackedRows(small, "small", 64)
    fields["splits"] = []
    description.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=f"{re.escape(str(description.parent))}: no TFRecords found"):
        PackedRows(small, "small", 64)


# ---- packing


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=60), row_length=st.integers(50, 120))
def test_packing_holds_each_conversation_once(lengths, row_length):
    rows = pack_best_fit(lengths, row_length)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    sums = [sum(lengths[number] for number in row) for row in rows]
    assert all(0 < total <= row_length for total in sums)
    # two rows that would fit into one do not both stay.
    assert all(a + b > row_length for a, b in pairwise(sorted(sums)))
    assert pack_best_fit(list(lengths), row_length) == rows
    assert fill_ratio(lengths, rows, row_length) == (sum(sums) / (len(rows) * row_length) if rows else 0)


def test_packing_takes_the_fullest_row_that_has_room():
    # 6 leaves 4, 5 leaves 5: the 4 goes where nothing is left over.
    assert pack_best_fit([5, 6, 4], 10) == [[1, 2], [0]]
    assert pack_best_fit([10, 10], 10) == [[0], [1]]
    assert pack_best_fit([], 10) == []


@settings(max_examples=50, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_a_conversation_longer_than_a_row(data, lengths):
    place = data.draw(st.integers(0, len(lengths) - 1))
    lengths[place] = 11
    with pytest.raises(ValueError, match=f"conversation {place} has 11 tokens, more than a row of 10"):
        pack_best_fit(lengths, 10)


@pytest.mark.parametrize("row_length", [1024, 2048, 4096])
def test_real_rows_are_full(row_length, encoded):
    lengths = [len(e.tokens) for e in encoded]
    rows = pack_best_fit(lengths, row_length)
    assert fill_ratio(lengths, rows, row_length) >= 0.97


# ---- rows


def test_rows_hold_the_conversations(packed, encoded):
    expected = Counter((tuple(e.tokens), tuple(e.loss_mask)) for e in encoded)
    found = Counter()
    assert packed.conversations == 882 and packed.fill >= 0.97
    most = 0
    for row in all_of(packed):
        assert {name: (x.shape, x.dtype) for name, x in row.items()} == {
            **dict.fromkeys(("tokens", "segment_ids", "positions"), ((ROW_LENGTH,), np.dtype(np.int32))),
            **dict.fromkeys(("answer_index", "answer_targets"), ((packed.answers_per_row,), np.dtype(np.int32))),
            "answer_weights": ((packed.answers_per_row,), np.dtype(np.float32)),
        }
        segments, filled = row["segment_ids"], int(np.sum(row["segment_ids"] > 0))
        assert np.all(segments[filled:] == 0) and np.all(row["tokens"][filled:] == 0)
        assert np.all(np.isin(np.diff(segments[:filled]), (0, 1))) and segments[0] == 1
        scored = row["answer_weights"] == 1
        assert np.all(row["answer_weights"][~scored] == 0)
        index = row["answer_index"][scored]
        assert np.all(np.diff(index) > 0)
        assert np.array_equal(row["answer_targets"][scored], row["tokens"][index + 1])
        # the prediction is made from within the conversation that it belongs to.
        assert np.array_equal(segments[index], segments[index + 1]) and np.all(segments[index] > 0)
        mask = np.zeros(ROW_LENGTH, np.int64)
        mask[index + 1] = 1
        most = max(most, int(scored.sum()))
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            assert np.array_equal(row["positions"][inside], np.arange(inside.sum()))
            found[tuple(row["tokens"][inside].tolist()), tuple(mask[inside].tolist())] += 1
    assert found == expected
    assert most == packed.answers_per_row


@given(mask=st.lists(st.integers(0, 1), min_size=1, max_size=30), extra=st.integers(0, 5))
def test_answers_are_the_masked_tokens(mask, extra):
    mask = np.array([0, *mask], np.int32)  # BOS is never an answer
    tokens = np.arange(100, 100 + len(mask), dtype=np.int32)
    row = answers_of(tokens, mask, int(mask.sum()) + extra)
    assert row["answer_weights"].sum() == mask.sum() and len(row["answer_weights"]) == mask.sum() + extra
    scored = row["answer_weights"] > 0
    assert row["answer_targets"][scored].tolist() == tokens[mask == 1].tolist()
    assert (row["answer_index"][scored] + 1).tolist() == np.flatnonzero(mask).tolist()


def test_rows_too_short_name_the_longest(data_dir, encoded):
    longest = max(len(e.tokens) for e in encoded)
    too_long = sum(len(e.tokens) > 900 for e in encoded)
    message = (
        rf"{too_long} conversation\(s\) are longer than data\.row_length 900 \(the longest has {longest} tokens\); "
        rf"raise data\.row_length to {longest}"
    )
    with pytest.raises(InputError, match=message):
        PackedRows(data_dir, "real", 900)
    assert PackedRows(data_dir, "real", longest).row_length == longest


def test_nothing_in_the_loss(llama, tmp_path):
    build([Example("a", [1, 2, 3], [0, 0, 0])], llama, tmp_path, "silent", {})
    with pytest.raises(InputError, match="no token is in the loss"):
        PackedRows(tmp_path, "silent", 8)


def test_fingerprint_knows_data_and_row_length(packed, data_dir, small):
    again = PackedRows(data_dir, "real", ROW_LENGTH).fingerprint()
    others = {PackedRows(data_dir, "real", 2048).fingerprint(), PackedRows(small, "small", ROW_LENGTH).fingerprint()}
    assert again == packed.fingerprint() and len(others - {again}) == 2


# ---- batches


def tokens_of(stream, steps):
    return [batch["tokens"] for batch in islice(stream, steps)]


@pytest.fixture(scope="module")
def row_numbers(packed):
    """The number of a row by its tokens: the rows are all different."""
    numbers = {row["tokens"].tobytes(): number for number, row in enumerate(all_of(packed))}
    assert len(numbers) == len(packed)
    return numbers


def numbers_of(stream, steps, row_numbers):
    return [row_numbers[row.tobytes()] for tokens in tokens_of(stream, steps) for row in tokens]


def test_a_batch_is_rows(packed, row_numbers):
    batch = next(batches(packed, 0, 4))
    for place, tokens in enumerate(batch["tokens"]):
        row = packed[row_numbers[tokens.tobytes()]]
        assert batch.keys() == row.keys()
        assert all(np.array_equal(batch[name][place], row[name]) for name in row)
        assert all(batch[name].dtype == row[name].dtype for name in row)


@pytest.mark.parametrize("step", [0, 1, 78, 79, 200])
def test_resuming_is_not_stopping(step, packed):
    # 315 rows in batches of 4: an epoch ends within step 78.
    whole = tokens_of(batches(packed, 3, 4), step + 3)
    resumed = tokens_of(batches(packed, 3, 4, start=step), 3)
    assert all(np.array_equal(a, b) for a, b in zip(whole[step:], resumed, strict=True))


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 77])
def test_hosts_share_one_global_batch(hosts, start, packed):
    steps = 4
    whole = tokens_of(batches(packed, 5, 8, start), steps)
    parts = [tokens_of(batches(packed, 5, 8, start, host=host, hosts=hosts), steps) for host in range(hosts)]
    for step in range(steps):
        interleaved = np.empty_like(whole[step])
        for host in range(hosts):
            interleaved[host::hosts] = parts[host][step]
        assert np.array_equal(interleaved, whole[step])


def test_every_row_once_an_epoch_and_in_another_order_the_next(packed, row_numbers):
    rows = len(packed)
    numbers = numbers_of(batches(packed, 0, 5), 2 * rows // 5, row_numbers)
    first, second = numbers[:rows], numbers[rows:]
    assert rows % 5 == 0 and sorted(first) == sorted(second) == list(range(rows))
    assert first != second and first != sorted(first)


def test_another_seed_another_order(packed, row_numbers):
    orders = [numbers_of(batches(packed, seed, 4), 5, row_numbers) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


# ---- packing changes nothing


def wide_llama(vocab_size):
    """A tiny model whose weights are wide, so that what stands in another conversation would move the loss."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: random.normal(0, 0.4, x.shape).astype(np.float32), abstract_model(config))


def test_packed_loss_is_the_unpacked_loss(packed, encoded):
    rows = [packed[number] for number in range(100, 300, 33)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    vocabulary = 512  # ids are folded into it: a quick model, and the same question
    model = wide_llama(vocabulary)
    batch |= {name: batch[name] % vocabulary for name in ("tokens", "answer_targets")}
    loss_of = jax.jit(answer_loss_sum)
    together = float(loss_of(model, batch))

    # one conversation at a time, with neither segments nor positions; what pads it comes after it.
    @jax.jit
    def logprobs_of(tokens_T, places_A):
        return jax.nn.log_softmax(model.logits(model.hidden(tokens_T[None])[0, places_A]))

    masks = {tuple(e.tokens): e.loss_mask for e in encoded}
    alone, conversations, answers = 0.0, 0, 0
    for row in rows:
        for segment in range(1, int(row["segment_ids"].max()) + 1):
            tokens = row["tokens"][row["segment_ids"] == segment]
            places = np.flatnonzero(masks[tuple(tokens.tolist())])
            tokens = tokens % vocabulary
            slots = np.pad(places - 1, (0, packed.answers_per_row - len(places)))
            logprobs = np.asarray(logprobs_of(np.pad(tokens, (0, ROW_LENGTH - len(tokens))), slots), np.float64)
            alone -= logprobs[np.arange(len(places)), tokens[places]].sum()
            conversations, answers = conversations + 1, answers + len(places)
    assert conversations >= 15 and answers == batch["answer_weights"].sum() > 100
    assert together == pytest.approx(alone, rel=1e-5)

    # and it can tell: without the segments the loss is another one.
    joined = batch | {"segment_ids": (batch["segment_ids"] > 0).astype(np.int32)}
    assert float(loss_of(model, joined)) != pytest.approx(alone, rel=1e-3)
