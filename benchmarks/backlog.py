"""How long does one worker process take for a backlog, and does its memory grow meanwhile?

``--events 1000000 --runs 1`` shows the memory: resident megabytes after each tenth.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.crew import Crew
from benchmarks.shop import bus_on, on_servers, publish_backlog
from eventdriven_sync.devserver import DevServers


def drained(servers: DevServers, events: int) -> Mapping[str, float]:
    found = {}
    with bus_on(servers) as bus:
        publish_backlog(bus, events)
        with Crew(bus.settings) as crew:
            for tenth in range(1, 11):
                crew.wait(events * tenth // 10)
                found[f"mb_at_{tenth * 10}"] = crew.memory_mb
            worker = {"seconds": crew.seconds, "per_second": events / crew.seconds}
            return worker | {"cpu_us": crew.cpu * 1e6 / events} | found


def main() -> None:
    on_servers(
        "backlog",
        "A backlog",
        lambda servers, events: {"drained": lambda: drained(servers, events)},
        events=100_000,
    )


if __name__ == "__main__":
    main()
