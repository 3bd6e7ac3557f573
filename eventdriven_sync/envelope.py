"""The envelope: an event's payload with everything that is known about it, and its form on the wire.

On the wire an event is a CloudEvents 1.0 JSON message (structured mode), so any language can read or
write it: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md. Extension
attributes are lower-case letters and digits only, as that specification demands.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import attrs

from eventdriven_sync.errors import InvalidEnvelope, InvalidEventId, InvalidEventType, Undecodable, shorten
from eventdriven_sync.events import check_event_name

SPEC_VERSION = "1.0"
MAX_AGE_HELD = timedelta(seconds=1)
TRACE_FIELDS = ("traceparent", "tracestate", "baggage")
_REQUIRED = ("specversion", "id", "type", "time", "data")
_MAX_NUMBER = 2**31 - 1
_SOURCE_KEPT = 200
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_ID_CURE = "use 1 to 64 characters of A-Z a-z 0-9 _ . : -, starting with a letter or digit"


class _Random(random.Random):
    """Random bits of this process alone, seeded by the system.

    The system is not asked for every id: that lets go of the interpreter each time, and where many threads
    want it, it takes long to come back.
    """

    pid = os.getpid()

    def bits(self) -> int:
        """64 bits; a forked child begins anew, also one of which Python was not told (uWSGI)."""
        if self.pid != os.getpid():
            self.seed()
            self.pid = os.getpid()
        return self.getrandbits(64)


_random = _Random()


def new_id() -> str:
    """A new id: 24 hex digits shaped like a MongoDB ObjectId (4 bytes of time, 8 random bytes)."""
    return f"{int(time.time()):08x}{_random.bits():016x}"


def derived_id(*parts: str, at: str) -> str:
    """The same id for the same parts: how an attempt that runs again emits the same events.

    Args:
        parts: what the id depends on (parent event, handler, ordinal; or an idempotency key).
        at: an id whose time prefix is kept, so that ids stay roughly in time order.
    """
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
    prefix = at[:8] if re.fullmatch(r"[0-9a-f]{24}", at) else digest[16:24]
    return prefix + digest[:16]


def check_id(value: object, *, field: str = "event_id") -> str:
    """The id as text, or InvalidEventId."""
    if type(value) is str and _ID.fullmatch(value):
        return value
    text = str(value) if type(value).__name__ == "ObjectId" else value
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise InvalidEventId(
            f"{field} {shorten(value)} cannot be used: {_ID_CURE}",
            field=field,
            value=value,
        )
    return str.__str__(text)  # a member of `class Id(str, Enum)` formats as something else


@attrs.frozen(kw_only=True)
class Envelope:
    """An event with its metadata; immutable, safe to share between threads.

    Attributes:
        id: 24 hex digits, or what the publisher gave as ``event_id``.
        name: the stable event name, ``User.nameUpdated``.
        version: version of the payload's shape, from 1.
        data: the payload as a JSON-safe document, the same in MongoDB and on the wire.
        published_at: when the publisher accepted it (publisher's clock, UTC); of an event published in a
            handler, when the handler's outcome was stored, give or take a second.
        operation_id: the operation whose chain it belongs to; its own id when it began the chain.
        parent_ids: the events whose handling published it; empty for the first of a chain.
        source: ``Group.handler``, ``Group`` or empty: who published it.
        key: value of the class's key field, for grouping.
        depth: number of events between the operation and this one.
        trace: W3C trace headers, when tracing is on.
    """

    id: str
    name: str
    version: int
    data: Mapping[str, Any]
    published_at: datetime
    operation_id: str
    parent_ids: tuple[str, ...] = ()
    source: str = ""
    key: str | None = None
    depth: int = 0
    trace: Mapping[str, str] = attrs.field(factory=dict)

    def content_hash(self) -> str:
        """Digest of name, version and payload: tells a repeated publish from a reused id."""
        return content_hash(self.name, self.version, self.data)


def content_hash(name: str, version: int, data: Mapping[str, Any]) -> str:
    """Digest of what an event says, whoever publishes it and when."""
    text = json.dumps([name, version, data], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def utcnow() -> datetime:
    """The time now, aware, in UTC, cut to the milliseconds MongoDB keeps."""
    return datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)


def accepted_now(events: Sequence[Envelope], now: datetime) -> tuple[Envelope, ...]:
    """Events that a handler has held back, as accepted ``now``: in their order, none older than a second.

    An event that appears in the store with a time long past would be missed by whoever goes through the
    events in the order of their time: the reconciler has been there already.
    """
    age = max((now - each.published_at for each in events), default=timedelta())
    if age <= MAX_AGE_HELD:
        return tuple(events)
    factor = MAX_AGE_HELD / age
    return tuple(
        attrs.evolve(each, published_at=in_milliseconds(now - (now - each.published_at) * factor))
        for each in events
    )


def in_milliseconds(moment: datetime) -> datetime:
    """Cut to what MongoDB keeps."""
    beyond = moment.microsecond % 1000
    return moment.replace(microsecond=moment.microsecond - beyond) if beyond else moment


def to_wire(envelope: Envelope, namespace: str) -> dict[str, Any]:
    """The CloudEvents document of an envelope."""
    document: dict[str, Any] = {
        "specversion": SPEC_VERSION,
        "id": envelope.id,
        "source": _source_uri(envelope.source, namespace),
        "type": envelope.name,
        "time": envelope.published_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "dataversion": envelope.version,
        "operationid": envelope.operation_id,
        "chaindepth": envelope.depth,
        "data": envelope.data,
    }
    if envelope.parent_ids:
        document["parentids"] = ",".join(envelope.parent_ids)
    if envelope.key is not None:
        document["partitionkey"] = envelope.key
    for name in TRACE_FIELDS if envelope.trace else ():
        if name in envelope.trace:
            document[name] = envelope.trace[name]
    return document


def from_wire(
    document: object,
    *,
    message_id: str | None = None,
    subject: str | None = None,
    namespace: str | None = None,
) -> Envelope:
    """The envelope of a CloudEvents document, ours or foreign.

    Foreign events may lack our extension attributes: they begin a chain of their own, as version 1.

    Args:
        document: the parsed JSON.
        message_id: the message's ``Nats-Msg-Id``, if it has one: must be the event's id.
        subject: must be namespace and name.
        namespace: without it any subject that ends in the name will do.

    Raises:
        InvalidEnvelope: an attribute is missing, cannot be used or contradicts the message.
    """
    if not isinstance(document, dict):
        raise InvalidEnvelope(f"envelope must be an object, got {type(document).__name__}")
    missing = [name for name in _REQUIRED if name not in document]
    if missing:
        raise InvalidEnvelope(", ".join(f"missing field {name!r}" for name in missing), field=missing[0])
    _check_format(document)
    try:
        event_id = check_id(document["id"], field="id")
        operation_id = check_id(document.get("operationid", event_id), field="operationid")
        parents = _parents(document["parentids"], event_id) if "parentids" in document else ()
        kind = document["type"]
        name = _known_name(kind) if type(kind) is str else check_event_name(kind)
    except (InvalidEventId, InvalidEventType) as error:
        raise InvalidEnvelope(str(error), **error.facts) from error
    _check_message(event_id, name, message_id, subject, namespace)
    key = document.get("partitionkey")
    return Envelope(
        id=event_id,
        name=name,
        version=_number(document, "dataversion", low=1, default=1),
        data=document["data"],
        published_at=_moment(document["time"]),
        operation_id=operation_id,
        parent_ids=parents,
        source=_known_source(document.get("source", ""), namespace),
        key=None if key is None else _string(key, "partitionkey"),
        depth=_number(document, "chaindepth", low=0, default=0),
        trace=_trace(document),
    )


def _trace(document: Mapping[str, Any]) -> dict[str, str]:
    return {name: _string(document[name], name) for name in TRACE_FIELDS if name in document}


def _check_format(document: Mapping[str, Any]) -> None:
    version, kind = document["specversion"], document.get("datacontenttype")
    if version == SPEC_VERSION and kind == "application/json" and type(document["data"]) is dict:
        return
    if not isinstance(version, str) or version.partition(".")[0] != "1":
        raise InvalidEnvelope(
            f"specversion is {shorten(version)}: this library reads CloudEvents {SPEC_VERSION}",
            field="specversion",
            value=version,
        )
    if kind not in (None, "application/json") and not is_json(kind):
        raise Undecodable(
            f"unsupported content type: datacontenttype is {shorten(kind)}, events carry application/json",
            field="datacontenttype",
            value=kind,
        )
    if not isinstance(document["data"], dict):
        raise InvalidEnvelope(f"data must be an object, got {type(document['data']).__name__}", field="data")


def is_json(content_type: object) -> bool:
    """Whether a media type, parameters aside, is JSON."""
    kind = str(content_type).partition(";")[0].strip().lower()
    return kind in ("application/json", "text/json") or kind.endswith("+json")


def _check_message(
    event_id: str, name: str, message_id: str | None, subject: str | None, namespace: str | None
) -> None:
    if message_id is not None and message_id != event_id:
        raise InvalidEnvelope(
            f"id {event_id!r} differs from the message's Nats-Msg-Id {shorten(message_id)}",
            field="id",
            value=event_id,
        )
    expected = name if namespace is None else f"{namespace}.{name}"
    if subject is None or subject == expected:
        return
    if namespace is not None or not subject.endswith(f".{name}"):
        raise InvalidEnvelope(
            f"type {name!r} on subject {shorten(subject)}: the subject is the namespace, a dot and the type",
            field="type",
            value=name,
        )


def _parents(text: object, event_id: str) -> tuple[str, ...]:
    ids = tuple(check_id(part, field="parentids") for part in _string(text, "parentids").split(",") if part)
    if event_id in ids:
        raise InvalidEnvelope(f"event {event_id} is its own parent", field="parentids", value=event_id)
    return ids


def _number(document: Mapping[str, Any], field: str, *, low: int, default: int) -> int:
    value = document.get(field, default)
    if type(value) is not int or not low <= value <= _MAX_NUMBER:
        raise InvalidEnvelope(
            f"{field} is {shorten(value)}: it must be a whole number from {low} to {_MAX_NUMBER:,}",
            field=field,
            value=value,
        )
    return value


def _string(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidEnvelope(
            f"{field} must be a string, got {type(value).__name__} {shorten(value)}", field=field, value=value
        )
    return value


def _moment(text: object) -> datetime:
    """RFC 3339 with any offset, as UTC with the milliseconds MongoDB keeps."""
    try:
        moment = datetime.fromisoformat(_string(text, "time").upper())
        if moment.tzinfo is UTC:
            return in_milliseconds(moment)
        if moment.utcoffset() is not None:
            return in_milliseconds(moment.astimezone(UTC))
    except (ValueError, OverflowError):
        pass
    raise InvalidEnvelope(
        f"time is {shorten(text)}: it must be RFC 3339 with an offset, such as 2026-01-31T12:00:00.000Z",
        field="time",
        value=text,
    )


def _source_uri(source: str, namespace: str) -> str:
    """``/blog/Blog/update_author`` for ``Blog.update_author``; a foreign source stays as it came."""
    if "/" in source:
        return source
    return "/".join(["", namespace, *filter(None, source.split("."))])


def _known_source(uri: object, namespace: str | None) -> str:
    """Handlers are few: what each of them publishes begins with the same text."""
    short = type(uri) is str and len(uri) <= _SOURCE_KEPT
    return _short_source(uri, namespace) if short else _source(uri, namespace)


def _source(uri: object, namespace: str | None) -> str:
    text = _string(uri, "source")
    begin, _, rest = text.removeprefix("/").partition("/")
    ours = text.startswith("/") and rest.count("/") <= 1 and namespace in (None, begin)
    return rest.replace("/", ".") if ours else text


_short_source = lru_cache(maxsize=1024)(_source)
# A name that is refused is not kept.
_known_name = lru_cache(maxsize=1024)(check_event_name)
