"""A document is the same in whatever form it comes, and a file that is broken costs what is broken of it."""

import csv
import datetime
import gzip
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_extraction import Knowing, records, write_tiny_model

from uner_jax.extraction.corpus import files as corpus_files
from uner_jax.extraction.corpus.documents import read_document
from uner_jax.extraction.corpus.files import read_raw
from uner_jax.extraction.corpus.job import Job, Source
from uner_jax.extraction.corpus.run import extract_corpus
from uner_jax.records import InputError, read_rows, write_rows

ROWS = [
    {"key": "a", "body": 'Ada said "hi", and left.\nFor Paris; 東京 😀', "year": 1, "labels": ["person"]},
    {"key": "b", "body": "Bob\tstayed.", "year": 2},
    {"key": "c", "body": " London, ", "year": None, "labels": ["city", "person"]},
]


@pytest.fixture(scope="session")
def model_path(tok512, tmp_path_factory):
    return write_tiny_model(tok512, tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture
def extractor(tok512):
    return Knowing(tok512)


def job_of(*paths: Path, **fields) -> Job:
    return Job(**{"model": "m", "inputs": paths, "labels": ("person",), **fields})


def documents(path: Path, **fields) -> list:
    """What stands in a file; none of it is in error."""
    job = job_of(path, **fields)
    found = [read_document(raw, job) for raw in read_raw(Source(path, path.name), job)]
    assert [document.error for document in found if document.error] == []
    return found


def errors(path: Path, **fields) -> list[str | None]:
    job = job_of(path, **fields)
    return [read_document(raw, job).error for raw in read_raw(Source(path, path.name), job)]


def compressed(path: Path, data: bytes) -> Path:
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    path.write_bytes(data)
    return path


def table(rows: list[dict], delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["key", "body", "year", "labels"], delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows([row | {"labels": ",".join(row.get("labels", []))} for row in rows])
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def encoded(rows: list[dict], kind: str) -> bytes:
    if kind == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == ".json":
        return json.dumps(rows, indent=1, ensure_ascii=False).encode()
    return table(rows, "," if kind == ".csv" else "\t")


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_a_document_is_the_same_in_every_form(kind, compression, tmp_path):
    path = tmp_path / f"rows{kind}{compression}"
    if kind == ".parquet":
        path = tmp_path / "rows.parquet"
        write_rows(path, ROWS)
    else:
        compressed(path, encoded(ROWS, kind))
    found = documents(path, text_field="body", id_field="key", carry=("year", "none"))
    assert [document.text for document in found] == [row["body"] for row in ROWS]
    assert [document.id for document in found] == ["a", "b", "c"]
    assert [document.labels for document in found] == [["person"], ["person"], ["city", "person"]]
    years = ["1", "2", ""] if kind in (".csv", ".tsv") else [1, 2, None]
    assert [document.carried for document in found] == [{"year": year, "none": None} for year in years]
    if compression == "" or kind == ".parquet":
        assert sum(document.read for document in found) <= path.stat().st_size


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_plain_text_is_a_document_a_file_or_a_line(compression, tmp_path):
    text = "Ada left.\r\n\r\n  Bob stayed.\nLast"
    path = compressed(tmp_path / f"book.txt{compression}", b"\xef\xbb\xbf" + text.encode())
    (whole,) = documents(path)
    assert (whole.text, whole.id) == (text, path.name)
    lines = documents(path, text_lines=True)
    assert [line.text for line in lines] == ["Ada left.", "  Bob stayed.", "Last"]
    assert [line.id for line in lines] == [f"{path.name}, line {number}" for number in (1, 3, 4)]


def test_the_sizes_that_were_read_add_up(tmp_path, monkeypatch):
    """For the progress of a file that is longer than what is read at once."""
    draw = random.Random(0)
    rows = [{"key": str(number), "body": str(draw.random()) * 99, "year": number} for number in range(2000)]
    for kind in (".jsonl", ".json", ".csv", ".jsonl.gz", ".csv.zst", ".parquet", ".txt"):
        path = tmp_path / f"rows{kind}"
        if kind == ".parquet":
            write_rows(path, rows)
        else:
            compressed(path, encoded(rows, "." + kind.split(".")[1]))
        raws = list(read_raw(Source(path, "x"), job_of(path, text_lines=True)))
        left = path.stat().st_size - sum(raw.read for raw in raws)
        assert 0 <= left <= len(b"\xef\xbb\xbf") and min(raw.read for raw in raws) >= 0
        assert max(raw.read for raw in raws) <= max(1 << 20, 1 << 14)


def test_published_files_are_read_in_every_form(shared_data, tmp_path):
    """The Pile's sample, an array of conversations that is longer than what is read at once."""
    path = shared_data / "teacher" / "pile_ner_sample.jsonl"
    rows = [row for _, row in read_rows(path)]
    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"id": row["id"], "text": json.dumps(row)} for row in rows]))
    assert [json.loads(document.text) for document in documents(array)] == rows
    assert [document.id for document in documents(array)] == [document.id for document in documents(array)]


