"""The teacher asked one passage a request, many at once: `--mode async`."""

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_prep.teacher.client import LONGEST_WAIT, Teacher, backoff
from data_prep.teacher.cost import Price, actual_cost, highest_cost
from data_prep.teacher.faults import TeacherFault, exhausted_for
from data_prep.teacher.job import Job, Reply
from data_prep.teacher.pace import Pace
from data_prep.teacher.store import AnswerStore, Ticket
from uner_jax.command import Progress

# So many passages given up in a row, and none answered between them: it is not the passages.
HOPELESS = 20
# Seconds of waiting that the user is told of.
WORTH_SAYING = 10.0


@dataclass
class Outcome:
    """How a run ended: what stopped it, what it left under way on purpose, and why passages were given up."""

    stopped: str | None = None
    left: str | None = None
    failures: Counter[str] = field(default_factory=Counter)

    def fail(self, message: str) -> None:
        """Count a passage that was given up."""
        self.failures[message] += 1


class LiveRun:
    """Asks for the answers to `passages` (by key) until all are in the store, or something stops it.

    `max_cost` bounds what the store holds in USD: a request is sent only if the highest cost of all that is
    under way stays within it.
    """

    def __init__(
        self,
        job: Job,
        passages: dict[str, str],
        teacher: Teacher,
        store: AnswerStore,
        price: Price,
        max_cost: float | None,
        concurrency: int,
        retries: int,
    ):
        self._job, self._passages, self._teacher, self._store, self._price = job, passages, teacher, store, price
        self._max_cost, self._retries = max_cost, retries
        self._concurrency = max(1, min(concurrency, len(passages)))
        self._pace = Pace(concurrency)
        self._settled = asyncio.Condition()
        self._stopping = asyncio.Event()
        self._under_way = 0
        self._hopeless = 0
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Ask for all of them; when something stops the run, what is under way is still waited for: it is paid."""
        todo = iter(self._passages.items())
        with Progress("asking", len(self._passages), "passages") as shown:
            asking = asyncio.gather(*(self._ask_next(todo, shown) for _ in range(self._concurrency)))
            stopping = asyncio.create_task(self._stopping.wait())
            waited: set[asyncio.Future[Any]] = {asking, stopping}
            try:
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done():
                    await self._settle()
            finally:
                stopping.cancel()
                # what only waits for a slot or for the next attempt; a fault of ours is raised here.
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking
        return self.outcome

    async def _settle(self) -> None:
        async with self._settled:
            await self._settled.wait_for(lambda: self._under_way == 0)

    async def _ask_next(self, todo: Iterator[tuple[str, str]], shown: Progress) -> None:
        for key, passage in todo:
            if self.outcome.stopped:
                return
            try:
                await self._ask(key, passage)
                self._hopeless = 0
            except TeacherFault as fault:
                self._give_up(fault)
            shown.advance(1, f"{self._store.cost():.4f} USD, {self._pace.slots} at once")

    def _give_up(self, fault: TeacherFault) -> None:
        if fault.verdict == "stop":
            self._stop(str(fault))
            return
        self.outcome.fail(str(fault))
        self._hopeless += 1
        if self._hopeless >= HOPELESS:
            self._stop(f"{HOPELESS} passages in a row were not answered, the last one: {fault}")

    def _stop(self, why: str) -> None:
        self.outcome.stopped = self.outcome.stopped or why
        self._stopping.set()

    async def _ask(self, key: str, passage: str) -> None:
        highest = highest_cost(self._job, passage, self._price)
        for attempt in range(1, self._retries + 2):
            async with self._pace.slot() as started:
                ticket = await self._reserve(key, highest)
                try:
                    reply, headers = await self._teacher.complete(self._job.body(passage), key)
                except TeacherFault as fault:
                    if fault.verdict == "refused":
                        refusal = Reply(str(fault), "refused", self._job.model, 0, 0)
                        self._store.answered(ticket, refusal, 0.0)
                        return
                    if not fault.maybe_billed:
                        self._store.not_billed(ticket)
                    if fault.verdict in ("failed", "stop") or attempt > self._retries or self.outcome.stopped:
                        raise
                    wait = backoff(fault, attempt)
                    if fault.verdict == "limited":
                        self._pace.slow_down(started)
                        self._pace.pause(wait)
                    if wait >= WORTH_SAYING:
                        print(f"waiting {wait:.0f} s: {fault}", file=sys.stderr, flush=True)
                else:
                    self._store.answered(ticket, reply, actual_cost(reply, self._price, highest))
                    self._adapt(headers)
                    return
                finally:
                    await self._release()
            # outside the slot: others go on meanwhile.
            await asyncio.sleep(wait)

    def _adapt(self, headers: Mapping[str, str]) -> None:
        self._pace.succeeded()
        if wait := exhausted_for(headers):
            # when it lies or the day is over, the next reply says more.
            self._pace.pause(min(wait, LONGEST_WAIT))

    async def _reserve(self, key: str, highest: float) -> Ticket:
        """Write the request down as sent, as soon as the budget has room for its highest cost."""
        async with self._settled:
            if self.outcome.stopped:
                raise TeacherFault("stop", self.outcome.stopped)
            while self._max_cost is not None and self._store.cost() + highest > self._max_cost:
                if not self._under_way:
                    raise TeacherFault("stop", f"--max-cost {self._max_cost} USD would be passed by the next request")
                await self._settled.wait()
            self._under_way += 1
            return self._store.sending(key, highest)

    async def _release(self) -> None:
        async with self._settled:
            self._under_way -= 1
            self._settled.notify_all()
