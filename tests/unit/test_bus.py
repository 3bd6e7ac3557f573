"""The bus: what publishing accepts, refuses, stores and sends, and its life."""

import asyncio
import enum
import os
import threading
import warnings
from datetime import timedelta
from typing import Any

import attrs
import pytest

from eventdriven_sync import EventBus, event, publishing
from eventdriven_sync.broker import Outgoing
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.config import MAX_PUBLISH_TIMEOUT
from eventdriven_sync.envelope import utcnow
from eventdriven_sync.errors import (
    Closed,
    ConfigurationError,
    EventDrivenError,
    EventIdReused,
    InvalidEventId,
    InvalidEventType,
    InvalidOption,
    PublishOutcomeUnknown,
    StoreUnavailable,
)
from eventdriven_sync.reconciler import LATE
from eventdriven_sync.stores.memory import MemoryStore
from eventdriven_sync.testing import memory
from tests.unit.rig import Greeted, Renamed

ADA = Renamed(name="Ada")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(manual=True)


@pytest.fixture
def bus(store: MemoryStore, broker: MemoryBroker) -> EventBus:
    return EventBus(nats="memory://", mongo="memory://", namespace="unit", store=store, broker=broker)


def stored(store: MemoryStore) -> int:
    return store.events.count(["RigUser.renamed", "RigUser.greeted"], since=None)


def sent(broker: MemoryBroker) -> int:
    return broker.status().dispatched


@pytest.mark.parametrize("how", ["publish", "transaction"])
def test_nobody_tries_for_so_long_that_the_reconciler_has_looked_before_the_event_is_there(
    bus: EventBus, how: str
) -> None:
    assert LATE >= MAX_PUBLISH_TIMEOUT + 30, "clocks differ"
    with pytest.raises(InvalidOption, match=r"timeout is 61: give a number from 0\.01 to 60"):
        bus.publish(ADA, timeout=61) if how == "publish" else bus.transaction(timeout=61).__enter__()


def test_what_waited_for_the_chunks_before_it_gets_a_new_time_in_the_store_and_on_the_wire(
    bus: EventBus, store: MemoryStore, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Outgoing] = []
    monkeypatch.setattr(broker, "dispatch", lambda messages: sent.extend(messages) or len(messages))
    monkeypatch.setattr(publishing, "CHUNK", 2)
    now, appended = utcnow(), store.events.append

    def slowly(*arguments: Any, **options: Any) -> list[bool]:
        monkeypatch.setattr(store.directory, "estimated_now", lambda timeout: now)
        return appended(*arguments, **options)

    # Building the events and storing the first chunk takes two minutes.
    earlier = now - timedelta(minutes=2)
    monkeypatch.setattr(store.directory, "estimated_now", lambda timeout: earlier)
    monkeypatch.setattr(store.events, "append", slowly)
    receipts = bus.publish_many([ADA] * 5)
    times = [store.events.get([receipt.id])[receipt.id].published_at for receipt in receipts]
    assert [now - at > timedelta(minutes=1) for at in times] == [True, True, False, False, False]
    on_the_wire = [bus.codec.unpack(m.data, headers={}, subject=m.subject, namespace="unit") for m in sent]
    assert [envelope.published_at for envelope in on_the_wire] == times


def test_events_are_dated_by_the_stores_clock_and_not_by_the_publishers(
    store: MemoryStore, broker: MemoryBroker
) -> None:
    # Ours is an hour ahead of the store's.
    late = MemoryStore(clock=lambda: utcnow() - timedelta(hours=1))
    receipt = EventBus(namespace="unit", broker=broker, store=late).publish(ADA)
    age = utcnow() - late.events.get([receipt.id])[receipt.id].published_at
    assert timedelta(minutes=59) < age < timedelta(minutes=61)


def test_an_event_is_stored_and_sent_and_has_its_receipt(
    bus: EventBus, store: MemoryStore, broker: MemoryBroker
) -> None:
    receipt = bus.publish(ADA)
    found = store.events.get([receipt.id])[receipt.id]
    assert (found.name, found.data, found.key) == ("RigUser.renamed", {"name": "Ada", "number": 0}, "Ada")
    assert (found.operation_id, found.depth, found.parent_ids) == (receipt.id, 0, ())
    assert (receipt.operation_id, receipt.duplicate, sent(broker)) == (receipt.id, False, 1)


def test_a_broker_that_is_down_does_not_keep_an_event_from_being_accepted(
    bus: EventBus, store: MemoryStore, broker: MemoryBroker
) -> None:
    broker.disconnect()
    bus.publish(ADA)
    assert (stored(store), sent(broker)) == (1, 0)


