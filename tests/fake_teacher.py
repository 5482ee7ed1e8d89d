"""A teacher that misbehaves on purpose: the OpenAI API on 127.0.0.1, with faults, limits and a count of what it bills.

    python tests/fake_teacher.py --answers recorded.jsonl --port-file port --fault '{"kind": "rate_limit", "times": 3}'

Kinds of faults, of which a request may meet several:
- it is refused, over HTTP or in a batch: rate_limit (with retry_after, said as retry_form), insufficient_quota, bad_key
  (echoes the key), model_not_found, context_length_exceeded, content_policy_violation, server_error (with status; 502
  is HTML); only over HTTP: redirect (307, once a request)
- in the answer: length, content_filter, refusal, null_content, no_usage, empty_choices, wrong_shape
- on the way back, when the work is done: hang, slow (drips for `seconds`), reset, cut_body, wrong_json, gzip,
  duplicate_headers, late_error (500 although it is done)
- of a batch, where `match` looks into all its messages: batch_failed, token_limit_exceeded, batch_expired,
  errors_in_output (what failed stands in the output file); of a line: duplicate_line, unknown_custom_id (one line
  more), missing_custom_id (in neither file); of a download: cut_file (ends inside its last line)
When they strike: `match` (a part of the user message), `after` so many, `times` at most, with a `probability`; with
`each` every message is counted by itself. What is refused or lost on the way may be any request, which `on` names:
"POST /files", "GET /batches/*". Faults that are drawn follow `seed` and the message, not the order of threads.

An answer is billed when it is sent whole: status 200, a complete body, a message in it; in a batch when that ends.
"""

import argparse
import gzip
import hashlib
import json
import math
import random
import re
import signal
import socket
import socketserver
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from email.utils import formatdate
from fnmatch import fnmatchcase
from functools import cached_property
from http.server import BaseHTTPRequestHandler
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

