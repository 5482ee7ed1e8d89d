"""Rows come back from every kind of file as they went in, and what is wrong with a file or a row is said."""

import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uner_jax.records import (
    InputError,
    atomic_path,
    check_conversation,
    check_label,
    check_passage,
    read_rows,
    write_json,
    write_rows,
)

COMPRESSIONS = "", ".gz", ".zst"
LINES = [f".jsonl{suffix}" for suffix in COMPRESSIONS]
ARRAYS = [f".json{suffix}" for suffix in COMPRESSIONS]
texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["\x00", "\r\n", "\u2028\u0085", "[", "]\n[", '{"a": 1}', "\\ud800", "🎓", "\ufeff"]
)
entities = st.lists(st.fixed_dictionaries({"text": texts, "type": texts}), max_size=3)
rows_of_labels = st.lists(st.fixed_dictionaries({"id": texts, "text": texts, "entities": entities}), max_size=5)


def rows_in(path):
    return [row for _, row in read_rows(path)]


def write_array(path, rows):
    """A JSON array, as published: `write_rows` makes lines only."""
    plain = json.dumps(rows, indent=1).encode()
    if path.suffix == ".gz":
        plain = gzip.compress(plain)
    if path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(plain)
    else:
        path.write_bytes(plain)


@pytest.fixture(scope="module")
def labels():
    """Label records with non-ASCII text, an entity list that is empty and a field that only some have."""
    return [
        {"id": "a", "text": "Zoë works in 東京.\nReally?", "entities": [{"text": "Zoë", "type": "person"}]},
        {"id": "b", "text": "Nothing.", "entities": [], "teacher": {"model": "m", "seconds": 1.5}},
        {"id": "c", "text": "🎓 \u2028 \x00 end", "entities": []},
    ]


# ---- round trips


