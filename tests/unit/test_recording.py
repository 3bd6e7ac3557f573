"""Events that the broker alone accepts, in memory: publishing and recording them, and who else must know."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import attrs
import pytest

from eventdriven_sync import EventBus, Worker, event
from eventdriven_sync.audit import audit
from eventdriven_sync.broker import RECORDER, Incoming
from eventdriven_sync.confirmed import recorder_of
from eventdriven_sync.counting import MINUTE, Counting, floor
from eventdriven_sync.envelope import new_id
from eventdriven_sync.errors import (
    BrokerPermissionDenied,
    BrokerUnavailable,
    ConsumerConflict,
    EventIdReused,
    NotFound,
    OperationTimeout,
    PayloadNotSerializable,
    PublishOutcomeUnknown,
    StoreError,
    StoreUnavailable,
)
from eventdriven_sync.reconciler import LATE, Reconciler
from eventdriven_sync.recording import MARK, WAITED, is_marked, marked, record
from eventdriven_sync.store import EventQuery
from eventdriven_sync.testing import memory
from tests.polling import eventually
from tests.unit.rig import Renamed, Rig


@event("Page.viewed", key="page", durability="broker")
@attrs.frozen(kw_only=True)
class Viewed:
    page: str


@event("Page.closed", durability="broker")
@attrs.frozen(kw_only=True)
class PageClosed:
    page: str


HOME = Viewed(page="home")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(reconcile_after=20.0)
    yield made
    made.close()


def stored(rig: Rig, name: str = "Page.viewed") -> list[str]:
    return [e.data["page"] for e in rig.store.events.find(EventQuery(names=(name,), oldest_first=True))]


def take(rig: Rig, count: int = 1) -> list[Incoming]:
    """What the recorder's consumer gets."""
    got: list[Incoming] = []
    consumption = rig.broker.consume(rig.bus.topology.recorder("Page"), got.extend, window=1000)
    rig.broker.pump()
    consumption.stop()
    assert len(got) == count
    return got


def record_all(rig: Rig) -> None:
    """What a worker's recorder does, once."""
    got: list[Incoming] = []
    consumption = rig.broker.consume(rig.bus.topology.recorder("Page"), got.extend, window=1000)
    rig.broker.pump()
    done, _ = record(rig.store, rig.bus.codec, "rig", got)
    consumption.finish(done)
    consumption.stop()


# --- publishing ---------------------------------------------------------------------------------------


def test_it_is_accepted_by_the_broker_and_stored_by_nobody_yet(rig: Rig) -> None:
    receipt = rig.bus.publish(HOME)
    assert (receipt.operation_id, receipt.duplicate) == (receipt.id, False)
    assert stored(rig) == []
    [message] = take(rig)
    assert rig.bus.codec.unpack(message.data).id == receipt.id
    assert is_marked(message.data)


def test_without_the_broker_nothing_is_accepted_and_without_the_store_it_is(rig: Rig) -> None:
    rig.bus.open()
    rig.store.unavailable = True
    rig.bus.publish(HOME)
    rig.broker.disconnect()
    with pytest.raises(BrokerUnavailable):
        rig.bus.publish(HOME)
    rig.broker.connect()
    assert len(take(rig)) == 1


def test_an_unanswered_one_is_unknown_and_publishing_it_again_is_one_event(rig: Rig) -> None:
    rig.broker.lose_confirmations = True
    with pytest.raises(PublishOutcomeUnknown) as caught:
        rig.bus.publish(HOME, event_id="view-1")
    assert caught.value.event_ids == ("view-1",)
    rig.broker.lose_confirmations = False
    assert rig.bus.publish(HOME, event_id="view-1").duplicate
    record_all(rig)
    assert stored(rig) == ["home"]


def test_an_id_given_twice_is_one_event_of_the_first_operation_also_without_the_store(rig: Rig) -> None:
    with rig.bus.operation("first") as first:
        assert not rig.bus.publish(HOME, event_id="view-1").duplicate
    rig.store.unavailable = True
    again = rig.bus.publish(HOME, event_id="view-1")
    assert (again.duplicate, again.operation_id) == (True, first.id)


def test_an_id_with_other_content_is_refused(rig: Rig) -> None:
    rig.bus.publish(HOME, event_id="view-1")
    with pytest.raises(EventIdReused, match="view-1"):
        rig.bus.publish(Viewed(page="other"), event_id="view-1")


