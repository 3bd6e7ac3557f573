"""What does a batch handler gain? The same backlog, handled one by one and in batches of 100 and 500."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.shop import Ordered, bus_on, on_servers, publish_backlog
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
    on_servers(
        "batches",
        "Batches",
        lambda servers, events: {
            "one by one": lambda: one_by_one(servers, events),
            "batches of 100": lambda: in_batches(servers, events, 100),
            "batches of 500": lambda: in_batches(servers, events, 500),
        },
        events=20_000,
    )


if __name__ == "__main__":
    main()
