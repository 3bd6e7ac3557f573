"""The event and the servers that the benchmarks of the engine share: 200 bytes of JSON, fresh databases."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from benchmarks import harness
from benchmarks.harness import Run
from eventdriven_sync import EventBus, Settings, event
from eventdriven_sync.devserver import DevServers


@event("Bench.ordered", key="number")
class Ordered:
    number: int
    customer: str = "c" * 40
    text: str = "x" * 110


def settings_on(servers: DevServers, **settings: float) -> Settings:
    """Settings with a database and a namespace of their own."""
    name = f"b{uuid.uuid4().hex[:10]}"
    return Settings(nats=servers.nats_url, mongo=servers.mongo_url(name), namespace=name, **settings)  # type: ignore[arg-type]


@contextmanager
def bus_on(servers: DevServers, **settings: float) -> Iterator[EventBus]:
    """A bus with a database and a namespace of its own, removed afterwards."""
    with EventBus(settings=settings_on(servers, **settings)) as bus:
        yield bus
        bus.mongo_client.drop_database(bus.settings.namespace)


def on_servers(
    question: str, description: str, contenders: Callable[[DevServers, int], dict[str, Run]], *, events: int
) -> None:
    """A benchmark of one question on servers of its own: its options, its runs, its report."""
    options = harness.options(description, events=events)
    with DevServers() as servers:
        found = harness.interleaved(contenders(servers, options.events), runs=options.runs)
    harness.report(question, found)


def in_threads(threads: int, each: int, work: Callable[[int], object]) -> float:
    """Seconds until every thread has called ``work`` so often, from the moment all were ready."""
    ready = threading.Barrier(threads + 1)

    def body(number: int) -> None:
        ready.wait()
        for n in range(each):
            work(number * each + n)

    pool = [threading.Thread(target=body, args=(number,)) for number in range(threads)]
    for thread in pool:
        thread.start()
    ready.wait()
    begun = time.perf_counter()
    for thread in pool:
        thread.join()
    return time.perf_counter() - begun


def publish_backlog(bus: EventBus, events: int) -> None:
    """Publish so many, and wait until JetStream has them."""
    for start in range(0, events, 1000):
        bus.publish_many([Ordered(number=n) for n in range(start, min(start + 1000, events))])
    if not bus.flush(timeout=120):
        raise RuntimeError("JetStream has not taken the backlog within 120 s")


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far; on Linux to the microsecond, where psutil counts in hundredths."""
    if sys.platform == "linux":
        return time.clock_gettime((~pid << 3) | 2)  # its clock as clock_getcpuclockid(3) makes it
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
