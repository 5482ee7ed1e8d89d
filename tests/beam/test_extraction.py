"""What Beam extracts is what this machine extracts, and what goes wrong in a worker is counted or said.

Runs in an environment of its own: make test-beam.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pyarrow.parquet as pq
import pytest
from tiny_extraction import write_tiny_model

from uner_jax.cli import dispatch
from uner_jax.command import run_command
from uner_jax.data.beam import pipeline_options
from uner_jax.data.storage import as_path
from uner_jax.extraction.corpus import beam
from uner_jax.extraction.corpus import run as corpus
from uner_jax.extraction.corpus.job import Job, Settings
from uner_jax.extraction.corpus.run import extract_corpus
from uner_jax.records import InputError, LostRecordsError, read_rows, write_rows
from uner_jax.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("quick_compilation")

ONE_PROCESS = ()
TWO_PROCESSES = ("direct_running_mode=multi_processing", "direct_num_workers=2")
MANIFEST = "manifest-00000-of-00001.jsonl"
BAD = [
    b'{"id": "half", "text": "Ada \\ud800", "n": "\\ud800"}',
    b"[]",
    b'{"id": "x", "text": ""}',
    b'{"text": "Ada \xff"}',
]


@pytest.fixture(scope="module")
def model_path(shared_data, tmp_path_factory):
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    return write_tiny_model(tokenizer, tmp_path_factory.mktemp("model") / "checkpoint", seed=2)


@pytest.fixture(scope="module")
def texts(shared_data) -> list[str]:
    """The beginnings of real passages, of several lengths."""
    rows = [row for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl")][:24]
    passages = [row["conversations"][0]["value"].removeprefix("Text: ") for row in rows]
    return [passage[: 40 + 30 * (number % 4)] for number, passage in enumerate(passages)]


@pytest.fixture
def sources(texts, tmp_path) -> list[Path]:
    """JSON lines with bad records among them, Parquet, a table, and many small files of text, one of them empty."""
    rows = [{"id": f"d{number}", "text": text, "n": number} for number, text in enumerate(texts)]
    rows[2]["labels"] = ["animal"]
    write_rows(tmp_path / "a.jsonl", rows[:9])
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b"\n".join(BAD) + b"\n")
    write_rows(tmp_path / "b.parquet", rows[9:15])
    (tmp_path / "c.tsv").write_text("id\ttext\tn\ns\tAda met Bob in Rome.\t5\nt\tshort of a cell\n")
    paths = [tmp_path / name for name in ("a.jsonl", "b.parquet", "c.tsv")]
    for number, text in enumerate([*texts[15:19], ""]):
        paths.append(tmp_path / f"text{number}.txt")
        paths[-1].write_text(text)
    return paths


@pytest.fixture
def processes_compile_alike(monkeypatch):
    """Processes of their own find the programs that this one has compiled."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.values["jax_compilation_cache_dir"])
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture
def job(model_path, sources):
    return Job(str(model_path), tuple(sources), ("person", "city"), carry=("n",), settings=Settings(max_new_tokens=8))


@pytest.fixture
def small_parts(monkeypatch):
    """Parts that a test has several of: of four documents, in groups of 300 bytes."""
    monkeypatch.setattr(corpus, "PART_DOCUMENTS", 4)
    monkeypatch.setattr(beam, "GROUP_BYTES", 300)


def change(job: Job, **changes) -> Job:
    return dataclasses.replace(job, **changes)


def local(job: Job, output: Path) -> dict[str, int]:
    return extract_corpus(lambda: job.settings.extractor(job.model), job, output)


def on_beam(job: Job, output: Path, options=ONE_PROCESS, **more) -> dict[str, int]:
    return beam.extract_on_beam(job, str(output), pipeline_options("FnApiRunner", options), **more)


def in_order(output: Path) -> list[dict]:
    """The records, as the manifest lists their parts."""
    lines = [json.loads(line) for line in (output / MANIFEST).read_text().splitlines()]
    return [row for line in lines if "part" in line for _, row in read_rows(output / line["part"])]


def files(output: Path) -> dict[str, bytes]:
    """The parts, and the manifest."""
    return {path.name: path.read_bytes() for path in output.iterdir() if path.name.startswith(("part-", "manifest-"))}


