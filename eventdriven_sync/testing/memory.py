"""Running a bus in memory, step by step and in virtual time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

from eventdriven_sync.attempt import Attempt
from eventdriven_sync.batching import Batch
from eventdriven_sync.broker import Consumption, Incoming
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.bus import EventBus
from eventdriven_sync.envelope import Envelope, new_id, utcnow
from eventdriven_sync.events import event_type_of
from eventdriven_sync.executor import Executor
from eventdriven_sync.handlers import Handler
from eventdriven_sync.recording import record
from eventdriven_sync.records import Delivery
from eventdriven_sync.settling import Leases, Settler
from eventdriven_sync.stats import Stats
from eventdriven_sync.store import DeliveryQuery, EventQuery
from eventdriven_sync.stores.memory import MemoryStore

E = TypeVar("E")

ALL = 100_000


class VirtualClock:
    """The time of a memory run: the real time at its start, moved only by ``advance``, and by publishing."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        """What time it is."""
        return utcnow() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass at once."""
        self._ahead += timedelta(seconds=seconds)


class MemoryRun:
    """A bus whose broker and store are in memory. Made by ``memory``; for one thread.

    Attributes:
        broker: with switches for faults: ``disconnect()``, ``wipe()``, ``forget_acks()``.
        store: with the switch ``unavailable``.
        clock: the virtual time.
    """

    def __init__(self, bus: EventBus) -> None:
        self.clock = VirtualClock()
        self.broker = MemoryBroker(clock=self.clock, manual=True)
        self.store = MemoryStore(clock=self.clock)
        self._bus = bus
        self._arrived: list[Attempt] = []
        self._consuming: set[str] = set()
        self._recording: dict[str, _Unrecorded] = {}
        self._leases = Leases()
        settings = bus.settings
        self._executor = Executor(
            codec=bus.codec, store=self.store, settings=settings, worker="test", around=bus.handler_context
        )
        self._settler = Settler(
            store=self.store,
            leases=self._leases,
            stats=Stats(source="test"),
            lease=settings.lease,
            worker="test",
            dispatch=bus.dispatch,
        )

    def drain(self, *, retries: bool = True, limit: int = 10_000) -> int:
        """Run handlers until nothing is left to do; how many attempts were made.

        Args:
            retries: also let time pass until failed attempts are due again.
            limit: attempts after which an endless chain is reported as AssertionError.
        """
        self._bus.open()
        self._consume()
        made = 0
        while made <= limit:
            step = self._step()
            made += step
            if not step and not (retries and self._wait_for_retry()):
                return made
        raise AssertionError(f"drain() made {made:,} attempts and is not done: do the events go in a circle?")

    def published(self, event_class: type[E]) -> list[E]:
        """Every accepted event of a class, oldest first, as the application's objects."""
        kind = event_type_of(event_class)
        return [self._bus.codec.decode(kind, envelope.data) for envelope in self.envelopes(kind.name)]

    def envelopes(self, name: str | None = None) -> list[Envelope]:
        """Every accepted event with its metadata, oldest first."""
        self._record()
        names = (name,) if name else ()
        return self.store.events.find(EventQuery(names=names, oldest_first=True, limit=ALL))

    def deliveries(self, *, handler: str | None = None, state: str | None = None) -> list[Delivery]:
        """The deliveries on record, newest first."""
        query = DeliveryQuery(handler=handler, states=(state,) if state else (), limit=ALL)
        return self.store.deliveries.find(query)

    def assert_published(self, event_class: type[E], *, times: int | None = None, **fields: Any) -> list[E]:
        """The accepted events of a class whose fields have these values.

        Args:
            times: how many there must be; None for at least one.

        Raises:
            AssertionError: naming what was published instead.
        """
        every = self.published(event_class)
        found = [e for e in every if all(getattr(e, name) == value for name, value in fields.items())]
        wanted = "at least one" if times is None else str(times)
        if (not found) if times is None else (len(found) != times):
            raise AssertionError(
                f"expected {wanted} {event_class.__name__} with {fields or 'any fields'}, "
                f"found {len(found)}; published were {every or self._names()}"
            )
        return found

    def assert_not_published(self, event_class: type[E]) -> None:
        """No event of this class was accepted; AssertionError lists those that were."""
        found = self.published(event_class)
        if found:
            raise AssertionError(f"expected no {event_class.__name__}, found {found}")

    def _names(self) -> list[str]:
        return [envelope.name for envelope in self.envelopes()]

    def _consume(self) -> None:
        for handler in self._bus.handlers.values():
            if handler.name in self._consuming:
                continue
            self._consuming.add(handler.name)
            for spec in self._bus.subscribe([handler]):
                arrival = _Arrival(handler, self._arrived)
                arrival.consumption = self.broker.consume(spec, arrival.deliver, window=ALL)

    def _record(self) -> None:
        """Store what the broker alone has accepted, as a worker's recorder does."""
        for spec in self._bus.topology.recorders():
            if spec.stream.name not in self._recording:
                arrived = self._recording[spec.stream.name] = _Unrecorded()
                arrived.consumption = self.broker.consume(spec, arrived.messages.extend, window=ALL)
        if self._recording:
            self.broker.pump()
        for each in self._recording.values():
            messages, each.messages[:] = list(each.messages), []
            done, _ = record(self.store, self._bus.codec, self._bus.settings.namespace, messages)
            if each.consumption is not None:
                each.consumption.finish(done)

    def _step(self) -> int:
        self._record()
        self.broker.pump()
        attempts, self._arrived[:] = list(self._arrived), []
        attempts += self._claim()
        for handler in self._bus.handlers.values():
            self._run(handler, [attempt for attempt in attempts if attempt.handler is handler])
        return len(attempts)

    def _claim(self) -> list[Attempt]:
        handlers = self._bus.handlers
        claimed = self.store.deliveries.claim_due(
            list(handlers), limit=1000, lease=self._bus.settings.lease, worker="test", token=new_id()
        )
        attempts = [
            Attempt(
                handler=handlers[delivery.handler],
                delivery=delivery,
                event=delivery.event,
                token=delivery.token,
                checked=True,
            )
            for delivery in claimed
        ]
        self._leases.hold(attempts)
        return attempts

    def _run(self, handler: Handler, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            self._executor.read(attempt)
        admitted = self._settler.admit(attempts)
        if handler.batch is None:
            for attempt in admitted:
                self._settler.settle([(attempt, self._executor.run(attempt))])
            return
        for attempt in admitted:
            self._executor.group(attempt)
        for batch in _batches(handler, admitted):
            self._run_batch(handler, batch)

    def _run_batch(self, handler: Handler, attempts: Sequence[Attempt]) -> None:
        if attempts[0].fault:
            settlements = [self._executor.run(attempt) for attempt in attempts]
        else:
            batch = Batch(attempts[0].key, [attempt.payload for attempt in attempts])
            settlements = self._executor.run_batch(attempts, batch)
        self._settler.settle(list(zip(attempts, settlements, strict=True)))

    def _wait_for_retry(self) -> bool:
        due = self.store.deliveries.next_due(list(self._bus.handlers))
        if due is None:
            return False
        self.clock.advance(max(due, 0.0) + 0.001)
        return True


@contextmanager
def memory(bus: EventBus) -> Iterator[MemoryRun]:
    """Run a bus in memory inside the block; its own broker and store are left alone.

    Example:
        >>> with memory(bus) as events:  # doctest: +SKIP
        ...     bus.publish(UserRegistered(user_id="42"))
        ...     events.drain()
        ...     events.assert_published(WelcomeSent, user_id="42")
    """
    run = MemoryRun(bus)
    with bus.adapters(broker=run.broker, store=run.store):
        yield run


class _Unrecorded:
    def __init__(self) -> None:
        self.messages: list[Incoming] = []
        self.consumption: Consumption | None = None


class _Arrival:
    def __init__(self, handler: Handler, arrived: list[Attempt]) -> None:
        self._handler = handler
        self._arrived = arrived
        self.consumption: Consumption | None = None

    def deliver(self, messages: list[Incoming]) -> None:
        self._arrived += [
            Attempt(handler=self._handler, message=message, consumption=self.consumption)
            for message in messages
        ]


def _batches(handler: Handler, attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """What a worker would collect; what cannot be read stands alone."""
    assert handler.batch is not None
    by_key: dict[Any, list[Attempt]] = {}
    for attempt in attempts:
        key = ("unreadable", attempt.event_id) if attempt.fault else ("key", attempt.key)
        by_key.setdefault(key, []).append(attempt)
    size = handler.batch.max_size
    return [group[i : i + size] for group in by_key.values() for i in range(0, len(group), size)]
