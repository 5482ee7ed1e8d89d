"""Greedy answers to many questions: a context is read once, all its questions share what was read.

The work comes in three jitted functions over a small set of shapes: `_read` fills a cache with a
batch of contexts, `_ask` gives every question a row of its own with its context's part of the cache,
and `_decode` writes answers a few tokens at a time, after which finished rows make room.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from uner_jax.model.cache import Cache, empty_cache
from uner_jax.model.llama import Llama
from uner_jax.records import InputError

# C contexts, R rows (one a question), T tokens of a context, Q tokens of a question, V vocabulary

CONTEXT_BUCKET = 64
QUESTION_BUCKET = 16
DECODE_STEPS = 16


@dataclasses.dataclass(frozen=True)
class Request:
    """The ids of a context and of a question on it, which ends where the answer begins."""

    context: tuple[int, ...]
    question: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Generation:
    """An answer's ids without the end of turn, the log-probability of each, and whether the turn ended.

    `end_log_prob` is that of the end of turn; an answer that was cut at the limit has `ended` False.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    ended: bool
    end_log_prob: float = 0.0


@dataclasses.dataclass
class _Row:
    """A question that is being answered: its place among the requests, and what it has so far."""

    place: int
    position: int
    tokens: list[int]
    log_probs: list[float]

    def add(self, token: int, log_prob: float) -> None:
        self.tokens.append(token)
        self.log_probs.append(log_prob)


class Engine:
    """Answers requests with a model; `batch_size` questions at a time, of at most `max_new_tokens` each."""

    def __init__(self, model: Llama, eos_id: int, batch_size: int = 32, max_new_tokens: int = 256):
        if batch_size < 1 or max_new_tokens < 1:
            raise InputError(f"batch size {batch_size} and new tokens {max_new_tokens} must be at least 1")
        self._model = model
        self._eos_id = eos_id
        self._batch_size = batch_size
        self._max_new_tokens = max_new_tokens
        self._longest = model.config.max_position_embeddings

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
        """Yield (place in `requests`, answer) as the answers come.

        An answer does not depend on the other requests. Raises InputError if a prompt leaves no room
        for an answer within `max_position_embeddings`.
        """
        for batch in self._batches(requests):
            yield from self._answer(requests, batch)

    def _batches(self, requests: Sequence[Request]) -> Iterator[dict[tuple[int, ...], list[int]]]:
        """Contexts of like length with the places of their questions, `batch_size` questions in all."""
        by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            if len(request.context) + len(request.question) >= self._longest:
                raise InputError(
                    f"a prompt of {len(request.context) + len(request.question)} tokens leaves no room for an "
                    f"answer: the model reads {self._longest}"
                )
            by_context[request.context].append(place)
        batch: dict[tuple[int, ...], list[int]] = defaultdict(list)
        rows = 0
        for context in sorted(by_context, key=lambda ids: (len(ids), ids)):
            for place in by_context[context]:
                batch[context].append(place)
                rows += 1
                if rows == self._batch_size:
                    yield batch
                    batch, rows = defaultdict(list), 0
        if batch:
            yield batch

    def _answer(
        self, requests: Sequence[Request], batch: dict[tuple[int, ...], list[int]]
    ) -> Iterator[tuple[int, Generation]]:
        contexts = list(batch)
        read = _read(self._model, _padded(contexts, CONTEXT_BUCKET, _power_of_two(len(contexts)), self._longest))
        places = [place for context in contexts for place in batch[context]]
        owners = [owner for owner, context in enumerate(contexts) for _ in batch[context]]
        cache, rows = self._ask(requests, places, owners, read)
        while True:
            alive = []
            for number, row in enumerate(rows):
                if self._over(row):
                    yield row.place, self._generation(row)
                else:
                    alive.append(number)
            if not alive:
                return
            rows = [rows[number] for number in alive]
            cache = self._decode(rows, alive, cache)

    def _ask(
        self, requests: Sequence[Request], places: list[int], owners: list[int], read: Cache
    ) -> tuple[Cache, list[_Row]]:
        """Read the questions behind their contexts; gives each row the first token of its answer."""
        questions = [requests[place].question for place in places]
        starts = [len(requests[place].context) for place in places]
        size = _power_of_two(len(places))
        tokens_RQ = _padded(questions, QUESTION_BUCKET, size, self._longest)
        slots = self._slots(max(starts) + tokens_RQ.shape[1])
        cache, first_R, log_probs_R = _ask(
            self._model,
            read,
            tokens_RQ,
            _column(owners, size),
            _column(starts, size),
            _column([len(question) for question in questions], size, fill=1),
            slots,
        )
        first, log_probs = np.asarray(first_R).tolist(), np.asarray(log_probs_R).tolist()
        return cache, [
            _Row(place, start + len(question), [first[number]], [log_probs[number]])
            for number, (place, start, question) in enumerate(zip(places, starts, questions, strict=True))
        ]

    def _decode(self, rows: list[_Row], kept: list[int], cache: Cache) -> Cache:
        """Write a few more tokens of each row; `kept` says where the rows lie in the cache."""
        size = _power_of_two(len(rows))
        slots = self._slots(max(row.position for row in rows) + DECODE_STEPS)
        cache, tokens_RS, log_probs_RS = _decode(
            self._model,
            cache,
            _column(kept, size),
            _column([row.tokens[-1] for row in rows], size, fill=self._eos_id),
            _column([row.position for row in rows], size),
            jnp.int32(self._eos_id),
            slots,
        )
        for row, tokens, log_probs in zip(
            rows, np.asarray(tokens_RS).tolist(), np.asarray(log_probs_RS).tolist(), strict=False
        ):
            for token, log_prob in zip(tokens, log_probs, strict=True):
                if self._over(row):
                    break
                row.add(token, log_prob)
                row.position += 1
        return cache

    def _slots(self, needed: int) -> int:
        return min(_round_up(needed, CONTEXT_BUCKET), self._longest)

    def _over(self, row: _Row) -> bool:
        full = len(row.tokens) >= self._max_new_tokens or row.position >= self._longest
        return row.tokens[-1] == self._eos_id or full

    def _generation(self, row: _Row) -> Generation:
        if row.tokens[-1] == self._eos_id:
            return Generation(tuple(row.tokens[:-1]), tuple(row.log_probs[:-1]), True, row.log_probs[-1])
        return Generation(tuple(row.tokens), tuple(row.log_probs), False)


