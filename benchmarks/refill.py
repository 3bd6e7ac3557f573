"""JetStream has lost everything: how many events a second come back from MongoDB and are handled?

A backlog is published, the nats-server killed and its directory deleted. The time runs from the start of a
worker on the empty JetStream until the last event was handled: the reconciler looks at once and waits for
nothing, where in production it leaves each event 20 s to come by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.shop import Ordered, on_servers, publish_backlog, settings_on
from benchmarks.worker import Counter, worked_off
from eventdriven_sync import EventBus
from eventdriven_sync.config import Settings
from eventdriven_sync.devserver import DevServers


def refilled(servers: DevServers, events: int) -> Mapping[str, float]:
    settings = settings_on(servers, reconcile_after=0.1, reconcile_every=0.05, poll_every=0.02)
    count = Counter(events)
    with _bus(settings, count) as bus:
        bus.open()
        publish_backlog(bus, events)
    servers.nats.kill()
    servers.nats.wipe()
    servers.nats.start()
    with _bus(settings, count) as bus:
        found = worked_off(bus, events, count)
        bus.mongo_client.drop_database(settings.namespace)
    return found


def _bus(settings: Settings, count: Counter) -> EventBus:
    bus = EventBus(settings=settings)
    bus.group("Group").handler(Ordered, name="count")(count)
    return bus


def main() -> None:
    on_servers(
        "refill",
        "Wiped JetStream",
        lambda servers, events: {"wiped stream": lambda: refilled(servers, events)},
        events=5000,
    )


if __name__ == "__main__":
    main()
