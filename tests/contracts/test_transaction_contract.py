"""What every ``Store`` promises of transactions and of being without a server, on memory and MongoDB."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import attrs
import pytest

from eventdriven_sync.errors import EventIdReused, StoreUnavailable
from eventdriven_sync.outcome import Done
from eventdriven_sync.store import NEW, DeliveryQuery, EventQuery, OperationQuery, Store
from tests.contracts.samples import Samples
from tests.contracts.stages import TIMEOUT, StoreStage


class Abort(Exception):
    """What a user's block raises."""


# --- transactions -------------------------------------------------------------------------------------


def test_the_writes_of_a_transaction_appear_when_it_ends(stage: StoreStage, given: Samples) -> None:
    event, emitted = given.event(), given.full_event()
    settlement = given.settlement(event, Done(), emitted=(emitted,))
    with stage.store.transaction(timeout=TIMEOUT) as session:
        assert stage.store.events.append([event], timeout=TIMEOUT, session=session) == [False]
        assert stage.store.deliveries.settle_in(session, settlement)
        assert stage.store.events.get([event.id, emitted.id]) == {}
        assert stage.store.deliveries.states([settlement.delivery_id]) == {}
    assert set(stage.store.events.get([event.id, emitted.id])) == {event.id, emitted.id}
    assert stage.store.deliveries.states([settlement.delivery_id]) == {settlement.delivery_id: "succeeded"}


def test_a_transaction_that_raises_writes_nothing(stage: StoreStage, given: Samples) -> None:
    event, emitted = given.event(), given.full_event()
    settlement = given.settlement(event, Done(), emitted=(emitted,))

    def block() -> None:
        with stage.store.transaction(timeout=TIMEOUT) as session:
            stage.store.events.append([event], timeout=TIMEOUT, session=session)
            stage.store.deliveries.settle_in(session, settlement)
            raise Abort

    with pytest.raises(Abort):
        block()
    assert stage.store.events.get([event.id, emitted.id]) == {}
    assert stage.store.deliveries.states([settlement.delivery_id]) == {}


def test_a_body_that_raises_writes_nothing_and_runs_once(stage: StoreStage, given: Samples) -> None:
    event = given.event()
    runs = []

    def body(session: Any) -> None:
        runs.append(1)
        stage.store.events.append([event], timeout=TIMEOUT, session=session)
        raise Abort

    with pytest.raises(Abort):
        stage.store.run_transaction(body, timeout=TIMEOUT)
    assert stage.store.events.get([event.id]) == {}
    assert runs == [1]


def test_a_transaction_without_writes_is_harmless(stage: StoreStage) -> None:
    with stage.store.transaction(timeout=TIMEOUT):
        pass
    assert stage.store.run_transaction(lambda session: 42, timeout=TIMEOUT) == 42


def test_a_transaction_may_begin_with_events_and_add_more(stage: StoreStage, given: Samples) -> None:
    events = [given.event() for _ in range(4)]
    with stage.store.transaction(timeout=TIMEOUT) as session:
        assert stage.store.events.append(events[:3], timeout=TIMEOUT, session=session) == [False] * 3
        assert stage.store.events.append(events[3:], timeout=TIMEOUT, session=session) == [False]
    assert len(stage.store.events.get([event.id for event in events])) == 4


def test_a_stored_event_is_told_in_a_transaction_too(stage: StoreStage, given: Samples) -> None:
    known, new = given.event(), given.event()
    stage.store.events.append([known], timeout=TIMEOUT)

    def body(session: Any) -> list[bool]:
        return stage.store.events.append([known, new], timeout=TIMEOUT, session=session)

    assert stage.store.run_transaction(body, timeout=TIMEOUT) == [True, False]
    assert len(stage.store.events.get([known.id, new.id])) == 2


def test_a_reused_id_ends_a_transaction(stage: StoreStage, given: Samples) -> None:
    known, new = given.event(), given.event()
    stage.store.events.append([known], timeout=TIMEOUT)
    reused = attrs.evolve(known, data={})
    with pytest.raises(EventIdReused):
        with stage.store.transaction(timeout=TIMEOUT) as session:
            stage.store.events.append([new, reused], timeout=TIMEOUT, session=session)
    assert stage.store.events.get([known.id, new.id]) == {known.id: known}