@jax.jit
def _read(model: Llama, tokens_CT: jax.Array) -> Cache:
    """A cache of the contexts, padded at their ends."""
    positions_CT = jnp.broadcast_to(jnp.arange(tokens_CT.shape[1], dtype=jnp.int32), tokens_CT.shape)
    rows, slots = tokens_CT.shape
    cache = empty_cache(model.config, rows, slots, model.compute_dtype)
    return model.extend(tokens_CT, positions_CT, cache)[1]


@partial(jax.jit, static_argnames="slots")
def _ask(
    model: Llama,
    contexts: Cache,
    tokens_RQ: jax.Array,
    owners_R: jax.Array,
    starts_R: jax.Array,
    lengths_R: jax.Array,
    slots: int,
) -> tuple[Cache, jax.Array, jax.Array]:
    """A row for each question with its context's cache; the first token of each answer."""
    cache = contexts.rows(owners_R, slots)
    positions_RQ = starts_R[:, None] + jnp.arange(tokens_RQ.shape[1], dtype=jnp.int32)
    hidden_RQD, cache = model.extend(tokens_RQ, positions_RQ, cache)
    last_RD = jnp.take_along_axis(hidden_RQD, (lengths_R - 1)[:, None, None], axis=1)[:, 0]
    return cache, *_greedy(model, last_RD)


@partial(jax.jit, static_argnames="slots")
def _decode(
    model: Llama,
    cache: Cache,
    kept_R: jax.Array,
    tokens_R: jax.Array,
    positions_R: jax.Array,
    eos_id: jax.Array,
    slots: int,
) -> tuple[Cache, jax.Array, jax.Array]:
    """DECODE_STEPS more tokens of the kept rows, or fewer once all rows have ended: (R, steps) each."""
    shape = (tokens_R.shape[0], DECODE_STEPS)

    def going(state: tuple) -> jax.Array:
        step, _, last_R, *_ = state
        return (step < DECODE_STEPS) & jnp.any(last_R != eos_id)

    def write(state: tuple) -> tuple:
        step, cache, last_R, tokens_RS, log_probs_RS = state
        hidden_R1D, cache = model.extend(last_R[:, None], (positions_R + step)[:, None], cache)
        next_R, log_probs_R = _greedy(model, hidden_R1D[:, 0])
        next_R = jnp.where(last_R == eos_id, eos_id, next_R)  # an ended row stays so
        tokens_RS = tokens_RS.at[:, step].set(next_R)
        return step + 1, cache, next_R, tokens_RS, log_probs_RS.at[:, step].set(log_probs_R)

    start = (jnp.int32(0), cache.rows(kept_R, slots), tokens_R, jnp.full(shape, eos_id), jnp.zeros(shape, jnp.float32))
    _, cache, _, tokens_RS, log_probs_RS = jax.lax.while_loop(going, write, start)
    return cache, tokens_RS, log_probs_RS


def _greedy(model: Llama, hidden_RD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The likeliest next token of each row and its log-probability."""
    logits_RV = model.logits(hidden_RD)
    tokens_R = jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)
    return tokens_R, jnp.max(logits_RV, axis=-1) - jax.nn.logsumexp(logits_RV, axis=-1)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _padded(sequences: Sequence[Sequence[int]], step: int, rows: int, longest: int) -> jax.Array:
    """The sequences as the first of `rows` rows of int32, as wide as the longest of them, rounded up."""
    width = min(_round_up(max(map(len, sequences)), step), longest)
    table = np.zeros((rows, width), np.int32)
    for number, ids in enumerate(sequences):
        table[number, : len(ids)] = ids
    return jnp.asarray(table)


def _column(values: Sequence[int], size: int, fill: int = 0) -> jax.Array:
    column = np.full(size, fill, np.int32)
    column[: len(values)] = values
    return jnp.asarray(column)
