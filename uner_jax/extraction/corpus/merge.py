"""The parts of all shards -> one file, in the order of the input; or what is missing for that."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uner_jax.extraction.corpus.job import differences
from uner_jax.extraction.corpus.parts import SCHEMA, is_whole, json_line
from uner_jax.records import InputError, atomic_path, content_suffix, open_for_writing, open_parquet

SHOWN = 20  # faults that are listed
ROWS = 1024


def merge_parts(directory: Path, output: Path | None = None) -> tuple[Path, int]:
    """Write the records of all shards to one file, in the order of the input; the file, and how many they are.

    By default that is `merged.jsonl` or `merged.parquet` in the directory. Raises InputError with all that is
    missing: a shard, the rest of a shard, a part that is gone or not what was written.
    """
    shards = _shards(directory)
    parts = [_whole_parts(directory, path) for path in shards]
    jobs = _disagreements(shards)
    faults = [fault for found in parts for fault in found if isinstance(fault, str)]
    faults += _missing(directory, shards) + jobs
    if faults:
        more = [f"and {len(faults) - SHOWN:,} more"] if len(faults) > SHOWN else []
        raise InputError("\n  ".join([f"{directory}: not whole, nothing was written:", *faults[:SHOWN], *more]))
    paths = [[path for path in found if isinstance(path, Path)] for found in parts]
    every = [path for found in paths for path in found]
    suffix = f".{_job(shards[0])['format']}"
    output = output or directory / f"merged{suffix}"
    if content_suffix(output) != suffix:
        raise InputError(f"--output {output}: the parts are {suffix}; give it that suffix")
    if output.resolve() in {path.resolve() for path in every}:
        raise InputError(f"--output {output}: is one of the parts")
    rows = in_turn([_rows(found) for found in paths])
    return output, _write_parquet(output, rows, every) if suffix == ".parquet" else _write_lines(output, rows)


def _shards(directory: Path) -> list[Path]:
    """The manifests, of which there is one a shard."""
    found = sorted(directory.glob("manifest-*-of-*.jsonl"))
    if not found:
        raise InputError(f"{directory}: no manifest here; give the --output of an extraction")
    counts = {path.stem.rpartition("-")[2] for path in found}
    if len(counts) > 1:
        raise InputError(
            f"{directory}: holds jobs of {' and '.join(str(int(count)) for count in sorted(counts))} shards"
        )
    return found


def _place(manifest: Path) -> tuple[int, int]:
    _, shard, _, shards = manifest.stem.split("-")
    return int(shard), int(shards)


def _missing(directory: Path, manifests: list[Path]) -> list[str]:
    there = {_place(path)[0] for path in manifests}
    shards = _place(manifests[0])[1]
    return [f"shard {shard}/{shards} was not begun" for shard in range(shards) if shard not in there]


def _lines(manifest: Path) -> list[dict[str, Any]]:
    with manifest.open("rb") as file:
        return [entry for line in file if (entry := json_line(line)) is not None]


def _end(manifest: Path) -> dict[str, Any] | None:
    return next((entry["complete"] for entry in _lines(manifest) if "complete" in entry), None)


def _job(manifest: Path) -> dict[str, Any]:
    job = next((entry["job"] for entry in _lines(manifest) if "job" in entry), None)
    if job is None:
        raise InputError(f"{manifest}: is damaged, or its shard has just begun; run its command again")
    return job


def _whole_parts(directory: Path, manifest: Path) -> list[Path | str]:
    """The parts of a shard in order, and what is wrong with them."""
    shard, shards = _place(manifest)
    parts = [entry for entry in _lines(manifest) if "number" in entry]
    documents = sum(part["documents"] for part in parts)
    found: list[Path | str] = []
    for place, part in enumerate(parts):
        path = directory / part["part"]
        if part["number"] != place:
            return [f"shard {shard}/{shards}: part {place} is not listed; run its command again"]
        fault = "is not what was written" if path.is_file() else "is gone"
        found.append(path if is_whole(path, part) else f"{part['part']} {fault}; run shard {shard}/{shards} again")
    end = _end(manifest)
    if end is None:
        found.append(
            f"shard {shard}/{shards} is not finished: {len(parts):,} part(s) of {documents:,} documents so far; run "
            "its command again"
        )
    elif end["documents"] != documents or len(range(shard, end["corpus"], shards)) != documents:
        found.append(f"shard {shard}/{shards}: its parts have {documents:,} documents, not what it counted at its end")
    return found


def _disagreements(manifests: list[Path]) -> list[str]:
    """What differs between the jobs of the shards, or the corpora that they read."""
    jobs = [_job(path) for path in manifests]
    faults = []
    for path, job in zip(manifests[1:], jobs[1:], strict=True):
        if changed := differences(jobs[0], job):
            faults.append(f"{path.name}: another job than {manifests[0].name}: {'; '.join(changed)}")
    sizes = {end["corpus"] for path in manifests if (end := _end(path))}
    return faults or ([f"the shards counted corpora of {sorted(sizes)} documents"] if len(sizes) > 1 else [])


def in_turn(rows: list[Iterator[Any]]) -> Iterator[Any]:
    """One of each, again and again: as the documents were dealt out."""
    while rows:
        for place, row in enumerate([next(shard, None) for shard in rows]):
            if row is None:
                # the first one that is at its end was dealt the next document, which there is not.
                rows = rows[:place]
                break
            yield row


def _rows(parts: Iterable[Path]) -> Iterator[Any]:
    for path in parts:
        if path.suffix == ".parquet":
            with open_parquet(path) as file:
                for batch in file.iter_batches(ROWS):
                    yield from batch.to_pylist()
        else:
            with path.open("rb") as lines:
                yield from lines


def _write_lines(output: Path, lines: Iterator[bytes]) -> int:
    count = 0
    with atomic_path(output) as temporary, open_for_writing(temporary) as file:
        for line in lines:
            file.write(line)
            count += 1
    return count


def _write_parquet(output: Path, rows: Iterator[dict[str, Any]], parts: list[Path]) -> int:
    schema = pq.read_schema(parts[0]) if parts else SCHEMA
    count = 0
    with atomic_path(output) as temporary, pq.ParquetWriter(temporary, schema, write_page_checksum=True) as writer:
        while some := list(itertools.islice(rows, ROWS)):
            writer.write_table(pa.Table.from_pylist(some, schema))
            count += len(some)
    return count
