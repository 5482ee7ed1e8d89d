"""Greedy answers to many questions on many contexts: what is shared is computed once.

Contexts are read with all their questions (`prefill`), which answers most of them; the rest are written in a pool
that is kept full (`pool`). The answers are those of greedy decoding of one prompt at a time.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from uner_jax.extraction.pool import Answer, DecodePool, Written
from uner_jax.extraction.prefill import Batch, Draft, Ids, Tree, alike, power_of_two, read_trees
from uner_jax.model.llama import Llama
from uner_jax.model.stages import Stages
from uner_jax.records import InputError

# R rows of the pool, W words of 32 bits


@dataclasses.dataclass(frozen=True)
class Request:
    """The ids of a context and of a question on it, which ends where the answer begins."""

    context: Ids
    question: Ids


@dataclasses.dataclass(frozen=True)
class Generation:
    """An answer's ids without the end of turn, the log-probability of each, and whether the turn ended.

    `end_log_prob` is that of the end of turn; an answer that was cut at the limit has `ended` False.
    `draft_log_prob` is that of the engine's draft with its end of turn, whatever was answered.
    """

    tokens: Ids
    log_probs: tuple[float, ...]
    ended: bool
    end_log_prob: float = 0.0
    draft_log_prob: float = 0.0


class Constraint(Protocol):
    """What may be written next, as an answer is being written."""

    def allowed(self) -> np.ndarray: ...  # noqa: D102 - W words, whose bits say what may come
    def written(self, token: int) -> None: ...  # noqa: D102


class Engine:
    """Answers requests with a model.

    `batch_size` answers are written at a time, of at most `max_new_tokens` tokens each; contexts and questions are
    read `batch_tokens` tokens at a time. `draft` are the ids of the answer that most questions have. With `copied` a
    step writes up to so many more tokens of each answer, where they are copied from its context: fewer steps, each of
    more work, which is less time for few answers. With a mesh both sizes are those of one copy of the model.
    """

    def __init__(
        self,
        model: Llama,
        eos_id: int,
        batch_size: int = 32,
        max_new_tokens: int = 256,
        draft: Sequence[int] = (),
        batch_tokens: int = 2048,
        mesh: Mesh | None = None,
        copied: int = 0,
    ):
        if copied < 0 or min(batch_size, max_new_tokens, batch_tokens) < 1:
            raise InputError(
                f"batch size {batch_size}, new tokens {max_new_tokens} and batch tokens {batch_tokens} "
                f"must be at least 1, and copied tokens {copied} at least 0"
            )
        self._stages = Stages(model)
        self._mesh = mesh
        copies = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1
        self._batch_size = batch_size * copies
        self._batch_tokens = batch_tokens * copies
        self._max_new_tokens = max_new_tokens
        self._copied = copied
        self._draft = Draft(tuple(draft), eos_id, model.config.longest_row)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
        """Yield (place in `requests`, answer) as the answers come.

        An answer does not depend on the other requests. Raises InputError if a prompt leaves no room
        for an answer within the model's `longest_row`.
        """
        yield from self._answered(requests, self._write_freely)

    def _write_freely(self, pool: DecodePool) -> list[Written]:
        return pool.write_copying(self._copied) if self._copied else pool.write()

    def generate_within(
        self, requests: Sequence[Request], constraints: Sequence[Constraint]
    ) -> Iterator[tuple[int, Generation]]:
        """Like `generate`, each answer within its constraint: of the tokens that may come next, the likeliest."""

        def write(pool: DecodePool) -> Iterator[Written]:
            allowed = [constraints[answer.branch.number].allowed() for answer in pool.answers]
            for answer, ((token, log_prob),) in pool.write(np.stack(allowed)):
                constraints[answer.branch.number].written(token)
                yield answer, [(token, log_prob)]

        yield from self._answered(requests, write, begun=False)

    def _answered(
        self, requests: Sequence[Request], write: Callable[[DecodePool], Iterable[Written]], begun: bool = True
    ) -> Iterator[tuple[int, Generation]]:
        """The loop: read while the pool has room, write, let go of what has ended.

        `begun` answers have what is known of them when their questions are read.
        """
        trees = self._trees(requests)
        if not trees:
            return
        batches = read_trees(self._stages, trees, self._draft, self._batch_tokens)
        rows = min(self._batch_size, power_of_two(len(requests)))
        pool = DecodePool(self._stages, rows, max(len(tree.context) for tree in trees))
        waiting: list[tuple[Batch, Answer]] = []
        while True:
            with self._on_mesh():
                over = self._read(batches, pool, waiting, begun)
                pool.admit(waiting)
            yield from over
            if not pool.answers:
                return
            with self._on_mesh():
                over = self._write(pool, write, more=bool(waiting))
            yield from over

    def _read(
        self, batches: Iterator[Batch], pool: DecodePool, waiting: list[tuple[Batch, Answer]], begun: bool
    ) -> list[tuple[int, Generation]]:
        """Read until the pool's room is spoken for; gives what needs no writing."""
        over = []
        while len(pool.answers) + len(waiting) < pool.rows and (batch := next(batches, None)):
            for branch in batch.branches:
                known = (list(branch.tokens), list(branch.log_probs)) if begun else ([], [])
                answer = Answer(branch, *known)
                if self._over(answer):
                    over.append((branch.number, self._generation(answer)))
                else:
                    waiting.append((batch, answer))
        return over

    def _write(
        self, pool: DecodePool, write: Callable[[DecodePool], Iterable[Written]], more: bool
    ) -> list[tuple[int, Generation]]:
        """Write a little of each answer in the pool; gives those that have ended."""
        # there were more to come, had there been any.
        if len(pool.answers) < pool.rows and not more:
            pool.shrink()
        over = []
        for answer, new in write(pool):
            for token, log_prob in new:
                answer.tokens.append(token)
                answer.log_probs.append(log_prob)
                if self._over(answer):
                    pool.release(answer)
                    over.append((answer.branch.number, self._generation(answer)))
                    break
        return over

    def _on_mesh(self) -> AbstractContextManager:
        return jax.set_mesh(self._mesh) if self._mesh else nullcontext()

    def fits(self, request: Request) -> bool:
        """Whether the model has room for the prompt and an answer."""
        return len(request.context) + len(request.question) < self._draft.longest

    def _trees(self, requests: Sequence[Request]) -> list[Tree]:
        """A context with all that is asked of it, each question once a request.

        What its questions begin with alike is read with the context.
        """
        by_context: dict[Ids, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            if not self.fits(request):
                length, longest = len(request.context) + len(request.question), self._draft.longest
                raise InputError(f"a prompt of {length} tokens leaves no room for an answer: the model reads {longest}")
            by_context[request.context].append(place)
        trees = []
        for context, places in by_context.items():
            questions = [requests[place].question for place in places]
            # but for a token of each, behind which its answer stands.
            shared = min(alike(questions), min(map(len, questions)) - 1)
            trunk = context + questions[0][:shared]
            trees.append(Tree(trunk, tuple(question[shared:] for question in questions), tuple(places)))
        return trees

    def _over(self, answer: Answer) -> bool:
        """Whether the answer has ended or is at a limit; what was read of it at once may go beyond."""
        if not answer.tokens:
            return False
        full = len(answer.tokens) >= self._max_new_tokens or answer.position >= self._draft.longest
        return answer.tokens[-1] == self._draft.eos_id or full

    def _generation(self, answer: Answer) -> Generation:
        draft_log_prob = sum(answer.branch.draft_log_probs)
        tokens = tuple(answer.tokens[: self._max_new_tokens])
        log_probs = tuple(answer.log_probs[: self._max_new_tokens])
        if tokens[-1] == self._draft.eos_id:
            return Generation(tokens[:-1], log_probs[:-1], True, log_probs[-1], draft_log_prob)
        return Generation(tokens, log_probs, False, 0.0, draft_log_prob)
