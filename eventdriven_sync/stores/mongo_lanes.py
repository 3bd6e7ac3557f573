"""What the live lane and the recovery lane do with deliveries in MongoDB: settle, claim, keep leases.

Times that others act on (``due_at``, leases) are computed by the server (``$$NOW``). ``created_at`` and
``settled_at`` of a delivery settled at its first attempt are the worker's clock: that insert is the hot
path, and an insert cannot ask the server for its time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from bson.raw_bson import RawBSONDocument
from pymongo import InsertOne, UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import PayloadNotSerializable, StoreError
from eventdriven_sync.fingerprint import fingerprint
from eventdriven_sync.outcome import Dead, Discarded, Done, Failure, Outcome, RetryAt
from eventdriven_sync.records import Delivery, RawMessage, Settlement
from eventdriven_sync.stores.collections import DELIVERIES, Document
from eventdriven_sync.stores.connection import Connection, Link
from eventdriven_sync.stores.mongo_errors import DUPLICATE_KEY, error_code, translated
from eventdriven_sync.stores.mongo_events import (
    Prepared,
    append_in,
    clean,
    encoded,
    envelope,
    event_document,
    failure_document,
    insert_events,
    prepare,
    stored_id,
)

KEPT_FAILURES = 10

# About how large a recorded failure is; only the bound of a batch depends on it.
_FAILURE_BYTES = 20_000
_SUCCESS_BYTES = 1000

_STATES = {Done: "succeeded", RetryAt: "retrying", Dead: "dead", Discarded: "discarded"}

# A lease that was still held ended with its worker.
_CLAIMED: Document = {
    "state": "running",
    "attempts": {"$add": ["$attempts", 1]},
    "lost": {"$add": ["$lost", {"$cond": [{"$eq": ["$state", "running"]}, 1, 0]}]},
    "started_at": "$$NOW",
}

# Of a failure that was read without it.
_NO_STACK = {"traceback": ""}

Pipeline = list[Document]


class Record(NamedTuple):
    """A settlement ready to be written. Encoded by its worker thread, so that a bad one fails nobody else."""

    id: str
    token: str
    write: InsertOne[Any] | UpdateOne
    emitted: tuple[Prepared, ...]
    size: int


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
        records = [_record(settlement) for settlement in settlements]
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
        record = _record(settlement)
        connection = self._link.now
        if record.emitted:
            append_in(connection, session, record.emitted)
        try:
            result = connection.collections[DELIVERIES].bulk_write([record.write], session=session)
        except PyMongoError as error:
            if error_code(error) == DUPLICATE_KEY:
                return False
            raise translated(error, "while recording an outcome", timeout=connection.timeout) from error
        return result.inserted_count + result.matched_count + result.upserted_count == 1

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
        claim = [{"$set": literal({"token": token, "worker": worker}) | _CLAIMED | {"due_at": later(lease)}}]
        connection.call(action, lambda: target.update_many({"_id": {"$in": ids}} | due, claim))
        mine = {"_id": {"$in": ids}, "token": token, "state": "running"}
        found = connection.call(action, lambda: {d["_id"]: d for d in target.find(mine)})
        return [delivery_of(found[key]) for key in ids if key in found]

    def renew(self, delivery_ids: Sequence[str], *, token: str, lease: float) -> set[str]:
        """Prolong leases; return the ids that are no longer held under ``token``."""
        if not self._change(delivery_ids, token, {"due_at": later(lease)}, "while renewing leases"):
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


def _write_outcomes(connection: Connection, records: Sequence[Record]) -> list[bool | BaseException]:
    target = connection.collections[DELIVERIES]
    failed: dict[int, Document] = {}
    try:
        writes = [record.write for record in records]
        counts: Mapping[str, Any] = target.bulk_write(writes, ordered=False).bulk_api_result
    except BulkWriteError as error:
        counts = error.details
        if counts.get("writeConcernErrors"):
            raise
        failed = {item["index"]: item for item in counts["writeErrors"]}
    updates = [record.id for record in records if isinstance(record.write, UpdateOne)]
    if not failed and counts["nMatched"] + counts["nUpserted"] == len(updates):
        return [True] * len(records)
    owners = _owners(connection, [*updates, *(records[index].id for index in failed)])
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
    if failed is None and isinstance(record.write, InsertOne):
        return True
    return owners.get(record.id) == record.token


def _record(settlement: Settlement) -> Record:
    """What to write for a settlement: an insert wherever possible, since an update costs a multiple."""
    outcome, key = settlement.outcome, settlement.delivery_id
    if type(outcome) is Done and not settlement.claimed and not settlement.emitted:
        return Record(key, settlement.token, InsertOne(_success(key, settlement)), (), _SUCCESS_BYTES)
    # An attempt without success publishes nothing.
    emitted = tuple(prepare(event) for event in settlement.emitted) if isinstance(outcome, Done) else ()
    write: InsertOne[Any] | UpdateOne
    fields = _outcome_fields(settlement)
    size = _SUCCESS_BYTES
    if settlement.claimed:
        where = {"_id": key, "token": settlement.token, "state": "running"}
        write = UpdateOne(where, _update(outcome, fields))
    elif isinstance(outcome, RetryAt):
        first = literal(_first_fields(settlement) | fields) | {"due_at": later(outcome.after)}
        write = UpdateOne(absent(key), [{"$set": first}], upsert=True)
    else:
        ended = settlement.started_at + timedelta(milliseconds=settlement.duration_ms)
        document: Document = {"_id": key, "settled_at": ended} | _first_fields(settlement) | fields
        raw = encoded(document, what=f"outcome of {key}")
        write, size = InsertOne(raw), len(raw.raw)
    if isinstance(write, UpdateOne) and "failures" in fields:
        size += _FAILURE_BYTES + (len(settlement.raw.data) if settlement.raw else 0)
    return Record(key, settlement.token, write, emitted, size + sum(len(e.raw.raw) for e in emitted))


def _success(key: str, settlement: Settlement) -> Document:
    """What nearly every event comes to. It holds nothing that cannot be encoded."""
    event_id, started_at = stored_id(settlement.event_id), settlement.started_at
    own = settlement.operation_id == settlement.event_id
    return {
        "_id": key,
        "settled_at": started_at + timedelta(milliseconds=settlement.duration_ms),
        "handler": settlement.handler,
        "event_id": event_id,
        "event_name": settlement.event_name,
        "operation_id": event_id if own else stored_id(settlement.operation_id),
        "attempts": 1,
        "failed": 0,
        "generation": 0,
        "lost": 0,
        "created_at": started_at,
        "token": settlement.token,
        "state": "succeeded",
        "started_at": started_at,
        "duration_ms": settlement.duration_ms,
        "worker": settlement.worker,
    }


def _first_fields(settlement: Settlement) -> Document:
    """The fields of a first record that no later attempt changes, and its counters."""
    return {
        "handler": settlement.handler,
        "event_id": stored_id(settlement.event_id),
        "event_name": settlement.event_name,
        "operation_id": stored_id(settlement.operation_id),
        "attempts": 1,
        "failed": int(isinstance(settlement.outcome, RetryAt | Dead)),
        "generation": 0,
        "lost": 0,
        "created_at": settlement.started_at,
        "token": settlement.token,
    }


def _outcome_fields(settlement: Settlement) -> Document:
    """The fields that every outcome sets; of a failure also what is needed to try again."""
    outcome = settlement.outcome
    fields: Document = {
        "state": _STATES[type(outcome)],
        "started_at": settlement.started_at,
        "duration_ms": settlement.duration_ms,
        "worker": settlement.worker,
    }
    if isinstance(outcome, Dead | Discarded):
        fields["reason"] = clean(outcome.reason, 2000)
    if isinstance(outcome, Done | Discarded):
        return fields
    failure = failure_document(outcome.failure)
    # The last error stands where queries find it.
    fields |= {
        "failures": [failure],
        "error_type": failure["error_type"],
        "error_message": failure["message"],
        "fingerprint": fingerprint(failure["error_type"], failure["message"]),
    }
    if settlement.event is not None:
        fields["event"] = embedded(settlement.event)
    if settlement.raw is not None:
        fields["raw"] = raw_document(settlement.raw)
    return fields


def _update(outcome: Outcome, fields: Document) -> Pipeline:
    """The update that records an outcome in an existing record."""
    changes = literal(fields)
    if isinstance(outcome, Done | Discarded):
        return [{"$set": changes | {"settled_at": "$$NOW"}}, {"$unset": ["due_at", "event", "raw"]}]
    failures = {"$concatArrays": [{"$ifNull": ["$failures", []]}, changes["failures"]]}
    changes["failures"] = {"$slice": [failures, -KEPT_FAILURES]}
    changes["failed"] = {"$add": ["$failed", 1]}
    if isinstance(outcome, RetryAt):
        return [{"$set": changes | {"due_at": later(outcome.after)}}]
    return [{"$set": changes | {"settled_at": "$$NOW"}}, {"$unset": ["due_at"]}]


def embedded(event: Envelope) -> RawBSONDocument:
    """The event within a delivery. One that MongoDB cannot hold (it came from elsewhere) is kept as JSON."""
    document = event_document(event)
    try:
        return encoded(document, what=f"event {event.id}")
    except PayloadNotSerializable:
        return encoded(document | {"data": None, "json": json.dumps(event.data)}, what=f"event {event.id}")


def raw_document(raw: RawMessage) -> Document:
    """The document of a message as it came; headers as pairs, since their names may be anything."""
    headers = [[clean(name, 200), clean(value, 4096)] for name, value in raw.headers.items()]
    return {
        "stream": raw.stream,
        "sequence": raw.sequence,
        "subject": clean(raw.subject, 1024),
        "headers": headers,
        "data": raw.data,
    }


def absent(key: str) -> Document:
    """A filter that only ever inserts: a record has a state, so an existing one makes it a duplicate key."""
    return {"_id": key, "state": {"$exists": False}}


def literal(fields: Mapping[str, Any]) -> Document:
    """As values of a pipeline, where a text beginning with ``$`` would name a field."""
    return {name: {"$literal": value} for name, value in fields.items()}


def later(seconds: float) -> Document:
    """So many seconds from the server's now."""
    return {"$add": ["$$NOW", round(seconds * 1000)]}


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
