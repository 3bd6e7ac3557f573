"""Counts kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from eventdriven_sync.figures import HourCount, PublishedCount
from eventdriven_sync.stores.memory.events import within
from eventdriven_sync.stores.memory.state import State

MINUTE = timedelta(minutes=1)


class MemoryCounts:
    """The counts that ``MemoryFigures`` keeps. Thread-safe."""

    def __init__(self, state: State) -> None:
        self._state = state

    def oldest_published(self) -> datetime | None:
        """When the oldest stored event was published."""
        with self._state.open() as tables:
            return min((event.published_at for event in tables.events.values()), default=None)

    def save_published(self, counts: Sequence[PublishedCount], *, since: datetime, until: datetime) -> None:
        """Keep the counts of every minute of ``[since, until)``, also of those without events."""
        with self._state.open() as tables:
            for number in range((until - since) // MINUTE):
                minute = since + number * MINUTE
                tables.published[minute] = tuple(each for each in counts if each.minute == minute)

    def saved_published(self, *, since: datetime, until: datetime) -> list[PublishedCount]:
        """Counts kept, of minutes in ``[since, until)``, oldest first."""
        with self._state.open() as tables:
            kept = sorted(tables.published.items())
        return [each for minute, counts in kept if within(minute, since, until) for each in counts]

    def counted_until(self) -> datetime | None:
        """The end of the last minute kept."""
        with self._state.open() as tables:
            return max(tables.published) + MINUTE if tables.published else None

    def save_hour(self, hour: HourCount) -> None:
        """Keep an hour, or replace it."""
        with self._state.open() as tables:
            tables.hours[hour.hour] = hour

    def hours(self, *, since: datetime, until: datetime) -> list[HourCount]:
        """Hours kept that begin in ``[since, until)``, oldest first."""
        with self._state.open() as tables:
            return [hour for at, hour in sorted(tables.hours.items()) if within(at, since, until)]

    def last_hour(self) -> datetime | None:
        """The begin of the last hour kept."""
        with self._state.open() as tables:
            return max(tables.hours, default=None)
