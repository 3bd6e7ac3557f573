"""MongoDB goes away: nothing is accepted, nothing is acknowledged, and nothing is lost."""

import time

import pytest

from eventdriven_sync.devserver import DevServers
from eventdriven_sync.errors import PublishOutcomeUnknown, StoreUnavailable
from tests.apps import orders
from tests.apps.orders import OrderPlaced
from tests.apps.site import Site, conserved
from tests.polling import eventually


def test_publish_raises_within_its_deadline_while_mongodb_is_down_and_works_when_it_is_back(
    own_site: Site, own_servers: DevServers
) -> None:
    bus = own_site.bus(orders.build)
    bus.publish(OrderPlaced(number=0))
    own_servers.mongo.kill()
    # The first may be handed to a connection that nobody knows to be cut yet.
    for deadline, refusals in ((0.3, (StoreUnavailable, PublishOutcomeUnknown)), (1.5, (StoreUnavailable,))):
        began = time.monotonic()
        with pytest.raises(refusals):
            bus.publish(OrderPlaced(number=99), timeout=deadline)
        assert time.monotonic() - began < deadline + 2.0
    own_servers.mongo.start()
    bus.publish(OrderPlaced(number=1))
    own_site.worker(bus)
    conserved(bus)
    assert own_site.witness.counts("end") == {0: 1, 1: 1}, "what was refused was not accepted"


def test_publish_keeps_its_deadline_when_mongodb_is_frozen_and_repeating_it_is_one_event(
    own_site: Site, own_servers: DevServers
) -> None:
    bus = own_site.bus(orders.build)
    bus.publish(OrderPlaced(number=0))
    own_servers.mongo.pause()
    began = time.monotonic()
    with pytest.raises((StoreUnavailable, PublishOutcomeUnknown)):
        bus.publish(OrderPlaced(number=1), event_id="one", timeout=1.0)
    assert time.monotonic() - began < 4.0
    own_servers.mongo.resume()
    bus.publish(OrderPlaced(number=1), event_id="one")
    own_site.worker(bus)
    conserved(bus)
    assert own_site.witness.counts("end") == {0: 1, 1: 1}


def test_a_worker_acknowledges_nothing_while_mongodb_is_down_and_goes_on_when_it_is_back(
    own_site: Site, own_servers: DevServers
) -> None:
    bus = own_site.bus(orders.build, publish_timeout=3.0)
    worker = own_site.worker(bus, threads=2)
    bus.publish_many([OrderPlaced(number=n, gate="g") for n in range(2)])
    bus.publish_many([OrderPlaced(number=n) for n in range(2, 10)])
    eventually(lambda: len(own_site.witness.notes("start")) == 2, timeout=30)
    own_servers.mongo.kill()
    own_site.witness.note("open", gate="g")
    eventually(lambda: len(own_site.witness.notes("end")) == 2, timeout=30)

    stream, consumer = f"{own_site.settings.namespace}_Order", "Billing__bill"

    def unacknowledged() -> int:
        state = bus.broker.consumer_state(stream, consumer, timeout=5)
        assert state is not None
        return state.pending + state.ack_pending

    # Longer than ack_wait: the messages stay in hand, and no handler runs again or anew.
    until = time.monotonic() + 3.0
    eventually(lambda: unacknowledged() < 10 or time.monotonic() > until, timeout=30)
    assert unacknowledged() == 10
    assert len(own_site.witness.notes("start")) == 2
    own_servers.mongo.start()
    conserved(bus, timeout=60)
    assert own_site.witness.counts("start") == dict.fromkeys(range(10), 1)
    assert own_site.witness.counts("end") == dict.fromkeys(range(10), 1)
    assert worker.busy() == []


def test_a_worker_stops_within_its_grace_while_mongodb_is_down_and_the_work_is_done_later(
    own_site: Site, own_servers: DevServers
) -> None:
    bus = own_site.bus(orders.build, publish_timeout=3.0)
    process = own_site.worker_process("orders", "--threads", 2, "--grace", 1, publish_timeout=1.0)
    bus.publish_many([OrderPlaced(number=n, gate="g" if n < 2 else "") for n in range(6)])
    eventually(lambda: len(own_site.witness.notes("start")) == 2, timeout=30)
    own_servers.mongo.kill()
    own_site.witness.note("open", gate="g")
    eventually(lambda: len(own_site.witness.notes("end")) == 2, timeout=30)
    process.signal(15)
    assert process.wait(timeout=30) == 0
    own_servers.mongo.start()
    own_site.worker_process("orders", "--threads", 2)
    conserved(bus, timeout=60)
    assert set(own_site.witness.counts("end")) == set(range(6))
