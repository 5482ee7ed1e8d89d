"""Does the memory of `data_prep.passages` grow with its corpus? Runs it on generated corpora of several sizes.

python benchmarks/passages_memory.py --tokenizer MODEL

A corpus is JSON lines under zstd, as The Pile is, of documents of random words, 0.1 to 40 kB long, in five sources;
two in a hundred are copies. Its size is that of the JSON. It is written to a temporary directory, and removed.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
import zstandard

from uner_jax.command import run_command

GB = 10**9
WORDS = 20_000
SENTENCES = 300_000
COPIES = 0.02
POLL_SECONDS = 0.2


@dataclass
class Measured:
    """What a command took: seconds, and bytes of all its processes together at the worst moment."""

    wall: float
    cpu: float
    peak: int


def write_corpus(path: Path, size: int, seed: int = 0) -> int:
    """Write about `size` bytes of JSON lines, and return how many documents they are."""
    draw = random.Random(seed)
    sentences = _sentences(draw)
    before = [""]
    done = documents = 0
    with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as compressed:
        while done < size:
            text = draw.choice(before) if draw.random() < COPIES else _document(draw, sentences)
            before = [*before[-100:], text]
            row = {"text": text, "meta": {"pile_set_name": f"Source {draw.choice('AABCDE')}"}}
            done += compressed.write(json.dumps(row).encode() + b"\n")
            documents += 1
    return documents


def _sentences(draw: random.Random) -> list[str]:
    syllables = [first + second for first in "bdfgklmnprstvw" for second in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(WORDS)]
    # as in a language, a few words are most of the text (Zipf).
    weights = [1 / rank for rank in range(1, WORDS + 1)]
    drawn = iter(draw.choices(words, weights, k=SENTENCES * 20))
    return [" ".join(next(drawn) for _ in range(draw.randint(5, 20))).capitalize() + "." for _ in range(SENTENCES)]


def _document(draw: random.Random, sentences: list[str]) -> str:
    count = min(500, max(1, int(draw.lognormvariate(3.3, 1.1))))
    chosen = draw.choices(sentences, k=count)
    paragraphs = [" ".join(chosen[place : place + 6]) for place in range(0, count, 6)]
    return "\n\n".join(paragraphs)


def measure(command: list[str]) -> Measured:
    """Run a command to its end. Raises CalledProcessError if it fails."""
    before, started, peak = _child_seconds(), time.monotonic(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, _resident_bytes(process.pid))
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Measured(time.monotonic() - started, _child_seconds() - before, peak)


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _resident_bytes(root: int) -> int:
    """The resident memory of a process and all below it; what they share counts for each."""
    parents, pages = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            # behind the name, which may hold anything: state, parent, ...
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else None
        except OSError:  # it has ended since
            continue
        if fields:
            parents[int(entry.name)], pages[int(entry.name)] = int(fields[1]), int(fields[21])
    tree = {root}
    while grown := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= grown
    return sum(pages.get(pid, 0) for pid in tree) * os.sysconf("SC_PAGE_SIZE")


def passages_memory(
    tokenizer: str, sizes: tuple[float, ...] = (1.0, 5.0), count: int = 50_000, workers: int = os.cpu_count() or 1
) -> None:
    """Print time and peak memory of drawing passages from corpora of some sizes.

    Args:
        tokenizer: As for data_prep.passages.
        sizes: Sizes of the corpora in GB of JSON.
        count: Passages to draw.
        workers: Processes that cut.
    """
    print("| corpus | documents | compressed | wall | CPU | peak of all processes |\n|---|---|---|---|---|---|")
    for size in sizes:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "corpus.jsonl.zst"
            documents = write_corpus(path, int(size * GB))
            command = [sys.executable, "-m", "data_prep.passages", "--input", str(path), "--tokenizer", tokenizer]
            command += ["--output", str(Path(directory) / "passages.jsonl"), "--count", str(count)]
            took = measure([*command, "--workers", str(workers)])
            print(
                f"| {size:g} GB | {documents:,} | {path.stat().st_size / GB:.2f} GB | {took.wall:,.0f} s "
                f"| {took.cpu:,.0f} s | {took.peak / GB:.2f} GB |",
                flush=True,
            )


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(passages_memory, prog="python benchmarks/passages_memory.py", args=arguments)


if __name__ == "__main__":
    run_command(main)