def test_a_claimed_delivery_is_settled_in_a_transaction(stage: StoreStage, given: Samples) -> None:
    event = given.event()
    stage.store.deliveries.insert_pending([given.delivery(event)])
    stage.store.deliveries.claim_due([given.handler], limit=5, lease=60, worker="w", token="claim-1")
    settlement = given.settlement(event, Done(), token="claim-1", claimed=True)

    def body(session: Any) -> bool:
        return stage.store.deliveries.settle_in(session, settlement)

    assert stage.store.run_transaction(body, timeout=TIMEOUT)
    record = stage.store.deliveries.get(settlement.delivery_id)
    assert record is not None
    assert (record.state, record.event, record.due_at) == ("succeeded", None, None)


@pytest.mark.parametrize(("ending_within", "expected"), [(None, 2), (40.0, 1)])
def test_a_lease_that_is_prolonged_during_the_transaction_makes_it_run_again_and_one_left_alone_does_not(
    stage: StoreStage, given: Samples, ending_within: float | None, expected: int
) -> None:
    """Its view of the delivery is older than the new lease."""
    event, runs = given.event(), 0
    record = given.delivery(event, token="claim-1", attempts=1)
    stage.store.deliveries.start([record], lease=60)
    settlement = given.settlement(event, Done(), token="claim-1", claimed=True)
    renew = partial(
        stage.store.deliveries.renew, [record.id], token="claim-1", lease=60, ending_within=ending_within
    )

    def body(session: Any) -> None:
        nonlocal runs
        runs += 1
        stage.store.events.append([given.event()], timeout=TIMEOUT, session=session)
        assert runs == 2 or renew() == set()
        assert stage.store.deliveries.settle_in(session, settlement)
        assert runs == 2 or renew() == set()

    stage.store.run_transaction(body, timeout=TIMEOUT)
    assert runs == expected
    assert stage.store.deliveries.states([record.id]) == {record.id: "succeeded"}


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize("first", ["succeeded", "dead", "retrying"])
def test_a_transaction_learns_that_it_is_fenced_off(
    stage: StoreStage, given: Samples, first: str, claimed: bool
) -> None:
    event = given.event()
    stage.store.deliveries.settle([given.settlement(event, given.outcome(first), token="owner")])
    late = given.settlement(event, Done(), token="late", claimed=claimed)

    def block() -> None:
        with stage.store.transaction(timeout=TIMEOUT) as session:
            if not stage.store.deliveries.settle_in(session, late):
                raise Abort

    with pytest.raises(Abort):
        block()
    record = stage.store.deliveries.get(late.delivery_id)
    assert record is not None
    assert (record.state, record.token) == (first, "owner")


@pytest.mark.parametrize("claimed", [False, True])
def test_a_transaction_learns_that_its_attempt_is_recorded_already(
    stage: StoreStage, given: Samples, claimed: bool
) -> None:
    # The business writes beside the first record must not be committed a second time.
    event = given.event()
    if claimed:
        stage.store.deliveries.start([given.delivery(event, token="same", attempts=1)], lease=60)
    settlement = given.settlement(event, Done(), token="same", claimed=claimed)

    def body(session: Any) -> None:
        if not stage.store.deliveries.settle_in(session, settlement):
            raise Abort

    stage.store.run_transaction(body, timeout=TIMEOUT)
    before = stage.store.deliveries.get(settlement.delivery_id)
    with pytest.raises(Abort):
        stage.store.run_transaction(body, timeout=TIMEOUT)
    assert stage.store.deliveries.get(settlement.delivery_id) == before


def test_of_two_transactions_on_one_delivery_one_records(stage: StoreStage, given: Samples) -> None:
    event, together = given.event(), threading.Barrier(2)
    own = {token: given.event() for token in ("one", "two")}

    def settle(token: str) -> bool:
        first = iter([True])

        def body(session: Any) -> None:
            if next(first, False):
                together.wait(TIMEOUT)
            stage.store.events.append([own[token]], timeout=TIMEOUT, session=session)
            settlement = given.settlement(event, Done(), token=token)
            if not stage.store.deliveries.settle_in(session, settlement):
                raise Abort

        try:
            stage.store.run_transaction(body, timeout=TIMEOUT)
        except Abort:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(own, pool.map(settle, own), strict=True))
    assert sorted(answers.values()) == [False, True]
    stored = stage.store.events.get([each.id for each in own.values()])
    assert set(stored) == {own[token].id for token, recorded in answers.items() if recorded}