def assert_same(found: list[dict], expected: list[dict]) -> None:
    """All but the scores to the letter: a batch of another shape adds in another order."""
    scores = [[span.pop("score") for record in rows for span in record["entities"]] for rows in (found, expected)]
    assert found == expected
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_two_processes_write_the_records_of_a_local_job(form, job, tmp_path, small_parts, processes_compile_alike):
    job = change(job, format=form)
    counts = local(job, tmp_path / "local")
    assert on_beam(job, tmp_path / "out", TWO_PROCESSES) == counts
    assert counts["errors"] == len(BAD) + 2 and counts["entities"] > 10 and counts["documents"] == 26
    found = in_order(tmp_path / "out")
    assert len({record["id"] for record in found}) == counts["documents"], "ids, also those that are places"
    assert_same(found, in_order(tmp_path / "local"))
    summaries = [json.loads((tmp_path / name / "summary-00000-of-00001.json").read_text()) for name in ("local", "out")]
    assert summaries[0]["first_error"] == summaries[1]["first_error"]
    assert summaries[0].keys() == summaries[1].keys()
    assert sum(path.name.startswith("part-") for path in (tmp_path / "out").iterdir()) == 4, "a group each"


def test_one_file_makes_the_same_parts_and_they_merge(job, sources, tmp_path):
    job = change(job, inputs=(sources[0],))
    local(job, tmp_path / "local")
    on_beam(job, tmp_path / "out")
    names = [f"part-00000-of-00001-{name}.jsonl" for name in ("00000", "00000-00000")]
    assert (tmp_path / "local" / names[0]).read_bytes() == (tmp_path / "out" / names[1]).read_bytes()
    for name in ("local", "out"):
        with pytest.raises(SystemExit) as left:
            run_command(dispatch, ["extract", "--merge", str(tmp_path / name)])
        assert left.value.code == 0
    merged = [(tmp_path / name / "merged.jsonl").read_bytes() for name in ("local", "out")]
    assert merged[0] == merged[1]


def test_carried_columns_keep_their_types(job, sources, tmp_path):
    job = change(job, inputs=(sources[1],), format="parquet")
    local(job, tmp_path / "local")
    on_beam(job, tmp_path / "out")
    schemas = [pq.read_schema(next((tmp_path / name).glob("part-*"))) for name in ("local", "out")]
    assert schemas[0] == schemas[1]


def test_the_command_counts_bad_records_and_fails(model_path, sources, tmp_path, capfd):
    arguments = ["extract", "--model", model_path, "--input", *sources, "--labels", "person,city", "--max-new-tokens=8"]
    said = []
    for more in (["--output", tmp_path / "local"], ["--output", tmp_path / "out", "--beam-runner", "FnApiRunner"]):
        with pytest.raises(SystemExit) as left:
            run_command(dispatch, [str(word) for word in [*arguments, *more]])
        assert left.value.code == 1
        said.append(capfd.readouterr().err.replace(str(more[1]), "OUT").splitlines()[-2:])
    assert (
        said[0] == said[1] and "OUT: 26 documents, " in said[0][0] and "6 document(s) could not be read" in said[0][1]
    )
    with pytest.raises(SystemExit):
        run_command(dispatch, [str(word) for word in [*arguments, *more, "--shard", "0/2"]])
    assert "leave out --input - and --shard" in capfd.readouterr().err


# ---- again


def test_parts_that_stand_are_kept_and_only_the_others_done_again(job, tmp_path, small_parts, monkeypatch):
    output = tmp_path / "out"
    on_beam(job, output)
    done = files(output)
    on_beam(job, output)
    assert files(output) == done
    parts = sorted(output.glob("part-*"))
    parts[1].unlink()
    parts[3].write_bytes(parts[3].read_bytes()[:-1])
    extracted = []
    extract = beam._extract
    monkeypatch.setattr(
        beam, "_extract", lambda extractor, part: extracted.append(part.place) or extract(extractor, part)
    )
    on_beam(job, output)
    assert len(extracted) == 2 and files(output) == done
    summary = json.loads((output / "summary-00000-of-00001.json").read_text())
    assert summary["this_run"]["documents"] < summary["documents"] == 26
    on_beam(job, output, resume=False)
    assert len(extracted) == 2 + len(parts) and files(output) == done


