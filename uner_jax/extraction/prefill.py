"""Reading passages with all their questions: trees packed into rows, a few rows at a time.

A tree is a passage's context, read once, with a branch for each of its questions. What all contexts begin with, the
root, is read once a row. Behind every question stands a draft, the answer that most questions have (`[]`): where
greedy decoding writes just that, the question is answered without a step of decoding.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile

import jax
import jax.numpy as jnp
import numpy as np

from uner_jax.data.packing import pack_best_fit
from uner_jax.model.attention import ROOT
from uner_jax.model.cache import KeyValues
from uner_jax.model.llama import Llama
from uner_jax.model.stages import Stages

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
    """A question that was read: where it and its context behind the root begin in a row, and what comes after it.

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
    """Rows that were read: their keys and values, the length of the root, and the branches of all their trees."""

    key_values: list[KeyValues]
    root: int
    branches: list[Branch]


def read_trees(stages: Stages, trees: Sequence[Tree], draft: Draft, batch_tokens: int) -> Iterator[Batch]:
    """Read the trees in batches of about that many tokens, nearly in their order: whole documents are done early."""
    root = trees[0].context[: min(ROOT, alike([tree.context for tree in trees]))]
    for start in range(0, len(trees), LOOK_AHEAD):
        by_length: dict[int, list[Tree]] = defaultdict(list)
        for tree in trees[start : start + LOOK_AHEAD]:
            length = _row_length(tree, draft)
            by_length[length] += _cut(tree, draft, length)
        for length, pieces in sorted(by_length.items()):
            rows = pack_best_fit([_size(piece, root, draft) for piece in pieces], length - len(root))
            count = max(1, batch_tokens // length)
            for first in range(0, len(rows), count):
                yield _read_rows(stages, [[pieces[n] for n in row] for row in rows[first : first + count]], root, draft)


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


def _size(tree: Tree, root: Ids, draft: Draft) -> int:
    """The number of a tree's tokens behind the root."""
    branches = sum(len(ids) + len(draft.behind(tree.context, ids)) for ids in tree.questions)
    return len(tree.context) - len(root) + branches


def _read_rows(stages: Stages, rows: Sequence[Sequence[Tree]], root: Ids, draft: Draft) -> Batch:
    longest = len(root) + max(sum(_size(tree, root, draft) for tree in row) for row in rows)
    layout = _Layout(power_of_two(len(rows)), max(SHORTEST_ROW, power_of_two(longest)), root)
    placed = [branch for number, row in enumerate(rows) for branch in layout.add_row(number, row, draft)]
    hidden_BTD, key_values = stages.read(*layout.rows())
    found = _project(stages.ends, hidden_BTD, *layout.asked())
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
    return Batch(key_values, len(root), branches)


class _Layout:
    """The arrays of a batch as they are filled, tree by tree."""

    def __init__(self, rows: int, length: int, root: Ids):
        self._root = root
        # tokens, positions, trees and branches; the root is tree 0, and what is left over counts as of it.
        self._fields = np.zeros((4, rows, length), np.int32)
        self._places: list[int] = []
        self._expected: list[int] = []

    def add_row(self, row: int, trees: Sequence[Tree], draft: Draft) -> Iterator[tuple[Branch, Ids]]:
        """Each question's branch, as far as it is known, with the tokens that are expected behind it."""
        known = len(self._root)
        end = self._add(row, 0, self._root, 0, 0, 0)
        for number, tree in enumerate(trees, 1):
            context_start, length = end, len(tree.context)
            end = self._add(row, end, tree.context[known:], known, number, 0)
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

    def rows(self) -> list[jax.Array]:
        """What `Stages.read` takes."""
        return [jnp.asarray(field) for field in self._fields]

    def asked(self) -> tuple[jax.Array, jax.Array, np.int32]:
        """What `_project` takes; there are as many places as tokens, of which the first are used."""
        padding = np.zeros(self._fields[0].size - len(self._places) + PLACES, np.int32)
        places = np.concatenate([np.asarray(self._places, np.int32), padding])
        expected = np.concatenate([np.asarray(self._expected, np.int32), padding])
        return jnp.asarray(places), jnp.asarray(expected), np.int32(-(-len(self._places) // PLACES))


@jax.jit
def _project(
    ends: Llama, x_BTD: jax.Array, places_M: jax.Array, expected_M: jax.Array, chunks: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """At each place the likeliest next token, its log-probability and the expected one's.

    `x_BTD` is what the last layer gave. Only the places of the first `chunks` times PLACES are projected to the
    vocabulary.
    """
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])

    def project(chunk: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        first = chunk * PLACES
        places, expected = (jax.lax.dynamic_slice_in_dim(x, first, PLACES) for x in (places_M, expected_M))
        logits_NV = ends.logits(ends.norm(x_ND[places]))
        expected_log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits_NV), expected[:, None], axis=-1)[:, 0]
        new = *greedy(logits_NV), expected_log_probs
        return tuple(jax.lax.dynamic_update_slice_in_dim(x, y, first, 0) for x, y in zip(found, new, strict=True))

    nothing = jnp.zeros_like(expected_M), *(jnp.zeros(expected_M.shape, jnp.float32) for _ in range(2))
    return jax.lax.fori_loop(0, chunks, project, nothing)


def greedy(logits_NV: jax.Array, allowed_NV: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The likeliest next tokens, of those allowed, and their log-probabilities among all."""
    candidates_NV = logits_NV if allowed_NV is None else jnp.where(allowed_NV, logits_NV, -jnp.inf)
    tokens_N = jnp.argmax(candidates_NV, axis=-1).astype(jnp.int32)
    return tokens_N, jnp.max(candidates_NV, axis=-1) - jax.nn.logsumexp(logits_NV, axis=-1)


def alike(texts: Sequence[Ids]) -> int:
    """How many ids all of them begin with."""
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*texts, strict=False)))


def power_of_two(number: int) -> int:
    """The smallest that is not less."""
    return 1 << (number - 1).bit_length()
