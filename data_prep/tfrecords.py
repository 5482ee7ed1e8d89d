"""Conversations -> tokenized TFRecords, as a TFDS data set.

python -m data_prep.tfrecords --conversations conversations.jsonl --tokenizer MODEL --data-dir data --name my_data
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
import tyro

from data_prep.tokens.encoding import (
    Counts,
    Encoding,
    Overlong,
    blocks,
    check_totals,
    count_questions,
    encode_block,
    start_encoder,
)
from data_prep.workers import ordered_map
from uner_jax.command import Progress, run_command
from uner_jax.data.beam import pipeline_options
from uner_jax.data.builder import FIRST_VERSION, NAME, assemble, built_metadata, dataset_directory, versions
from uner_jax.data.packing import fill_ratio, pack_best_fit
from uner_jax.data.shards import Shard, write_shards
from uner_jax.data.storage import as_path, is_remote
from uner_jax.records import Conversation, InputError, check_conversation, read_rows
from uner_jax.template import Scheme
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights import load_model_tokenizer


def tfrecords(
    conversations: tuple[str, ...],
    tokenizer: str,
    data_dir: str,
    name: str,
    max_length: int = 1024,
    pack_to: int = 2048,
    scheme: Scheme = "whole",
    overlong: Overlong = "drop",
    workers: int = 1,
    shard_megabytes: float = 200.0,
    beam_runner: str | None = None,
    beam_options: tuple[str, ...] = (),
) -> None:
    """Tokenize conversations into the TFDS data set DATA_DIR/NAME, which train.py packs into rows.

    Another tokenizer, scheme, --max-length or --overlong makes another version of it: 2.0.0 beside 1.0.0.

    Args:
        conversations: Files of conversations in the published form (JSON array, JSON lines, Parquet; .gz, .zst).
            With Beam they and data_dir may lie in an object store: gs://bucket/rows.jsonl.
        tokenizer: The model's: an HF directory, a SentencePiece .model, a GGUF file or a checkpoint.
        data_dir: Directory of data sets.
        name: Name of the data set: small letters, digits and underscores.
        max_length: Tokens of a conversation, at most.
        pack_to: Tokens of a row (data.row_length of train.py) for which the packing is reported.
        scheme: "whole" makes the ids that extraction uses; "released" those of the released trainer.
        overlong: A conversation that is too long loses the questions at its end ("drop"), or asks them in further
            conversations on the same passage, with ids that end in #2, #3 ("split").
        workers: Processes that tokenize. Beam has workers of its own.
        shard_megabytes: Size of a TFRecord file in 10^6 bytes: each has between half of it and all of it.
        beam_runner: Build with Apache Beam on this runner, such as FnApiRunner (this machine), DataflowRunner,
            FlinkRunner or SparkRunner. The files are those of a build without Beam.
        beam_options: Options of Beam and of the runner, each as option=value without dashes in front.
    """
    if not 0 < max_length <= pack_to:
        raise InputError(f"--max-length {max_length} must be greater than 0 and at most --pack-to {pack_to}")
    if not NAME.fullmatch(name):
        raise InputError(f"--name {name!r} must be small letters, digits and underscores, and begin with a letter")
    if shard_megabytes <= 0:
        raise InputError(f"--shard-megabytes must be greater than 0, found {shard_megabytes}")
    if beam_options and not beam_runner:
        raise InputError("--beam-options are for a build with Beam: name its runner with --beam-runner")
    if not beam_runner and any(map(is_remote, (data_dir, *conversations))):
        raise InputError("only a build with Beam reads and writes an object store; add --beam-runner FnApiRunner")
    sources, directory = [as_path(path) for path in conversations], as_path(data_dir)
    loaded = load_model_tokenizer(tokenizer)
    encoding = Encoding(scheme, max_length, overlong)
    metadata = _metadata(sources, loaded, encoding)
    version = _version(directory, name, metadata)
    if version is None:
        return
    shard_bytes = int(shard_megabytes * 1e6)
    build: Any
    if beam_runner:
        build = _beam_build(sources, encoding, shard_bytes, loaded.eos_id, beam_runner, beam_options)
    else:
        build = LocalBuild(sources, loaded, encoding, shard_bytes, workers)
    tfds.disable_progress_bar()
    _report(assemble(build, loaded, directory, name, metadata, version), build.counts, pack_to)


class LocalBuild:
    """Writes the record files on this machine; `counts` then says what they hold."""

    def __init__(self, paths: Sequence[Path], tokenizer: Tokenizer, encoding: Encoding, shard_bytes: int, workers: int):
        self._paths, self._tokenizer, self._encoding = paths, tokenizer, encoding
        self._shard_bytes, self._workers = shard_bytes, workers
        self._conversations = self._questions = 0
        self.counts = Counts()

    def __call__(self, prefix: Path) -> list[Shard]:
        """Write the files that begin with `prefix`; LostRecordsError if they do not hold all that was read."""
        shards = write_shards(prefix, self._records(), self._tokenizer.eos_id, self._shard_bytes)
        if not self._conversations:
            raise InputError(f"{', '.join(map(str, self._paths))}: no conversations")
        check_totals(self._conversations, self._questions, self.counts, shards, self._encoding)
        return shards

    def _records(self) -> Iterator[bytes]:
        encoded = ordered_map(
            encode_block, blocks(self._rows()), self._workers, start_encoder, (self._tokenizer, self._encoding)
        )
        with Progress("tokenizing", unit="conversations") as shown:
            for records, counts in encoded:
                self.counts = Counts.total([self.counts, counts])
                shown.advance(counts.conversations)
                yield from records

    def _rows(self) -> Iterator[Conversation]:
        for path in self._paths:
            for where, row in read_rows(path):
                conversation = check_conversation(row, where)
                self._conversations += 1
                self._questions += count_questions(conversation)
                yield conversation


def _beam_build(
    paths: Sequence[Path], encoding: Encoding, shard_bytes: int, eos_id: int, runner: str, options: Sequence[str]
) -> Any:
    known = pipeline_options(runner, options)  # before the import, which needs Beam
    from data_prep.tokens.beam import BeamBuild

    return BeamBuild(paths, encoding, shard_bytes, eos_id, known)


def _metadata(paths: Sequence[Path], tokenizer: Tokenizer, encoding: Encoding) -> dict[str, Any]:
    """What a data set is made of: from the same, the same bytes."""
    return {
        "tokenizer": tokenizer.fingerprint,
        "scheme": encoding.scheme,
        "max_length": encoding.max_length,
        "overlong": encoding.overlong,
        # sorted, as the files may come in any order.
        "sources": sorted(_digest(path) for path in paths),
    }


def _version(data_dir: Path, name: str, metadata: dict[str, Any]) -> str | None:
    """The version to build, None if this data set is there; InputError if the name is another input's."""
    there = versions(data_dir, name)
    for version in there:
        directory = dataset_directory(data_dir, f"{name}:{version}")
        before = built_metadata(data_dir, f"{name}:{version}") or {}
        if before == metadata:
            print(f"{directory}: already built from the same input", file=sys.stderr)
            return None
        if before.get("sources") != metadata["sources"]:
            raise InputError(f"{directory}: exists, built from other conversations; give another --name or remove it")
    if not there:
        return FIRST_VERSION
    following = f"{int(there[-1].partition('.')[0]) + 1}.0.0"
    changed = ", ".join(key for key in metadata if before.get(key) != metadata[key])
    print(f"{directory}: built with other {changed}; building version {following} beside it", file=sys.stderr)
    return following


def _digest(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _report(directory: Path, counts: Counts, pack_to: int) -> None:
    lengths = list(counts.lengths.elements())
    rows = pack_best_fit(lengths, pack_to)
    added = counts.written - (counts.conversations - counts.left_out)
    split = f"{counts.split:,} conversations were split, which made {added:,} more; " if counts.split else ""
    print(
        f"{directory}: {counts.written:,} conversations, {counts.tokens:,} tokens, the longest {max(lengths):,}; "
        f"in rows of {pack_to:,}: {len(rows):,} rows, {fill_ratio(lengths, rows, pack_to):.1%} full\n"
        f"too long: {split}{counts.shortened:,} conversations lost questions, {counts.left_out:,} "
        f"lost all of theirs and were left out; {counts.questions_dropped:,} questions in all",
        file=sys.stderr,
    )


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(tfrecords, prog="python -m data_prep.tfrecords", args=arguments)


if __name__ == "__main__":
    run_command(main)