def test_a_job_that_broke_off_goes_on(job, tmp_path, small_parts, monkeypatch):
    output = tmp_path / "out"
    extract, extracted = beam._extract, []

    def breaking(extractor, part):
        if part.place == (1, 0):
            raise MemoryError("the device is full")
        extracted.append(part.place)
        return extract(extractor, part)

    monkeypatch.setattr(beam, "_extract", breaking)
    with pytest.raises(Exception, match="the device is full"):
        on_beam(job, output)
    stand = len(list(output.glob("part-*")))
    assert stand > 0
    extracted.clear()
    monkeypatch.setattr(
        beam, "_extract", lambda extractor, part: extracted.append(part.place) or extract(extractor, part)
    )
    assert on_beam(job, output)["documents"] == 26
    assert len(extracted) == len(list(output.glob("part-*"))) - stand
    on_beam(job, tmp_path / "undisturbed")
    assert in_order(output) == in_order(tmp_path / "undisturbed")


def test_another_job_is_refused(job, tmp_path):
    one = change(job, inputs=job.inputs[:1])
    on_beam(one, tmp_path / "out")
    with pytest.raises(InputError, match="was begun with other labels"):
        on_beam(change(one, labels=("animal",)), tmp_path / "out")
    with pytest.raises(InputError, match='other written_on \\("Beam", now null\\)'):
        local(one, tmp_path / "out")
    local(change(one, shards=2), tmp_path / "shards")
    with pytest.raises(InputError, match="holds a job in shards"):
        on_beam(one, tmp_path / "shards")


# ---- what is wrong


def test_a_table_without_the_column_fails_before_anything_is_read(job, sources, tmp_path):
    with pytest.raises(InputError, match='no column "body"; --text-field names it; there are: id, text, n'):
        on_beam(change(job, inputs=(sources[2],), text_field="body"), tmp_path / "out")


def lose(function, number):
    """The function, whose iterator leaves out what it gives at that place."""

    def losing(*arguments):
        return (item for place, item in enumerate(function(*arguments)) if place != number)

    return losing


@pytest.mark.parametrize(
    ("owner", "name", "number", "said"),
    [
        (beam._Read, "process", 0, "parts read and written: 3 and 2"),
        (beam._Read, "process", 3, "Beam read 0 of 1 groups"),
        (beam.ExtractionHandler, "run_inference", 0, "parts read and written: 3 and 0"),
    ],
)
def test_a_runner_that_loses_an_element_fails_the_job(owner, name, number, said, job, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PART_DOCUMENTS", 5)
    monkeypatch.setattr(owner, name, lose(getattr(owner, name), number))
    one = change(job, inputs=job.inputs[:1])
    with pytest.raises(LostRecordsError, match=said):
        on_beam(one, tmp_path / "out")
    monkeypatch.undo()
    assert not any("complete" in line for line in (tmp_path / "out" / MANIFEST).read_text().splitlines())
    monkeypatch.setattr(corpus, "PART_DOCUMENTS", 5)
    assert on_beam(one, tmp_path / "out")["documents"] == 13, "and goes on when it is run again"


def test_the_mode_that_loses_records_is_refused(job, tmp_path):
    with pytest.raises(InputError, match="direct_running_mode=multi_threading loses records"):
        on_beam(job, tmp_path / "out", ("direct_running_mode=multi_threading", "direct_num_workers=2"))
    assert not (tmp_path / "out").exists()


# ---- object stores


def test_model_input_and_output_in_an_object_store(job, bucket, tmp_path):
    local(change(job, inputs=job.inputs[:2]), tmp_path / "local")
    shutil.copytree(job.model, bucket / "model")
    for path in job.inputs[:2]:
        (bucket / path.name).write_bytes(path.read_bytes())
    far = change(
        job, model="gs://bucket/model", inputs=tuple(as_path(f"gs://bucket/{path.name}") for path in job.inputs[:2])
    )
    on_beam(far, "gs://bucket/out")
    found, expected = in_order(bucket / "out"), in_order(tmp_path / "local")
    for record in expected:
        for name in ("id", "error"):
            record[name] = record[name] and record[name].replace(str(tmp_path), "gs://bucket")
    assert_same(found, expected)
    assert on_beam(far, "gs://bucket/out")["documents"] == len(found), "is finished already"
