"""The decode pool: answers that are being written, each behind a context that it shares; what ends makes room."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from uner_jax.extraction.prefill import Batch, Branch, Ids, greedy, power_of_two
from uner_jax.mesh import constrain
from uner_jax.model.cache import KeyValues, Pool, empty_key_values
from uner_jax.model.llama import Llama

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

    def __init__(self, model: Llama, eos_id: int, rows: int, longest_context: int):
        self._model = model
        self._eos_id = eos_id
        self._answers: list[Answer | None] = [None] * rows
        # the context that each prefix holds, and the prefix and seat of each row.
        self._contexts: list[Ids | None] = [None] * _prefixes_for(rows)
        self._seats: list[tuple[int, int] | None] = [None] * rows
        self._slots = FEWEST_SLOTS
        slots = -(-longest_context // FEWEST_SLOTS) * FEWEST_SLOTS
        self._prefixes = empty_key_values(model.config, len(self._contexts), slots, model.compute_dtype)
        self._rows = empty_key_values(model.config, rows, self._slots, model.compute_dtype)

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
        last_R = np.array([answer.last if answer else self._eos_id for answer in self._answers], np.int32)
        positions_R = np.array([answer.position if answer else 0 for answer in self._answers], np.int32)
        empty_R = np.array([answer is None for answer in self._answers])
        now = last_R, positions_R, empty_R
        self._rows, tokens_RT, log_probs_RT = _decode(
            self._model, self._rows, self._sharing(), now, np.int32(self._eos_id), allowed_RW, steps
        )
        written = zip(self._answers, np.asarray(tokens_RT).tolist(), np.asarray(log_probs_RT).tolist(), strict=True)
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
        first_R = np.array([answer.position if answer else 0 for answer in self._answers], np.int32)
        positions_RT = first_R[:, None] + np.arange(count + 1, dtype=np.int32)
        self._rows, next_RT, log_probs_RT = _verify(self._model, self._rows, self._sharing(), tokens_RT, positions_RT)
        found = zip(
            self._answers, guesses, np.asarray(next_RT).tolist(), np.asarray(log_probs_RT).tolist(), strict=True
        )
        written = []
        for answer, guess, tokens, log_probs in found:
            if answer:
                agreed = next((n for n, token in enumerate(guess) if token != tokens[n]), len(guess))
                written.append((answer, list(zip(tokens, log_probs, strict=True))[: agreed + 1]))
        return written

    @property
    def rows(self) -> int:
        """How many answers there is room for."""
        return len(self._answers)

    def shrink(self) -> None:
        """Go on with a quarter of the rows if they are enough: for when nothing more will come."""
        rows = self.rows // 4
        kept = [row for row, answer in enumerate(self._answers) if answer]
        held = [prefix for prefix, context in enumerate(self._contexts) if context]
        if len(kept) > rows or len(held) > _prefixes_for(rows):
            return
        seats = [seat for seat in self._seats if seat]
        self._answers = [*self.answers, *[None] * (rows - len(kept))]
        self._seats = [*((held.index(prefix), seat) for prefix, seat in seats), *[None] * (rows - len(kept))]
        self._contexts = [*(self._contexts[prefix] for prefix in held), *[None] * (_prefixes_for(rows) - len(held))]
        self._rows = _take(self._rows, _padded(kept, rows), self._slots)
        self._prefixes = _take(self._prefixes, _padded(held, len(self._contexts)), self._prefixes.slots)

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
            self._rows = _take(self._rows, _padded(range(len(self._answers)), len(self._answers)), wanted)

    def _insert(self, batch: Batch, coming: Sequence[tuple[int, Answer]]) -> None:
        branches = [answer.branch for _, answer in coming]
        rows = _padded([row for row, _ in coming], ADMITTED, len(self._answers))
        # a prefix is written again by each row that comes to share it: with the same numbers.
        prefixes = [seat[0] for row, _ in coming if (seat := self._seats[row])]
        sources = _padded([branch.row for branch in branches], ADMITTED)
        self._rows = _insert(
            self._rows, batch.key_values, rows, sources, _padded([branch.start for branch in branches], ADMITTED)
        )
        self._prefixes = _insert(
            self._prefixes,
            batch.key_values,
            _padded(prefixes, ADMITTED, len(self._contexts)),
            sources,
            _padded([branch.context_start for branch in branches], ADMITTED),
        )

    def _sharing(self) -> tuple[KeyValues, np.ndarray, np.ndarray, np.ndarray]:
        """The prefixes, their lengths, and the owner and the seat of each row."""
        lengths_C = np.array([len(context) if context else 0 for context in self._contexts], np.int32)
        nowhere = len(self._contexts), 0
        owners_R, seats_R = np.array([seat or nowhere for seat in self._seats], np.int32).T
        return self._prefixes, lengths_C, owners_R, seats_R


def _prefixes_for(rows: int) -> int:
    """Of a passage two or three questions have an answer: half as many prefixes as rows do, but in a small pool."""
    return max(rows // 2, min(rows, SMALL))


def _padded(values: Sequence[int], size: int, fill: int = 0) -> np.ndarray:
    column = np.full(size, fill, np.int32)
    column[: len(values)] = values
    return column


@partial(jax.jit, donate_argnames="held")
def _insert(
    held: KeyValues, read: KeyValues, rows_A: jax.Array, sources_A: jax.Array, starts_A: jax.Array
) -> KeyValues:
    """What was read from the starts of the source rows on, in those rows; a row that there is not is left out."""
    places_AS = starts_A[:, None] + jnp.arange(held.slots, dtype=jnp.int32)

    def put(x_LNKSDh: jax.Array, y_LBKTDh: jax.Array) -> jax.Array:
        # the two index arrays with a slice between them come first: (A, S, L, K, Dh).
        taken = y_LBKTDh.at[:, sources_A[:, None], :, places_AS].get(mode="clip")
        return constrain(x_LNKSDh.at[:, rows_A].set(taken.transpose(2, 0, 3, 1, 4), mode="drop"), *KEPT)

    return jax.tree.map(put, held, read)


@partial(jax.jit, static_argnames="slots")
def _take(held: KeyValues, kept_N: jax.Array, slots: int) -> KeyValues:
    """Those rows, with that many slots."""

    def take(x_LNKSDh: jax.Array) -> jax.Array:
        kept = x_LNKSDh[:, kept_N, :, :slots]
        padding = (0, 0), (0, 0), (0, 0), (0, slots - kept.shape[3]), (0, 0)
        return constrain(jnp.pad(kept, padding), *KEPT)

    return jax.tree.map(take, held)


@partial(jax.jit, static_argnames="steps", donate_argnames="rows")
def _decode(
    model: Llama,
    rows: KeyValues,
    sharing: tuple[KeyValues, jax.Array, jax.Array, jax.Array],
    now: tuple[jax.Array, jax.Array, jax.Array],
    eos_id: jax.Array,
    allowed_RW: jax.Array | None,
    steps: int,
) -> tuple[KeyValues, jax.Array, jax.Array]:
    """`steps` more tokens of each row, or fewer once all have ended: (R, steps) each.

    `now` has the last token of each row, its position, and whether there is nothing to be written.
    """
    prefixes, lengths_C, owners_R, seats_R = sharing
    pool = Pool(prefixes, lengths_C, rows, owners_R, seats_R, SHARERS)
    last_R, positions_R, ended_R = now
    shape = last_R.shape[0], steps

    def going(state: tuple) -> jax.Array:
        step, _, _, ended_R, *_ = state
        return (step < steps) & ~jnp.all(ended_R)

    def write(state: tuple) -> tuple:
        step, rows, last_R, ended_R, tokens_RT, log_probs_RT = state
        grown = dataclasses.replace(pool, rows=rows)
        hidden_R1D, grown = model.extend(last_R[:, None], (positions_R + step)[:, None], grown)
        logits_RV = model.logits(hidden_R1D[:, 0])
        allowed_RV = None if allowed_RW is None else _bits(allowed_RW, logits_RV.shape[1])
        next_R, log_probs_R = greedy(logits_RV, allowed_RV)
        next_R = jnp.where(ended_R, eos_id, next_R)
        tokens_RT, log_probs_RT = tokens_RT.at[:, step].set(next_R), log_probs_RT.at[:, step].set(log_probs_R)
        return step + 1, grown.rows, next_R, ended_R | (next_R == eos_id), tokens_RT, log_probs_RT

    start = jnp.int32(0), rows, last_R, ended_R, jnp.full(shape, eos_id), jnp.zeros(shape, jnp.float32)
    _, rows, _, _, tokens_RT, log_probs_RT = jax.lax.while_loop(going, write, start)
    return rows, tokens_RT, log_probs_RT


@partial(jax.jit, donate_argnames="rows")
def _verify(
    model: Llama,
    rows: KeyValues,
    sharing: tuple[KeyValues, jax.Array, jax.Array, jax.Array],
    tokens_RT: jax.Array,
    positions_RT: jax.Array,
) -> tuple[KeyValues, jax.Array, jax.Array]:
    """What greedy decoding writes behind each token of each row, and its log-probability: (R, T) each."""
    pool = Pool(sharing[0], sharing[1], rows, sharing[2], sharing[3], SHARERS)
    hidden_RTD, pool = model.extend(tokens_RT, positions_RT, pool)
    next_N, log_probs_N = greedy(model.logits(hidden_RTD.reshape(-1, hidden_RTD.shape[-1])))
    return pool.rows, next_N.reshape(tokens_RT.shape), log_probs_N.reshape(tokens_RT.shape)


def _bits(words_RW: jax.Array, count: int) -> jax.Array:
    """The first bits of each row's words, lowest first."""
    bits_RWB = (words_RW[:, :, None] >> jnp.arange(32, dtype=jnp.int32)) & 1
    return bits_RWB.reshape(words_RW.shape[0], -1)[:, :count] == 1
