"""Idempotent requests in MongoDB, a document per key. What is compared is the server's time (``$$NOW``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from eventdriven_sync.records import IdempotencyRecord, Reply, check_reply
from eventdriven_sync.stores.collections import IDEMPOTENCY, Document
from eventdriven_sync.stores.connection import Link
from eventdriven_sync.stores.mongo_outcomes import later

_RUNNING = {"$eq": ["$state", "running"]}


class MongoIdempotency:
    """The ``IdempotencyStore`` protocol on MongoDB. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def begin(
        self, key: str, *, fingerprint: str, token: str, lease: float, keep: float
    ) -> IdempotencyRecord:
        """Claim the key for a request, or say what is there."""
        target = self._link.now.collections[IDEMPOTENCY]
        change = _claim(fingerprint, token, lease=lease, keep=keep)

        def take() -> Document:
            # Bounded by the call's deadline, which the driver looks at before each try.
            while True:
                try:
                    found = target.find_one_and_update(
                        {"_id": key}, change, upsert=True, return_document=ReturnDocument.AFTER
                    )
                except DuplicateKeyError:
                    continue  # somebody else was first at this moment, and is found now
                assert found is not None
                return found

        found = self._link.now.call("while claiming an idempotency key", take)
        return _record(found, mine=(found["fingerprint"], found["token"]) == (fingerprint, token))

    def finish(self, key: str, *, token: str, reply: Reply, keep: float) -> bool:
        """Keep the reply for ``keep`` seconds from now; False if ``token`` does not own the record."""
        check_reply(reply)
        target = self._link.now.collections[IDEMPOTENCY]
        where = {"_id": key, "token": token, "$expr": {"$gt": ["$expires_at", "$$NOW"]}}
        fields: Document = {
            "state": "answered",
            "reply": {"$literal": _document(reply)},
            "expires_at": later(keep),
        }
        change = [{"$set": _when(_RUNNING, fields)}]
        result = self._link.now.call(
            "while keeping the reply of a request", lambda: target.update_one(where, change)
        )
        return result.matched_count == 1

    def abandon(self, key: str, *, token: str) -> None:
        """Forget the running record that ``token`` owns, so that the next request with this key runs."""
        target = self._link.now.collections[IDEMPOTENCY]
        where = {"_id": key, "token": token, "state": "running"}
        self._link.now.call("while giving an idempotency key back", lambda: target.delete_one(where))


def _claim(fingerprint: str, token: str, *, lease: float, keep: float) -> list[Document]:
    """The update that claims a key where that is allowed, and changes nothing elsewhere."""
    # A record that does not exist yet has no ``expires_at``, and a missing value is below every date.
    absent = {"$lte": ["$expires_at", "$$NOW"]}
    same = {"$eq": ["$fingerprint", {"$literal": fingerprint}]}
    mine = {"$eq": ["$token", {"$literal": token}]}
    over = {"$lte": ["$lease_until", "$$NOW"]}
    free = {"$or": [absent, {"$and": [_RUNNING, same, {"$or": [mine, over]}]}]}
    fields: Document = {
        "fingerprint": {"$literal": fingerprint},
        "token": {"$literal": token},
        "state": "running",
        "lease_until": later(lease),
        "expires_at": later(max(lease, keep)),
        "reply": "$$REMOVE",
    }
    return [{"$set": _when(free, fields)}]


def _when(condition: Document, fields: Mapping[str, Any]) -> Document:
    """These values if the condition holds, else what is there."""
    return {name: {"$cond": [condition, value, f"${name}"]} for name, value in fields.items()}


def _document(reply: Reply) -> Document:
    return {
        "status": reply.status,
        "headers": [list(header) for header in reply.headers],
        "body": bytes(reply.body),
        "operation_id": reply.operation_id,
    }


def _record(document: Mapping[str, Any], *, mine: bool) -> IdempotencyRecord:
    answered = document["state"] == "answered"
    return IdempotencyRecord(
        key=document["_id"],
        fingerprint=document["fingerprint"],
        state="answered" if answered else "mine" if mine else "running",
        token=document["token"],
        reply=_reply(document["reply"]) if answered else None,
    )


def _reply(document: Mapping[str, Any]) -> Reply:
    return Reply(
        status=document["status"],
        headers=tuple((name, value) for name, value in document["headers"]),
        body=document["body"],
        operation_id=document["operation_id"],
    )
