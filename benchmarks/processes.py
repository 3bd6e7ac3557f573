"""How much more do two worker processes handle than one, when a handler computes for 50 µs?

The handler spins until its thread has used 50 µs of CPU (``time.thread_time``). Both work off a backlog of
the same size, from the end of the first handling to the end of the last. On two cores the servers and the
second process share what the first leaves free.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import harness
from benchmarks.crew import Crew
from benchmarks.shop import bus_on, publish_backlog
from eventdriven_sync.devserver import DevServers

BURN = 50e-6


def worked_off(servers: DevServers, events: int, processes: int) -> Mapping[str, float]:
    with bus_on(servers) as bus:
        publish_backlog(bus, events)
        with Crew(bus.settings, processes=processes, burn=BURN) as crew:
            crew.wait(events)
            return {"per_second": events / crew.seconds, "cpu_us": crew.cpu * 1e6 / events}


def main() -> None:
    options = harness.options("Worker processes", events=20_000)
    with DevServers() as servers:
        one, two = "1 process", "2 processes"
        found = harness.interleaved(
            {
                one: lambda: worked_off(servers, options.events, 1),
                two: lambda: worked_off(servers, options.events, 2),
            },
            runs=options.runs,
        )
    rates = (found[each].get("per_second", []) for each in (one, two))
    found[two]["ratio"] = [second / first for first, second in zip(*rates, strict=False)]
    harness.report("processes", found)


if __name__ == "__main__":
    main()
