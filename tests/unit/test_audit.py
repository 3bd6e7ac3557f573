"""The conservation law: every way to violate it is found, and nothing else is."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import attrs
import pytest

from eventdriven_sync.audit import MAX_SUSPECTS, PAGE, HandlerAudit, audit
from eventdriven_sync.broker import Incoming
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.bus import EventBus
from eventdriven_sync.config import Settings
from eventdriven_sync.envelope import Envelope, new_id, utcnow
from eventdriven_sync.errors import BrokerUnavailable, StoreUnavailable
from eventdriven_sync.events import event
from eventdriven_sync.outcome import Dead, Discarded, Done, Failure, RetryAt
from eventdriven_sync.records import Delivery, Settlement, delivery_id
from eventdriven_sync.store import DeliveryQuery
from eventdriven_sync.stores.memory import MemoryStore

HANDLER = "Blog.rename"
OLD = 120.0


@event("AuditUser.renamed")
@attrs.frozen(kw_only=True)
class Renamed:
    name: str


@event("AuditPost.written")
@attrs.frozen(kw_only=True)
class Written:
    title: str


class Clock:
    def __init__(self) -> None:
        self.time = utcnow()

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class Scene:
    """A bus with one handler, a broker that delivers by hand, and time that stands still."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(clock=self.clock)
        self.broker = MemoryBroker(clock=self.clock, manual=True)
        self.bus = EventBus(
            settings=Settings(nats="memory://", mongo="memory://", namespace="audit"),
            broker=self.broker,
            store=self.store,
        )
        self.bus.group("Blog").handler(Renamed, Written, name="rename")(lambda event: None)
        self.bus.open()
        self.arrived: list[Incoming] = []

    def publish(
        self, count: int = 1, *, name: str = "AuditUser.renamed", dispatch: bool = True
    ) -> list[Envelope]:
        made = [self._envelope(name) for _ in range(count)]
        self.store.events.append(made, timeout=1)
        if dispatch:
            self.bus.dispatch(made)
        return made

    def receive(self, name: str = "AuditUser") -> Any:
        """Take everything out of the stream's consumer; finish it with the returned consumption."""
        spec = next(
            s
            for s in self.bus.topology.consumers(self.bus.handlers[HANDLER], None)
            if s.stream.name.endswith(name)
        )
        consumption = self.broker.consume(spec, self.arrived.extend, window=100_000)
        while self.broker.pump():
            pass
        return consumption

    def settle(self, events: list[Envelope], outcome: Any = None) -> None:
        self.store.deliveries.settle([self._settlement(each, outcome or Done()) for each in events])

    def handled(self, count: int = 1) -> list[Envelope]:
        """Events that were published, handled and acknowledged."""
        made = self.publish(count)
        consumption = self.receive()
        self.settle(made)
        consumption.finish(list(self.arrived))
        consumption.stop()
        self.arrived.clear()
        return made

    def audit(self, **options: Any) -> HandlerAudit:
        (found,) = audit(self.bus, **options).handlers
        return found

    def _envelope(self, name: str) -> Envelope:
        id = new_id()
        return Envelope(
            id=id, name=name, version=1, data={"name": "Ada"}, published_at=self.clock(), operation_id=id
        )

    def _settlement(self, event: Envelope, outcome: Any) -> Settlement:
        return Settlement(
            handler=HANDLER,
            event_id=event.id,
            event_name=event.name,
            operation_id=event.operation_id,
            outcome=outcome,
            token=new_id(),
            claimed=False,
            started_at=self.clock(),
            duration_ms=1.0,
            worker="w",
            event=event,
        )


@pytest.fixture
def scene() -> Scene:
    return Scene()


def failure(clock: Clock) -> Failure:
    return Failure(
        error_type="Oops",
        message="",
        traceback="",
        failed_at=clock(),
        attempt=1,
        generation=0,
        worker="w",
        duration_ms=1,
    )


def delivery(scene: Scene, event: Envelope, **changes: Any) -> Delivery:
    given = {
        "id": delivery_id(HANDLER, event.id),
        "handler": HANDLER,
        "event_id": event.id,
        "event_name": event.name,
        "operation_id": event.operation_id,
        "state": "pending",
        "created_at": scene.clock(),
    }
    return Delivery(**{**given, **changes})


# --- what is in order -------------------------------------------------------------------------------------


def test_a_handler_without_events_is_in_order(scene: Scene) -> None:
    found = scene.audit()
    assert (found.name, found.accepted, found.missing, found.ok) == (HANDLER, 0, 0, True)


