"""The teacher's server: one attempt at each call of an OpenAI-compatible API, and a fault that says why it failed."""

import asyncio
import dataclasses
import json
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import openai

from data_prep.teacher.faults import TeacherFault, fault_of, raise_error_in
from data_prep.teacher.job import MalformedReplyError, Reply, read_reply
from data_prep.teacher.transport import bound_reply
from uner_jax.records import InputError

T = TypeVar("T")

KEY_VARIABLE = "OPENAI_API_KEY"
# servers on one's own machine ask for no key, but the client wants one.
NO_KEY = "none"
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
# who is asked to wait longer than this comes back another day.
PATIENCE = 900.0
LONGEST_MESSAGE = 300
# a batch's file may have 200 MB.
FILE_SECONDS = 1800.0
# where a batch carries the name that we gave it.
WAVE_MARK = "uner_wave"


class Teacher:
    """The server that answers; the key comes from the environment, and never stands in a message or an answer.

    `server` is its URL, empty for OpenAI's. Use it as an asynchronous context manager.
    """

    def __init__(self, base_url: str | None, timeout: float):
        key = os.environ.get(KEY_VARIABLE, "").strip()
        own_server = base_url or os.environ.get("OPENAI_BASE_URL")
        if not key and not own_server:
            raise InputError(f"set {KEY_VARIABLE} in the environment, or name a server of your own with --base-url")
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"{KEY_VARIABLE} holds a character that no key has, such as a line break; set it anew")
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise InputError(f"--base-url {base_url!r}: expected a URL such as http://127.0.0.1:8000/v1")
        self.server = str(own_server or "")
        self._key = key
        self._timeout = timeout
        self._client = openai.AsyncOpenAI(
            api_key=key or NO_KEY,
            base_url=base_url or None,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [bound_reply]}),
        )

    async def __aenter__(self) -> "Teacher":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def complete(self, body: dict[str, Any], key: str) -> tuple[Reply, Mapping[str, str]]:
        """One attempt at a chat completion: the reply, and the headers that came with it.

        `key` goes along as Idempotency-Key: a server that knows it bills a repeated request once. Raises TeacherFault.
        """

        async def send() -> tuple[Reply, Mapping[str, str]]:
            known = {name: body[name] for name in ("model", "messages")}
            rest = {name: value for name, value in body.items() if name not in known}
            raw = await self._client.chat.completions.with_raw_response.create(
                **known, extra_body=rest, extra_headers={"Idempotency-Key": key}
            )
            body_of_reply = _json(raw.text)
            raise_error_in(body_of_reply)
            reply = read_reply(body_of_reply)
            return dataclasses.replace(reply, content=self.masked(reply.content)), raw.headers

        return await self._once(send)

    async def upload(self, path: Path) -> str:
        """Upload the requests of a batch; the id of the file. Raises TeacherFault, as all below."""
        long = self._client.with_options(timeout=FILE_SECONDS)
        file = await self._once(lambda: long.files.create(file=path, purpose="batch"), FILE_SECONDS)
        return _identifier(file)

    async def create_batch(self, file: str, wave: str) -> str:
        """Begin a batch of an uploaded file, marked with the wave's name; the id of the batch."""
        batch = await self._once(
            lambda: self._client.batches.create(
                input_file_id=file,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={WAVE_MARK: wave},
            )
        )
        return _identifier(batch)

    async def batch(self, batch: str) -> Any:
        """A batch as it is now; it has a `status`."""

        async def retrieve() -> Any:
            found = await self._client.batches.retrieve(batch)
            if not isinstance(getattr(found, "status", None), str):
                raise MalformedReplyError(f"batch {batch} has no status: {found}")
            return found

        return await self._once(retrieve)

    async def find_batch(self, wave: str, file: str) -> str | None:
        """The id of the batch that is marked with the wave's name or made of the file; None if there is none."""

        async def search() -> str | None:
            async for batch in self._client.batches.list(limit=100):
                marks = getattr(batch, "metadata", None) or {}
                if marks.get(WAVE_MARK) == wave or getattr(batch, "input_file_id", None) == file:
                    return _identifier(batch)
            return None

        return await self._once(search)

    async def download(self, file: str) -> str:
        """The text of a file."""

        long = self._client.with_options(timeout=FILE_SECONDS)

        async def read() -> str:
            return self.masked((await long.files.content(file)).text)

        return await self._once(read, FILE_SECONDS)

    async def _once(self, call: Callable[[], Awaitable[T]], seconds: float | None = None) -> T:
        try:
            # the client's own limit is one of silence: a server that drips would hold it for ever.
            return await asyncio.wait_for(call(), seconds or self._timeout)
        except (openai.OpenAIError, MalformedReplyError, TimeoutError, ValueError, TeacherFault) as error:
            fault = error if isinstance(error, TeacherFault) else fault_of(error)
            # masked before it is cut: the rest of a key would be one too.
            raise fault.said_as(self.masked(str(fault))[:LONGEST_MESSAGE]) from None

    def masked(self, text: str) -> str:
        """The text without the key: some servers repeat it."""
        return text.replace(self._key, "***") if self._key else text


def backoff(fault: TeacherFault, attempt: int) -> float:
    """Seconds to wait before the next attempt, of which `attempt` (from 1) failed.

    What the server asks for, else twice as long each time, with a random part so that not all come back at
    once. Raises a fault that stops the run if the server asks for more than PATIENCE.
    """
    if fault.wait is not None and fault.wait > PATIENCE:
        raise TeacherFault(
            "stop", f"{fault}; the server asks to wait {fault.wait:,.0f} s: run the same command again then"
        )
    if fault.wait is not None:
        return fault.wait + random.uniform(0, 0.1)
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt - 1, 16)) * random.uniform(0.5, 1.0)


async def persist(retries: int, call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Await `call(*arguments)` again while its fault is one to retry, `retries` times at most."""
    for attempt in range(1, retries + 2):
        try:
            return await call(*arguments)
        except TeacherFault as fault:
            if fault.verdict not in ("retry", "limited") or attempt > retries:
                raise
            await asyncio.sleep(backoff(fault, attempt))
    raise AssertionError("the last attempt returns or raises")


def _json(text: str) -> Any:
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise MalformedReplyError(f"the reply is not JSON: {text!r}") from error


def _identifier(thing: Any) -> str:
    name = getattr(thing, "id", None)
    if not isinstance(name, str) or not name:
        raise MalformedReplyError(f"the server named no id: {thing}")
    return name
