"""Reading passages with all their questions: trees packed into rows, a few rows at a time.

A tree is a passage's context, read once, with a branch for each of its questions. Behind every question stands
a draft, the answer that most questions have (`[]`): where greedy decoding writes just that, the question is answered
without a step of decoding.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from uner_jax.data.packing import pack_best_fit
from uner_jax.model.cache import KeyValues
from uner_jax.model.llama import Llama

# B rows, T tokens of a row, D model width, V vocabulary, M places where the next token is asked for

Ids = tuple[int, ...]

SHORTEST_ROW = 64
ROW = 2048
# Trees that are packed together.
LOOK_AHEAD = 128
# As many places at a time are projected to the vocabulary.
PLACES = 64


@dataclasses.dataclass(frozen=True)
class Draft:
    """An answer that is read behind every question: its tokens and the end of turn.

    `longest` is the model's length: where a draft would pass it, there is none.
    """

    tokens: Ids
    eos_id: int
    longest: int

    def behind(self, context: Ids, question: Ids) -> Ids:
        """The tokens that stand behind a question."""
        return self.tokens if len(context) + len(question) + len(self.tokens) <= self.longest else ()


@dataclasses.dataclass(frozen=True)
class Tree:
    """A context and questions on it, and the caller's number of each question."""

    context: Ids
    questions: tuple[Ids, ...]
    numbers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Branch:
    """A question that was read: where it and its context begin in the batch, and what comes after it.

    `tokens` are what greedy decoding writes first, with their log-probabilities: what it agrees to of the draft and,
    unless it agrees to all, one token more. Of the draft's own tokens, `draft_log_probs` are the log-probabilities.
    """

    number: int
    row: int
    context_start: int
    context: Ids
    start: int
    question: Ids
    tokens: Ids
    log_probs: tuple[float, ...]
    draft_log_probs: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows that were read: their keys and values, and the branches of all their trees."""

    key_values: KeyValues
    branches: list[Branch]


def read_trees(model: Llama, trees: Sequence[Tree], draft: Draft, batch_tokens: int) -> Iterator[Batch]:
    """Read the trees in batches of about that many tokens, nearly in their order: whole documents are done early."""
    for start in range(0, len(trees), LOOK_AHEAD):
        by_length: dict[int, list[Tree]] = defaultdict(list)
        for tree in trees[start : start + LOOK_AHEAD]:
            length = _row_length(tree, draft)
            by_length[length] += _cut(tree, draft, length)
        for length, pieces in sorted(by_length.items()):
            rows = pack_best_fit([_size(piece, draft) for piece in pieces], length)
            count = max(1, batch_tokens // length)
            for first in range(0, len(rows), count):
                yield _read_rows(model, [[pieces[n] for n in row] for row in rows[first : first + count]], draft)


def _row_length(tree: Tree, draft: Draft) -> int:
    """A power of two: room for the context with each of its questions, and for as much of questions as of context."""
    question = max(len(ids) + len(draft.behind(tree.context, ids)) for ids in tree.questions)
    needed = len(tree.context) + max(question, len(tree.context))
    return max(ROW, power_of_two(needed))


def _cut(tree: Tree, draft: Draft, length: int) -> Iterator[Tree]:
    """The tree in pieces that fit a row: a context with too many questions is read again."""
    room = length - len(tree.context)
    first, used = 0, 0
    for place, question in enumerate(tree.questions):
        size = len(question) + len(draft.behind(tree.context, question))
        if used + size > room:
            yield Tree(tree.context, tree.questions[first:place], tree.numbers[first:place])
            first, used = place, 0
        used += size
    yield Tree(tree.context, tree.questions[first:], tree.numbers[first:])


def _size(tree: Tree, draft: Draft) -> int:
    return len(tree.context) + sum(len(ids) + len(draft.behind(tree.context, ids)) for ids in tree.questions)


def _read_rows(model: Llama, rows: Sequence[Sequence[Tree]], draft: Draft) -> Batch:
    longest = max(sum(_size(tree, draft) for tree in row) for row in rows)
    layout = _Layout(power_of_two(len(rows)), max(SHORTEST_ROW, power_of_two(longest)))
    placed = [branch for number, row in enumerate(rows) for branch in layout.add_row(number, row, draft)]
    key_values, *found = _prefill(model, *layout.arrays())
    tokens, log_probs, draft_log_probs = (np.asarray(x).tolist() for x in found)
    branches, asked = [], 0
    for branch, expected in placed:
        places = slice(asked, asked + len(expected))
        asked += len(expected)
        agreed = next((n for n, token in enumerate(tokens[places]) if token != expected[n]), len(expected))
        branches.append(
            dataclasses.replace(
                branch,
                tokens=tuple(tokens[places][: agreed + 1]),
                log_probs=tuple(log_probs[places][: agreed + 1]),
                draft_log_probs=tuple(draft_log_probs[places]),
            )
        )
    return Batch(key_values, branches)


class _Layout:
    """The arrays of a batch as they are filled, tree by tree."""

    def __init__(self, rows: int, length: int):
        # tokens, positions, trees and branches; padding is a tree of its own.
        self._fields = np.zeros((4, rows, length), np.int32)
        self._places: list[int] = []
        self._expected: list[int] = []

    def add_row(self, row: int, trees: Sequence[Tree], draft: Draft) -> Iterator[tuple[Branch, Ids]]:
        """Each question's branch, as far as it is known, with the tokens that are expected behind it."""
        end = 0
        for number, tree in enumerate(trees, 1):
            context_start, length = end, len(tree.context)
            end = self._add(row, end, tree.context, 0, number, 0)
            for branch, (name, question) in enumerate(zip(tree.numbers, tree.questions, strict=True), 1):
                behind = draft.behind(tree.context, question)
                start, end = end, self._add(row, end, question + behind, length, number, branch)
                expected = (*draft.tokens, draft.eos_id)[: len(behind) + 1]
                last = row * self._fields.shape[2] + start + len(question) - 1
                self._places += range(last, last + len(expected))
                self._expected += expected
                yield Branch(name, row, context_start, tree.context, start, question, (), (), ()), expected

    def _add(self, row: int, start: int, ids: Ids, position: int, tree: int, branch: int) -> int:
        end = start + len(ids)
        positions = np.arange(position, position + len(ids))
        self._fields[:, row, start:end] = np.asarray(ids), positions, np.full(len(ids), tree), np.full(len(ids), branch)
        return end

    def arrays(self) -> tuple[jax.Array, ...]:
        """What `_prefill` takes; there are as many places as tokens, of which the first are used."""
        padding = np.zeros(self._fields[0].size - len(self._places) + PLACES, np.int32)
        places = np.concatenate([np.asarray(self._places, np.int32), padding])
        expected = np.concatenate([np.asarray(self._expected, np.int32), padding])
        chunks = np.int32(-(-len(self._places) // PLACES))
        return tuple(jnp.asarray(x) for x in (*self._fields, places, expected, chunks))


@jax.jit
def _prefill(
    model: Llama,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    trees_BT: jax.Array,
    branches_BT: jax.Array,
    places_M: jax.Array,
    expected_M: jax.Array,
    chunks: jax.Array,
) -> tuple[KeyValues, jax.Array, jax.Array, jax.Array]:
    """Keys and values of the rows; at each place the likeliest next token, its log-probability and the expected one's.

    Only the places of the first `chunks` times PLACES are projected to the vocabulary.
    """
    hidden_BTD, key_values = model.read(tokens_BT, positions_BT, trees_BT, branches_BT)
    hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])

    def project(chunk: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        first = chunk * PLACES
        places, expected = (jax.lax.dynamic_slice_in_dim(x, first, PLACES) for x in (places_M, expected_M))
        logits_NV = model.logits(hidden_ND[places])
        expected_log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits_NV), expected[:, None], axis=-1)[:, 0]
        new = *greedy(logits_NV), expected_log_probs
        return tuple(jax.lax.dynamic_update_slice_in_dim(x, y, first, 0) for x, y in zip(found, new, strict=True))

    nothing = jnp.zeros_like(expected_M), *(jnp.zeros(expected_M.shape, jnp.float32) for _ in range(2))
    return key_values, *jax.lax.fori_loop(0, chunks, project, nothing)


def greedy(logits_NV: jax.Array, allowed_NV: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The likeliest next tokens, of those allowed, and their log-probabilities among all."""
    candidates_NV = logits_NV if allowed_NV is None else jnp.where(allowed_NV, logits_NV, -jnp.inf)
    tokens_N = jnp.argmax(candidates_NV, axis=-1).astype(jnp.int32)
    return tokens_N, jnp.max(candidates_NV, axis=-1) - jax.nn.logsumexp(logits_NV, axis=-1)


def power_of_two(number: int) -> int:
    """The smallest that is not less."""
    return 1 << (number - 1).bit_length()