CHAT = "POST /v1/chat/completions"
REFUSALS = {
    "redirect": (307, None, "Ask here again."),
    "rate_limit": (429, "rate_limit_exceeded", "Too many requests; wait."),
    "insufficient_quota": (429, "insufficient_quota", "Your quota is used up; check your plan."),
    "bad_key": (401, "invalid_api_key", "This API key is not correct: {key}."),
    "model_not_found": (404, "model_not_found", "There is no such model for you."),
    "context_length_exceeded": (400, "context_length_exceeded", "Too many tokens for this model."),
    "content_policy_violation": (400, "content_policy_violation", "This is against our policy."),
    "server_error": (500, None, "The server failed; try again."),
}
FINAL = REFUSALS.keys() - {"redirect"}
UNPAID = {"hang", "reset", "cut_body", "wrong_json", "late_error"}
SENDING = UNPAID | {"slow", "gzip", "duplicate_headers"}
ENDINGS = {"batch_failed": "failed", "token_limit_exceeded": "failed", "batch_expired": "expired"}
IN_FILES = {"errors_in_output", "duplicate_line", "unknown_custom_id", "missing_custom_id", "cut_file"}


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and when: for requests on `on` whose user message contains `match`.

    The first `after` of them pass; then it strikes with `probability`, at most `times` times. With `each`, every
    message has these counts to itself. Raises ValueError for a field that means nothing.
    """

    kind: str
    times: int | None = None
    probability: float = 1.0
    match: str = ""
    after: int = 0
    each: bool = False
    on: str = "POST /chat/completions"
    status: int = 500
    retry_after: float | None = None  # seconds; None sends no header
    retry_form: str = "seconds"  # or "ms", "date"
    seconds: float = 1.0

    def __post_init__(self):
        if self.kind not in (kinds := {*REFUSALS, *CHANGES, *SENDING, *ENDINGS, *IN_FILES}):
            raise ValueError(f"no fault is called {self.kind!r}; there are {', '.join(sorted(kinds))}")
        if self.retry_form not in ("seconds", "ms", "date"):
            raise ValueError(f"retry_form must be 'seconds', 'ms' or 'date', found {self.retry_form!r}")
        if not re.match(r"(GET|POST|DELETE|\*) /(?!v1/)", self.on):
            raise ValueError(f"on must be a method and a path without /v1, as in 'POST /batches', found {self.on!r}")

    def hears(self, kinds: Collection[str], subject: str, on: str | None) -> bool:
        """Whether it is of these kinds and concerns this request; `on` None is no request over HTTP."""
        here = on is None or fnmatchcase(on, self.on.replace(" /", " /v1/", 1))
        return here and self.kind in kinds and self.match in subject


@dataclass(frozen=True)
class Limits:
    """What is allowed, and how: `requests` in any `window` seconds, `concurrent` at one moment, the size of a batch.

    idempotent: the same Idempotency-Key gets the same answer, billed once. clock: a batch goes on to its next status
    whenever it has grown by 1; without one, at every poll.
    """

    requests: int = 1_000_000
    window: float = 60.0
    concurrent: int = 1_000_000
    batch_lines: int = 50_000
    batch_bytes: int = 200_000_000
    idempotent: bool = False
    clock: Callable[[], float] | None = None


@dataclass
class Reply:
    """What is sent, and what the log says of it: "answered" is what is billed."""

    status: int
    body: bytes
    outcome: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    content_type: str = "application/json"


class ApiError(Exception):
    """A request that is refused, in the API's own form."""

    def __init__(self, status: int, code: str | None, message: str, headers=(), outcome: str | None = None):
        self.status, self.headers, self.outcome = status, headers, outcome or code or "server_error"
        kinds = {429: code if code == "insufficient_quota" else "requests", 500: "server_error"}
        kind = kinds.get(min(status, 500), "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def reply(self) -> Reply:
        """As it is sent; a bad gateway speaks HTML, as gateways do."""
        if self.status == 502:
            return Reply(502, b"<html><h1>502 Bad Gateway</h1></html>", self.outcome, list(self.headers), "text/html")
        return Reply(self.status, to_json(self.body).encode(), self.outcome, list(self.headers))


def digest(text: str) -> str:
    """What stands for a user message in the log."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def to_json(value: Any) -> str:
    """JSON with nothing escaped but what it must, so that a reader meets odd line ends and lone surrogates."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


class Store:
    """Tables of JSON values; with a path, a journal of their changes that the next process takes up."""

    def __init__(self, path: Path | None):
        self.lock, self._depth = threading.RLock(), 0
        self._tables: dict[str, dict[str, Any]] = defaultdict(dict)
        self._changes: list[tuple[str, str, Any]] = []
        for line in path.read_bytes().split(b"\n") if path and path.exists() else []:
            # a line that is no JSON was being written when the process was killed: none of it happened.
            with suppress(ValueError):
                for kind, name, value in json.loads(line):
                    self._tables[kind][name] = value
        self._journal = path.open("ab", buffering=0) if path else None

    @contextmanager
    def together(self) -> Iterator[None]:
        """What changes inside is written down whole or not at all."""
        with self.lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    if self._journal and self._changes:
                        self._journal.write(b"\n" + json.dumps(self._changes).encode() + b"\n")
                    self._changes = []

    def put(self, kind: str, name: str, value: Any) -> None:
        """Set a value; None takes it away."""
        with self.together():
            self._tables[kind][name] = value
            self._changes.append((kind, name, value))

    def get(self, kind: str, name: str = "", default: Any = None) -> Any:
        return self._tables[kind].get(name, default)

    def table(self, kind: str) -> dict[str, Any]:
        """A copy of the values of a kind, oldest first."""
        with self.lock:
            return dict(self._tables[kind])

    def count(self, kind: str, name: str = "") -> int:
        """Add one to a count; returns the new one."""
        with self.together():
            self.put(kind, name, self.get(kind, name, 0) + 1)
            return self.get(kind, name)

    def close(self) -> None:
        if self._journal:
            self._journal.close()


class FaultPlan:
    """Decides which faults strike; a draw depends on the seed and the message, not on the order of threads."""

    def __init__(self, faults: Sequence[Fault], seed: int, store: Store):
        self._faults, self._seed, self._store = tuple(faults), seed, store

    def strikes(self, kinds: Collection[str], subject: str, on: str | None = CHAT) -> Iterator[Fault]:
        """The faults that strike, in their order, drawn one by one: who takes only the first uses up no other."""
        for place, fault in enumerate(self._faults):
            if fault.hears(kinds, subject, on) and self._draw(f"{place} {fault.kind}", fault, digest(subject)):
                yield fault

    def _draw(self, name: str, fault: Fault, message: str) -> bool:
        tally = f"{name} {message}" if fault.each else name
        with self._store.together():
            attempt = self._store.count("attempts", f"{name} {message}")
            if self._store.count("heard", tally) <= fault.after:
                return False
            if fault.times is not None and self._store.get("struck", tally, 0) >= fault.times:
                return False
            if random.Random(f"{self._seed} {name} {message} {attempt}").random() >= fault.probability:
                return False
            self._store.count("struck", tally)
            return True

    def refuse(self, kinds: Collection[str], subject: str, on: str = CHAT, key: str = "") -> None:
        """Raises the ApiError of the first fault that refuses a request."""
        if fault := next(self.strikes(kinds, subject, on), None):
            status, code, message = REFUSALS[fault.kind]
            status = fault.status if fault.kind == "server_error" else status
            raise ApiError(status, code, message.format(key=key), refusal_headers(fault, on), fault.kind)


def refusal_headers(fault: Fault, on: str) -> list[tuple[str, str]]:
    """Where to go, or how long to wait, in the form that the fault has."""
    if fault.kind == "redirect":
        return [("location", f"{on.split()[1]}?redirected")]
    if fault.retry_after is None:
        return []
    if fault.retry_form == "ms":
        return [("retry-after-ms", f"{fault.retry_after * 1000:g}")]
    date = formatdate(math.ceil(time.time() + fault.retry_after), usegmt=True)
    return [("retry-after", date if fault.retry_form == "date" else f"{fault.retry_after:g}")]


class Limiter:
    """At most `limit` requests in any `window` seconds; who is refused uses none."""

    def __init__(self, limit: int, window: float):
        self._limit, self._window, self._lock = limit, window, threading.Lock()
        self._admitted: deque[float] = deque()

    def _room(self, now: float) -> int:
        while self._admitted and self._admitted[0] <= now - self._window:
            self._admitted.popleft()
        return self._limit - len(self._admitted)

    def admit(self) -> None:
        """Raises ApiError 429, with the time to wait, if the window is full."""
        with self._lock:
            if self._room(now := time.monotonic()) <= 0:
                wait = self._admitted[0] + self._window - now if self._admitted else self._window
                headers = [("retry-after", f"{math.ceil(wait)}"), ("retry-after-ms", f"{math.ceil(wait * 1000)}")]
                raise ApiError(429, "rate_limit_exceeded", f"Over {self._limit} requests.", headers)
            self._admitted.append(now)

    def headers(self) -> list[tuple[str, str]]:
        """The documented headers; tokens have no limit here, and say so."""
        with self._lock:
            room = self._room(now := time.monotonic())
            reset = duration(self._admitted[-1] + self._window - now if self._admitted else 0)
        shown = {"requests": (self._limit, room, reset), "tokens": (10**9, 10**9, "0ms")}
        names = "limit", "remaining", "reset"
        return [
            (f"x-ratelimit-{name}-{what}", str(value))
            for what, values in shown.items()
            for name, value in zip(names, values, strict=True)
        ]


def duration(seconds: float) -> str:
    """Seconds as the rate-limit headers have them: "12ms", "1.2s", "6m0s"."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}m{rest:.0f}s" if minutes else f"{rest:.3f}".rstrip("0").rstrip(".") + "s"


@dataclass(eq=False)
class Call:
    """An HTTP request; its path has no query."""

    method: str
    path: str
    query: str
    headers: Message
    body: bytes

    @property
    def on(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def key(self) -> str:
        """The API key. Raises ApiError 401 without one."""
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not key.strip():
            raise ApiError(401, "invalid_api_key", "No API key: send `Authorization: Bearer KEY`.")
        return key.strip()

    def json(self) -> Any:
        """The body. Raises ApiError 400 for another content type and for what is not JSON."""
        if not self.headers.get("Content-Type", "").startswith("application/json"):
            raise ApiError(400, "invalid_content_type", "The content type must be application/json.")
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ApiError(400, "invalid_json", f"The body is not JSON: {error}.") from error

    @cached_property
    def subject(self) -> str:
        """The user message; what has none is known by its body, or by its path."""
        if self.on != CHAT:
            return self.body.decode(errors="replace") or self.path
        with suppress(ApiError):
            return check_chat(self.json())
        return ""

    def form(self) -> dict[str, bytes]:
        """The parts of a multipart body by name. Raises ApiError 400 for another content type."""
        boundary = re.search(r'boundary="?([^";]+)', self.headers.get("Content-Type", ""))
        if not boundary:
            raise ApiError(400, "invalid_content_type", "The content type must be multipart/form-data.")
        parts = (b"\r\n" + self.body).split(b"\r\n--" + boundary[1].encode())[1:-1]
        pairs = (part.partition(b"\r\n\r\n") for part in parts)
        named = ((re.search(rb'\bname="([^"]*)"', head), content) for head, _, content in pairs)
        return {name[1].decode(errors="replace"): content for name, content in named if name}


def check_chat(request: Any) -> str:
    """The last user message of a chat request. Raises ApiError 400 for what is no such request."""
    if not isinstance(request, dict) or not isinstance(request.get("model"), str) or not request["model"]:
        raise ApiError(400, "missing_required_parameter", "A request is an object with `model`.")
    messages = request.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ApiError(400, "invalid_type", "`messages` must be a list of objects.")
    said = [message.get("content") for message in messages if message.get("role") == "user"]
    if not said or not isinstance(said[-1], str) or request.get("stream"):
        raise ApiError(400, "invalid_value", "Send a user message whose content is a string, and no `stream`.")
    return said[-1]


class Ledger:
    """Who is here, and what is billed: counts in the store, and a line in the log for every request."""

    def __init__(self, store: Store, log: Path | None, idempotent: bool):
        self.keys_seen: set[str] = set()
        self.max_in_flight = 0
        self._store, self._idempotent = store, idempotent
        self._here: dict[Call, None] = {}
        self._log = log.open("ab", buffering=0) if log else None

    def arrive(self, call: Call) -> None:
        with self._store.together():
            self._here[call] = None
            self._store.count("calls")
            if call.on == CHAT:
                self._store.count("requests")
                self.max_in_flight = max(self.max_in_flight, self.place(call))

    def place(self, call: Call) -> int:
        """The place of a chat request among those that are being handled, by arrival, from 1."""
        with self._store.lock:
            return [other for other in self._here if other.on == CHAT].index(call) + 1

    def idempotency_key(self, call: Call) -> str | None:
        return call.headers.get("Idempotency-Key") if self._idempotent else None

    def leave(self, call: Call, outcome: str) -> None:
        """Note the outcome of a request: the first one counts."""
        with self._store.together():
            if call in self._here:
                del self._here[call]
                message = call.subject if call.on == CHAT else None
                key = self.idempotency_key(call)
                if outcome == "answered" and key and self._store.count("billed", key) > 1:
                    outcome = "replayed"
                self.note(call.path, message, outcome)

    def note(self, path: str, message: str | None, outcome: str) -> None:
        """Bill an answer, and add a line to the log."""
        with self._store.together():
            if outcome == "answered":
                self._store.count("answered", message or "")
            if self._log:
                line = {"time": time.time(), "path": path, "message": digest(message) if message else None}
                self._log.write(json.dumps(line | {"outcome": outcome}).encode() + b"\n")

    def close(self) -> None:
        if self._log:
            self._log.close()


def length(made: dict) -> None:
    choice = made["choices"][0]
    choice["finish_reason"] = "length"
    choice["message"]["content"] = choice["message"]["content"][: (len(choice["message"]["content"]) + 1) // 2]


def content_filter(made: dict) -> None:
    made["choices"][0]["finish_reason"] = "content_filter"
    made["choices"][0]["message"]["content"] = ""


def wrong_shape(made: dict) -> None:
    made.clear()
    made["result"] = ["ok"]


# in the order in which they are made: what needs the answer comes before what takes it away.
CHANGES: dict[str, Callable[[dict], object]] = {
    "length": length,
    "content_filter": content_filter,
    "refusal": lambda made: made["choices"][0]["message"].update(content=None, refusal="I will not do that."),
    "null_content": lambda made: made["choices"][0]["message"].update(content=None),
    "no_usage": lambda made: made.pop("usage"),
    "empty_choices": lambda made: made["choices"].clear(),
    "wrong_shape": wrong_shape,
}


class Chat:
    """Makes completions, for HTTP and for the lines of a batch."""

    def __init__(self, answer: Callable[[str], str], plan: FaultPlan, store: Store):
        self._answer, self._plan, self._store = answer, plan, store

    def complete(self, request: dict) -> tuple[dict, str]:
        """A completion in the documented shape, with the faults that strike it, and its outcome."""
        message = check_chat(request)
        try:
            answer = self._answer(message)
        except Exception as error:
            raise ApiError(500, None, f"no answer: {error!r}") from error
        said = {"role": "assistant", "content": answer, "refusal": None}
        prompt, words = len(json.dumps(request["messages"])) // 4 + 1, len(answer) // 4 + 1
        made = {
            "id": f"chatcmpl-{self._store.count('completions')}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request["model"],
            "choices": [{"index": 0, "message": said, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": words, "total_tokens": prompt + words},
        }
        struck = {fault.kind for fault in self._plan.strikes(CHANGES, message)}
        for kind in filter(struck.__contains__, CHANGES):
            CHANGES[kind](made)
        whole = made.get("choices") and (said["content"] is not None or said["refusal"])
        return made, "answered" if whole else "unusable"

    def once(self, request: dict, key: str | None) -> tuple[dict, str]:
        """The completion that is kept under an idempotency key, or a new one."""
        before = self._store.get("idempotent", key or "")
        if before and before[0] != request:
            raise ApiError(409, "idempotency_key_reused", "This key was sent with another request.")
        made, outcome = (before[1], "answered") if before else self.complete(request)
        if key and outcome == "answered":
            self._store.put("idempotent", key, [request, made])
        return made, outcome


def check_line(line: bytes, before: dict[str, dict]) -> dict:
    """A request of a batch's input that fits to those before it; ApiError 400 says what is wrong."""
    try:
        request = json.loads(line.decode())
        name = request["custom_id"]
        check_chat(request["body"])
    except (ValueError, KeyError, TypeError, ApiError) as error:
        raise ApiError(400, "invalid_json_line", f"it is no request: {error!r}") from error
    if not isinstance(name, str) or name in before:
        raise ApiError(400, "duplicate_custom_id", "custom_id must be a string that no other line has")
    if (request.get("method"), request.get("url")) != ("POST", "/v1/chat/completions"):
        raise ApiError(400, "invalid_url", "method and url must be POST and /v1/chat/completions")
    if any(other["body"]["model"] != request["body"]["model"] for other in islice(before.values(), 1)):
        raise ApiError(400, "mismatched_model", "all requests of a batch must be for one model")
    return request


def messages_of(lines: list[dict]) -> str:
    """What a fault's `match` looks into for a batch as a whole."""
    return "\n".join(check_chat(line["body"]) for line in lines)


class Files:
    """What was uploaded, and what batches made."""

    def __init__(self, store: Store, plan: FaultPlan, limits: Limits):
        self._store, self._plan, self._limits = store, plan, limits

    def upload(self, form: dict[str, bytes]) -> dict:
        """A new input file. Raises ApiError 400 that names the first line that is wrong."""
        content = form.get("file", b"")
        lines = content.removesuffix(b"\n").split(b"\n")
        if form.get("purpose") != b"batch" or not content:
            raise ApiError(400, "invalid_value", "Send a `file` that is not empty, and `purpose` as batch.")
        if len(content) > self._limits.batch_bytes or len(lines) > self._limits.batch_lines:
            most = f"{self._limits.batch_lines} lines and {self._limits.batch_bytes} bytes"
            found = f"{len(lines)} lines and {len(content)} bytes"
            raise ApiError(400, "file_too_large", f"A batch has at most {most}, found {found}.")
        requests: dict[str, dict] = {}
        for number, line in enumerate(lines, 1):
            try:
                request = check_line(line, requests)
            except ApiError as error:
                raise ApiError(400, error.outcome, f"Line {number}: {error.body['error']['message']}.") from error
            requests[request["custom_id"]] = request
        return self.keep("batch", content.decode())

    def keep(self, purpose: str, content: str) -> dict:
        """A new file."""
        name = f"file-{self._store.count('files made')}"
        size, now = len(content.encode()), int(time.time())
        made = {"id": name, "object": "file", "bytes": size, "created_at": now, "filename": f"{name}.jsonl"}
        made |= {"purpose": purpose, "status": "processed"}
        self._store.put("contents", name, content)
        self._store.put("files", name, made)
        return made

    def get(self, name: str) -> dict:
        """Raises ApiError 404 for a file that is not there."""
        if found := self._store.get("files", name):
            return found
        raise ApiError(404, "not_found", f"There is no file {name}.")

    def content(self, name: str) -> str:
        self.get(name)
        return self._store.get("contents", name)

    def download(self, name: str) -> str:
        """The content, or what a fault leaves of it: all but the second half of its last line."""
        content = self.content(name)
        start = content.rstrip("\n").rfind("\n") + 1
        cut = next(self._plan.strikes({"cut_file"}, name, None), None)
        return content[: (start + len(content)) // 2] if cut else content

    def delete(self, name: str) -> dict:
        self.get(name)
        self._store.put("files", name, None)
        self._store.put("contents", name, None)
        return {"id": name, "object": "file", "deleted": True}


TIMES = "in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
PATHS = {
    "completed": ["validating", "in_progress", "finalizing", "completed"],
    "failed": ["validating", "failed"],
    "expired": ["validating", "in_progress", "finalizing", "expired"],
    "cancelled": ["cancelling", "cancelled"],
}


class Batches:
    """Batches, and what becomes of them."""

    def __init__(self, chat: Chat, files: Files, plan: FaultPlan, ledger: Ledger, store: Store, seed: int, clock):
        self._chat, self._files, self._plan, self._ledger, self._store = chat, files, plan, ledger, store
        self._seed, self._clock = seed, clock

    def create(self, request: Any) -> dict:
        """A new batch, whose end is already decided. Raises ApiError 400 or 404 for what it cannot be made of."""
        check_creation(request)
        lines = list(map(json.loads, self._files.content(request["input_file_id"]).removesuffix("\n").split("\n")))
        fault = next(self._plan.strikes(ENDINGS, messages_of(lines), None), None)
        end = ENDINGS[fault.kind] if fault else "completed"
        name = f"batch_{self._store.count('batches made')}"
        made: dict[str, Any] = {"id": name, "object": "batch", "status": "validating", "errors": None}
        made |= {key: request[key] for key in ("input_file_id", "endpoint", "completion_window")}
        made |= {"created_at": int(time.time()), "output_file_id": None, "error_file_id": None}
        made |= {f"{status}_at": None for status in TIMES} | {"metadata": request.get("metadata")}
        made["request_counts"] = {"total": 0, "completed": 0, "failed": 0}
        state = {"batch": made, "path": PATHS[end], "since": self._time(), "code": fault and fault.kind}
        self._store.put("inputs", name, lines)
        self._store.put("batches", name, state | {"share": 1.0 if end == "completed" else 0.5})
        return made

    def _time(self) -> float:
        return self._clock() if self._clock else 0

    def _find(self, name: str) -> dict:
        if found := self._store.get("batches", name):
            return found
        raise ApiError(404, "not_found", f"There is no batch {name}.")

    def poll(self, name: str) -> dict:
        """The batch, after it has moved on."""
        state = self._find(name)
        now = state["path"].index(state["batch"]["status"])
        goal = int(self._time() - state["since"]) if self._clock else now + 1
        for status in state["path"][now + 1 : goal + 1]:
            self._enter(state, status)
        self._store.put("batches", name, state)
        return state["batch"]

    def cancel(self, name: str) -> dict:
        """The batch, of which half is done if it was in progress. Raises ApiError 409 at its end."""
        state = self._find(name)
        status = state["batch"]["status"]
        if status not in ("validating", "in_progress", "finalizing"):
            raise ApiError(409, "conflict", f"A batch that is {status} cannot be cancelled.")
        state |= {"path": PATHS["cancelled"], "since": self._time(), "share": 0.0 if status == "validating" else 0.5}
        self._enter(state, "cancelling")
        self._store.put("batches", name, state)
        return state["batch"]

    def page(self, query: dict[str, list[str]]) -> dict:
        """A page of batches, newest first; it moves none on. Raises ApiError 400 for a wrong `limit` or `after`."""
        limit, after = query.get("limit", ["20"])[0], query.get("after", [None])[0]
        batches = [state["batch"] for state in reversed(self._store.table("batches").values())]
        names = [batch["id"] for batch in batches]
        if not limit.isdecimal() or not 1 <= int(limit) <= 100 or after not in (None, *names):
            raise ApiError(400, "invalid_value", "`limit` is a number from 1 to 100, `after` a batch.")
        start = names.index(after) + 1 if after else 0
        page = batches[start : start + int(limit)]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return {"object": "list", "data": page, **ends, "has_more": start + len(page) < len(batches)}

    def _enter(self, state: dict, status: str) -> None:
        batch = state["batch"]
        batch |= {"status": status, f"{status}_at": int(time.time())}
        lines = self._store.get("inputs", batch["id"])
        if status == "in_progress":
            batch["request_counts"]["total"] = len(lines)
        elif status == "failed":
            error = {"code": state["code"], "message": "This batch cannot be run.", "param": None}
            error["line"] = 1 if state["code"] == "batch_failed" else None
            batch["errors"] = {"object": "list", "data": [error]}
        elif status == state["path"][-1]:
            self._finish(batch, lines, state["share"])

    def _finish(self, batch: dict, lines: list[dict], share: float) -> None:
        """Answer a share of the lines, and write the two files in another order than the input's."""
        draw = random.Random(f"{self._seed} {batch['id']}")
        mixed: list[dict] = draw.sample(lines, len(lines))
        # a shuffle leaves two lines as they were half the time.
        mixed = mixed[::-1] if mixed == lines else mixed
        done = round(len(lines) * share)
        rows = [row for line in mixed[:done] for row in self._rows(batch["id"], line)]
        stray = next(self._plan.strikes({"errors_in_output"}, messages_of(lines), None), None)
        fine = [row["response"]["status_code"] == 200 for row in rows]
        output = [row for row, good in zip(rows, fine, strict=True) if good or stray]
        errors = [row for row, good in zip(rows, fine, strict=True) if not (good or stray)]
        errors += [self._left_over(line, batch["status"]) for line in mixed[done:]]
        for name, kept in ("output_file_id", output), ("error_file_id", errors):
            if kept:
                batch[name] = self._files.keep("batch_output", "".join(to_json(row) + "\n" for row in kept))["id"]
        batch["request_counts"] = {"total": len(lines), "completed": sum(fine), "failed": len(fine) - sum(fine)}

    def _rows(self, batch: str, line: dict) -> Iterator[dict]:
        """What the files say of one request: a row, unless a fault will have two or none."""
        message = check_chat(line["body"])
        kinds = {"duplicate_line", "unknown_custom_id", "missing_custom_id"}
        struck = {fault.kind for fault in self._plan.strikes(kinds, message, None)}
        if "missing_custom_id" in struck:
            return
        status = 200
        try:
            self._plan.refuse(FINAL, message)
            body, outcome = self._chat.complete(line["body"])
        except ApiError as error:
            status, body, outcome = error.status, error.body, error.outcome
        self._ledger.note(f"/v1/batches/{batch}", message, outcome)
        name = f"req_{self._store.count('replies')}"
        row = {"id": f"batch_{name}", "custom_id": line["custom_id"]}
        row |= {"response": {"status_code": status, "request_id": name, "body": body}, "error": None}
        yield row
        if "duplicate_line" in struck:
            yield row
        if "unknown_custom_id" in struck:
            yield row | {"custom_id": f"unknown {line['custom_id']}"}

    def _left_over(self, line: dict, status: str) -> dict:
        error = {"code": f"batch_{status}", "message": f"The batch was {status} before this request was done."}
        name = f"batch_req_{self._store.count('replies')}"
        return {"id": name, "custom_id": line["custom_id"], "response": None, "error": error}


def check_creation(request: Any) -> None:
    """Raises ApiError 400 for what is no request for a batch."""
    given = request if isinstance(request, dict) else {}
    fixed = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    if {key: given.get(key) for key in fixed} != fixed or not isinstance(given.get("input_file_id"), str):
        raise ApiError(400, "invalid_value", f"Send `input_file_id` and {json.dumps(fixed)}.")
    metadata = given.get("metadata") or {}
    values = list(metadata.values()) if isinstance(metadata, dict) else [None]
    if len(values) > 16 or not all(isinstance(value, str) and len(value) <= 512 for value in values):
        raise ApiError(400, "invalid_metadata", "`metadata` is an object of up to 16 strings of 512 letters.")


class Api:
    """Sees who asks, and passes the request on to where it belongs."""

    def __init__(self, answer, plan: FaultPlan, store: Store, ledger: Ledger, seed: int, delay: float, limits: Limits):
        self.plan, self.ledger, self.stopping = plan, ledger, threading.Event()
        self._store, self._delay, self._limits = store, delay, limits
        self._limiter, self._chat = Limiter(limits.requests, limits.window), Chat(answer, plan, store)
        self._files = Files(store, plan, limits)
        self._batches = Batches(self._chat, self._files, plan, ledger, store, seed, limits.clock)

    def reply(self, call: Call) -> Reply:
        """The reply to any request, before anything happens to it on the way."""
        try:
            self.ledger.keys_seen.add(call.key)
            self.plan.refuse(FINAL if "redirected" in call.query else REFUSALS, call.subject, call.on, call.key)
            reply = self._converse(call) if call.on == CHAT else self._keep_books(call)
        except ApiError as error:
            reply = error.reply()
        except Exception as error:
            reply = ApiError(500, None, f"{type(error).__name__}: {error}").reply()
        reply.headers.append(("x-request-id", f"req_{self._store.count('replies')}"))
        reply.headers += self._limiter.headers() if call.on == CHAT else []
        return reply

    def _converse(self, call: Call) -> Reply:
        request = call.json()
        check_chat(request)
        if self.ledger.place(call) > self._limits.concurrent:
            message = f"More than {self._limits.concurrent} requests at once."
            raise ApiError(429, "rate_limit_exceeded", message, outcome="crowded")
        self._limiter.admit()
        self.stopping.wait(self._delay)
        made, outcome = self._chat.once(request, self.ledger.idempotency_key(call))
        return Reply(200, to_json(made).encode(), outcome)

    def _keep_books(self, call: Call) -> Reply:
        with self._store.together():
            found = self._route(call)
            if isinstance(found, str):
                return Reply(200, found.encode(), "ok", content_type="application/octet-stream")
            return Reply(200, to_json(found).encode(), "ok")

    def _route(self, call: Call) -> dict | str:
        match (call.method, *call.path.removeprefix("/").split("/")):
            case ("GET", "v1", "models"):
                model = {"id": "fake-teacher", "object": "model", "created": 0, "owned_by": "tests"}
                return {"object": "list", "data": [model]}
            case ("POST", "v1", "files"):
                return self._files.upload(call.form())
            case ("GET", "v1", "files", name):
                return self._files.get(name)
            case ("GET", "v1", "files", name, "content"):
                return self._files.download(name)
            case ("DELETE", "v1", "files", name):
                return self._files.delete(name)
            case ("POST", "v1", "batches"):
                return self._batches.create(call.json())
            case ("GET", "v1", "batches"):
                return self._batches.page(parse_qs(call.query))
            case ("GET", "v1", "batches", name):
                return self._batches.poll(name)
            case ("POST", "v1", "batches", name, "cancel"):
                return self._batches.cancel(name)
        raise ApiError(404, "unknown_url", f"There is no {call.on}.")


def damaged(reply: Reply, kinds: Collection[str]) -> Reply:
    """The reply after what happens to it on the way."""
    if "late_error" in kinds:
        reply = ApiError(500, None, "The server failed when it was done.", reply.headers).reply()
    if "wrong_json" in kinds:
        reply.body = reply.body[: len(reply.body) // 2]
    if "gzip" in kinds:
        reply.body = gzip.compress(reply.body, mtime=0)
        reply.headers.append(("content-encoding", "gzip"))
    if "duplicate_headers" in kinds:
        junk = ("x-ratelimit-remaining-requests", "-"), ("x-ratelimit-reset-requests", "soon"), ("retry-after", "soon")
        reply.headers += [*junk, ("x-request-id", "another"), ("x-junk", "j" * 5000)]
    reply.outcome = min(UNPAID.intersection(kinds), default=reply.outcome)
    return reply


class Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, and sends replies or what a fault leaves of them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def log_message(self, *_: object) -> None:
        """Says nothing: the ledger keeps the log."""

    def _handle(self) -> None:
        path, _, query = self.path.partition("?")
        size = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not size.isdecimal():
            self.send_error(411)
            return
        call = Call(self.command, path, query, self.headers, self.rfile.read(int(size)))
        self.server.api.ledger.arrive(call)
        try:
            if len(call.body) == int(size):
                self._send(self.server.api.reply(call), call)
        except OSError:
            self.close_connection = True
        finally:
            self.server.api.ledger.leave(call, "client_gone")

    do_GET = do_POST = do_DELETE = _handle

    def _send(self, reply: Reply, call: Call) -> None:
        api = self.server.api
        kinds = SENDING if reply.status == 200 else SENDING - {"wrong_json", "late_error"}
        struck = {fault.kind: fault for fault in api.plan.strikes(kinds, call.subject, call.on)}
        reply = damaged(reply, struck)
        if broken := struck.keys() & {"hang", "reset", "cut_body"}:
            self.close_connection = True
            if "cut_body" in broken:
                self._send_head(reply)
                self.wfile.write(reply.body[: len(reply.body) // 2])
            api.ledger.leave(call, reply.outcome)
            while "hang" in broken and not self._gone():
                api.stopping.wait(0.05)
            return
        self._send_head(reply)
        self._drip(reply.body[:-1], struck.get("slow"))
        if self._gone():
            raise ConnectionError("nobody is there to read the answer")
        # before the last byte: whoever has read the answer must find it counted.
        api.ledger.leave(call, reply.outcome)
        self.wfile.write(reply.body[-1:])

    def _send_head(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("content-type", reply.content_type)
        self.send_header("content-length", str(len(reply.body)))
        for name, value in reply.headers:
            self.send_header(name, value)
        self.end_headers()

    def _drip(self, body: bytes, slow: Fault | None) -> None:
        size = len(body) // 20 + 1 if slow else len(body) + 1
        for start in range(0, len(body), size):
            self.wfile.write(body[start : start + size])
            if slow:
                self.server.api.stopping.wait(slow.seconds / 20)

    def _gone(self) -> bool:
        """Whether the client has gone, or the server is stopping."""
        try:
            seen = self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            seen = b"nothing yet"
        return not seen or self.server.api.stopping.is_set()


class Server(socketserver.ThreadingTCPServer):
    """A thread a connection, and an end to all of them."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, port: int, api: Api):
        self.api, self._changed = api, threading.Condition()
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._connections.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        super().close_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: only a client that went away can bring this about."""

    def stop(self) -> None:
        """Close every connection, and wait until their threads are done."""
        self.api.stopping.set()
        self.shutdown()
        self.server_close()
        with self._changed:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._connections, timeout=10)


class FakeTeacher:
    """The server, running inside `with`. Its counts are right as soon as a client has read its answer.

    answer: from a user message to the assistant's words. delay: seconds before every answer. state: a file in which
    counts, faults that struck, files and batches survive. log: a file to which every request adds a JSON line: time,
    path, digest of the user message, outcome; also every answer in a batch. limits: fields of `Limits`.
    """

    def __init__(
        self,
        answer: Callable[[str], str] | None = None,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        delay: float = 0.0,
        state: Path | None = None,
        *,
        log: Path | None = None,
        port: int = 0,
        **limits: Any,
    ):
        allowed = Limits(**limits)
        self._store = Store(state)
        self._ledger = Ledger(self._store, log, allowed.idempotent)
        plan = FaultPlan(faults, seed, self._store)
        api = Api(answer or (lambda message: "[]"), plan, self._store, self._ledger, seed, delay, allowed)
        self._server = Server(port, api)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "FakeTeacher":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop()
        self._ledger.close()
        self._store.close()

    @property
    def answered(self) -> Counter[str]:
        """Whole answers by user message: what is billed."""
        return Counter(self._store.table("answered"))

    @property
    def calls(self) -> int:
        """Requests of any kind received."""
        return self._store.get("calls", default=0)

    @property
    def requests(self) -> int:
        """Chat requests received, those that failed too."""
        return self._store.get("requests", default=0)

    @property
    def keys_seen(self) -> set[str]:
        """API keys that came; they are in no file."""
        return set(self._ledger.keys_seen)

    @property
    def max_in_flight(self) -> int:
        """The most chat requests that were handled at one moment."""
        return self._ledger.max_in_flight


def read_answers(path: Path) -> Callable[[str], str]:
    """Recorded answers, as a function of a message that holds their passage; the longest passage wins.

    Raises ValueError that names the line that is no {"passage", "answer"} of two strings.
    """
    known: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                known[row["passage"] + ""] = row["answer"] + ""
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f'{path}, line {number}: expected {{"passage", "answer"}}, two strings') from error
    longest_first = sorted(known, key=len, reverse=True)
    return lambda message: next((known[passage] for passage in longest_first if passage in message), "[]")


LIMITS_HELP = (
    "a JSON object of: requests in any window (seconds, default 60), concurrent requests, batch_lines (default 50000), "
    "batch_bytes (default 200000000), idempotent (true: one Idempotency-Key, one answer, billed once)"
)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--answers", type=Path, help='JSON lines {"passage", "answer"}; without it every answer is []')
    add("--port", type=int, default=0, help="0, the default, is any free port")
    add("--port-file", type=Path, help="where the port is written once the server listens")
    add("--log", type=Path, help="a JSON line is added for every request: time, path, SHA-256 of the message, outcome")
    add("--state", type=Path, help="a file in which counts and batches survive a restart")
    add("--fault", type=json.loads, action="append", default=[], help="a JSON object of kind, times, ...; repeatable")
    add("--limits", type=json.loads, default={}, help=LIMITS_HELP)
    add("--seed", type=int, default=0, help="of faults with a probability and of the order of outputs (default 0)")
    add("--delay", type=float, default=0.0, help="seconds before every answer (default 0)")
    add("--status-seconds", type=float, help="a batch goes on after so long; without it, at every poll")
    return parser.parse_args(arguments)


def serve(given: argparse.Namespace) -> None:
    """Serve until SIGTERM or an interrupt. Raises OSError or ValueError for what cannot be read, written or bound."""
    answer = read_answers(given.answers) if given.answers else None
    faults = [Fault(**fault) for fault in given.fault]
    clock = (lambda: time.time() / given.status_seconds) if given.status_seconds else None
    rest = {"log": given.log, "port": given.port, "clock": clock}
    teacher = FakeTeacher(answer, faults, given.seed, given.delay, given.state, **rest, **given.limits)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with teacher, suppress(KeyboardInterrupt):
        if given.port_file:
            temporary = given.port_file.with_name(f".tmp-{given.port_file.name}")
            temporary.write_text(f"{teacher.port}\n")
            temporary.replace(given.port_file)
        threading.Event().wait()


def main(arguments: Sequence[str]) -> None:
    given = parse_arguments(arguments)
    try:
        serve(given)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