def test_many_of_both_kinds_have_their_receipts_in_order(rig: Rig) -> None:
    events = [Viewed(page="0"), Renamed(name="1"), PageClosed(page="2"), Renamed(name="3")]
    ids = [f"id-{n}" for n in range(4)]
    rig.bus.publish(events[1], event_id=ids[1])
    receipts = rig.bus.publish_many(events, event_ids=ids)
    assert [receipt.id for receipt in receipts] == ids
    assert [receipt.duplicate for receipt in receipts] == [False, True, False, False]
    assert [e.data["name"] for e in rig.store.events.find(EventQuery(names=("RigUser.renamed",)))] == [
        "3",
        "1",
    ]
    take(rig, 2)


def test_what_a_handler_publishes_is_stored_with_its_outcome(rig: Rig) -> None:
    @rig.group.handler(Renamed)
    def look(_: Renamed) -> None:
        rig.bus.publish(HOME)
        rig.bus.publish(PageClosed(page="now"), immediate=True)

    with memory(rig.bus) as run:
        rig.bus.publish(Renamed(name="Ada"))
        run.drain()
        assert [e.source for e in run.envelopes("Page.viewed")] == ["Blog.look"]
        [closed] = run.envelopes("Page.closed")
        assert closed.parent_ids == run.envelopes("Page.viewed")[0].parent_ids
        [stream] = run.broker.streams("rig_Page", timeout=1)
        assert stream.messages == 2
        marks = [is_marked(m.data) for m in run.broker._streams["rig_Page"].messages.values()]
        assert sorted(marks) == [False, True], "only what the broker alone accepted is recorded"


def test_in_a_transaction_it_is_stored_with_the_writes(rig: Rig) -> None:
    with rig.bus.transaction():
        rig.bus.publish(HOME)
    assert stored(rig) == ["home"]
    [message] = take(rig)
    assert not is_marked(message.data)


def test_a_recorder_of_other_settings_is_a_conflict(rig: Rig) -> None:
    rig.broker.declare([attrs.evolve(rig.bus.topology.recorder("Page"), ack_wait=7.0)], timeout=1)
    with pytest.raises(ConsumerConflict):
        rig.bus.publish(HOME)


# --- the mark -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (marked(b'{"id":"1"}'), True),
        (b'{ "durability" : "broker", "id": "1" }', True),
        (b'{"id":"1","data":{"durability":"broker"}}', False),
        (b'{"id":"1","data":{"a":1,"durability":"broker"} }', False),
        (b'{"id":"1","durability":"store"}', False),
        (b'{"id":"1"}', False),
        (b'["durability"]', False),
        (b'"durability"', False),
        (b'{"durability"', False),
        (b"", False),
        (b"[" * 100_000 + b'"durability"', False),
    ],
)
def test_only_a_member_of_the_envelope_is_a_mark(body: bytes, found: bool) -> None:
    assert is_marked(body) is found


def test_a_marked_message_is_the_same_event(rig: Rig) -> None:
    body = rig.bus.codec.pack(rig.envelope(Renamed(name="Ada")), "rig")
    assert marked(body).endswith(MARK)
    assert rig.bus.codec.unpack(marked(body)) == rig.bus.codec.unpack(body)


# --- recording ----------------------------------------------------------------------------------------


def test_what_is_marked_is_stored_once_and_the_rest_is_passed_over(rig: Rig) -> None:
    rig.bus.publish_many([Viewed(page=str(n)) for n in range(3)])
    with rig.bus.transaction():
        rig.bus.publish(Viewed(page="stored"))
    got = take(rig, 4)
    for _ in range(2):
        assert record(rig.store, rig.bus.codec, "rig", got) == (got, [])
        assert sorted(stored(rig)) == ["0", "1", "2", "stored"]


def test_a_marked_message_that_is_no_event_keeps_nobody_from_theirs(rig: Rig) -> None:
    rig.bus.publish(HOME)
    [good] = take(rig)
    bad = attrs.evolve(good, data=marked(b'{"id":"1"}'), sequence=2)
    assert record(rig.store, rig.bus.codec, "rig", [bad, good]) == ([bad, good], [])
    assert stored(rig) == ["home"]


def test_what_the_store_refuses_comes_again_unless_it_can_never_hold_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.bus.publish_many([Viewed(page=str(n)) for n in range(3)])
    got = take(rig, 3)
    told = [StoreError("a validator"), PayloadNotSerializable("too large a number"), None]
    monkeypatch.setattr(rig.store.events, "record", lambda events: told)
    assert record(rig.store, rig.bus.codec, "rig", got) == (got[1:], got[:1])