def test_without_the_store_nothing_is_accepted_or_sent(
    bus: EventBus, store: MemoryStore, broker: MemoryBroker
) -> None:
    store.unavailable = True
    with pytest.raises(StoreUnavailable):
        bus.publish(ADA)
    store.unavailable = False
    assert (stored(store), sent(broker)) == (0, 0)


def test_publishing_an_id_twice_is_one_event(bus: EventBus, store: MemoryStore) -> None:
    assert not bus.publish(ADA, event_id="one").duplicate
    assert bus.publish(ADA, event_id="one").duplicate
    with pytest.raises(EventIdReused) as caught:
        bus.publish(Renamed(name="Eve"), event_id="one")
    assert caught.value.event_id == "one"
    assert stored(store) == 1


def test_equal_keys_of_one_event_name_are_one_event(bus: EventBus) -> None:
    first = bus.publish(ADA, idempotency_key="order 5/ü")
    assert bus.publish(ADA, idempotency_key="order 5/ü").id == first.id
    assert bus.publish(Greeted(name="Ada"), idempotency_key="order 5/ü").id != first.id


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"event_id": ""}, InvalidEventId),
        ({"event_id": "a b"}, InvalidEventId),
        ({"event_id": "x" * 65}, InvalidEventId),
        ({"event_id": 5}, InvalidEventId),
        ({"idempotency_key": ""}, InvalidOption),
        ({"idempotency_key": 5}, InvalidOption),
        ({"idempotency_key": "x" * 1001}, InvalidOption),
        ({"event_id": "a", "idempotency_key": "b"}, InvalidOption),
    ],
    ids=str,
)
def test_a_wrong_id_is_refused_before_anything_is_stored(
    bus: EventBus, store: MemoryStore, options: dict[str, Any], error: type[EventDrivenError]
) -> None:
    with pytest.raises(error):
        bus.publish(ADA, **options)
    assert stored(store) == 0


@pytest.mark.parametrize(
    "wrong", [None, {}, "Ada", Renamed, object()], ids=["none", "dict", "text", "class", "object"]
)
def test_what_is_no_event_is_refused(bus: EventBus, wrong: object) -> None:
    with pytest.raises((InvalidEventType, EventDrivenError)):
        bus.publish(wrong)


def test_a_wrong_event_among_many_stops_all(bus: EventBus, store: MemoryStore) -> None:
    with pytest.raises(EventDrivenError):
        bus.publish_many([ADA, object()])
    with pytest.raises(InvalidOption, match="2 entries for 1"):
        bus.publish_many([ADA], event_ids=["a", "b"])
    assert (stored(store), bus.publish_many([])) == (0, [])


def test_many_events_have_a_receipt_each_in_order(bus: EventBus, store: MemoryStore) -> None:
    receipts = bus.publish_many([ADA] * 2500, event_ids=[f"id-{i}" for i in range(2500)])
    assert [receipt.id for receipt in receipts] == [f"id-{i}" for i in range(2500)]
    assert stored(store) == 2500


def test_a_transaction_stores_and_then_sends(bus: EventBus, store: MemoryStore, broker: MemoryBroker) -> None:
    with bus.transaction():
        bus.publish(ADA)
        assert (stored(store), sent(broker)) == (0, 0)
    assert (stored(store), sent(broker)) == (1, 1)


def test_an_aborted_transaction_leaves_nothing(
    bus: EventBus, store: MemoryStore, broker: MemoryBroker
) -> None:
    def fail() -> None:
        with bus.transaction():
            bus.publish(ADA)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (stored(store), sent(broker)) == (0, 0)
    bus.publish(ADA)
    assert stored(store) == 1


def test_transactions_do_not_nest(bus: EventBus) -> None:
    with bus.transaction(), pytest.raises(InvalidOption, match="open already"), bus.transaction():
        pass


def test_a_transactional_handler_is_in_a_transaction_already(bus: EventBus) -> None:
    errors: list[Exception] = []

    @bus.group("Blog").handler(Renamed, transactional=True)
    def handle(event: Renamed, session: object) -> None:
        try:
            with bus.transaction():
                pass
        except InvalidOption as error:
            errors.append(error)

    with memory(bus) as run:
        bus.publish(ADA)
        run.drain()
    assert len(errors) == 1


