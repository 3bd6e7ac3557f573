"""The durability class: what accepted events, and messages on their way, survive as the servers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs

from eventdriven_sync.broker import StreamState
from eventdriven_sync.config import Settings
from eventdriven_sync.doctor.check import Check, Unknown, fail, known, ok, skip
from eventdriven_sync.doctor.facts import Facts, learn, monitoring_page, streams_of
from eventdriven_sync.doctor.mongo_checks import proved

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

Class = Literal["power-safe", "crash-safe", "unsafe", "unknown"]


@attrs.frozen(kw_only=True)
class Durability:
    """What was found.

    Attributes:
        events: class of accepted events, which MongoDB keeps: ``power-safe`` ones were on the disks of a
            majority when they were confirmed and survive the power loss of all members, ``unsafe`` ones need
            not have been.
        copies: how many members keep each event; 0 if that is not known.
        messages: class of messages on their way, which NATS keeps. What it loses the reconciler brings.
        events_by: why, in words.
        messages_by: why, in words.
    """

    events: Class
    copies: int
    messages: Class
    events_by: str
    messages_by: str

    @property
    def line(self) -> str:
        """All of it in one line."""
        copies = f", {self.copies} {'copy' if self.copies == 1 else 'copies'}" if self.copies else ""
        return (
            f"accepted events: {self.events}{copies} (MongoDB: {self.events_by}); "
            f"messages: {self.messages} (NATS: {self.messages_by})"
        )


def measure(
    settings: Settings,
    *,
    mongo: Mapping[str, Any],
    streams: list[StreamState] | Unknown,
    monitoring: Mapping[str, Any] | Unknown,
) -> Durability:
    """The class by what the servers said and a probe write carried."""
    events, copies, events_by = _of_events(mongo)
    messages, messages_by = _of_messages(settings, streams, monitoring)
    return Durability(
        events=events, copies=copies, messages=messages, events_by=events_by, messages_by=messages_by
    )


def verdict(facts: Facts) -> Check:
    """What accepted events survive."""
    mongo = known(facts.mongo)
    if mongo.get("version") == "memory":
        skip("the event store is in memory, for tests")
    found = measure(facts.settings, mongo=mongo, streams=facts.streams, monitoring=facts.monitoring)
    if found.events == "unsafe":
        cure = "see the checks of MongoDB: a replica set, wiredTiger, w: majority and j: true"
        return fail(found.line, cure)
    return ok(found.line)


def describe(bus: EventBus) -> str:
    """The class in one line, for others than the doctor; it leaves nothing behind."""
    mongo, streams = learn(bus.store.info), learn(lambda: streams_of(bus))
    if isinstance(mongo, Unknown):
        return f"unknown: {mongo.reason}"
    return measure(bus.settings, mongo=mongo, streams=streams, monitoring=monitoring_page(None)).line


def _of_events(mongo: Mapping[str, Any]) -> tuple[Class, int, str]:
    if mongo.get("version") == "memory":
        return "unsafe", 0, "in memory, for tests"
    copies = len(mongo.get("hosts") or ()) if mongo.get("replica_set") else 0
    engine, concern = mongo.get("storage_engine"), mongo.get("write_concern")
    if not mongo.get("replica_set") and not mongo.get("sharded"):
        return "unsafe", 1, "a standalone server"
    if engine not in (None, "wiredTiger"):
        return "unsafe", copies, f"the storage engine {engine}"
    where = f"replica set {mongo['replica_set']}" if mongo.get("replica_set") else "a sharded cluster"
    if concern is None:
        return "unknown", copies, f"{where}, and no write could be looked at"
    if not proved(concern):
        return "unsafe", copies, f"{where}, writes with {dict(concern)}"
    return "power-safe", copies, f"{where}, a write carried w: majority, j: true"


def _of_messages(
    settings: Settings, streams: list[StreamState] | Unknown, monitoring: Mapping[str, Any] | Unknown
) -> tuple[Class, str]:
    if isinstance(streams, Unknown):
        return "unknown", streams.reason
    for stream in streams:
        for field, bad in (("storage", "memory"), ("persist_mode", "async")):
            if stream.config.get(field) == bad:
                return "unsafe", f"{stream.name} has {field} {bad}"
    replicas = min((_replicas(stream) for stream in streams), default=settings.stream_replicas)
    where = f"file storage, {replicas} {'replica' if replicas == 1 else 'replicas'}"
    if isinstance(monitoring, Unknown):
        return "unknown", f"{where}, sync_interval not seen without the monitoring URL"
    config = (monitoring.get("jetstream") or {}).get("config") or {}
    if config.get("sync_always") is True:
        return "power-safe", f"{where}, sync_interval always"
    return "crash-safe", f"{where}, sync_interval {config.get('sync_interval', 0) / 1e9:.0f} s"


def _replicas(stream: StreamState) -> int:
    found = stream.config.get("num_replicas", 1)
    return found if isinstance(found, int) else 1
