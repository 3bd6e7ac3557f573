"""What does a batch handler gain? The same backlog, handled one by one and in batches of 100 and 500."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import harness
from benchmarks.shop import Ordered, bus_on, publish_backlog
from benchmarks.worker import Counter, drained, worked_off
from eventdriven_sync import Batch
from eventdriven_sync.devserver import DevServers


def in_batches(servers: DevServers, events: int, size: int) -> Mapping[str, float]:
    with bus_on(servers) as bus:
        count = Counter(events)

        @bus.group("Group").batch_handler(Ordered, max_size=size, max_wait=0.2, name="count")
        def handle(batch: Batch[Ordered]) -> None:
            count.add(len(batch))

        bus.open()
        publish_backlog(bus, events)
        return worked_off(bus, events, count)


def one_by_one(servers: DevServers, events: int) -> Mapping[str, float]:
    with bus_on(servers) as bus:
        return drained(bus, 1, events)


def main() -> None:
    options = harness.options("Batches", events=20_000)
    with DevServers() as servers:
        found = harness.interleaved(
            {
                "one by one": lambda: one_by_one(servers, options.events),
                "batches of 100": lambda: in_batches(servers, options.events, 100),
                "batches of 500": lambda: in_batches(servers, options.events, 500),
            },
            runs=options.runs,
        )
    harness.report("batches", found)


if __name__ == "__main__":
    main()
