"""A broker inside the process, for tests and for trying the library out: no server, the same promises.

It keeps the semantics of ``brokers/nats.py`` (at least once, redelivery, durable consumers) and can be made
to fail the way a real broker fails: ``disconnect``, ``wipe``, ``forget_acks``, ``forget_counts``,
``redeliver``, ``drop_dispatches``, ``lose_confirmations``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TypeVar

from eventdriven_sync.broker import (
    BrokerStatus,
    ConsumerSpec,
    ConsumerState,
    Incoming,
    Outgoing,
    StreamSpec,
    StreamState,
)
from eventdriven_sync.brokers.memory_streams import Consumer, Flight, Stream
from eventdriven_sync.envelope import utcnow
from eventdriven_sync.errors import BrokerUnavailable, EventDrivenError, PublishOutcomeUnknown

logger = logging.getLogger(__name__)

# A replaceable clock cannot wake the thread, so the thread looks at it this often while it owes redeliveries.
_CLOCK_CHECK = 0.02
_BATCH = 1000

T = TypeVar("T")


class MemoryConsumption:
    """A running pull of one consumer of a ``MemoryBroker``. Thread-safe."""

    def __init__(
        self,
        broker: MemoryBroker,
        spec: ConsumerSpec,
        deliver: Callable[[list[Incoming]], None],
        window: int,
    ) -> None:
        self.spec = spec
        self.window = window
        self.running = True
        self.held: dict[str, Incoming] = {}
        self._broker = broker
        self._deliver = deliver

    def finish(self, messages: Sequence[Incoming]) -> None:
        """Acknowledge: these need never come again."""
        self._broker._give_up(self, messages, Consumer.finish)

    def release(self, messages: Sequence[Incoming]) -> None:
        """Give back: the broker delivers them again at once, to anybody."""
        self._broker._give_up(self, messages, Consumer.release)

    def forget(self, messages: Sequence[Incoming]) -> None:
        """Neither: the broker delivers them again after ``ack_wait``."""
        self._broker._give_up(self, messages, Consumer.forget)

    def resize(self, window: int) -> None:
        """Hold at most this many messages in hand from now on."""
        self._broker._change(self, "window", window)

    def stop(self) -> None:
        """Pull no more. What is in hand stays in hand."""
        self._broker._change(self, "running", False)

    @property
    def in_hand(self) -> int:
        """Messages delivered to us and not finished, released or forgotten."""
        return len(self.held)

    def hand_over(self, messages: list[Incoming]) -> None:
        """Call ``deliver``; what it could not take comes again after ``ack_wait``."""
        try:
            self._deliver(messages)
        except Exception:  # foreign code: the thread must outlive it, and other consumptions get theirs
            logger.exception("deliver failed", extra={"action": "deliver_failed"})
            self.forget(messages)


class MemoryBroker:
    """A ``Broker`` in one process. Thread-safe.

    Args:
        clock: what time it is, aware and in UTC; replaceable so that tests control redelivery.
        manual: deliver only when ``pump`` is called, on the caller's thread; nothing runs by itself.

    Attributes:
        drop_dispatches: while True every dispatched message is lost, as if the publisher had died
            between the store and the broker.
        lose_confirmations: while True every published message is stored and its caller not told.
    """

    def __init__(self, *, clock: Callable[[], datetime] | None = None, manual: bool = False) -> None:
        self.drop_dispatches = False
        self.lose_confirmations = False
        self._clock = clock or utcnow
        self._manual = manual
        self._wake = threading.Condition(threading.RLock())  # guards everything below
        self._streams: dict[str, Stream] = {}
        self._consumptions: list[MemoryConsumption] = []
        self._owed: list[ConsumerSpec] = []
        self._connected = True
        self._closed = False
        self._last_error = ""
        self._dispatched = 0
        self._dropped = 0
        self._lives = 0
        self._thread: threading.Thread | None = None
        self._changed = False

    # --- the protocol -----------------------------------------------------------------------------

    def declare(self, consumers: Sequence[ConsumerSpec], *, timeout: float) -> None:
        """Create what is missing of these consumers and their streams, verify the rest.

        Raises:
            BrokerUnavailable, StreamConflict, ConsumerConflict.
        """
        with self._reached():
            for spec in consumers:
                self._ensure(spec)

    def declare_later(self, consumers: Sequence[ConsumerSpec]) -> None:
        """The same without waiting, as soon as connected; failures go to ``status()``."""
        with self._wake:
            self._owed.extend(consumers)
            if self._connected:
                self._declare_owed()

    def dispatch(self, messages: Sequence[Outgoing]) -> int:
        """Store the messages; return how many were taken. Never raises."""
        with self._wake:
            if self.drop_dispatches or not self._connected or self._closed:
                self._dropped += len(messages)
                return 0
            taken = sum(self._store(message) for message in messages)
            self._dispatched += taken
            self._dropped += len(messages) - taken
            self._notify()
            return taken

    def publish(
        self, messages: Sequence[Outgoing], *, consumers: Sequence[ConsumerSpec], timeout: float
    ) -> list[bytes | None]:
        """Store the messages: per message None, or what the stream had under its id.

        Raises:
            BrokerUnavailable: disconnected.
            PublishOutcomeUnknown: ``lose_confirmations`` is on; they are stored.
            StreamConflict, ConsumerConflict.
        """
        with self._reached():
            for spec in consumers:
                self._ensure(spec)
            known = [self._confirm(each) for each in messages]
            self._notify()
        if self.lose_confirmations:
            raise PublishOutcomeUnknown(
                f"the memory broker did not answer within {timeout:g} s, as its test asked it to",
                timeout=timeout,
                event_ids=tuple(each.message_id for each in messages),
            )
        return known

    def flush(self, *, timeout: float) -> bool:
        """True: a dispatch of this broker is over when it returns."""
        return True

    def consume(
        self, consumer: ConsumerSpec, deliver: Callable[[list[Incoming]], None], *, window: int
    ) -> MemoryConsumption:
        """Pull continuously; ``deliver`` is called on the broker's thread, or by ``pump``."""
        consumption = MemoryConsumption(self, consumer, deliver, window)
        with self._wake:
            self._consumptions.append(consumption)
            self._start_thread()
            self._notify()
        return consumption

    def consumer_state(self, stream: str, name: str, *, timeout: float) -> ConsumerState | None:
        """The consumer's backlog, or None if it does not exist."""
        with self._reached():
            found = self._consumer(stream, name)
            return None if found is None else self._state_of(found)

    def streams(self, prefix: str, *, timeout: float) -> list[StreamState]:
        """Streams whose name begins with ``prefix``, with their consumers, by name."""
        with self._reached():
            chosen = [stream for name, stream in sorted(self._streams.items()) if name.startswith(prefix)]
            return [
                stream.state(tuple(self._state_of(each) for each in stream.consumers.values()))
                for stream in chosen
            ]

    def delete_consumer(self, stream: str, name: str, *, timeout: float) -> bool:
        """Delete a consumer; False if there was none."""
        with self._reached():
            found = self._streams.get(stream)
            return found is not None and found.consumers.pop(name, None) is not None

    def info(self, *, timeout: float) -> Mapping[str, object]:
        """There is no JetStream."""
        with self._reached():
            return {"version": "memory"}

    def status(self) -> BrokerStatus:
        """What is known right now."""
        with self._wake:
            return BrokerStatus(
                connected=self._connected and not self._closed,
                last_error=self._last_error,
                dispatched=self._dispatched,
                dropped=self._dropped,
                in_flight=0,
                rebuilt=0,
                server={"version": "memory"},
            )

    def close(self, *, timeout: float) -> None:
        """Stop pulling and end the thread, within ``timeout``. What is in hand comes after ``ack_wait``."""
        with self._wake:
            self._closed = True
            for consumption in self._consumptions:
                consumption.running = False
                consumption.forget(list(consumption.held.values()))
            thread, self._thread = self._thread, None
            self._notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    # --- what tests turn --------------------------------------------------------------------------

    def pump(self) -> int:
        """Deliver one batch to each consumption that has room; return how many messages were delivered."""
        with self._wake:
            batches = self._take_batches()
        for consumption, messages in batches:
            consumption.hand_over(messages)
        return sum(len(messages) for _, messages in batches)

    def disconnect(self) -> None:
        """The server cannot be reached: dispatches are dropped, acknowledgements lost, calls refused."""
        with self._wake:
            self._connected = False
            self._last_error = "disconnected"

    def connect(self) -> None:
        """The server can be reached again."""
        with self._wake:
            self._connected = True
            self._declare_owed()
            self._notify()

    def wipe(self) -> None:
        """Streams, messages and consumers are gone; running consumptions create theirs again."""
        with self._wake:
            self._streams.clear()
            self._notify()

    def forget_acks(self) -> None:
        """Every finished message comes again, counted from 1, as after a crash that lost all acks."""
        with self._wake:
            for stream in self._streams.values():
                for consumer in stream.consumers.values():
                    consumer.forget_acks(self._clock())
            self._notify()

    def forget_counts(self) -> None:
        """What is not finished counts its deliveries from 1 again, as after a crash."""
        with self._wake:
            for flight in self._flights():
                flight.delivered = 0

    def redeliver(self) -> None:
        """Everything in hand comes again at once, as when the signals that keep it in hand were lost."""
        with self._wake:
            for flight in self._flights():
                flight.due_at = self._clock()
            self._notify()

    # --- inside -----------------------------------------------------------------------------------

    def _reached(self) -> threading.Condition:
        if self._closed or not self._connected:
            raise BrokerUnavailable("the memory broker was disconnected by its test; call connect()")
        return self._wake

    def _change(self, consumption: MemoryConsumption, field: str, value: object) -> None:
        with self._wake:
            setattr(consumption, field, value)
            self._notify()

    def _give_up(
        self,
        consumption: MemoryConsumption,
        messages: Iterable[Incoming],
        tell: Callable[[Consumer, Flight, datetime], None],
    ) -> None:
        with self._wake:
            now = self._clock()
            # An acknowledgement that cannot be sent is lost, and the broker waits for it in vain.
            effect = tell if self._connected else Consumer.forget
            for message in messages:
                if consumption.held.pop(message.reply, None) is not None:
                    self._tell(consumption.spec, message, effect, now)
            self._notify()

    def _tell(
        self,
        spec: ConsumerSpec,
        message: Incoming,
        effect: Callable[[Consumer, Flight, datetime], None],
        now: datetime,
    ) -> None:
        consumer = self._consumer(spec.stream.name, spec.name)
        flight = None if consumer is None else consumer.flight(message)
        if consumer is not None and flight is not None:
            effect(consumer, flight, now)

    def _consumer(self, stream: str, name: str) -> Consumer | None:
        found = self._streams.get(stream)
        return None if found is None else found.consumers.get(name)

    def _state_of(self, consumer: Consumer) -> ConsumerState:
        pulls = [each for each in self._consumptions if each.spec.name == consumer.spec.name and each.running]
        return consumer.state(waiting=len(pulls))

    def _ensure(self, spec: ConsumerSpec) -> Consumer:
        return self._ensure_stream(spec.stream).ensure_consumer(spec)

    def _ensure_stream(self, spec: StreamSpec) -> Stream:
        stream = self._streams.get(spec.name)
        if stream is None:
            self._lives += 1
            stream = self._streams[spec.name] = Stream(spec, life=self._lives)
        stream.verify(spec)
        stream.expire(self._clock())
        return stream

    def _declare_owed(self) -> None:
        owed, self._owed = self._owed, []
        for spec in owed:
            self._try(partial(self._ensure, spec))

    def _store(self, message: Outgoing) -> bool:
        return self._try(lambda: self._ensure_stream(message.stream).add(message, self._clock())) or False

    def _confirm(self, message: Outgoing) -> bytes | None:
        stream = self._ensure_stream(message.stream)
        known = stream.has(message.message_id)
        stream.add(message, self._clock())
        return known

    def _try(self, step: Callable[[], T]) -> T | None:
        try:
            return step()
        except EventDrivenError as error:
            self._last_error = str(error)
            return None

    def _take_batches(self) -> list[tuple[MemoryConsumption, list[Incoming]]]:
        if not self._connected or self._closed:
            return []
        # Rotated, so that consumptions of one consumer share its messages.
        self._consumptions = self._consumptions[1:] + self._consumptions[:1]
        batches = [(each, self._take(each)) for each in self._consumptions if each.running]
        return [(consumption, messages) for consumption, messages in batches if messages]

    def _take(self, consumption: MemoryConsumption) -> list[Incoming]:
        consumer = self._try(partial(self._ensure, consumption.spec))
        room = min(consumption.window - consumption.in_hand, _BATCH)
        if consumer is None or room <= 0:
            return []
        messages = consumer.take(room, self._clock())
        consumption.held.update((message.reply, message) for message in messages)
        return messages

    # --- the thread -------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        if self._manual or self._closed or self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="eventdriven-memory-broker", daemon=True)
        self._thread.start()

    def _notify(self) -> None:
        self._changed = True
        self._wake.notify_all()

    def _run(self) -> None:
        while not self._closed:
            self._await_change()
            while self.pump():
                pass

    def _await_change(self) -> None:
        with self._wake:
            if not self._changed:
                self._wake.wait(_CLOCK_CHECK if self._owes_redelivery() else None)
            self._changed = False

    def _flights(self) -> list[Flight]:
        consumers = [each for stream in self._streams.values() for each in stream.consumers.values()]
        return [flight for consumer in consumers for flight in consumer.flights.values()]

    def _owes_redelivery(self) -> bool:
        return any(flight.due_at for flight in self._flights())
