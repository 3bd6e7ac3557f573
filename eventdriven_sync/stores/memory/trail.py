"""The audit trail in memory."""

from __future__ import annotations

import copy

from attrs import evolve

from eventdriven_sync.figures import AuditEntry, AuditQuery
from eventdriven_sync.stores.memory.events import page, same, within
from eventdriven_sync.stores.memory.state import State


class MemoryTrail:
    """The ``AuditTrail`` of a ``MemoryStore``. Thread-safe."""

    def __init__(self, state: State) -> None:
        self._state = state

    def record(self, entry: AuditEntry) -> None:
        """Add an entry; its ``at`` becomes the store's time."""
        now = self._state.clock()
        with self._state.open() as tables:
            tables.audit.setdefault(entry.id, evolve(copy.deepcopy(entry), at=now))

    def find(self, query: AuditQuery) -> list[AuditEntry]:
        """Entries by query, newest first."""
        with self._state.open() as tables:
            found = [(each.at, each) for each in tables.audit.values() if each.at and _matches(each, query)]
        newest = page(found, order=lambda pair: (pair[0], pair[1].id), after=query.after, limit=query.limit)
        return [entry for _, entry in newest]


def _matches(entry: AuditEntry, query: AuditQuery) -> bool:
    touched = query.touched is None or query.touched in entry.ids
    fields = ((query.who, entry.who), (query.action, entry.action))
    assert entry.at is not None
    return touched and same(fields) and within(entry.at, query.since, query.until)
