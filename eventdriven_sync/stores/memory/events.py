"""Events and operations in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import EventDrivenError, EventIdReused
from eventdriven_sync.records import Operation
from eventdriven_sync.store import EventQuery, OperationQuery
from eventdriven_sync.stores.memory.copies import copied
from eventdriven_sync.stores.memory.state import State

T = TypeVar("T")


class MemoryEvents:
    """The ``EventStore`` of a ``MemoryStore``. Thread-safe."""

    def __init__(self, state: State) -> None:
        self._state = state

    def append(self, events: Sequence[Envelope], *, timeout: float, session: Any = None) -> list[bool]:
        """Store events; per event True if it was stored before.

        Raises:
            EventIdReused: an id exists with other content and is not derived from parents.
            StoreUnavailable: the switch is on.
        """
        with self._state.open(session) as tables:
            return insert_events(tables.events, events)

    def record(self, events: Sequence[Envelope]) -> list[EventDrivenError | None]:
        """Store events that the broker accepted, unless their ids are stored already."""
        with self._state.open() as tables:
            for event in events:
                if event.id not in tables.events:
                    tables.events[event.id] = copied(event)
        return [None] * len(events)

    def get(self, ids: Sequence[str]) -> dict[str, Envelope]:
        """The events with these ids, as far as they exist."""
        with self._state.open() as tables:
            return {each: copied(tables.events[each]) for each in ids if each in tables.events}

    def find(self, query: EventQuery) -> list[Envelope]:
        """Events by query, by the time of their publishing."""
        with self._state.open() as tables:
            found = [event for event in tables.events.values() if _event_matches(event, query)]
        return page(
            found,
            order=lambda event: (event.published_at, event.id),
            after=query.after,
            limit=query.limit,
            oldest_first=query.oldest_first,
        )

    def count(self, names: Sequence[str], *, since: datetime | None, until: datetime | None = None) -> int:
        """How many events of these names were published in ``[since, until)``."""
        with self._state.open() as tables:
            return sum(
                event.name in names and within(event.published_at, since, until)
                for event in tables.events.values()
            )

    def save_operation(self, operation: Operation, *, timeout: float) -> None:
        """Insert the operation, or replace it by this state of it."""
        with self._state.open() as tables:
            tables.operations[operation.id] = copied(operation)

    def operation(self, operation_id: str) -> Operation | None:
        """The operation, or None."""
        with self._state.open() as tables:
            return copied(tables.operations.get(operation_id))

    def find_operations(self, query: OperationQuery) -> list[Operation]:
        """Operations by query, by the time they began."""
        with self._state.open() as tables:
            found = [each for each in tables.operations.values() if _operation_matches(each, query)]
        return page(
            found,
            order=lambda operation: (operation.started_at, operation.id),
            after=query.after,
            limit=query.limit,
        )


def insert_events(table: MutableMapping[str, Envelope], events: Sequence[Envelope]) -> list[bool]:
    """Store what is new; per event whether it was there before. All or, on EventIdReused, nothing."""
    fresh: dict[str, Envelope] = {}
    repeated = []
    for event in events:
        stored = table.get(event.id) or fresh.get(event.id)
        repeated.append(stored is not None)
        if stored is None:
            fresh[event.id] = copied(event)
        elif stored.content_hash() != event.content_hash() and not event.parent_ids:
            raise _reused(event)
    table.update(fresh)
    return repeated


def _reused(event: Envelope) -> EventIdReused:
    return EventIdReused(
        f"event_id {event.id!r} is stored with other content than this {event.name}:"
        " give each event its own id, and a repeated publish the same content",
        field="event_id",
        value=event.id,
        event_id=event.id,
    )


def page(
    found: Iterable[T],
    *,
    order: Callable[[T], tuple[datetime, str]],
    after: str | None,
    limit: int,
    oldest_first: bool = False,
) -> list[T]:
    """Copies of one page, newest first; ``after`` is the id of the last record of the page before."""
    ordered = sorted(found, key=order, reverse=not oldest_first)
    ids = [order(each)[1] for each in ordered]
    if after is not None:
        ordered = ordered[ids.index(after) + 1 :] if after in ids else []
    return [copied(each) for each in ordered[:limit]]


def within(moment: datetime, since: datetime | None, until: datetime | None) -> bool:
    """Whether a moment lies in ``[since, until)``; None is no bound."""
    return (since is None or moment >= since) and (until is None or moment < until)


def same(pairs: Iterable[tuple[object, object]]) -> bool:
    """Whether every wanted value that is given equals the actual one."""
    return all(wanted is None or wanted == actual for wanted, actual in pairs)


def _event_matches(event: Envelope, query: EventQuery) -> bool:
    fields = ((query.operation_id, event.operation_id), (query.source, event.source), (query.key, event.key))
    named = not query.names or event.name in query.names
    inside = named and same(fields) and within(event.published_at, query.since, query.until)
    return inside and all(_holds(event.data, path.split("."), v) for path, v in query.payload.items())


def _holds(found: Any, path: Sequence[str], wanted: Any) -> bool:
    """Whether a payload has this value at this path, as MongoDB sees it: lists are looked into."""
    if isinstance(found, list):
        inner = any(_holds(each, path, wanted) for each in found if not isinstance(each, list))
        at = int(path[0]) if path and path[0].isdecimal() else len(found)
        return inner or (at < len(found) and _holds(found[at], path[1:], wanted))
    if path:
        return isinstance(found, dict) and path[0] in found and _holds(found[path[0]], path[1:], wanted)
    # To Python True is 1.
    return isinstance(found, bool) is isinstance(wanted, bool) and bool(found == wanted)


def _operation_matches(operation: Operation, query: OperationQuery) -> bool:
    fields = (
        (query.kind, operation.kind),
        (query.name, operation.name),
        (query.user, operation.user),
        (query.status, operation.status),
    )
    return same(fields) and within(operation.started_at, query.since, query.until)
