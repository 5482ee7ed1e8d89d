"""Processes that are killed, that come together in one output, or that share it: with a real model, all of them."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tiny_extraction import files, records, write_tiny_model

from uner_jax.records import write_rows
from uner_jax.tokenizer import load_tokenizer

KILLS = 10
ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    {"id": f"d{number}", "text": f"{number}: Ada met Bob in London. " * (1 + number % 4), "n": number}
    for number in range(150)
]
# The command, with parts of a few documents each, and with what it has compiled on the disk for the next one.
PROGRAM = """
import sys
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
from uner_jax.cli import main
from uner_jax.extraction.corpus import run as corpus
corpus.PART_DOCUMENTS = 3
main()
"""


@pytest.fixture(scope="module")
def scratch(shared_data, tmp_path_factory):
    """A directory with a model and documents, and what is compiled by the way."""
    directory = tmp_path_factory.mktemp("processes")
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    write_tiny_model(tokenizer, directory / "model")
    write_rows(directory / "in.jsonl", DOCUMENTS)
    return directory


class Process(subprocess.Popen):
    """`uner extract`; what it says goes to a file, which is never full."""

    def __init__(self, scratch: Path, output: str, *more: str, env: dict[str, str] | None = None, **options):
        cache = {"JAX_COMPILATION_CACHE_DIR": str(scratch / "programs"), "JAX_PLATFORMS": "cpu"}
        arguments = ["--model", "model", "--labels", "person,city", "--output", output, "--max-new-tokens", "4"]
        given = [] if "--input" in more else ["--input", "in.jsonl"]
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the process)
        super().__init__(
            [sys.executable, "-c", PROGRAM, "extract", *arguments, *given, *more],
            cwd=scratch,
            env=os.environ | cache | (env or {}) | {"PYTHONPATH": str(ROOT)},
            text=True,
            stderr=self.said,
            **options,
        )


def end(process: Process, given: str | None = None) -> tuple[int, str]:
    """Wait for the end; the exit code and what was said."""
    process.communicate(given)
    with process.said as said:
        said.seek(0)
        return process.returncode, said.read()


def parts_of(output: Path) -> int:
    return len(list(output.glob("part-*")))


@pytest.fixture(scope="module")
def undisturbed(scratch):
    code, errors = end(Process(scratch, "undisturbed", "--carry", "n"))
    assert code == 0, errors
    assert [record["n"] for record in records(scratch / "undisturbed")] == list(range(len(DOCUMENTS)))
    return files(scratch / "undisturbed")


def test_ten_kills_change_nothing(scratch, undisturbed):
    """At random moments: most of them while a further part is computed or written, some while a process starts."""
    moment, output = random.Random(7), scratch / "killed"
    written = []
    for number in range(KILLS):
        process, started = Process(scratch, "killed", "--carry", "n"), time.monotonic()
        before, seconds = parts_of(output), 60.0 if number % 3 else 4 * moment.random()
        wanted = moment.choice([1, 2, 3])
        while parts_of(output) < before + wanted and time.monotonic() < started + seconds and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moment.random() / 20)
        process.kill()
        code, _ = end(process)
        assert code == -signal.SIGKILL, "the job ended before it was killed: it needs more documents"
        written.append(parts_of(output))
    assert written == sorted(written) and len(set(written)) > 5 and written[-1] < 50
    code, errors = end(Process(scratch, "killed", "--carry", "n"))
    assert code == 0 and "going on after" in errors
    assert files(output) == undisturbed
    assert [record["id"] for record in records(output)] == [document["id"] for document in DOCUMENTS]


def test_two_processes_on_one_shard_are_refused(scratch, undisturbed):
    first = Process(scratch, "locked", "--carry", "n")
    while parts_of(scratch / "locked") == 0 and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    try:
        code, errors = end(Process(scratch, "locked", "--carry", "n"))
        assert code == 1 and "locked: another process is at work on shard 0/1 of it; let it end first" in errors
    finally:
        first.send_signal(signal.SIGCONT)
    assert end(first)[0] == 0 and files(scratch / "locked") == undisturbed


def test_standard_input_goes_on_too(scratch, undisturbed):
    """Piped in again, or from what was kept of it; another one is refused; nothing of it is left at the end."""
    data, output = (scratch / "in.jsonl").read_text(), scratch / "piped"
    arguments = ("--carry", "n", "--input", "-")
    process = Process(scratch, "piped", *arguments, stdin=subprocess.PIPE)
    process.stdin.write(data)
    process.stdin.close()
    while parts_of(output) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.said.close()
    code, errors = end(Process(scratch, "piped", *arguments, stdin=subprocess.PIPE), data[: len(data) // 2])
    assert code == 1 and "piped: was begun with another standard input" in errors
    code, errors = end(Process(scratch, "piped", *arguments, stdin=subprocess.PIPE), "")
    assert code == 0 and "going on after" in errors
    found = files(output)
    assert {name: found[name] for name in found if name.startswith("part-")} == {
        name: undisturbed[name] for name in undisturbed if name.startswith("part-")
    }
    assert not [name for name in found if "stdin" in name]
    assert end(Process(scratch, "piped", *arguments, stdin=subprocess.PIPE), data)[0] == 0
    assert files(output) == found


def test_the_processes_of_a_job_share_the_corpus(scratch, undisturbed):
    """Each by the variables that say which of how many it is, and the parts merge to the file of one process."""
    places = (
        {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(process)}
        for process in range(2)
    )
    code, errors = end(Process(scratch, "shared", "--carry", "n", env=next(places)))
    assert code == 0, errors
    slurm = {"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    code, errors = end(Process(scratch, "shared", "--carry", "n", env=slurm))
    assert code == 0, errors
    command = [sys.executable, "-m", "uner_jax.cli", "extract", "--merge", scratch / "shared"]
    merged = subprocess.run([*command, "--output", scratch / "all.jsonl"], capture_output=True, cwd=ROOT, check=False)
    assert merged.returncode == 0, merged.stderr
    whole = itertools.chain.from_iterable(
        undisturbed[name].splitlines() for name in sorted(undisturbed) if name.startswith("part-")
    )
    found = [json.loads(line) for line in (scratch / "all.jsonl").read_text().splitlines()]
    for one, other in zip(found, map(json.loads, whole), strict=True):
        assert one == other


def test_a_variable_that_is_missing_is_named(scratch):
    code, errors = end(Process(scratch, "none", env={"JAX_PROCESS_ID": "1"}))
    assert code == 1 and "JAX_PROCESS_ID without JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES" in errors
    assert not (scratch / "none").exists()
