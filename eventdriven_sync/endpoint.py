"""Health over HTTP, for what watches processes: ``/live``, ``/ready`` and ``/progress``.

One thread looks at the worker, another answers with the last look: a probe is never kept waiting by a server
that hangs, and asks no server. What it says are states, reasons and counts, never data of events.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Self

import attrs

from eventdriven_sync.config import check_number, check_text
from eventdriven_sync.errors import ConfigurationError, shorten
from eventdriven_sync.health import Health, Part, Progress

log = logging.getLogger(__name__)

LOOK_EVERY = 5.0
# A look older than this many pauses says nothing any more: whoever looks is stuck.
STALE_AFTER = 4
# Whoever is slower with a request, or with reading the answer, keeps the others waiting.
PATIENCE = 2.0
MAX_REQUEST = 8 * 1024

UNSEEN = Health(
    parts=(Part(name="health", state="failing", reason="nobody has looked yet"),),
    progress=Progress(handlers=()),
)

Document = dict[str, Any]


class HealthEndpoint:
    """Answers HTTP requests about the health of a worker or a bus; a context manager.

    Args:
        look: says how it is, within a few seconds: ``worker.health`` or ``bus.health``.
        port: to listen at; 0 takes a free one.
        host: to listen at. There is no authentication: do not open it to strangers.
        every: seconds between two looks.

    Raises:
        ConfigurationError: an option is outside its range.

    Example:
        >>> with HealthEndpoint(worker.health, port=8080):
        ...     worker.run()
    """

    def __init__(
        self,
        look: Callable[[], Health],
        *,
        port: int,
        host: str = "127.0.0.1",
        every: float = LOOK_EVERY,
    ) -> None:
        check_number(port, field="port", low=0, high=65535, whole=True)
        check_number(every, field="every", low=0.01, high=60)
        self._look = look
        self._address = check_text(host, field="host", most=255), port
        self._every = every
        self._last = (time.monotonic(), UNSEEN)
        self._stopping = threading.Event()
        self._server: _Server | None = None
        self._threads: list[threading.Thread] = []

    @property
    def port(self) -> int:
        """Where it listens; 0 before it was started if none was given."""
        return self._server.server_address[1] if self._server else self._address[1]

    def start(self) -> Self:
        """Listen, and begin to look.

        Raises:
            ConfigurationError: the address cannot be listened at.
        """
        try:
            self._server = _Server(self._address, self.answer)
        except OSError as error:
            host, port = self._address
            raise ConfigurationError(
                f"health cannot be served at {shorten(host)} port {port}: {error.strerror or error}; choose "
                "another port or host",
                field="port",
                value=port,
            ) from error
        self._last = (time.monotonic(), UNSEEN)
        serve = self._server.serve_forever
        self._threads = [
            threading.Thread(target=self._keep_looking, name="eventdriven-health", daemon=True),
            threading.Thread(target=serve, args=(0.2,), name="eventdriven-health-http", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def stop(self, timeout: float = 5.0) -> None:
        """Close the port and end both threads; safe to call twice."""
        self._stopping.set()
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join(timeout)

    def answer(self, path: str) -> tuple[int, Document]:
        """Status code and document of a path."""
        known = {"/live": _live, "/ready": _ready, "/progress": _progress}
        describe = known.get(path.partition("?")[0])
        if describe is None:
            return 404, {"status": "unknown path", "paths": list(known)}
        looked_at, health = self._last
        age = time.monotonic() - looked_at
        if age > STALE_AFTER * self._every + PATIENCE:
            return 503, {"status": "failing", "reasons": [f"the last look is {age:.0f} s old"]}
        good, document = describe(health)
        return (200 if good else 503), {"status": "ok" if good else "failing", **document}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _keep_looking(self) -> None:
        while not self._stopping.is_set():
            try:
                self._last = (time.monotonic(), self._look())
            except Exception:
                log.exception("Health could not be looked at")
            self._stopping.wait(self._every)


def _live(health: Health) -> tuple[bool, Document]:
    """Whether a new process would help."""
    parts = [part for part in health.parts if part.state == "dead"]
    return health.live, {"reasons": [f"{part.name}: {part.reason}" for part in parts]}


def _ready(health: Health) -> tuple[bool, Document]:
    parts = {part.name: {"state": part.state, "reason": part.reason} for part in health.parts}
    return health.ready, {"parts": parts}


def _progress(health: Health) -> tuple[bool, Document]:
    progress = health.progress
    return health.moving, {
        "reasons": list(progress.reasons),
        "settled_ago": _rounded(progress.settled_ago),
        "handlers": {
            handler.name: {
                "pending": handler.pending,
                "in_hand": handler.in_hand,
                "overdue": _rounded(handler.overdue),
                "settled_ago": _rounded(handler.settled_ago),
                "paused": handler.paused,
                "stalled": handler.stalled,
            }
            for handler in progress.handlers
        },
        "running": [
            attrs.asdict(running) | {"seconds": _rounded(running.seconds)} for running in progress.running
        ],
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


class _Server(TCPServer):
    """One connection at a time, in the thread that serves. Unlike HTTPServer it asks no name server."""

    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], answer: Callable[[str], tuple[int, Document]]) -> None:
        self.answer = answer
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asks may hang up at any time."""
        log.debug("A health request failed: %r", sys.exception())


class _Request(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "eventdriven_sync", ""

    def setup(self) -> None:
        """Take the whole request within its time: a byte now and then must not hold the thread."""
        super().setup()
        self.rfile.close()
        self.rfile = BytesIO(_read_head(self.connection))

    def do_GET(self) -> None:
        self._reply(*self.server.answer(self.path))

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no request of ours is told so in the same form."""
        self._reply(int(code), {"status": "refused"})

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def _reply(self, code: int, document: Document) -> None:
        body = json.dumps(document).encode() + b"\n"
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _read_head(connection: socket.socket) -> bytes:
    """A request up to the empty line, cut at the limit.

    Raises:
        TimeoutError: it did not come in time.
    """
    deadline, head = time.monotonic() + PATIENCE, b""
    while b"\r\n\r\n" not in head and len(head) < MAX_REQUEST:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        piece = connection.recv(MAX_REQUEST - len(head))
        if not piece:
            break
        head += piece
    connection.settimeout(PATIENCE)
    return head
