"""The parts of all shards make the file that one process would have written, or what is missing is said."""

import dataclasses
import gzip
import json
import random
import re

import pytest
from tiny_extraction import Knowing, records, write_tiny_model

from uner_jax.cli import dispatch
from uner_jax.command import run_command
from uner_jax.extraction.corpus import run as corpus
from uner_jax.extraction.corpus.job import Job
from uner_jax.extraction.corpus.merge import merge_parts
from uner_jax.extraction.corpus.run import extract_corpus
from uner_jax.records import InputError, read_rows, write_rows


@pytest.fixture(scope="session")
def model_path(tok512, tmp_path_factory):
    return write_tiny_model(tok512, tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture
def extract(tok512, model_path, tmp_path, monkeypatch):
    """Extract from so many documents in so many shards, in any order, into a directory of that name."""
    monkeypatch.setattr(corpus, "PART_DOCUMENTS", 3)
    extractor = Knowing(tok512)

    def run(name: str, documents: int, shards: int, only: tuple[int, ...] | None = None, **fields):
        rows = [
            {"id": str(n), "text": f"Ada in Paris {n} \ud83d\ude00" if n % 5 else "", "n": n} for n in range(documents)
        ]
        write_rows(tmp_path / "in.jsonl", rows)
        job = Job(str(model_path), (tmp_path / "in.jsonl",), ("person", "city"), carry=("n",), shards=shards, **fields)
        for shard in random.Random(0).sample(range(shards), shards) if only is None else only:
            extract_corpus(extractor.open, dataclasses.replace(job, shard=shard), tmp_path / name)
        return tmp_path / name

    return run


def leave(arguments, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        run_command(dispatch, ["extract", *map(str, arguments)])
    return exit.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize(("documents", "shards"), [(0, 1), (0, 3), (1, 4), (10, 1), (11, 3), (12, 3), (40, 7)])
def test_shards_make_the_file_of_one_process(documents, shards, format, extract, tmp_path, capsys):
    whole = extract("whole", documents, 1, format=format)
    parts = extract("parts", documents, shards, format=format)
    one, count = merge_parts(whole)
    code, said = leave(["--merge", parts], capsys)
    assert (code, said) == (0, f"{parts}/merged.{format}: {documents:,} records") and count == documents
    assert [row for _, row in read_rows(one)] == records(whole)
    assert one.read_bytes() == (parts / f"merged.{format}").read_bytes()
    if format == "jsonl":
        assert one.read_bytes() == b"".join(path.read_bytes() for path in sorted(whole.glob("part-*")))


def test_the_file_may_lie_anywhere_and_be_compressed(extract, tmp_path, capsys):
    parts = extract("parts", 11, 2)
    assert leave(["--output", tmp_path / "all.jsonl.gz", f"--merge={parts}"], capsys)[0] == 0
    assert gzip.decompress((tmp_path / "all.jsonl.gz").read_bytes()) == merge_parts(parts)[0].read_bytes()
    # and a merged file is no part: the job goes on and merges as before.
    extract("parts", 11, 2)
    assert len(records(parts)) == 11


def refused(directory) -> str:
    with pytest.raises(InputError) as error:
        merge_parts(directory)
    assert not list(directory.glob("merged*"))
    return str(error.value)


def test_missing_shards_are_named(extract):
    parts = extract("parts", 40, 4, only=(1, 3))
    assert refused(parts).splitlines() == [
        f"{parts}: not whole, nothing was written:",
        "  shard 0/4 was not begun",
        "  shard 2/4 was not begun",
    ]


def test_a_shard_that_was_stopped_is_named(extract, monkeypatch):
    extract("parts", 40, 2, only=(0,))
    write = corpus.write_part

    def stop(path, *arguments):
        if path.stem.endswith("00002"):
            raise KeyboardInterrupt
        return write(path, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpus, "write_part", stop)
        extract("parts", 40, 2, only=(1,))
    found = refused(extract("parts", 40, 2, only=()))
    assert found.splitlines()[1:] == [
        "  shard 1/2 is not finished: 2 part(s) of 6 documents so far; run its command again"
    ]


def test_parts_that_are_gone_or_changed_are_named(extract):
    parts = extract("parts", 40, 2)
    first, second, *_ = sorted(parts.glob("part-00001*"))
    first.unlink()
    second.write_bytes(second.read_bytes().replace(b"Ada", b"Bob"))
    assert refused(parts).splitlines()[1:] == [
        f"  {first.name} is gone; run shard 1/2 again",
        f"  {second.name} is not what was written; run shard 1/2 again",
    ]
    extract("parts", 40, 2)
    assert merge_parts(parts)[1] == 40


def test_a_gap_in_a_manifest_is_named(extract):
    parts = extract("parts", 40, 2)
    path = parts / "manifest-00000-of-00002.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    assert "  shard 0/2: part 1 is not listed; run its command again" in refused(parts)
    path.write_text("".join(lines[:-2] + lines[-1:]))
    assert "  shard 0/2: its parts have 18 documents, not what it counted at its end" in refused(parts)


def test_shards_of_different_jobs_do_not_merge(extract, tmp_path):
    extract("parts", 20, 2)
    other = extract("other", 20, 2, max_characters=99)
    for path in other.glob("*-00001-of-*"):
        path.replace(tmp_path / "parts" / path.name)
    message = refused(tmp_path / "parts")
    assert "manifest-00001-of-00002.jsonl: another job than manifest-00000-of-00002.jsonl: max_characters" in message


def test_what_is_no_output_is_named(extract, tmp_path, capsys):
    code, said = leave(["--merge", tmp_path], capsys)
    assert (code, said) == (1, f"error: {tmp_path}: no manifest here; give the --output of an extraction")
    parts = extract("parts", 9, 2)
    code, said = leave(["--merge", parts, "--output", tmp_path / "all.parquet"], capsys)
    assert code == 1 and said.endswith("all.parquet: the parts are .jsonl; give it that suffix")
    code, said = leave(["--merge", parts, "--output", parts / "part-00000-of-00002-00000.jsonl"], capsys)
    assert code == 1 and said.endswith("is one of the parts") and len(records(parts)) == 9
    extract("more", 9, 3)
    for path in (tmp_path / "more").glob("*"):
        path.replace(parts / path.name)
    assert re.fullmatch(f"{parts}: holds jobs of 2 and 3 shards", refused(parts))


def test_help_tells_of_merging(capsys):
    with pytest.raises(SystemExit) as exit:
        run_command(dispatch, ["extract", "--help"])
    assert exit.value.code == 0 and "uner extract --merge DIR" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        run_command(dispatch, ["extract", "--merge"])
    assert exit.value.code == 2 and json.dumps("") not in capsys.readouterr().err
