"""Publishing events that are accepted when NATS has confirmed them (``durability="broker"``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from eventdriven_sync.broker import ConsumerSpec, Outgoing
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import CodecError, EventIdReused
from eventdriven_sync.recording import Recorder, marked

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

# Messages that are sent before the first confirmation is waited for.
CHUNK = 1000

# Whether an event had been accepted before: yes, no, or by NATS, which has the first one.
Before = bool | Envelope
StoreThem = Callable[[Sequence[Envelope], Sequence[Outgoing], float], list[bool]]


class Confirmed:
    """What a bus publishes without storing it. Thread-safe.

    Attributes:
        names: of the events that are published this way.
    """

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self.names: set[str] = set()
        self._recorders: dict[str, ConsumerSpec] = {}

    def publish(
        self,
        envelopes: Sequence[Envelope],
        messages: Sequence[Outgoing],
        *,
        store: StoreThem,
        timeout: float,
    ) -> list[Before]:
        """Store those among them that are stored, then have NATS confirm the others."""
        ours = [index for index, envelope in enumerate(envelopes) if envelope.name in self.names]
        before: list[Before] = [False] * len(envelopes)
        if len(ours) < len(envelopes):
            chosen = set(ours)
            others = [index for index in range(len(envelopes)) if index not in chosen]
            told = store([envelopes[i] for i in others], [messages[i] for i in others], timeout)
            for index, duplicate in zip(others, told, strict=True):
                before[index] = duplicate
        for start in range(0, len(ours), CHUNK):
            for index, earlier in self._confirm(ours[start : start + CHUNK], messages, timeout):
                before[index] = self._first(envelopes[index], earlier)
        return before

    def _confirm(
        self, indexes: Sequence[int], messages: Sequence[Outgoing], timeout: float
    ) -> list[tuple[int, bytes]]:
        """The indexes of those that the stream had, with what it had."""
        chosen = [_marked(messages[index]) for index in indexes]
        consumers = {each.stream.name: self._recorder(each) for each in chosen}
        known = self._bus.broker.publish(chosen, consumers=list(consumers.values()), timeout=timeout)
        return [(i, earlier) for i, earlier in zip(indexes, known, strict=True) if earlier is not None]

    def _recorder(self, message: Outgoing) -> ConsumerSpec:
        known = self._recorders.get(message.stream.name)
        if known is None:
            name = message.subject.removeprefix(f"{self._bus.settings.namespace}.")
            known = self._recorders[message.stream.name] = self._bus.topology.recorder(name)
        return known

    def _first(self, envelope: Envelope, earlier: bytes) -> Envelope:
        """The event that was accepted under this id."""
        try:
            first = self._bus.codec.unpack(earlier)
        except CodecError:  # it is no longer there, or a stranger's
            return envelope
        if first.content_hash() == envelope.content_hash() or envelope.parent_ids:
            return first
        raise EventIdReused(
            f"event_id {envelope.id!r} exists with other content: an id stands for one event for ever, "
            "publish this one under an id of its own",
            event_id=envelope.id,
            event_ids=(envelope.id,),
        )


def recorder_of(bus: EventBus) -> Recorder:
    """What a worker of this bus records with."""
    return Recorder(
        store=bus.store,
        broker=bus.broker,
        codec=bus.codec,
        namespace=bus.settings.namespace,
        consumers=bus.topology.recorders,
        consumer=bus.topology.recorder,
        timeout=bus.settings.broker_timeout,
    )


def _marked(message: Outgoing) -> Outgoing:
    return Outgoing(
        stream=message.stream,
        subject=message.subject,
        message_id=message.message_id,
        data=marked(message.data),
    )
