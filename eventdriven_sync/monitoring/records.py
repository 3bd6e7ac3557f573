"""What ``Monitor`` answers with, as immutable values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Generic, TypeVar

import attrs

from eventdriven_sync.counting import MinuteRow as MinuteRow
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.records import Delivery, HandlerRecord, Operation, WorkerRecord

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Page(Generic[T]):
    """One page of a list.

    Attributes:
        after: what to ask for the next page with; None on the last one.
    """

    items: tuple[T, ...]
    after: str | None = None


def page_of(found: Sequence[T], limit: int, key: Callable[[T], str]) -> Page[T]:
    """A page of what was found by asking for one more than ``limit``."""
    items = tuple(found[:limit])
    return Page(items=items, after=key(items[-1]) if len(found) > limit else None)


@attrs.frozen(kw_only=True)
class Overview:
    """How everything is.

    Attributes:
        minutes: one row for each, without gaps, oldest first; the last one is not over yet.
        pending, running, retrying, dead: deliveries in this state now.
        oldest_unhandled_at: when the oldest event was published, or first tried, that some handler has not
            settled; None if there is none.
        problems: what a person should look at, in words; empty if all is well.
    """

    at: datetime
    minutes: tuple[MinuteRow, ...]
    pending: int
    running: int
    retrying: int
    dead: int
    oldest_unhandled_at: datetime | None
    workers: tuple[WorkerRecord, ...]
    handlers: tuple[HandlerRow, ...]
    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to look at."""
        return not self.problems


@attrs.frozen(kw_only=True)
class EventDetail:
    """An event with its deliveries: those not begun are ``pending``.

    Attributes:
        operation: None if it began elsewhere.
    """

    envelope: Envelope
    deliveries: tuple[Delivery, ...]
    operation: Operation | None


@attrs.frozen(kw_only=True)
class HandlerRow:
    """A handler and who runs it.

    Attributes:
        workers: ids of the live workers that run it.
    """

    record: HandlerRecord
    workers: tuple[str, ...]

    @property
    def name(self) -> str:
        """``Group.handler``."""
        return self.record.name


@attrs.frozen(kw_only=True)
class ConsumerRow:
    """A consumer: what the broker still owes a handler.

    Attributes:
        name: of the consumer.
        handler: ``Group.handler``, empty for a consumer that belongs to none of ours.
        pending: messages not delivered yet.
        ack_pending: delivered, not acknowledged yet.
        oldest_at: when the oldest message was stored that can still come.
        lag: seconds since then; 0.0 if nothing waits.
        workers: how many live workers run the handler.
        paused: whether a person stopped the handler.
    """

    name: str
    handler: str
    pending: int
    ack_pending: int
    redelivered: int
    waiting: int
    oldest_at: datetime | None
    lag: float
    workers: int
    paused: bool = False


@attrs.frozen(kw_only=True)
class StreamRow:
    """A stream with its consumers."""

    name: str
    subjects: tuple[str, ...]
    messages: int
    size_bytes: int
    first_sequence: int
    last_sequence: int
    config: Mapping[str, object]
    consumers: tuple[ConsumerRow, ...]
