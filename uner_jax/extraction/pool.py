"""The decode pool: answers that are being written, each behind a context that it shares; what ends makes room."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from uner_jax.extraction.prefill import Batch, Branch, Ids, greedy, power_of_two
from uner_jax.mesh import constrain
from uner_jax.model.cache import KeyValues, Seating
from uner_jax.model.llama import Llama
from uner_jax.model.stages import Stages

# L layers, C prefixes, R rows, A rows that come in, N rows of either kind, S slots, K kv heads, Dh head width,
# V vocabulary, W words of 32 bits

DECODE_STEPS = 4
# A guess of what is copied needs so many of the last tokens to stand in the context, if it can.
LONGEST_MATCH = 3
# Rows that share a prefix; more of them have a copy of it.
SHARERS = 4
# As many rows come in at a time.
ADMITTED = 8
FEWEST_SLOTS = 32
# A pool of so few rows has a prefix for each.
SMALL = 8
# The logical axes of keys and values.
KEPT = ("layers", "batch", "kv_heads", None, None)


@dataclasses.dataclass
class Answer:
    """An answer that is being written: its tokens so far, of which the last is not read yet."""

    branch: Branch
    tokens: list[int]
    log_probs: list[float]

    @property
    def last(self) -> int:
        """The token to read next: of an answer that is not begun, the last of the question."""
        return self.tokens[-1] if self.tokens else self.branch.question[-1]

    @property
    def own(self) -> int:
        """How many tokens there are behind the context."""
        return len(self.branch.question) + len(self.tokens)

    @property
    def position(self) -> int:
        """Where the last token stands in the whole text."""
        return len(self.branch.context) + self.own - 1

    def copied(self, count: int) -> Ids:
        """Up to `count` tokens that come next if the context goes on being copied.

        What follows where the last tokens of the answer stand in the context first: three of them, or two, or one.
        """
        context = self.branch.context
        for size in range(min(LONGEST_MATCH, len(self.tokens)), 0, -1):
            last = tuple(self.tokens[-size:])
            for start in range(len(context) - size):
                if context[start : start + size] == last:
                    return context[start + size : start + size + count]
        return ()


# An answer with its next tokens and their log-probabilities.
Written = tuple[Answer, list[tuple[int, float]]]


class DecodePool:
    """Up to `rows` answers at a time, behind contexts of up to `longest_context` tokens."""

    def __init__(self, stages: Stages, rows: int, longest_context: int):
        self._stages = stages
        self._answers: list[Answer | None] = [None] * rows
        # the context that each prefix holds, and the prefix and seat of each row.
        self._contexts: list[Ids | None] = [None] * _prefixes_for(rows)
        self._seats: list[tuple[int, int] | None] = [None] * rows
        self._slots = FEWEST_SLOTS
        slots = -(-longest_context // FEWEST_SLOTS) * FEWEST_SLOTS
        self._prefixes = stages.empty(len(self._contexts), slots)
        self._rows = stages.empty(rows, self._slots)

    @property
    def answers(self) -> list[Answer]:
        """What is being written."""
        return [answer for answer in self._answers if answer]

    def admit(self, waiting: list[tuple[Batch, Answer]]) -> None:
        """Take in as many as there is room for, from the front of the list, which loses them."""
        while waiting:
            batch = waiting[0][0]
            coming: list[tuple[int, Answer]] = []
            while waiting and waiting[0][0] is batch and len(coming) < ADMITTED:
                row = self._seat(waiting[0][1])
                if row is None:
                    break
                coming.append((row, waiting.pop(0)[1]))
            if not coming:
                return
            self._fit(0)
            self._insert(batch, coming)

    def release(self, answer: Answer) -> None:
        """Make room for another."""
        row = next(row for row, one in enumerate(self._answers) if one is answer)
        prefix, _ = self._seats[row] or (0, 0)
        self._answers[row] = self._seats[row] = None
        if not any(seat and seat[0] == prefix for seat in self._seats):
            self._contexts[prefix] = None

    def write(self, allowed_RW: np.ndarray | None = None) -> list[Written]:
        """The next tokens of each answer, with their log-probabilities; what follows an end of turn means nothing.

        DECODE_STEPS of them, or one where `allowed_RW` says what may be written, by bits, in the order of `answers`.
        """
        steps = DECODE_STEPS if allowed_RW is None else 1
        self._fit(steps)
        if allowed_RW is not None:
            spread = np.zeros((len(self._answers), allowed_RW.shape[1]), np.int32)
            spread[[row for row, answer in enumerate(self._answers) if answer]] = allowed_RW
            allowed_RW = spread
        tokens_R1 = jnp.asarray([[answer.last if answer else 0] for answer in self._answers], jnp.int32)
        seating, found = self._seating(), []
        for step in range(steps):
            tokens_R1, log_probs_R1 = self._next(tokens_R1, self._positions([step]), seating, allowed_RW)
            found.append((tokens_R1, log_probs_R1))
        tokens_RT, log_probs_RT = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        written = zip(self._answers, tokens_RT.tolist(), log_probs_RT.tolist(), strict=True)
        return [(answer, list(zip(*new, strict=True))) for answer, *new in written if answer]

    def write_copying(self, count: int) -> list[Written]:
        """Like `write`, one token and as many more as are guessed right, of up to `count` copied ones, in one pass.

        The fewer rows there are, the less it costs to read more than one token of each.
        """
        self._fit(count + 1)
        guesses = [answer.copied(count) if answer else () for answer in self._answers]
        tokens_RT = np.zeros((len(self._answers), count + 1), np.int32)
        for row, (answer, guess) in enumerate(zip(self._answers, guesses, strict=True)):
            if answer:
                tokens_RT[row, : 1 + len(guess)] = answer.last, *guess
        next_RT, log_probs_RT = self._next(jnp.asarray(tokens_RT), self._positions(range(count + 1)), self._seating())
        found = zip(
            self._answers, guesses, np.asarray(next_RT).tolist(), np.asarray(log_probs_RT).tolist(), strict=True
        )
        written = []
        for answer, guess, tokens, log_probs in found:
            if answer:
                agreed = next((n for n, token in enumerate(guess) if token != tokens[n]), len(guess))
                written.append((answer, list(zip(tokens, log_probs, strict=True))[: agreed + 1]))
        return written

    def _positions(self, steps: Sequence[int]) -> jax.Array:
        """Where the last token of each row stands, so many steps on."""
        first_R = np.array([answer.position if answer else 0 for answer in self._answers], np.int32)
        return jnp.asarray(first_R[:, None] + np.asarray(steps, np.int32))

    def _next(
        self,
        tokens_RT: jax.Array,
        positions_RT: jax.Array,
        seating: Seating,
        allowed_RW: np.ndarray | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Read these tokens of the rows: the likeliest behind each, of those allowed, and their log-probabilities."""
        x_RTD, self._rows = self._stages.extend(tokens_RT, positions_RT, seating, self._prefixes, self._rows)
        return _likeliest(self._stages.ends, x_RTD, allowed_RW)

    @property
    def rows(self) -> int:
        """How many answers there is room for."""
        return len(self._answers)

    def shrink(self) -> None:
        """Go on with a quarter of the rows if they are enough: for when nothing more will come."""
        rows = self.rows // 4
        kept = [row for row, answer in enumerate(self._answers) if answer]
        held = [prefix for prefix, context in enumerate(self._contexts) if context is not None]
        if len(kept) > rows or len(held) > _prefixes_for(rows):
            return
        seats = [seat for seat in self._seats if seat]
        self._answers = [*self.answers, *[None] * (rows - len(kept))]
        self._seats = [*((held.index(prefix), seat) for prefix, seat in seats), *[None] * (rows - len(kept))]
        self._contexts = [*(self._contexts[prefix] for prefix in held), *[None] * (_prefixes_for(rows) - len(held))]
        self._rows = _taken(self._rows, _padded(kept, rows), self._slots)
        self._prefixes = _taken(self._prefixes, _padded(held, len(self._contexts)), self._prefixes[0].slots)

    def _seat(self, answer: Answer) -> int | None:
        """The row that is given to an answer, with a prefix; None if there is no room."""
        context = answer.branch.context
        if None not in self._answers:
            return None
        row = self._answers.index(None)
        for prefix, held in enumerate(self._contexts):
            taken = {seat[1] for seat in self._seats if seat and seat[0] == prefix}
            if held == context and len(taken) < SHARERS:
                self._seats[row] = prefix, min(set(range(SHARERS)) - taken)
                break
        else:
            if None not in self._contexts:
                return None
            prefix = self._contexts.index(None)
            self._contexts[prefix] = context
            self._seats[row] = prefix, 0
        self._answers[row] = answer
        return row

    def _fit(self, steps: int) -> None:
        """Give the rows slots for so many more tokens, or take away what they have not used for long."""
        wanted = max(FEWEST_SLOTS, power_of_two(max(answer.own for answer in self.answers) + steps))
        if wanted > self._slots or wanted * 4 <= self._slots:
            self._slots = wanted
            self._rows = _taken(self._rows, _padded(range(len(self._answers)), len(self._answers)), wanted)

    def _insert(self, batch: Batch, coming: Sequence[tuple[int, Answer]]) -> None:
        rows, prefixes = {}, {}
        for row, answer in coming:
            branch, (prefix, _) = answer.branch, self._seats[row] or (0, 0)
            rows[row] = branch.row, branch.start
            # written again by whoever comes to share it, with the same numbers but for rounding.
            prefixes[prefix] = branch.row, branch.context_start
        self._rows = _inserted(self._rows, batch, rows, 0)
        self._prefixes = _inserted(self._prefixes, batch, prefixes, batch.root)

    def _seating(self) -> Seating:
        """The lengths of the prefixes, and the owner and the seat of each row."""
        lengths_C = np.array([len(context) if context else 0 for context in self._contexts], np.int32)
        nowhere = len(self._contexts), 0
        owners_R, seats_R = np.array([seat or nowhere for seat in self._seats], np.int32).T
        return Seating(jnp.asarray(lengths_C), jnp.asarray(owners_R), jnp.asarray(seats_R), SHARERS)


