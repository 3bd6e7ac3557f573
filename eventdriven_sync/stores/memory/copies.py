"""Copies of records: nobody who holds one can change what is stored, nor the other way round.

Records are frozen; only the documents in them can be changed, so only those are copied.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from attrs import evolve

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.records import Delivery, HandlerRecord, Operation, RawMessage

R = TypeVar("R")

_CHANGEABLE: dict[type, tuple[str, ...]] = {
    Delivery: ("event", "original", "raw"),
    Envelope: ("data", "trace"),
    HandlerRecord: ("options",),
    Operation: ("variables", "details"),
    RawMessage: ("headers",),
}
_ATOMS = (str, int, float, bool, type(None))


def copied(record: R) -> R:
    """The record with documents of its own; None stays None."""
    own: R = _own(record)
    return own


def _own(value: Any) -> Any:
    names = _CHANGEABLE.get(type(value))
    if names is None:
        return document(value)
    parts = {name: _own(part) for name in names if (part := getattr(value, name)) is not None}
    return evolve(value, **parts) if parts else value


def document(value: Any) -> Any:
    """A copy of a JSON-like document; what is none is copied as Python copies it."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        return {name: document(part) for name, part in value.items()}
    if kind is list:
        return [document(part) for part in value]
    return copy.deepcopy(value)
