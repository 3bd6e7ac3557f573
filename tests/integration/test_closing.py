"""Closing is bounded, and a database belongs to one namespace."""

import threading

import pytest

from eventdriven_sync import EventBus, Settings, event
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.errors import ConfigurationError


@event("Closing.seen")
class Seen:
    number: int


def bus_of(servers: DevServers, database: str, namespace: str) -> EventBus:
    settings = Settings(nats=servers.nats_url, mongo=servers.mongo_url(database), namespace=namespace)
    return EventBus(settings=settings)


def test_closing_ends_though_both_servers_are_gone(
    own_servers: DevServers, database_name: str, namespace: str
) -> None:
    bus = bus_of(own_servers, database_name, namespace)
    bus.publish(Seen(number=1))
    own_servers.nats.kill()
    own_servers.mongo.kill()
    closing = threading.Thread(target=bus.close, daemon=True)
    closing.start()
    closing.join(timeout=15)
    assert not closing.is_alive()


def test_a_database_belongs_to_the_namespace_that_used_it_first(
    servers: DevServers, mongo_url: str, database_name: str, namespace: str
) -> None:
    with bus_of(servers, database_name, namespace) as first:
        first.publish(Seen(number=1))
    told = rf"belongs to the namespace '{namespace}', not to 'other'"
    with bus_of(servers, database_name, "other") as second, pytest.raises(ConfigurationError, match=told):
        second.publish(Seen(number=2))
    with bus_of(servers, database_name, namespace) as again:
        again.publish(Seen(number=3))
