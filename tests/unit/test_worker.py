"""The worker on memory adapters: its options, its life, its signals, and what it gives back."""

import gc
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from eventdriven_sync import EventBus, Settings, Worker, event
from eventdriven_sync import worker as module
from eventdriven_sync.broker import Incoming
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.errors import (
    ConfigurationError,
    InvalidOption,
    PayloadNotSerializable,
    StoreUnavailable,
)
from eventdriven_sync.heap import FIRST
from eventdriven_sync.records import Delivery
from eventdriven_sync.store import EventQuery
from eventdriven_sync.stores.memory import MemoryStore
from tests.polling import eventually
from tests.unit.rig import Gate, Renamed

ADA = Renamed(name="Ada")


@pytest.fixture
def bus() -> Iterator[EventBus]:
    settings = Settings(nats="memory://", mongo="memory://", namespace="unit", poll_every=0.02)
    with EventBus(settings=settings, broker=MemoryBroker(), store=MemoryStore()) as made:
        yield made


@pytest.fixture
def seen(bus: EventBus) -> list[str]:
    names: list[str] = []
    bus.group("Blog").handler(Renamed, name="keep")(lambda e: names.append(e.name))
    return names


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"threads": 1025}, r"to 1,?024"),
        ({"threads": 2.5}, "whole number"),
        ({"threads": True}, "threads"),
        ({"grace": -1}, "grace"),
        ({"grace": "long"}, "grace"),
        ({"groups": ["Nobody"]}, "no group 'Nobody'"),
        ({"handlers": ["Blog.nothing"]}, r"no handler 'Blog\.nothing'"),
        ({"groups": "Blog"}, "give a list"),
        ({"groups": []}, "no handlers"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(
    bus: EventBus, seen: list[str], options: dict[str, Any], fact: str
) -> None:
    with pytest.raises(ConfigurationError, match=fact):
        Worker(bus, **options)


def test_a_worker_without_handlers_is_refused(bus: EventBus) -> None:
    with pytest.raises(ConfigurationError, match="import the modules"):
        Worker(bus)


def test_an_event_class_that_cannot_travel_is_refused_before_anything_arrives(bus: EventBus) -> None:
    @event("RigUser.impossible")
    class Impossible:
        number: complex

    bus.group("Blog").handler(Impossible)(print)
    with pytest.raises(PayloadNotSerializable, match="complex"):
        Worker(bus)


def test_it_runs_what_is_published_and_signs_off(bus: EventBus, seen: list[str]) -> None:
    worker = Worker(bus, threads=2).start()
    bus.publish_many([Renamed(name=str(i)) for i in range(50)])
    eventually(lambda: len(seen) == 50)
    assert [record.id for record in bus.store.directory.workers()] == [worker.id]
    worker.stop(grace=5)
    assert bus.store.directory.workers() == []
    worker.stop()


def test_it_runs_only_the_handlers_it_is_asked_for(bus: EventBus, seen: list[str]) -> None:
    other: list[str] = []
    bus.group("Other").handler(Renamed, name="keep")(lambda e: other.append(e.name))
    worker = Worker(bus, groups=["Blog"]).start()
    bus.publish(ADA)
    eventually(lambda: seen == ["Ada"])
    worker.stop(grace=1)
    assert other == []


def test_a_worker_starts_once(bus: EventBus, seen: list[str]) -> None:
    worker = Worker(bus).start()
    with pytest.raises(ConfigurationError, match="started before"):
        worker.start()
    worker.stop(grace=1)


def test_a_worker_that_could_not_start_can_be_stopped(bus: EventBus, seen: list[str]) -> None:
    bus.store.unavailable = True  # type: ignore[attr-defined]
    worker = Worker(bus)
    with pytest.raises(StoreUnavailable):
        worker.start()
    worker.stop(grace=0)


def test_it_waits_for_a_broker_that_is_down(bus: EventBus, seen: list[str]) -> None:
    bus.broker.disconnect()  # type: ignore[attr-defined]
    worker = Worker(bus).start()
    bus.broker.connect()  # type: ignore[attr-defined]
    bus.publish(ADA)
    eventually(lambda: seen == ["Ada"])
    worker.stop(grace=1)


def test_unfinished_deliveries_are_released_at_once(bus: EventBus) -> None:
    gate = Gate()
    bus.group("Blog").handler(Renamed, name="wait")(gate)
    worker = Worker(bus, threads=1).start()
    bus.publish(ADA)
    gate.await_entry()
    worker.stop(grace=0.05)
    names: list[int] = []
    again = Worker(bus, threads=1)
    gate.open()
    again.start()
    eventually(lambda: bus.store.deliveries.states([]) == {} and gate.entered.acquire(timeout=1))
    names.append(1)
    again.stop(grace=5)
    assert names


def test_a_claimed_delivery_that_did_not_run_is_given_back_uncounted(bus: EventBus) -> None:
    gate = Gate()
    bus.group("Blog").handler(Renamed, name="wait")(gate)
    bus.open()
    bus.broker.drop_dispatches = True  # type: ignore[attr-defined]
    receipt = bus.publish(ADA)
    worker = Worker(bus, threads=1)
    worker.start()
    key = f"Blog.wait:{receipt.id}"
    event = bus.store.events.get([receipt.id])[receipt.id]
    from eventdriven_sync.records import Delivery

    bus.store.deliveries.insert_pending(
        [
            Delivery(
                id=key, handler="Blog.wait", event_id=event.id, event_name=event.name,
                operation_id=event.operation_id, state="pending", created_at=event.published_at, event=event,
            )
        ]
    )  # fmt: skip
    gate.await_entry()
    worker.stop(grace=0.05)
    found = bus.dead_letters.get(key)
    assert (found.state, found.attempts) == ("retrying", 0)
    gate.open()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_handlers_end(bus: EventBus, seen: list[str], number: signal.Signals) -> None:
    before = signal.getsignal(number)
    bus.group("Blog").handler(Renamed, name="kill")(lambda e: os.kill(os.getpid(), number))
    threading.Timer(0.2, bus.publish, [ADA]).start()
    assert Worker(bus, threads=1).run() == 0
    assert signal.getsignal(number) == before
    eventually(lambda: bus.store.deliveries.states([]) == {})


def test_the_garbage_collector_is_calm_while_a_process_is_a_worker(bus: EventBus) -> None:
    before, inside = gc.get_threshold(), list[int]()

    @bus.group("Blog").handler(Renamed)
    def look(event: Renamed) -> None:
        inside.append(gc.get_threshold()[0])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Timer(0.2, bus.publish, [ADA]).start()
    assert Worker(bus, threads=1).run() == 0
    assert inside == [FIRST]
    assert gc.get_threshold() == before


def test_a_second_signal_ends_the_process_at_once(
    bus: EventBus, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(module.os, "_exit", codes.append)
    worker = Worker(bus)
    worker._on_signal(signal.SIGTERM, None)
    assert codes == []
    worker._on_signal(signal.SIGTERM, None)
    assert codes == [module.EXIT_HARD]


def test_a_process_full_of_hung_handlers_ends_with_an_error(bus: EventBus) -> None:
    gate = Gate()
    bus.group("Blog").handler(Renamed, name="hang", timeout=0.01)(gate)
    publishing = threading.Timer(0.1, bus.publish_many, [[Renamed(name=str(i)) for i in range(12)]])
    publishing.start()
    assert Worker(bus, threads=1, grace=0.1).run() == module.EXIT_HUNG
    gate.open()


def test_messages_that_come_before_the_consumption_is_known_are_kept(bus: EventBus, seen: list[str]) -> None:
    worker = Worker(bus, threads=1)
    arrival = module._Arrival(worker._pool, worker._lanes["Blog.keep"])
    message = Incoming(
        stream="s", sequence=1, subject="unit.RigUser.renamed", data=b"", headers={}, delivered=1,
        stored_at=worker._began_at, reply="r",
    )  # fmt: skip
    arrival.deliver([message])
    assert worker._pool.waiting == 0
    arrival.connect(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption):
        Worker(bus, threads=0)


# --- pausing ------------------------------------------------------------------------------------------


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers look at once at what was paused."""
    monkeypatch.setattr(module, "OBEYING", 0.02)


def test_a_paused_handler_rests_while_the_others_run(bus: EventBus, seen: list[str], attentive: None) -> None:
    other: list[str] = []
    bus.group("Other").handler(Renamed, name="keep")(lambda e: other.append(e.name))
    worker = Worker(bus).start()
    directory = bus.store.directory
    assert directory.pause("Blog.keep", by="ada", reason="mail is down")
    eventually(lambda: worker._lanes["Blog.keep"].paused)
    bus.publish_many([Renamed(name=str(n)) for n in range(3)])
    eventually(lambda: len(other) == 3)
    assert seen == []
    assert directory.resume("Blog.keep")
    eventually(lambda: sorted(seen) == ["0", "1", "2"])
    worker.stop(grace=1)


def test_a_worker_that_starts_while_its_handler_is_paused_obeys(
    bus: EventBus, seen: list[str], attentive: None
) -> None:
    bus.open()
    bus.store.directory.pause("Blog.keep", by="ada", reason="")
    bus.publish(ADA)
    worker = Worker(bus).start()
    assert worker._lanes["Blog.keep"].paused
    bus.store.directory.resume("Blog.keep")
    eventually(lambda: seen == ["Ada"])
    worker.stop(grace=1)


def test_what_was_claimed_for_a_paused_handler_is_given_back(bus: EventBus, attentive: None) -> None:
    gate = Gate()
    bus.group("Blog").handler(Renamed, name="keep", threads=1)(gate)
    worker = Worker(bus, threads=1).start()
    bus.publish(ADA)
    gate.await_entry()
    ids = [f"Blog.keep:{number}" for number in range(2)]
    store = bus.store
    event = store.events.find(EventQuery())[0]
    store.deliveries.insert_pending(
        [
            Delivery(
                id=each,
                handler="Blog.keep",
                event_id=each.partition(":")[2],
                event_name=event.name,
                operation_id=event.operation_id,
                state="pending",
                created_at=event.published_at,
                event=event,
            )
            for each in ids
        ]
    )
    eventually(lambda: set(store.deliveries.states(ids).values()) == {"running"})
    store.directory.pause("Blog.keep", by="ada", reason="")
    eventually(lambda: set(store.deliveries.states(ids).values()) == {"retrying"})
    assert [found.attempts for found in map(store.deliveries.get, ids) if found] == [0, 0]
    gate.open()
    worker.stop(grace=5)


def test_a_worker_that_cannot_read_what_is_paused_goes_on(
    bus: EventBus, seen: list[str], attentive: None, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(bus).start()
    bus.store.unavailable = True  # type: ignore[attr-defined]
    eventually(lambda: "paused could not be read" in caplog.text)
    bus.store.unavailable = False  # type: ignore[attr-defined]
    bus.publish(ADA)
    eventually(lambda: seen == ["Ada"])
    worker.stop(grace=1)
