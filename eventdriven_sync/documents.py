"""Records as JSON documents, for the command line and the JSON API.

Keys are the names of the attributes, times are ISO 8601 in UTC.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import attrs

from eventdriven_sync.chain import Chain, ChainEvent
from eventdriven_sync.people import User
from eventdriven_sync.records import Delivery

Document = dict[str, Any]

# Belongs to the protocol between workers and the store, and changes with it.
_INTERNAL = ("token",)


def document(value: Any) -> Document:
    """A record as a document."""
    fields = {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
    return {name: plain(each) for name, each in fields.items() if name not in _INTERNAL}


def plain(value: Any) -> Any:
    """Anything inside a record as JSON can hold it."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    return document(value) if attrs.has(type(value)) else str(value)


def iso(moment: datetime) -> str:
    """A time for programs: ISO 8601 in UTC with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def delivery_summary(delivery: Delivery) -> Document:
    """A delivery without stacks and without its event: what lists show."""
    found = document(delivery)
    for key in ("event", "raw", "original", "failures"):
        del found[key]
    last = delivery.failures[-1] if delivery.failures else None
    found["error_type"] = last.error_type if last else None
    found["error"] = last.message if last else None
    found["fingerprint"] = delivery.fingerprint
    return found


def user_document(user: User) -> Document:
    """A user without the hash of their password."""
    found = document(user)
    del found["password"]
    return found


def chain_document(chain: Chain) -> Document:
    """The chain, nested: operation, ``events`` → ``deliveries`` → ``events``. Built without recursion."""
    found: Document = {
        "operation": document(chain.operation),
        "settled": chain.settled,
        "succeeded": chain.succeeded,
        "truncated": chain.truncated,
        "events": [],
    }
    waiting: list[tuple[list[Document], tuple[ChainEvent, ...]]] = [(found["events"], chain.events)]
    while waiting:
        place, events = waiting.pop()
        for item in events:
            event = document(item.event) | {"deliveries": []}
            place.append(event)
            for child in item.deliveries:
                delivery = delivery_summary(child.delivery) | {"events": []}
                event["deliveries"].append(delivery)
                waiting.append((delivery["events"], child.events))
    return found


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(value).decode()}"
