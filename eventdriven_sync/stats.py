"""Counters per minute: what was handled, how it ended and how long it took.

Each worker writes its own documents with absolute values, so that writing one again changes nothing.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from eventdriven_sync.figures import DURATION_BUCKETS_MS
from eventdriven_sync.outcome import Dead, Discarded, Done, RetryAt
from eventdriven_sync.records import Settlement

_COLUMNS = {Done: "succeeded", RetryAt: "failed", Dead: "dead", Discarded: "discarded"}


class Stats:
    """Counts settlements in memory until ``drain``. Thread-safe.

    Args:
        source: whose counters these are: the worker's id.
        clock: seconds since 1970.
    """

    def __init__(self, *, source: str, clock: Callable[[], float] = time.time) -> None:
        self._source = source
        self._clock = clock
        self._settled_at: dict[str, float] = {}
        self._lock = threading.Lock()  # guards _minutes
        self._minutes: dict[tuple[int, str, str], dict[str, Any]] = {}

    def count(self, *settlements: Settlement) -> None:
        """These attempts were settled."""
        minute = int(self._clock() // 60)
        self.touch({settlement.handler for settlement in settlements})
        with self._lock:
            for settlement in settlements:
                row = self._row(minute, settlement.event_name, settlement.handler)
                row[_COLUMNS[type(settlement.outcome)]] += 1
                row["durations"][bisect_left(DURATION_BUCKETS_MS, settlement.duration_ms)] += 1

    def touch(self, handlers: Iterable[str]) -> None:
        """Something of these handlers is off the table, if only because its outcome was known already."""
        now = time.monotonic()
        for name in handlers:
            self._settled_at[name] = now

    def settled_at(self) -> dict[str, float]:
        """When something of each handler was last settled, in seconds of ``time.monotonic``."""
        return dict(self._settled_at)

    def drain(self) -> list[dict[str, Any]]:
        """What to write now: every minute not over yet, and the last state of those that are."""
        now = int(self._clock() // 60)
        with self._lock:
            rows = [dict(row, durations=list(row["durations"])) for row in self._minutes.values()]
            # A minute is kept one longer, for attempts that began counting at its very end.
            self._minutes = {key: row for key, row in self._minutes.items() if key[0] >= now - 1}
        return rows

    def _row(self, minute: int, event_name: str, handler: str) -> dict[str, Any]:
        key = (minute, event_name, handler)
        if key not in self._minutes:
            self._minutes[key] = {
                "_id": f"{minute}:{event_name}:{handler}:{self._source}",
                "minute": datetime.fromtimestamp(minute * 60, UTC),
                "event_name": event_name,
                "handler": handler,
                "succeeded": 0,
                "failed": 0,
                "dead": 0,
                "discarded": 0,
                "durations": [0] * (len(DURATION_BUCKETS_MS) + 1),
            }
        return self._minutes[key]
