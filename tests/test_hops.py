"""The hop budget: how many files and functions of ours a reader meets on the two ways that matter.

Measured, not counted in the source: a profiler notes every function of the package that runs, on all
threads, while one event is published, and while one fails, is retried and becomes a dead letter. Threads
that only tick (watchdog, heartbeat, reconciler) are not on the way; caches are warm.
"""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import pytest
from tenacity import stop_after_attempt, wait_none

import eventdriven_sync
from eventdriven_sync import EventBus, RetryPolicy, Settings, Worker, event
from eventdriven_sync.devserver import DevServers
from tests.polling import eventually

PACKAGE = str(Path(eventdriven_sync.__file__).parent) + "/"
TICKING = ("eventdriven-watchdog", "eventdriven-heartbeat", "eventdriven-reconciler")

# What we want (a reader's budget), and what holds now: lower the second until it is the first.
BUDGET_PUBLISH_FILES = 5
BUDGET_DEAD_FILES, BUDGET_DEAD_FUNCTIONS = 9, 35
# Functions vary a little with timing: whether a lease is renewed or a second pull goes out meanwhile.
LIMITS = {
    "memory": {"publish": 11, "files": 20, "functions": 150},
    "real": {"publish": 12, "files": 24, "functions": 180},
}


@event("Hop.taken")
@attrs.frozen(kw_only=True)
class Taken:
    number: int


class Trace:
    """Every function of the package that runs while ``on``; by file."""

    def __init__(self) -> None:
        self.on = False
        self.only: threading.Thread | None = None
        self.without: threading.Thread | None = None
        self.seen: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, kind: str, argument: Any) -> None:
        code = frame.f_code
        if not self.on or kind != "call" or not code.co_filename.startswith(PACKAGE):
            return
        thread = threading.current_thread()
        counts = thread is not self.without and self.only in (None, thread)
        # Comprehensions and lambdas are read where they stand.
        if counts and not thread.name.startswith(TICKING) and not code.co_name.startswith("<"):
            self.seen.add((code.co_filename.removeprefix(PACKAGE), code.co_qualname))

    @property
    def files(self) -> set[str]:
        return {file for file, _ in self.seen}

    def __str__(self) -> str:
        return f"{len(self.files)} files, {len(self.seen)} functions:\n" + "\n".join(
            f"  {file}: {', '.join(sorted(name for each, name in self.seen if each == file))}"
            for file in sorted(self.files)
        )


@pytest.fixture
def trace() -> Iterator[Trace]:
    made = Trace()
    before = sys.getprofile()
    threading.setprofile(made)
    sys.setprofile(made)
    yield made
    made.on = False
    sys.setprofile(before)
    threading.setprofile(None)


@pytest.fixture(params=["memory", "real"])
def bus(request: pytest.FixtureRequest, trace: Trace, namespace: str) -> Iterator[EventBus]:
    settings = Settings(nats="memory://", mongo="memory://", namespace=namespace, poll_every=0.02)
    if request.param == "real":
        servers: DevServers = request.getfixturevalue("servers")
        mongo_url = request.getfixturevalue("mongo_url")
        settings = attrs.evolve(settings, nats=servers.nats_url, mongo=mongo_url)
    with EventBus(settings=settings) as made:
        yield made


def limits(bus: EventBus) -> dict[str, int]:
    return LIMITS["memory" if bus.settings.nats.startswith("memory") else "real"]


def test_publishing_an_event_passes_few_files(bus: EventBus, trace: Trace) -> None:
    bus.publish(Taken(number=0))
    trace.only, trace.on = threading.current_thread(), True
    bus.publish(Taken(number=1))
    trace.on = False
    print(f"publish: {trace}")
    assert len(trace.files) <= limits(bus)["publish"], str(trace)


def test_an_event_becomes_a_dead_letter_on_a_short_way(bus: EventBus, trace: Trace) -> None:
    policy = RetryPolicy(stop=stop_after_attempt(2), wait=wait_none())

    @bus.group("Hops").handler(Taken, retry=policy)
    def fail(event: Taken) -> None:
        raise ValueError("no")

    worker = Worker(bus, threads=1).start()
    try:
        bus.publish(Taken(number=0))
        eventually(lambda: bus.dead_letters.count() == 1)
        trace.without, trace.on = threading.current_thread(), True
        bus.publish(Taken(number=1))
        eventually(lambda: bus.dead_letters.count() == 2)
        trace.on = False
    finally:
        worker.stop(grace=1)
    print(f"fail, retry, dead: {trace}")
    assert len(trace.files) <= limits(bus)["files"], str(trace)
    assert len(trace.seen) <= limits(bus)["functions"], str(trace)


def test_the_limits_are_measured_against_the_budget() -> None:
    """Whoever reaches the budget removes the limits: they must not hide that it is met."""
    for limit in LIMITS.values():
        assert limit["publish"] > BUDGET_PUBLISH_FILES, "the budget is met: make it the limit"
        assert limit["files"] > BUDGET_DEAD_FILES or limit["functions"] > BUDGET_DEAD_FUNCTIONS
