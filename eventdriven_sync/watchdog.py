"""The thread that looks after those who work, and sleeps while nobody does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

TICK = 0.05
# Looks in vain before it sleeps: waking it costs whoever begins something more than it costs to look.
LINGERS = 20


class Watchdog:
    """Calls ``look`` every 50 ms from ``wake`` on, until nothing was there for a second. Thread-safe.

    Args:
        look: whether there is something to look after.
    """

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._work = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="eventdriven-watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Somebody works, and ``look`` would see it."""
        if not self._work.is_set():
            self._work.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._work.set()
        if self._thread.ident:
            self._thread.join(timeout=1.0)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        quiet = LINGERS
        while not self._stopped.is_set():
            if quiet >= LINGERS:
                self._work.wait()
            if self._stopped.wait(TICK):
                return
            woken = self._work.is_set()
            self._work.clear()  # before the look: who wakes it later begins something that it did not see
            quiet = 0 if self._sees_something() or woken else quiet + 1

    def _sees_something(self) -> bool:
        try:
            return self._look()
        except Exception:
            log.exception("The watchdog met an unexpected error and goes on")
            return True
