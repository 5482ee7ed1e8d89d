"""The teacher asked through the Batch API, in waves: `--mode batch`, for half the price within a day.

A wave's name is in the store before the server hears of it, and stands in the batch's metadata: after a
kill at any moment the batch is found again by it, and nothing is sent twice.
"""

import asyncio
import dataclasses
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from data_prep.teacher.client import backoff, persist
from data_prep.teacher.cost import Price, actual_cost
from data_prep.teacher.faults import TeacherFault, raise_error_in, status_fault
from data_prep.teacher.job import MalformedReplyError, Reply, read_reply
from data_prep.teacher.run import Asking, Outcome
from data_prep.teacher.store import Wave

# The documented limits of a batch are 50,000 requests and 200 MB (https://platform.openai.com/docs/guides/batch).
MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
# Waves that a request may be in and come back without an answer.
MOST_WAVES = 3
# Seconds without any change after which a batch is stuck: its window has 24 hours.
LONGEST_BATCH = 26 * 3600.0
ENDED = {"completed", "failed", "expired", "cancelled"}
RESULT_FILES = "output_file_id", "error_file_id"
TOO_MUCH_QUEUED = "token_limit_exceeded"
GONE = 404
# Statuses of a call that the server does not have.
NO_SUCH_CALL = 404, 405, 501
OK = 200


