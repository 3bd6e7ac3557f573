"""Events with ``durability="broker"`` on real servers: NATS accepts, workers record them, none is lost."""

import random
import threading
import time

import pytest

from eventdriven_sync import EventBus
from eventdriven_sync.broker import RECORDER
from eventdriven_sync.brokers.bridge import Bridge
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.errors import BrokerUnavailable, PublishOutcomeUnknown
from eventdriven_sync.store import EventQuery
from tests.apps import views
from tests.apps.site import Site, conserved
from tests.apps.views import PageViewed
from tests.polling import eventually


def numbers(bus: EventBus, name: str = "Page.viewed") -> list[int]:
    """Of every event of this name in the store."""
    query = EventQuery(names=(name,), limit=10_000)
    return sorted(event.data["number"] for event in bus.store.events.find(query))


def accounted(bus: EventBus, accepted: int, *, timeout: float = 60.0) -> None:
    """Every accepted event is recorded once and handled, and the audit agrees."""
    eventually(lambda: len(numbers(bus)) >= accepted, timeout=timeout)
    audited = conserved(bus, timeout=timeout)
    assert audited.handlers[0].succeeded == accepted
    assert numbers(bus) == numbers(bus, "Visit.counted")
    eventually(lambda: conserved(bus).unrecorded == 0, timeout=timeout)


class Publishers:
    """Threads that publish until they are told to stop, under ids that they use again when unsure."""

    def __init__(self, bus: EventBus, threads: int = 3) -> None:
        self.accepted: set[int] = set()
        self._bus = bus
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        while not self._ended.wait(0.005):  # what the workers can keep up with
            self._publish(number)
            number += len(self._threads)

    def _publish(self, number: int) -> None:
        while True:
            try:
                self._bus.publish(PageViewed(number=number), event_id=f"view-{number}", timeout=2.0)
            except (BrokerUnavailable, PublishOutcomeUnknown):
                continue
            self.accepted.add(number)
            return

    def stop(self) -> set[int]:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)
        return self.accepted


def test_a_chain_that_begins_with_such_an_event_is_complete_when_it_was_waited_for(site: Site) -> None:
    bus = site.bus(views.build)
    site.worker(bus)
    with bus.operation("browse") as operation:
        bus.publish_many([PageViewed(number=n, fails=n) for n in range(3)])
    chain = operation.wait(timeout=30)
    assert chain.succeeded
    assert sorted(node.event.name for node in chain.walk()) == ["Page.viewed"] * 3 + ["Visit.counted"] * 3
    attempts = sorted(d.attempts for d in chain.deliveries)
    assert attempts == [1, 2, 3]
    conserved(bus)


def test_publishing_the_same_id_again_is_a_duplicate_of_the_first_chain(site: Site) -> None:
    bus = site.bus(views.build)
    with bus.operation("first") as first:
        bus.publish(PageViewed(number=1), event_id="view-1")
    again = bus.publish(PageViewed(number=1), event_id="view-1")
    assert (again.duplicate, again.operation_id) == (True, first.id)
    site.worker(bus)
    accounted(bus, 1)


def test_workers_that_are_killed_again_and_again_record_and_handle_every_event(site: Site) -> None:
    changes = {"max_lost": 100}
    bus = site.bus(views.build, **changes)
    publishers = Publishers(bus)
    chance = random.Random(7)
    for _ in range(3):
        worker = site.worker_process("views", "--threads", 4, **changes).ready()
        wanted = len(site.witness.notes("end")) + chance.randrange(50, 200)
        eventually(lambda wanted=wanted: len(site.witness.notes("end")) >= wanted, timeout=30)
        worker.kill()
    accepted = publishers.stop()
    site.worker_process("views", "--threads", 4, **changes)
    accounted(bus, len(accepted))
    assert set(numbers(bus)) == accepted
    assert set(site.witness.counts("end")) == accepted


def test_nats_killed_and_started_again_loses_nothing_it_confirmed(
    own_site: Site, own_servers: DevServers
) -> None:
    bus = own_site.bus(views.build)
    own_site.worker(bus)
    publishers = Publishers(bus)
    for _ in range(3):
        before = len(publishers.accepted)
        eventually(lambda before=before: len(publishers.accepted) >= before + 100, timeout=30)
        own_servers.nats.kill()
        own_servers.nats.start()
    accepted = publishers.stop()
    accounted(bus, len(accepted))
    assert set(numbers(bus)) == accepted


def test_without_nats_nothing_is_accepted_within_the_deadline(
    own_site: Site, own_servers: DevServers
) -> None:
    bus = own_site.bus(views.build)
    bus.publish(PageViewed(number=0))
    own_servers.nats.kill()
    began = time.monotonic()
    with pytest.raises((BrokerUnavailable, PublishOutcomeUnknown)):
        bus.publish(PageViewed(number=1), timeout=1.0)
    with pytest.raises(BrokerUnavailable, match="nothing was sent"):
        bus.publish(PageViewed(number=2), timeout=1.0)
    assert time.monotonic() - began < 4.0
    own_servers.nats.start()
    assert not bus.publish(PageViewed(number=3)).duplicate


def test_a_call_that_meets_a_restart_returns_when_nats_is_back(
    own_site: Site, own_servers: DevServers
) -> None:
    bus = own_site.bus(views.build)
    bus.publish(PageViewed(number=0))
    own_servers.nats.kill()
    waiting = threading.Thread(
        target=lambda: bus.publish_many([PageViewed(number=n) for n in range(1, 2001)], timeout=30)
    )
    waiting.start()
    own_servers.nats.start()
    waiting.join(30)
    assert not waiting.is_alive()
    own_site.worker(bus)
    accounted(bus, 2001)


def test_mongodb_may_be_away_while_such_events_are_accepted(own_site: Site, own_servers: DevServers) -> None:
    bus = own_site.bus(views.build, publish_timeout=2.0)
    own_site.worker(bus)
    bus.publish(PageViewed(number=0))
    accounted(bus, 1)
    own_servers.mongo.kill()
    began = time.monotonic()
    bus.publish_many([PageViewed(number=n) for n in range(1, 501)])
    assert time.monotonic() - began < 2.0
    own_servers.mongo.start()
    accounted(bus, 501)


def test_a_wiped_stream_comes_back_with_its_recorder(own_site: Site, own_servers: DevServers) -> None:
    bus = own_site.bus(views.build)
    bus.publish(PageViewed(number=0))
    own_site.worker(bus)
    accounted(bus, 1)
    own_servers.nats.stop()
    own_servers.nats.wipe()
    own_servers.nats.start()
    bus.publish_many([PageViewed(number=n) for n in range(1, 101)])
    accounted(bus, 101)
    stream = f"{bus.settings.namespace}_Page"
    assert bus.broker.consumer_state(stream, RECORDER, timeout=5) is not None


def test_the_bridge_is_crossed_once_for_a_whole_call(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = site.bus(views.build)
    bus.publish(PageViewed(number=0))
    crossed: list[object] = []
    post = Bridge.post
    monkeypatch.setattr(Bridge, "post", lambda self, action: (crossed.append(action), post(self, action))[1])
    bus.publish_many([PageViewed(number=n) for n in range(1, 1001)])
    assert len(crossed) == 1
