"""The memory adapters as one process of a simulated run sees them: across a network, from outside.

Every call of a server gives up the turn once, so that other processes act, or this one dies, between what was
asked and what is done, or between what was done and what is known of it. Faults are drawn for each call:

- ``store``: the call timed out. Either nothing was done (``StoreUnavailable``), or it was done and the answer
  was lost (``PublishOutcomeUnknown``); the time-out itself takes time.
- ``drop``, ``delay``: a dispatched message never reaches the broker, or late, behind younger ones.
- ``reorder``: messages arrive in another order than they were sent.
- ``ack``: an acknowledgement, or a message given back, does not reach the broker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from eventdriven_sync.broker import ConsumerSpec, Incoming, Outgoing
from eventdriven_sync.brokers.memory import MemoryConsumption
from eventdriven_sync.errors import BrokerUnavailable, PublishOutcomeUnknown, StoreUnavailable

if TYPE_CHECKING:
    from tests.model.simulator import Node, World

TRANSACTION_LIFETIME = 2.5  # of MongoDB 60 s
READS = {"find", "get", "states", "handlers", "now", "operation", "next_due", "count", "stats", "workers"}
# What the adapter answers by itself.
AT_HAND = {"estimated_now"}


class View:
    """One view of the store (``events``, ``deliveries``, ``directory``) through the network."""

    def __init__(self, view: Any, node: Node) -> None:
        self._view = view
        self._node = node

    def __getattr__(self, name: str) -> Any:
        method, node = getattr(self._view, name), self._node
        if name in AT_HAND:
            return method
        read, note = name in READS, getattr(node.notes, name, None)
        heard = getattr(node.notes, f"heard_{name}", None)

        def done(*args: Any, **options: Any) -> Any:
            answer = method(*args, **options)
            if note:
                note(answer, *args, **options)
            return answer

        def call(*args: Any, **options: Any) -> Any:
            answer = node.ask_store(lambda: done(*args, **options), read=read)
            if heard:
                heard(answer, *args, **options)
            return answer

        setattr(self, name, call)
        return call


class FaultyStore:
    """A ``Store`` across the network."""

    def __init__(self, world: World, node: Node) -> None:
        self._store = world.store
        self._node = node
        self.events = View(world.store.events, node)
        self.deliveries = View(world.store.deliveries, node)
        self.directory = View(world.store.directory, node)

    def open(self, *, timeout: float) -> None:
        self._node.ask_store(lambda: self._store.open(timeout=timeout), read=True)

    def run_transaction(self, body: Callable[[Any], Any], *, timeout: float) -> Any:
        staged = self._node.staged

        def afresh(session: Any) -> Any:
            rows: list[tuple[str, str]] = []
            staged[id(session)] = rows
            return body(session), rows

        # The body gives up its turn on its own calls; what is left to be lost is the commit, and its answer.
        def run() -> Any:
            answer, rows = self._store.run_transaction(afresh, timeout=timeout)
            self._node.commit(rows)
            return answer

        return self._node.ask_store(run, read=False)

    @contextmanager
    def transaction(self, *, timeout: float) -> Iterator[Any]:
        self._node.ask_store(lambda: None, read=True)
        began, rows = self._node.world.loop.now, list[tuple[str, str]]()
        with self._store.transaction(timeout=timeout) as session:
            self._node.staged[id(session)] = rows
            yield session
            lost = self._node.draws("store")
            if lost and self._node.draws_half():
                raise StoreUnavailable("simulated: the commit was not sent")
            if self._node.world.loop.now - began > TRANSACTION_LIFETIME:
                raise StoreUnavailable("simulated: the server ended a transaction that was open for too long")
        self._node.commit(rows)
        self._node.pause()
        if lost:
            self._node.world.fault("delay")
            raise PublishOutcomeUnknown("simulated: the commit was not answered")

    def close(self) -> None:
        """Nothing to disconnect."""


class FaultyConsumption:
    """A running pull across the network."""

    def __init__(self, node: Node, spec: ConsumerSpec, deliver: Callable[[list[Incoming]], None]) -> None:
        self._node = node
        self._deliver = deliver
        self.inner: MemoryConsumption
        self.spec = spec

    def arrived(self, messages: list[Incoming]) -> None:
        if self._node.draws("reorder"):
            self._node.world.shuffle(messages)
        self._deliver(messages)

    def finish(self, messages: Sequence[Incoming]) -> None:
        self._node.check()
        self._node.notes.acknowledged(self.spec, messages)
        for message in messages:
            lost = self._node.draws("ack")
            self.inner.forget([message]) if lost else self.inner.finish([message])
        self._node.pause()

    def release(self, messages: Sequence[Incoming]) -> None:
        self._node.check()
        self.inner.forget(messages) if self._node.draws("ack") else self.inner.release(messages)
        self._node.pause()

    def forget(self, messages: Sequence[Incoming]) -> None:
        self._node.check()
        self.inner.forget(messages)

    def resize(self, window: int) -> None:
        self._node.check()
        self.inner.resize(window)

    def stop(self) -> None:
        self._node.check()
        self.inner.stop()

    @property
    def in_hand(self) -> int:
        return self.inner.in_hand

    def cut(self) -> None:
        """The process is gone, and with it the signals that kept its messages in hand."""
        self.inner.stop()
        self.inner.forget(list(self.inner.held.values()))


class FaultyBroker:
    """A ``Broker`` across the network."""

    def __init__(self, world: World, node: Node) -> None:
        self._broker = world.broker
        self._node = node
        self.consumptions: list[FaultyConsumption] = []

    def declare(self, consumers: Sequence[ConsumerSpec], *, timeout: float) -> None:
        self._node.pause()
        self._broker.declare(consumers, timeout=timeout)

    def declare_later(self, consumers: Sequence[ConsumerSpec]) -> None:
        self._node.check()
        self._broker.declare_later(consumers)

    def dispatch(self, messages: Sequence[Outgoing]) -> int:
        self._node.pause()
        taken = 0
        for message in messages:
            if self._node.draws("drop"):
                continue
            if self._node.draws("delay"):
                self._node.world.delay(message)
            else:
                taken += self._broker.dispatch([message])
        return taken

    def flush(self, *, timeout: float) -> bool:
        self._node.pause()
        return True

    def consume(
        self, consumer: ConsumerSpec, deliver: Callable[[list[Incoming]], None], *, window: int
    ) -> FaultyConsumption:
        self._node.check()
        made = FaultyConsumption(self._node, consumer, deliver)
        made.inner = self._broker.consume(consumer, made.arrived, window=window)
        self.consumptions.append(made)
        return made

    def consumer_state(self, stream: str, name: str, *, timeout: float) -> Any:
        state = self._broker.consumer_state(stream, name, timeout=timeout)
        self._node.pause()
        if self._node.draws("broker"):
            raise BrokerUnavailable("simulated: no answer")
        return state

    def streams(self, prefix: str, *, timeout: float) -> Any:
        found = self._broker.streams(prefix, timeout=timeout)
        self._node.pause()
        return found

    def status(self) -> Any:
        return self._broker.status()

    def close(self, *, timeout: float) -> None:
        self._node.pause()
        for consumption in self.consumptions:
            consumption.cut()
