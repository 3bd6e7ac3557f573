"""Storing events that the broker accepted: in bulk, and never twice."""

from __future__ import annotations

from collections.abc import Sequence

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import EventDrivenError, EventIdReused, PayloadNotSerializable, StoreError
from eventdriven_sync.stores.connection import Link
from eventdriven_sync.stores.mongo_events import Prepared, insert_events, prepare


def record_events(link: Link, events: Sequence[Envelope]) -> list[EventDrivenError | None]:
    """See ``EventStore.record``."""
    refused: dict[int, EventDrivenError] = {}
    prepared: dict[int, Prepared] = {}
    for index, event in enumerate(events):
        try:
            prepared[index] = prepare(event)
        except PayloadNotSerializable as error:
            refused[index] = error
    if prepared:
        connection = link.now
        told = connection.call(
            "while recording events", lambda: insert_events(connection, list(prepared.values()))
        )
        refused |= {index: why for index, why in zip(prepared, map(_refusal, told), strict=True) if why}
    return [refused.get(index) for index in range(len(events))]


def _refusal(told: bool | BaseException) -> EventDrivenError | None:
    """The first content of an id stays, so another one is no news."""
    return told if isinstance(told, StoreError) and not isinstance(told, EventIdReused) else None
