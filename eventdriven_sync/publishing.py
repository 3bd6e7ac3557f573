"""From an application's event to an accepted one: envelope, store, dispatch."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from threading import get_ident
from typing import TYPE_CHECKING, Any

import attrs

from eventdriven_sync import context
from eventdriven_sync.broker import Outgoing, StreamSpec
from eventdriven_sync.config import MAX_PUBLISH_TIMEOUT, check_number, check_text
from eventdriven_sync.confirmed import Before, Confirmed
from eventdriven_sync.envelope import Envelope, accepted_now, check_id, derived_id, new_id
from eventdriven_sync.errors import ChainTooDeep, InvalidOption, LeaseLost, TooManyEvents, shorten
from eventdriven_sync.events import EventType, event_type_of

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

CHUNK = 1000
# What waited so long for the chunks before it gets a new time: the reconciler looks back for 90 seconds only.
STALE = timedelta(seconds=10)
# Of one attempt: they are stored in one write with its outcome, which must end within the store's timeout.
MAX_HELD = 10_000
MAX_HELD_BYTES = 64 * 1024 * 1024


class Publisher:
    """The publishing half of a bus. Thread-safe."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        # Caches of the topology, so that publishing takes no detour.
        self._kinds: dict[type, EventType] = {}
        self._streams: dict[str, StreamSpec] = {}
        self._confirmed = Confirmed(bus)
        self._warned = False

    def envelope(
        self,
        event: object,
        *,
        source: str,
        timeout: float | None,
        event_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Envelope:
        """The event with its metadata, checked; nothing is stored yet."""
        kind = self._kinds.get(type(event)) or self._kind(event)
        data = self._bus.codec.encode(event)
        begun = context.origin.get()
        chosen = self._event_id(kind, event_id, idempotency_key)
        # Before the event gets its time: it must not be older than the registration of our own handlers.
        self._bus.open(timeout=self.seconds(timeout))
        if begun and begun.before_publishing:
            begun.before_publishing()
        parent_ids, handler, depth = context.ancestry()
        envelope = Envelope(
            id=chosen,
            name=kind.name,
            version=kind.version,
            data=data,
            published_at=self._now(self.seconds(timeout)),
            operation_id=context.current_operation_id() or chosen,
            parent_ids=parent_ids,
            source=handler or (source and check_text(source, field="source", most=200)),
            key=_key_of(kind, data),
            depth=depth,
        )
        self._check_depth(envelope)
        if begun and begun.idempotency_key and event_id is None and idempotency_key is None:
            again = begun.event_id(self._bus.settings.namespace, envelope.content_hash())
            return attrs.evolve(envelope, id=again)
        return envelope

    def accept(
        self, envelopes: Sequence[Envelope], *, immediate: bool, timeout: float | None
    ) -> Sequence[Before]:
        """Hold them (handler), store them with the user's writes (transaction), or store and send them.

        Per event whether it had been accepted before.
        """
        running, begun = context.handling.get(), context.transaction.get()
        if running and running.abandoned:
            raise LeaseLost(f"{running.handler} no longer owns this delivery: what it publishes is dropped")
        seconds = self.seconds(timeout)
        messages = self._messages(envelopes)  # raises PayloadTooLarge before anything is stored
        if running and not immediate and not begun:
            _hold(running, envelopes, sum(len(message.data) for message in messages))
            return [False] * len(envelopes)
        self._warn_in_event_loop()
        if begun and not immediate:
            duplicates = self._bus.store.events.append(envelopes, timeout=seconds, session=begun.session)
            begun.published.extend(envelopes)
            return duplicates
        if self._confirmed.names and any(envelope.name in self._confirmed.names for envelope in envelopes):
            return self._confirmed.publish(envelopes, messages, store=self._store, timeout=seconds)
        return self._store(envelopes, messages, seconds)

    def _store(
        self, envelopes: Sequence[Envelope], messages: Sequence[Outgoing], seconds: float
    ) -> list[bool]:
        """Store and send them in chunks; per event True if it had been accepted before."""
        duplicates: list[bool] = []
        for start in range(0, len(envelopes), CHUNK):
            chunk, sent = envelopes[start : start + CHUNK], messages[start : start + CHUNK]
            if len(envelopes) > 1 and self._now(seconds) - chunk[0].published_at > STALE:
                chunk = list(accepted_now(chunk, self._now(seconds)))
                sent = self._messages(chunk)
            duplicates += self._bus.store.events.append(chunk, timeout=seconds)
            self._bus.broker.dispatch(sent)
        return duplicates

    def _now(self, timeout: float) -> datetime:
        """By the store's clock: ours may be wrong, and the reconciler would pass the events by."""
        return self._bus.store.directory.estimated_now(timeout=timeout)

    def dispatch(self, envelopes: Sequence[Envelope]) -> None:
        """Send stored events to the broker without waiting; what it does not take the reconciler brings."""
        self._bus.broker.dispatch(self._messages(envelopes))

    def seconds(self, timeout: float | None) -> float:
        """The time the store gets; InvalidOption if it is out of range."""
        if timeout is None:
            return self._bus.settings.publish_timeout
        return float(check_number(timeout, field="timeout", low=0.01, high=MAX_PUBLISH_TIMEOUT))

    def _messages(self, envelopes: Sequence[Envelope]) -> list[Outgoing]:
        namespace, pack = self._bus.settings.namespace, self._bus.codec.pack
        return [
            Outgoing(
                stream=self._streams.get(envelope.name) or self._stream(envelope.name),
                subject=f"{namespace}.{envelope.name}",
                message_id=envelope.id,
                data=pack(envelope, namespace),
            )
            for envelope in envelopes
        ]

    def _event_id(self, kind: EventType, event_id: str | None, idempotency_key: str | None) -> str:
        running = context.handling.get()
        if event_id is not None and idempotency_key is not None:
            raise InvalidOption("give event_id or idempotency_key, not both", field="idempotency_key")
        if event_id is not None:
            return check_id(event_id)
        if idempotency_key is not None:
            return derived_id("key", self._bus.settings.namespace, kind.name, _key(idempotency_key), at="")
        if running is None:
            return new_id()
        running.published += 1
        parents = [parent.id for parent in running.parents]
        return derived_id(*parents, running.handler, str(running.published), at=parents[0])

    def _check_depth(self, envelope: Envelope) -> None:
        limit = self._bus.settings.max_chain_depth
        if envelope.depth > limit:
            raise ChainTooDeep(
                f"{envelope.name} would be event {envelope.depth} of its chain, limit {limit}: "
                f"most likely a loop of events; it began with operation {envelope.operation_id}",
                limit=limit,
            )

    def _kind(self, event: object) -> EventType:
        kind = event_type_of(event)
        self._bus.topology.know(kind)
        if kind.durability == "broker":
            self._confirmed.names.add(kind.name)
        self._kinds[type(event)] = kind
        return kind

    def _stream(self, name: str) -> StreamSpec:
        self._streams[name] = self._bus.topology.stream(name)
        return self._streams[name]

    def _warn_in_event_loop(self) -> None:
        loop = asyncio._get_running_loop()
        # Under gevent all greenlets see the loop that one of them runs for the broker.
        if self._warned or loop is None or getattr(loop, "_thread_id", None) not in (None, get_ident()):
            return
        self._warned = True
        warnings.warn(
            "publish() was called inside a running asyncio loop and blocks it; call it in a thread "
            "(asyncio.to_thread(bus.publish, event))",
            RuntimeWarning,
            stacklevel=_caller(),
        )


def _caller() -> int:
    """The stack level, seen from ``_warn_in_event_loop``, of the first frame outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("eventdriven_sync."):
        level, frame = level + 1, frame.f_back
    return level


def _hold(running: context.Handling, envelopes: Sequence[Envelope], size: int) -> None:
    """Keep them until the handler returns."""
    if running.ended:
        raise LeaseLost(
            f"{running.handler} has ended, nothing would store this: publish before the handler returns, or "
            "with immediate=True"
        )
    count, held_bytes = len(running.emitted) + len(envelopes), running.held_bytes + size
    if count > MAX_HELD or held_bytes > MAX_HELD_BYTES:
        raise TooManyEvents(
            f"{running.handler} would publish {count:,} events ({held_bytes:,} bytes) in one attempt, "
            f"limit {MAX_HELD:,} and {MAX_HELD_BYTES:,}: they are held until it returns; publish with "
            "immediate=True",
            limit=MAX_HELD,
        )
    running.emitted.extend(envelopes)
    running.held_bytes = held_bytes


def _key_of(kind: EventType, data: Mapping[str, Any]) -> str | None:
    """The key field as it travels: an enum by its value, a date as ISO text."""
    value = None if kind.key is None else data.get(kind.key.lstrip("_"))
    return None if value is None else str(value)


def _key(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= context.MAX_KEY:
        raise InvalidOption(
            f"idempotency_key is {shorten(value)}: give text of 1 to {context.MAX_KEY:,} characters",
            field="idempotency_key",
            limit=context.MAX_KEY,
        )
    return value
