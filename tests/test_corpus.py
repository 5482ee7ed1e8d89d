"""A corpus job writes a record for every document, and stopping it anywhere changes nothing."""

import dataclasses
import json
import re
import sys
from itertools import pairwise

import pyarrow.parquet as pq
import pytest
from tiny_extraction import Knowing, files, known, records, write_tiny_model

from uner_jax.cli import dispatch
from uner_jax.command import run_command
from uner_jax.extraction.corpus import parts as corpus_parts
from uner_jax.extraction.corpus import run as corpus
from uner_jax.extraction.corpus.job import Job, Settings
from uner_jax.extraction.corpus.run import COUNTS, extract_corpus
from uner_jax.extraction.extractor import Extractor
from uner_jax.records import InputError, read_rows, write_rows

FIELDS = ["id", "text", "labels", "entities", "chunks", "error"]
LABELS = ("person", "city")
DOCUMENTS = [
    {"id": f"d{number}", "text": f"{number}: Ada and Bob 😀 met in London. " * (1 + number % 3), "n": number}
    for number in range(11)
]
DOCUMENTS[3] |= {"labels": ["city", "city", "animal"]}
del DOCUMENTS[4]["id"]
DOCUMENTS[5]["id"] = 17
MANIFEST = "manifest-00000-of-00001.jsonl"


