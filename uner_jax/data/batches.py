"""Rows and batches for the training step: a batch is a function of the data set, the seed and the step."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np

from uner_jax.data.builder import dataset_directory, open_examples
from uner_jax.data.packing import fill_ratio, pack_best_fit
from uner_jax.records import InputError

# B rows, T tokens of a row, A answer tokens of a row

Batch = dict[str, np.ndarray]


class PackedRows:
    """The rows of a data set: random access, each row packed with whole conversations.

    A row is int32 arrays `tokens`, `segment_ids` (from 1; 0 is padding) and `positions` of shape (T,),
    and of shape (A,): `answer_index`, the place whose prediction is scored, `answer_targets`, the token
    that stands next, and `answer_weights` (float32; 0 is padding). A is the most of any row.
    """

    def __init__(self, data_dir: Path, name: str, row_length: int):
        self.directory = dataset_directory(data_dir, name)
        self._source = open_examples(data_dir, name)
        if len(self._source) == 0:
            raise InputError(f"{self.directory}: the data set has no conversations")
        counts = np.array([(len(e.tokens), int(np.sum(e.loss_mask))) for e in self._examples()], np.int64)
        self.lengths, answers = counts[:, 0], counts[:, 1]
        self.answers = int(answers.sum())
        longest = int(self.lengths.max())
        if longest > row_length:
            raise InputError(
                f"{self.directory}: {int((self.lengths > row_length).sum())} conversation(s) are longer than "
                f"data.row_length {row_length} (the longest has {longest} tokens); raise data.row_length to {longest}, "
                "or build the data set with a smaller --max-length"
            )
        if self.answers == 0:
            raise InputError(f"{self.directory}: no token is in the loss; there is nothing to learn")
        self.row_length = row_length
        self._plan = pack_best_fit(self.lengths.tolist(), row_length)
        self.segments_per_row = max(map(len, self._plan))
        self.answers_per_row = max(int(answers[members].sum()) for members in self._plan)
        self.fill = fill_ratio(self.lengths.tolist(), self._plan, row_length)

    def _examples(self) -> Iterator:
        return (self._source[number] for number in range(len(self._source)))

    @property
    def conversations(self) -> int:
        """The number of conversations in the data set."""
        return len(self._source)

    def fingerprint(self) -> str:
        """A hash of what decides the rows: the data set's own description and the row length."""
        described = b"".join((self.directory / name).read_bytes() for name in ("dataset_info.json", "metadata.json"))
        return hashlib.sha256(described + f"{self.lengths.sum()} {self.row_length}".encode()).hexdigest()[:16]

    def ids(self, row: int) -> list[str]:
        """The ids of the conversations of a row."""
        return [self._source[number].id for number in self._plan[row]]

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, row: int) -> Batch:
        """One packed row."""
        arrays = {name: np.zeros(self.row_length, np.int32) for name in ("tokens", "segment_ids", "positions")}
        masks = np.zeros(self.row_length, np.int32)
        start = 0
        for segment, number in enumerate(self._plan[row], 1):
            example = self._source[number]
            end = start + len(example.tokens)
            arrays["tokens"][start:end] = example.tokens
            arrays["segment_ids"][start:end] = segment
            arrays["positions"][start:end] = np.arange(end - start)
            masks[start:end] = example.loss_mask
            start = end
        return arrays | answers_of(arrays["tokens"], masks, self.answers_per_row)


def answers_of(tokens_T: np.ndarray, loss_mask_T: np.ndarray, slots: int) -> Batch:
    """The scored predictions of a row, padded to `slots` (see `PackedRows`)."""
    places = np.flatnonzero(loss_mask_T)
    padding = (0, slots - len(places))
    return {
        "answer_index": np.pad(places - 1, padding).astype(np.int32),
        "answer_targets": np.pad(tokens_T[places], padding).astype(np.int32),
        "answer_weights": np.pad(np.ones(len(places), np.float32), padding),
    }


def batches(
    rows: PackedRows, seed: int, batch_size: int, start: int = 0, host: int = 0, hosts: int = 1
) -> Iterator[Batch]:
    """This host's part of the global batches from step `start` on, without end.

    `batch_size` counts rows over all hosts. The rows are shuffled anew each epoch. The global batch of
    a step is the same however many hosts there are, so the step number is all that a run must remember.
    """
    endless = _in_order(rows, seed)
    own = endless[host::hosts].batch(batch_size // hosts, drop_remainder=True)
    iterator = iter(own.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
    iterator.set_state({"next_index": start})
    return iterator


def batches_once(rows: PackedRows, batch_size: int, host: int, hosts: int) -> Iterator[Batch]:
    """This host's part of batches that have every row once; what fills the last one is in no loss."""
    for start in range(0, len(rows), batch_size):
        numbers = range(start + host, start + batch_size, hosts)
        batch = [rows[number] if number < len(rows) else _unscored(rows[0]) for number in numbers]
        yield {name: np.stack([row[name] for row in batch]) for name in batch[0]}


def _unscored(row: Batch) -> Batch:
    return row | {"answer_weights": np.zeros_like(row["answer_weights"])}


def record_ids(rows: PackedRows, seed: int, batch_size: int, step: int) -> list[str]:
    """The ids of the conversations of step `step`'s global batch, as `batches` counts and makes them."""
    order = _in_order(range(len(rows)), seed)
    return [name for place in range(batch_size) for name in rows.ids(int(order[step * batch_size + place]))]


def _in_order(rows: Any, seed: int) -> grain.MapDataset:
    """The rows in the order that they are seen in, without end."""
    return grain.MapDataset.source(rows).seed(seed).shuffle().repeat()
