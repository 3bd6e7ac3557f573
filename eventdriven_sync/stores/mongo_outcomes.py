"""Outcomes as MongoDB holds them: what is inserted for an attempt's settlement, or changed in its record.

An insert wherever possible, since an update costs a multiple; a pipeline only where the server must compute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from bson.raw_bson import RawBSONDocument

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import PayloadNotSerializable
from eventdriven_sync.fingerprint import fingerprint
from eventdriven_sync.outcome import Dead, Discarded, Done, Outcome, RetryAt
from eventdriven_sync.records import RawMessage, Settlement
from eventdriven_sync.stores.collections import Document
from eventdriven_sync.stores.mongo_events import (
    Prepared,
    clean,
    encoded,
    event_document,
    failure_document,
    prepare,
    stored_id,
)

KEPT_FAILURES = 10

# Without it the planner weighs other indexes, which costs more than the update.
_BY_ID = {"_id": 1}

_STATES = {Done: "succeeded", RetryAt: "retrying", Dead: "dead", Discarded: "discarded"}

Pipeline = list[Document]


class Record(NamedTuple):
    """A settlement ready to be written: a new document, or a statement that updates one.

    Encoded by its worker thread, so that a bad one fails nobody else.
    """

    id: str
    token: str
    raw: RawBSONDocument
    update: bool
    emitted: tuple[Prepared, ...] = ()

    @property
    def size(self) -> int:
        """Bytes on their way to the server."""
        return len(self.raw.raw) + sum(len(event.raw.raw) for event in self.emitted)


def record_of(settlement: Settlement) -> Record:
    """What to write for a settlement.

    Raises:
        PayloadNotSerializable: MongoDB cannot hold what it says.
    """
    outcome, key = settlement.outcome, settlement.delivery_id
    what = f"outcome of {key}"
    # An attempt without success publishes nothing.
    emitted = tuple(map(prepare, settlement.emitted)) if isinstance(outcome, Done) else ()
    statement: Document
    if settlement.claimed:
        where = {"_id": key, "token": settlement.token, "state": "running"}
        statement = {"q": where, "u": _update(outcome, _outcome_fields(settlement)), "hint": _BY_ID}
        return Record(key, settlement.token, encoded(statement, what=what), True, emitted)
    if type(outcome) is Done:
        return Record(key, settlement.token, encoded(_success(key, settlement), what=what), False, emitted)
    fields = _first_fields(settlement) | _outcome_fields(settlement) | _kept(settlement)
    if isinstance(outcome, RetryAt):
        statement = {
            "q": absent(key),
            "u": _first_retry(fields, outcome),
            "upsert": True,
            "hint": _BY_ID,
        }
        return Record(key, settlement.token, encoded(statement, what=what), True)
    ended = settlement.started_at + timedelta(milliseconds=settlement.duration_ms)
    document: Document = {"_id": key, "settled_at": ended} | fields
    return Record(key, settlement.token, encoded(document, what=what), False)


def _success(key: str, settlement: Settlement) -> Document:
    """What nearly every event comes to."""
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
    """The fields that every outcome sets."""
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
    return fields


def _kept(settlement: Settlement) -> Document:
    """What is needed to try again, or by whoever looks at a dead letter; a claimed record has it."""
    fields: Document = {}
    if isinstance(settlement.outcome, RetryAt | Dead):
        if settlement.event is not None:
            fields["event"] = embedded(settlement.event)
        if settlement.raw is not None:
            fields["raw"] = raw_document(settlement.raw)
    return fields


def _first_retry(fields: Document, outcome: RetryAt) -> Document | Pipeline:
    """A new record. Without a delay no time is computed, for which a pipeline costs a multiple."""
    if outcome.after == 0:
        return {"$setOnInsert": fields, "$currentDate": {"due_at": True}}
    return [{"$set": literal(fields) | {"due_at": later(outcome.after)}}]


def _update(outcome: Outcome, fields: Document) -> Document | Pipeline:
    """The update that records an outcome in an existing record; a pipeline only where it must compute."""
    if isinstance(outcome, Done | Discarded):
        gone = {"due_at": "", "event": "", "raw": ""}
        return {"$set": fields, "$unset": gone, "$currentDate": {"settled_at": True}}
    if isinstance(outcome, RetryAt) and outcome.after > 0:
        changes = literal(fields)
        failures = {"$concatArrays": [{"$ifNull": ["$failures", []]}, changes["failures"]]}
        changes["failures"] = {"$slice": [failures, -KEPT_FAILURES]}
        changes["failed"] = {"$add": ["$failed", 1]}
        return [{"$set": changes | {"due_at": later(outcome.after)}}]
    change: Document = {
        "$push": {"failures": {"$each": fields.pop("failures"), "$slice": -KEPT_FAILURES}},
        "$set": fields,
        "$inc": {"failed": 1},
    }
    if isinstance(outcome, RetryAt):
        return change | {"$currentDate": {"due_at": True}}
    return change | {"$unset": {"due_at": ""}, "$currentDate": {"settled_at": True}}


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
