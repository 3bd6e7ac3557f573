"""The audit: whether every accepted event is accounted for, handler by handler.

For every handler, events accepted for it = pending + running + retrying + succeeded + dead + discarded +
still in its consumer. What neither has a delivery nor can still come is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import attrs

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.recorded import unrecorded
from eventdriven_sync.records import HandlerRecord, delivery_id
from eventdriven_sync.store import EventQuery, Store

if TYPE_CHECKING:
    from eventdriven_sync.broker import ConsumerState
    from eventdriven_sync.bus import EventBus

PAGE = 500
# Events without a delivery that are kept in memory for the second look.
MAX_SUSPECTS = 5000
MAX_EXAMPLES = 10


@attrs.frozen(kw_only=True)
class HandlerAudit:
    """What became of the events accepted for one handler.

    Attributes:
        accepted: events of its names, published since it was registered and before the audit began.
        in_consumer: messages its consumers still hold. Events that came from elsewhere and younger ones
            are among them, so it may exceed ``missing``.
        missing: accepted events without a delivery: on their way, in a consumer, or lost.
        lost: those of them that nothing will bring as things are.
        lost_examples: ids of some of them.
    """

    name: str
    accepted: int
    pending: int
    running: int
    retrying: int
    succeeded: int
    dead: int
    discarded: int
    in_consumer: int
    missing: int
    lost: int = 0
    lost_examples: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every accepted event has a delivery or can still get one."""
        recorded = self.pending + self.running + self.retrying + self.succeeded + self.dead + self.discarded
        return not self.lost and self.accepted == recorded + self.missing


