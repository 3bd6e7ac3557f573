"""NATS goes away, for a while or with everything it stored: accepted events are handled all the same."""

import time

from eventdriven_sync.devserver import DevServers
from eventdriven_sync.store import EventQuery
from tests.apps import orders, shop
from tests.apps.orders import OrderPlaced
from tests.apps.site import Site, conserved
from tests.polling import eventually


def test_events_published_while_nats_is_down_are_accepted_quickly_and_handled_when_it_is_back(
    own_site: Site, own_servers: DevServers
) -> None:
    bus = own_site.bus(orders.build)
    own_site.worker(bus)
    bus.publish(OrderPlaced(number=0))
    conserved(bus)
    own_servers.nats.kill()
    # A publisher that has known NATS, and one whose first publish finds it down.
    publishers = [bus, own_site.bus()]
    longest = 0.0
    for number in range(1, 41):
        began = time.monotonic()
        publishers[number % 2].publish(OrderPlaced(number=number))
        longest = max(longest, time.monotonic() - began)
    assert longest < 2.0, "publish does not wait for NATS"
    own_servers.nats.start()
    audited = conserved(bus, timeout=60)
    assert [(h.name, h.succeeded) for h in audited.handlers] == [("Billing.bill", 41)]
    assert own_site.witness.counts("end") == dict.fromkeys(range(41), 1)
    assert len(bus.store.events.find(EventQuery(names=("Bill.sent",), limit=100))) == 41
    # The lane between them works again: this one does not need the reconciler.
    bus.publish(OrderPlaced(number=41))
    eventually(lambda: own_site.witness.counts("end")[41] == 1, timeout=30)
    conserved(bus)


def test_a_worker_started_while_nats_is_down_works_when_it_is_back(
    own_site: Site, own_servers: DevServers
) -> None:
    own_servers.nats.kill()
    bus = own_site.bus(orders.build, broker_timeout=1.0)
    own_site.worker(bus)
    bus.publish_many([OrderPlaced(number=n) for n in range(10)])
    own_servers.nats.start()
    conserved(bus, timeout=60)
    bus.publish(OrderPlaced(number=10))
    conserved(bus, timeout=60)
    assert own_site.witness.counts("end") == dict.fromkeys(range(11), 1)


def test_after_jetstreams_directory_was_deleted_every_accepted_event_is_still_handled_once(
    own_site: Site, own_servers: DevServers
) -> None:
    bus = own_site.bus(shop.build)
    first = own_site.worker(bus, groups=["Billing"])
    numbers = range(60)
    bus.publish_many([OrderPlaced(number=n) for n in numbers[:30]])
    eventually(lambda: len(own_site.witness.notes("billed")) >= 5, timeout=30)
    first.stop()
    bus.publish_many([OrderPlaced(number=n) for n in numbers[30:40]])
    assert bus.flush(timeout=10), "JetStream has them all"

    own_servers.nats.stop()
    own_servers.nats.wipe()
    bus.publish_many([OrderPlaced(number=n) for n in numbers[40:50]])
    own_servers.nats.start()
    own_site.worker(bus)
    bus.publish_many([OrderPlaced(number=n) for n in numbers[50:]])

    audited = conserved(bus, timeout=60)
    assert {h.name: h.succeeded for h in audited.handlers} == {
        "Archive.file": 60,
        "Billing.bill": 60,
        "Shipping.ship": 60,
    }
    for what in ("billed", "shipped", "filed"):
        assert own_site.witness.counts(what) == dict.fromkeys(numbers, 1)


def test_jetstream_deleted_under_running_workers_loses_nothing(
    own_site: Site, own_servers: DevServers
) -> None:
    bus = own_site.bus(orders.build)
    own_site.worker(bus, threads=2)
    bus.publish_many([OrderPlaced(number=n, seconds=0.02) for n in range(80)])
    eventually(lambda: len(own_site.witness.notes("end")) >= 5, timeout=30)
    own_servers.nats.kill()
    own_servers.nats.wipe()
    own_servers.nats.start()
    bus.publish_many([OrderPlaced(number=n) for n in range(80, 100)])
    audited = conserved(bus, timeout=60)
    assert [h.succeeded for h in audited.handlers] == [100]
    assert own_site.witness.counts("end") == dict.fromkeys(range(100), 1)