class BatchRun:
    """Gets the answers in batches.

    With `wait` it polls every `poll` seconds until all are in the store. Without, it takes in what is ready,
    sends what is not under way, and leaves: the same command later goes on. Passages that are in waves of
    earlier runs belong to those that are asked for.
    """

    def __init__(self, asking: Asking, wait: bool, poll: float):
        self._asking, self._store, self._teacher = asking, asking.store, asking.teacher
        self._wait, self._poll = wait, poll
        self._tries: Counter[str] = Counter()
        self._problems: dict[str, str] = {}
        self._most_requests = MOST_REQUESTS
        self._shown = ""
        self._changed = time.monotonic()
        self._hold = False
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Collect, send and wait, until nothing is left to do."""
        try:
            await self._adopt()
            while True:
                await self._collect()
                await self._send()
                under_way = self._store.waves()
                if not under_way:
                    break
                if not self._wait:
                    waiting = sum(len(self._store.wave_costs(wave.name)) for wave in under_way)
                    self.outcome.left = f"{waiting:,} requests are under way; run the same command later"
                    break
                await asyncio.sleep(self._poll)
        except TeacherFault as fault:
            self.outcome.stopped = str(fault)
        for key in self._store.open_keys(self._asking.passages):
            if key in self._problems:
                self.outcome.fail(self._problems[key])
        return self.outcome

    # ---- before a batch

    async def _adopt(self) -> None:
        """Find the batches of waves that a killed run had begun to send."""
        for wave in self._store.waves():
            if wave.batch is not None:
                continue
            found = await self._find(wave)
            if found is None:
                self._store.end_wave(wave.name, (), ())
            else:
                self._store.name_batch(wave.name, found)

    async def _send(self) -> None:
        """Send what is neither answered nor under way, as far as the budget goes."""
        while not (self._hold and self._store.waves()) and (costs := self._next_wave()):
            price = self._asking.price
            with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
                for key in costs:
                    file.write(self._line(key))
                file.flush()
                uploaded = await self._persist(self._teacher.upload, Path(file.name))
            wave = Wave(secrets.token_hex(16), None, uploaded, self._teacher.server, price.input, price.output)
            self._store.begin_wave(wave, costs)
            await self._create(wave)
            self._tries.update(costs.keys())
            print(f"sent {len(costs):,} requests as a batch", file=sys.stderr, flush=True)

    def _next_wave(self) -> dict[str, float]:
        costs: dict[str, float] = {}
        size, total = 0, 0.0
        for key in self._store.open_keys(self._asking.passages):
            if self._tries[key] >= MOST_WAVES:
                continue
            highest = self._asking.highest_cost(key)
            size += len(self._line(key))
            total += highest
            if self._asking.is_too_much(total):
                if not costs and not self._store.waves():
                    limit = self._asking.max_cost
                    raise TeacherFault("stop", f"--max-cost {limit} USD would be passed by the next request")
                break
            if len(costs) == self._most_requests or size > MOST_BYTES:
                break
            costs[key] = highest
        return costs

    def _line(self, key: str) -> bytes:
        body = self._asking.job.body(self._asking.passages[key])
        line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line).encode() + b"\n"

    async def _create(self, wave: Wave) -> None:
        """Create the batch once: after an attempt that failed on its way the server may have it all the same."""
        for attempt in range(1, self._asking.retries + 2):
            try:
                self._store.name_batch(wave.name, await self._teacher.create_batch(wave.file, wave.name))
                return
            except TeacherFault as fault:
                if fault.verdict == "retry" and (found := await self._find(wave)):
                    self._store.name_batch(wave.name, found)
                    return
                if fault.verdict not in ("retry", "limited") or attempt > self._asking.retries:
                    self._store.end_wave(wave.name, (), ())
                    raise TeacherFault("stop", f"the batch was not taken: {fault}") from None
                await asyncio.sleep(backoff(fault, attempt))

    async def _find(self, wave: Wave) -> str | None:
        """The batch of a wave that the server may have taken."""
        try:
            return await persist(self._asking.retries, self._teacher.find_batch, wave.name, wave.file)
        except TeacherFault as fault:
            if fault.status not in NO_SUCH_CALL:
                raise
            # it keeps no list: the requests may be billed, and count with their highest cost.
            self._store.end_wave(wave.name, (), self._store.wave_costs(wave.name).keys())
            raise TeacherFault(
                "stop", f"whether a batch was taken cannot be known: the server has no list of batches ({fault})"
            ) from None

    # ---- after a batch

    async def _collect(self) -> None:
        """Take in the batches that have ended."""
        states: Counter[str] = Counter()
        for wave in self._store.waves():
            assert wave.batch is not None, "adopted or named before"
            try:
                batch = await self._persist(self._teacher.batch, wave.batch)
            except TeacherFault as fault:
                self._forget(wave, fault)
                continue
            status = str(batch.status)
            states[status] += 1
            if status in ENDED:
                await self._take_in(wave, batch)
        shown = ", ".join(f"{count} {status}" for status, count in sorted(states.items()))
        if shown != self._shown:
            self._shown, self._changed = shown, time.monotonic()
            print(f"batches: {shown or 'none'}", file=sys.stderr, flush=True)
        elif time.monotonic() - self._changed > LONGEST_BATCH:
            raise TeacherFault(
                "stop", f"batches: {shown} for {LONGEST_BATCH / 3600:.0f} hours; ask the server's operator"
            )

    def _forget(self, wave: Wave, fault: TeacherFault) -> None:
        """Give up a batch that its own server no longer has; the fault is raised if it is any other."""
        if fault.status != GONE:
            raise fault
        if wave.server != self._teacher.server:
            sent_to = wave.server or "OpenAI"
            raise TeacherFault(
                "stop", f"batch {wave.batch} was sent to {sent_to}: run with that --base-url to collect it"
            )
        keys = self._store.wave_costs(wave.name).keys()
        self._problems.update(dict.fromkeys(keys, f"the batch is gone: {fault}"))
        self._store.end_wave(wave.name, (), keys)
        print(f"batch {wave.batch}: {fault}; its requests count with their highest cost", file=sys.stderr, flush=True)

    async def _take_in(self, wave: Wave, batch: Any) -> None:
        highest = self._store.wave_costs(wave.name)
        lines, whole = await self._results(batch)
        replies, lost = self._judge(lines, highest)
        if not whole or batch.status == "completed":
            # answered perhaps, and billed, but not to be had: asked again, and its highest cost counts.
            lost |= highest.keys() - {line["custom_id"] for line in lines}
        price = Price(wave.input_price, wave.output_price, "as it was sent")
        paid = [(key, reply, _paid(reply, price, highest[key])) for key, reply in replies.items()]
        self._store.end_wave(wave.name, paid, lost - replies.keys())
        self._hold = False
        print(
            f"batch {batch.id} {batch.status}: {len(replies):,} of {len(highest):,} requests answered",
            file=sys.stderr,
            flush=True,
        )
        if batch.status == "failed":
            self._failed(batch, list(highest))

    def _judge(self, lines: list[dict[str, Any]], highest: dict[str, float]) -> tuple[dict[str, Reply], set[str]]:
        """The replies in the lines of a wave's results, by key, and the keys of replies that cannot be read."""
        replies: dict[str, Reply] = {}
        lost = set()
        for line in lines:
            key = line["custom_id"]
            if key not in highest or key in replies:
                continue
            try:
                reply = _reply(line, self._asking.job.model)
                replies[key] = dataclasses.replace(reply, content=self._teacher.masked(reply.content))
            except MalformedReplyError as error:
                lost.add(key)
                self._problems[key] = str(error)[:300]
            except TeacherFault as fault:
                self._problems[key] = str(fault)[:300]
        return replies, lost

    def _failed(self, batch: Any, keys: list[str]) -> None:
        """The server did not take the file: too much at once, or something that will not mend itself."""
        errors = getattr(getattr(batch, "errors", None), "data", None) or []
        codes = [str(getattr(error, "code", None)) for error in errors]
        messages = [str(getattr(error, "message", None)) for error in errors]
        said = "; ".join(f"{code}: {message}" for code, message in list(zip(codes, messages, strict=True))[:3])
        said = self._teacher.masked(said)[:300] or "without a reason"
        self._problems.update(dict.fromkeys(keys, f"batch failed, {said}"))
        if TOO_MUCH_QUEUED in codes:
            self._hold = True
            if len(keys) > 1:
                self._most_requests = max(1, len(keys) // 2)
                self._tries.subtract(keys)

    async def _results(self, batch: Any) -> tuple[list[dict[str, Any]], bool]:
        """The lines of a batch's files, and whether all came; downloaded again while some are cut off or missing."""
        files = [file for name in RESULT_FILES if (file := getattr(batch, name, None))]
        expected = _ended_requests(batch) if batch.status == "completed" else 0
        lines: list[dict[str, Any]] = []
        for attempt in range(1, self._asking.retries + 2):
            texts = [await self._download(batch, file) for file in files]
            lines, broken = _parse_lines("\n".join(filter(None, texts)))
            if None in texts:
                break
            if not broken and len(lines) >= expected:
                return lines, True
            print(f"batch {batch.id}: its results came incomplete, {broken} lines unreadable", file=sys.stderr)
            await asyncio.sleep(backoff(TeacherFault("retry", "incomplete"), attempt))
        return lines, False

    async def _download(self, batch: Any, file: str) -> str | None:
        """The text of a file of results; None if the server no longer has it."""
        try:
            return await self._persist(self._teacher.download, file)
        except TeacherFault as fault:
            if fault.status != GONE:
                raise
            print(f"batch {batch.id}: a file of its results is gone: {fault}", file=sys.stderr, flush=True)
            return None

    async def _persist(self, call: Any, argument: Any) -> Any:
        return await persist(self._asking.retries, call, argument)


def _ended_requests(batch: Any) -> int:
    """How many requests the server says that it has done, well or not; 0 if it does not say."""
    counts = getattr(batch, "request_counts", None)
    done = [getattr(counts, name, None) for name in ("completed", "failed")]
    return sum(count for count in done if isinstance(count, int))


def _parse_lines(text: str) -> tuple[list[dict[str, Any]], int]:
    """The lines that are results, and how many are not."""
    lines, broken = [], 0
    # not splitlines: a line separator may stand inside a JSON string.
    for raw in filter(str.strip, text.split("\n")):
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            broken += 1
            continue
        if isinstance(line, dict) and isinstance(line.get("custom_id"), str):
            lines.append(line)
        else:
            broken += 1
    return lines, broken


def _reply(line: dict[str, Any], model: str) -> Reply:
    """The reply in a line of a result file; raises the fault that it tells of."""
    response, error = line.get("response"), line.get("error")
    if not isinstance(response, dict):
        raise TeacherFault("retry", f"in the batch: {json.dumps(error)}")
    status, body = str(response.get("status_code")), response.get("body")
    if isinstance(body, str):
        # some servers put the body in as text.
        body = _json_or_none(body)
    if status.isdecimal() and int(status) != OK:
        fault = status_fault(int(status), body, {})
        if fault.verdict == "refused":
            return Reply(str(fault)[:300], "refused", model, 0, 0)
        raise fault
    raise_error_in(body)
    return read_reply(body)


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _paid(reply: Reply, price: Price, highest: float) -> float:
    return 0.0 if reply.finish_reason == "refused" else actual_cost(reply, price, highest)
