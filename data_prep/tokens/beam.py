"""The record files of a data set, built by Apache Beam: the same bytes that a build on one machine writes.

The pipeline reads files, tokenizes blocks of conversations, groups the records by file and writes the
files. What was read, encoded and written comes back as one summary beside them, which is compared: a
runner that loses an element fails the build.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsIter, AsSingleton, TaggedOutput

from data_prep.tokens.encoding import Counts, Encoder, Encoding, blocks, check_totals, count_questions
from uner_jax.data.builder import TOKENIZER_DIRECTORY
from uner_jax.data.shards import RECORD_OVERHEAD, Shard, key_of, shard_count, shard_of, write_shard
from uner_jax.data.storage import as_path, local_copy
from uner_jax.records import Conversation, InputError, LostRecordsError, check_conversation, read_rows
from uner_jax.tokenizer import load_tokenizer

# number and path of an input file
NumberedPath = tuple[int, str]


class BeamBuild:
    """Writes the record files with Beam; `counts` then says what they hold.

    The workers read the input and write the files themselves, so their paths must mean the same on all of them.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        encoding: Encoding,
        shard_bytes: int,
        eos_id: int,
        options: PipelineOptions,
    ):
        self._paths, self._encoding, self._shard_bytes, self._eos_id = paths, encoding, shard_bytes, eos_id
        self._options = options
        self.counts = Counts()

    def __call__(self, prefix: Path) -> list[Shard]:
        """Write the files that begin with `prefix`; LostRecordsError if they do not hold all that was read."""
        summary = prefix.with_name("summary.json")
        with beam.Pipeline(options=self._options) as pipeline:
            self._construct(pipeline, prefix, summary)
        found = json.loads(summary.read_text(encoding="utf-8"))
        summary.unlink()
        if found["faults"]:
            raise InputError(min(found["faults"])[1])
        self.counts = _counts_of(found["counts"])
        shards = [Shard(*shard) for shard in found["shards"]]
        self._check(found["read"], shards)
        return sorted(shards + self._empty(prefix, shards))

    def _empty(self, prefix: Path, written: Sequence[Shard]) -> list[Shard]:
        """Write the files that no record fell into: Beam has no group of nothing."""
        size = sum(shard.size + RECORD_OVERHEAD * shard.conversations for shard in written)
        count = shard_count(size, self._shard_bytes)
        missing = set(range(count)) - {shard.number for shard in written}
        return [write_shard(prefix, number, count, [], self._eos_id) for number in missing]

    def _construct(self, pipeline: Any, prefix: Path, summary: Path) -> None:
        read = (
            pipeline
            | "Files" >> beam.Create(list(enumerate(map(str, self._paths))))
            | "SpreadFiles" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_Read()).with_outputs("read", "faults", main="blocks")
        )
        encoded = (
            read.blocks
            | "SpreadBlocks" >> beam.Reshuffle()
            | "Encode"
            >> beam.ParDo(_Encode(str(prefix.parent / TOKENIZER_DIRECTORY), self._encoding)).with_outputs(
                "counts", "faults", main="records"
            )
        )
        size = encoded.records | "Size" >> beam.Map(_bytes_in_file) | "TotalSize" >> beam.CombineGlobally(sum)
        shards = (
            encoded.records
            | "AssignShard" >> beam.Map(_with_shard, AsSingleton(size), self._shard_bytes)
            | "GroupShards" >> beam.GroupByKey()
            | "WriteShards" >> beam.Map(_write_shard, AsSingleton(size), self._shard_bytes, str(prefix), self._eos_id)
        )
        counts = encoded.counts | "TotalCounts" >> beam.CombineGlobally(Counts.total)
        faults = (read.faults, encoded.faults) | "Faults" >> beam.Flatten()
        outcome = {"shards": AsIter(shards), "read": AsIter(read.read), "faults": AsIter(faults)}
        _ = (
            pipeline
            | "Summary" >> beam.Create([str(summary)])
            | "WriteSummary" >> beam.Map(_write_summary, counts=AsSingleton(counts), **outcome)
        )

    def _check(self, read: list[list[int]], shards: Sequence[Shard]) -> None:
        if sorted(number for number, _, _ in read) != list(range(len(self._paths))):
            raise LostRecordsError(f"Beam read {len(read)} of {len(self._paths)} files; build it again")
        conversations, questions = sum(row[1] for row in read), sum(row[2] for row in read)
        if not conversations:
            raise InputError(f"{', '.join(map(str, self._paths))}: no conversations")
        check_totals(conversations, questions, self.counts, shards, self._encoding)


class _Read(beam.DoFn):
    """A numbered file -> blocks of its conversations in JSON; beside them how much was read, and what is wrong."""

    def process(self, numbered: NumberedPath) -> Iterator[Any]:
        number, path = numbered
        conversations = questions = 0
        try:
            with local_copy(as_path(path)) as local:
                for block in blocks(check_conversation(row, where) for where, row in read_rows(local)):
                    conversations += len(block)
                    questions += sum(map(count_questions, block))
                    yield _to_json(block)
        except InputError as error:
            yield TaggedOutput("faults", (number, str(error)))
        yield TaggedOutput("read", (number, conversations, questions))


def _to_json(block: Sequence[Conversation]) -> bytes:
    """The block for another machine; in ASCII, since Beam's own coding of strings fails on a lone surrogate."""
    rows = [
        {"id": row["id"], "conversations": [{"value": turn["value"]} for turn in row["conversations"]]} for row in block
    ]
    return json.dumps(rows).encode("ascii")


class _Encode(beam.DoFn):
    """Blocks -> `(key, record)`; beside them the account of each block."""

    def __init__(self, tokenizer: str, encoding: Encoding):
        self._tokenizer, self._encoding = tokenizer, encoding

    def setup(self) -> None:
        with local_copy(as_path(self._tokenizer)) as local:
            self._encoder = Encoder(load_tokenizer(local), self._encoding)

    def process(self, block: bytes) -> Iterator[Any]:
        try:
            records, counts = self._encoder.encode(json.loads(block))
        except InputError as error:
            yield TaggedOutput("faults", (0, str(error)))
            return
        yield TaggedOutput("counts", counts)
        for record in records:
            yield key_of(record), record


def _bytes_in_file(keyed: tuple[bytes, bytes]) -> int:
    return len(keyed[1]) + RECORD_OVERHEAD


def _with_shard(keyed: tuple[bytes, bytes], size: int, shard_bytes: int) -> tuple[int, tuple[bytes, bytes]]:
    return shard_of(keyed[0], shard_count(size, shard_bytes)), keyed


def _write_shard(
    grouped: tuple[int, Iterable[tuple[bytes, bytes]]], size: int, shard_bytes: int, prefix: str, eos_id: int
) -> Shard:
    index, records = grouped
    return write_shard(as_path(prefix), index, shard_count(size, shard_bytes), records, eos_id)


def _write_summary(
    path: str, counts: Counts, shards: Iterable[Shard], read: Iterable[Any], faults: Iterable[Any]
) -> None:
    summary = {
        "counts": vars(counts),
        "shards": list(shards),
        "read": list(read),
        "faults": list(faults),
    }
    as_path(path).write_text(json.dumps(summary), encoding="utf-8")


def _counts_of(fields: dict[str, Any]) -> Counts:
    lengths = Counter({int(length): count for length, count in fields["lengths"].items()})
    return Counts(**fields | {"lengths": lengths})
