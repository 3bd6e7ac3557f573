"""Counts and groups in memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.figures import (
    DURATION_BUCKETS_MS,
    MAX_GROUPS,
    MAX_LINKS,
    DeliveryLink,
    EventLink,
    HandledCount,
    LetterGroup,
    Links,
    PublishedCount,
)
from eventdriven_sync.records import Delivery
from eventdriven_sync.stores.memory.counts import MemoryCounts
from eventdriven_sync.stores.memory.events import within

OPEN = ("pending", "running", "retrying")

Row = dict[str, Any]


class MemoryFigures(MemoryCounts):
    """The ``Figures`` of a ``MemoryStore``. Thread-safe."""

    def published(self, *, since: datetime, until: datetime) -> list[PublishedCount]:
        """Events published in ``[since, until)`` by minute, name and version."""
        with self._state.open() as tables:
            counts = Counter(
                (event.published_at.replace(second=0, microsecond=0), event.name, event.version)
                for event in tables.events.values()
                if within(event.published_at, since, until)
            )
        return [
            PublishedCount(minute=minute, name=name, version=version, count=count)
            for (minute, name, version), count in sorted(counts.items())
        ]

    def handled_by_minute(self, *, since: datetime, until: datetime) -> list[HandledCount]:
        """Attempts settled in ``[since, until)`` by minute, oldest first."""
        groups = self._grouped(since, until, lambda row: (row["minute"],))
        return [HandledCount(minute=minute, **_sums(rows)) for (minute,), rows in groups]

    def handled_by_subject(self, *, since: datetime, until: datetime) -> list[HandledCount]:
        """Attempts settled in ``[since, until)`` by event name and handler."""
        groups = self._grouped(since, until, lambda row: (row.get("event_name", ""), row.get("handler", "")))
        return [
            HandledCount(event_name=name, handler=handler, durations=_durations(rows), **_sums(rows))
            for (name, handler), rows in groups
        ]

    def _grouped(
        self, since: datetime, until: datetime, key: Callable[[Row], tuple[Any, ...]]
    ) -> list[tuple[tuple[Any, ...], list[Row]]]:
        groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
        with self._state.open() as tables:
            for row in tables.stats.values():
                if within(row["minute"], since, until):
                    groups[key(row)].append(row)
        return sorted(groups.items())

    def oldest_open(self) -> datetime | None:
        """``created_at`` of the oldest delivery that is pending, running or retrying."""
        with self._state.open() as tables:
            moments = (each.created_at for each in tables.deliveries.values() if each.state in OPEN)
            return min(moments, default=None)

    def letter_groups(
        self,
        handlers: Sequence[str] | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[LetterGroup]:
        """Dead letters by handler and fingerprint, the largest group first."""
        groups: dict[tuple[str, str], list[Delivery]] = defaultdict(list)
        with self._state.open() as tables:
            for each in tables.deliveries.values():
                wanted = each.state == "dead" and (handlers is None or each.handler in handlers)
                if wanted and within(each.created_at, since, until):
                    groups[each.handler, each.fingerprint].append(each)
        largest = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
        return [_group(letters) for _, letters in largest[:MAX_GROUPS]]

    def links(self, name: str, *, since: datetime, until: datetime, limit: int) -> Links:
        """The newest events of a name published in ``[since, until)``, with their chains."""
        with self._state.open() as tables:
            events = sorted(tables.events.values(), key=lambda event: (event.published_at, event.id))
            deliveries = list(tables.deliveries.values())
        named = [e for e in reversed(events) if e.name == name and within(e.published_at, since, until)]
        operations = {event.operation_id for event in named[:limit]}
        inside = [event for event in events if event.operation_id in operations]
        settled = [delivery for delivery in deliveries if delivery.operation_id in operations]
        return Links(
            roots=tuple(map(_event_link, named[:limit])),
            events=tuple(map(_event_link, inside[:MAX_LINKS])),
            deliveries=tuple(map(_delivery_link, settled[:MAX_LINKS])),
            truncated=max(len(inside), len(settled)) > MAX_LINKS,
        )


def _event_link(event: Envelope) -> EventLink:
    return EventLink(id=event.id, name=event.name, parent_ids=event.parent_ids, source=event.source)


def _delivery_link(delivery: Delivery) -> DeliveryLink:
    return DeliveryLink(
        event_id=delivery.event_id,
        handler=delivery.handler,
        state=delivery.state,
        failed=delivery.failed,
        duration_ms=delivery.duration_ms,
    )


def _sums(rows: Sequence[Row]) -> Row:
    columns = ("succeeded", "failed", "dead", "discarded")
    return {name: sum(row.get(name, 0) for row in rows) for name in columns}


def _durations(rows: Sequence[Row]) -> tuple[int, ...]:
    buckets = range(len(DURATION_BUCKETS_MS) + 1)
    return tuple(sum(sum(row["durations"][number : number + 1]) for row in rows) for number in buckets)


def _group(letters: Sequence[Delivery]) -> LetterGroup:
    newest = max(letters, key=lambda letter: (letter.created_at, letter.id))
    return LetterGroup(
        handler=newest.handler,
        fingerprint=newest.fingerprint,
        error_type=newest.failures[-1].error_type if newest.failures else "",
        message=newest.failures[-1].message if newest.failures else "",
        count=len(letters),
        first_at=min(letter.created_at for letter in letters),
        last_at=max(letter.settled_at or letter.created_at for letter in letters),
    )
