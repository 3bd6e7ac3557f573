"""Events and operations in MongoDB. ``append`` is the way into the system: accepted means stored here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any, NamedTuple

import bson
from bson import DBRef, ObjectId
from bson.errors import InvalidDocument
from bson.raw_bson import RawBSONDocument
from pymongo import ReplaceOne
from pymongo.collection import Collection
from pymongo.errors import AutoReconnect, PyMongoError

from eventdriven_sync.envelope import Envelope, content_hash
from eventdriven_sync.errors import EventDrivenError, EventIdReused, PayloadNotSerializable, StoreError
from eventdriven_sync.outcome import Failure
from eventdriven_sync.records import Operation
from eventdriven_sync.store import EventQuery, OperationQuery
from eventdriven_sync.stores.collections import EVENTS, OPERATIONS, Document
from eventdriven_sync.stores.connection import Connection, Link
from eventdriven_sync.stores.mongo_errors import DUPLICATE_KEY, MAX_QUESTION, bounded, translated

_UNSTORABLE = (InvalidDocument, OverflowError, ValueError, TypeError)
_OBJECT_ID = re.compile(r"[0-9a-f]{24}")


class Prepared(NamedTuple):
    """An event ready to be inserted. Encoded by its publisher, so that a bad one fails nobody else."""

    id: str
    raw: RawBSONDocument
    event: Envelope


def stored_id(text: str) -> Any:
    """The id as MongoDB holds it: 24 hex digits as ObjectId, anything else as it is."""
    return ObjectId(bytes.fromhex(text)) if len(text) == 24 and _OBJECT_ID.fullmatch(text) else text


def event_document(event: Envelope) -> Document:
    """The document of an event. The payload is stored as it is, so that it can be queried."""
    return {
        "_id": stored_id(event.id),
        "name": event.name,
        "version": event.version,
        "data": event.data,
        "published_at": event.published_at,
        "operation_id": stored_id(event.operation_id),
        "parent_ids": [stored_id(parent) for parent in event.parent_ids],
        "source": event.source,
        "key": event.key,
        "depth": event.depth,
        "trace": event.trace,
    }


def prepare(event: Envelope) -> Prepared:
    """The event as it is inserted.

    Raises:
        PayloadNotSerializable: MongoDB cannot hold it.
    """
    try:
        return Prepared(event.id, RawBSONDocument(bson.encode(event_document(event))), event)
    except _UNSTORABLE as error:
        raise _unstorable(f"event {event.name} {event.id}", error) from error


def encoded(document: Document, *, what: str) -> RawBSONDocument:
    """The document as BSON, or PayloadNotSerializable."""
    try:
        return RawBSONDocument(bson.encode(document))
    except _UNSTORABLE as error:
        raise _unstorable(what, error) from error


def _unstorable(what: str, error: Exception) -> PayloadNotSerializable:
    return PayloadNotSerializable(f"{what} cannot be stored in MongoDB: {error}")


def envelope(document: Mapping[str, Any]) -> Envelope:
    """The event of a document."""
    return Envelope(
        id=str(document["_id"]),
        name=document["name"],
        version=document["version"],
        # Within a delivery, an event that MongoDB cannot hold is kept as text.
        data=json.loads(document["json"]) if "json" in document else plain(document["data"]),
        published_at=document["published_at"],
        operation_id=str(document["operation_id"]),
        parent_ids=tuple(str(parent) for parent in document["parent_ids"]),
        source=document["source"],
        key=document["key"],
        depth=document["depth"],
        trace=document["trace"],
    )


def plain(value: Any) -> Any:
    """What was stored, in JSON's types again: BSON reads large integers and ``$ref`` as types of its own."""
    if isinstance(value, DBRef):
        value = value.as_doc()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return int(value) if type(value) is bson.Int64 else value