texts = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(["]", '"', "\\", "[{", "},{", "\ufeff"])
items = st.lists(
    st.fixed_dictionaries({"text": texts, "more": st.recursive(st.none() | st.integers() | texts, st.lists)})
)


@settings(max_examples=60, deadline=None)
@given(rows=items, chunk=st.integers(1, 40), ascii=st.booleans(), indent=st.sampled_from([None, 1]))
def test_an_array_is_read_in_pieces_of_any_size(rows, chunk, ascii, indent, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "pieces.json"
    path.write_text(json.dumps(rows, ensure_ascii=ascii, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_files, "_is_array", lambda path: True)
        patch.setattr(corpus_files, "CHUNK", chunk)
        found = list(read_raw(Source(path, "x"), job_of(path)))
    assert [raw.content for raw in found] == rows
    assert [raw.where for raw in found] == [f"x, item {number}" for number in range(1, len(rows) + 1)]


# ---- what is broken


BROKEN_ARRAYS = {
    "cut off in an item": ('[{"text": "Ada"}, {"text": "B', 1, "item 2: not JSON (Unterminated string"),
    "cut off after an item": ('[{"text": "Ada"}', 1, "item 2: not JSON (Expecting value"),
    "cut off after a comma": ('[{"text": "Ada"},', 1, "item 2: not JSON (Expecting value"),
    "a wrong item": ('[{"text": "Ada"}, {text: 1}, {"text": "Bob"}]', 1, "item 2: not JSON (Expecting property name"),
    "more behind": ('[{"text": "Ada"}]\n{"text": "Bob"}', 1, "more follows where the array ends; it is not read"),
    "no end": ("[\n", 0, "item 1: not JSON (Expecting value"),
}


@pytest.mark.parametrize("name", BROKEN_ARRAYS)
def test_a_broken_array_is_read_as_far_as_it_goes(name, tmp_path):
    text, sound, message = BROKEN_ARRAYS[name]
    (tmp_path / "rows.json").write_text(text)
    found = errors(tmp_path / "rows.json")
    assert found[:-1] == [None] * sound and found[-1].startswith(f"rows.json: {message}")


def test_an_item_that_is_too_long_ends_an_array(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_files, "LONGEST_RECORD", 1 << 20)
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "Ada"}, {"text": "a" * (1 << 22)}, {"text": "Bob"}]))
    assert errors(tmp_path / "rows.json") == [
        None,
        "rows.json: item 2: not JSON (more than 1 MiB); the array is read no further",
    ]


def test_a_line_that_is_too_long_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_files, "LONGEST_RECORD", 1000)
    lines = [json.dumps({"text": text}) for text in ("Ada", "a" * 2_000_000, "Bob")]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    first, second, third = errors(tmp_path / "rows.jsonl")
    assert first is third is None and second.startswith("rows.jsonl, line 2: a line longer than")


def test_a_table_row_that_is_broken_is_passed_over(tmp_path):
    data = b'text,n\nAda,1\nBob\nBob,1,2\n\n\xff,1\n"a ""b"", \n c",2\n'
    (tmp_path / "rows.csv").write_bytes(data)
    found = errors(tmp_path / "rows.csv")
    assert found[0] is None and found[4] is None and len(found) == 5
    assert [error.partition(": ")[2] for error in found[1:4]] == [
        "1 cells; the header has 2",
        "3 cells; the header has 2",
        "not UTF-8 text",
    ]


def test_a_parquet_text_that_is_no_text_is_passed_over(tmp_path):
    bad = pa.array([b"Ada", b"\xff", b"Bob"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad, "id": bad}), tmp_path / "rows.parquet")
    assert errors(tmp_path / "rows.parquet") == [None, "rows.parquet, row 2: not UTF-8 text", None]