def test_a_transaction_inside_a_handler_stores_its_events_with_its_writes(bus: EventBus) -> None:
    group = bus.group("Blog")

    @group.handler(Renamed)
    def handle(event: Renamed) -> None:
        with bus.transaction():
            group.publish(Greeted(name="in"))
        raise ValueError("after the commit")

    with memory(bus) as run:
        bus.publish(ADA)
        run.drain(retries=False)
        run.assert_published(Greeted, times=1)


def test_the_source_of_a_group_is_recorded(bus: EventBus, store: MemoryStore) -> None:
    receipts = [bus.group("Blog").publish(ADA), *bus.group("Blog").publish_many([ADA])]
    found = store.events.get([receipt.id for receipt in receipts])
    assert {each.source for each in found.values()} == {"Blog"}


def test_a_closed_bus_refuses_everything(bus: EventBus) -> None:
    bus.publish(ADA)
    bus.close()
    bus.close()
    for use in (
        lambda: bus.publish(ADA),
        bus.open,
        lambda: bus.dead_letters.count(),
        lambda: bus.operations.get("x"),
    ):
        with pytest.raises(Closed):
            use()


def test_handlers_registered_after_the_first_use_are_registered_too(
    bus: EventBus, store: MemoryStore
) -> None:
    bus.publish(ADA)
    bus.group("Blog").handler(Renamed, name="late")(lambda e: None)
    bus.publish(ADA)
    assert [record.name for record in store.directory.handlers()] == ["Blog.late"]


def test_an_event_is_never_older_than_the_handlers_of_its_own_process(
    bus: EventBus, store: MemoryStore
) -> None:
    bus.group("Blog").handler(Renamed, name="keep")(lambda e: None)
    receipt = bus.publish(ADA)
    (record,) = store.directory.handlers()
    assert record.starts_at is not None
    assert store.events.get([receipt.id])[receipt.id].published_at >= record.starts_at


def test_publishing_in_an_event_loop_warns_once(bus: EventBus) -> None:
    async def main() -> None:
        bus.publish(ADA)
        bus.publish(ADA)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
    ours = [each for each in caught if "asyncio loop" in str(each.message)]
    assert len(ours) == 1
    assert ours[0].filename == __file__


def test_a_forked_child_is_not_blocked_by_a_lock_somebody_held(bus: EventBus) -> None:
    bus._lock.acquire()
    bus.topology._lock.acquire()
    child = os.fork()
    if child == 0:
        signal_free = bus._lock.acquire(timeout=1) and bus.topology._lock.acquire(timeout=1)
        os._exit(0 if signal_free else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_many_threads_publish_at_once(bus: EventBus, store: MemoryStore) -> None:
    def work() -> None:
        for _ in range(50):
            bus.publish(ADA)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert stored(store) == 400


def test_settings_come_from_the_environment() -> None:
    made = EventBus.from_env({"EVENTDRIVEN_NATS": "memory://", "EVENTDRIVEN_NAMESPACE": "shop"})
    assert (made.settings.nats, made.settings.namespace) == ("memory://", "shop")
    with pytest.raises(ConfigurationError):
        EventBus.from_env({"EVENTDRIVEN_LEASE": "soon"})


def test_other_adapters_are_used_inside_the_block_only(bus: EventBus, store: MemoryStore) -> None:
    other = MemoryStore()
    with bus.adapters(broker=MemoryBroker(manual=True), store=other):
        bus.publish(ADA)
    assert (stored(other), stored(store)) == (1, 0)
    bus.publish(attrs.evolve(ADA, name="Eve"))
    assert (stored(other), stored(store)) == (1, 1)


def test_a_key_travels_as_its_encoded_value(bus: EventBus) -> None:
    class Colour(enum.Enum):
        RED = "red"

    @event("RigUser.painted", key="colour")
    class Painted:
        colour: Colour

    receipt = bus.publish(Painted(colour=Colour.RED))
    assert bus.store.events.get([receipt.id])[receipt.id].key == "red"


def test_the_first_publish_gives_up_in_its_own_time_also_while_it_connects(bus: EventBus) -> None:
    asked: list[float] = []
    bus.store.open = lambda *, timeout: asked.append(timeout)  # type: ignore[method-assign]
    bus.publish(ADA, timeout=0.5)
    assert asked == [0.5]


def test_a_receipt_that_cannot_be_completed_does_not_say_that_nothing_was_stored(
    bus: EventBus, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus.publish(ADA, event_id="first")

    def away(ids: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(store.events, "get", away)
    with pytest.raises(PublishOutcomeUnknown, match="stored"):
        bus.publish_many([Greeted(name="Ada"), ADA], event_ids=["second", "first"])
    assert stored(store) == 2