@pytest.mark.parametrize("suffix", LINES)
@settings(max_examples=40, deadline=None)
@given(rows=rows_of_labels)
def test_lines_come_back(suffix, rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / f"rows{suffix}"
    assert write_rows(path, iter(rows)) == len(rows)
    assert rows_in(path) == rows


@settings(max_examples=40, deadline=None)
@given(rows=rows_of_labels)
def test_parquet_comes_back(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    assert write_rows(path, iter(rows)) == len(rows)
    assert rows_in(path) == rows


@pytest.mark.parametrize("suffix", ARRAYS)
def test_array_comes_back(suffix, labels, tmp_path):
    path = tmp_path / f"rows{suffix}"
    write_array(path, labels)
    assert rows_in(path) == labels
    assert [where for where, _ in read_rows(path)] == [f"{path}, item {number}" for number in (1, 2, 3)]


@pytest.mark.parametrize("suffix", LINES)
def test_optional_fields_stay_absent_in_lines(suffix, labels, tmp_path):
    path = tmp_path / f"rows{suffix}"
    write_rows(path, labels)
    assert rows_in(path) == labels


def test_a_field_that_only_later_rows_have_is_kept_in_parquet(labels, tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, labels)
    assert rows_in(path) == [{"teacher": None} | row for row in labels]


def test_real_conversations_in_every_form(shared_data, tmp_path):
    rows = rows_in(shared_data / "teacher" / "pile_ner_sample.jsonl")[:100]
    for suffix in [*LINES, ".parquet"]:
        write_rows(tmp_path / f"rows{suffix}", rows)
    for suffix in ARRAYS:
        write_array(tmp_path / f"rows{suffix}", rows)
    for suffix in [*LINES, *ARRAYS, ".parquet"]:
        assert rows_in(tmp_path / f"rows{suffix}") == rows


def test_lone_surrogates_come_back(tmp_path):
    rows = [{"id": "\ud800", "text": "a\udfffb"}]
    for suffix in LINES:
        path = tmp_path / f"rows{suffix}"
        write_rows(path, rows)
        assert rows_in(path) == rows
    write_json(tmp_path / "one.json", rows)
    assert rows_in(tmp_path / "one.json") == rows
    with pytest.raises(InputError, match=r"p\.parquet: the rows do not fit into Parquet"):
        write_rows(tmp_path / "p.parquet", rows)


def test_rows_that_parquet_cannot_hold(tmp_path):
    with pytest.raises(InputError, match=r"p\.parquet: the rows do not fit into Parquet .* write them as \.jsonl"):
        write_rows(tmp_path / "p.parquet", [{"id": 1}, {"id": "x"}])
    assert list(tmp_path.iterdir()) == []


def test_blank_lines_are_passed_over(tmp_path):
    lines, array = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text('\n  \n{"a": 1}\n\n{"a": 2}\n\n')
    array.write_text('\n \n[\n{"a": 1},\n\n{"a": 2}]\n')
    assert list(read_rows(lines)) == [(f"{lines}, line 3", {"a": 1}), (f"{lines}, line 5", {"a": 2})]
    assert rows_in(array) == [{"a": 1}, {"a": 2}]


def test_several_compressed_parts_are_one_file(tmp_path):
    for suffix in (".jsonl.gz", ".jsonl.zst"):
        parts = [tmp_path / f"part{number}{suffix}" for number in (1, 2)]
        for number, part in enumerate(parts):
            write_rows(part, [{"part": number}])
        whole = tmp_path / f"whole{suffix}"
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
        assert rows_in(whole) == [{"part": 0}, {"part": 1}]


def test_parquet_longer_than_a_batch(tmp_path):
    rows = [{"n": number} for number in range(2500)]
    write_rows(tmp_path / "n.parquet", rows)
    assert rows_in(tmp_path / "n.parquet") == rows
    assert [where for where, _ in read_rows(tmp_path / "n.parquet")][-1] == f"{tmp_path / 'n.parquet'}, row 2500"


WRITE = """
import sys
from uner_jax.records import write_rows
for path in sys.argv[1:]:
    write_rows(path, [{"id": "a", "text": "é"}, {"id": "b", "text": "x" * 5000, "more": {"k": [1, 2]}}])
"""


def test_same_rows_same_bytes_in_any_process(tmp_path):
    names = [f"rows{suffix}" for suffix in [*LINES, ".parquet"]]
    for directory in (tmp_path / "1", tmp_path / "2"):
        # another process has another number, which stands in the name of the temporary file.
        paths = [str(directory / name) for name in names]
        seed = {"PYTHONHASHSEED": directory.name}
        subprocess.run([sys.executable, "-c", WRITE, *paths], check=True, env=os.environ | seed)
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    # flags (a name) and time of the gzip header: two writers may have run within one second.
    assert (tmp_path / "1" / "rows.jsonl.gz").read_bytes()[3:8] == bytes(5)


# ---- a writer that fails


def failing_rows():
    yield {"new": 1}
    raise RuntimeError("the source broke")


@pytest.mark.parametrize("suffix", [*LINES, ".parquet"])
def test_failed_writer_leaves_the_old_file(suffix, tmp_path):
    path = tmp_path / f"rows{suffix}"
    write_rows(path, [{"old": 1}])
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="the source broke"):
        write_rows(path, failing_rows())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_failed_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "one.json"
    write_json(path, {"old": "é"})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": "é"}
    assert list(tmp_path.iterdir()) == [path]


WRITE_AND_WAIT = """
import signal, sys
from uner_jax.records import write_rows
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
def rows():
    yield from [{"new": 1}] * 100_000
    print("writing", flush=True)
    sys.stdin.read()
write_rows(sys.argv[1], rows())
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_killed_writer_leaves_the_old_file(kill, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"old": 1}])
    command = [sys.executable, "-c", WRITE_AND_WAIT, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as writer:
        assert writer.stdout.readline() == b"writing\n"
        half_written = [other for other in tmp_path.iterdir() if other != path]
        assert len(half_written) == 1 and half_written[0].stat().st_size > 0
        writer.send_signal(kill)
        writer.wait(timeout=60)
    assert writer.returncode != 0
    assert rows_in(path) == [{"old": 1}]
    # nobody can tidy up after SIGKILL; what is left is hidden and is never read.
    left = [other.name for other in tmp_path.iterdir() if other != path]
    assert left == ([half_written[0].name] if kill == signal.SIGKILL else [])
    assert all(name.startswith(".tmp-") for name in left)


def test_atomic_path_makes_the_folders(tmp_path):
    with atomic_path(tmp_path / "a" / "b.txt") as temporary:
        temporary.write_text("x")
        assert not (tmp_path / "a" / "b.txt").exists()
    assert (tmp_path / "a" / "b.txt").read_text() == "x"


# ---- files that cannot be read


def test_missing_file(tmp_path):
    for name in ("none.jsonl", "none.parquet", "none.json.gz", ""):
        with pytest.raises(InputError, match=f"{re.escape(str(tmp_path / name))}: no such file"):
            rows_in(tmp_path / name)


@pytest.mark.parametrize("suffix", LINES)
def test_a_wrong_line_is_named(suffix, tmp_path):
    path = tmp_path / f"rows{suffix}"
    good = json.dumps({"id": "a"})
    text = f"{good}\n\n{good}\n{{'id': 'b'}}\n{good}\n".encode()
    if suffix == ".jsonl.zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(text)
    else:
        path.write_bytes(gzip.compress(text) if suffix == ".jsonl.gz" else text)
    rows = read_rows(path)
    assert [next(rows)[0], next(rows)[0]] == [f"{path}, line 1", f"{path}, line 3"]
    with pytest.raises(InputError, match=f"{re.escape(str(path))}, line 4: not JSON"):
        next(rows)


@pytest.mark.parametrize("before", ["", "\n\n"])
def test_a_wrong_line_of_an_array_is_named(before, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(before + '[\n{"id": "a"},\n{"id": }\n]')
    with pytest.raises(InputError, match=f"{re.escape(str(path))}, line {3 + len(before)}: not a JSON array"):
        rows_in(path)


@pytest.mark.parametrize("suffix", [*LINES, *ARRAYS, ".parquet"])
@settings(max_examples=30, deadline=None)
@given(content=st.binary(min_size=1, max_size=200))
@example(content=b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\xff\xff")
@example(content=b"\x28\xb5\x2f\xfd\xff\xff")
@example(content=b"\xff\xfe[\x00]\x00")
@example(content=b"PAR1\xff\xff\xff\xffPAR1")
def test_binary_file(suffix, content, tmp_path_factory):
    path = tmp_path_factory.mktemp("binary") / f"rows{suffix}"
    # 0xff is in no UTF-8 text.
    path.write_bytes(content + b"\xff")
    with pytest.raises(InputError, match=re.escape(str(path))):
        rows_in(path)


NUMBERED = [{"id": str(number), "text": f"{hash((number, 7)):x}" * 3} for number in range(6000)]


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """One file of each compressed kind: several blocks of rows, of text that compresses badly."""
    directory = tmp_path_factory.mktemp("whole")
    paths = [directory / f"rows{suffix}" for suffix in (".jsonl.gz", ".jsonl.zst", ".parquet")]
    for path in paths:
        write_rows(path, NUMBERED)
    return {path.name: path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet"])
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_file(name, share, whole_files, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / name
    whole = whole_files[name]
    path.write_bytes(whole[: max(1, int(share * len(whole)))])
    with pytest.raises(InputError, match=re.escape(str(path))):
        rows_in(path)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst"])
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_changes_no_row(name, share, bit, whole_files, tmp_path_factory):
    path = tmp_path_factory.mktemp("flip") / name
    damaged = bytearray(whole_files[name])
    damaged[int(share * len(damaged))] ^= 1 << bit
    path.write_bytes(damaged)
    # some bits of a header mean nothing; every other is noticed.
    try:
        assert rows_in(path) == NUMBERED
    except InputError as error:
        assert str(path) in str(error)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_parquet_page_is_found(share, bit, whole_files, tmp_path_factory):
    path = tmp_path_factory.mktemp("flip") / "rows.parquet"
    content = bytearray(whole_files[path.name])
    column = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(1)
    # the texts themselves: the page of the dictionary, behind its header.
    first, end = column.dictionary_page_offset + 100, column.data_page_offset
    assert column.path_in_schema == "text" and end - first > 50_000
    content[first + int(share * (end - first))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{re.escape(str(path))}: not a readable Parquet file"):
        rows_in(path)


# ---- the published files


def test_published_files_are_conversations(shared_data):
    questions = {}
    for path in ("eval/CrossNER_AI.json", "eval/mit-restaurant.json", "teacher/pile_ner_sample.jsonl"):
        rows = [check_conversation(row, where) for where, row in read_rows(shared_data / path)]
        answers = [json.loads(turn["value"]) for row in rows for turn in row["conversations"][3::2]]
        questions[path] = len(rows), sum(map(bool, answers)), sum(not answer for answer in answers)
    assert questions["teacher/pile_ner_sample.jsonl"] == (882, 717, 603)
    assert questions["eval/CrossNER_AI.json"][0] == 5603
    assert questions["eval/mit-restaurant.json"][0] == 12160
    for path in ("eval/CrossNER_AI.json", "eval/mit-restaurant.json"):
        assert sum(questions[path][1:]) == questions[path][0]


# ---- what a row must be


def conversation(*values, first="human"):
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    turns = [{"from": speakers[number % 2], "value": value} for number, value in enumerate(values)]
    return {"id": "a", "conversations": turns}


GOOD = conversation("Text: x", "I've read this text.", "What describes y in the text?", "[]")
TURNS = GOOD["conversations"]


def with_turn(number, turn):
    return {"id": "a", "conversations": [*TURNS[:number], turn, *TURNS[number + 1 :]]}


def test_good_rows_are_returned_as_they_are():
    assert check_conversation(GOOD, "f") is GOOD
    for first in ("Dataset: d \n Text: x", "x", "Text: Text:", "Dataset: d"):
        check_conversation(conversation(first, "ok", "q", ""), "f")
    row = {"id": "", "text": "x", "source": "s", "unknown": 1}
    assert check_passage(row, "f") is row
    label = row | {"entities": [{"text": "x", "type": "y", "score": 1}]}
    assert check_label(label, "f") is label
    check_label(row | {"entities": []}, "f")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "a conversation must be a JSON object, found list"),
        (None, "a conversation must be a JSON object, found nothing"),
        ({"conversations": TURNS}, '"id" must be a string, found nothing'),
        (GOOD | {"id": 3}, '"id" must be a string, found int'),
        ({"id": "a"}, '"conversations" must be a list of turns, found nothing'),
        (GOOD | {"conversations": "x"}, '"conversations" must be a list of turns, found str'),
        (GOOD | {"conversations": []}, "0 turns; expected passage, acknowledgement, then pairs"),
        (conversation("Text: x", "ok"), "2 turns; expected passage"),
        (conversation("Text: x", "ok", "q"), "3 turns; expected passage"),
        (conversation("Text: x", "ok", "q", "[]", "q"), "5 turns; expected passage"),
        (conversation("Text: x", "ok", "q", "[]", first="gpt"), "turn 0 is from 'gpt', not 'human'; turns alternate"),
        (with_turn(1, TURNS[0]), "turn 1 is from 'human', not 'gpt'"),
        (with_turn(2, {"from": "system", "value": "x"}), "turn 2 is from 'system', not 'human'"),
        (with_turn(2, {"value": "x"}), "turn 2 is from None, not 'human'"),
        (with_turn(3, {"from": "gpt"}), 'turn 3 must be {"from": ..., "value": a string}, found'),
        (with_turn(3, {"from": "gpt", "value": None}), 'turn 3 must be {"from"'),
        (with_turn(3, {"from": "gpt", "value": ["x"]}), 'turn 3 must be {"from"'),
        (with_turn(0, "Text: x"), 'turn 0 must be {"from"'),
        (with_turn(0, {"from": "human", "value": ""}), "turn 0 must hold a passage (\"Text: ...\"), found ''"),
        (with_turn(0, {"from": "human", "value": "Text:"}), "turn 0 must hold a passage"),
        (with_turn(0, {"from": "human", "value": "Text: \n "}), "turn 0 must hold a passage"),
        (with_turn(0, {"from": "human", "value": "Dataset: d \n Text: "}), "turn 0 must hold a passage"),
    ],
)
def test_wrong_conversations(row, message):
    with pytest.raises(InputError) as error:
        check_conversation(row, "f.jsonl, line 7")
    assert str(error.value).startswith(f"f.jsonl, line 7: {message}")


TEXT_ROW = {"id": "a", "text": "x"}
WRONG_TEXT_ROWS = [
    ("x", " must be a JSON object, found str"),
    ({"text": "x"}, '"id" must be a string, found nothing'),
    (TEXT_ROW | {"id": 1}, '"id" must be a string, found int'),
    ({"id": "a"}, '"text" must be a non-empty string, found nothing'),
    (TEXT_ROW | {"text": ["x"]}, '"text" must be a non-empty string, found list'),
    (TEXT_ROW | {"text": ""}, '"text" must be a non-empty string, found an empty text'),
    (TEXT_ROW | {"text": " \n"}, '"text" must be a non-empty string, found an empty text'),
]


@pytest.mark.parametrize(("check", "kind"), [(check_passage, "a passage"), (check_label, "a label record")])
@pytest.mark.parametrize(("row", "message"), WRONG_TEXT_ROWS)
def test_wrong_text_records(check, kind, row, message):
    with pytest.raises(InputError) as error:
        check(row, "here")
    assert str(error.value) == f"here: {kind if message.startswith(' ') else ''}{message}"


ENTITY_MESSAGE = 'an entity must be {"text": ..., "type": ...} with non-empty strings, found '


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        (None, '"entities" must be a list of {"text", "type"}, found nothing'),
        ({"text": "x", "type": "y"}, '"entities" must be a list of {"text", "type"}, found dict'),
        (["x"], ENTITY_MESSAGE + "'x'"),
        ([{"text": "x"}], ENTITY_MESSAGE),
        ([{"text": "x", "type": ""}], ENTITY_MESSAGE + "{'text': 'x', 'type': ''}"),
        ([{"text": "x", "type": " "}], ENTITY_MESSAGE),
        ([{"text": "", "type": "y"}], ENTITY_MESSAGE),
        ([{"text": 3, "type": "y"}], ENTITY_MESSAGE),
        ([{"text": "x", "type": "y"}, {"text": "x", "type": None}], ENTITY_MESSAGE),
    ],
)
def test_wrong_entities(entities, message):
    with pytest.raises(InputError) as error:
        check_label(TEXT_ROW | {"entities": entities}, "here")
    assert str(error.value).startswith(f"here: {message}")
