"""What does one durable write of 1, 8, 32 and 128 events cost, one after another from one thread?

It is the floor below everything that stores: so many threads that publish share one write, and a worker
writes the outcomes of what has just ended in one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

from benchmarks import harness
from benchmarks.shop import bus_on, cpu_seconds
from eventdriven_sync import EventBus
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.envelope import Envelope, new_id, utcnow

SIZES = (1, 8, 32, 128)


def events(count: int) -> list[Envelope]:
    payload = {"number": 1, "customer": "c" * 40, "text": "x" * 110}
    ids = [new_id() for _ in range(count)]
    return [
        Envelope(
            id=each, name="Bench.ordered", version=1, data=payload, published_at=utcnow(), operation_id=each
        )
        for each in ids
    ]


def written(bus: EventBus, mongod: int, size: int, writes: int) -> Mapping[str, float]:
    batches = [events(size) for _ in range(writes)]
    took = []
    own, server = time.process_time(), cpu_seconds(mongod)
    for batch in batches:
        began = time.perf_counter()
        bus.store.events.append(batch, timeout=10)
        took.append((time.perf_counter() - began) * 1000)
    own, server = time.process_time() - own, cpu_seconds(mongod) - server
    return {
        "p50_ms": statistics.median(took),
        "own_us": own * 1e6 / writes,
        "mongod_us": server * 1e6 / writes,
        "mongod_us_per_event": server * 1e6 / writes / size,
    }


def main() -> None:
    options = harness.options("One write", writes=300)
    with DevServers() as servers, bus_on(servers) as bus:
        assert servers.mongo.process
        mongod = servers.mongo.process.pid
        bus.store.events.append(events(1), timeout=10)
        found = harness.interleaved(
            {
                f"{size} events": lambda size=size: written(bus, mongod, size, options.writes)  # type: ignore[misc]
                for size in SIZES
            },
            runs=options.runs,
        )
    harness.report("writes", found)


if __name__ == "__main__":
    main()
