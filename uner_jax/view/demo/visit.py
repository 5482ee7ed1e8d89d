"""One request to the demo: read within bounds, answered, and whatever is wrong with it said in a message."""

import json
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future, wait
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, cast

from uner_jax.records import InputError
from uner_jax.view.demo.guard import fault
from uner_jax.view.demo.line import LineFullError
from uner_jax.view.demo.page import answer
from uner_jax.view.demo.question import Question, read_question

if TYPE_CHECKING:
    from uner_jax.view.demo.server import DemoServer

REQUEST_SECONDS = 10.0
ANSWER_SECONDS = 300.0
# how often a request that waits looks whether its reader is still there.
LOOK_SECONDS = 0.5
# of a body that is too long so much is read and thrown away: a reader who is still sending gets no message.
THROWN_AWAY = 1 << 20

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_BAD, _FOREIGN = HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN
_FULL, _SLOW = HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT


class RefusedError(Exception):
    """A request that gets a message instead of an answer."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class Visit(BaseHTTPRequestHandler):
    """Answers GET / with the page, and POST /extract, {"text", "labels"}, with entities, in JSON."""

    timeout = REQUEST_SECONDS
    server_version = "uner"
    sys_version = ""

    def setup(self) -> None:
        """Begin, and set the time by which the whole request must be there, however slowly it drips."""
        super().setup()
        self._demo.reading[self.connection] = time.monotonic() + REQUEST_SECONDS

    def finish(self) -> None:
        """End the connection."""
        self._demo.reading.pop(self.connection, None)
        super().finish()

    def do_GET(self) -> None:
        """The page."""
        self._answer("GET", {"/": self._page})

    def do_POST(self) -> None:
        """The entities of a text."""
        self._answer("POST", {"/extract": self._extract})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A message in JSON: also for what the base class finds, such as a method that there is not."""
        status = HTTPStatus(code)
        self._send(status, "application/json", json.dumps({"error": message or status.phrase}))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: what is worth a line is printed where it happens, and texts are private."""

    def _answer(self, method: str, pages: Mapping[str, Any]) -> None:
        try:
            if reason := fault(self.headers, self._demo.names):
                raise RefusedError(_FOREIGN, reason)
            path = self.path.partition("?")[0]
            if path not in pages:
                known = path in ("/", "/extract")
                status = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
                raise RefusedError(status, f"there is no {method} here; GET / is the page, POST /extract asks")
            pages[path]()
        except RefusedError as refusal:
            self.send_error(refusal.status, str(refusal))

    def _page(self) -> None:
        page = self._demo.page
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.html, {"Content-Security-Policy": page.policy})

    def _extract(self) -> None:
        body = self._body()
        try:
            question = read_question(body, self._demo.limits)
            future = self._demo.line.enter(lambda: self._read(question))
            found = self._outcome(future)
        except InputError as error:
            raise RefusedError(_BAD, str(error)) from error
        except LineFullError:
            waiting = self._demo.limits.waiting
            raise RefusedError(_FULL, f"{waiting} texts wait for the model already; try again in a moment") from None
        except CancelledError:
            raise RefusedError(_FULL, "the demo is ending") from None
        self._send(HTTPStatus.OK, "application/json", json.dumps(found))

    def _body(self) -> bytes:
        # a form of a foreign page can send text, but not this type without asking first.
        if self.headers.get_content_type() != "application/json":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the request must be application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "the request must say its Content-Length")
        limits = self._demo.limits
        if int(length) > limits.body_bytes:
            self.rfile.read(min(int(length), THROWN_AWAY))
            message = f"the request is too long: the demo reads {limits.characters:,} characters"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        body = self.rfile.read(int(length))
        self._demo.reading.pop(self.connection, None)
        if len(body) < int(length):
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "the request ended too early or came too slowly")
        return body

    def _read(self, question: Question) -> dict[str, Any]:
        """What the model finds; runs in the line, alone."""
        began = time.monotonic()
        (found,) = self._demo.extractor.extract([question.text], question.labels)
        seconds = time.monotonic() - began
        what = f"{len(question.text):,} characters, {len(question.labels)} types"
        print(f"{what}: {len(found.entities):,} entities in {seconds:.1f} s", file=sys.stderr, flush=True)
        return answer(question, found, seconds)

    def _outcome(self, future: "Future[dict[str, Any]]") -> dict[str, Any]:
        """The result, unless it takes too long or nobody waits for it any more."""
        end = time.monotonic() + ANSWER_SECONDS
        while not future.done():
            if self._reader_left():
                future.cancel()
                raise ConnectionAbortedError
            if time.monotonic() > end:
                future.cancel()
                raise RefusedError(_SLOW, f"the model took more than {ANSWER_SECONDS:.0f} s; ask for less at a time")
            wait([future], LOOK_SECONDS)
        try:
            return future.result()
        except (InputError, CancelledError):
            raise
        except Exception as error:  # one text that the model fails on must not end the demo for all.
            traceback.print_exception(error)
            message = f"the model failed on this text ({type(error).__name__}); the terminal of the demo says more"
            raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, message) from error

    def _reader_left(self) -> bool:
        self.connection.setblocking(False)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(self.timeout)

    def _send(self, status: HTTPStatus, kind: str, text: str, more: Mapping[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        busy = {"Retry-After": "5"} if status == _FULL else {}
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS, **busy, **(more or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def _demo(self) -> "DemoServer":
        return cast("DemoServer", self.server)
