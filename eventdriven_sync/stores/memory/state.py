"""What the memory store keeps, behind one lock, and the sessions of its transactions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import attrs

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import StoreError, StoreUnavailable
from eventdriven_sync.figures import AuditEntry, HourCount, PublishedCount
from eventdriven_sync.jobs import RetryJob
from eventdriven_sync.people import User
from eventdriven_sync.records import Delivery, HandlerRecord, Operation, Reply, WorkerRecord

V = TypeVar("V")


@attrs.frozen(kw_only=True)
class Lease:
    """Who leads a role, until when."""

    holder: str
    until: datetime


@attrs.frozen(kw_only=True)
class Claim:
    """Who runs the request of an idempotency key, or what it was answered."""

    fingerprint: str
    token: str
    lease_until: datetime
    expires_at: datetime
    reply: Reply | None = None


@attrs.define(kw_only=True)
class Tables:
    """The collections. A record is replaced and never changed in place."""

    events: MutableMapping[str, Envelope] = attrs.field(factory=dict)
    deliveries: MutableMapping[str, Delivery] = attrs.field(factory=dict)
    discarded: dict[str, Delivery] = attrs.field(factory=dict)
    operations: dict[str, Operation] = attrs.field(factory=dict)
    handlers: dict[str, HandlerRecord] = attrs.field(factory=dict)
    workers: dict[str, WorkerRecord] = attrs.field(factory=dict)
    leases: dict[str, Lease] = attrs.field(factory=dict)
    stats: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    published: dict[datetime, tuple[PublishedCount, ...]] = attrs.field(factory=dict)
    hours: dict[datetime, HourCount] = attrs.field(factory=dict)
    jobs: dict[str, RetryJob] = attrs.field(factory=dict)
    audit: dict[str, AuditEntry] = attrs.field(factory=dict)
    users: dict[str, User] = attrs.field(factory=dict)
    sessions: dict[str, Any] = attrs.field(factory=dict)
    strikes: dict[str, Any] = attrs.field(factory=dict)
    idempotency: dict[str, Claim] = attrs.field(factory=dict)


class State:
    """The tables with their lock, clock and switch. Thread-safe through ``open``."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.unavailable = False
        self._lock = threading.RLock()  # guards _tables
        self._tables = Tables()

    @contextmanager
    def open(self, session: Any = None) -> Iterator[Tables]:
        """The tables, or a transaction's view of them, for one call.

        Raises:
            StoreUnavailable: the switch is on.
        """
        if self.unavailable:
            raise StoreUnavailable("the memory store was made unavailable by its test; nothing was written")
        with self._lock:
            yield self._tables if session is None else _view_of(session)

    def begin(self) -> MemorySession:
        """A session that sees the tables and keeps its writes to itself."""
        with self.open() as tables:
            return MemorySession(tables)

    def commit(self, session: MemorySession) -> bool:
        """Apply a session's writes together; False if somebody changed what it had read."""
        with self.open():
            overlays = (session.events, session.deliveries)
            if any(overlay.outdated() for overlay in overlays):
                return False
            for overlay in overlays:
                overlay.apply()
            return True


class Overlay(MutableMapping[str, V]):
    """A table as one transaction sees it: its own writes over what is committed."""

    def __init__(self, committed: MutableMapping[str, V]) -> None:
        self._committed = committed
        self._seen: dict[str, V | None] = {}
        self._written: dict[str, V] = {}
        self._at_first: dict[str, V] | None = None

    def open(self) -> None:
        """From now on whoever changes what is written here conflicts with it."""
        if self._at_first is None:
            self._at_first = dict(self._committed)

    def outdated(self) -> bool:
        """Whether anything read here has changed since, or anything written since the first use."""
        first = self._at_first or {}
        return any(self._committed.get(key) is not value for key, value in self._seen.items()) or any(
            self._committed.get(key) is not first.get(key) for key in self._written
        )

    def apply(self) -> None:
        """Make the writes visible to everybody."""
        self._committed.update(self._written)

    def __getitem__(self, key: str) -> V:
        if key in self._written:
            return self._written[key]
        self._seen.setdefault(key, self._committed.get(key))
        return self._committed[key]

    def __setitem__(self, key: str, value: V) -> None:
        self._seen.setdefault(key, self._committed.get(key))
        self._written[key] = value

    def __delitem__(self, key: str) -> None:
        raise NotImplementedError("nothing in the store is deleted in a transaction")

    def __iter__(self) -> Iterator[str]:
        return iter({**self._committed, **self._written})

    def __len__(self) -> int:
        return len({**self._committed, **self._written})


class MemorySession:
    """The session of a memory transaction; the user's own writes have no place in it."""

    def __init__(self, tables: Tables) -> None:
        self.events = Overlay(tables.events)
        self.deliveries = Overlay(tables.deliveries)
        self.in_transaction = True

    def open(self) -> None:
        """Its first use, as in MongoDB: what others write from now on is too late for it."""
        self.events.open()
        self.deliveries.open()

    def end(self) -> None:
        """The block is over: nothing can be written through this session any more."""
        self.in_transaction = False


def _view_of(session: Any) -> Tables:
    if not isinstance(session, MemorySession) or not session.in_transaction:
        raise StoreError(
            f"session {session!r} belongs to no open transaction of this store:"
            " use the one that transaction() or run_transaction() gives, inside its block",
            field="session",
        )
    session.open()
    return Tables(events=session.events, deliveries=session.deliveries)
