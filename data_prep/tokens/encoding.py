"""Blocks of conversations -> records of at most so many tokens, with an account of what became of everything."""

import dataclasses
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from data_prep.tokens.token_cache import Memory, TokenCache
from uner_jax.data.example import Example, to_record
from uner_jax.data.shards import Shard
from uner_jax.records import Conversation, InputError, LostRecordsError
from uner_jax.template import Exchange, ExchangeIds, Scheme, encode_conversation, encode_conversations
from uner_jax.tokenizer import Tokenizer

Overlong = Literal["drop", "split"]

# conversations that are tokenized together
BLOCK = 1000
# questions with their answers whose ids are remembered, about a kilobyte each and twice as many at most
QUESTIONS = 20_000


@dataclass
class Counts:
    """What was encoded and what did not fit; `lengths` has the number of records of each length in tokens."""

    conversations: int = 0
    questions: int = 0
    left_out: int = 0
    shortened: int = 0
    split: int = 0
    questions_dropped: int = 0
    lengths: Counter[int] = field(default_factory=Counter)

    @property
    def written(self) -> int:
        """The number of records: a conversation is one, none if nothing of it fits, several if it was split."""
        return self.lengths.total()

    @property
    def tokens(self) -> int:
        """The tokens of all records."""
        return sum(length * count for length, count in self.lengths.items())

    @classmethod
    def total(cls, parts: Iterable["Counts"]) -> "Counts":
        """The sum."""
        whole = cls()
        for part in parts:
            for item in dataclasses.fields(cls):
                setattr(whole, item.name, getattr(whole, item.name) + getattr(part, item.name))
        return whole


@dataclass(frozen=True)
class Encoding:
    """How conversations become tokens: part of what a data set is."""

    scheme: Scheme
    max_length: int
    overlong: Overlong


def count_questions(row: Conversation) -> int:
    """The questions of a conversation: all turns of the user but the first, which is the passage."""
    return len(row["conversations"]) // 2 - 1


def blocks(rows: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    """The rows in lists of `BLOCK`, the last one shorter."""
    rows = iter(rows)
    while block := list(islice(rows, BLOCK)):
        yield block


class Encoder:
    """Makes records of conversations: the ids of `template.encode_conversation`, many at once."""

    def __init__(self, tokenizer: Tokenizer, encoding: Encoding):
        self._tokenizer = TokenCache(tokenizer)
        self._encoding = encoding
        self._known: Memory[Exchange, ExchangeIds] = Memory(QUESTIONS)

    def encode(self, rows: Sequence[Conversation]) -> tuple[list[bytes], Counts]:
        """The records of a block, and the account of it. Raises InputError that names the conversation."""
        counts = Counts(conversations=len(rows), questions=sum(map(count_questions, rows)))
        records = []
        for row, (tokens, mask) in zip(rows, self._encoded(rows), strict=True):
            for part in self._parts(row["id"], tokens, mask, counts):
                counts.lengths[len(part.tokens)] += 1
                records.append(to_record(part))
        return records, counts

    def _encoded(self, rows: Sequence[Conversation]) -> list[tuple["array[int]", bytes]]:
        try:
            return encode_conversations(rows, self._tokenizer, self._encoding.scheme, known=self._known)
        except InputError:
            for row in rows:
                self._explain(row)
            raise

    def _explain(self, row: Conversation) -> None:
        try:
            encode_conversation(row, self._tokenizer, self._encoding.scheme)
        except InputError as error:
            raise InputError(f"conversation {row['id']!r}: {error}") from error

    def _parts(self, name: str, tokens: "array[int]", mask: bytes, counts: Counts) -> Iterator[Example]:
        if len(tokens) <= self._encoding.max_length:
            yield Example(name, tokens, mask)
            return
        ends = _turn_ends(tokens, self._tokenizer.eos_id)
        parts = fit(ends, self._encoding.max_length, self._encoding.overlong)
        dropped = len(ends) - 1 - sum(map(len, parts))
        counts.questions_dropped += dropped
        counts.left_out += not parts
        counts.shortened += bool(parts and dropped)
        counts.split += len(parts) > 1
        for number, questions in enumerate(parts, 1):
            spans = [(0, ends[0]), *((ends[question - 1], ends[question]) for question in questions)]
            yield Example(
                name if number == 1 else f"{name}#{number}",
                [token for start, end in spans for token in tokens[start:end]],
                b"".join(mask[start:end] for start, end in spans),
            )


# a process's own encoder: a function that is sent to processes finds it here.
_encoders: list[Encoder] = []


def start_encoder(tokenizer: Tokenizer, encoding: Encoding) -> None:
    """Prepare this process for `encode_block`."""
    _encoders[:] = [Encoder(tokenizer, encoding)]


def encode_block(rows: Sequence[Conversation]) -> tuple[list[bytes], Counts]:
    """`Encoder.encode` with the encoder of this process."""
    return _encoders[0].encode(rows)


def fit(ends: Sequence[int], max_length: int, overlong: Overlong) -> list[list[int]]:
    """The questions (from 1) of each conversation that a too long one becomes.

    `ends` are the places where its turns end, the passage's first. "drop" keeps the questions before the
    first that does not fit; "split" puts as many as fit, in their order, behind the passage, the next
    behind the passage again, and leaves out only a question that does not fit with the passage alone.
    """
    if overlong == "drop":
        kept = [question for question in range(1, len(ends)) if ends[question] <= max_length]
        return [kept] if kept else []
    parts: list[list[int]] = []
    room = 0
    for question in range(1, len(ends)):
        length = ends[question] - ends[question - 1]
        if ends[0] + length > max_length:
            continue
        if not parts or length > room:
            parts.append([])
            room = max_length - ends[0]
        parts[-1].append(question)
        room -= length
    return parts


def _turn_ends(tokens: "array[int]", eos_id: int) -> list[int]:
    """Where the turns end; only the end of a turn has this id: a text never encodes to it."""
    ends: list[int] = []
    for _ in range(tokens.count(eos_id)):
        ends.append(tokens.index(eos_id, ends[-1] if ends else 0) + 1)
    return ends


def check_totals(
    conversations: int, questions: int, counts: Counts, shards: Sequence[Shard], encoding: Encoding
) -> None:
    """Compare what was read, what was encoded and what was written.

    Raises InputError if there is nothing to write, and LostRecordsError if the three do not agree.
    """
    if conversations == counts.conversations == counts.left_out:
        raise InputError(f"no question of any conversation fits into --max-length {encoding.max_length} tokens")
    written = sum(shard.conversations for shard in shards)
    stages = {
        "conversations read and encoded": (conversations, counts.conversations),
        "questions read and encoded": (questions, counts.questions),
        "records encoded and written": (counts.written, written),
        "questions kept and written": (
            counts.questions - counts.questions_dropped,
            sum(shard.answers for shard in shards) - written,
        ),
        "tokens encoded and written": (counts.tokens, sum(shard.tokens for shard in shards)),
    }
    wrong = [f"{what}: {before:,} and {after:,}" for what, (before, after) in stages.items() if before != after]
    if wrong:
        raise LostRecordsError(f"the build lost records and is not kept ({'; '.join(wrong)}); build it again")
