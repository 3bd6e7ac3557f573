"""Embedded mode: the worker's threads run in the web process, for small applications."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from tenacity import Retrying, retry_if_exception_type, sleep_using_event, wait_exponential

from eventdriven_sync.errors import BrokerError, EventDrivenError, StoreError
from eventdriven_sync.worker import Worker

if TYPE_CHECKING:
    from eventdriven_sync.flask.extension import AppState

log = logging.getLogger(__name__)

GRACE = 5.0
LONGEST_PAUSE = 30.0


class Embedded:
    """The worker of one application in this process. Thread-safe; a forked child runs one of its own."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._lock = threading.Lock()  # guards _pid and _thread
        self._pid = 0
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def ensure(self) -> None:
        """Start the worker, unless this process has one. Returns at once; servers that are down are awaited.

        Not under ``TESTING``: tests run handlers by ``eventdriven_sync.testing.memory``.
        """
        if self._pid == os.getpid() or self._state.testing:
            return
        with self._lock:
            if self._pid == os.getpid():
                return
            self._stopped = threading.Event()
            # No daemon: the interpreter waits for it at its end, while threads may still be started.
            self._thread = threading.Thread(
                target=self._run, args=(self._stopped,), name="eventdriven-embedded", daemon=False
            )
            self._thread.start()
            self._pid = os.getpid()

    def stop(self, *, timeout: float = GRACE + 5.0) -> None:
        """End the worker in good order; the next request starts another."""
        with self._lock:
            thread, self._thread, self._pid = self._thread, None, 0
        self._stopped.set()
        if thread is not None and thread.is_alive():
            thread.join(timeout)

    def _run(self, stopped: threading.Event) -> None:
        """Start the worker, and stop it when the process is about to end."""
        worker = self._started(stopped)
        if worker is None:
            return
        main = threading.main_thread()
        while main.is_alive() and not stopped.is_set():
            main.join(0.2)
        worker.stop(grace=GRACE)

    def _started(self, stopped: threading.Event) -> Worker | None:
        main = threading.main_thread()

        def ends(_: object) -> bool:
            return stopped.is_set() or not main.is_alive()

        retrying = Retrying(
            retry=retry_if_exception_type((StoreError, BrokerError)),
            wait=wait_exponential(max=LONGEST_PAUSE),
            stop=ends,
            sleep=sleep_using_event(stopped),
            before_sleep=lambda state: log.warning(
                "The embedded worker waits for its servers: %s", state.outcome and state.outcome.exception()
            ),
            reraise=True,
        )
        try:
            return retrying(self._start)
        except EventDrivenError as error:
            log.error("The embedded worker does not run: %s", error)
            return None

    def _start(self) -> Worker:
        return Worker(self._state.bus, threads=self._state.options.embedded_threads, grace=GRACE).start()
