"""The server of the demo: it listens, and bounds how many may come and how many wait."""

import contextlib
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from uner_jax.extraction.extractor import Extractor
from uner_jax.records import InputError
from uner_jax.view.demo.guard import known_names
from uner_jax.view.demo.line import Line, Places
from uner_jax.view.demo.page import demo_page
from uner_jax.view.demo.question import Limits
from uner_jax.view.demo.visit import Visit

# besides those that wait for the model: page loads, and questions that are still on their way.
CONNECTIONS = 32

_CROWDED = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"


class DemoServer(ThreadingHTTPServer):
    """Serves one extractor; each connection has a thread, and the model a line before it.

    Binds at once, so that a port in use is found before a model is loaded; `extractor` is set before `serve_forever`.
    """

    # joined at the end: a thread that the interpreter kills within XLA's code takes the process down with it.
    daemon_threads = False
    extractor: Extractor

    def __init__(self, host: str, port: int, model: str, limits: Limits):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.limits = limits
        self.names = known_names(host)
        self.page = demo_page(model, limits)
        self.line = Line(limits.waiting)
        # connections whose request is on its way, and when it must be there
        self.reading: dict[socket.socket, float] = {}
        self.connections = Places(CONNECTIONS + limits.waiting)
        try:
            super().__init__((host, port), Visit)
        except (OSError, OverflowError) as error:
            raise InputError(f"--host {host} --port {port}: {error}; --port 0 takes any free port") from error

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        name = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{name}:{self.server_port}/"

    def server_bind(self) -> None:
        """Bind without the look-up of the host's full name that HTTPServer does: nothing here asks the network."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or turn it away when there are too many."""
        if self.connections.take():
            super().process_request(request, client_address)
            return
        request.setblocking(False)
        request.send(_CROWDED)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What the thread of a connection does."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.give_back()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say on the terminal what went wrong in one connection; the server goes on."""
        # a reader who closes the page is no failure.
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            traceback.print_exc()

    def service_actions(self) -> None:
        """Twice a second: read no more of requests that are late, however slowly they drip."""
        self._stop_reading(time.monotonic())

    def server_close(self) -> None:
        """Stop listening, and end what is being read, what waits and what runs."""
        self.socket.close()
        self._stop_reading(math.inf)
        self.line.close()
        super().server_close()

    def _stop_reading(self, now: float) -> None:
        for connection, end in list(self.reading.items()):
            if end < now:
                with contextlib.suppress(OSError):  # it may have ended by itself
                    connection.shutdown(socket.SHUT_RD)


def serve_demo(model: str, host: str, port: int, limits: Limits, load: Callable[[], Extractor]) -> None:
    """Serve the demo of a model until Ctrl-C. Raises InputError for what is no model, and for a port that is taken."""
    with DemoServer(host, port, Path(model).resolve().name, limits) as server:
        # also where the shell has a command in the background ignore Ctrl-C, and for whoever supervises it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        server.extractor = load()
        print(f"{server.url} shows the demo of {model}; Ctrl-C ends it", file=sys.stderr, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ending, after the text that is being read; Ctrl-C again ends at once", file=sys.stderr, flush=True)
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
