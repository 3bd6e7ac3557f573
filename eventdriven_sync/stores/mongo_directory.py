"""Handlers, workers, leases and statistics in MongoDB. What is compared is the server's time (``$$NOW``)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import ReplaceOne, ReturnDocument, UpdateOne
from pymongo.errors import DuplicateKeyError

from eventdriven_sync.envelope import in_milliseconds
from eventdriven_sync.errors import StoreError
from eventdriven_sync.records import HandlerRecord, Pause, WorkerRecord
from eventdriven_sync.store import NEW
from eventdriven_sync.stores.collections import HANDLERS, LEASES, STATS, WORKERS, Document
from eventdriven_sync.stores.connection import Link
from eventdriven_sync.stores.mongo_events import clean

log = logging.getLogger(__name__)

_ALIVE_MS = 60_000
# Seconds after which the server's clock is read again: what two quartzes differ in the meantime is nothing.
READ_EVERY = 300.0


class MongoDirectory:
    """The ``Directory`` protocol on MongoDB. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        # What the server said, and our monotonic clock when it was asked, which nobody sets.
        self._read_at: tuple[datetime, float] | None = None
        # Held by the thread that asks again; the others do not wait for it.
        self._reading = threading.Lock()

    def register(self, records: Sequence[HandlerRecord]) -> list[HandlerRecord]:
        """Upsert by name and return what is stored."""
        if not records:
            return []
        connection = self._link.now
        target = connection.collections[HANDLERS]
        writes = [UpdateOne({"_id": r.name}, _registration(r), upsert=True) for r in records]
        action = "while registering handlers"
        connection.call(action, lambda: target.bulk_write(writes, ordered=False))
        names = [record.name for record in records]
        found = connection.call(action, lambda: list(target.find({"_id": {"$in": names}})))
        stored = {document["_id"]: _handler(document) for document in found}
        return [stored[name] for name in names]

    def handlers(self, *, retired: bool = False) -> list[HandlerRecord]:
        """Handlers by name; retired ones only if asked for."""
        target = self._link.now.collections[HANDLERS]
        where: Document = {} if retired else {"retired_at": None}
        found = self._link.now.call("while reading handlers", lambda: list(target.find(where).sort("_id", 1)))
        return [_handler(document) for document in found]

    def retire(self, name: str) -> bool:
        """Mark as retired: nothing more is owed to it. False if unknown."""
        target = self._link.now.collections[HANDLERS]
        change = [{"$set": {"retired_at": {"$ifNull": ["$retired_at", "$$NOW"]}}}]
        result = self._link.now.call(
            "while retiring a handler", lambda: target.update_one({"_id": name}, change)
        )
        return result.matched_count == 1

    def pause(self, name: str, *, by: str, reason: str) -> bool:
        """Mark as paused. False if unknown."""
        pause = _literal({"by": clean(by, 200), "reason": clean(reason, 2000)}) | {"at": "$$NOW"}
        return self._set(name, {"paused": pause}, "while pausing a handler")

    def resume(self, name: str) -> bool:
        """No longer paused. False if unknown."""
        return self._set(name, {"paused": None}, "while resuming a handler")

    def _set(self, name: str, fields: Document, action: str) -> bool:
        target = self._link.now.collections[HANDLERS]
        result = self._link.now.call(action, lambda: target.update_one({"_id": name}, [{"$set": fields}]))
        return result.matched_count == 1

    def reconciled(self, marks: Sequence[tuple[HandlerRecord, datetime]]) -> None:
        """Advance the watermarks of handlers; they never go back."""
        if not marks:
            return
        target = self._link.now.collections[HANDLERS]
        writes = [
            UpdateOne(
                {"_id": record.name, "registered_at": record.registered_at},
                [{"$set": {"reconciled_until": {"$max": ["$reconciled_until", until]}}}],
            )
            for record, until in marks
        ]
        action = "while noting what was reconciled"
        self._link.now.call(action, lambda: target.bulk_write(writes, ordered=False))

    def now(self, *, timeout: float | None = None) -> datetime:
        """The server's clock."""
        connection, asked = self._link.now, time.monotonic()
        hello = connection.call(
            "while reading the clock", lambda: connection.client.admin.command("hello"), timeout=timeout
        )
        moment: datetime = hello["localTime"]
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        self._read_at = (moment, asked)
        return moment

    def estimated_now(self, *, timeout: float | None = None) -> datetime:
        """The server's clock when it was last read, and the time since; read again every few minutes.

        That it is never behind the server comes from counting the way of the answer as well.
        """
        read_at = self._read_at or self._read_again(timeout)
        if time.monotonic() - read_at[1] > READ_EVERY and self._reading.acquire(blocking=False):
            try:
                read_at = self._read_again(timeout)
            except StoreError:
                log.info(
                    "The server's clock could not be read, its last reading is carried on", exc_info=True
                )
                self._read_at = (_after(read_at), time.monotonic())
            finally:
                self._reading.release()
        return _after(read_at)

    def _read_again(self, timeout: float | None) -> tuple[datetime, float]:
        self.now(timeout=timeout)
        assert self._read_at is not None
        return self._read_at

    def lead(self, role: str, holder: str, *, ttl: float) -> bool:
        """Take or keep the lease on a role; True while ``holder`` has it."""
        target = self._link.now.collections[LEASES]
        mine = {"$eq": ["$holder", {"$literal": holder}]}
        # A lease that does not exist yet has no ``until``, and a missing value is below every date.
        free = {"$or": [mine, {"$lte": ["$until", "$$NOW"]}]}
        until = {"$add": ["$$NOW", round(ttl * 1000)]}
        fields = {
            "holder": {"$cond": [free, {"$literal": holder}, "$holder"]},
            "until": {"$cond": [free, until, "$until"]},
        }

        def take() -> bool:
            try:
                found = target.find_one_and_update(
                    {"_id": role}, [{"$set": fields}], upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:
                return False  # somebody else took it for the first time at this moment
            return bool(found and found["holder"] == holder)

        return self._link.now.call("while taking a lease", take)

    def resign(self, role: str, holder: str) -> None:
        """Give the lease back at once."""
        target = self._link.now.collections[LEASES]
        self._link.now.call(
            "while giving a lease back", lambda: target.delete_one({"_id": role, "holder": holder})
        )

    def heartbeat(self, worker: WorkerRecord) -> None:
        """Say that a worker lives."""
        target = self._link.now.collections[WORKERS]
        fields: Document = {
            "host": worker.host,
            "pid": worker.pid,
            "handlers": list(worker.handlers),
            "threads": worker.threads,
            "running": list(worker.running),
            "started_at": worker.started_at,
        }
        change = [{"$set": _literal(fields) | {"seen_at": "$$NOW"}}]
        self._link.now.call(
            "while sending a heartbeat", lambda: target.update_one({"_id": worker.id}, change, upsert=True)
        )

    def workers(self, *, timeout: float | None = None) -> list[WorkerRecord]:
        """Workers heard of within the last minute."""
        target = self._link.now.collections[WORKERS]
        where = {"$expr": {"$gte": ["$seen_at", {"$subtract": ["$$NOW", _ALIVE_MS]}]}}
        found = self._link.now.call(
            "while reading workers", lambda: list(target.find(where)), timeout=timeout
        )
        return sorted((_worker(document) for document in found), key=lambda worker: worker.id)

    def forget_worker(self, worker_id: str) -> None:
        """The worker stopped in good order."""
        target = self._link.now.collections[WORKERS]
        self._link.now.call("while forgetting a worker", lambda: target.delete_one({"_id": worker_id}))

    def write_stats(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Replace per-minute documents by ``_id``; ``minute`` is the beginning of their minute."""
        if not documents:
            return
        target = self._link.now.collections[STATS]
        writes = [ReplaceOne({"_id": d["_id"]}, dict(d), upsert=True) for d in documents]
        self._link.now.call("while writing statistics", lambda: target.bulk_write(writes, ordered=False))

    def stats(self, *, since: datetime) -> list[dict[str, Any]]:
        """Per-minute documents since then, the oldest first."""
        target = self._link.now.collections[STATS]
        where = {"minute": {"$gte": since}}
        return self._link.now.call(
            "while reading statistics", lambda: list(target.find(where).sort("minute", 1))
        )


def _registration(record: HandlerRecord) -> list[Document]:
    """The update that registers a handler anew, or confirms one that is there and not retired."""
    known = {
        "$and": [
            {"$eq": [{"$type": "$registered_at"}, "date"]},
            {"$eq": [{"$ifNull": ["$retired_at", None]}, None]},
        ]
    }
    starts_at = "$$NOW" if record.starts_at == NEW else {"$literal": record.starts_at}
    first: Document = {
        "starts_at": starts_at,
        "registered_at": {"$literal": record.registered_at},
        "reconciled_until": {"$literal": record.reconciled_until},
        "paused": None,
    }
    fields: Document = {
        "events": sorted(record.events),
        "location": record.location,
        "policy": record.policy,
        "options": record.options,
        "seen_at": record.seen_at,
        "retired_at": None,
    }
    kept = {name: {"$cond": [known, f"${name}", value]} for name, value in first.items()}
    return [{"$set": kept | _literal(fields)}]


def _handler(document: Document) -> HandlerRecord:
    return HandlerRecord(
        name=document["_id"],
        events=tuple(document["events"]),
        starts_at=document["starts_at"],
        registered_at=document["registered_at"],
        seen_at=document["seen_at"],
        retired_at=document["retired_at"],
        reconciled_until=document["reconciled_until"],
        location=document["location"],
        policy=document["policy"],
        options=document["options"],
        paused=Pause(**document["paused"]) if document.get("paused") else None,
    )


def _worker(document: Document) -> WorkerRecord:
    return WorkerRecord(
        id=document["_id"],
        host=document["host"],
        pid=document["pid"],
        handlers=tuple(document["handlers"]),
        threads=document["threads"],
        running=tuple(document["running"]),
        started_at=document["started_at"],
        seen_at=document["seen_at"],
    )


def _literal(fields: Mapping[str, Any]) -> Document:
    return {name: {"$literal": value} for name, value in fields.items()}


def _after(read_at: tuple[datetime, float]) -> datetime:
    moment, asked = read_at
    return in_milliseconds(moment + timedelta(seconds=time.monotonic() - asked))
