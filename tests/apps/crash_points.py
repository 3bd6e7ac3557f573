"""Killing a process exactly at one boundary: wrappers around its broker and its store.

The library knows nothing of this: ``EventBus`` takes a ready broker and a ready store.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
from pymongo import monitoring

BEFORE_STORE = "before store"
BEFORE_DISPATCH = "before dispatch"
AFTER_DISPATCH = "after dispatch"
AFTER_ASKING = "after asking what is known"
BEFORE_START = "before the start is counted"
AFTER_START = "after the start is counted"
BEFORE_SETTLE = "before settle"
BEFORE_OUTCOME = "between what was published and the outcome"
BEFORE_ACK = "before ack"
AFTER_CLAIM = "after claim"
BEFORE_COMMIT = "before commit"
AFTER_COMMIT = "after commit"
BEFORE_BRINGING = "before bringing"
AFTER_BRINGING = "after bringing"
BEFORE_WATERMARK = "before the watermark"
BEFORE_RECORDING = "before recording"
AFTER_RECORDING = "after recording"


@attrs.define
class CrashPoint:
    """Kills this process when it reaches a named place for the nth time. Thread-safe.

    Attributes:
        event: the id of an event; if given, it is killed when this one passes the place, whichever time.
    """

    place: str
    nth: int = 1
    event: str = ""
    reached: int = 0
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def pass_by(self, place: str, events: Iterable[str] = ()) -> None:
        if place != self.place:
            return
        with self.lock:
            self.reached += 1
            if self.event in set(events) if self.event else self.reached == self.nth:
                # What was sent too early, such as an acknowledgement, gets away.
                threading.Event().wait(0.2)
                os.kill(os.getpid(), signal.SIGKILL)


class _Wrapper:
    def __init__(self, inner: Any, point: CrashPoint) -> None:
        self._inner = inner
        self._point = point

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class CrashingBroker(_Wrapper):
    def dispatch(self, messages: Sequence[Any]) -> int:
        self._point.pass_by(BEFORE_DISPATCH, _of_messages(messages))
        taken: int = self._inner.dispatch(messages)
        self._point.pass_by(AFTER_DISPATCH, _of_messages(messages))
        return taken

    def consume(self, *arguments: Any, **options: Any) -> Any:
        return _CrashingConsumption(self._inner.consume(*arguments, **options), self._point)


class _CrashingConsumption(_Wrapper):
    def finish(self, messages: Sequence[Any]) -> None:
        self._point.pass_by(BEFORE_ACK, [message.headers.get("Nats-Msg-Id") for message in messages])
        self._inner.finish(messages)


class CrashingStore(_Wrapper):
    @property
    def events(self) -> Any:
        return _CrashingEvents(self._inner.events, self._point)

    @property
    def deliveries(self) -> Any:
        return _CrashingDeliveries(self._inner.deliveries, self._point)

    @property
    def directory(self) -> Any:
        return _CrashingDirectory(self._inner.directory, self._point)

    @contextmanager
    def transaction(self, *, timeout: float) -> Iterator[Any]:
        with self._inner.transaction(timeout=timeout) as session:
            yield session
            self._point.pass_by(BEFORE_COMMIT)
        self._point.pass_by(AFTER_COMMIT)

    def run_transaction(self, body: Callable[[Any], Any], *, timeout: float) -> Any:
        def crashing(session: Any) -> Any:
            result = body(session)
            self._point.pass_by(BEFORE_COMMIT)
            return result

        result = self._inner.run_transaction(crashing, timeout=timeout)
        self._point.pass_by(AFTER_COMMIT)
        return result


class _CrashingEvents(_Wrapper):
    def append(self, events: Sequence[Any], **options: Any) -> list[bool]:
        self._point.pass_by(BEFORE_STORE, [event.id for event in events])
        stored: list[bool] = self._inner.append(events, **options)
        return stored

    def record(self, events: Sequence[Any]) -> list[Any]:
        return [told for event in events for told in self._record(event)]

    def _record(self, event: Any) -> list[Any]:
        """One by one, so that each event has a boundary of its own."""
        self._point.pass_by(BEFORE_RECORDING, [event.id])
        told: list[Any] = self._inner.record([event])
        self._point.pass_by(AFTER_RECORDING, [event.id])
        return told


class _CrashingDirectory(_Wrapper):
    def reconciled(self, marks: Any) -> None:
        self._point.pass_by(BEFORE_WATERMARK)
        self._inner.reconciled(marks)


class _CrashingDeliveries(_Wrapper):
    def states(self, delivery_ids: Sequence[str]) -> dict[str, str]:
        known: dict[str, str] = self._inner.states(delivery_ids)
        self._point.pass_by(AFTER_ASKING, _of_deliveries(delivery_ids))
        return known

    def start(self, deliveries: Sequence[Any], **options: Any) -> list[bool]:
        ids = [delivery.event_id for delivery in deliveries]
        self._point.pass_by(BEFORE_START, ids)
        started: list[bool] = self._inner.start(deliveries, **options)
        self._point.pass_by(AFTER_START, ids)
        return started

    def settle(self, settlements: Sequence[Any]) -> list[bool]:
        self._point.pass_by(BEFORE_SETTLE, [settlement.event_id for settlement in settlements])
        settled: list[bool] = self._inner.settle(settlements)
        return settled

    def claim_due(self, handlers: Sequence[str], *, limit: int, **options: Any) -> list[Any]:
        if self._point.event:
            limit = min(limit, 1)  # one by one, so that each event has a boundary of its own
        claimed: list[Any] = self._inner.claim_due(handlers, limit=limit, **options)
        if claimed:
            self._point.pass_by(AFTER_CLAIM, [delivery.event_id for delivery in claimed])
        return claimed

    def insert_pending(self, deliveries: Sequence[Any]) -> int:
        ids = [delivery.event_id for delivery in deliveries]
        self._point.pass_by(BEFORE_BRINGING, ids)
        brought: int = self._inner.insert_pending(deliveries)
        self._point.pass_by(AFTER_BRINGING, ids)
        return brought


class CrashingWire(monitoring.CommandListener):
    """Between two writes of one call of the store: just before outcomes are sent, by any client."""

    def __init__(self, point: CrashPoint) -> None:
        self._point = point

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command.get("insert") == "deliveries":
            ids = [document["_id"] for document in event.command["documents"]]
            self._point.pass_by(BEFORE_OUTCOME, _of_deliveries(ids))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


def _of_messages(messages: Sequence[Any]) -> Iterator[str]:
    """Their events, and those that these follow from."""
    for message in messages:
        yield message.message_id
        yield from json.loads(message.data).get("parentids", "").split(",")


def _of_deliveries(delivery_ids: Sequence[str]) -> list[str]:
    return [each.partition(":")[2] for each in delivery_ids]
