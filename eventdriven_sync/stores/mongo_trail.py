"""The audit trail in MongoDB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson import ObjectId

from eventdriven_sync.figures import AuditEntry, AuditQuery
from eventdriven_sync.stores.collections import AUDIT, Document
from eventdriven_sync.stores.connection import Link
from eventdriven_sync.stores.mongo_errors import bounded
from eventdriven_sync.stores.mongo_events import beyond, clean, encoded, plain, span

_TEXT = 1000


class MongoTrail:
    """The ``AuditTrail`` protocol on MongoDB. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def record(self, entry: AuditEntry) -> None:
        """Add an entry durably; its ``at`` becomes the store's time. Repeating it changes nothing.

        Raises:
            PayloadNotSerializable, StoreUnavailable, PublishOutcomeUnknown, StorePermissionDenied.
        """
        fields = encoded(_document(entry), what=f"audit entry {entry.action}")
        at = {"at": "$$NOW"}
        # First there or not: what was recorded stays.
        change = [{"$replaceWith": {"$mergeObjects": [{"$literal": fields}, at, "$$ROOT"]}}]
        target = self._link.now.collections[AUDIT]
        self._link.now.call(
            "while recording what a person did",
            lambda: target.update_one({"_id": ObjectId(entry.id)}, change, upsert=True),
        )

    def find(self, query: AuditQuery) -> list[AuditEntry]:
        """Entries by query, newest first."""
        return self._link.now.call("while reading the audit trail", lambda: self._find(query))

    def _find(self, query: AuditQuery) -> list[AuditEntry]:
        if query.limit <= 0:
            return []
        target = self._link.now.collections[AUDIT]
        fields = {"who": query.who, "action": query.action, "ids": query.touched}
        where: Document = {name: value for name, value in fields.items() if value is not None}
        where |= span("at", query.since, query.until)
        with bounded("entries of the audit trail"):
            if query.after is not None:
                last = target.find_one({"_id": _id(query.after)}, {"at": 1})
                if last is None:
                    return []
                beyond(where, "at", last, -1)
            newest = target.find(where).sort([("at", -1), ("_id", -1)]).limit(query.limit)
            return [_entry(document) for document in newest]


def _id(text: str) -> Any:
    return ObjectId(text) if ObjectId.is_valid(text) else text


def _document(entry: AuditEntry) -> Document:
    return {
        "who": clean(entry.who, _TEXT),
        "ip": clean(entry.ip, _TEXT),
        "action": clean(entry.action, _TEXT),
        "ids": [clean(each, _TEXT) for each in entry.ids],
        "before": entry.before,
        "after": entry.after,
        "reason": clean(entry.reason, 2000),
    }


def _entry(document: Mapping[str, Any]) -> AuditEntry:
    return AuditEntry(
        id=str(document["_id"]),
        at=document["at"],
        who=document["who"],
        ip=document["ip"],
        action=document["action"],
        ids=tuple(document["ids"]),
        before=plain(document["before"]),
        after=plain(document["after"]),
        reason=document["reason"],
    )
