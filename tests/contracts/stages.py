"""What a contract test gets: an adapter with the means to let time pass and to be without a server."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from eventdriven_sync.broker import (
    Broker,
    ConsumerSpec,
    ConsumerState,
    Consumption,
    Incoming,
    Outgoing,
    StreamSpec,
)
from eventdriven_sync.envelope import new_id, utcnow
from eventdriven_sync.store import Store
from tests.polling import eventually

TIMEOUT = 10.0


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = utcnow()

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class StoreStage:
    """A store under test."""

    def __init__(self, store: Store, unreachable: Callable[[], Store], clock: FakeClock | None) -> None:
        self.store = store
        self.unreachable = unreachable
        self._clock = clock

    def pass_time(self, seconds: float) -> None:
        """Return when the store's clock has gone on by so much."""
        until = self.store.directory.now() + timedelta(seconds=seconds)
        if self._clock:
            self._clock.advance(seconds)
        eventually(lambda: self.store.directory.now() >= until)


class BrokerStage:
    """A broker under test, with streams and consumers in a namespace of this test.

    Attributes:
        ack_wait: short enough to wait for it.
    """

    def __init__(
        self,
        broker: Broker,
        unreachable: Callable[[], Broker],
        clock: FakeClock | None,
        namespace: str,
    ) -> None:
        self.broker = broker
        self.unreachable = unreachable
        self.namespace = namespace
        self.ack_wait = 1.0
        self._clock = clock
        self._inboxes: list[Inbox] = []

    def pass_time(self, seconds: float) -> None:
        """Return when the broker's clock has gone on by so much."""
        if self._clock:
            return self._clock.advance(seconds)
        until = time.monotonic() + seconds
        eventually(lambda: time.monotonic() >= until)
        return None

    def stream(self, token: str = "User", **changes: object) -> StreamSpec:
        defaults = {"name": f"{self.namespace}_{token}", "subjects": (f"{self.namespace}.{token}.>",)}
        return StreamSpec(**{**defaults, **changes})  # type: ignore[arg-type]

    def consumer(self, name: str = "Blog__notify", token: str = "User", **changes: object) -> ConsumerSpec:
        stream = self.stream(token)
        defaults = {"stream": stream, "name": name, "subjects": stream.subjects, "ack_wait": 30.0}
        return ConsumerSpec(**{**defaults, **changes})  # type: ignore[arg-type]

    def message(self, event: str = "User.nameUpdated", message_id: str | None = None) -> Outgoing:
        return Outgoing(
            stream=self.stream(event.partition(".")[0]),
            subject=f"{self.namespace}.{event}",
            message_id=message_id or new_id(),
            data=b'{"user_id": "42"}',
        )

    def send(self, *messages: Outgoing) -> None:
        """Dispatch and wait until the broker has them."""
        assert self.broker.dispatch(messages) == len(messages)
        assert self.broker.flush(timeout=TIMEOUT)

    def open_inbox(self, consumer: ConsumerSpec, *, window: int = 100) -> "Inbox":
        """A running consumption that keeps what it gets."""
        inbox = Inbox(self.broker, consumer, window)
        self._inboxes.append(inbox)
        return inbox

    def state(self, spec: ConsumerSpec) -> ConsumerState:
        state = self.broker.consumer_state(spec.stream.name, spec.name, timeout=TIMEOUT)
        assert state is not None
        return state

    def owed(self, spec: ConsumerSpec) -> tuple[int, int]:
        """How many messages are not delivered, and how many not acknowledged."""
        state = self.state(spec)
        return state.pending, state.ack_pending

    def oldest(self, spec: ConsumerSpec) -> datetime | None:
        return self.state(spec).oldest_at

    def close(self) -> None:
        for inbox in self._inboxes:
            inbox.consumption.stop()
        self.broker.close(timeout=TIMEOUT)


class Inbox:
    """Collects what a consumption delivers."""

    def __init__(self, broker: Broker, consumer: ConsumerSpec, window: int) -> None:
        self.messages: list[Incoming] = []
        self.consumption: Consumption = broker.consume(consumer, self.messages.extend, window=window)

    @property
    def ids(self) -> list[str]:
        return [message.headers["Nats-Msg-Id"] for message in self.messages]

    def wait_for(self, count: int) -> list[Incoming]:
        """What has come, as soon as there is so much."""
        eventually(lambda: len(self.messages) >= count, message=f"{count} messages, got {self.ids}")
        return list(self.messages)
