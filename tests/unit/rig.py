"""The execution layer on memory adapters, part by part: what several of its tests share."""

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs

from eventdriven_sync.attempt import Attempt
from eventdriven_sync.broker import Incoming
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.bus import EventBus
from eventdriven_sync.config import Settings
from eventdriven_sync.envelope import Envelope, new_id, utcnow
from eventdriven_sync.events import event, event_type_of
from eventdriven_sync.executor import Executor
from eventdriven_sync.handlers import Handler
from eventdriven_sync.lanes import Lane
from eventdriven_sync.outcome import Failure
from eventdriven_sync.pool import Pool
from eventdriven_sync.records import Delivery, delivery_id
from eventdriven_sync.settling import Leases, Settler
from eventdriven_sync.stats import Stats
from eventdriven_sync.stores.memory import MemoryStore


@event("RigUser.renamed", key="name")
@attrs.frozen(kw_only=True)
class Renamed:
    name: str
    number: int = 0


@event("RigUser.greeted")
@attrs.frozen(kw_only=True)
class Greeted:
    name: str


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = utcnow()

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class Hand:
    """A consumption that notes what it is told, by the messages' sequence numbers."""

    def __init__(self) -> None:
        self.finished: list[int] = []
        self.released: list[int] = []
        self.forgotten: list[int] = []
        self.windows: list[int] = []
        self.stopped = False

    def finish(self, messages: Sequence[Incoming]) -> None:
        self.finished += [message.sequence for message in messages]

    def release(self, messages: Sequence[Incoming]) -> None:
        self.released += [message.sequence for message in messages]

    def forget(self, messages: Sequence[Incoming]) -> None:
        self.forgotten += [message.sequence for message in messages]

    def resize(self, window: int) -> None:
        self.windows.append(window)

    def stop(self) -> None:
        self.stopped = True

    @property
    def in_hand(self) -> int:
        return 0


class Rig:
    """A bus in memory with the parts of a worker, none of which runs by itself."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.store = MemoryStore(clock=self.clock)
        self.broker = MemoryBroker(clock=self.clock, manual=True)
        self.bus = EventBus(
            settings=Settings(nats="memory://", mongo="memory://", namespace="rig", **settings),
            broker=self.broker,
            store=self.store,
        )
        self.group = self.bus.group("Blog")
        self.leases = Leases()
        self.stats = Stats(source="rig")
        self.hand = Hand()
        self.dispatched: list[Envelope] = []
        self.settler = Settler(
            store=self.store,
            leases=self.leases,
            stats=self.stats,
            lease=self.bus.settings.lease,
            worker="rig",
            dispatch=self.dispatched.extend,
        )
        self.executor = Executor(
            codec=self.bus.codec, store=self.store, settings=self.bus.settings, worker="rig"
        )
        self.pools: list[Pool] = []
        self._sequence = 0

    def handler(self, function: Callable[..., Any], *events: type, **options: Any) -> Handler:
        self.group.handler(*(events or (Renamed,)), **options)(function)
        return self.bus.handlers[f"Blog.{options.get('name') or function.__name__}"]

    def batch_handler(self, function: Callable[..., Any], *events: type, **options: Any) -> Handler:
        self.group.batch_handler(*(events or (Renamed,)), **options)(function)
        return self.bus.handlers[f"Blog.{options.get('name') or function.__name__}"]

    def envelope(self, payload: object, **changes: Any) -> Envelope:
        kind = event_type_of(payload)
        event_id = new_id()
        made = Envelope(
            id=event_id,
            name=kind.name,
            version=kind.version,
            data=self.bus.codec.encode(payload),
            published_at=self.clock(),
            operation_id=event_id,
        )
        return attrs.evolve(made, **changes)

    def message(self, source: Envelope | bytes, *, delivered: int = 1, **changes: Any) -> Incoming:
        self._sequence += 1
        name = source.name if isinstance(source, Envelope) else "RigUser.renamed"
        made = Incoming(
            stream="rig_RigUser",
            sequence=self._sequence,
            subject=f"rig.{name}",
            data=self.bus.codec.pack(source, "rig") if isinstance(source, Envelope) else source,
            headers={},
            delivered=delivered,
            stored_at=self.clock(),
            reply=f"reply.{self._sequence}",
        )
        return attrs.evolve(made, **changes)

    def arrived(self, handler: Handler, source: Envelope | bytes | object, **changes: Any) -> Attempt:
        """An attempt of the live lane."""
        source = source if isinstance(source, Envelope | bytes) else self.envelope(source)
        return Attempt(handler=handler, message=self.message(source, **changes), consumption=self.hand)

    def claimed(self, handler: Handler, source: Envelope | object, **changes: Any) -> Attempt:
        """An attempt of the recovery lane, running in the store under its token."""
        found = source if isinstance(source, Envelope) else self.envelope(source)
        delivery = Delivery(
            id=delivery_id(handler.name, found.id),
            handler=handler.name,
            event_id=found.id,
            event_name=found.name,
            operation_id=found.operation_id,
            state="running",
            attempts=1,
            created_at=self.clock(),
            token=new_id(),
            event=found,
        )
        delivery = attrs.evolve(delivery, **changes)
        self.store.deliveries.start([delivery], lease=30)
        attempt = Attempt(
            handler=handler, delivery=delivery, event=delivery.event, token=delivery.token, checked=True
        )
        self.leases.hold([attempt])
        return attempt

    def run(self, attempt: Attempt) -> Any:
        """Read and run one attempt, and return its outcome."""
        self.executor.read(attempt)
        return self.executor.run(attempt).outcome

    def pool(self, *, threads: int = 2, **options: Any) -> Pool:
        pool = Pool(threads=threads, executor=self.executor, settler=self.settler, **options)
        self.pools.append(pool)
        return pool

    def offer(self, pool: Pool, lane: Lane, payloads: Sequence[object]) -> list[Attempt]:
        attempts = [self.arrived(lane.handler, payload) for payload in payloads]
        pool.offer(lane, attempts)
        return attempts

    def state(self, attempt: Attempt) -> str | None:
        found = self.store.deliveries.get(attempt.delivery_id)
        return found.state if found else None

    def close(self) -> None:
        for pool in self.pools:
            pool.drain(grace=0)
        self.bus.close(timeout=1)


def failure(*, seconds_ago: float = 0.0, generation: int = 0) -> Failure:
    """A failure on record."""
    return Failure(
        error_type="ValueError",
        message="no",
        traceback="",
        failed_at=utcnow() - timedelta(seconds=seconds_ago),
        attempt=1,
        generation=generation,
    )


class Gate:
    """What a handler waits at, so that a test decides when it goes on."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, *_: Any) -> None:
        self.entered.release()
        assert self.opened.wait(20)

    def await_entry(self) -> None:
        assert self.entered.acquire(timeout=10)

    def open(self) -> None:
        self.opened.set()
