"""The teacher asked one passage a request, many at once: `--mode async`."""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.teacher.client import LONGEST_WAIT, backoff
from data_prep.teacher.cost import actual_cost
from data_prep.teacher.faults import TeacherFault, exhausted_for
from data_prep.teacher.job import Reply
from data_prep.teacher.pace import Pace
from data_prep.teacher.run import Asking, Outcome
from data_prep.teacher.store import Ticket
from uner_jax.command import Progress

# So many passages given up in a row, and none answered between them: it is not the passages.
HOPELESS = 20
# Seconds of waiting that the user is told of.
WORTH_SAYING = 10.0


class LiveRun:
    """Asks, `concurrency` requests at a time, until all answers are in the store or something stops it."""

    def __init__(self, asking: Asking, concurrency: int):
        self._asking, self._store = asking, asking.store
        self._askers = max(1, min(concurrency, len(asking.passages)))
        self._pace = Pace(concurrency)
        self._settled = asyncio.Condition()
        self._stopping = asyncio.Event()
        self._under_way = 0
        self._hopeless = 0
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Ask for all of them; when something stops the run, what is under way is still waited for: it is paid."""
        todo = iter(self._asking.passages.items())
        with Progress("asking", len(self._asking.passages), "passages") as shown:
            tasks = [asyncio.create_task(self._ask_next(todo, shown)) for _ in range(self._askers)]
            ended = asyncio.gather(*tasks, return_exceptions=True)
            stopping = asyncio.create_task(self._stopping.wait())
            waited: set[asyncio.Future[Any]] = {ended, stopping}
            try:
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if self.outcome.stopped:
                    await self._settle()
            finally:
                # what is left waits for a slot, for the budget or for its next attempt.
                for task in (stopping, *tasks):
                    task.cancel()
            for result in await ended:
                if isinstance(result, Exception):
                    raise result
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
            except Exception as error:
                # a fault of ours, or of the disk: what the others have under way is worth waiting for.
                self._stop(str(error))
                raise
            shown.advance(1, f"{self._store.cost():.4f} USD, {self._pace.slots} at once")

    def _give_up(self, fault: TeacherFault) -> None:
        if self.outcome.stopped:
            return
        self.outcome.fail(str(fault))
        self._hopeless += 1
        if self._hopeless >= HOPELESS:
            self._stop(f"{HOPELESS} passages in a row were not answered, the last one: {fault}")

    def _stop(self, why: str) -> None:
        self.outcome.stopped = self.outcome.stopped or why
        self._stopping.set()

    async def _ask(self, key: str, passage: str) -> None:
        for attempt in range(1, self._asking.retries + 2):
            async with self._pace.slot() as started:
                ticket = await self._reserve(key)
                try:
                    reply, headers = await self._asking.teacher.complete(self._asking.job.body(passage), key)
                except TeacherFault as fault:
                    wait = self._judge(fault, ticket, attempt)
                    if wait is None:
                        return
                    if fault.verdict == "limited":
                        self._pace.slow_down(started)
                        self._pace.pause(wait)
                else:
                    self._store.answered(ticket, reply, actual_cost(reply, self._asking.price, ticket.cost))
                    self._adapt(headers)
                    return
                finally:
                    await self._release()
            # outside the slot: others go on meanwhile.
            await asyncio.sleep(wait)

    def _judge(self, fault: TeacherFault, ticket: Ticket, attempt: int) -> float | None:
        """Book a request that brought no answer: seconds until the next attempt, None if the fault is the answer.

        Raises the fault if there is no next attempt. Before anybody else gets on: a run that is to stop stops here.
        """
        if fault.verdict == "refused":
            refusal = Reply(str(fault), "refused", self._asking.job.model, 0, 0)
            self._store.answered(ticket, refusal, 0.0)
            return None
        if not fault.maybe_billed:
            self._store.not_billed(ticket)
        try:
            if fault.verdict in ("failed", "stop") or attempt > self._asking.retries or self.outcome.stopped:
                raise fault
            wait = backoff(fault, attempt)
        except TeacherFault as final:
            if final.verdict == "stop":
                self._stop(str(final))
            raise
        if wait >= WORTH_SAYING:
            print(f"waiting {wait:.0f} s: {fault}", file=sys.stderr, flush=True)
        return wait

    def _adapt(self, headers: Mapping[str, str]) -> None:
        self._pace.succeeded()
        if wait := exhausted_for(headers):
            # when it lies or the day is over, the next reply says more.
            self._pace.pause(min(wait, LONGEST_WAIT))

    async def _reserve(self, key: str) -> Ticket:
        """Write the request down as sent, as soon as the budget has room for its highest cost."""
        highest = self._asking.highest_cost(key)
        async with self._settled:
            while not self.outcome.stopped and self._asking.is_too_much(highest):
                if not self._under_way:
                    self._stop(f"--max-cost {self._asking.max_cost} USD would be passed by the next request")
                    break
                await self._settled.wait()
            if self.outcome.stopped:
                raise TeacherFault("stop", self.outcome.stopped)
            self._under_way += 1
            return self._store.sending(key, highest)

    async def _release(self) -> None:
        async with self._settled:
            self._under_way -= 1
            self._settled.notify_all()
