"""How everything is: handlers with their workers, streams with their backlogs, and all of it at a glance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from eventdriven_sync.broker import ConsumerState, StreamState
from eventdriven_sync.errors import BrokerError
from eventdriven_sync.figures import HandledCount, PublishedCount
from eventdriven_sync.monitoring.records import ConsumerRow, HandlerRow, MinuteRow, Overview, StreamRow
from eventdriven_sync.records import WorkerRecord
from eventdriven_sync.store import DeliveryQuery

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

# Of the broker, on a page that a person waits for.
BROKER_TIMEOUT = 2.0
LATE = 300.0
_OPEN = ("pending", "running", "retrying", "dead")
_MINUTE = timedelta(minutes=1)


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
    counts = store.deliveries.count(DeliveryQuery(states=_OPEN))
    oldest = _oldest(store.figures.oldest_open(), streams)
    problems += _unattended(handlers, streams) + _late(oldest, now)
    return Overview(
        at=now,
        minutes=minute_rows(bus, now, minutes),
        pending=counts.get("pending", 0),
        running=counts.get("running", 0),
        retrying=counts.get("retrying", 0),
        dead=counts.get("dead", 0),
        oldest_unhandled_at=oldest,
        workers=tuple(workers),
        handlers=tuple(handlers),
        problems=tuple(problems),
    )


def _oldest(recorded: datetime | None, streams: Iterable[StreamRow]) -> datetime | None:
    owed = (consumer.oldest_at for stream in streams for consumer in stream.consumers if consumer.handler)
    return min(filter(None, (recorded, *owed)), default=None)


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


def minute_rows(bus: EventBus, now: datetime, minutes: int) -> tuple[MinuteRow, ...]:
    """The last minutes without gaps, the present one among them."""
    last = now.replace(second=0, microsecond=0)
    begin, end = last - (minutes - 1) * _MINUTE, last + _MINUTE
    figures = bus.store.figures
    published = _by_minute(figures.published(since=begin, until=end))
    handled = {count.minute: count for count in figures.handled_by_minute(since=begin, until=end)}
    moments = [begin + number * _MINUTE for number in range(minutes)]
    return tuple(_minute_row(moment, published.get(moment, 0), handled.get(moment)) for moment in moments)


def _by_minute(counts: Iterable[PublishedCount]) -> dict[datetime, int]:
    sums: dict[datetime, int] = {}
    for count in counts:
        sums[count.minute] = sums.get(count.minute, 0) + count.count
    return sums


def _minute_row(minute: datetime, published: int, handled: HandledCount | None) -> MinuteRow:
    if handled is None:
        return MinuteRow(minute=minute, published=published)
    return MinuteRow(
        minute=minute,
        published=published,
        succeeded=handled.succeeded,
        failed=handled.failed,
        dead=handled.dead,
        discarded=handled.discarded,
    )
