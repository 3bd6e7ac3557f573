"""How everything is: handlers with their workers, streams with their backlogs, and all of it at a glance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from eventdriven_sync.broker import ConsumerState, StreamState
from eventdriven_sync.counting import MINUTE, MinuteRow, floor, minute_counts
from eventdriven_sync.errors import BrokerError
from eventdriven_sync.monitoring.records import ConsumerRow, HandlerRow, Overview, StreamRow
from eventdriven_sync.records import WorkerRecord
from eventdriven_sync.store import DeliveryQuery, Store

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

# Of the broker, on a page that a person waits for.
BROKER_TIMEOUT = 2.0
LATE = 300.0


def handler_rows(bus: EventBus, workers: Sequence[WorkerRecord]) -> list[HandlerRow]:
    """Every handler that is not retired, with the live workers that run it."""
    return [
        HandlerRow(record=record, workers=tuple(w.id for w in workers if record.name in w.handlers))
        for record in bus.store.directory.handlers()
    ]


def stream_rows(bus: EventBus, handlers: Sequence[HandlerRow], now: datetime) -> list[StreamRow]:
    """The streams of the namespace.

    Raises:
        BrokerUnavailable, BrokerPermissionDenied.
    """
    prefix = f"{bus.settings.namespace}_"
    found = bus.broker.streams(prefix, timeout=min(BROKER_TIMEOUT, bus.settings.broker_timeout))
    return [_stream_row(state, handlers, now) for state in sorted(found, key=lambda state: state.name)]


def _stream_row(state: StreamState, handlers: Sequence[HandlerRow], now: datetime) -> StreamRow:
    by_consumer = {handler.name.replace(".", "__"): handler for handler in handlers}
    return StreamRow(
        name=state.name,
        subjects=state.subjects,
        messages=state.messages,
        size_bytes=state.size_bytes,
        first_sequence=state.first_sequence,
        last_sequence=state.last_sequence,
        config=state.config,
        consumers=tuple(
            _consumer_row(consumer, by_consumer.get(consumer.name), now)
            for consumer in sorted(state.consumers, key=lambda consumer: consumer.name)
        ),
    )


def _consumer_row(state: ConsumerState, handler: HandlerRow | None, now: datetime) -> ConsumerRow:
    return ConsumerRow(
        name=state.name,
        handler=handler.name if handler else "",
        pending=state.pending,
        ack_pending=state.ack_pending,
        redelivered=state.redelivered,
        waiting=state.waiting,
        oldest_at=state.oldest_at,
        lag=max(0.0, (now - state.oldest_at).total_seconds()) if state.oldest_at else 0.0,
        workers=len(handler.workers) if handler else 0,
        paused=bool(handler and handler.record.paused),
    )


def overview(bus: EventBus, *, minutes: int) -> Overview:
    """Everything at a glance; a broker that cannot be reached is one of the problems."""
    store, now = bus.store, bus.store.directory.now()
    workers = store.directory.workers()
    handlers = handler_rows(bus, workers)
    problems: list[str] = []
    try:
        streams = stream_rows(bus, handlers, now)
    except BrokerError as error:
        streams = []
        problems.append(f"NATS does not answer, so events wait in MongoDB: {error}")
    counts = store.deliveries.count(DeliveryQuery(states=("pending", "running", "retrying")))
    dead = store.deliveries.count(DeliveryQuery(states=("dead",)))
    oldest = _oldest(store.figures.oldest_open(), streams)
    problems += _paused(handlers) + _unattended(handlers, streams) + _late(oldest, now)
    return Overview(
        at=now,
        minutes=tuple(_minutes(store, now, minutes)),
        pending=counts.get("pending", 0),
        running=counts.get("running", 0),
        retrying=counts.get("retrying", 0),
        dead=dead.get("dead", 0),
        oldest_unhandled_at=oldest,
        workers=tuple(workers),
        handlers=tuple(handlers),
        problems=tuple(problems),
    )


def _oldest(recorded: datetime | None, streams: Iterable[StreamRow]) -> datetime | None:
    owed = (consumer.oldest_at for stream in streams for consumer in stream.consumers if consumer.handler)
    return min(filter(None, (recorded, *owed)), default=None)


def _paused(handlers: Sequence[HandlerRow]) -> list[str]:
    paused = [(handler.name, handler.record.paused) for handler in handlers]
    return [
        f"{name} is paused by {pause.by} since {pause.at:%Y-%m-%d %H:%M} UTC: {pause.reason}"
        for name, pause in paused
        if pause
    ]


def _unattended(handlers: Sequence[HandlerRow], streams: Sequence[StreamRow]) -> list[str]:
    waiting = {handler.name: 0 for handler in handlers if not handler.workers}
    for stream in streams:
        for consumer in stream.consumers:
            if consumer.handler in waiting:
                waiting[consumer.handler] += consumer.pending + consumer.ack_pending
    return [
        f"no live worker runs {name}: {count:,} messages wait for it; start one with `eventdriven worker`"
        for name, count in sorted(waiting.items())
        if count
    ]


def _late(oldest: datetime | None, now: datetime) -> list[str]:
    age = (now - oldest).total_seconds() if oldest else 0.0
    if age < LATE:
        return []
    return [f"the oldest unhandled event has waited {age / 60:,.0f} minutes"]


def _minutes(store: Store, now: datetime, minutes: int) -> list[MinuteRow]:
    end = floor(now, MINUTE) + MINUTE
    return minute_counts(store, since=end - minutes * MINUTE, until=end)
