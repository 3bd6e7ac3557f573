"""An event store in the process, for tests and for trying the library out: no server, the same promises."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from eventdriven_sync.envelope import utcnow
from eventdriven_sync.errors import ConfigurationError, StoreUnavailable
from eventdriven_sync.records import delivery_id
from eventdriven_sync.stores.memory.deliveries import MemoryDeliveries
from eventdriven_sync.stores.memory.directory import MemoryDirectory
from eventdriven_sync.stores.memory.events import MemoryEvents
from eventdriven_sync.stores.memory.figures import MemoryFigures
from eventdriven_sync.stores.memory.idempotency import MemoryIdempotency
from eventdriven_sync.stores.memory.jobs import MemoryJobs
from eventdriven_sync.stores.memory.people import MemoryPeople
from eventdriven_sync.stores.memory.state import MemorySession, State
from eventdriven_sync.stores.memory.trail import MemoryTrail

__all__ = ["MemorySession", "MemoryStore"]

T = TypeVar("T")


class MemoryStore:
    """A ``Store`` in one process. Thread-safe.

    Args:
        clock: what time it is, aware and in UTC; replaceable so that tests control leases and retries.
    """

    def __init__(self, *, clock: Callable[[], datetime] | None = None) -> None:
        self._state = State(clock or utcnow)
        self.events = MemoryEvents(self._state)
        self.deliveries = MemoryDeliveries(self._state)
        self.directory = MemoryDirectory(self._state)
        self.figures = MemoryFigures(self._state)
        self.trail = MemoryTrail(self._state)
        self.jobs = MemoryJobs(self._state)
        self.people = MemoryPeople(self._state)
        self.idempotency = MemoryIdempotency(self._state)

    @property
    def unavailable(self) -> bool:
        """Set to True, every call raises StoreUnavailable and writes nothing."""
        return self._state.unavailable

    @unavailable.setter
    def unavailable(self, value: bool) -> None:
        self._state.unavailable = value

    @property
    def client(self) -> Any:
        """There is none; ConfigurationError says so."""
        raise ConfigurationError(
            "the events are stored in memory, without a MongoClient: give the code that asks for it one of "
            "its own here",
            field="mongo_client",
        )

    def open(self, *, timeout: float) -> None:
        """Nothing to connect.

        Raises:
            StoreUnavailable: the switch is on.
        """
        self.directory.now()

    @contextmanager
    def transaction(self, *, timeout: float) -> Iterator[Any]:
        """A transaction: its writes appear together when the block ends, none of them if it raises.

        Raises:
            StoreUnavailable: somebody changed the same records meanwhile; nothing was written.
        """
        session = self._state.begin()
        try:
            yield session
        finally:
            session.end()
        if not self._state.commit(session):
            raise _conflict()

    def run_transaction(self, body: Callable[[Any], T], *, timeout: float) -> T:
        """Run ``body(session)`` in a transaction; run it again on conflicts within ``timeout``."""
        deadline = time.monotonic() + timeout
        while True:
            session = self._state.begin()
            try:
                result = body(session)
            finally:
                session.end()
            if self._state.commit(session):
                return result
            if time.monotonic() >= deadline:
                raise _conflict()

    def erase(self, handler: str, event_ids: Sequence[str]) -> None:
        """Remove what a probe left: a handler, events, their deliveries, its statistics."""
        with self._state.open() as tables:
            tables.handlers.pop(handler, None)
            for event_id in event_ids:
                tables.events.pop(event_id, None)
                tables.deliveries.pop(delivery_id(handler, event_id), None)
            for key in [key for key, row in tables.stats.items() if row["handler"] == handler]:
                del tables.stats[key]

    def info(self) -> dict[str, Any]:
        """Facts for the doctor."""
        return {"version": "memory", "clock": self.directory.now()}

    def close(self) -> None:
        """Nothing to disconnect."""


def _conflict() -> StoreUnavailable:
    return StoreUnavailable("the transaction met concurrent writes of the same records; nothing was written")
