"""The pulse of a background thread: whether it still comes round, and since when its rounds fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import attrs


@attrs.frozen(kw_only=True)
class Reading:
    """A pulse as it was at one moment.

    Attributes:
        started: whether the thread was started.
        alive: whether it runs.
        silent: seconds since it last said that it lives.
        unwell: seconds since a round of it last went well.
        pause: seconds it rests between two rounds.
    """

    started: bool
    alive: bool
    silent: float
    unwell: float
    pause: float


class Pulse:
    """What a thread that works in rounds says of itself. Thread-safe.

    Args:
        pause: seconds it rests between two rounds.
        clock: seconds that never go back.
    """

    def __init__(
        self, thread: threading.Thread, *, pause: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._thread = thread
        self._pause = pause
        self._clock = clock
        self._beat_at = self._well_at = clock()

    def start(self) -> None:
        """Start the thread."""
        self._beat_at = self._well_at = self._clock()
        self._thread.start()

    def beat(self) -> None:
        """It lives: to be called between two steps that each have a deadline."""
        self._beat_at = self._clock()

    def well(self) -> None:
        """A round went well."""
        self._beat_at = self._well_at = self._clock()

    def read(self) -> Reading:
        """How it is now."""
        now = self._clock()
        return Reading(
            started=self._thread.ident is not None,
            alive=self._thread.is_alive(),
            silent=now - self._beat_at,
            unwell=now - self._well_at,
            pause=self._pause,
        )
