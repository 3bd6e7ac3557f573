"""Deliveries in MongoDB beside the lanes: first records, lists, counts, and what a person does to them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.records import Delivery
from eventdriven_sync.store import DeliveryQuery
from eventdriven_sync.stores.collections import DELIVERIES, Document
from eventdriven_sync.stores.mongo_errors import DUPLICATE_KEY
from eventdriven_sync.stores.mongo_events import beyond, clean, span, stored_id
from eventdriven_sync.stores.mongo_lanes import MongoLanes, delivery_of
from eventdriven_sync.stores.mongo_outcomes import absent, embedded, later, literal, raw_document

STATES = ("pending", "running", "retrying", "succeeded", "dead", "discarded")
KEPT_ACTIONS = 20

# A dead delivery that begins a new generation.
_REVIVED: Document = {
    "state": "retrying",
    "generation": {"$add": ["$generation", 1]},
    "attempts": 0,
    "failed": 0,
    "lost": 0,
    "reason": "",
    "due_at": "$$NOW",
}

# Up to so many pairs of handler and state MongoDB merges the index in order instead of sorting.
_MERGED = 200


class MongoDeliveries(MongoLanes):
    """The ``DeliveryStore`` protocol on MongoDB. Thread-safe."""

    def start(self, deliveries: Sequence[Delivery], *, lease: float) -> list[bool]:
        """Slow path: insert as ``running`` under their tokens; False where a record exists already."""
        fields = [
            _literals(delivery) | {"state": "running", "due_at": later(lease)} for delivery in deliveries
        ]
        ids = self._insert([d.id for d in deliveries], fields, "while recording starts")
        unclear = [d.id for d in deliveries if d.id not in ids]
        ours = self.held(unclear) if unclear else {}
        return [d.id in ids or ours.get(d.id) == d.token for d in deliveries]

    def insert_pending(self, deliveries: Sequence[Delivery]) -> int:
        """Insert as ``pending``, due at once; those that have a record stay. How many were inserted."""
        fields = [_literals(delivery) | {"state": "pending", "due_at": "$$NOW"} for delivery in deliveries]
        return len(self._insert([d.id for d in deliveries], fields, "while adding deliveries"))

    def _insert(self, ids: Sequence[str], fields: Sequence[Document], action: str) -> set[str]:
        """Insert where nothing is; the ids that were inserted. A plain insert could not ask for ``$$NOW``."""
        if not ids:
            return set()
        writes = [
            UpdateOne(absent(key), [{"$set": values}], upsert=True)
            for key, values in zip(ids, fields, strict=True)
        ]
        connection = self._link.now
        target = connection.collections[DELIVERIES]

        def write() -> set[str]:
            try:
                upserted = target.bulk_write(writes, ordered=False).upserted_ids or {}
            except BulkWriteError as error:
                details = error.details
                # Not confirmed as a whole, or refused for something else than being there already.
                if details.get("writeConcernErrors") or any(
                    failed["code"] != DUPLICATE_KEY for failed in details["writeErrors"]
                ):
                    raise
                upserted = {item["index"]: item["_id"] for item in error.details["upserted"]}
            return {str(key) for key in upserted.values()}

        return connection.call(action, write)

    def next_due(self, handlers: Sequence[str], *, timeout: float | None = None) -> float | None:
        """Seconds until the next delivery is due (negative: overdue), None if there is none."""
        stages: list[Document] = [
            {"$match": {"handler": {"$in": list(handlers)}, "due_at": {"$exists": True}}},
            {"$sort": {"due_at": 1}},
            {"$limit": 1},
            {"$project": {"wait": {"$subtract": ["$due_at", "$$NOW"]}}},
        ]
        connection = self._link.now
        target = connection.collections[DELIVERIES]
        found = connection.call(
            "while looking for what is due",
            lambda: list(target.aggregate(stages)) if handlers else [],
            timeout=timeout,
        )
        return found[0]["wait"] / 1000 if found else None

    def get(self, delivery_id: str) -> Delivery | None:
        """The delivery, or None."""
        connection = self._link.now
        target = connection.collections[DELIVERIES]
        found = connection.call("while reading a delivery", lambda: target.find_one({"_id": delivery_id}))
        return delivery_of(found) if found else None

    def find(self, query: DeliveryQuery) -> list[Delivery]:
        """Deliveries by query, newest first, without embedded events."""
        return self._link.now.call("while looking for deliveries", lambda: self._find(query))

    def _find(self, query: DeliveryQuery) -> list[Delivery]:
        if query.limit <= 0:
            return []
        target = self._link.now.collections[DELIVERIES]
        where = self._filter(query)
        if query.after is not None:
            last = target.find_one({"_id": query.after}, {"created_at": 1})
            if last is None:
                return []
            beyond(where, "created_at", last, -1)
        without = {"event": 0, "raw": 0, "original": 0} | ({"failures.traceback": 0} if query.brief else {})
        pages = [
            target.find(part, without).sort([("created_at", -1), ("_id", -1)]).limit(query.limit)
            for part in _parts(where)
        ]
        newest = heapq.merge(*pages, key=lambda d: (d["created_at"], d["_id"]), reverse=True)
        return [delivery_of(document) for document in itertools.islice(newest, query.limit)]

    def count(self, query: DeliveryQuery) -> dict[str, int]:
        """Number of deliveries by state."""
        return self._link.now.call("while counting deliveries", lambda: self._count(query))

    def _count(self, query: DeliveryQuery) -> dict[str, int]:
        target = self._link.now.collections[DELIVERIES]
        if query == DeliveryQuery(states=("dead",), limit=query.limit, after=query.after):
            return {"dead": target.count_documents({"state": "dead"}, hint="dead")}
        stages: list[Document] = [
            {"$match": self._filter(query)},
            {"$group": {"_id": "$state", "count": {"$sum": 1}}},
        ]
        return {group["_id"]: group["count"] for group in target.aggregate(stages)}

    def retry_dead(self, query: DeliveryQuery, *, by: str, job: str = "") -> int:
        """Move dead deliveries matching the query to ``retrying``. How many.

        ``limit`` and ``after`` are ignored. After an error some may have been moved; again moves the rest.
        """
        mark = {"job": {"$literal": clean(job, 100)}} if job else {}
        change: list[Document] = [{"$set": _REVIVED | mark | _action("retry", by)}, {"$unset": "settled_at"}]
        return self._move(query, ("dead",), change, "while retrying dead letters")

    def retry_with(self, delivery_id: str, event: Envelope, *, by: str) -> bool:
        """Move a dead delivery to ``retrying`` with another event; its own stays as ``original``."""
        fields: Document = {
            "original": {"$ifNull": ["$original", "$event"]},
            "event": {"$literal": embedded(event)},
        }
        change: list[Document] = [
            {"$set": _REVIVED | fields | _action("retry_edited", by)},
            {"$unset": "settled_at"},
        ]
        where = {"_id": delivery_id, "state": "dead", "event": {"$exists": True}}
        return self._change_one(where, change, "while retrying a dead letter")

    def discard(self, query: DeliveryQuery, *, reason: str, by: str) -> int:
        """Move dead or retrying deliveries matching the query to ``discarded``. How many."""
        before = {
            "state": "$state",
            "reason": {"$ifNull": ["$reason", ""]},
            "settled_at": "$settled_at",
        }
        fields: Document = {
            "state": "discarded",
            "reason": {"$literal": clean(reason, 2000)},
            "settled_at": "$$NOW",
            "before_discard": before,
        }
        change: list[Document] = [{"$set": fields | _action("discard", by)}, {"$unset": "due_at"}]
        return self._move(query, ("dead", "retrying"), change, "while discarding deliveries")

    def undo_discard(self, delivery_id: str, *, by: str) -> bool:
        """Bring a delivery that a person discarded back to the state it had."""
        waits = {"$eq": ["$before_discard.state", "retrying"]}
        fields: Document = {
            "state": "$before_discard.state",
            "reason": "$before_discard.reason",
            "settled_at": {"$ifNull": ["$before_discard.settled_at", "$$REMOVE"]},
            "due_at": {"$cond": [waits, "$$NOW", "$$REMOVE"]},
        }
        change: list[Document] = [
            {"$set": fields | _action("undo_discard", by)},
            {"$unset": "before_discard"},
        ]
        where = {"_id": delivery_id, "state": "discarded", "before_discard": {"$exists": True}}
        return self._change_one(where, change, "while undoing a discard")

    def _change_one(self, where: Document, change: list[Document], action: str) -> bool:
        """Change one delivery; whether it matched. A second try of a lost answer may say False."""
        target = self._link.now.collections[DELIVERIES]
        return self._link.now.call(action, lambda: target.update_one(where, change).matched_count == 1)

    def _move(
        self, query: DeliveryQuery, states: tuple[str, ...], change: list[Document], action: str
    ) -> int:
        allowed = [state for state in states if not query.states or state in query.states]
        if not allowed:
            return 0
        connection = self._link.now
        target = connection.collections[DELIVERIES]

        def move() -> int:
            where = self._filter(query) | {"state": {"$in": allowed}}
            return target.update_many(where, change).matched_count

        return connection.call(action, move)

    def _filter(self, query: DeliveryQuery) -> Document:
        """The filter of a query, without its page, so that an index serves it."""
        where = _fields(query) | span("created_at", query.since, query.until)
        where |= span("settled_at", None, query.died_before)
        if query.ids:
            where["_id"] = {"$in": list(query.ids)}
        elif self._needs_handlers(query):
            where["handler"] = {"$in": self._handlers(query)}
        if not query.ids and ("handler" in where or query.job is not None):
            where.setdefault("state", {"$in": list(STATES)})
        if query.event_id is not None and not query.ids:
            where["_id"] = {"$in": [f"{name}:{query.event_id}" for name in where["handler"]["$in"]]}
        return where

    def _needs_handlers(self, query: DeliveryQuery) -> bool:
        """Whether no other field leads to an index; a group and an event are found by their handlers."""
        leads = query.operation_id is not None or query.job is not None
        return not leads or query.event_id is not None or query.group is not None

    def _handlers(self, query: DeliveryQuery) -> list[str]:
        """The handlers in question; those that have deliveries are one index seek each."""
        if query.handler is not None:
            return [query.handler]
        names: list[str] = self._link.now.collections[DELIVERIES].distinct("handler")
        return [name for name in names if query.group is None or name.partition(".")[0] == query.group]


def _fields(query: DeliveryQuery) -> Document:
    fields: dict[str, Any] = {
        "handler": query.handler,
        "error_type": query.error,
        "fingerprint": query.fingerprint,
        "reason": query.reason,
        "job": query.job,
        "event_name": query.event_name,
        "event_id": None if query.event_id is None else stored_id(query.event_id),
        "operation_id": None if query.operation_id is None else stored_id(query.operation_id),
    }
    where: Document = {name: value for name, value in fields.items() if value is not None}
    if query.states:
        where["state"] = {"$in": list(query.states)}
    if query.ids and query.group is not None and query.handler is None:
        where["handler"] = {"$gte": f"{query.group}.", "$lt": f"{query.group}/"}
    return where


def _parts(where: Document) -> Iterator[Document]:
    """The filter, in parts if it names more handlers than MongoDB merges without sorting."""
    if "_id" in where or not isinstance(where.get("handler"), dict):
        yield where
        return
    names = where["handler"]["$in"]
    step = max(1, _MERGED // len(where["state"]["$in"]))
    for begin in range(0, len(names), step):
        yield where | {"handler": {"$in": names[begin : begin + step]}}


def _action(action: str, by: str) -> Document:
    """Who did what and when, kept with the delivery."""
    entry = {"at": "$$NOW", "by": {"$literal": clean(by, 200)}, "action": action}
    so_far = {"$ifNull": ["$actions", []]}
    return {"actions": {"$slice": [{"$concatArrays": [so_far, [entry]]}, -KEPT_ACTIONS]}}


def _literals(delivery: Delivery) -> Document:
    """Every field of a new record, except for state and ``due_at``."""
    fields: Document = {
        "handler": delivery.handler,
        "event_id": stored_id(delivery.event_id),
        "event_name": delivery.event_name,
        "operation_id": stored_id(delivery.operation_id),
        "attempts": delivery.attempts,
        "failed": delivery.failed,
        "generation": delivery.generation,
        "lost": delivery.lost,
        "created_at": delivery.created_at,
        "started_at": delivery.started_at,
        "token": delivery.token,
        "worker": delivery.worker,
    }
    if not delivery.begun:
        fields["begun"] = False
    if delivery.event is not None:
        fields["event"] = embedded(delivery.event)
    if delivery.raw is not None:
        fields["raw"] = raw_document(delivery.raw)
    return literal(fields)