@attrs.frozen(kw_only=True)
class Audit:
    """The result: one entry per registered handler, by name.

    Attributes:
        until: the event store's time when the audit began; later events are not in it.
        unrecorded: messages of their streams that the recorder has not looked at yet. Events that NATS alone
            accepted (``durability="broker"``) are audited once they are recorded.
    """

    until: datetime
    handlers: tuple[HandlerAudit, ...]
    unrecorded: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is lost."""
        return all(handler.ok for handler in self.handlers)


def audit(
    bus: EventBus,
    *,
    since: datetime | None = None,
    progress: Callable[[int], None] | None = None,
) -> Audit:
    """Check that every event accepted for a handler is accounted for. Safe while everything runs.

    It only reads. An event without a delivery is in order while the handler's consumer can still bring it,
    and until the reconciler had its turn (``reconcile_after`` + ``reconcile_every``); after that it is lost.
    One that fell out of a consumer from between others is known by the number only, as long as the consumer
    still holds older ones.

    Args:
        since: look only at events published from then on; an aware datetime.
        progress: called with the number of events looked at so far, after each page.

    Raises:
        StoreUnavailable, BrokerUnavailable: a server cannot be reached; nothing can be said.

    Example:
        >>> assert audit(bus).ok
    """
    bus.store.open(timeout=bus.settings.publish_timeout)
    until = bus.store.directory.now()
    count = _Progress(progress)
    records = bus.store.directory.handlers()
    return Audit(
        until=until,
        handlers=tuple(_Count(bus, record, until).run(since, count) for record in records),
        unrecorded=unrecorded(bus, sorted(set().union(*map(_tokens, records)))),
    )


class _Progress:
    """Adds up over the handlers."""

    def __init__(self, tell: Callable[[int], None] | None) -> None:
        self._tell = tell
        self._seen = 0

    def __call__(self, events: int) -> None:
        self._seen += events
        if self._tell:
            self._tell(self._seen)


class _Count:
    """Counts what became of one handler's events, in pages.

    The order makes it right while workers run: first the time, then what the consumers hold, then the
    deliveries. A message leaves its consumer only after its delivery was recorded, so an old event found
    without a delivery was in the consumer when that was looked at, or it is lost.
    """

    def __init__(self, bus: EventBus, record: HandlerRecord, until: datetime) -> None:
        self._store: Store = bus.store
        self._record = record
        self._until = until
        self._grace = timedelta(seconds=bus.settings.reconcile_after + bus.settings.reconcile_every)
        # A message reaches the broker after its event was stored, and clocks differ.
        self._margin = timedelta(seconds=bus.settings.reconcile_after)
        self._held = {token: _consumer(bus, record, token) for token in _tokens(record)}
        self._states: Counter[str] = Counter()
        self._accepted = 0
        self._waiting: Counter[str] = Counter()
        self._missing = 0
        self._lost: list[Envelope] = []
        self._lost_count = 0
        self._last_waiting: dict[str, str] = {}

    def run(self, since: datetime | None, progress: Callable[[int], None]) -> HandlerAudit:
        """Look at every event; twice at those without a delivery."""
        suspects: list[Envelope] = []
        for page in self._pages(max(filter(None, (self._record.starts_at, since)), default=None)):
            self._accepted += len(page)
            suspects += self._without_delivery(page)
            if len(suspects) >= MAX_SUSPECTS:
                self._look_again(suspects)
                suspects = []
            progress(len(page))
        self._look_again(suspects)
        return self._result()

    def _pages(self, since: datetime | None) -> Iterator[list[Envelope]]:
        after = None
        while self._record.events:
            page = self._store.events.find(
                EventQuery(
                    names=self._record.events,
                    since=since,
                    until=self._until,
                    oldest_first=True,
                    after=after,
                    limit=PAGE,
                )
            )
            if page:
                yield page
            if len(page) < PAGE:
                return
            after = page[-1].id

    def _without_delivery(self, page: Sequence[Envelope]) -> list[Envelope]:
        by_id = {delivery_id(self._record.name, event.id): event for event in page}
        states = self._store.deliveries.states(list(by_id))
        self._states.update(states.values())
        return [event for key, event in by_id.items() if key not in states]

    def _look_again(self, suspects: Sequence[Envelope]) -> None:
        for start in range(0, len(suspects), PAGE):
            for event in self._without_delivery(suspects[start : start + PAGE]):
                self._judge(event)

    def _judge(self, event: Envelope) -> None:
        self._missing += 1
        if event.published_at > self._until - self._grace:
            return
        token = _token(event.name)
        held = self._held[token]
        if held and held.oldest_at and event.published_at >= held.oldest_at - self._margin:
            self._waiting[token] += 1
            self._last_waiting[token] = event.id
            return
        self._lost_count += 1
        self._lost.append(event)
        del self._lost[MAX_EXAMPLES:]

    def _result(self) -> HandlerAudit:
        held = {token: _holds(state) for token, state in self._held.items()}
        excess = {token: n - held[token] for token, n in self._waiting.items() if n > held[token]}
        examples = [event.id for event in self._lost] + [self._last_waiting[token] for token in excess]
        return HandlerAudit(
            name=self._record.name,
            accepted=self._accepted,
            pending=self._states["pending"],
            running=self._states["running"],
            retrying=self._states["retrying"],
            succeeded=self._states["succeeded"],
            dead=self._states["dead"],
            discarded=self._states["discarded"],
            in_consumer=sum(held.values()),
            missing=self._missing,
            lost=self._lost_count + sum(excess.values()),
            lost_examples=tuple(examples[:MAX_EXAMPLES]),
        )


def _token(event_name: str) -> str:
    return event_name.partition(".")[0]


def _tokens(record: HandlerRecord) -> set[str]:
    return {_token(name) for name in record.events}


def _consumer(bus: EventBus, record: HandlerRecord, token: str) -> ConsumerState | None:
    return bus.broker.consumer_state(
        f"{bus.settings.namespace}_{token}",
        record.name.replace(".", "__"),
        timeout=bus.settings.broker_timeout,
    )


def _holds(state: ConsumerState | None) -> int:
    return state.pending + state.ack_pending if state else 0