def test_a_text_file_that_is_none_or_too_long(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"%PDF-1.4 \xff\xfe")
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt").write_text("😀" * 101)
    (tmp_path / "d.txt").write_text("😀" * 100)
    assert errors(tmp_path / "a.txt") == ["a.txt: not UTF-8 text"]
    assert errors(tmp_path / "b.txt") == ['b.txt: "text" must be a non-empty string, found an empty text']
    (message,) = errors(tmp_path / "c.txt", max_characters=100)
    assert message.startswith("c.txt: a text of more than 100 characters; --max-characters is 100")
    assert errors(tmp_path / "d.txt", max_characters=100) == [None]


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst", ".csv.gz", ".json.gz", ".txt.gz", ".parquet"])
def test_a_file_that_was_cut_off_is_one_error_and_the_next_is_read(kind, extractor, model_path, tmp_path):
    rows = [{"text": f"Ada {random.Random(number).randbytes(300).hex()}", "n": number} for number in range(600)]
    path = tmp_path / f"rows{kind}"
    if kind == ".parquet":
        write_rows(path, rows)
    else:
        text = table([{"body": row["text"]} for row in rows], ",").replace(b"body", b"text", 1)
        compressed(path, text if ".csv" in kind else encoded(rows, ".json" if ".json." in kind else ".jsonl"))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    write_rows(tmp_path / "good.jsonl", [{"text": "Ada"}])
    job = job_of(path, tmp_path / "good.jsonl", model=str(model_path))
    counts = extract_corpus(extractor.open, job, tmp_path / "out")
    found = records(tmp_path / "out")
    assert counts["errors"] == 1 and [record["error"] is None for record in found[-2:]] == [False, True]
    assert found[-2]["error"].startswith(f"{path}: ") and found[-2]["id"] == str(path)
    if kind in (".jsonl.gz", ".jsonl.zst", ".csv.gz", ".json.gz"):
        assert len(found) > 200, "what can be read of it is there"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_without_the_text_is_refused_before_anything_is_done(kind, extractor, model_path, tmp_path):
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        path.write_text("title,body\na,Ada\n")
    else:
        write_rows(path, [{"title": "a", "body": "Ada"}])
    with pytest.raises(InputError, match='no column "text"; --text-field names it; there are: title, body'):
        extract_corpus(extractor.open, job_of(path, model=str(model_path)), tmp_path / "out")
    # and then the right one is no other job.
    extract_corpus(extractor.open, job_of(path, model=str(model_path), text_field="body"), tmp_path / "out")
    assert [record["text"] for record in records(tmp_path / "out")] == ["Ada"]


# ---- what is carried along


CARRIED = {
    "day": [datetime.date(2024, 1, 2), None, datetime.date(1969, 1, 1)],
    "count": [1, 2**62, None],
    "ratio": [0.5, float("inf"), None],
    "tags": [["a", "b"], [], None],
    "blob": [b"\xff\x00", b"ab", None],
    "name": ["é", "", None],
}


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_columns_of_parquet_are_carried_along(format, extractor, model_path, tmp_path):
    pq.write_table(pa.table(CARRIED | {"text": ["Ada", "Bob", "x"]}), tmp_path / "rows.parquet")
    job = job_of(tmp_path / "rows.parquet", model=str(model_path), carry=tuple(CARRIED), format=format)
    extract_corpus(extractor.open, job, tmp_path / "out")
    found = records(tmp_path / "out")
    columns = {name: [record[name] for record in found] for name in CARRIED}
    if format == "jsonl":
        plain = {"day": ["2024-01-02", None, "1969-01-01"], "ratio": [0.5, None, None], "blob": ["ff00", "ab", None]}
        assert columns == CARRIED | plain
    else:
        texts = {"tags": ['["a", "b"]', "[]", None], "blob": ['"ff00"', "ab", None]}
        assert columns == CARRIED | texts
        schema = pq.read_schema(next((tmp_path / "out").glob("part-*")))
        assert schema.field("day").type == pa.date32() and schema.field("count").type == pa.int64()


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_what_is_carried_stops_nothing(format, extractor, model_path, tmp_path):
    """Half of a surrogate pair, values of many types, and records that have none or are in error."""
    values = ["\ud800", 1, "x", {"a": [1, None, float("nan")]}, 2**70, True]
    rows = [{"text": "Ada", "v": value} for value in values] + [{"text": "Ada"}, {"v": 5}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = job_of(tmp_path / "rows.jsonl", model=str(model_path), carry=("v",), format=format)
    extract_corpus(extractor.open, job, tmp_path / "out")
    found = [record["v"] for record in records(tmp_path / "out")]
    if format == "jsonl":
        assert found == ["\ud800", 1, "x", {"a": [1, None, None]}, 2**70, True, None, 5]
    else:
        assert found == ["\\ud800", "1", "x", '{"a": [1, null, null]}', str(2**70), "true", None, "5"]
