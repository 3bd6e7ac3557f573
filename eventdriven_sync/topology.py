"""Who is subscribed to what in a bus, and which streams and consumers that takes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime

from eventdriven_sync.broker import RECORDER, ConsumerSpec, StreamSpec
from eventdriven_sync.config import Settings
from eventdriven_sync.errors import DuplicateEvent, DuplicateHandler
from eventdriven_sync.events import EventType
from eventdriven_sync.handlers import Handler
from eventdriven_sync.records import HandlerRecord


class Topology:
    """The handlers and event classes of a bus. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()  # guards the three tables
        self._handlers: dict[str, Handler] = {}
        self._event_types: dict[str, EventType] = {}
        self._streams: dict[str, StreamSpec] = {}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Handlers by ``Group.handler``."""
        with self._lock:
            return dict(self._handlers)

    @property
    def event_types(self) -> Mapping[str, EventType]:
        """Event classes by event name."""
        with self._lock:
            return dict(self._event_types)

    @property
    def size(self) -> int:
        """How many handlers there are."""
        return len(self._handlers)

    def renew_lock(self) -> None:
        """For a forked child: whoever held the lock does not exist here."""
        self._lock = threading.Lock()

    def add(self, handler: Handler) -> None:
        """Add a handler.

        Raises:
            DuplicateHandler: the group has one of this name.
            DuplicateEvent: another class claims one of its event names.
        """
        for kind in handler.event_types:
            self.know(kind)
        with self._lock:
            known = self._handlers.setdefault(handler.name, handler)
        if known is not handler:
            raise DuplicateHandler(
                f"handler {handler.name} exists already ({known.location}); give one of them another name=",
                field="name",
            )

    def know(self, kind: EventType) -> None:
        """Remember an event class; DuplicateEvent if another one has its name."""
        with self._lock:
            known = self._event_types.setdefault(kind.name, kind)
        if known.cls is not kind.cls:
            raise DuplicateEvent(
                f"event {kind.name} is declared by {_path(known.cls)} and by {_path(kind.cls)}; "
                "one class per event name in a bus",
                field="name",
            )

    def stream(self, event_name: str) -> StreamSpec:
        """The stream of an event name: events that share the first token share it."""
        token = event_name.partition(".")[0]
        with self._lock:
            if token not in self._streams:
                self._streams[token] = self._make_stream(token)
            return self._streams[token]

    def consumers(self, handler: Handler, starts_at: datetime | None) -> list[ConsumerSpec]:
        """The consumers of a handler: one for each stream it listens to."""
        names: dict[str, set[str]] = {}
        for kind in handler.event_types:
            names.setdefault(kind.stream_token, set()).add(kind.name)
        return [
            ConsumerSpec(
                stream=self.stream(token),
                name=handler.consumer,
                subjects=tuple(sorted(f"{self._settings.namespace}.{name}" for name in subjects)),
                starts_at=starts_at,
                ack_wait=self._settings.ack_wait,
            )
            for token, subjects in names.items()
        ]

    def recorder(self, event_name: str) -> ConsumerSpec:
        """The consumer that records what is published under this name with ``durability="broker"``.

        It reads the whole stream from its beginning, so it is the same whichever classes a process knows.
        """
        stream = self.stream(event_name)
        return ConsumerSpec(
            stream=stream, name=RECORDER, subjects=stream.subjects, ack_wait=self._settings.ack_wait
        )

    def recorders(self) -> list[ConsumerSpec]:
        """Those of the event classes that this bus knows, one for each stream."""
        kinds = [kind for kind in self.event_types.values() if kind.durability == "broker"]
        return [self.recorder(token) for token in sorted({kind.stream_token for kind in kinds})]

    def _make_stream(self, token: str) -> StreamSpec:
        namespace = self._settings.namespace
        return StreamSpec(
            name=f"{namespace}_{token}",
            subjects=(f"{namespace}.{token}", f"{namespace}.{token}.>"),
            max_age=self._settings.stream_max_age,
            replicas=self._settings.stream_replicas,
        )


def handler_record(handler: Handler, now: datetime) -> HandlerRecord:
    """What the store keeps of a handler."""
    return HandlerRecord(
        name=handler.name,
        events=tuple(sorted({kind.name for kind in handler.event_types})),
        starts_at=handler.starts_at,
        registered_at=now,
        seen_at=now,
        location=handler.location,
        policy=handler.retry.describe(),
        options={
            "timeout": handler.timeout,
            "threads": handler.threads,
            "transactional": handler.transactional,
            "batch": handler.batch is not None,
        },
    )


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