def _prefixes_for(rows: int) -> int:
    """Of a passage two or three questions have an answer: half as many prefixes as rows do, but in a small pool."""
    return max(rows // 2, min(rows, SMALL))


def _padded(values: Sequence[int], size: int) -> np.ndarray:
    column = np.zeros(size, np.int32)
    column[: len(values)] = values
    return column


def _inserted(
    held: Sequence[KeyValues], batch: Batch, sources: Mapping[int, tuple[int, int]], root: int
) -> list[KeyValues]:
    """With what was read from a place of a row of the batch on, behind the first `root` of that row, in these rows."""
    source_rows, starts = zip(*sources.values(), strict=True)
    which = tuple(jnp.asarray(_padded(values, ADMITTED)) for values in (list(sources), source_rows, starts))
    sizes = jnp.int32(len(sources)), jnp.int32(root)
    return [_insert(one, read, which, sizes) for one, read in zip(held, batch.key_values, strict=True)]


@partial(jax.jit, donate_argnames="held")
def _insert(
    held: KeyValues,
    read: KeyValues,
    which: tuple[jax.Array, ...],
    sizes: tuple[jax.Array, jax.Array],
) -> KeyValues:
    """A stage's part of `_inserted`: `which` are rows, source rows and starts, of which so many count, and `root`."""
    (rows_A, sources_A, starts_A), (count, root) = which, sizes
    slots_S = jnp.arange(held.slots, dtype=jnp.int32)

    def insert(number: jax.Array, held: KeyValues) -> KeyValues:
        places_S = jnp.where(slots_S < root, slots_S, starts_A[number] + slots_S - root)

        def put(x_LNKSDh: jax.Array, y_LBKTDh: jax.Array) -> jax.Array:
            # one gather: of a row that is sliced out first, a mesh would bring all rows to every device.
            y_SLKDh = y_LBKTDh.at[:, sources_A[number], :, places_S].get(mode="clip")
            y_LKSDh = y_SLKDh.transpose(1, 2, 0, 3)
            return constrain(jax.lax.dynamic_update_index_in_dim(x_LNKSDh, y_LKSDh, rows_A[number], 1), *KEPT)

        return jax.tree.map(put, held, read)

    return jax.lax.fori_loop(0, count, insert, held)


def _taken(held: Sequence[KeyValues], kept: np.ndarray, slots: int) -> list[KeyValues]:
    """Those rows, with that many slots."""
    return [_take(one, kept, slots) for one in held]


@partial(jax.jit, static_argnames="slots")
def _take(held: KeyValues, kept_N: jax.Array, slots: int) -> KeyValues:
    def take(x_LNKSDh: jax.Array) -> jax.Array:
        kept = x_LNKSDh[:, kept_N, :, :slots]
        padding = (0, 0), (0, 0), (0, 0), (0, slots - kept.shape[3]), (0, 0)
        return constrain(jnp.pad(kept, padding), *KEPT)

    return jax.tree.map(take, held)


@jax.jit
def _likeliest(ends: Llama, x_RTD: jax.Array, allowed_RW: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The likeliest tokens behind what the last layer gave, and their log-probabilities: (R, T) each."""
    x_ND = x_RTD.reshape(-1, x_RTD.shape[-1])
    logits_NV = ends.logits(ends.norm(x_ND))
    allowed_NV = None if allowed_RW is None else _bits(allowed_RW, logits_NV.shape[1])
    tokens_N, log_probs_N = greedy(logits_NV, allowed_NV)
    return tokens_N.reshape(x_RTD.shape[:2]), log_probs_N.reshape(x_RTD.shape[:2])


def _bits(words_RW: jax.Array, count: int) -> jax.Array:
    """The first bits of each row's words, lowest first."""
    bits_RWB = (words_RW[:, :, None] >> jnp.arange(32, dtype=jnp.int32)) & 1
    return bits_RWB.reshape(words_RW.shape[0], -1)[:, :count] == 1