def test_every_state_is_counted_under_its_name(scene: Scene) -> None:
    reason = failure(scene.clock)
    outcomes = [Done(), Done(), RetryAt(after=60, failure=reason), Dead(reason="rejected", failure=reason)]
    outcomes += [Discarded(reason="obsolete")]
    for outcome in outcomes:
        scene.settle(scene.publish(), outcome)
    (waiting,), (running,) = scene.publish(), scene.publish()
    scene.store.deliveries.insert_pending([delivery(scene, waiting)])
    scene.store.deliveries.start([delivery(scene, running, token="t")], lease=30)
    scene.receive().finish(scene.arrived)
    scene.clock.advance(OLD)

    found = scene.audit()

    assert attrs.asdict(found) == {
        "name": HANDLER,
        "accepted": 7,
        "pending": 1,
        "running": 1,
        "retrying": 1,
        "succeeded": 2,
        "dead": 1,
        "discarded": 1,
        "in_consumer": 0,
        "missing": 0,
        "lost": 0,
        "lost_examples": (),
    }
    assert found.ok


def test_events_that_wait_in_the_consumer_are_not_lost(scene: Scene) -> None:
    scene.publish(3)
    scene.clock.advance(OLD)
    found = scene.audit()
    assert (found.accepted, found.missing, found.in_consumer, found.ok) == (3, 3, 3, True)


def test_delivered_and_unacknowledged_events_are_not_lost(scene: Scene) -> None:
    scene.publish(2)
    scene.receive()
    scene.clock.advance(OLD)
    found = scene.audit()
    assert (found.missing, found.in_consumer, found.ok) == (2, 2, True)


def test_a_young_event_may_be_on_its_way_to_the_broker(scene: Scene) -> None:
    scene.publish(dispatch=False)
    scene.clock.advance(scene.bus.settings.reconcile_after)
    found = scene.audit()
    assert (found.missing, found.lost, found.ok) == (1, 0, True)


def test_events_from_before_the_handler_are_not_owed_to_it(scene: Scene) -> None:
    scene.clock.advance(-10)
    scene.publish(dispatch=False)
    scene.clock.advance(10 + OLD)
    assert scene.audit().accepted == 0


def test_events_published_after_the_beginning_are_left_out(scene: Scene) -> None:
    scene.clock.advance(5)
    scene.publish(dispatch=False)
    scene.clock.advance(-5)
    assert scene.audit().accepted == 0


def test_events_of_other_names_are_left_out(scene: Scene) -> None:
    scene.publish(name="AuditUser.deleted")
    scene.clock.advance(OLD)
    found = scene.audit()
    assert (found.accepted, found.in_consumer, found.ok) == (0, 0, True)


def test_deliveries_of_foreign_events_do_not_count(scene: Scene) -> None:
    foreign = scene._envelope("AuditUser.renamed")
    scene.settle([foreign], Dead(reason="undecodable", failure=failure(scene.clock)))
    scene.handled()
    scene.clock.advance(OLD)
    found = scene.audit()
    assert (found.accepted, found.succeeded, found.dead, found.ok) == (1, 1, 0, True)


def test_a_retired_handler_is_owed_nothing(scene: Scene) -> None:
    scene.publish(dispatch=False)
    scene.clock.advance(OLD)
    scene.store.directory.retire(HANDLER)
    result = audit(scene.bus)
    assert (result.handlers, result.ok) == ((), True)


def test_since_limits_what_is_looked_at(scene: Scene) -> None:
    scene.publish(dispatch=False)
    scene.clock.advance(OLD)
    assert scene.audit(since=scene.clock()).accepted == 0
    assert not scene.audit().ok


def test_an_event_handled_between_both_looks_is_in_order(scene: Scene, monkeypatch: Any) -> None:
    (late,) = scene.publish()
    scene.clock.advance(OLD)
    scene.receive().forget(scene.arrived)
    look = scene.store.deliveries.states
    looks: list[int] = []

    def settle_after_the_first_look(ids: Any) -> dict[str, str]:
        found = look(ids)
        if not looks:
            scene.settle([late])
        looks.append(len(ids))
        return found

    monkeypatch.setattr(scene.store.deliveries, "states", settle_after_the_first_look)
    found = scene.audit()
    assert looks == [1, 1]
    assert (found.succeeded, found.missing, found.ok) == (1, 0, True)


def test_an_acknowledgement_during_the_audit_makes_nothing_lost(scene: Scene, monkeypatch: Any) -> None:
    made = scene.publish(3)
    scene.clock.advance(OLD)
    consumption = scene.receive()
    find = scene.store.events.find

    def settle_while_reading(query: Any) -> list[Envelope]:
        scene.settle(made[:2])
        consumption.finish(scene.arrived[:2])
        return find(query)

    monkeypatch.setattr(scene.store.events, "find", settle_while_reading)
    found = scene.audit()
    assert (found.succeeded, found.missing, found.lost) == (2, 1, 0)


# --- what is a violation ----------------------------------------------------------------------------------


def lose_before_the_broker(scene: Scene) -> list[str]:
    return [each.id for each in scene.publish(2, dispatch=False)]


def lose_with_the_stream(scene: Scene) -> list[str]:
    lost = scene.publish(2)
    scene.clock.advance(OLD)
    scene.broker.wipe()
    return [each.id for each in lost]


