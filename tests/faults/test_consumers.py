"""What happens to consumers and connections: F36, F44, F45, F47."""

import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymongo
import pytest

from eventdriven_sync import EventBus, Settings
from eventdriven_sync.brokers.nats import NatsBroker
from eventdriven_sync.devserver import DevServers, NatsServer
from eventdriven_sync.devserver.ports import LOOPBACK
from eventdriven_sync.errors import ConsumerConflict
from tests.apps import orders
from tests.apps.orders import OrderPlaced
from tests.apps.site import Site, conserved
from tests.faults.conftest import RowFactory
from tests.faults.scene import SETTINGS
from tests.polling import eventually

HANDLERS, EACH = 1_000, 1_000


@pytest.fixture
def place(servers: DevServers, mongo_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    """An application on the servers that the tests share."""
    site = Site(
        tmp_path, Settings(nats=servers.nats_url, mongo=mongo_url, namespace=namespace, **dict(SETTINGS))
    )
    yield site
    site.close()


def settings_of_consumer(bus: EventBus) -> dict[str, Any]:
    state = bus.broker.consumer_state(f"{bus.settings.namespace}_Order", "Billing__bill", timeout=5)
    assert state is not None
    return {key: state.config[key] for key in ("ack_wait", "max_ack_pending", "max_deliver", "ack_policy")}


def live_of(bus: EventBus) -> Any:
    """What this process has open to NATS."""
    assert isinstance(bus.broker, NatsBroker)
    return bus.broker._lives[os.getpid()]


def publish_raw(server: NatsServer, subject: bytes, data: bytes) -> None:
    """What any other publisher may send; the server takes it."""
    with socket.create_connection((LOOPBACK, server.port), timeout=5) as connection:
        connection.sendall(b'CONNECT {"verbose":false}\r\n')
        connection.sendall(b"PUB %s %d\r\n%s\r\nPING\r\n" % (subject, len(data), data))
        with connection.makefile("rb") as lines:
            while lines.readline() != b"PONG\r\n":
                pass


def test_a_second_version_with_other_consumer_settings_is_told_and_changes_nothing(
    place: Site, row: RowFactory
) -> None:
    bus = place.bus(orders.build)
    place.worker(bus)
    bus.publish(OrderPlaced(number=1))
    conserved(bus)
    before = settings_of_consumer(bus)
    other = place.bus(orders.build, ack_wait=SETTINGS["ack_wait"] + 1)
    refusals = 0
    for _ in range(5):
        with pytest.raises(ConsumerConflict, match="ack_wait is 6 s, we need 7 s"):
            place.worker(other)
        refusals += 1
    changed = sum(settings_of_consumer(bus)[key] != value for key, value in before.items())
    other.publish(OrderPlaced(number=2))
    audited = conserved(bus)
    row("F36", "two versions with different consumer settings").keep(
        {"events": 2, "lost": 2 - audited.handlers[0].succeeded, "refusals": refusals},
        changed_settings=(changed, 0),
    )
    assert refusals == 5


def test_what_is_no_event_stops_no_reader_and_ends_as_a_dead_letter(
    place: Site, servers: DevServers, row: RowFactory
) -> None:
    bus = place.bus(orders.build)
    place.worker(bus)
    bus.publish(OrderPlaced(number=1))
    conserved(bus)
    began = time.monotonic()
    prefix = f"{place.settings.namespace}.Order.".encode()
    publish_raw(servers.nats, prefix + b"\xff\xfe", b"a subject that is not UTF-8")
    publish_raw(servers.nats, prefix + b"placed", b"\xff\xfe no event")
    bus.publish(OrderPlaced(number=2))
    eventually(lambda: place.witness.counts("end")[2] == 1, timeout=30)
    took = time.monotonic() - began
    letters = eventually(lambda: bus.dead_letters.find(reason="undecodable"), timeout=30)
    row("F44", "a subject that is not UTF-8, and bytes that are no event").keep(
        {"events": 2, "dead": len(letters), "connections_rebuilt": bus.broker.status().rebuilt},
        receiving_again_seconds=(took, 15.0),
    )
    assert len(letters) == 1


def test_a_connection_that_is_closed_for_good_is_replaced(place: Site, row: RowFactory) -> None:
    bus = place.bus(orders.build)
    place.worker(bus)
    bus.publish(OrderPlaced(number=0))
    conserved(bus)
    longest = 0.0
    for number in range(1, 6):
        live, before = live_of(bus), bus.broker.status().rebuilt
        began = time.monotonic()
        # The server answers a message over its limit by closing, and nats-py then never connects again.
        live.bridge.post(lambda live=live: live.link.send("x", b"x" * 1_048_570, "", {"a": "over the limit"}))
        eventually(
            lambda before=before: bus.broker.status().rebuilt > before and bus.broker.status().connected,
            timeout=30,
        )
        longest = max(longest, time.monotonic() - began)
        bus.publish(OrderPlaced(number=number))
        eventually(lambda number=number: place.witness.counts("end")[number] == 1, timeout=30)
    audited = conserved(bus)
    row("F45", "the connection to NATS is closed for good, x5").keep(
        {"events": 6, "lost": 6 - audited.handlers[0].succeeded, "rebuilt": bus.broker.status().rebuilt},
        new_connection_seconds=(longest, 5.0),
    )
    assert bus.broker.status().rebuilt == 5


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_claiming_from_a_million_deliveries_of_a_thousand_handlers_reads_only_what_it_claims(
    place: Site, servers: DevServers, mongo_client: pymongo.MongoClient[Any], row: RowFactory
) -> None:
    bus = place.bus()
    bus.open()
    database = bus.mongo_client.get_default_database()
    fill(mongo_client[database.name]["deliveries"])
    names = [f"Group.h{number}" for number in range(10)]
    where = {
        "handler": {"$in": names},
        "due_at": {"$exists": True},
        "$expr": {"$lte": ["$due_at", "$$NOW"]},
    }
    asked = {
        "find": "deliveries",
        "filter": where,
        "projection": {"_id": 1},
        "sort": {"due_at": 1},
        "limit": 100,
    }
    found = database.command("explain", asked, verbosity="executionStats")
    began = time.monotonic()
    claimed = bus.store.deliveries.claim_due(names, limit=100, lease=30, worker="w", token="t")
    took = time.monotonic() - began
    stats = found["executionStats"]
    row("F47", f"{HANDLERS} handlers, {HANDLERS * EACH} deliveries").keep(
        {"events": EACH, "claimed": len(claimed), "claim_seconds": round(took, 3)},
        documents_read_per_claimed=(stats["totalDocsExamined"] / stats["nReturned"], 1.1),
        collection_scans=(str(found["queryPlanner"]["winningPlan"]).count("COLLSCAN"), 0),
    )
    assert len(claimed) == 100
    assert "IXSCAN" in str(found["queryPlanner"]["winningPlan"])


def fill(deliveries: pymongo.collection.Collection[Any]) -> None:
    """A tenth of them is due, the rest is done."""
    now = datetime.now(UTC)
    for event in range(EACH):
        deliveries.insert_many(
            [
                {
                    "_id": f"Group.h{handler}:e{event}",
                    "handler": f"Group.h{handler}",
                    "event_id": f"e{event}",
                    "event_name": "Order.placed",
                    "operation_id": f"e{event}",
                    "attempts": 0,
                    "failed": 0,
                    "generation": 0,
                    "lost": 0,
                    "created_at": now,
                    "started_at": now,
                    **({"state": "pending", "due_at": now} if event % 10 == 0 else {"state": "succeeded"}),
                }
                for handler in range(HANDLERS)
            ],
            ordered=False,
        )