class MongoEvents:
    """The ``EventStore`` protocol on MongoDB. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def append(self, events: Sequence[Envelope], *, timeout: float, session: Any = None) -> list[bool]:
        """Store events; per event True if it was stored before with the same content.

        An event whose own first write was not answered, and that is found on the second try, counts as
        stored before. When one of several events is refused, the others may have been stored.

        Raises:
            EventIdReused, PayloadNotSerializable, StoreUnavailable, PublishOutcomeUnknown,
            StorePermissionDenied.
        """
        prepared = [prepare(event) for event in events]
        if not prepared:
            return []
        connection = self._link.now
        if session is not None:
            return append_in(connection, session, prepared)
        return connection.share(
            EVENTS,
            insert_events,
            prepared,
            "while storing events",
            size=sum(len(event.raw.raw) for event in prepared),
            timeout=timeout,
            event_ids=[event.id for event in prepared],
        )

    def record(self, events: Sequence[Envelope]) -> list[EventDrivenError | None]:
        """Store events that the broker accepted: per event None, or why it can never be stored."""
        from eventdriven_sync.stores.mongo_recording import record_events

        return record_events(self._link, events)

    def get(self, ids: Sequence[str]) -> dict[str, Envelope]:
        """The events with these ids, as far as they exist."""
        found = self._read({"_id": {"$in": [stored_id(i) for i in ids]}}) if ids else []
        return {event.id: event for event in found}

    def find(self, query: EventQuery) -> list[Envelope]:
        """Events by query."""
        return self._link.now.call("while looking for events", lambda: self._find(query))

    def _find(self, query: EventQuery) -> list[Envelope]:
        if query.limit <= 0:
            return []
        with bounded("events", seconds=MAX_QUESTION) if query.payload else nullcontext():
            return self._page(query)

    def _page(self, query: EventQuery) -> list[Envelope]:
        target = self._link.now.collections[EVENTS]
        where = event_filter(query)
        if not {"name", "operation_id", "key"} & set(where):
            where["name"] = {"$in": target.distinct("name")}
        direction = 1 if query.oldest_first else -1
        if query.after is not None:
            last = target.find_one({"_id": stored_id(query.after)}, {"published_at": 1})
            if last is None:
                return []
            beyond(where, "published_at", last, direction)
        order = [("published_at", direction), ("_id", direction)]
        return [envelope(d) for d in target.find(where).sort(order).limit(query.limit)]

    def count(self, names: Sequence[str], *, since: datetime | None, until: datetime | None = None) -> int:
        """How many events of these names were published in ``[since, until)``."""
        where = {"name": {"$in": list(names)}} | span("published_at", since, until)
        target = self._link.now.collections[EVENTS]
        return self._link.now.call("while counting events", lambda: target.count_documents(where))

    def _read(self, where: Document) -> list[Envelope]:
        target = self._link.now.collections[EVENTS]
        found = self._link.now.call("while reading events", lambda: list(target.find(where)))
        return [envelope(document) for document in found]

    def save_operation(self, operation: Operation, *, timeout: float) -> None:
        """Insert the operation, or replace it by this state of it.

        Raises:
            PayloadNotSerializable, StoreUnavailable, PublishOutcomeUnknown, StorePermissionDenied.
        """
        document = encoded(operation_document(operation), what=f"operation {operation.name}")
        self._link.now.share(
            OPERATIONS,
            _replace_operations,
            [(operation.id, document)],
            "while storing an operation",
            size=len(document.raw),
            timeout=timeout,
        )

    def operation(self, operation_id: str) -> Operation | None:
        """The operation, or None."""
        target = self._link.now.collections[OPERATIONS]
        found = self._link.now.call(
            "while reading an operation", lambda: target.find_one({"_id": stored_id(operation_id)})
        )
        return operation_of(found) if found else None

    def find_operations(self, query: OperationQuery) -> list[Operation]:
        """Operations by query."""
        return self._link.now.call("while looking for operations", lambda: self._find_operations(query))

    def _find_operations(self, query: OperationQuery) -> list[Operation]:
        if query.limit <= 0:
            return []
        target = self._link.now.collections[OPERATIONS]
        fields = {"kind": query.kind, "name": query.name, "user": query.user, "status": query.status}
        where: Document = {name: value for name, value in fields.items() if value is not None}
        where |= span("started_at", query.since, query.until)
        if not where.keys() & {"kind", "name", "user"} and query.status in (None, "succeeded"):
            where["kind"] = {"$in": target.distinct("kind")}
        if query.after is not None:
            last = target.find_one({"_id": stored_id(query.after)}, {"started_at": 1})
            if last is None:
                return []
            beyond(where, "started_at", last, -1)
        order = [("started_at", -1), ("_id", -1)]
        return [operation_of(d) for d in target.find(where).sort(order).limit(query.limit)]


def insert_events(
    connection: Connection, events: Sequence[Prepared], *, session: Any = None
) -> list[bool | BaseException]:
    """Insert events; for each whether it was stored before, or why it cannot be stored."""
    first: dict[str, Prepared] = {}
    for event in events:
        first.setdefault(event.id, event)
    raws = [event.raw for event in first.values()]
    if session is None:
        ids = list(first)
        refused = {ids[failed["index"]]: failed for failed in connection.insert(EVENTS, raws)}
    else:
        connection.collections[EVENTS].insert_many(raws, ordered=False, session=session)
        refused = {}
    if not refused and len(first) == len(events):
        return [False] * len(events)
    contents = {event.id: event.event.content_hash() for event in first.values()}
    contents |= _stored_contents(connection, refused)
    return [_verdict(event, first, contents, refused) for event in events]


def _stored_contents(connection: Connection, refused: Mapping[str, Document]) -> dict[str, str]:
    """What those say that were stored before, as digests by id."""
    ids = [stored_id(key) for key, failed in refused.items() if failed["code"] == DUPLICATE_KEY]
    if not ids:
        return {}
    found = _contents(connection, ids)
    if len(found) < len(ids):
        raise AutoReconnect("an event was removed while it was compared")  # and so it is tried again
    return found


def _contents(connection: Connection, ids: Sequence[Any], session: Any = None) -> dict[str, str]:
    fields = {"name": 1, "version": 1, "data": 1}
    found = connection.collections[EVENTS].find({"_id": {"$in": ids}}, fields, session=session)
    return {str(d["_id"]): content_hash(d["name"], d["version"], plain(d["data"])) for d in found}


def _verdict(
    event: Prepared,
    first: Mapping[str, Prepared],
    contents: Mapping[str, str],
    refused: Mapping[str, Document],
) -> bool | BaseException:
    failed = refused.get(event.id)
    if failed and failed["code"] != DUPLICATE_KEY:
        return StoreError(
            f"MongoDB refused event {event.id}: {failed.get('errmsg', '')[:200]}", code=failed["code"]
        )
    # A derived id stands for "the n-th event of this handling": its first content stays.
    if event.event.parent_ids or contents[event.id] == event.event.content_hash():
        return failed is not None or first[event.id] is not event
    return EventIdReused(
        f"event_id {event.id!r} exists with other content: an id stands for one event for ever, "
        "publish this one under an id of its own",
        event_id=event.id,
        event_ids=(event.id,),
    )


def append_in(connection: Connection, session: Any, events: Sequence[Prepared]) -> list[bool]:
    """Insert events within a transaction. A duplicate key would end it, so it asks first what exists.

    Raises:
        EventIdReused; StoreError, whose cause says whether the transaction may be run again.
    """
    connection.in_transaction(session).extend(event.id for event in events)
    try:
        ids = [stored_id(event.id) for event in events]
        contents = _contents(connection, ids, session)
        fresh = [event for event in events if event.id not in contents]
        added = iter(insert_events(connection, fresh, session=session) if fresh else ())
    except PyMongoError as error:
        raise translated(
            error, "while storing events in a transaction", timeout=connection.timeout
        ) from error
    first = {event.id: event for event in fresh}
    known: Mapping[str, Document] = {key: {"code": DUPLICATE_KEY} for key in contents}
    told = [_verdict(e, first, contents, known) if e.id in contents else next(added) for e in events]
    for each in told:
        if isinstance(each, BaseException):
            raise each
    return [each is True for each in told]


def _replace_operations(
    connection: Connection, operations: Sequence[tuple[str, RawBSONDocument]]
) -> list[None]:
    target: Collection[Any] = connection.collections[OPERATIONS]
    writes: list[ReplaceOne[Any]] = [
        ReplaceOne({"_id": stored_id(key)}, document, upsert=True)
        for key, document in dict(operations).items()
    ]
    if len(writes) == 1:  # a lone request: less work in the driver
        key, document = operations[-1]
        target.replace_one({"_id": stored_id(key)}, document, upsert=True)
    else:
        target.bulk_write(writes, ordered=False)
    return [None for _ in operations]


def event_filter(query: EventQuery) -> Document:
    """The filter of a query, without its page."""
    where: Document = span("published_at", query.since, query.until)
    if query.names:
        where["name"] = {"$in": list(query.names)}
    if query.operation_id is not None:
        where["operation_id"] = stored_id(query.operation_id)
    if query.source is not None:
        where["source"] = query.source
    if query.key is not None:
        where["key"] = query.key
    return where | {f"data.{path}": value for path, value in query.payload.items()}


def span(field: str, since: datetime | None, until: datetime | None) -> Document:
    """The filter of a time span ``[since, until)``; empty if it has no ends."""
    ends = {"$gte": since, "$lt": until}
    given = {operator: value for operator, value in ends.items() if value is not None}
    return {field: given} if given else {}


def beyond(where: Document, field: str, last: Document, direction: int) -> None:
    """Narrow a filter to what comes after a document in the order (field, _id).

    Comparisons in MongoDB keep to one type, and in its order every string comes before every ObjectId. What
    is passed is excluded by ``$nor``: an ``$or`` would tempt the planner to another index, and to a sort.
    """
    moment, key = last[field], last["_id"]
    onwards, passed = ("$gte", "$lte") if direction > 0 else ("$lte", "$gte")
    where["$nor"] = [{field: moment, "_id": {passed: key}}]
    if isinstance(key, str) != (direction > 0):
        where["$nor"].append({field: moment, "_id": {"$type": "objectId" if direction < 0 else "string"}})
    ends: Document = where.get(field, {})
    if onwards == "$gte":
        moment = max(moment, ends.get("$gte", moment))
    where[field] = ends | {onwards: moment}


def failure_document(failure: Failure) -> Document:
    """The document of a failed attempt, in bounds and without what UTF-8 cannot hold."""
    return {
        "error_type": clean(failure.error_type, 200),
        "message": clean(failure.message, 2000),
        "traceback": clean(failure.traceback, 16 * 1024, tail=True),
        "failed_at": failure.failed_at,
        "attempt": failure.attempt,
        "generation": failure.generation,
        "worker": failure.worker,
        "duration_ms": failure.duration_ms,
    }


def clean(text: str, limit: int, *, tail: bool = False) -> str:
    """Text as MongoDB can hold it, at most ``limit`` characters: of a traceback the end."""
    kept = text[-limit:] if tail else text[:limit]
    return kept.encode("utf-8", "replace").decode()


def operation_document(operation: Operation) -> Document:
    """The document of an operation."""
    return {
        "_id": stored_id(operation.id),
        "name": operation.name,
        "kind": operation.kind,
        "variables": operation.variables,
        "details": operation.details,
        "user": operation.user,
        "parent_id": stored_id(operation.parent_id) if operation.parent_id else None,
        "status": operation.status,
        "error": failure_document(operation.error) if operation.error else None,
        "started_at": operation.started_at,
        "finished_at": operation.finished_at,
    }


def operation_of(document: Mapping[str, Any]) -> Operation:
    """The operation of a document."""
    return Operation(
        id=str(document["_id"]),
        name=document["name"],
        kind=document["kind"],
        variables=plain(document["variables"]),
        details=plain(document.get("details", {})),
        user=document["user"],
        parent_id=str(document["parent_id"]) if document["parent_id"] else None,
        status=document["status"],
        error=Failure(**document["error"]) if document["error"] else None,
        started_at=document["started_at"],
        finished_at=document["finished_at"],
    )