def lose_with_the_consumer(scene: Scene) -> list[str]:
    lost = scene.publish(2)
    scene.broker.delete_consumer("audit_AuditUser", "Blog__rename", timeout=1)
    return [each.id for each in lost]


def lose_by_acknowledging_without_record(scene: Scene) -> list[str]:
    lost = scene.publish(2)
    scene.receive().finish(scene.arrived)
    return [each.id for each in lost]


def lose_the_record(scene: Scene) -> list[str]:
    lost = scene.handled(2)
    with scene.store._state.open() as tables:
        for each in lost:
            del tables.deliveries[delivery_id(HANDLER, each.id)]
    return [each.id for each in lost]


def lose_older_than_the_backlog(scene: Scene) -> list[str]:
    lost = scene.publish(2, dispatch=False)
    scene.clock.advance(OLD)
    scene.publish(5)
    return [each.id for each in lost]


def lose_in_one_of_two_streams(scene: Scene) -> list[str]:
    lost = scene.publish(2, name="AuditPost.written", dispatch=False)
    scene.publish(5, name="AuditUser.renamed")
    return [each.id for each in lost]


@pytest.mark.parametrize(
    "lose",
    [
        lose_before_the_broker,
        lose_with_the_stream,
        lose_with_the_consumer,
        lose_by_acknowledging_without_record,
        lose_the_record,
        lose_older_than_the_backlog,
        lose_in_one_of_two_streams,
    ],
)
def test_a_loss_is_found_and_named(scene: Scene, lose: Callable[[Scene], list[str]]) -> None:
    scene.handled(3)
    lost = lose(scene)
    scene.clock.advance(OLD)

    found = scene.audit()

    assert not found.ok
    assert not audit(scene.bus).ok
    assert (found.lost, set(found.lost_examples)) == (2, set(lost))
    assert found.missing >= 2


def test_more_missing_than_the_consumer_holds_is_a_loss(scene: Scene) -> None:
    scene.publish(1)
    scene.publish(2, dispatch=False)
    scene.publish(1)
    scene.clock.advance(OLD)
    found = scene.audit()
    assert (found.missing, found.in_consumer, found.lost, found.ok) == (4, 2, 2, False)
    assert found.lost_examples


def test_the_reconciler_heals_what_the_audit_found(scene: Scene) -> None:
    from eventdriven_sync.reconciler import Reconciler

    scene.publish(2, dispatch=False)
    scene.clock.advance(OLD)
    assert not scene.audit().ok
    healer = Reconciler(store=scene.store, broker=scene.broker, settings=scene.bus.settings, holder="test")
    assert healer.round() == 2
    found = scene.audit()
    assert (found.pending, found.missing, found.ok) == (2, 0, True)


def test_the_sums_must_agree(scene: Scene) -> None:
    scene.handled(2)
    broken = attrs.evolve(scene.audit(), succeeded=1)
    assert not broken.ok


# --- size, progress, servers ------------------------------------------------------------------------------


def test_memory_stays_bounded_with_many_missing_events(scene: Scene, monkeypatch: Any) -> None:
    monkeypatch.setattr("eventdriven_sync.audit.PAGE", 10)
    monkeypatch.setattr("eventdriven_sync.audit.MAX_SUSPECTS", 30)
    scene.publish(95, dispatch=False)
    scene.clock.advance(OLD)
    asked: list[int] = []
    states = scene.store.deliveries.states
    monkeypatch.setattr(
        scene.store.deliveries, "states", lambda ids: (asked.append(len(ids)), states(ids))[1]
    )
    found = scene.audit()
    assert (found.accepted, found.lost, len(found.lost_examples)) == (95, 95, 10)
    assert max(asked) <= 10
    assert sum(asked) == 2 * 95
    assert MAX_SUSPECTS % PAGE == 0


def test_progress_is_told_page_by_page(scene: Scene, monkeypatch: Any) -> None:
    monkeypatch.setattr("eventdriven_sync.audit.PAGE", 2)
    scene.publish(5)
    scene.clock.advance(1)
    told: list[int] = []
    scene.audit(progress=told.append)
    assert told == [2, 4, 5]


def test_a_broker_out_of_reach_ends_the_audit(scene: Scene) -> None:
    scene.broker.disconnect()
    with pytest.raises(BrokerUnavailable):
        audit(scene.bus)


def test_a_store_out_of_reach_ends_the_audit(scene: Scene) -> None:
    scene.store.unavailable = True
    with pytest.raises(StoreUnavailable):
        audit(scene.bus)


def test_the_audit_changes_nothing(scene: Scene) -> None:
    scene.publish(2, dispatch=False)
    scene.clock.advance(OLD)
    before = scene.store.directory.handlers()
    scene.audit()
    assert scene.store.directory.handlers() == before
    assert scene.store.deliveries.count(DeliveryQuery()) == {}
