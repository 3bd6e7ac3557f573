"""The event and the servers that the benchmarks of the engine share: 200 bytes of JSON, fresh databases."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eventdriven_sync import EventBus, Settings, event
from eventdriven_sync.devserver import DevServers


@event("Bench.ordered", key="number")
class Ordered:
    number: int
    customer: str = "c" * 40
    text: str = "x" * 110


@contextmanager
def bus_on(servers: DevServers, **settings: float) -> Iterator[EventBus]:
    """A bus with a database and a namespace of its own, removed afterwards."""
    name = f"b{uuid.uuid4().hex[:10]}"
    made = Settings(nats=servers.nats_url, mongo=servers.mongo_url(name), namespace=name, **settings)  # type: ignore[arg-type]
    with EventBus(settings=made) as bus:
        yield bus
        bus.mongo_client.drop_database(name)


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


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
