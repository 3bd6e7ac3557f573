"""The server side of the memory broker: streams, durable consumers, and messages on their way.

Nothing here is thread-safe: ``MemoryBroker`` holds its lock around every call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import lru_cache

import attrs

from eventdriven_sync.broker import (
    ConsumerSpec,
    ConsumerState,
    Incoming,
    Outgoing,
    StreamSpec,
    StreamState,
)
from eventdriven_sync.errors import BrokerError, ConsumerConflict, StreamConflict


@lru_cache(maxsize=1024)
def _pattern(subject: str) -> re.Pattern[str]:
    wild = {"*": r"[^.]+", ">": r".+"}
    return re.compile(r"\.".join(wild.get(token) or re.escape(token) for token in subject.split(".")))


def matches(subject: str, filters: tuple[str, ...]) -> bool:
    """Whether a subject matches one of these (``*`` is one token, a final ``>`` one or more)."""
    return any(_pattern(each).fullmatch(subject) for each in filters)


@attrs.frozen(kw_only=True)
class StoredMessage:
    """A message in a stream."""

    sequence: int
    subject: str
    message_id: str
    data: bytes
    stored_at: datetime


@attrs.define
class Flight:
    """A delivered, unacknowledged message; ``due_at`` is when it goes out again, None while in hand."""

    message: StoredMessage
    delivered: int
    due_at: datetime | None


class Stream:
    """Messages in order, each message id once, and the consumers reading them."""

    def __init__(self, spec: StreamSpec, *, life: int) -> None:
        self.spec = spec
        self.life = life
        self.consumers: dict[str, Consumer] = {}
        self.messages: dict[int, StoredMessage] = {}
        self.last_sequence = 0
        self._ids: dict[str, int] = {}

    def verify(self, spec: StreamSpec) -> None:
        """Raise StreamConflict if this is not the stream ``spec`` wants."""
        for field in ("subjects", "max_age", "replicas"):
            have, want = getattr(self.spec, field), getattr(spec, field)
            if have != want:
                raise StreamConflict(
                    f"stream {spec.name} exists with {field} {have}, this process wants {want}:"
                    " change one of them, streams are never changed silently",
                    stream=spec.name,
                    field=field,
                    value=have,
                    wanted=want,
                )

    def add(self, message: Outgoing, now: datetime) -> bool:
        """Store a message; a message id that is stored already is accepted and not stored again."""
        if not matches(message.subject, self.spec.subjects):
            raise BrokerError(f"stream {self.spec.name} does not take subject {message.subject}")
        if message.message_id in self._ids:
            return True
        self.last_sequence += 1
        self._ids[message.message_id] = self.last_sequence
        self.messages[self.last_sequence] = StoredMessage(
            sequence=self.last_sequence,
            subject=message.subject,
            message_id=message.message_id,
            data=bytes(message.data),
            stored_at=now,
        )
        return True

    def has(self, message_id: str) -> bytes | None:
        """What is stored under this id: None if it never was, empty if it is no longer."""
        sequence = self._ids.get(message_id)
        if sequence is None:
            return None
        found = self.messages.get(sequence)
        return found.data if found else b""

    def expire(self, now: datetime) -> None:
        """Drop messages older than ``max_age``."""
        oldest = now - timedelta(seconds=self.spec.max_age)
        while self.messages:
            sequence, message = next(iter(self.messages.items()))
            if message.stored_at >= oldest:
                return
            del self.messages[sequence]
            for consumer in self.consumers.values():
                consumer.flights.pop(sequence, None)

    def ensure_consumer(self, spec: ConsumerSpec) -> Consumer:
        """The consumer, created if it is missing.

        Raises:
            ConsumerConflict: it exists with other settings.
        """
        consumer = self.consumers.get(spec.name)
        if consumer is None:
            consumer = self.consumers[spec.name] = Consumer(self, spec)
        consumer.verify(spec)
        return consumer

    def state(self, consumers: tuple[ConsumerState, ...]) -> StreamState:
        """The stream as the doctor shows it."""
        return StreamState(
            name=self.spec.name,
            subjects=self.spec.subjects,
            messages=len(self.messages),
            size_bytes=sum(len(message.data) for message in self.messages.values()),
            first_sequence=next(iter(self.messages), self.last_sequence + 1),
            last_sequence=self.last_sequence,
            config={"max_age": self.spec.max_age, "replicas": self.spec.replicas},
            consumers=consumers,
        )


class Consumer:
    """A durable consumer: how far it has read, and what is delivered and not acknowledged."""

    def __init__(self, stream: Stream, spec: ConsumerSpec) -> None:
        self.spec = spec
        self.flights: dict[int, Flight] = {}
        self._stream = stream
        self._start = self._cursor = self._before_start(spec.starts_at)

    def verify(self, spec: ConsumerSpec) -> None:
        """Raise ConsumerConflict if this is not the consumer ``spec`` wants (``starts_at`` may differ)."""
        for field in ("subjects", "ack_wait", "max_ack_pending"):
            have, want = getattr(self.spec, field), getattr(spec, field)
            if have != want:
                raise ConsumerConflict(
                    f"consumer {spec.name} exists with {field} {have}, this process wants {want}:"
                    " change one of them, consumers are never changed silently",
                    consumer=spec.name,
                    field=field,
                    value=have,
                    wanted=want,
                )

    def take(self, limit: int, now: datetime) -> list[Incoming]:
        """Up to ``limit`` messages for one pull: redeliveries that are due first, then new ones."""
        due = [flight for flight in self.flights.values() if flight.due_at and flight.due_at <= now]
        chosen = due[:limit]
        chosen += self._new(min(limit - len(chosen), self.spec.max_ack_pending - len(self.flights)))
        return [self._send(flight) for flight in chosen]

    def flight(self, message: Incoming) -> Flight | None:
        """What this message is to the broker now; None if nothing is owed for it any more."""
        flight = self.flights.get(message.sequence)
        if flight is None or not message.reply.startswith(self._reply(message.sequence)):
            return None
        return flight

    def finish(self, flight: Flight, now: datetime) -> None:
        """Acknowledged."""
        del self.flights[flight.message.sequence]

    def release(self, flight: Flight, now: datetime) -> None:
        """Deliver again at once."""
        flight.due_at = now

    def forget(self, flight: Flight, now: datetime) -> None:
        """Deliver again when the acknowledgement wait is over."""
        flight.due_at = now + timedelta(seconds=self.spec.ack_wait)

    def forget_acks(self, now: datetime) -> None:
        """Owe everything again that was acknowledged."""
        for message in self._between(self._start, self._cursor):
            if message.sequence not in self.flights:
                self.flights[message.sequence] = Flight(message, 0, now)

    def state(self, *, waiting: int) -> ConsumerState:
        """What is still owed."""
        pending = list(self._between(self._cursor, self._stream.last_sequence))
        owed = pending + [flight.message for flight in self.flights.values()]
        return ConsumerState(
            stream=self._stream.spec.name,
            name=self.spec.name,
            pending=len(pending),
            ack_pending=len(self.flights),
            redelivered=sum(flight.delivered > 1 for flight in self.flights.values()),
            waiting=waiting,
            oldest_at=min((message.stored_at for message in owed), default=None),
            delivered=self._cursor,
            acknowledged=min(self.flights, default=self._cursor + 1) - 1,
            config={"ack_wait": self.spec.ack_wait, "max_ack_pending": self.spec.max_ack_pending},
        )

    def _before_start(self, starts_at: datetime | None) -> int:
        older = [
            message.sequence
            for message in self._stream.messages.values()
            if starts_at is not None and message.stored_at < starts_at
        ]
        return max(older, default=0)

    def _between(self, after: int, until: int) -> Iterator[StoredMessage]:
        for sequence in range(after + 1, until + 1):
            message = self._stream.messages.get(sequence)
            if message is not None and matches(message.subject, self.spec.subjects):
                yield message

    def _new(self, limit: int) -> list[Flight]:
        fresh: list[Flight] = []
        while len(fresh) < limit and self._cursor < self._stream.last_sequence:
            self._cursor += 1
            for message in self._between(self._cursor - 1, self._cursor):
                fresh.append(Flight(message, 0, None))
        self.flights.update((flight.message.sequence, flight) for flight in fresh)
        return fresh

    def _send(self, flight: Flight) -> Incoming:
        flight.delivered += 1
        flight.due_at = None
        message = flight.message
        return Incoming(
            stream=self._stream.spec.name,
            sequence=message.sequence,
            subject=message.subject,
            data=message.data,
            headers={"Nats-Msg-Id": message.message_id},
            delivered=flight.delivered,
            stored_at=message.stored_at,
            reply=f"{self._reply(message.sequence)}{flight.delivered}",
        )

    def _reply(self, sequence: int) -> str:
        # The stream's life keeps acknowledgements from before a wipe off the messages after it.
        return f"{self._stream.spec.name}.{self._stream.life}.{self.spec.name}.{sequence}."
