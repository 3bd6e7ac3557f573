"""The hop budget: how many files and functions of ours stand between cause and effect.

A hop is a function that is on the stack when something happens: a command to MongoDB, a hand-over to the
broker's thread, an arrival from it, the call of the handler, the policy's decision. Functions that only
compute a value and return (decoding, building documents) are not on the way; ``TOUCHED`` bounds those too,
so that they do not grow unseen. Threads that only tick (heartbeat, reconciler, lease) are not on the way.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from pymongo import monitoring
from tenacity import stop_after_attempt, wait_none

import eventdriven_sync
from eventdriven_sync import EventBus, RetryPolicy, Settings, Worker, event
from eventdriven_sync.brokers.bridge import Bridge
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.pool import Pool
from tests.polling import eventually

PACKAGE = str(Path(eventdriven_sync.__file__).parent) + "/"
TICKING = ("Worker._beat", "Worker._obey", "Reconciler._run", "RecoveryLane.renew", "DeadLetters.")
# What a handler's pace changes now and then: how many messages are asked for at once.
ADJUSTING = ("Pool._learn",)

BUDGET_PUBLISH_FILES = 5
BUDGET_DEAD_FILES, BUDGET_DEAD_FUNCTIONS = 9, 35
# Every function that runs, leaves included. Measured are 55 and 175 to 247: the broker may look after its
# streams meanwhile.
TOUCHED_PUBLISH, TOUCHED_DEAD = 75, 260


@event("Hop.taken")
class Taken:
    number: int


class Way:
    """The functions of ours that are on the stack at an effect, while ``on``."""

    def __init__(self) -> None:
        self.on = False
        self.hops: set[tuple[str, str]] = set()
        self.touched: set[tuple[str, str]] = set()
        self.beside: tuple[str, ...] = ()

    def note(self) -> None:
        """An effect happens here."""
        if not self.on:
            return
        hops = set(stack(sys._getframe(1)))
        if not any(name.startswith(TICKING + ADJUSTING) for _, name in hops):
            self.hops |= hops

    def profile(self, frame: FrameType, kind: str, argument: Any) -> None:
        if self.on and kind == "call" and not threading.current_thread().name.startswith(self.beside):
            self.touched |= set(ours(frame))

    @property
    def files(self) -> set[str]:
        return {file for file, _ in self.hops}

    def __str__(self) -> str:
        lines = [f"  {file}: {name}" for file, name in sorted(self.hops)]
        return "\n".join([f"{len(self.files)} files, {len(self.hops)} functions", *lines])


def ours(frame: FrameType) -> Iterator[tuple[str, str]]:
    code = frame.f_code
    # Comprehensions and lambdas are read where they stand.
    if code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
        yield code.co_filename.removeprefix(PACKAGE), code.co_qualname


def stack(frame: FrameType | None) -> Iterator[tuple[str, str]]:
    while frame is not None:
        yield from ours(frame)
        frame = frame.f_back


WAY = Way()


class Commands(monitoring.CommandListener):
    """MongoDB's part of the effects; listeners can only be registered before a client exists."""

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        WAY.note()

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


monitoring.register(Commands())


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            WAY.note()
            return function(*arguments, **named)

        return call

    for owner, name in ((Bridge, "post"), (Pool, "offer"), (RetryPolicy, "decide")):
        monkeypatch.setattr(owner, name, noted(getattr(owner, name)))
    WAY.hops, WAY.touched = set(), set()
    threading.setprofile(WAY.profile)
    yield WAY
    WAY.on = False
    threading.setprofile(None)


@pytest.fixture
def bus(servers: DevServers, mongo_url: str, namespace: str, way: Way) -> Iterator[EventBus]:
    settings = Settings(nats=servers.nats_url, mongo=mongo_url, namespace=namespace, poll_every=0.02)
    with EventBus(settings=settings) as made:
        yield made


def test_publishing_passes_few_files(bus: EventBus, way: Way) -> None:
    def publish() -> None:
        bus.publish(Taken(number=0))
        way.on = True
        bus.publish(Taken(number=1))
        way.on = False

    way.beside = ("eventdriven", "eds", "MainThread", "pymongo")
    thread = threading.Thread(target=publish)
    thread.start()
    thread.join()
    print(f"publish: {way}\ntouched: {len(way.touched)}")
    assert {"bus.py", "publishing.py"} <= way.files, "the effects were not seen"
    assert len(way.files) <= BUDGET_PUBLISH_FILES, str(way)
    assert len(way.touched) <= TOUCHED_PUBLISH, sorted(way.touched)


def test_an_event_becomes_a_dead_letter_on_a_short_way(bus: EventBus, way: Way) -> None:
    @bus.group("Hops").handler(Taken, retry=RetryPolicy(stop=stop_after_attempt(2), wait=wait_none()))
    def fail(event: Taken) -> None:
        way.note()
        raise ValueError("no")

    way.beside = ("MainThread", "eventdriven-heartbeat", "eventdriven-reconciler", "eventdriven-watchdog")
    worker = Worker(bus, threads=1).start()
    try:
        bus.publish(Taken(number=0))
        eventually(lambda: bus.dead_letters.count() == 1)
        bus.publish(Taken(number=1))
        way.on = True
        eventually(lambda: bus.dead_letters.count() == 2)
        way.on = False
    finally:
        worker.stop(grace=1)
    print(f"consume, fail, retry, dead: {way}\ntouched: {len(way.touched)}")
    assert {"executor.py", "settling.py", "recovery.py"} <= way.files, "the effects were not seen"
    assert len(way.files) <= BUDGET_DEAD_FILES, str(way)
    assert len(way.hops) <= BUDGET_DEAD_FUNCTIONS, str(way)
    assert len(way.touched) <= TOUCHED_DEAD, sorted(way.touched)