# --- opening, and being without a server --------------------------------------------------------------


def test_opening_again_is_harmless(stage: StoreStage) -> None:
    stage.store.open(timeout=TIMEOUT)


def test_the_store_tells_what_it_is(stage: StoreStage) -> None:
    assert stage.store.info()["version"]


CALLS: dict[str, Callable[[Store, Samples], Any]] = {
    "open": lambda store, given: store.open(timeout=0.2),
    "append": lambda store, given: store.events.append([given.event()], timeout=0.2),
    "get event": lambda store, given: store.events.get(["x"]),
    "find events": lambda store, given: store.events.find(EventQuery()),
    "count events": lambda store, given: store.events.count(["A.b"], since=None),
    "save operation": lambda store, given: store.events.save_operation(given.operation(), timeout=0.2),
    "operation": lambda store, given: store.events.operation("x"),
    "find operations": lambda store, given: store.events.find_operations(OperationQuery()),
    "states": lambda store, given: store.deliveries.states(["x"]),
    "settle": lambda store, given: store.deliveries.settle([given.settlement(given.event(), Done())]),
    "start": lambda store, given: store.deliveries.start([given.delivery(given.event())], lease=1),
    "claim": lambda store, given: store.deliveries.claim_due(
        ["A.b"], limit=1, lease=1, worker="w", token="t"
    ),
    "renew": lambda store, given: store.deliveries.renew(["x"], token="t", lease=1),
    "release": lambda store, given: store.deliveries.release(["x"], token="t"),
    "insert pending": lambda store, given: store.deliveries.insert_pending([given.delivery(given.event())]),
    "next due": lambda store, given: store.deliveries.next_due(["A.b"]),
    "get delivery": lambda store, given: store.deliveries.get("x"),
    "find deliveries": lambda store, given: store.deliveries.find(DeliveryQuery()),
    "count deliveries": lambda store, given: store.deliveries.count(DeliveryQuery()),
    "retry dead": lambda store, given: store.deliveries.retry_dead(DeliveryQuery(), by="ada"),
    "discard": lambda store, given: store.deliveries.discard(DeliveryQuery(), reason="r", by="ada"),
    "register": lambda store, given: store.directory.register([given.handler_record(starts_at=NEW)]),
    "handlers": lambda store, given: store.directory.handlers(),
    "retire": lambda store, given: store.directory.retire("A.b"),
    "reconciled": lambda store, given: store.directory.reconciled([(given.handler_record(), given.now)]),
    "now": lambda store, given: store.directory.now(),
    "lead": lambda store, given: store.directory.lead("role", "me", ttl=1),
    "resign": lambda store, given: store.directory.resign("role", "me"),
    "heartbeat": lambda store, given: store.directory.heartbeat(given.worker()),
    "workers": lambda store, given: store.directory.workers(),
    "forget worker": lambda store, given: store.directory.forget_worker("x"),
    "write stats": lambda store, given: store.directory.write_stats([{"_id": "x", "minute": given.now}]),
    "stats": lambda store, given: store.directory.stats(since=given.now),
    "begin": lambda store, given: store.idempotency.begin(
        given.tag, fingerprint="f", token="t", lease=1, keep=1
    ),
    "finish": lambda store, given: store.idempotency.finish(
        given.tag, token="t", reply=given.reply(), keep=1
    ),
    "abandon": lambda store, given: store.idempotency.abandon(given.tag, token="t"),
    "transaction": lambda store, given: store.run_transaction(
        lambda session: store.events.append([given.event()], timeout=0.2, session=session), timeout=0.2
    ),
}


def test_without_a_server_every_call_ends_in_time(stage: StoreStage, given: Samples) -> None:
    store = stage.unreachable()
    began = time.monotonic()
    with ThreadPoolExecutor(len(CALLS)) as pool:
        calls = {name: pool.submit(call, store, given) for name, call in CALLS.items()}
    errors = {name: type(call.exception()) for name, call in calls.items()}
    assert errors == dict.fromkeys(CALLS, StoreUnavailable)
    assert time.monotonic() - began < 5
    store.close()
