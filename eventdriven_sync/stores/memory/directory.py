"""Handlers, workers, leases and statistics in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import evolve

from eventdriven_sync.records import HandlerRecord, Pause, WorkerRecord
from eventdriven_sync.store import NEW
from eventdriven_sync.stores.memory.copies import copied, document
from eventdriven_sync.stores.memory.state import Lease, State

WORKER_SILENCE = timedelta(seconds=60)


class MemoryDirectory:
    """The ``Directory`` of a ``MemoryStore``. Thread-safe."""

    def __init__(self, state: State) -> None:
        self._state = state

    def register(self, records: Sequence[HandlerRecord]) -> list[HandlerRecord]:
        """Upsert by name and return what is stored; a retired handler begins anew."""
        now = self._state.clock()
        with self._state.open() as tables:
            for record in records:
                tables.handlers[record.name] = _registered(tables.handlers.get(record.name), record, now)
            return [copied(tables.handlers[record.name]) for record in records]

    def handlers(self, *, retired: bool = False) -> list[HandlerRecord]:
        """Handlers by name; retired ones only if asked for."""
        with self._state.open() as tables:
            known = sorted(tables.handlers.items())
        return [copied(each) for _, each in known if retired or each.retired_at is None]

    def retire(self, name: str) -> bool:
        """Mark as retired: nothing more is owed to it. False if unknown."""
        now = self._state.clock()
        with self._state.open() as tables:
            record = tables.handlers.get(name)
            if record is None:
                return False
            tables.handlers[name] = evolve(record, retired_at=record.retired_at or now)
            return True

    def pause(self, name: str, *, by: str, reason: str) -> bool:
        """Mark as paused. False if unknown."""
        return self._set_pause(name, Pause(at=self._state.clock(), by=by, reason=reason))

    def resume(self, name: str) -> bool:
        """No longer paused. False if unknown."""
        return self._set_pause(name, None)

    def _set_pause(self, name: str, pause: Pause | None) -> bool:
        with self._state.open() as tables:
            record = tables.handlers.get(name)
            if record is not None:
                tables.handlers[name] = evolve(record, paused=pause)
            return record is not None

    def reconciled(self, marks: Sequence[tuple[HandlerRecord, datetime]]) -> None:
        """Advance the watermarks of handlers; they never go back."""
        with self._state.open() as tables:
            for read, until in marks:
                record = tables.handlers.get(read.name)
                if record is not None and record.registered_at == read.registered_at:
                    reached = max(until, record.reconciled_until or until)
                    tables.handlers[read.name] = evolve(record, reconciled_until=reached)

    def now(self, *, timeout: float | None = None) -> datetime:
        """The store's clock."""
        with self._state.open():
            return self._state.clock()

    def estimated_now(self, *, timeout: float | None = None) -> datetime:
        """The store's clock."""
        return self._state.clock()

    def lead(self, role: str, holder: str, *, ttl: float) -> bool:
        """Take or keep the lease on a role; True while ``holder`` has it."""
        now = self._state.clock()
        with self._state.open() as tables:
            lease = tables.leases.get(role)
            if lease is not None and lease.holder != holder and lease.until > now:
                return False
            tables.leases[role] = Lease(holder=holder, until=now + timedelta(seconds=ttl))
            return True

    def resign(self, role: str, holder: str) -> None:
        """Give the lease back at once."""
        with self._state.open() as tables:
            lease = tables.leases.get(role)
            if lease is not None and lease.holder == holder:
                del tables.leases[role]

    def heartbeat(self, worker: WorkerRecord) -> None:
        """Say that a worker lives; ``seen_at`` becomes the store's time."""
        now = self._state.clock()
        with self._state.open() as tables:
            tables.workers[worker.id] = evolve(worker, seen_at=now)

    def workers(self, *, timeout: float | None = None) -> list[WorkerRecord]:
        """Workers heard of within the last minute, by id."""
        oldest = self._state.clock() - WORKER_SILENCE
        with self._state.open() as tables:
            return [worker for _, worker in sorted(tables.workers.items()) if worker.seen_at >= oldest]

    def forget_worker(self, worker_id: str) -> None:
        """The worker stopped in good order."""
        with self._state.open() as tables:
            tables.workers.pop(worker_id, None)

    def write_stats(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Replace per-minute documents by ``_id``."""
        with self._state.open() as tables:
            tables.stats.update((each["_id"], document(dict(each))) for each in documents)

    def stats(self, *, since: datetime) -> list[dict[str, Any]]:
        """Per-minute documents whose ``minute`` is not before ``since``, oldest first."""
        with self._state.open() as tables:
            chosen = [document(each) for each in tables.stats.values() if each["minute"] >= since]
        return sorted(chosen, key=lambda each: (each["minute"], each["_id"]))


def _registered(stored: HandlerRecord | None, record: HandlerRecord, now: datetime) -> HandlerRecord:
    if stored is not None and stored.retired_at is None:
        return evolve(
            copied(record),
            starts_at=stored.starts_at,
            registered_at=stored.registered_at,
            reconciled_until=stored.reconciled_until,
            paused=stored.paused,
        )
    return evolve(copied(record), starts_at=now if record.starts_at == NEW else record.starts_at)
