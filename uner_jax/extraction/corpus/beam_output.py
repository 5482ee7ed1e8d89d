"""The output of a job on Beam: the parts of its workers, each with an entry beside it, and the manifest of all.

A part is named by its place in the input. Its entry has its checksum and its counts and is written after it, so a part
with an entry is whole, whoever wrote it and whatever became of the job: run again, the job keeps it. The manifest is
that of a local job, so `uner extract --merge` makes one file of the parts.
"""

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from etils import epath

from uner_jax.data.storage import as_path, is_remote, local_directory
from uner_jax.extraction.corpus.job import Job, Source, differences, identity, model_digest
from uner_jax.extraction.corpus.parts import is_whole, json_line, write_part
from uner_jax.extraction.corpus.run import COUNTS
from uner_jax.records import InputError, atomic_path

# the directory of the entries, in the output
ENTRIES = "beam"

# number of the group of input files, number of the part in it
Place = tuple[int, int]
# of a part: its `place`, `part` (its name), `bytes`, `sha256`, counts, `first_error`, and whether it was `kept`
Entry = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PartFiles:
    """The parts as a worker sees them."""

    address: str
    prefix: str
    suffix: str
    carried: pa.Schema

    @property
    def outcome(self) -> Path:
        """Where a job says at its end what it read and wrote."""
        return as_path(self.address) / ENTRIES / "outcome.json"

    def name(self, place: Place) -> str:
        """The name of a part, without its suffix."""
        return f"{self.prefix}-{place[0]:05d}-{place[1]:05d}"

    def kept(self, place: Place) -> Entry | None:
        """The entry of a part that stands there."""
        path = as_path(self.address) / ENTRIES / f"{self.name(place)}.json"
        entry = json_line(path.read_bytes()) if path.is_file() else None
        return entry | {"kept": True} if entry and _stands(as_path(self.address) / entry["part"], entry) else None

    def write(self, place: Place, records: list[dict[str, Any]], counts: dict[str, int], error: str | None) -> Entry:
        """Write a part, then its entry."""
        with local_directory(as_path(self.address)) as directory:
            written = write_part(directory / f"{self.name(place)}.{self.suffix}", records, self.carried)
        entry = {"place": place, **written, **counts, "first_error": error, "kept": False}
        replace_text(as_path(self.address) / ENTRIES / f"{self.name(place)}.json", json.dumps(entry))
        return entry


class BeamManifest:
    """What is done of a job, as the process that started it sees it."""

    def __init__(self, address: str, job: Job):
        self._directory, self._job = as_path(address), job
        self._path = self._directory / f"{job.name('manifest')}.jsonl"
        self._lines = [line for row in self._read() if (line := json_line(row)) is not None]
        self._started = time.monotonic()

    def _read(self) -> list[bytes]:
        return self._path.read_bytes().splitlines() if self._path.is_file() else []

    @property
    def entries(self) -> list[Entry]:
        """The parts that are listed."""
        return [line for line in self._lines if "number" in line]

    @property
    def is_finished(self) -> bool:
        """Whether all parts are listed, and stand there."""
        complete = any("complete" in line for line in self._lines)
        return complete and all(_stands(self._directory / part["part"], part) for part in self.entries)

    def totals(self) -> dict[str, int]:
        """The counts of all parts that are listed."""
        return _sums(self.entries)

    def begin(self, resume: bool) -> None:
        """Go on with what is there, or begin anew. Raises InputError if that is another job."""
        others = [path.name for path in self._directory.glob("manifest-*-of-*.jsonl") if path.name != self._path.name]
        if others:
            raise InputError(f"{self._directory}: holds a job in shards ({min(others)}); give another --output")
        header = {"job": _identity(self._job)}
        if not resume:
            self._remove_parts()
        elif self._lines and (changed := differences(self._lines[0].get("job", {}), header["job"])):
            raise InputError(
                f"{self._directory}: was begun with other {'; '.join(changed)}. Give another --output, or --no-resume "
                "to do it anew"
            )
        if not self.is_finished:
            self._write([header])

    def finish(self, entries: Sequence[Entry]) -> None:
        """List all parts, in the order of the input, and write the summary."""
        entries = sorted(entries, key=lambda entry: entry["place"])
        named = ("part", "bytes", "sha256", *COUNTS)
        listed = [{"number": number} | {name: entry[name] for name in named} for number, entry in enumerate(entries)]
        documents = _sums(entries)["documents"]
        self._write([self._lines[0], *listed, {"complete": {"documents": documents, "corpus": documents}}])
        done = _sums(entry for entry in entries if not entry["kept"])
        seconds = time.monotonic() - self._started
        rates = {f"{name}_per_second": round(done[name] / seconds, 2) for name in ("documents", "questions", "tokens")}
        error = next((entry["first_error"] for entry in entries if entry["first_error"]), None)
        summary = self.totals() | {"seconds": round(seconds, 1), "first_error": error, "this_run": done | rates}
        replace_text(self._directory / f"{self._job.name('summary')}.json", json.dumps(summary, indent=2))

    def _write(self, lines: list[dict[str, Any]]) -> None:
        self._lines = lines
        self._directory.mkdir(parents=True, exist_ok=True)
        # in its place: it may be locked.
        self._path.write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode("ascii"))

    def _remove_parts(self) -> None:
        self._lines = []
        epath.Path(self._directory / ENTRIES).rmtree(missing_ok=True)
        for path in self._directory.glob(f"{self._job.name('part')}-*"):
            path.unlink()


def replace_text(path: Path, text: str) -> None:
    """Write a small file: all of it, or nothing. In ASCII: half a surrogate pair is escaped."""
    if not is_remote(path):
        with atomic_path(path) as temporary:
            temporary.write_bytes(text.encode("ascii"))
    else:
        path.write_bytes(text.encode("ascii"))  # an object is there when all of it is


def _stands(path: Path, entry: Entry) -> bool:
    """Whether a part is there; on a disk, also whether it is what was written."""
    return path.is_file() if is_remote(path) else is_whole(path, entry)


def _sums(entries: Iterable[Entry]) -> dict[str, int]:
    entries = list(entries)
    return {name: sum(entry[name] for entry in entries) for name in COUNTS}


def _identity(job: Job) -> dict[str, Any]:
    """That of a local job, which could not go on with parts that end where an input file ends.

    What lies in an object store is known by its address and size: it is not read twice.
    """
    model = job.model if is_remote(job.model) else model_digest(Path(job.model))
    local = [Source(path, str(path)) for path in job.inputs if not is_remote(path)]
    far = [{"name": str(path), "bytes": size_of(path)} for path in job.inputs if is_remote(path)]
    found = identity(job, model, local)
    return found | {"inputs": found["inputs"] + far, "written_on": "Beam"}


def size_of(path: Path) -> int:
    """The bytes of a file. Raises InputError if it is missing."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    stat: Any = path.stat()
    return stat.length if is_remote(path) else stat.st_size
