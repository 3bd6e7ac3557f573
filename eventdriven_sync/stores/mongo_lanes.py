"""What the live lane and the recovery lane do with deliveries in MongoDB: settle, claim, keep leases.

Times that others act on (``due_at``, leases) are computed by the server (``$$NOW``). ``created_at`` and
``settled_at`` of a delivery settled at its first attempt are the worker's clock: that insert is the hot
path, and an insert cannot ask the server for its time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import bson
from pymongo.collection import Collection
from pymongo.errors import PyMongoError

from eventdriven_sync.errors import StoreError
from eventdriven_sync.outcome import Failure
from eventdriven_sync.records import Delivery, RawMessage, Settlement
from eventdriven_sync.stores.collections import DELIVERIES, Document
from eventdriven_sync.stores.connection import Connection, Link
from eventdriven_sync.stores.mongo_errors import DUPLICATE_KEY, error_code, translated
from eventdriven_sync.stores.mongo_events import (
    append_in,
    envelope,
    insert_events,
)
from eventdriven_sync.stores.mongo_outcomes import Record, later, literal, record_of

# A lease that was still held ended with its worker. What was lost before and has not begun was only waiting
# in the hands of that worker; ``begun`` is missing where nobody asks.
_DIED: Document = {"$and": [{"$eq": ["$state", "running"]}, {"$ne": ["$begun", False]}]}
_CLAIMED: Document = {
    "state": "running",
    "attempts": {"$add": ["$attempts", 1]},
    "lost": {"$add": ["$lost", {"$cond": [_DIED, 1, 0]}]},
    "started_at": "$$NOW",
}
_NOT_BEGUN: Document = {"$set": {"begun": {"$cond": ["$lost", False, "$$REMOVE"]}}}

# Of a failure that was read without it.
_NO_STACK = {"traceback": ""}


class MongoLanes:
    """What the live lane and the recovery lane need of the ``DeliveryStore`` protocol. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def states(self, delivery_ids: Sequence[str]) -> dict[str, str]:
        """The state of those that have a record."""
        connection = self._link.now
        target = connection.collections[DELIVERIES]
        where = {"_id": {"$in": list(delivery_ids)}}
        found = connection.call(
            "while reading states of deliveries", lambda: list(target.find(where, {"state": 1}))
        )
        return {document["_id"]: document["state"] for document in found}

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Store emitted events, then outcomes, for all callers of this moment together.

        A claimed settlement that turns out fenced off may have left its emitted events: the attempt that
        owns the delivery now emits the same ones, since their ids are derived.

        Raises:
            StoreUnavailable, PublishOutcomeUnknown, StorePermissionDenied.
        """
        records = [record_of(settlement) for settlement in settlements]
        if not records:
            return []
        connection = self._link.now
        return connection.share(
            DELIVERIES,
            write_records,
            records,
            "while recording outcomes",
            size=sum(record.size for record in records),
            timeout=connection.timeout,
            event_ids=[settlement.event_id for settlement in settlements],
        )

    def settle_in(self, session: Any, settlement: Settlement) -> bool:
        """The same inside a transaction; False means: abort.

        Also False when this attempt is recorded already, by a commit whose answer was lost: committing
        again would double the business writes beside it.

        Raises:
            StoreError: its cause says whether the transaction may be run again.
        """
        record = record_of(settlement)
        connection = self._link.now
        if record.emitted:
            append_in(connection, session, record.emitted)
        try:
            return _write_in(connection.collections[DELIVERIES], record, session)
        except PyMongoError as error:
            if error_code(error) == DUPLICATE_KEY:
                return False
            raise translated(error, "while recording an outcome", timeout=connection.timeout) from error

    def held(self, ids: Sequence[str]) -> dict[str, str]:
        """The tokens of those that are running."""
        connection = self._link.now
        where = {"_id": {"$in": list(ids)}, "state": "running"}
        found = connection.call(
            "while reading leases",
            lambda: list(connection.collections[DELIVERIES].find(where, {"token": 1})),
        )
        return {document["_id"]: document["token"] for document in found}

    def claim_due(
        self,
        handlers: Sequence[str],
        *,
        limit: int,
        lease: float,
        worker: str,
        token: str,
    ) -> list[Delivery]:
        """Claim deliveries that are due, the longest due first."""
        if not handlers or limit <= 0:
            return []
        connection = self._link.now
        target = connection.collections[DELIVERIES]
        due = {"due_at": {"$exists": True}, "$expr": {"$lte": ["$due_at", "$$NOW"]}}
        where = {"handler": {"$in": list(handlers)}} | due
        action = "while claiming deliveries"
        ids = connection.call(
            action, lambda: [d["_id"] for d in target.find(where, {"_id": 1}).sort("due_at", 1).limit(limit)]
        )
        if not ids:
            return []
        # Whoever is second finds the first one's lease and no longer matches. Repeated after a lost answer
        # it changes nothing more, and the token still finds what the first try claimed.
        claimed = literal({"token": token, "worker": worker}) | _CLAIMED | {"due_at": later(lease)}
        claim = [{"$set": claimed}, _NOT_BEGUN]
        connection.call(action, lambda: target.update_many({"_id": {"$in": ids}} | due, claim))
        mine = {"_id": {"$in": ids}, "token": token, "state": "running"}
        # Where earlier attempts failed is for people, and may be much.
        found = connection.call(
            action, lambda: {d["_id"]: d for d in target.find(mine, {"failures.traceback": 0})}
        )
        return [delivery_of(found[key]) for key in ids if key in found]

    def renew(
        self,
        delivery_ids: Sequence[str],
        *,
        token: str,
        lease: float,
        begun: bool = False,
        ending_within: float | None = None,
    ) -> set[str]:
        """Prolong leases; return the ids that are no longer held under ``token``."""
        until = later(lease)
        if ending_within is not None:
            # What stays as it is the server does not write: a transaction that holds it meets no conflict.
            until = {"$cond": [{"$lt": ["$due_at", later(ending_within)]}, until, "$due_at"]}
        fields = {"due_at": until} | ({"begun": "$$REMOVE"} if begun else {})
        if not self._change(delivery_ids, token, fields, "while renewing leases"):
            return set()
        held = self.held(delivery_ids)
        return {key for key in delivery_ids if held.get(key) != token}

    def release(self, delivery_ids: Sequence[str], *, token: str) -> None:
        """Give claimed deliveries back unrun: ``retrying``, due at once, the start not counted."""
        fields = {
            "state": "retrying",
            "due_at": "$$NOW",
            "token": "",  # a result that comes all the same must not pass for recorded
            "attempts": {"$max": [0, {"$subtract": ["$attempts", 1]}]},
        }
        self._change(delivery_ids, token, fields, "while giving deliveries back")

    def _change(self, ids: Sequence[str], token: str, fields: Document, action: str) -> int:
        """Change what is held under the token; how many of the ids are not."""
        if not ids:
            return 0
        connection = self._link.now
        where = {"_id": {"$in": list(ids)}, "token": token, "state": "running"}
        target = connection.collections[DELIVERIES]
        result = connection.call(action, lambda: target.update_many(where, [{"$set": fields}]))
        return len(set(ids)) - result.matched_count


def write_records(connection: Connection, records: Sequence[Record]) -> list[bool | BaseException]:
    """Write emitted events, then outcomes; for each whether it is recorded, or what went wrong."""
    emitted = [(record.id, event) for record in records for event in record.emitted]
    stored = insert_events(connection, [event for _, event in emitted]) if emitted else ()
    refused = {
        key: found
        for (key, _), found in zip(emitted, stored, strict=True)
        if isinstance(found, BaseException)
    }
    ready = [record for record in records if record.id not in refused]
    recorded = iter(_write_outcomes(connection, ready) if ready else ())
    return [refused[record.id] if record.id in refused else next(recorded) for record in records]


def _write_in(target: Collection[Any], record: Record, session: Any) -> bool:
    if not record.update:
        target.insert_one(record.raw, session=session)
        return True
    statement = bson.decode(record.raw.raw)
    return target.update_one(statement["q"], statement["u"], session=session).matched_count == 1


def _write_outcomes(connection: Connection, records: Sequence[Record]) -> list[bool | BaseException]:
    updates = [index for index, record in enumerate(records) if record.update]
    inserts = [index for index, record in enumerate(records) if not record.update]
    failed: dict[int, Document] = {}
    met = 0
    if inserts:
        _, refused = connection.write({"insert": DELIVERIES}, "documents", [records[i].raw for i in inserts])
        failed = {inserts[each["index"]]: each for each in refused}
    if updates:
        met, refused = connection.write({"update": DELIVERIES}, "updates", [records[i].raw for i in updates])
        failed |= {updates[each["index"]]: each for each in refused}
    if not failed and met == len(updates):
        return [True] * len(records)
    owners = _owners(connection, [records[index].id for index in {*updates, *failed}])
    return [_recorded(record, failed.get(i), owners) for i, record in enumerate(records)]


def _owners(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """The tokens under which these are settled."""
    where = {"_id": {"$in": list(ids)}, "state": {"$ne": "running"}}
    found = connection.collections[DELIVERIES].find(where, {"token": 1})
    return {document["_id"]: document.get("token", "") for document in found}


def _recorded(record: Record, failed: Document | None, owners: Mapping[str, str]) -> bool | BaseException:
    if failed and failed["code"] != DUPLICATE_KEY:
        return StoreError(
            f"MongoDB refused the outcome of {record.id}: {failed.get('errmsg', '')[:200]}",
            code=failed["code"],
        )
    if failed is None and not record.update:
        return True
    return owners.get(record.id) == record.token


def delivery_of(document: Mapping[str, Any]) -> Delivery:
    """The delivery of a document."""
    optional = ("started_at", "settled_at", "duration_ms", "due_at")
    return Delivery(
        id=document["_id"],
        handler=document["handler"],
        event_id=str(document["event_id"]),
        event_name=document["event_name"],
        operation_id=str(document["operation_id"]),
        state=document["state"],
        attempts=document["attempts"],
        failed=document["failed"],
        generation=document["generation"],
        lost=document["lost"],
        begun=document.get("begun", True),
        failures=tuple(Failure(**(_NO_STACK | failure)) for failure in document.get("failures", ())),
        reason=document.get("reason", ""),
        created_at=document["created_at"],
        token=document.get("token", ""),
        worker=document.get("worker", ""),
        event=envelope(document["event"]) if "event" in document else None,
        raw=_raw_message(document["raw"]) if "raw" in document else None,
        original=envelope(document["original"]) if "original" in document else None,
        discarded_from=document.get("before_discard", {}).get("state", ""),
        job=document.get("job", ""),
        **{name: document.get(name) for name in optional},
    )


def _raw_message(document: Mapping[str, Any]) -> RawMessage:
    return RawMessage(**{**document, "headers": dict(document["headers"]), "data": bytes(document["data"])})
