"""How many events a second does the recovery lane claim from MongoDB, run and record?

Every first attempt fails for good; then all dead letters are sent back at once, and a new worker finds them
due.
"""

from __future__ import annotations

from collections.abc import Mapping

from tenacity import stop_after_attempt

from benchmarks.shop import Ordered, bus_on, on_servers, publish_backlog
from benchmarks.worker import THREADS, Counter, worked_off
from eventdriven_sync import EventBus, RetryPolicy, Worker
from eventdriven_sync.devserver import DevServers
from tests.polling import eventually


def recovered(servers: DevServers, events: int) -> Mapping[str, float]:
    with bus_on(servers) as bus:
        fails = True
        count = Counter(events)

        @bus.group("Group").handler(Ordered, name="mend", retry=RetryPolicy(stop=stop_after_attempt(1)))
        def mend(event: Ordered) -> None:
            if fails:
                raise ValueError("not yet")
            count(event)

        bus.open()
        publish_backlog(bus, events)
        _die(bus, events)
        fails = False
        if bus.dead_letters.retry_all() != events:
            raise RuntimeError("not all dead letters were sent back")
        return worked_off(bus, events, count)


def _die(bus: EventBus, events: int) -> None:
    worker = Worker(bus, threads=THREADS).start()
    eventually(lambda: bus.dead_letters.count() == events, timeout=120)
    worker.stop()


def main() -> None:
    on_servers(
        "recovery",
        "Recovery lane",
        lambda servers, events: {"retries that are due": lambda: recovered(servers, events)},
        events=5000,
    )


if __name__ == "__main__":
    main()
