"""The round trip: an event of our own is published, handled by a built-in handler, and recorded."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING

import attrs

from eventdriven_sync.envelope import utcnow
from eventdriven_sync.errors import EventDrivenError
from eventdriven_sync.events import event
from eventdriven_sync.handlers import Handler
from eventdriven_sync.records import delivery_id
from eventdriven_sync.retry import RetryPolicy

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

log = logging.getLogger(__name__)

GROUP, HANDLER = "Eventdriven", "ping"
PINGS = 5
PATIENCE = 10.0
_LOOK_EVERY = 0.002


@event("Eventdriven.ping")
@attrs.frozen(kw_only=True)
class Ping:
    """Published by the doctor, handled by the doctor."""

    number: int


@attrs.frozen(kw_only=True)
class RoundTrip:
    """What came of it.

    Attributes:
        seconds: from before ``publish`` until the outcome was recorded, of each event but the first.
        committed: whether the transaction that published the first event committed.
        broker_skew: seconds by which NATS is ahead of this machine, None if it was not seen.
        obstacle: why it ended early, or empty.
    """

    seconds: tuple[float, ...] = ()
    committed: bool = False
    broker_skew: float | None = None
    obstacle: str = ""


def ping(bus: EventBus, *, patience: float = PATIENCE) -> RoundTrip:
    """Publish a few events and handle them. Afterwards all of it is removed, but what NATS has of it.

    Args:
        patience: seconds for all of it.
    """
    trip = _Trip(bus, patience)
    try:
        with trip.prepared():
            trip.first()
            trip.measure()
    except EventDrivenError as error:
        trip.result = attrs.evolve(trip.result, obstacle=str(error))
    return trip.result


class _TooSlow(EventDrivenError):
    """Patience has ended."""


class _Trip:
    def __init__(self, bus: EventBus, patience: float) -> None:
        from eventdriven_sync.bus import EventBus

        # A bus of its own on the same connections: the application's handlers stay out of this.
        self._bus = EventBus(settings=bus.settings, broker=bus.broker, store=bus.store)
        self._deadline = time.monotonic() + patience
        self._patience = patience
        self._arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._bus.group(GROUP).handler(Ping, name=HANDLER, retry=RetryPolicy(), timeout=patience)(
            self._handle
        )
        self._published: list[str] = []
        self._handler: Handler = self._bus.handlers[f"{GROUP}.{HANDLER}"]
        self.result = RoundTrip()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Registered, with a consumer; both are gone afterwards, with everything that was published."""
        specs = self._bus.subscribe([self._handler])
        self._bus.broker.declare(specs, timeout=self._bus.settings.broker_timeout)
        try:
            yield
        finally:
            self._tidy_up()
            for spec in specs:
                with suppress(EventDrivenError):
                    self._bus.broker.delete_consumer(spec.stream.name, spec.name, timeout=self._left())

    def _tidy_up(self) -> None:
        try:
            self._bus.store.erase(self._handler.name, self._published)
        except EventDrivenError as error:
            log.warning("The round trip left its events: %s", error)

    def first(self) -> None:
        """In a transaction; before anybody takes it from the consumer the broker tells its own time."""
        before = utcnow()
        with self._bus.transaction(timeout=self._left()):
            self._published.append(self._bus.publish(Ping(number=0)).id)
        self._bus.flush(timeout=self._left())
        self.result = attrs.evolve(self.result, committed=True)
        (spec,) = self._bus.topology.consumers(self._handler, None)
        state = self._bus.broker.consumer_state(spec.stream.name, spec.name, timeout=self._left())
        if state and state.oldest_at:
            skew = _skew(state.oldest_at, before, utcnow())
            self.result = attrs.evolve(self.result, broker_skew=skew)

    def measure(self) -> None:
        """A worker handles what was published, then one event after the other."""
        from eventdriven_sync.worker import Worker

        worker = Worker(self._bus, threads=1, grace=1.0).start()
        try:
            self._await_arrival(0)
            for number in range(1, PINGS + 1):
                self._measure_one(number)
        finally:
            worker.stop()

    def _measure_one(self, number: int) -> None:
        began = time.monotonic()
        receipt = self._bus.publish(Ping(number=number), timeout=self._left())
        self._published.append(receipt.id)
        self._await_arrival(number)
        self._await_record(delivery_id(self._handler.name, receipt.id))
        taken = time.monotonic() - began
        self.result = attrs.evolve(self.result, seconds=(*self.result.seconds, taken))

    def _handle(self, event: Ping) -> None:
        self._arrived.put(event.number)

    def _await_arrival(self, number: int) -> None:
        try:
            while self._arrived.get(timeout=self._left()) != number:
                pass
        except queue.Empty:
            raise _TooSlow(f"event {number} was not handled within {self._patience:g} s") from None

    def _await_record(self, id: str) -> None:
        while self._bus.store.deliveries.states([id]).get(id) != "succeeded":
            if time.monotonic() > self._deadline:
                raise _TooSlow(f"an outcome was not recorded within {self._patience:g} s")
            threading.Event().wait(_LOOK_EVERY)

    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.05)


def _skew(theirs: datetime, before: datetime, after: datetime) -> float:
    """Seconds they are ahead; 0 if their time lies within the question."""
    if theirs > after:
        return (theirs - after).total_seconds()
    return min(0.0, (theirs - before).total_seconds())
