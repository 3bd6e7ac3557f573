"""The recorder: stores the events that NATS alone accepted (``durability="broker"``).

Such an event carries a mark. One consumer for each stream that holds some reads the whole of it, shared by
all worker processes; what is marked goes into the event store in bulk, and only then is it acknowledged.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

import attrs

from eventdriven_sync.broker import RECORDER, Broker, ConsumerSpec, Consumption, Incoming
from eventdriven_sync.codec import Codec
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import (
    BrokerError,
    CodecError,
    ConfigurationError,
    EventDrivenError,
    StoreError,
)
from eventdriven_sync.pulse import Pulse
from eventdriven_sync.store import Store

log = logging.getLogger(__name__)

MARK = b',"durability":"broker"}'
MAX_BATCH = 1000
WINDOW = 3000
# Seconds between the first message of a batch and its writing: more of them share the write.
GATHER = 0.02
# Between two looks for streams that need a recorder, although no class of this process says so.
LOOK_EVERY = 10.0
# What waited longer than this for a connection has the time at which the broker got it. More than clocks
# should differ, less than the reconciler and the audit allow for.
WAITED = timedelta(seconds=5)
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0

Arrived = tuple[str, list[Incoming]]


def marked(body: bytes) -> bytes:
    """The message of an event that nobody has stored. ``body`` is a JSON object with members."""
    return body[:-1] + MARK


def is_marked(body: bytes) -> bool:
    """Whether the recorder is to store it."""
    if body.endswith(MARK):
        return True
    if b'"durability"' not in body:
        return False
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("durability") == "broker"


def record(
    store: Store, codec: Codec, namespace: str, messages: Sequence[Incoming]
) -> tuple[list[Incoming], list[Incoming]]:
    """Store what these messages carry; which of them are done, and which must come again.

    Raises:
        StoreError: none of them is known to be stored; do it again.
    """
    events = {index: event for index, event in enumerate(_events(codec, namespace, messages)) if event}
    refusals = store.events.record(list(events.values())) if events else []
    kept = {index for index, why in zip(events, refusals, strict=True) if why and _keeps(events[index], why)}
    done = [message for index, message in enumerate(messages) if index not in kept]
    return done, [messages[index] for index in sorted(kept)]


def _events(codec: Codec, namespace: str, messages: Sequence[Incoming]) -> list[Envelope | None]:
    return [_event(codec, namespace, each) if is_marked(each.data) else None for each in messages]


def _event(codec: Codec, namespace: str, message: Incoming) -> Envelope | None:
    try:
        event = codec.unpack(
            message.data, headers=message.headers, subject=message.subject, namespace=namespace
        )
    except CodecError as error:  # its handlers keep it as a dead letter
        log.warning("Message %d of %s is no event: %s", message.sequence, message.stream, error)
        return None
    # Whoever goes through the events in the order of their time must not have been there already.
    earliest = message.stored_at - WAITED
    if event.published_at >= earliest:
        return event
    milliseconds = earliest.microsecond // 1000 * 1000
    return attrs.evolve(event, published_at=earliest.replace(microsecond=milliseconds))


def _keeps(event: Envelope, why: EventDrivenError) -> bool:
    """Whether it may be stored another time: not if MongoDB cannot hold it at all."""
    log.error("Event %s (%s) cannot be recorded: %s", event.id, event.name, why)
    return isinstance(why, StoreError)


class Recorder:
    """Records what a worker process gets of each such stream, in one thread. Thread-safe.

    Args:
        consumers: those that the event classes of this process need, asked again and again.
        consumer: that of a stream, by its first token.
        timeout: seconds for questions to the broker.
    """

    def __init__(
        self,
        *,
        store: Store,
        broker: Broker,
        codec: Codec,
        namespace: str,
        consumers: Callable[[], Sequence[ConsumerSpec]],
        consumer: Callable[[str], ConsumerSpec],
        timeout: float,
    ) -> None:
        self._store, self._broker, self._codec = store, broker, codec
        self._namespace = namespace
        self._consumers, self._consumer = consumers, consumer
        self._timeout = timeout
        self._changed = threading.Condition()  # guards _arrived
        self._arrived: deque[Arrived] = deque()  # bounded by the windows of the consumptions
        self._running: dict[str, Consumption] = {}
        self._specs: dict[str, ConsumerSpec] = {}
        self._looked_at = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="eventdriven-recorder", daemon=True)
        self.pulse = Pulse(self._thread, pause=LOOK_EVERY)

    def start(self) -> None:
        """Start the thread."""
        self.pulse.start()

    def stop(self, timeout: float) -> None:
        """Pull no more, record what has begun, give the rest back at once."""
        self._stopping.set()
        for consumption in list(self._running.values()):
            consumption.stop()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident:
            self._thread.join(timeout)
        for stream, messages in self._take(len(self._arrived)):
            self._running[stream].release(messages)

    def unrecorded_since(self) -> datetime | None:
        """When the oldest message was stored that nobody has looked at yet; None if there is none.

        Raises:
            BrokerUnavailable: it cannot be asked.
        """
        oldest = [self._oldest(spec) for spec in list(self._specs.values())]
        return min((moment for moment in oldest if moment), default=None)

    def _oldest(self, spec: ConsumerSpec) -> datetime | None:
        state = self._broker.consumer_state(spec.stream.name, spec.name, timeout=self._timeout)
        return state.oldest_at if state else None

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.pulse.beat()
            try:
                self._look()
                self._record(self._gather())
            except Exception:
                log.exception("The recorder met an unexpected error and goes on")
                self._stopping.wait(_LAST_PAUSE)

    def _look(self) -> None:
        """Begin with streams that have become known."""
        for spec in self._consumers():
            self._begin(spec)
        now = time.monotonic()
        if self._looked_at and now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        prefix = f"{self._namespace}_"
        try:
            streams = self._broker.streams(prefix, timeout=self._timeout)
        except (BrokerError, ConfigurationError) as error:
            log.info("Which streams need a recorder could not be seen: %s", error)
            return
        for stream in streams:
            if any(consumer.name == RECORDER for consumer in stream.consumers):
                self._begin(self._consumer(stream.name.removeprefix(prefix)))

    def _begin(self, spec: ConsumerSpec) -> None:
        name = spec.stream.name
        if name not in self._running and not self._stopping.is_set():
            self._specs[name] = spec
            self._running[name] = self._broker.consume(spec, partial(self._arrive, name), window=WINDOW)

    def _arrive(self, stream: str, messages: list[Incoming]) -> None:
        """Called on the broker's thread."""
        with self._changed:
            self._arrived.append((stream, messages))
            self._changed.notify_all()

    def _gather(self) -> list[Arrived]:
        """What has come, as much as one write should carry; waits for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._stopping.is_set(), timeout=LOOK_EVERY)
            if self._arrived:
                self._changed.wait_for(
                    lambda: self._waiting >= MAX_BATCH or self._stopping.is_set(), timeout=GATHER
                )
        return [] if self._stopping.is_set() else self._take(MAX_BATCH)

    @property
    def _waiting(self) -> int:
        return sum(len(messages) for _, messages in self._arrived)

    def _take(self, most: int) -> list[Arrived]:
        """So many messages, give or take what came with the last of them."""
        batch: list[Arrived] = []
        with self._changed:
            while self._arrived and sum(len(messages) for _, messages in batch) < most:
                batch.append(self._arrived.popleft())
        return batch

    def _record(self, batch: Sequence[Arrived]) -> None:
        by_stream: dict[str, list[Incoming]] = {}
        for stream, messages in batch:
            by_stream.setdefault(stream, []).extend(messages)
        for stream, messages in by_stream.items():
            self._record_all(stream, messages)
        self.pulse.well()

    def _record_all(self, stream: str, messages: list[Incoming]) -> None:
        pause = _FIRST_PAUSE
        while True:
            self.pulse.beat()
            try:
                done, kept = record(self._store, self._codec, self._namespace, messages)
            except StoreError as error:
                log.warning("The recorder waits for the event store: %s", error)
            else:
                self._running[stream].finish(done)
                self._running[stream].forget(kept)
                return
            if self._stopping.wait(pause):
                self._running[stream].release(messages)
                return
            pause = min(pause * 2, _LAST_PAUSE)
