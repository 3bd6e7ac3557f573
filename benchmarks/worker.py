"""How many events a second does one worker process with 8 threads handle, record and acknowledge?

The backlog is published before; then the worker runs until nothing is left. Also with three handlers for each
event, with a handler that always fails until its deliveries are dead, and with publishing at the same time.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Mapping

from tenacity import stop_after_attempt, wait_none

from benchmarks import harness
from benchmarks.shop import Ordered, bus_on, in_threads, publish_backlog
from eventdriven_sync import EventBus, RetryPolicy, Worker
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.heap import calm_collector

THREADS = 8
LIMIT = 300.0


class Counter:
    """Counts what handlers did until all is done."""

    def __init__(self, wanted: int) -> None:
        self._lock = threading.Lock()  # guards _left
        self._left = wanted
        self.done = threading.Event()

    def __call__(self, event: Ordered) -> None:
        self.add(1)

    def add(self, number: int) -> None:
        with self._lock:
            self._left -= number
            if self._left <= 0:
                self.done.set()


def drained(bus: EventBus, handlers: int, events: int) -> Mapping[str, float]:
    """Publish a backlog, then work it off; handlings a second, until the last handler has returned."""
    count = Counter(events * handlers)
    for number in range(handlers):
        bus.group(f"Group{number}").handler(Ordered, name="count")(count)
    bus.open()
    publish_backlog(bus, events)
    return worked_off(bus, events * handlers, count)


def worked_off(bus: EventBus, handlings: int, count: Counter) -> Mapping[str, float]:
    cpu, begun = time.process_time(), time.perf_counter()
    with calm_collector():  # as ``Worker.run``, which needs the main thread
        worker = Worker(bus, threads=THREADS).start()
        if not count.done.wait(LIMIT):
            raise RuntimeError(f"not worked off within {LIMIT:g} s")
        seconds = time.perf_counter() - begun
        cpu = time.process_time() - cpu
        worker.stop()
    return {"per_second": handlings / seconds, "cpu_us": cpu * 1e6 / handlings}


def failing(bus: EventBus, events: int) -> Mapping[str, float]:
    """Every attempt fails, at once again: attempts a second until all deliveries are dead."""
    attempts = 5
    count = Counter(events * attempts)
    policy = RetryPolicy(stop=stop_after_attempt(attempts), wait=wait_none())

    @bus.group("Group").handler(Ordered, name="fail", retry=policy)
    def fail(event: Ordered) -> None:
        count(event)
        raise ValueError("no")

    publish_backlog(bus, events)
    return worked_off(bus, events * attempts, count)


def live(bus: EventBus, events: int) -> Mapping[str, float]:
    """Eight threads publish while the same process handles."""
    events -= events % 8
    count = Counter(events)
    bus.group("Group").handler(Ordered, name="count")(count)
    worker = Worker(bus, threads=THREADS).start()
    begun = time.perf_counter()
    in_threads(8, events // 8, lambda n: bus.publish(Ordered(number=n)))
    if not count.done.wait(LIMIT):
        raise RuntimeError(f"not worked off within {LIMIT:g} s")
    seconds = time.perf_counter() - begun
    worker.stop()
    return {"per_second": events / seconds}


def contenders(
    servers: DevServers, options: argparse.Namespace
) -> dict[str, Callable[[], Mapping[str, float]]]:
    def on_a_bus(run: Callable[[EventBus], Mapping[str, float]]) -> Callable[[], Mapping[str, float]]:
        def measured() -> Mapping[str, float]:
            with bus_on(servers, poll_every=0.02) as bus:
                return run(bus)

        return measured

    return {
        "handled, 1 handler": on_a_bus(lambda bus: drained(bus, 1, options.events)),
        "handled, 3 handlers": on_a_bus(lambda bus: drained(bus, 3, options.events // 2)),
        "failing to dead letter": on_a_bus(lambda bus: failing(bus, options.events // 10)),
        "live, 8 publishing threads": on_a_bus(lambda bus: live(bus, options.events // 4)),
    }


def main() -> None:
    options = harness.options("Handling", events=20_000)
    writes = harness.watch_writes()
    with DevServers() as servers:
        found = harness.interleaved(contenders(servers, options), runs=options.runs)
    harness.report("worker", found, writes=dict(writes))


if __name__ == "__main__":
    main()