@pytest.fixture(scope="session")
def model_path(tok512, tmp_path_factory):
    return write_tiny_model(tok512, tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture
def extractor(tok512):
    return Knowing(tok512)


@pytest.fixture
def source(tmp_path):
    write_rows(tmp_path / "documents.jsonl", DOCUMENTS)
    return tmp_path / "documents.jsonl"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(corpus, "PART_DOCUMENTS", 2)


@pytest.fixture
def job(model_path, source):
    return Job(str(model_path), (source,), LABELS)


def change(job: Job, **changes) -> Job:
    return dataclasses.replace(job, **changes)


def test_a_record_for_each_document(extractor, job, source, tmp_path):
    counts = extract_corpus(extractor.open, job, tmp_path / "out")
    found = records(tmp_path / "out")
    assert [record["text"] for record in found] == [document["text"] for document in DOCUMENTS]
    for record, document in zip(found, DOCUMENTS, strict=True):
        labels = document.get("labels", list(LABELS))
        one = known(document["text"], labels)
        assert list(record) == FIELDS
        assert record["labels"] == labels and record["error"] is None
        assert (record["entities"], record["chunks"]) == (one.entities, one.chunks)
        for entity in record["entities"]:
            assert document["text"][entity["start"] : entity["end"]] == entity["text"]
    assert {entity["label"] for entity in found[3]["entities"]} == {"city"}
    names = [record["id"] for record in found]
    assert names[3:7] == ["d3", f"{source}, line 5", "17", "d6"]
    ones = [known(record["text"], record["labels"]) for record in found]
    total = {name: sum(getattr(one, name) for one in ones) for name in ("questions", "empty", "tokens")}
    total |= {"documents": 11, "errors": 0, "windows": sum(one.chunks for one in ones), "ungrounded": 11, "cut": 22}
    assert counts == total | {"entities": sum(len(one.entities) for one in ones)} and list(counts) == list(COUNTS)
    summary = json.loads((tmp_path / "out" / "summary-00000-of-00001.json").read_text())
    assert summary.items() >= counts.items() and summary["first_error"] is None and summary["seconds"] >= 0


def test_parquet_holds_the_same(extractor, job, tmp_path, small_parts):
    for form in ("jsonl", "parquet"):
        extract_corpus(extractor.open, change(job, format=form, carry=("n", "labels_of")), tmp_path / form)
    assert len(list((tmp_path / "parquet").glob("part-*.parquet"))) == 6
    written = [{**record, "n": str(record["n"])} for record in records(tmp_path / "jsonl")]
    assert records(tmp_path / "parquet") == written
    schemas = {str(pq.read_schema(path)) for path in (tmp_path / "parquet").glob("part-*")}
    assert len(schemas) == 1, "a part whose column is empty has it in the same type"


BAD = {
    '{"id": "x", "text": ""}': '"text" must be a non-empty string, found an empty text',
    '{"id": "x", "text": " \\n"}': '"text" must be a non-empty string, found an empty text',
    '{"id": "x", "text": 5}': '"text" must be a non-empty string, found int',
    '{"id": "x"}': '"text" must be a non-empty string, found NoneType',
    '["a", "b"]': "a document must be a JSON object, found list",
    "null": "a document must be a JSON object, found NoneType",
    '{"id": "x", "text": "Ada': "not JSON (Unterminated string",
    '{"id": %s}' % ("9" * 5000): "not JSON (Exceeds the limit",
    "[" * 100_000: "not JSON (maximum recursion depth exceeded",
    b'{"id": "x", "text": "Ada \xff"}': "not UTF-8 text",
    '{"id": "x", "text": "Ada \\ud800"}': "no lone surrogates",
    '{"id": "\\ud800", "text": ""}': "found an empty text",
    '{"id": "x", "text": "Ada", "labels": []}': 'no labels; give --labels, or a list "labels" in the record',
    '{"id": "x", "text": "Ada", "labels": "person"}': "no labels; give --labels",
    '{"id": "x", "text": "Ada", "labels": {"person": 1}}': "no labels; give --labels",
    '{"id": "x", "text": "Ada", "labels": ["person", null]}': "a label must be a non-empty string, found None",
    '{"id": "x", "text": "Ada", "labels": [["person"]]}': "a label must be a non-empty string, found ['person']",
    '{"id": "x", "text": "Ada", "labels": ["\\udfff"]}': "no lone surrogates",
    '{"id": "x", "text": "Ada", "labels": ["%s"]}' % ("person " * 100): "leave no room for the passage",
    '{"id": "x", "text": "%s"}' % ("a" * 10_000_000): "a text of 10,000,000 characters; --max-characters is 2,000,000",
}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("line", BAD, ids=lambda line: str(line[:40]))
def test_one_bad_record_stops_nothing(line, form, extractor, job, source, tmp_path):
    data = line if isinstance(line, bytes) else line.encode()
    good = [json.dumps(document).encode() for document in DOCUMENTS[:3]]
    source.write_bytes(b"\n".join([*good[:2], data, *good[2:]]) + b"\n")
    counts = extract_corpus(extractor.open, change(job, format=form, carry=("n",)), tmp_path / "out")
    found = records(tmp_path / "out")
    bad = found.pop(2)
    assert list(bad) == [*FIELDS, "n"] and BAD[line] in bad["error"] and len(bad["error"]) < 500
    named = data.startswith(b'{"id": "x"') and not BAD[line].startswith("not ")
    assert bad["id"] == ("x" if named else f"{source}, line 3")
    assert (bad["text"], bad["labels"], bad["entities"], bad["chunks"]) == (None, [], [], 0)
    assert counts["errors"] == 1 and counts["documents"] == 4
    summary = json.loads((tmp_path / "out" / "summary-00000-of-00001.json").read_text())
    assert summary["first_error"] == bad["error"]
    write_rows(tmp_path / "good.jsonl", DOCUMENTS[:3])
    others = change(job, format=form, inputs=(tmp_path / "good.jsonl",), carry=("n",))
    extract_corpus(extractor.open, others, tmp_path / "good")
    assert found == records(tmp_path / "good") and all(record["entities"] for record in found)


def test_an_id_that_no_file_can_hold_is_replaced(extractor, job, source, tmp_path):
    source.write_text('{"id": "\\ud800", "text": "Ada"}\n{"id": true, "text": "Ada"}\n{"id": "", "text": "Ada"}\n')
    extract_corpus(extractor.open, change(job, format="parquet"), tmp_path / "out")
    names = [(record["id"], record["error"]) for record in records(tmp_path / "out")]
    assert names == [(f"{source}, line {line}", None) for line in (1, 2, 3)]


def test_no_labels_at_all(extractor, job, tmp_path):
    counts = extract_corpus(extractor.open, change(job, labels=()), tmp_path / "out")
    errors = [record["error"] is None for record in records(tmp_path / "out")]
    assert errors == [number == 3 for number in range(11)] and counts["errors"] == 10


def test_shards_together_are_the_whole(extractor, job, source, tmp_path, small_parts):
    write_rows(tmp_path / "more.jsonl", DOCUMENTS[:4])
    job = change(job, inputs=(source, tmp_path / "more.jsonl"))
    whole_counts = extract_corpus(extractor.open, job, tmp_path / "whole")
    counts = [
        extract_corpus(extractor.open, change(job, shard=shard, shards=3), tmp_path / "shards") for shard in (2, 0, 1)
    ]
    whole = records(tmp_path / "whole")
    shards = [
        [row for path in sorted((tmp_path / "shards").glob(f"part-{shard:05d}-*")) for _, row in read_rows(path)]
        for shard in range(3)
    ]
    assert shards == [whole[shard::3] for shard in range(3)]
    assert {name: sum(count[name] for count in counts) for name in COUNTS} == whole_counts
    assert len(list((tmp_path / "shards").glob("summary-*-of-00003.json"))) == 3


def test_an_empty_input(extractor, job, source, tmp_path):
    source.write_bytes(b"")
    counts = extract_corpus(extractor.open, job, tmp_path / "out")
    assert counts == dict.fromkeys(COUNTS, 0) and records(tmp_path / "out") == [] and extractor.opened == 0


def test_a_part_ends_after_so_many_characters(extractor, job, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PART_CHARACTERS", 100)
    extract_corpus(extractor.open, job, tmp_path / "out")
    parts = [[row["text"] for _, row in read_rows(path)] for path in sorted((tmp_path / "out").glob("part-*"))]
    assert [text for part in parts for text in part] == [document["text"] for document in DOCUMENTS]
    assert len(parts) > 3
    for part, after in pairwise(parts):
        assert after and len("".join(part)) >= 100 > len("".join(part[:-1]))


@pytest.mark.parametrize("documents", [1, 3, 1000])
def test_a_part_ends_after_so_many_documents(documents, extractor, job, tmp_path):
    extract_corpus(extractor.open, change(job, part_documents=documents), tmp_path / "out")
    sizes = [len(list(read_rows(path))) for path in sorted((tmp_path / "out").glob("part-*"))]
    assert sum(sizes) == len(DOCUMENTS) and set(sizes[:-1]) <= {documents} and sizes[-1] <= documents


# ---- stopping


class StoppedError(BaseException):
    """As sudden as a KeyboardInterrupt."""


def stopping(monkeypatch, calls: int, before: bool, name: str) -> None:
    """Stop at a call of `write_part` or of the manifest's writing, before or after what it does."""
    owner = corpus if name == "write_part" else corpus_parts.Manifest
    write, left = getattr(owner, name), [calls]

    def stop(*arguments):
        if left[0] == 0 and before:
            raise StoppedError
        result = write(*arguments)
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError
        return result

    monkeypatch.setattr(owner, name, stop)


@pytest.mark.parametrize("calls", range(6))
@pytest.mark.parametrize("name", ["write_part", "add"])
@pytest.mark.parametrize("before", [True, False])
def test_a_job_that_was_stopped_goes_on(calls, name, before, extractor, job, tmp_path, small_parts, monkeypatch):
    """Stopped before or after the part `calls` was written, or before or after it was listed."""
    extract_corpus(extractor.open, job, tmp_path / "undisturbed")
    extractor.asked.clear()
    with monkeypatch.context() as patch:
        stopping(patch, calls, before, name)
        with pytest.raises(StoppedError):
            extract_corpus(extractor.open, job, tmp_path / "out")
    finished = calls + (name == "add" and not before)
    extractor.asked.clear()
    extract_corpus(extractor.open, job, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    # what was finished is not done again.
    assert set(extractor.asked) == {document["text"] for document in DOCUMENTS[2 * finished :]}
    assert len(extractor.asked) == len(DOCUMENTS[2 * finished :])
    opened = extractor.opened
    extract_corpus(extractor.open, job, tmp_path / "out")
    assert extractor.opened == opened and files(tmp_path / "out") == files(tmp_path / "undisturbed")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_manifest_that_was_cut_off_loses_no_more_than_that(kept, extractor, job, tmp_path, small_parts):
    """As a crash of the machine may leave it."""
    extract_corpus(extractor.open, job, tmp_path / "out")
    before = files(tmp_path / "out")
    data = before[MANIFEST]
    (tmp_path / "out" / MANIFEST).write_bytes(data[: int(len(data) * kept)])
    (tmp_path / "out" / ".tmp-7-part-00000-of-00001-00009.jsonl").write_bytes(b"left")
    (tmp_path / "out" / "part-00000-of-00001-00009.jsonl").write_bytes(b"left")
    extractor.asked.clear()
    extract_corpus(extractor.open, job, tmp_path / "out")
    assert files(tmp_path / "out") == before
    if kept > 0.9:
        assert extractor.asked == []


CHANGES = {
    "labels": ({"labels": ("person",)}, 'labels (["person", "city"], now ["person"])'),
    "format": ({"format": "parquet"}, 'format ("jsonl", now "parquet")'),
    "carry": ({"carry": ("n",)}, 'carry ([], now ["n"])'),
    "text_field": ({"text_field": "id"}, 'text_field ("text", now "id")'),
    "id_field": ({"id_field": "n"}, 'id_field ("id", now "n")'),
    "text_lines": ({"text_lines": True}, "text_lines (false, now true)"),
    "max_characters": ({"max_characters": 9}, "max_characters (2000000, now 9)"),
    "part_documents": ({"part_documents": 9}, "part_documents (null, now 9)"),
    "dtype": ({"settings": Settings(dtype="bfloat16")}, 'dtype ("float32", now "bfloat16")'),
    "max_new_tokens": ({"settings": Settings(max_new_tokens=9)}, "max_new_tokens (256, now 9)"),
    "batch_size": ({"settings": Settings(batch_size=9)}, "batch_size (32, now 9)"),
    "tensor": ({"settings": Settings(tensor=2)}, "tensor (1, now 2)"),
    "grounding": ({"settings": Settings(grounding="none")}, 'grounding ("substring", now "none")'),
    "occurrences": ({"settings": Settings(occurrences="first")}, 'occurrences ("all", now "first")'),
    "flat": ({"settings": Settings(flat=True)}, "flat (false, now true)"),
    "threshold": ({"settings": Settings(threshold=0.5)}, "threshold (0.0, now 0.5)"),
    "temperature": ({"settings": Settings(temperature=2.0)}, "temperature (1.0, now 2.0)"),
    "dataset": ({"settings": Settings(dataset="ACE 2005")}, 'dataset (null, now "ACE 2005")'),
    "question": (
        {"settings": Settings(question="Which {type}?")},
        'question ("What describes {type} in the text?", now "Which {type}?")',
    ),
    "draft": ({"settings": Settings(draft=4)}, "draft (0, now 4)"),
    "noun": ({"settings": Settings(noun="paragraph")}, 'noun (null, now "paragraph")'),
}


def test_every_setting_is_of_the_identity(job):
    fields = {field.name for kind in (Job, Settings) for field in dataclasses.fields(kind)}
    assert fields - {"model", "inputs", "shard", "shards", "settings"} == CHANGES.keys()


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_another_job_does_not_go_on_in_its_directory(
    name, finished, extractor, job, tmp_path, small_parts, monkeypatch
):
    changes, said = CHANGES[name]
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        if not finished:
            stopping(patch, 2, True, "add")
        extract_corpus(extractor.open, job, tmp_path / "out")
        raise StoppedError
    before = files(tmp_path / "out")
    message = f"{tmp_path / 'out'}: was begun with other {said}. Give another --output, or --no-resume"
    with pytest.raises(InputError, match=re.escape(message)):
        extract_corpus(extractor.open, change(job, **changes), tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_another_model_does_not_go_on(extractor, job, tok512, tmp_path):
    extract_corpus(extractor.open, job, tmp_path / "out")
    other = change(job, model=str(write_tiny_model(tok512, tmp_path / "other", seed=1)))
    with pytest.raises(InputError, match='was begun with other model \\("'):
        extract_corpus(extractor.open, other, tmp_path / "out")
    # the same weights under another name are the same model.
    same = change(job, model=str(write_tiny_model(tok512, tmp_path / "same")))
    extract_corpus(extractor.open, same, tmp_path / "out")


def test_another_input_does_not_go_on(extractor, job, source, tmp_path):
    write_rows(tmp_path / "more.jsonl", DOCUMENTS[:2])
    both = change(job, inputs=(source, tmp_path / "more.jsonl"))
    extract_corpus(extractor.open, both, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(InputError, match=re.escape(f"inputs ({tmp_path / 'more.jsonl'} is gone)")):
        extract_corpus(extractor.open, job, tmp_path / "out")
    with pytest.raises(InputError, match=re.escape("inputs (in another order)")):
        extract_corpus(extractor.open, change(both, inputs=both.inputs[::-1]), tmp_path / "out")
    write_rows(source, DOCUMENTS[1:])
    with pytest.raises(InputError, match=re.escape(f"inputs ({source} has changed)")):
        extract_corpus(extractor.open, both, tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_shards_of_another_job_or_count_are_refused(extractor, job, tmp_path):
    extract_corpus(extractor.open, change(job, shards=3), tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(InputError, match="was begun in 3 shard\\(s\\), not in 2; give --shard I/3 or another"):
        extract_corpus(extractor.open, change(job, shards=2, shard=1), tmp_path / "out")
    with pytest.raises(InputError, match="was begun with other labels"):
        extract_corpus(extractor.open, change(job, shards=3, shard=1, labels=("x",)), tmp_path / "out")
    assert {name: files(tmp_path / "out")[name] for name in before} == before
    assert not list((tmp_path / "out").glob("part-00001*"))


@pytest.mark.parametrize("harm", ["gone", "cut", "changed"])
def test_a_part_that_is_not_what_it_was_is_done_again(harm, extractor, job, tmp_path, small_parts):
    extract_corpus(extractor.open, job, tmp_path / "out")
    before = files(tmp_path / "out")
    path = tmp_path / "out" / "part-00000-of-00001-00002.jsonl"
    data = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(data[:-1] if harm == "cut" else data.replace(b"London", b"Lisbon"))
    extractor.asked.clear()
    extract_corpus(extractor.open, job, tmp_path / "out")
    assert files(tmp_path / "out") == before
    assert sorted(extractor.asked) == sorted(document["text"] for document in DOCUMENTS[4:6])


def test_without_resuming_a_job_is_done_anew(extractor, job, source, tmp_path, small_parts):
    extract_corpus(extractor.open, job, tmp_path / "out")
    write_rows(source, DOCUMENTS[:3])
    other = change(job, labels=("city",))
    extract_corpus(extractor.open, other, tmp_path / "out", resume=False)
    extract_corpus(extractor.open, other, tmp_path / "new")
    assert files(tmp_path / "out") == files(tmp_path / "new")


def test_an_output_among_its_inputs_is_refused(extractor, job, tmp_path):
    extract_corpus(extractor.open, job, tmp_path / "out")
    again = change(job, inputs=(tmp_path / "out" / "part-00000-of-00001-00000.jsonl",))
    with pytest.raises(InputError, match="is of the output itself"):
        extract_corpus(extractor.open, again, tmp_path / "out", resume=False)
    assert len(records(tmp_path / "out")) == 11


# ---- the command


def leave(arguments, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        run_command(dispatch, ["extract", *map(str, arguments)])
    return exit.value.code, capsys.readouterr().err


@pytest.fixture
def opened(extractor, monkeypatch):
    """The command's extractor is the one that knows names; what it was opened with."""
    given = {}
    monkeypatch.setattr(
        Extractor, "from_pretrained", lambda model, *settings: given.update(settings=settings[3]) or extractor
    )
    return given


def test_the_command_is_the_job(opened, extractor, job, source, tmp_path, capsys):
    arguments = ["--model", job.model, "--input", source, "--labels", " person,city,,person", "--output"]
    code, message = leave([*arguments, tmp_path / "out", "--carry", "n, x", "--batch-size", "7"], capsys)
    assert code == 0 and opened == {"settings": Settings(batch_size=7)}
    same = change(job, carry=("n", "x"), settings=Settings(batch_size=7))
    counts = extract_corpus(extractor.open, same, tmp_path / "job")
    assert files(tmp_path / "out") == files(tmp_path / "job")
    said = f"{tmp_path / 'out'}: 11 documents, {counts['windows']} windows, {counts['entities']} entities; left out "
    assert f"{said}11 answers that do not stand in the text; 22 answers cut at 256 tokens" in message
    assert " questions/s, " in message and "% empty" in message
    (tmp_path / "labels.txt").write_text("person\n\n city \n")
    arguments = ["--model", job.model, "--input", tmp_path / "*.jsonl", "--labels-file", tmp_path / "labels.txt"]
    assert leave([*arguments, "--output", tmp_path / "plain"], capsys)[0] == 0
    extract_corpus(extractor.open, job, tmp_path / "plain-job")
    assert files(tmp_path / "plain") == files(tmp_path / "plain-job")


def test_without_beam_its_option_says_how_to_get_it(job, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    arguments = ["--model", job.model, "--input", source, "--labels", "a", "--output", tmp_path / "out"]
    code, message = leave([*arguments, "--beam-runner", "FnApiRunner"], capsys)
    assert code == 1 and "--beam-runner needs Apache Beam, in an environment of its own: pip install" in message


def test_bad_records_are_a_failure_that_says_how_many(opened, job, source, tmp_path, capsys):
    source.write_text(source.read_text() + '{"id": "x", "text": ""}\n[]\n')
    output = tmp_path / "out"
    arguments = ["--model", job.model, "--input", source, "--labels", "person", "--output", output]
    for _ in range(2):  # and says so again
        code, message = leave(arguments, capsys)
        assert code == 1
        last = message.splitlines()[-1]
        assert last == f'error: {output}: 2 document(s) could not be read; see "error" in their records'
    assert len(records(output)) == 13 and sum(record["error"] is not None for record in records(output)) == 2


WRONG = {
    "shard": (["--shard=3/3"], "--shard '3/3' must be I/N with I from 0 to N-1, such as 0/4"),
    "negative shard": (["--shard=-1/3"], "--shard '-1/3' must be I/N"),
    "no count": (["--shard=1"], "--shard '1' must be I/N"),
    "letters": (["--shard=a/b"], "--shard 'a/b' must be I/N"),
    "no shards": (["--shard=0/0"], "--shard '0/0' must be I/N"),
    "three numbers": (["--shard=1/3/4"], "--shard '1/3/4' must be I/N"),
    "an empty shard": (["--shard="], "--shard '' must be I/N"),
    "superscript": (["--shard=²/3"], "--shard '²/3' must be I/N"),
    "a field twice": (["--carry", "url,text"], "--carry text: a record has a field of that name already"),
    "characters": (["--max-characters", "0"], "--max-characters must be at least 1, found 0"),
    "no such file": (["--input", "absent*.jsonl"], "--input absent*.jsonl: no such file"),
    "a directory": (["--input", "."], "--input .: a directory; give the files in it"),
    "stdin and more": (["--input", "-", __file__], "--input -: standard input is read alone"),
    "options of Beam": (["--beam-options", "streaming"], "--beam-options are for a job on Beam: name its runner"),
    "an address": (["--input", "gs://b/a.jsonl"], "--input gs://b/a.jsonl: only a job with --beam-runner reads"),
    "an address for the model": (
        ["--model", "gs://b/model"],
        "only a job with --beam-runner reads and writes an object",
    ),
    "no label file": (["--labels-file", "absent.txt"], "absent.txt: no such file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name, job, source, tmp_path, capsys):
    more, message = WRONG[name]
    arguments = ["--model", job.model, "--input", source, "--labels", "a", "--output", tmp_path / "out"]
    code, error = leave([*arguments, *more], capsys)
    assert code == 1 and error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
