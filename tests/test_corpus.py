"""A corpus job writes a record for every document, and stopping it anywhere changes nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uner_jax.cli import dispatch
from uner_jax.command import run_command
from uner_jax.extraction import corpus
from uner_jax.extraction.corpus import COUNTS, Job, extract_corpus
from uner_jax.extraction.engine import Engine, Generation
from uner_jax.extraction.extractor import Extractor
from uner_jax.model.config import LlamaConfig
from uner_jax.model.parameters import abstract_model
from uner_jax.records import InputError, read_rows, write_rows
from uner_jax.tokenizer import load_tokenizer
from uner_jax.weights.checkpoint import write_checkpoint

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=256,
)
FIELDS = ["id", "text", "labels", "entities", "chunks", "error"]
LABELS = ("person", "city")
DOCUMENTS = [
    {"id": f"d{number}", "text": f"{number}: Ada and Bob 😀 met in London. " * (1 + number % 3)} for number in range(11)
]
DOCUMENTS[3] |= {"labels": ["city", "city", "animal"]}
del DOCUMENTS[4]["id"]
DOCUMENTS[5]["id"] = 17


@pytest.fixture(scope="session")
def tok512(shared_data):
    return load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")


@pytest.fixture(scope="session")
def model_path(tok512, tmp_path_factory) -> Path:
    """A checkpoint of random weights."""
    random = np.random.default_rng(0)
    model = jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.5, x.shape), jnp.float32), abstract_model(CONFIG))
    directory = tmp_path_factory.mktemp("model") / "checkpoint"
    write_checkpoint(model, tok512, directory)
    return directory


@pytest.fixture
def extractor(tok512, monkeypatch):
    """An extractor that knows a few names; `asked` has the passages that it was asked about."""
    asked = []

    def answers(self, requests):
        for place, request in enumerate(requests):
            question = tok512.decode(request.question)
            names = ["Ada", "Bob"] if "person" in question else ["London", "Paris"] if "city" in question else []
            ids = tuple(tok512.encode(json.dumps(names)))
            asked.append(tok512.decode(request.context))
            yield place, Generation(ids, (-0.01,) * len(ids), True)

    monkeypatch.setattr(Engine, "generate", answers)
    extractor = Extractor(abstract_model(CONFIG), tok512)
    extractor.asked = asked
    return extractor


@pytest.fixture
def source(tmp_path):
    write_rows(tmp_path / "documents.jsonl", DOCUMENTS)
    return tmp_path / "documents.jsonl"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(corpus, "PART_DOCUMENTS", 2)


def job(source, **changes) -> Job:
    return Job(**({"model": "m", "inputs": (source,), "labels": LABELS} | changes))


def records(output: Path) -> list[dict]:
    return [row for path in sorted(output.glob("part-*")) for _, row in read_rows(path)]


def files(output: Path) -> dict[str, bytes]:
    """All that a job wrote, but for how long it took."""
    found = {path.name: path.read_bytes() for path in output.iterdir()}
    return {name: re.sub(rb'"seconds": [\d.]+', b"", content) for name, content in found.items()}


def test_a_record_for_each_document(extractor, source, tmp_path):
    counts = extract_corpus(extractor, job(source), tmp_path / "out")
    found = records(tmp_path / "out")
    assert [record["text"] for record in found] == [document["text"] for document in DOCUMENTS]
    for record, document in zip(found, DOCUMENTS, strict=True):
        labels = document.get("labels", list(LABELS))
        (one,) = extractor.extract([document["text"]], labels)
        assert list(record) == FIELDS
        assert record["labels"] == labels and record["error"] is None
        assert (record["entities"], record["chunks"]) == (one.entities, one.chunks)
        for entity in record["entities"]:
            assert document["text"][entity["start"] : entity["end"]] == entity["text"]
    assert {entity["label"] for entity in found[3]["entities"]} == {"city"}
    names = [record["id"] for record in found]
    assert names[3:7] == ["d3", f"{source}, line 5", "17", "d6"]
    total = {"documents": 11, "entities": sum(len(record["entities"]) for record in found), "errors": 0, "cut": 0}
    total |= {"windows": sum(record["chunks"] for record in found), "ungrounded": sum(r["chunks"] for r in found)}
    assert counts == total and list(counts) == list(COUNTS)
    summary = json.loads((tmp_path / "out" / "summary-00000-of-00001.json").read_text())
    assert summary.keys() == {*COUNTS, "seconds"} and summary.items() >= counts.items()


def test_parquet_holds_the_same(extractor, source, tmp_path, small_parts):
    for form in ("jsonl", "parquet"):
        extract_corpus(extractor, job(source, format=form), tmp_path / form)
    assert len(list((tmp_path / "parquet").glob("part-*.parquet"))) == 6
    assert records(tmp_path / "parquet") == records(tmp_path / "jsonl")


BAD = {
    '{"id": "x", "text": ""}': ('documents.jsonl, line 3: "text" must be a non-empty string, found an empty text'),
    '{"id": "x", "text": " \\n"}': '"text" must be a non-empty string, found an empty text',
    '{"id": "x", "text": 5}': '"text" must be a non-empty string, found int',
    '{"id": "x"}': '"text" must be a non-empty string, found NoneType',
    '["a", "b"]': "a document must be a JSON object, found list",
    "null": "a document must be a JSON object, found NoneType",
    '{"id": "x", "text": "Ada \\ud800"}': "no lone surrogates",
    '{"id": "\\ud800", "text": ""}': "found an empty text",
    '{"id": "x", "text": "Ada", "labels": []}': 'no labels; give --labels, or a list "labels" in the record',
    '{"id": "x", "text": "Ada", "labels": "person"}': "no labels; give --labels",
    '{"id": "x", "text": "Ada", "labels": {"person": 1}}': "no labels; give --labels",
    '{"id": "x", "text": "Ada", "labels": ["person", null]}': "a label must be a non-empty string, found None",
    '{"id": "x", "text": "Ada", "labels": [["person"]]}': "a label must be a non-empty string, found ['person']",
    '{"id": "x", "text": "Ada", "labels": ["\\udfff"]}': "no lone surrogates",
    '{"id": "x", "text": "Ada", "labels": ["%s"]}' % ("person " * 100): "leave no room for the passage",
}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("line", BAD)
def test_one_bad_record_stops_nothing(line, form, extractor, tmp_path):
    source = tmp_path / "documents.jsonl"
    good = [json.dumps(document) for document in DOCUMENTS[:3]]
    source.write_text("\n".join([*good[:2], line, *good[2:]]) + "\n")
    counts = extract_corpus(extractor, job(source, format=form), tmp_path / "out")
    found = records(tmp_path / "out")
    bad = found.pop(2)
    assert list(bad) == FIELDS and BAD[line] in bad["error"]
    assert bad["id"] == ("x" if '"x"' in line else f"{source}, line 3")
    assert (bad["text"], bad["labels"], bad["entities"], bad["chunks"]) == (None, [], [], 0)
    assert counts["errors"] == 1 and counts["documents"] == 4
    write_rows(tmp_path / "good.jsonl", DOCUMENTS[:3])
    extract_corpus(extractor, job(tmp_path / "good.jsonl"), tmp_path / "good")
    assert found == records(tmp_path / "good") and all(record["entities"] for record in found)


def test_an_id_that_no_file_can_hold_is_replaced(extractor, tmp_path):
    (tmp_path / "documents.jsonl").write_text('{"id": "\\ud800", "text": "Ada"}\n{"id": true, "text": "Ada"}\n')
    extract_corpus(extractor, job(tmp_path / "documents.jsonl", format="parquet"), tmp_path / "out")
    names = [(record["id"], record["error"]) for record in records(tmp_path / "out")]
    assert names == [(f"{tmp_path}/documents.jsonl, line {line}", None) for line in (1, 2)]


def test_no_labels_at_all(extractor, source, tmp_path):
    counts = extract_corpus(extractor, job(source, labels=()), tmp_path / "out")
    errors = [record["error"] is None for record in records(tmp_path / "out")]
    assert errors == [number == 3 for number in range(11)] and counts["errors"] == 10


def test_shards_together_are_the_whole(extractor, source, tmp_path, small_parts):
    write_rows(tmp_path / "more.jsonl", DOCUMENTS[:4])
    inputs = (source, tmp_path / "more.jsonl")
    extract_corpus(extractor, job(source, inputs=inputs), tmp_path / "whole")
    counts = [
        extract_corpus(extractor, job(source, inputs=inputs, shard=shard, shards=3), tmp_path / "shards")
        for shard in (2, 0, 1)
    ]
    whole = records(tmp_path / "whole")
    shards = [
        [row for path in sorted((tmp_path / "shards").glob(f"part-{shard:05d}-*")) for _, row in read_rows(path)]
        for shard in range(3)
    ]
    assert shards == [whole[shard::3] for shard in range(3)]
    summary = json.loads((tmp_path / "whole" / "summary-00000-of-00001.json").read_text())
    assert {name: sum(count[name] for count in counts) for name in COUNTS} == {name: summary[name] for name in COUNTS}
    assert len(list((tmp_path / "shards").glob("summary-*-of-00003.json"))) == 3


def test_an_empty_input(extractor, tmp_path):
    (tmp_path / "none.jsonl").touch()
    counts = extract_corpus(extractor, job(tmp_path / "none.jsonl"), tmp_path / "out")
    assert counts == dict.fromkeys(COUNTS, 0) and records(tmp_path / "out") == []


# ---- stopping


class StoppedError(BaseException):
    """As sudden as a KeyboardInterrupt."""


@pytest.mark.parametrize("calls", range(6))
@pytest.mark.parametrize("name", ["write_rows", "write_json"])
@pytest.mark.parametrize("before", [True, False])
def test_a_job_that_was_stopped_goes_on(calls, name, before, extractor, source, tmp_path, small_parts, monkeypatch):
    """Stopped before or after the part `calls` was written, or before or after it was counted."""
    extract_corpus(extractor, job(source), tmp_path / "undisturbed")
    whole = len(extractor.asked)
    extractor.asked.clear()
    write = getattr(corpus, name)
    left = [calls]

    def stopping(path, value):
        if left[0] == 0 and before:
            raise StoppedError
        write(path, value)
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(corpus, name, stopping)
        with pytest.raises(StoppedError):
            extract_corpus(extractor, job(source), tmp_path / "out")
    finished = calls + (name == "write_json" and not before)
    done = len(extractor.asked)
    extract_corpus(extractor, job(source), tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    # what was finished is not done again: of each part at most one was begun twice.
    manifest = json.loads((tmp_path / "undisturbed" / "manifest-00000-of-00001.json").read_text())
    windows = [counts["windows"] for counts in manifest["parts"].values()]
    assert len(windows) == 6
    again = sum(windows[:finished])
    assert (whole - (len(extractor.asked) - done)) == 2 * again
    extractor.asked.clear()
    extract_corpus(extractor, job(source), tmp_path / "out")
    assert extractor.asked == [] and files(tmp_path / "out") == files(tmp_path / "undisturbed")


KILLED = """
import os, signal, sys
from pathlib import Path
from uner_jax.extraction import corpus
from uner_jax.extraction.extractor import Extraction

