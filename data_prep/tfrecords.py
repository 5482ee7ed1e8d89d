"""Conversations -> tokenized TFRecords, as a TFDS data set.

python -m data_prep.tfrecords --conversations conversations.jsonl --tokenizer MODEL --data-dir data --name my_data
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tensorflow_datasets as tfds
import tyro

from uner_jax.command import progress, run_command
from uner_jax.data.builder import Example, build, built_metadata, dataset_directory
from uner_jax.data.packing import fill_ratio, pack_best_fit
from uner_jax.records import Conversation, InputError, check_conversation, read_rows
from uner_jax.template import Scheme, encode_conversation
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights import load_model_tokenizer

TURNS_OF_A_QUESTION = 2


@dataclass
class Counts:
    """What went in, and what did not fit."""

    conversations: int = 0
    questions_dropped: int = 0
    conversations_cut: int = 0
    conversations_dropped: int = 0


class Encoder:
    """Tokenizes conversations and keeps their lengths; what does not fit loses whole questions, counted."""

    def __init__(self, tokenizer: Tokenizer, scheme: Scheme, max_length: int):
        self._tokenizer = tokenizer
        self._scheme = scheme
        self._max_length = max_length
        self.lengths: list[int] = []
        self.counts = Counts()

    def examples(self, rows: Iterator[Conversation]) -> Iterator[Example]:
        """An example for each conversation of which at least one question fits."""
        for row in rows:
            tokens, mask = encode_conversation(row, self._tokenizer, self._scheme)
            # only the end of a turn has this id: a text never encodes to it.
            ends = [place + 1 for place, token in enumerate(tokens) if token == self._tokenizer.eos_id]
            fitting = [end for end in ends if end <= self._max_length]
            dropped = len(ends) - len(fitting)
            self.counts.questions_dropped += min(dropped, len(ends) - 1)
            if len(fitting) < TURNS_OF_A_QUESTION:
                self.counts.conversations_dropped += 1
                continue
            self.counts.conversations += 1
            self.counts.conversations_cut += dropped > 0
            self.lengths.append(fitting[-1])
            yield Example(row["id"], tokens[: fitting[-1]], mask[: fitting[-1]])
        if not self.lengths:
            raise InputError(f"no question of any conversation fits into --max-length {self._max_length} tokens")


def tfrecords(
    conversations: tuple[Path, ...],
    tokenizer: str,
    data_dir: Path,
    name: str,
    max_length: int = 1024,
    pack_to: int = 2048,
    scheme: Scheme = "whole",
) -> None:
    """Tokenize conversations into the TFDS data set DATA_DIR/NAME, which train.py packs into rows.

    Args:
        conversations: Files of conversations in the published form (JSON array, JSON lines, Parquet; .gz, .zst).
        tokenizer: The model's: an HF directory, a SentencePiece .model, a GGUF file or a checkpoint.
        data_dir: Directory of data sets.
        name: Name of the data set: small letters, digits and underscores.
        max_length: Tokens of a conversation; a longer one loses whole questions from its end.
        pack_to: Tokens of a row (data.row_length of train.py) for which the packing is reported.
        scheme: "whole" makes the ids that extraction uses; "released" those of the released trainer.
    """
    if not 0 < max_length <= pack_to:
        raise InputError(f"--max-length {max_length} must be greater than 0 and at most --pack-to {pack_to}")
    if not (name.isidentifier() and name == name.lower()):
        raise InputError(f"--name {name!r} must be small letters, digits and underscores, and begin with a letter")
    loaded = load_model_tokenizer(tokenizer)
    metadata = {
        "tokenizer": loaded.fingerprint,
        "scheme": scheme,
        "max_length": max_length,
        "pack_to": pack_to,
        "sources": [_digest(path) for path in conversations],
    }
    before = built_metadata(data_dir, name)
    if before == metadata:
        print(f"{dataset_directory(data_dir, name)}: already built from the same input", file=sys.stderr)
        return
    if before is not None:
        changed = ", ".join(key for key in metadata if before.get(key) != metadata[key])
        raise InputError(
            f"{dataset_directory(data_dir, name)}: exists, built with other {changed}; give another --name or remove it"
        )
    tfds.disable_progress_bar()
    encoder = Encoder(loaded, scheme, max_length)
    build(
        encoder.examples(progress(_rows(conversations), "tokenizing", unit="conversations")),
        loaded,
        data_dir,
        name,
        metadata,
    )
    _report(dataset_directory(data_dir, name), encoder, pack_to)


def _rows(paths: tuple[Path, ...]) -> Iterator[Conversation]:
    found = False
    for path in paths:
        for where, row in read_rows(path):
            found = True
            yield check_conversation(row, where)
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no conversations")


def _digest(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _report(directory: Path, encoder: Encoder, pack_to: int) -> None:
    counts, lengths = encoder.counts, encoder.lengths
    rows = pack_best_fit(lengths, pack_to)
    print(
        f"{directory}: {counts.conversations:,} conversations, {sum(lengths):,} tokens, the longest {max(lengths):,}; "
        f"in rows of {pack_to:,}: {len(rows):,} rows, {fill_ratio(lengths, rows, pack_to):.1%} full\n"
        f"too long: {counts.conversations_cut:,} conversations lost questions, {counts.conversations_dropped:,} "
        f"lost all of theirs and were left out; {counts.questions_dropped:,} questions in all",
        file=sys.stderr,
    )


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(tfrecords, prog="python -m data_prep.tfrecords", args=arguments)


if __name__ == "__main__":
    run_command(main)
