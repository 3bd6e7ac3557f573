"""The bus: what users publish to and register handlers with. The one place that picks NATS or memory."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import attrs

from eventdriven_sync import context
from eventdriven_sync.broker import Broker, ConsumerSpec
from eventdriven_sync.codec import Codec
from eventdriven_sync.config import Settings
from eventdriven_sync.confirmed import Before
from eventdriven_sync.dead_letters import DeadLetters
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import Closed, InvalidOption, PublishOutcomeUnknown, StoreUnavailable
from eventdriven_sync.group import Group
from eventdriven_sync.handlers import Handler
from eventdriven_sync.health import Health, bus_health
from eventdriven_sync.operations import Operations, OperationScope
from eventdriven_sync.publishing import Publisher
from eventdriven_sync.store import Store
from eventdriven_sync.topology import Topology, handler_record

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger(__name__)

_buses: weakref.WeakSet[EventBus] = weakref.WeakSet()


@attrs.frozen(kw_only=True)
class Receipt:
    """What ``publish`` returns: the event is accepted.

    Attributes:
        id: the event's id.
        operation_id: the chain it belongs to; of a duplicate the one of the first time.
        duplicate: True if an event with this id and content had been accepted before.
    """

    id: str
    operation_id: str
    duplicate: bool = False


class EventBus:
    """Publishes events, registers handlers, answers what happened. Thread-safe and fork-safe.

    Nothing is opened before the first use. A forked child opens connections of its own.

    Args:
        nats: NATS URL, several separated by commas; ``memory://`` for tests.
        mongo: MongoDB URI whose path names the database; ``memory://`` for tests.
        namespace: begins all stream names and subjects.
        settings: every other setting; the three above win over it.
        broker: a ready broker instead of ``nats``.
        store: a ready store instead of ``mongo``.

    Attributes:
        settings: what was given, with the defaults.
        handler_context: called around every handler for a context manager that is entered for its run, such
            as ``app.app_context`` of a Flask application; to be set before a worker is built.

    Raises:
        ConfigurationError: a setting is outside its range.

    Example:
        >>> bus = EventBus(nats="nats://localhost:4222", mongo="mongodb://localhost:27017/blog")
    """

    def __init__(
        self,
        *,
        nats: str | None = None,
        mongo: str | None = None,
        namespace: str | None = None,
        settings: Settings | None = None,
        broker: Broker | None = None,
        store: Store | None = None,
    ) -> None:
        given = settings or Settings()
        self.settings = attrs.evolve(
            given,
            nats=given.nats if nats is None else nats,
            mongo=given.mongo if mongo is None else mongo,
            namespace=given.namespace if namespace is None else namespace,
        )
        self.codec = Codec(max_payload_bytes=self.settings.max_payload_bytes)
        self.topology = Topology(self.settings)
        self.handler_context: Callable[[], AbstractContextManager[object]] = nullcontext
        self._given = (broker, store)
        self._broker: Broker | None = None
        self._store: Store | None = None
        self._lock = threading.Lock()  # guards the making of adapters
        self._publisher = Publisher(self)
        self._registered, self._opened = 0, False
        self._closed = False
        _buses.add(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> EventBus:
        """A bus from ``EVENTDRIVEN_NATS``, ``EVENTDRIVEN_MONGO`` and the other ``EVENTDRIVEN_<SETTING>``.

        Raises:
            ConfigurationError: a variable cannot be read.
        """
        return cls(settings=Settings.from_env(environ))

    # --- publishing ---------------------------------------------------------------------------------

    def publish(
        self,
        event: object,
        *,
        event_id: str | None = None,
        idempotency_key: str | None = None,
        immediate: bool = False,
        timeout: float | None = None,
        source: str = "",
    ) -> Receipt:
        """Store the event durably, send it to the broker, return its receipt.

        Inside a handler the event is held until the handler returns and is stored just before its outcome;
        inside ``bus.transaction()`` it is stored with the user's writes. The broker is never waited for;
        outside of both, one with ``durability="broker"`` is confirmed by it and not stored here.

        Args:
            event: an instance of a class declared with ``@event``.
            event_id: a given id, 1 to 64 characters: publishing it twice is one event.
            idempotency_key: any text; equal keys of one event name give equal ids.
            immediate: in a handler: store and send now, whatever becomes of this attempt.
            timeout: seconds for the store, up to 60, ``settings.publish_timeout`` by default.
            source: who publishes; ``group.publish`` fills it in.

        Raises:
            InvalidEventType, InvalidEventId, PayloadInvalid, PayloadTooLarge, …: nothing was stored.
            StoreUnavailable, BrokerUnavailable: MongoDB (or NATS) cannot be reached; nothing was accepted.
            PublishOutcomeUnknown: sent and not answered; publishing again with the same id is safe.
            EventIdReused: the id exists with other content. Not for what a handler publishes: an attempt
                may run again, and there the first content stays.
            ChainTooDeep: more events follow from each other than ``settings.max_chain_depth``.
            LeaseLost: the handler publishing this lost its delivery to another worker, or has returned.
            TooManyEvents: one attempt holds at most 10,000 events and 64 MiB until it returns.
        """
        envelope = self._publisher.envelope(
            event, source=source, timeout=timeout, event_id=event_id, idempotency_key=idempotency_key
        )
        duplicates = self._publisher.accept([envelope], immediate=immediate, timeout=timeout)
        return self._receipts([envelope], duplicates)[0]

    def publish_many(
        self,
        events: Sequence[object],
        *,
        event_ids: Sequence[str] | None = None,
        immediate: bool = False,
        timeout: float | None = None,
        source: str = "",
    ) -> list[Receipt]:
        """Publish many events in few writes; one receipt each, in order.

        Outside transactions and handlers they are accepted in chunks of 1,000: if an error is raised, those
        of earlier chunks are accepted. Give ``event_ids`` to publish the rest again safely. ``timeout`` is
        for each chunk.

        Raises:
            what ``publish`` raises; a wrong event among them stops the call before anything is stored.
        """
        if event_ids is not None and len(event_ids) != len(events):
            raise InvalidOption(
                f"event_ids has {len(event_ids)} entries for {len(events)} events; give one each",
                field="event_ids",
            )
        ids: Sequence[str | None] = event_ids or [None] * len(events)
        envelopes = [
            self._publisher.envelope(event, source=source, timeout=timeout, event_id=event_id)
            for event, event_id in zip(events, ids, strict=True)
        ]
        duplicates = (
            self._publisher.accept(envelopes, immediate=immediate, timeout=timeout) if envelopes else []
        )
        return self._receipts(envelopes, duplicates)

    @contextmanager
    def transaction(self, *, timeout: float | None = None) -> Iterator[Any]:
        """The user's MongoDB writes and ``publish`` commit together; events are sent after the commit.

        Yields the pymongo session to pass to the user's own writes. An exception in the block aborts all.

        Raises:
            StoreUnavailable: nothing was written.
            PublishOutcomeUnknown: the commit was sent and not answered.
            InvalidOption: a transaction is open already in this context, or ``timeout`` is out of range.
        """
        if context.transaction.get() or _session():
            raise InvalidOption("a transaction is open already in this context: use its session")
        seconds = self._publisher.seconds(timeout)
        self.open(timeout=seconds)
        with self.store.transaction(timeout=seconds) as session:
            begun = context.Transaction(session=session)
            token = context.transaction.set(begun)
            try:
                yield session
            finally:
                context.transaction.reset(token)
        self.dispatch(begun.published)

    def operation(
        self,
        name: str,
        *,
        kind: str = "script",
        variables: Mapping[str, Any] | None = None,
        user: str | None = None,
        details: Mapping[str, Any] | None = None,
        idempotency_key: str = "",
    ) -> OperationScope:
        """An operation: ``with bus.operation("import-users") as operation:``, or as a decorator.

        What is published inside belongs to its chain. An exception in the block stores it as failed and is
        raised on.

        Args:
            name: 1 to 200 characters.
            kind: ``http``, ``cli``, ``cron``, ``webhook``, ``script``, or a word of your own.
            variables: what it was called with: JSON-safe values.
            user: on whose behalf.
            details: what else should be known of it: JSON-safe values.
            idempotency_key: what names this one run, such as the day of a nightly job: begun again with the
                same name and key, on another machine or after a crash, it is the same operation, and the
                same events published inside are the same events. The block itself runs each time.
        """
        return OperationScope(
            self,
            name=name,
            kind=kind,
            variables=variables or {},
            user=user,
            details=details,
            idempotency_key=idempotency_key,
        )

    # --- registering --------------------------------------------------------------------------------

    def group(self, name: str) -> Group:
        """A consumer group (module): all processes that run its handlers share its work.

        Raises:
            InvalidGroupName: the name cannot be used.
        """
        return Group(self, name)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers registered with this bus, by ``Group.handler``."""
        return self.topology.handlers

    # --- reading ------------------------------------------------------------------------------------

    @property
    def operations(self) -> Operations:
        """Operations and their chains."""
        return Operations(self)

    @property
    def dead_letters(self) -> DeadLetters:
        """The dead-letter queue."""
        return DeadLetters(self)

    def health(self, *, timeout: float = 2.0) -> Health:
        """Whether both servers answer and no work waits in vain; ``Worker.health`` says more.

        It opens the bus, takes ``timeout`` seconds at most and never raises for what servers answer.
        """
        return bus_health(self, timeout=timeout)

    # --- lifetime -----------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The event store."""
        if self._store is None:
            self._make_adapters()
        assert self._store is not None
        return self._store

    @property
    def broker(self) -> Broker:
        """The broker."""
        if self._broker is None:
            self._make_adapters()
        assert self._broker is not None
        return self._broker

    @property
    def mongo_client(self) -> Any:
        """The ``MongoClient`` of the event store, of this process: ask for it each time you need it.

        Sessions of ``transaction`` and of transactional handlers belong to it, so what they write must be
        written with it: ``bus.mongo_client["shop"].orders.insert_one(order, session=session)``.

        Raises:
            ConfigurationError: the events are stored in memory.
        """
        return self.store.client

    @property
    def opened(self) -> bool:
        """Whether it has been used."""
        return self._opened

    def open(self, *, timeout: float | None = None) -> None:
        """Connect and register handlers that are not yet. Every use does this by itself.

        Args:
            timeout: seconds to connect, ``settings.publish_timeout`` by default.

        Raises:
            StoreUnavailable, ConfigurationError, Closed.
        """
        if self._closed:
            raise Closed("this bus was closed; build a new EventBus")
        handlers = self.topology.size
        if self._registered == handlers and self._opened:
            return
        self.store.open(timeout=timeout or self.settings.publish_timeout)
        self.broker.declare_later(self.subscribe(list(self.handlers.values())))
        self._registered, self._opened = handlers, True

    def subscribe(self, handlers: Sequence[Handler]) -> list[ConsumerSpec]:
        """Register handlers in the store; the consumers they need, beginning where their events count."""
        if not handlers:
            return []
        now = self.store.directory.now()
        records = self.store.directory.register([handler_record(handler, now) for handler in handlers])
        by_name = {handler.name: handler for handler in handlers}
        return [
            spec
            for record in records
            for spec in self.topology.consumers(by_name[record.name], record.starts_at)
        ]

    def dispatch(self, envelopes: Sequence[Envelope]) -> None:
        """Send stored events to the broker without waiting; what it does not take the reconciler brings."""
        self._publisher.dispatch(envelopes)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until the broker has everything that was dispatched; False if it has not after ``timeout``.

        Accepted events are safe without this.
        """
        return self.broker.flush(timeout=timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Disconnect. Safe to call twice; a closed bus cannot be used again."""
        self._closed = True
        if self._broker is not None:
            self._broker.close(timeout=timeout)
        if self._store is not None:
            self._store.close()

    @contextmanager
    def adapters(self, *, broker: Broker, store: Store) -> Iterator[None]:
        """Use another broker and store inside the block: ``eventdriven_sync.testing`` does."""
        before = self._broker, self._store, self._registered, self._opened
        self._broker, self._store, self._registered, self._opened = broker, store, 0, False
        try:
            yield
        finally:
            self._broker, self._store, self._registered, self._opened = before

    def __enter__(self) -> EventBus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receipts(self, envelopes: Sequence[Envelope], duplicates: Sequence[Before]) -> list[Receipt]:
        """A duplicate belongs to the chain of its first time, which only the store knows."""
        pairs = list(zip(envelopes, duplicates, strict=True))
        again = [envelope.id for envelope, before in pairs if before is True]
        try:
            first = self.store.events.get(again) if again else {}
        except StoreUnavailable as error:
            # Nobody may take "unavailable" to mean that nothing was stored.
            raise PublishOutcomeUnknown(
                f"the events are stored, but not known is which chain the repeated ones belong to: {error}",
                event_ids=tuple(again),
            ) from error
        return [
            Receipt(
                id=envelope.id,
                operation_id=(
                    before if isinstance(before, Envelope) else first.get(envelope.id, envelope)
                ).operation_id,
                duplicate=bool(before),
            )
            for envelope, before in pairs
        ]

    def _make_adapters(self) -> None:
        with self._lock:
            broker, store = self._given
            self._broker = self._broker or broker or _make_broker(self.settings)
            self._store = self._store or store or _make_store(self.settings)


def _after_fork() -> None:
    """A lock that another thread held while we were forked would never be released in the child."""
    for bus in _buses:
        bus._lock = threading.Lock()
        bus.topology.renew_lock()


os.register_at_fork(after_in_child=_after_fork)


def _session() -> Any:
    running = context.handling.get()
    return running.session if running else None


def _make_broker(settings: Settings) -> Broker:
    if settings.nats.startswith("memory"):
        from eventdriven_sync.brokers.memory import MemoryBroker

        return MemoryBroker()
    from eventdriven_sync.brokers.nats import NatsBroker

    return NatsBroker(settings.nats, namespace=settings.namespace, timeout=settings.broker_timeout)


def _make_store(settings: Settings) -> Store:
    if settings.mongo.startswith("memory"):
        from eventdriven_sync.stores.memory import MemoryStore

        return MemoryStore()
    from eventdriven_sync.stores.mongo import MongoStore

    return MongoStore(settings.mongo, namespace=settings.namespace, timeout=settings.publish_timeout)