class Extractor:
    calls = 0
    def check(self, text, labels): pass
    def extract(self, texts, labels):
        self.calls += 1
        if self.calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        span = {"start": 0, "end": 1, "text": "0", "label": "a", "score": 0.5}
        return [Extraction([dict(span, text=text[0])], 1, 0, 0) for text in texts]

corpus.PART_DOCUMENTS = 2
corpus.extract_corpus(Extractor(), corpus.Job("m", (Path(sys.argv[1]),), ("a",)), Path(sys.argv[2]))
"""


def test_a_killed_process_loses_nothing(source, tmp_path):
    def run(output: str, killed_at: int) -> int:
        command = [sys.executable, "-c", KILLED, source, tmp_path / output, str(killed_at)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert run("out", 3) == -9
    first = files(tmp_path / "out")
    assert len([name for name in first if name.startswith("part-")]) == 2
    assert run("out", 5) == run("undisturbed", 0) == 0  # five parts would be one too many: four are left
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    assert files(tmp_path / "out").items() >= {name: first[name] for name in first if "part-" in name}.items()


CHANGES = {
    "model": {"model": "another"},
    "labels": {"labels": ("person",)},
    "format": {"format": "parquet"},
    "dtype": {"dtype": "bfloat16"},
    "max_new_tokens": {"max_new_tokens": 9},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_job_does_not_go_on_in_its_directory(name, extractor, source, tmp_path):
    extract_corpus(extractor, job(source), tmp_path / "out")
    before = files(tmp_path / "out")
    message = f"{re.escape(str(tmp_path / 'out'))}: was begun with other {name}; give another --output or remove it"
    with pytest.raises(InputError, match=message):
        extract_corpus(extractor, job(source, **CHANGES[name]), tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_another_input_does_not_go_on(extractor, source, tmp_path):
    extract_corpus(extractor, job(source), tmp_path / "out")
    before = files(tmp_path / "out")
    write_rows(source, DOCUMENTS[1:])
    with pytest.raises(InputError, match="was begun with other inputs"):
        extract_corpus(extractor, job(source), tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_a_part_that_was_taken_away_is_done_again(extractor, source, tmp_path, small_parts):
    extract_corpus(extractor, job(source), tmp_path / "out")
    before = files(tmp_path / "out")
    (tmp_path / "out" / "part-00000-of-00001-00002.jsonl").unlink()
    extract_corpus(extractor, job(source), tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_without_resuming_a_job_is_done_anew(extractor, source, tmp_path, small_parts):
    extract_corpus(extractor, job(source), tmp_path / "out")
    write_rows(source, DOCUMENTS[:3])
    other = job(source, labels=("city",))
    extract_corpus(extractor, other, tmp_path / "out", resume=False)
    extract_corpus(extractor, other, tmp_path / "new")
    assert files(tmp_path / "out") == files(tmp_path / "new")


# ---- the command


def leave(arguments, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        run_command(dispatch, ["extract", *map(str, arguments)])
    return exit.value.code, capsys.readouterr().err


def test_the_command_is_the_job(model_path, extractor, source, tmp_path, capsys):
    arguments = ["--model", model_path, "--input", source, "--labels", " person,city,,person", "--output"]
    code, message = leave([*arguments, tmp_path / "out"], capsys)
    assert code == 0
    extract_corpus(extractor, job(source, model=str(model_path)), tmp_path / "job")
    assert files(tmp_path / "out") == files(tmp_path / "job")
    counts = json.loads((tmp_path / "job" / "summary-00000-of-00001.json").read_text())
    said = f"{tmp_path / 'out'}: 11 documents, {counts['windows']} windows, {counts['entities']} entities; left out "
    assert f"{said}{counts['ungrounded']} answers that do not stand in the text; 0 answers cut at 256 tokens" in message
    (tmp_path / "labels.txt").write_text("person\n\n city \n")
    arguments = ["--model", model_path, "--input", source, "--labels-file", tmp_path / "labels.txt", "--output"]
    assert leave([*arguments, tmp_path / "out"], capsys)[0] == 0
    assert files(tmp_path / "out") == files(tmp_path / "job")


def test_bad_records_are_a_failure_that_says_how_many(model_path, extractor, source, tmp_path, capsys):
    source.write_text(source.read_text() + '{"id": "x", "text": ""}\n[]\n')
    output = tmp_path / "out"
    arguments = ["--model", model_path, "--input", source, "--labels", "person", "--output", output]
    for _ in range(2):  # and says so again
        code, message = leave(arguments, capsys)
        assert code == 1
        last = message.splitlines()[-1]
        assert last == f'error: {output}: 2 document(s) could not be read; see "error" in their records'
    assert len(records(output)) == 13 and sum(record["error"] is not None for record in records(output)) == 2


FAULTS = {
    "missing": ("absent.jsonl", None, "absent.jsonl: no such file"),
    "not JSON": ("bad.jsonl", '{"id": "a", "text": "Ada"}\n{"id":\n', "bad.jsonl, line 2: not JSON"),
    "no array": ("bad.json", '[{"id": "a", "text": "Ada"}', "bad.json, line 1: not a JSON array"),
    "no Parquet": ("bad.parquet", "PAR1", "bad.parquet: not a readable Parquet file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_input_that_cannot_be_read_is_named(name, model_path, extractor, source, tmp_path, capsys):
    file, content, words = FAULTS[name]
    if content is not None:
        (tmp_path / file).write_text(content)
    inputs = [source, tmp_path / file]
    code, message = leave(
        ["--model", model_path, "--input", *inputs, "--labels", "a", "--output", tmp_path / "out"], capsys
    )
    assert code == 1 and message.splitlines()[-1].startswith(f"error: {tmp_path}/{words}")


@pytest.mark.parametrize("shard", ["3/3", "-1/3", "1", "a/b", "1/0", "0/0", "1/3/4", ""])
def test_a_shard_that_there_is_not_is_an_error(shard, model_path, source, tmp_path, capsys):
    arguments = ["--model", model_path, "--input", source, "--labels", "a", "--output", tmp_path / "out"]
    code, message = leave([*arguments, f"--shard={shard}"], capsys)
    assert code == 1 and message == f"error: --shard {shard!r} must be I/N with I from 0 to N-1, such as 0/4\n"
    assert not (tmp_path / "out").exists()


def test_the_real_engine_does_a_job(model_path, source, tmp_path, capsys):
    write_rows(source, DOCUMENTS[:3:2])
    arguments = ["--model", model_path, "--input", source, "--labels", "person,city", "--max-new-tokens", "1"]
    code, message = leave([*arguments, "--output", tmp_path / "out"], capsys)
    windows = sum(record["chunks"] for record in records(tmp_path / "out"))
    assert code == 0 and f"{2 * windows} answers cut at 1 tokens" in message
    assert [record["text"] for record in records(tmp_path / "out")] == [row["text"] for row in DOCUMENTS[:3:2]]
