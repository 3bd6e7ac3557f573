"""What only the memory store can show: its clock, its switch, and conflicts at a chosen moment."""

from typing import Any

import attrs
import pytest

from eventdriven_sync.errors import StoreError, StoreUnavailable
from eventdriven_sync.outcome import Done
from eventdriven_sync.store import EventQuery
from eventdriven_sync.stores.memory import MemoryStore
from tests.contracts.samples import Samples
from tests.contracts.stages import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def given(clock: FakeClock) -> Samples:
    return Samples(clock.time)


def test_a_worker_silent_for_a_minute_is_gone(store: MemoryStore, clock: FakeClock, given: Samples) -> None:
    store.directory.heartbeat(given.worker())
    clock.advance(60)
    assert len(store.directory.workers()) == 1
    clock.advance(0.001)
    assert store.directory.workers() == []


def test_switched_off_and_on_again_it_kept_everything(store: MemoryStore, given: Samples) -> None:
    event = given.event()
    store.events.append([event], timeout=1)
    store.unavailable = True
    assert store.unavailable
    with pytest.raises(StoreUnavailable):
        store.events.append([given.event()], timeout=1)
    store.unavailable = False
    assert store.events.get([event.id]) == {event.id: event}
    assert store.events.count([event.name], since=None) == 1


def test_switched_off_during_a_transaction_nothing_is_committed(store: MemoryStore, given: Samples) -> None:
    event = given.event()

    def body(session: Any) -> None:
        store.events.append([event], timeout=1, session=session)
        store.unavailable = True

    with pytest.raises(StoreUnavailable):
        store.run_transaction(body, timeout=1)
    store.unavailable = False
    assert store.events.get([event.id]) == {}


def test_a_transaction_overtaken_by_another_write_runs_again(store: MemoryStore, given: Samples) -> None:
    event = given.event()
    late = given.settlement(event, Done(), token="late")
    answers = []

    def body(session: Any) -> None:
        answers.append(store.deliveries.settle_in(session, late))
        store.deliveries.settle([attrs.evolve(late, token="first")])

    store.run_transaction(body, timeout=1)
    assert answers == [True, False]
    record = store.deliveries.get(late.delivery_id)
    assert record is not None
    assert record.token == "first"


def test_a_transaction_block_overtaken_by_another_write_fails(store: MemoryStore, given: Samples) -> None:
    late = given.settlement(given.event(), Done(), token="late")

    def block() -> None:
        with store.transaction(timeout=1) as session:
            store.deliveries.settle_in(session, late)
            store.deliveries.settle([attrs.evolve(late, token="first")])

    with pytest.raises(StoreUnavailable, match="nothing was written"):
        block()


def test_a_transaction_overtaken_every_time_gives_up(store: MemoryStore, given: Samples) -> None:
    def body(session: Any) -> None:
        settlement = given.settlement(given.event(), Done())
        store.deliveries.settle_in(session, settlement)
        store.deliveries.settle([attrs.evolve(settlement, token="first")])

    with pytest.raises(StoreUnavailable):
        store.run_transaction(body, timeout=0)


def test_a_session_sees_its_own_writes(store: MemoryStore, given: Samples) -> None:
    event = given.event()
    with store.transaction(timeout=1) as session:
        assert store.events.append([event], timeout=1, session=session) == [False]
        assert store.events.append([event], timeout=1, session=session) == [True]


def test_a_session_ends_with_its_transaction(store: MemoryStore, given: Samples) -> None:
    with store.transaction(timeout=1) as session:
        pass
    for stale in (session, object()):
        with pytest.raises(StoreError, match="session"):
            store.events.append([given.event()], timeout=1, session=stale)


def test_what_is_stored_and_what_is_handed_out_share_no_document(store: MemoryStore, given: Samples) -> None:
    event = given.event()
    store.events.append([event], timeout=1)
    event.data["tags"][1]["deep"].append("later")
    store.events.get([event.id])[event.id].data["tags"].clear()
    (found,) = store.events.find(EventQuery(names=(event.name,)))
    assert found.data["tags"] == ["a", {"deep": [1, 2.5, None, True]}]


def test_a_delivery_handed_out_shares_no_document_with_the_stored_one(
    store: MemoryStore, given: Samples
) -> None:
    record = given.delivery(given.event(), raw=given.raw())
    store.deliveries.insert_pending([record])
    claimed = store.deliveries.claim_due([given.handler], limit=1, lease=9, worker="w", token="t")
    found = store.deliveries.get(record.id)
    assert found is not None
    for held in (record, *claimed, found):
        assert held.event is not None
        assert held.raw is not None
        held.event.data["tags"].clear()
        held.raw.headers.clear()
    kept = store.deliveries.get(record.id)
    assert kept is not None
    assert (kept.event, kept.raw) != (record.event, record.raw)
    assert kept.event is not None
    assert kept.event.data["tags"]
