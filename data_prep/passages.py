"""A corpus -> passages: cut at sentences to a number of tokens, sampled at random, without repeats and non-text.

python -m data_prep.passages --input 'pile/*.jsonl.zst' --output passages.jsonl --tokenizer MODEL
"""

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from data_prep.corpus.files import read_batches
from data_prep.corpus.harvest import NAMED, Harvest, Settings, Task, harvest, start_worker
from data_prep.corpus.reserve import MOST_GROUPS, Reserve
from data_prep.corpus.walk import Walk
from data_prep.workers import ordered_map
from uner_jax.command import Progress, run_command
from uner_jax.records import InputError, find_files, write_rows
from uner_jax.tokenizer import Tokenizer

# Candidates that are held for each passage that is wanted: what is dropped needs others in its place.
SPARE = 1.3
# Rows of a table of the report: a source may be an address, different in each record.
MOST_ROWS = 30


@dataclass
class Corpus:
    """Files of documents, and what was found in them."""

    paths: list[Path]
    documents: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)

    def harvests(self, tokenizer: Tokenizer, settings: Settings, reserve: Reserve, workers: int) -> Iterator[Harvest]:
        """What the workers find in each batch of the files, wanted for the reserve as it then is."""
        tasks = (Task(batch, reserve.stretches()) for path in self.paths for batch in read_batches(path))
        return ordered_map(harvest, tasks, workers, start_worker, (tokenizer, settings))

    def count(self, found: Harvest) -> None:
        """Add up the documents and the bad records of a batch."""
        self.documents += found.documents
        self.bad += found.bad
        self.named += found.named[: NAMED - len(self.named)]


def sample_passages(
    corpus: Corpus, tokenizer: Tokenizer, settings: Settings, count: int, capacity: int, workers: int
) -> Walk:
    """Draw passages from a corpus, which is read as often as the walk needs another reserve of `capacity`."""
    walk = Walk(count)
    for reading in itertools.count(1):
        reserve = Reserve(capacity, dict(walk.floors))
        _fill(reserve, corpus, tokenizer, settings, workers, reading)
        if walk.go(reserve):
            break
        print(
            f"{len(walk.accepted):,} of {count:,} passages after all {capacity:,} candidates, of which too many were "
            "dropped: reading the corpus again for the next ones",
            file=sys.stderr,
        )
    return walk


def _fill(
    reserve: Reserve, corpus: Corpus, tokenizer: Tokenizer, settings: Settings, workers: int, reading: int
) -> None:
    size = sum(path.stat().st_size for path in corpus.paths)
    documents = passages = 0
    with Progress("reading" if reading == 1 else f"reading ({reading})", size, "B") as shown:
        for found in corpus.harvests(tokenizer, settings, reserve, workers):
            for candidate in found.candidates:
                reserve.add(settings.group(candidate.source), candidate)
            if reading == 1:
                corpus.count(found)
            documents += found.documents
            passages += found.passages
            note = f"{documents:,} documents, {passages:,} passages seen, {len(reserve):,} kept"
            shown.advance(found.read, note)


def passages(
    input: tuple[str, ...],
    output: Path,
    tokenizer: str,
    max_tokens: Annotated[int, tyro.conf.arg(metavar="N")] = 256,
    min_tokens: Annotated[int, tyro.conf.arg(metavar="N")] = 16,
    count: Annotated[int, tyro.conf.arg(metavar="N")] = 50_000,
    per_source: bool = False,
    seed: int = 0,
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = os.cpu_count() or 1,
) -> None:
    """Cut the documents of a corpus into passages, and draw a uniform sample of them.

    The sample depends on the documents and the options only, not on how they are split into files, compressed or
    worked on. Nothing is written before all is done: after a crash or a kill, run the same command again.

    Args:
        input: Files, or patterns of them, of documents: JSON lines or arrays and Parquet ("text"; the source from
            "meta.pile_set_name" or "source"), or else plain text, one document a file; each also .gz or .zst.
        output: Passages (id, text, source) in the order in which they were drawn, by the suffix .jsonl or
            .parquet (.gz, .zst).
        tokenizer: The model's: an HF directory, a SentencePiece .model, a GGUF file or a checkpoint.
        max_tokens: Tokens of a passage at most, without BOS; it has as many whole sentences as fit.
        min_tokens: Passages of fewer tokens are dropped.
        count: Passages to draw; if the corpus has fewer, all of them.
        per_source: Draw as many from each source, as far as it has them, instead of from all alike.
        seed: Seed of the draw.
        workers: Processes that cut; the result does not depend on it.
    """
    _check(max_tokens, min_tokens, count, seed)
    paths = sorted(find_files(input))
    if output.resolve() in {path.resolve() for path in paths}:
        raise InputError(f"--output {output}: is one of the files of --input; write it elsewhere")
    # it loads jax, which takes seconds and memory that the workers, which import this file too, do not need.
    from uner_jax.weights import load_model_tokenizer

    corpus = Corpus(paths)
    settings = Settings(max_tokens, min_tokens, seed, per_source)
    capacity = int(SPARE * count) + MOST_GROUPS
    walk = sample_passages(corpus, load_model_tokenizer(tokenizer), settings, count, capacity, workers)
    _report(corpus, walk)
    if not walk.accepted:
        raise InputError(f"no passage in {corpus.documents:,} documents of {len(paths):,} files; nothing was written")
    write_rows(output, walk.accepted)
    short = "" if len(walk.accepted) == count else f", all that there are, fewer than the {count:,} of --count"
    print(f"{output}: {len(walk.accepted):,} passages{short}", file=sys.stderr)


def _check(max_tokens: int, min_tokens: int, count: int, seed: int) -> None:
    if count < 1:
        raise InputError(f"--count must be at least 1, found {count}")
    if max_tokens < 1:
        raise InputError(f"--max-tokens must be at least 1, found {max_tokens}")
    if not 0 <= min_tokens <= max_tokens:
        raise InputError(f"--min-tokens must be from 0 to --max-tokens {max_tokens}, found {min_tokens}")
    if seed < 0:
        raise InputError(f"--seed must be at least 0, found {seed}")


def _report(corpus: Corpus, walk: Walk) -> None:
    """Say what was read and dropped; the counts are of the passages that were drawn, up to the last accepted."""
    sources = Counter(passage.get("source", "no source") for passage in walk.accepted)
    lines = [f"{corpus.documents:,} documents in {len(corpus.paths):,} files"]
    lines += _table("passages that were drawn, and dropped", walk.dropped)
    lines += _table("accepted", sources)
    if corpus.bad:
        lines += [*_table("records that are no document", corpus.bad), *(f"    {name}" for name in corpus.named)]
    print(*lines, sep="\n", file=sys.stderr)


def _table(title: str, counts: Counter[str]) -> list[str]:
    names = sorted(+counts, key=lambda name: (-counts[name], name))
    rows = [f"{counts[name]:>12,}  {name}" for name in names[:MOST_ROWS]]
    rest = [f"{'':>12}  and {len(names) - MOST_ROWS:,} others"] if len(names) > MOST_ROWS else []
    return [f"{title}: {counts.total():,}", *rows, *rest]


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(passages, prog="python -m data_prep.passages", args=arguments)


if __name__ == "__main__":
    run_command(main)