def test_what_waited_for_its_connection_has_the_time_at_which_it_was_accepted(rig: Rig) -> None:
    rig.bus.publish(HOME)
    [message] = take(rig)
    late = attrs.evolve(message, stored_at=message.stored_at + timedelta(seconds=40))
    record(rig.store, rig.bus.codec, "rig", [late])
    [found] = rig.store.events.find(EventQuery(names=("Page.viewed",)))
    assert abs(late.stored_at - WAITED - found.published_at) < timedelta(milliseconds=1)


# --- the worker's recorder ----------------------------------------------------------------------------


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus(nats="memory://", mongo="memory://", namespace="rec") as made:
        yield made


def views(bus: EventBus) -> int:
    return bus.store.events.count(["Page.viewed"], since=None)


def test_a_worker_records_what_its_handlers_get(bus: EventBus) -> None:
    seen: list[str] = []

    @bus.group("G").handler(Viewed)
    def look(view: Viewed) -> None:
        seen.append(view.page)

    worker = Worker(bus, threads=2).start()
    bus.publish_many([Viewed(page=str(n)) for n in range(50)])
    eventually(lambda: views(bus) == 50 and len(seen) == 50)
    eventually(lambda: audit(bus).unrecorded == 0)
    worker.stop()


def test_a_worker_records_streams_whose_classes_it_does_not_know(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventdriven_sync.recording.LOOK_EVERY", 0.05)
    other = EventBus(nats="memory://", mongo="memory://", namespace="rec", broker=bus.broker, store=bus.store)
    other.publish(HOME)
    assert bus.topology.recorders() == []
    recorder = recorder_of(bus)
    recorder.start()
    eventually(lambda: views(bus) == 1)
    recorder.stop(timeout=5)


def test_it_waits_for_a_store_that_is_away_and_acknowledges_nothing_meanwhile(
    bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    bus.open()
    recorder = recorder_of(bus)
    store: Any = bus.store
    store.unavailable = True
    bus.publish(HOME)
    caplog.set_level(logging.WARNING)
    recorder.start()
    eventually(lambda: "waits for the event store" in caplog.text)
    state = bus.broker.consumer_state("rec_Page", RECORDER, timeout=1)
    assert state is not None
    assert (state.ack_pending, state.acknowledged) == (1, 0)
    assert recorder.unrecorded_since() is not None
    store.unavailable = False
    eventually(lambda: views(bus) == 1 and recorder.unrecorded_since() is None)
    recorder.stop(timeout=5)


def test_stopping_while_the_store_is_away_gives_everything_back(
    bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    bus.open()
    recorder = recorder_of(bus)
    store: Any = bus.store
    bus.publish(HOME)
    store.unavailable = True
    recorder.start()
    eventually(lambda: "waits for the event store" in caplog.text)
    recorder.stop(timeout=5)
    store.unavailable = False
    second = recorder_of(bus)
    second.start()
    eventually(lambda: views(bus) == 1, timeout=5)
    second.stop(timeout=5)


def test_an_unexpected_error_does_not_end_it(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    bus.open()
    recorder = recorder_of(bus)
    calls: list[int] = []
    look = recorder._look

    def fails_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("once")
        look()

    monkeypatch.setattr(recorder, "_look", fails_once)
    bus.publish(HOME)
    recorder.start()
    eventually(lambda: views(bus) == 1)
    recorder.stop(timeout=5)


# --- what else must know ------------------------------------------------------------------------------


def test_the_watermark_waits_for_what_is_not_recorded_and_late_events_are_brought(rig: Rig) -> None:
    rig.handler(lambda e: None, Viewed, name="keep")
    rig.bus.open()
    reconciler = Reconciler(store=rig.store, broker=rig.broker, settings=rig.bus.settings, holder="one")
    rig.bus.publish(HOME)
    published_at = rig.clock.time
    rig.broker.delete_consumer("rig_Page", "Blog__keep", timeout=1)  # it will not come from there
    for _ in range(10):
        rig.clock.advance(60)
        assert reconciler.round() == 0
    [handler] = rig.store.directory.handlers()
    assert handler.reconciled_until is None or handler.reconciled_until <= published_at - timedelta(
        seconds=LATE
    )
    record_all(rig)
    assert reconciler.round() == 1
    rig.clock.advance(60)
    assert reconciler.round() == 0
    [handler] = rig.store.directory.handlers()
    assert handler.reconciled_until is not None
    assert handler.reconciled_until > published_at


def test_the_watermark_stays_while_the_recorder_cannot_be_asked(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*args: Any, **options: Any) -> Any:
        raise BrokerPermissionDenied("no")

    rig.handler(lambda e: None, Viewed, name="keep")
    rig.bus.open()
    rig.clock.advance(600)
    monkeypatch.setattr(rig.broker, "consumer_state", denied)
    reconciler = Reconciler(store=rig.store, broker=rig.broker, settings=rig.bus.settings, holder="one")
    assert reconciler.round() == 0
    assert rig.store.directory.handlers()[0].reconciled_until is None


def test_counts_wait_for_what_is_not_recorded_but_not_for_ever(rig: Rig) -> None:
    rig.clock.time = floor(rig.clock.time, MINUTE)
    waiting_since = rig.clock.time
    counting = Counting(rig.store, unrecorded_since=lambda: waiting_since)
    rig.store.events.append(
        [attrs.evolve(rig.envelope(Renamed(name="A")), published_at=waiting_since)], timeout=1
    )
    rig.clock.advance(600)
    counting.round()
    assert rig.store.figures.counted_until() is None
    rig.clock.advance(3600)
    counting.round()
    assert rig.store.figures.counted_until() is not None


def test_an_audit_tells_what_is_not_recorded_and_calls_nothing_lost(rig: Rig) -> None:
    rig.handler(lambda e: None, Viewed, name="keep")
    rig.bus.publish_many([Viewed(page=str(n)) for n in range(3)])
    rig.clock.advance(600)
    found = audit(rig.bus)
    assert (found.ok, found.unrecorded, found.handlers[0].accepted) == (True, 3, 0)
    record_all(rig)
    found = audit(rig.bus)
    assert (found.ok, found.unrecorded, found.handlers[0].accepted) == (True, 0, 3)
    assert found.handlers[0].missing == 3


def test_waiting_for_a_chain_waits_for_its_events_to_be_recorded(bus: EventBus) -> None:
    with bus.operation("browse") as operation:
        bus.publish(HOME)
    with pytest.raises(OperationTimeout, match="not recorded yet"):
        operation.wait(timeout=0.2)
    recorder = recorder_of(bus)
    recorder.start()
    chain = operation.wait(timeout=5)
    assert [node.event.name for node in chain.walk()] == ["Page.viewed"]
    recorder.stop(timeout=5)


def test_an_event_outside_operations_can_be_waited_for_at_once(bus: EventBus) -> None:
    receipt = bus.publish(HOME)
    recorder = recorder_of(bus)
    recorder.start()
    chain = bus.operations.wait(receipt.operation_id, timeout=5)
    assert [node.event.id for node in chain.walk()] == [receipt.id]
    with pytest.raises(NotFound):
        bus.operations.wait(new_id(), timeout=5)
    recorder.stop(timeout=5)


def test_waiting_goes_on_while_the_broker_is_away(bus: EventBus) -> None:
    broker: Any = bus.broker
    with bus.operation("browse") as operation:
        bus.publish(HOME)
    broker.disconnect()
    with pytest.raises(OperationTimeout):
        operation.wait(timeout=0.1)


def test_a_test_in_memory_sees_them_like_others(rig: Rig) -> None:
    seen: list[str] = []

    @rig.group.handler(Viewed)
    def look(view: Viewed) -> None:
        seen.append(view.page)

    with memory(rig.bus) as run:
        rig.bus.publish(HOME)
        run.assert_published(Viewed, times=1, page="home")
        run.drain()
        assert seen == ["home"]
        assert run.deliveries(state="succeeded")[0].event_name == "Page.viewed"


def test_a_handler_may_be_done_before_its_event_is_recorded(rig: Rig) -> None:
    handler = rig.handler(lambda e: None, Viewed, name="keep")
    receipt = rig.bus.publish(HOME)
    [message] = take(rig)
    attempt = rig.arrived(handler, message.data, subject=message.subject)
    rig.executor.read(attempt)
    rig.settler.settle([(attempt, rig.executor.run(attempt))])
    assert rig.store.deliveries.states([f"Blog.keep:{receipt.id}"]) == {
        f"Blog.keep:{receipt.id}": "succeeded"
    }
    record(rig.store, rig.bus.codec, "rig", [message])
    rig.clock.advance(600)
    found = audit(rig.bus)
    assert (found.ok, found.handlers[0].succeeded, found.handlers[0].missing) == (True, 1, 0)


def test_without_the_store_it_cannot_be_opened_first(rig: Rig) -> None:
    rig.store.unavailable = True
    with pytest.raises(StoreUnavailable):
        rig.bus.publish(HOME)
