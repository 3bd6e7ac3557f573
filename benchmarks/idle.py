"""What does a worker with 100 handlers cost while nothing happens? Share of one core, over 30 s."""

from __future__ import annotations

import time
from collections.abc import Mapping

from benchmarks import harness
from benchmarks.crew import Crew
from benchmarks.shop import Ordered, bus_on, cpu_seconds
from eventdriven_sync.devserver import DevServers

HANDLERS = 100
# Until everything that a start sets off is over.
SETTLING = 5.0


def idle(servers: DevServers, seconds: int) -> Mapping[str, float]:
    with bus_on(servers) as bus, Crew(bus.settings, handlers=HANDLERS) as crew:
        bus.publish(Ordered(number=0))
        crew.wait(HANDLERS)
        time.sleep(SETTLING)
        before = _cpu(servers, crew)
        time.sleep(seconds)
        spent = {name: at - before[name] for name, at in _cpu(servers, crew).items()}
        shares = {name: 100 * value / seconds for name, value in spent.items()}
        return shares | {"worker_mb": crew.memory_mb}


def _cpu(servers: DevServers, crew: Crew) -> dict[str, float]:
    assert servers.nats.process
    assert servers.mongo.process
    return {
        "percent_of_core": crew.cpu,
        "nats_percent": cpu_seconds(servers.nats.process.pid),
        "mongod_percent": cpu_seconds(servers.mongo.process.pid),
    }


def main() -> None:
    options = harness.options("An idle worker", seconds=30)
    with DevServers() as servers:
        found = harness.interleaved(
            {f"{HANDLERS} handlers": lambda: idle(servers, options.seconds)}, runs=options.runs
        )
    harness.report("idle", found)


if __name__ == "__main__":
    main()
