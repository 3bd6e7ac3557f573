"""The envelope: an event's payload with everything that is known about it, and its form on the wire.

On the wire an event is a CloudEvents 1.0 JSON message (structured mode), so any language can read or
write it: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md. Extension
attributes are lower-case letters and digits only, as that specification demands.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import attrs

from eventdriven_sync.errors import InvalidEventId, shorten

SPEC_VERSION = "1.0"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_ID_CURE = (
    "use 1 to 64 characters of A-Z a-z 0-9 _ . : -, starting with a letter or digit"
)


def new_id() -> str:
    """A new id: 24 hex digits shaped like a MongoDB ObjectId (4 bytes of time, 8 random bytes)."""
    return f"{int(time.time()):08x}{secrets.token_hex(8)}"


def derived_id(*parts: str, at: str) -> str:
    """The same id for the same parts: how an attempt that runs again emits the same events.

    Args:
        parts: what the id depends on (parent event, handler, ordinal; or an idempotency key).
        at: an id whose time prefix is kept, so that ids stay roughly in time order.
    """
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    prefix = at[:8] if re.fullmatch(r"[0-9a-f]{24}", at) else digest[16:24]
    return prefix + digest[:16]


def check_id(value: object, *, field: str = "event_id") -> str:
    """The id as text, or InvalidEventId."""
    text = str(value) if type(value).__name__ == "ObjectId" else value
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise InvalidEventId(
            f"{field} {shorten(value)} cannot be used: {_ID_CURE}",
            field=field,
            value=value,
        )
    return text


@attrs.frozen(kw_only=True)
class Envelope:
    """An event with its metadata; immutable, safe to share between threads.

    Attributes:
        id: 24 hex digits, or what the publisher gave as ``event_id``.
        name: the stable event name, ``User.nameUpdated``.
        version: version of the payload's shape, from 1.
        data: the payload as a JSON-safe document, the same in MongoDB and on the wire.
        published_at: when the publisher accepted it (publisher's clock, UTC).
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
        text = json.dumps(
            [self.name, self.version, self.data], sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def utcnow() -> datetime:
    """The time now, aware, in UTC, cut to the milliseconds MongoDB keeps."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def to_wire(envelope: Envelope, namespace: str) -> dict[str, Any]:
    """The CloudEvents document of an envelope."""
    document: dict[str, Any] = {
        "specversion": SPEC_VERSION,
        "id": envelope.id,
        "source": "/".join(["", namespace, *filter(None, envelope.source.split("."))]),
        "type": envelope.name,
        "time": envelope.published_at.isoformat(timespec="milliseconds").replace(
            "+00:00", "Z"
        ),
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
    return document | dict(envelope.trace)
