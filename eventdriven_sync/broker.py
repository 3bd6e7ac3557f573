"""What execution needs of a broker. ``brokers/nats.py`` and ``brokers/memory.py`` provide it.

A message is *in hand* from its arrival until ``finish``, ``release`` or ``forget``; for everything in hand
the broker sends in-progress signals by itself, every third of the acknowledgement wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import attrs

RECORDER = "recorder"
"""The consumer that stores what a stream holds alone. No handler's is called so: theirs have two parts."""


@attrs.frozen(kw_only=True)
class StreamSpec:
    """A stream as we want it: file storage, limits retention, ``max_age`` seconds, 1 or 3 replicas."""

    name: str
    subjects: tuple[str, ...]
    max_age: float = 7 * 86400.0
    replicas: int = 1


@attrs.frozen(kw_only=True)
class ConsumerSpec:
    """A durable pull consumer as we want it: explicit ack, ``max_deliver=-1``.

    Attributes:
        starts_at: deliver messages stored from then on; None is from the beginning. Not compared with an
            existing consumer.
        ack_wait: seconds until an unacknowledged message is delivered again.
    """

    stream: StreamSpec
    name: str
    subjects: tuple[str, ...]
    starts_at: datetime | None = None
    ack_wait: float = 30.0
    max_ack_pending: int = 20_000


@attrs.frozen(kw_only=True)
class Outgoing:
    """A message to send; ``message_id`` is the event id and travels as ``Nats-Msg-Id``."""

    stream: StreamSpec
    subject: str
    message_id: str
    data: bytes


@attrs.frozen(kw_only=True, eq=False)
class Incoming:
    """A message in hand. ``reply`` addresses its acknowledgement and is opaque to everybody else.

    Attributes:
        delivered: how often the broker believes to have delivered it: a hint only (it restarts at 1
            after a broker crash).
        stored_at: the broker's clock, UTC.
    """

    stream: str
    sequence: int
    subject: str
    data: bytes
    headers: Mapping[str, str]
    delivered: int
    stored_at: datetime
    reply: str


@attrs.frozen(kw_only=True)
class ConsumerState:
    """What the broker still owes a handler.

    Attributes:
        pending: messages not delivered yet.
        ack_pending: delivered, not acknowledged yet.
        waiting: pulls that wait for messages.
        oldest_at: when the oldest message that can still come was stored; None when none can.
        delivered: the highest sequence of the stream that was ever delivered.
        acknowledged: the sequence up to which everything of it is acknowledged.
        paused: somebody told the server to deliver nothing for a while.
    """

    stream: str
    name: str
    pending: int
    ack_pending: int
    redelivered: int
    waiting: int
    oldest_at: datetime | None
    delivered: int = 0
    acknowledged: int = 0
    paused: bool = False
    config: Mapping[str, object] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class StreamState:
    """A stream with its consumers, as ``eventdriven streams`` and the doctor show it."""

    name: str
    subjects: tuple[str, ...]
    messages: int
    size_bytes: int
    first_sequence: int
    last_sequence: int
    config: Mapping[str, object]
    consumers: tuple[ConsumerState, ...]


@attrs.frozen(kw_only=True)
class BrokerStatus:
    """Whether the broker can be reached, and what it said last.

    Attributes:
        dropped: dispatches given up since the start (the reconciler brings those events).
        rebuilt: how often the client had to be built anew.
        server: version, max_payload, auth and TLS as the server announced them.
    """

    connected: bool
    last_error: str
    dispatched: int
    dropped: int
    in_flight: int
    rebuilt: int
    server: Mapping[str, object]


class Consumption(Protocol):
    """A running pull of one consumer. All methods are thread-safe and return at once."""

    def finish(self, messages: Sequence[Incoming]) -> None:
        """Acknowledge: these need never come again."""

    def release(self, messages: Sequence[Incoming]) -> None:
        """Give back: the broker delivers them again at once, to anybody."""

    def forget(self, messages: Sequence[Incoming]) -> None:
        """Neither: signals stop, and the broker delivers them again after ``ack_wait``."""

    def resize(self, window: int) -> None:
        """Hold at most this many messages in hand from now on."""

    def stop(self) -> None:
        """Pull no more. What is in hand stays in hand."""

    @property
    def in_hand(self) -> int:
        """Messages delivered to us and not finished, released or forgotten."""


class Broker(Protocol):
    """Carries events. Blocking calls end within their ``timeout`` (seconds) or raise BrokerUnavailable."""

    def declare(self, consumers: Sequence[ConsumerSpec], *, timeout: float) -> None:
        """Create what is missing of these consumers and their streams, verify the rest.

        Raises:
            BrokerUnavailable, BrokerPermissionDenied, StreamConflict, UnsafeStream, ConsumerConflict.
        """

    def declare_later(self, consumers: Sequence[ConsumerSpec]) -> None:
        """The same without waiting, as soon as the broker can be reached; failures go to ``status()``."""

    def dispatch(self, messages: Sequence[Outgoing]) -> int:
        """Send without waiting; return how many were taken.

        The rest is dropped: they are stored events and the reconciler brings them. A missing
        stream is created. Never raises, never blocks.
        """

    def publish(
        self, messages: Sequence[Outgoing], *, consumers: Sequence[ConsumerSpec], timeout: float
    ) -> list[bytes | None]:
        """Send and wait until each is confirmed: per message None, or what the stream had under its id.

        These consumers are there, with their streams, before anything is sent. What cannot be fetched of a
        message that the stream had is given as ``b""``.

        Raises:
            BrokerUnavailable: nothing was sent within ``timeout``.
            PublishOutcomeUnknown: sent, and not all of it was answered in time; ``event_ids`` are those.
            BrokerError, PayloadTooLarge, StreamConflict, …: refused; others of them may have been accepted.
        """

    def flush(self, *, timeout: float) -> bool:
        """Wait until everything dispatched is acknowledged by the broker or given up; False on timeout."""

    def consume(
        self,
        consumer: ConsumerSpec,
        deliver: Callable[[list[Incoming]], None],
        *,
        window: int,
    ) -> Consumption:
        """Pull continuously. ``deliver`` is called on the broker's own thread and must not block.

        A consumer or stream that vanishes is created again.
        """

    def consumer_state(self, stream: str, name: str, *, timeout: float) -> ConsumerState | None:
        """The consumer's backlog, or None if it does not exist."""

    def streams(self, prefix: str, *, timeout: float) -> list[StreamState]:
        """Streams whose name begins with ``prefix``, with their consumers."""

    def delete_consumer(self, stream: str, name: str, *, timeout: float) -> bool:
        """Delete a consumer; False if there was none."""

    def info(self, *, timeout: float) -> Mapping[str, object]:
        """Facts about JetStream for the doctor: ``api_level``, and of this account ``storage`` in bytes."""

    def status(self) -> BrokerStatus:
        """What is known right now; never blocks."""

    def close(self, *, timeout: float) -> None:
        """Send what is dispatched, stop pulling, disconnect; done within ``timeout``."""
