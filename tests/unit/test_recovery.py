"""The recovery lane: claims within its share, keeps its leases, notices those it lost."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from tenacity import wait_fixed

from eventdriven_sync import RetryPolicy
from eventdriven_sync import recovery as recovery_module
from eventdriven_sync.batching import Batch
from eventdriven_sync.errors import StoreUnavailable
from eventdriven_sync.handlers import Handler
from eventdriven_sync.lanes import MAX_CLAIM
from eventdriven_sync.outcome import Done, RetryAt
from eventdriven_sync.recovery import BREATH, RecoveryLane
from eventdriven_sync.settling import NEVER
from eventdriven_sync.stores.memory import MemorySession
from tests.polling import eventually
from tests.unit.rig import Gate, Renamed, Rig

ADA = Renamed(name="Ada")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def recovery(rig: Rig, *handlers: Handler, threads: int = 2, **options: Any) -> RecoveryLane:
    pool = rig.pool(threads=threads)
    lanes = {handler.name: pool.lane(handler) for handler in handlers}
    settings: dict[str, Any] = {
        "lease": 30.0,
        "poll_every": 0.02,
    }
    return RecoveryLane(
        store=rig.store, pool=pool, lanes=lanes, leases=rig.leases, worker="rig", **(settings | options)
    )


def pending(rig: Rig, handler: Handler, count: int) -> list[str]:
    """Deliveries that are due, as the reconciler makes them; their ids."""
    attempts = [rig.claimed(handler, ADA) for _ in range(count)]
    rig.leases.drop(attempts)
    for attempt in attempts:
        rig.store.deliveries.release([attempt.delivery_id], token=attempt.token)
    return [attempt.delivery_id for attempt in attempts]


def test_what_is_due_is_claimed_up_to_the_share_of_its_handler(rig: Rig) -> None:
    handler = rig.handler(lambda e: None, name="keep")
    pending(rig, handler, 10)
    lane = recovery(rig, handler)
    assert lane.claim() == 4
    assert lane.claim() == 0
    assert len(rig.leases) == 4


def test_slow_retries_of_one_handler_leave_room_for_those_of_another(rig: Rig) -> None:
    slow = rig.handler(lambda e: None, name="slow")
    pending(rig, slow, 50)
    rig.clock.advance(1)
    quick = rig.handler(lambda e: None, name="quick")
    pending(rig, quick, 1)
    lane = recovery(rig, slow, quick)
    while lane.claim():
        pass
    assert rig.leases.by_handler() == {"Blog.slow": 4, "Blog.quick": 1}


def test_a_batch_handler_may_hold_a_full_batch(rig: Rig) -> None:
    def count(batch: Any) -> None: ...

    handler = rig.batch_handler(count, max_size=50)
    pending(rig, handler, 60)
    assert recovery(rig, handler).claim() == 50


def test_a_handler_that_proves_fast_may_hold_more_and_a_slow_one_two_for_each_slot(rig: Rig) -> None:
    handler = rig.handler(lambda e: None, name="keep")
    lane = rig.pool(threads=2).lane(handler)
    assert lane.share == 4
    shares = {}
    for pace in (1.0, 0.01, 1e-5):
        lane.pace = pace
        shares[pace] = lane.share
    assert shares == {1.0: 4, 0.01: 40, 1e-5: MAX_CLAIM}


def test_what_is_expected_sooner_is_looked_for_sooner(rig: Rig) -> None:
    handler = rig.handler(lambda e: None, name="keep")
    lane = recovery(rig, handler, poll_every=60.0, lease=600.0)
    lane.start()
    eventually(lambda: lane._next_look > time.monotonic() + 5 and lane._next_look != NEVER)
    pending(rig, handler, 1)
    lane.expect(30.0)
    assert len(rig.leases) == 0
    lane.expect(0.0)
    eventually(lambda: len(rig.leases) == 1, timeout=5)
    lane.join(5)


def test_a_failure_tells_when_it_is_due_again(rig: Rig) -> None:
    expected: list[float] = []
    rig.settler._expect = expected.append
    policy = RetryPolicy(wait=wait_fixed(7))
    handler = rig.handler(lambda e: None, name="keep", retry=policy)
    attempt = rig.arrived(handler, ADA)
    rig.executor.read(attempt)
    rig.settler.settle([(attempt, rig.executor.settlement(attempt, ValueError("no")))])
    assert expected == [7.0]


def test_told_to_stop_it_claims_nothing_and_still_renews(rig: Rig) -> None:
    handler = rig.handler(lambda e: None, name="keep")
    pending(rig, handler, 3)
    lane = recovery(rig, handler)
    attempt = rig.claimed(handler, ADA)
    lane.stop()
    assert lane.claim() == 0
    rig.clock.advance(20)
    lane.renew()
    rig.clock.advance(20)
    assert rig.store.deliveries.renew([attempt.delivery_id], token=attempt.token, lease=30) == set()
    found = rig.store.deliveries.get(attempt.delivery_id)
    assert found is not None
    assert (found.state, found.token) == ("running", attempt.token)


def test_deliveries_of_handlers_that_are_not_run_here_are_left_alone(rig: Rig) -> None:
    pending(rig, rig.handler(lambda e: None, name="elsewhere"), 3)
    assert recovery(rig, rig.handler(lambda e: None, name="here")).claim() == 0


def test_an_attempt_that_lost_its_lease_publishes_no_more_and_does_not_begin(rig: Rig) -> None:
    handler = rig.handler(lambda e: None, name="keep")
    running, waiting = rig.claimed(handler, ADA), rig.claimed(handler, ADA)
    rig.executor.read(running)
    rig.executor.run(running)
    rig.clock.advance(31)
    rig.store.deliveries.claim_due([handler.name], limit=9, lease=30, worker="other", token="other")
    recovery(rig, handler).renew()
    assert running.handling is not None
    assert running.handling.abandoned
    assert rig.settler.admit([waiting]) == []
    assert len(rig.leases) == 0


def test_a_renewal_that_failed_is_tried_again_before_the_lease_is_over(rig: Rig) -> None:
    handler = rig.handler(lambda e: None, name="keep")
    attempt = rig.claimed(handler, ADA)
    lane = recovery(rig, handler)
    lane._renewed -= 11
    rig.store.unavailable = True
    with pytest.raises(StoreUnavailable):
        lane._round()
    rig.store.unavailable = False
    rig.clock.advance(20)
    lane._round()
    rig.clock.advance(20)
    taken = rig.store.deliveries.claim_due([handler.name], limit=9, lease=30, worker="x", token="x")
    assert taken == []
    assert rig.settler.admit([attempt]) == [attempt]


def test_the_thread_outlives_a_store_that_is_away_and_errors_of_our_own(rig: Rig) -> None:
    seen: list[str] = []
    handler = rig.handler(lambda e: seen.append(e.name), name="keep")
    lane = recovery(rig, handler)
    claim = lane.claim
    errors: list[Exception] = [StoreUnavailable("away"), RuntimeError("a bug of ours")]

    def failing() -> int:
        if errors:
            raise errors.pop()
        return claim()

    lane.claim = failing  # type: ignore[method-assign]
    rig.pools[0].start()
    lane.start()
    pending(rig, handler, 1)
    eventually(lambda: seen == ["Ada"])
    lane.join(timeout=5)


def test_a_backlog_of_retries_is_worked_off(rig: Rig) -> None:
    gate = Gate()
    gate.open()
    handler = rig.handler(gate, name="keep")
    ids = pending(rig, handler, 100)
    lane = recovery(rig, handler)
    rig.pools[0].start()
    lane.start()
    eventually(lambda: rig.store.deliveries.states(ids) == dict.fromkeys(ids, "succeeded"))
    lane.join(timeout=5)
    assert len(rig.leases) == 0


def test_a_delivery_whose_worker_died_runs_again_when_its_lease_is_over(rig: Rig) -> None:
    handler = rig.handler(lambda e: None, name="keep")
    dead_workers = rig.claimed(handler, ADA, lost=1)
    rig.leases.drop([dead_workers])
    lane = recovery(rig, handler)
    assert lane.claim() == 0
    rig.clock.advance(31)
    assert lane.claim() == 1
    (claimed,) = next(iter(rig.leases.held().values())).values()
    assert claimed.delivery is not None
    assert (claimed.delivery.lost, rig.run(claimed)) == (2, Done())


def test_a_delivery_that_never_began_is_no_dead_letter_however_many_workers_die(rig: Rig) -> None:
    handler = rig.handler(lambda e: None, name="keep")
    pending(rig, handler, 1)
    lane = recovery(rig, handler)
    for _ in range(5):
        assert lane.claim() == 1
        (waiting,) = next(iter(rig.leases.held().values())).values()
        rig.leases.drop([waiting])
        rig.clock.advance(31)
    assert lane.claim() == 1
    (claimed,) = next(iter(rig.leases.held().values())).values()
    assert claimed.delivery is not None
    assert (claimed.delivery.lost, claimed.delivery.attempts) == (1, 6)
    assert rig.settler.begin(rig.settler.admit([claimed])) == [claimed]
    record = rig.store.deliveries.get(claimed.delivery_id)
    assert record is not None
    assert record.begun
    assert rig.run(claimed) == Done()


def test_a_suspect_that_somebody_else_claimed_meanwhile_does_not_begin(rig: Rig) -> None:
    handler = rig.handler(lambda e: None, name="keep")
    late = rig.claimed(handler, ADA, lost=1, begun=False)
    rig.clock.advance(31)
    rig.store.deliveries.claim_due([handler.name], limit=9, lease=30, worker="other", token="other")
    assert rig.settler.begin([late]) == []
    assert len(rig.leases) == 0


def test_a_lane_that_never_started_can_be_joined(rig: Rig) -> None:
    recovery(rig, rig.handler(lambda e: None, name="keep")).join(timeout=1)


def test_nothing_is_claimed_for_a_paused_handler(rig: Rig) -> None:
    handler = rig.handler(lambda e: None, name="keep")
    pending(rig, handler, 3)
    pool = rig.pool(threads=2)
    lane = pool.lane(handler)
    recovering = RecoveryLane(
        store=rig.store,
        pool=pool,
        lanes={handler.name: lane},
        leases=rig.leases,
        worker="rig",
        lease=30.0,
        poll_every=0.02,
    )
    pool.pause(lane)
    assert recovering.claim() == 0
    pool.resume(lane)
    assert recovering.claim() == 3


def test_a_transaction_is_not_disturbed_by_the_renewal_of_its_lease(rig: Rig) -> None:
    """Its view of the delivery would be older than the renewal, and it would run again, for ever."""
    runs: list[str] = []

    def book(event: Renamed, session: MemorySession) -> None:
        runs.append(event.name)
        session.open()
        lane.renew()

    handler = rig.handler(book, transactional=True, timeout=2)
    lane = recovery(rig, handler)
    attempt = rig.claimed(handler, ADA)
    assert rig.run(attempt) == Done()
    assert (runs, rig.state(attempt)) == (["Ada"], "succeeded")


def test_a_renewal_on_its_way_while_a_transaction_begins_does_not_disturb_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held was looked up before the handler began, and the renewal reaches the store after that."""
    runs: list[str] = []
    renewals: list[Callable[[], set[str]]] = []
    renew = rig.store.deliveries.renew

    def sent(*arguments: Any, **options: Any) -> set[str]:
        renewals.append(partial(renew, *arguments, **options))
        return set()

    def book(event: Renamed, session: MemorySession) -> None:
        runs.append(event.name)
        session.open()
        assert [arrive() for arrive in renewals] == [set()]

    handler = rig.handler(book, transactional=True, timeout=2)
    attempt = rig.claimed(handler, ADA)
    rig.clock.advance(25)
    with monkeypatch.context() as patch:
        patch.setattr(rig.store.deliveries, "renew", sent)
        recovery(rig, handler).renew()
    assert rig.run(attempt) == Done()
    assert (runs, rig.state(attempt)) == (["Ada"], "succeeded")


@pytest.mark.parametrize("poll_every", [0.5, 4.9, 60.0])
def test_no_lease_has_less_than_half_of_it_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, poll_every: float
) -> None:
    now = [1000.0]
    monkeypatch.setattr(recovery_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    handler = rig.handler(lambda e: None, name="keep")
    lane, attempt = recovery(rig, handler, poll_every=poll_every), rig.claimed(handler, ADA)
    left = []
    for _ in range(100):
        pause = lane._round()
        now[0] += pause
        rig.clock.advance(pause)
        left.append(rig.store.deliveries.next_due([handler.name]))
    assert rig.state(attempt) == "running"
    assert 15 - BREATH <= min(filter(None, left)) < 20


def test_a_transaction_is_left_alone_as_long_as_it_may_last(rig: Rig) -> None:
    runs: list[str] = []

    def book(event: Renamed, session: MemorySession) -> None:
        runs.append(event.name)
        session.open()
        for _ in range(6):
            rig.clock.advance(10)
            lane.renew()

    handler = rig.handler(book, transactional=True, timeout=60)
    lane = recovery(rig, handler)
    attempt = rig.claimed(handler, ADA)
    assert rig.run(attempt) == Done()
    assert (runs, rig.state(attempt)) == (["Ada"], "succeeded")


def test_a_handler_that_runs_again_after_a_conflict_is_named_in_the_log(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[str] = []

    def book(event: Renamed, session: MemorySession) -> None:
        runs.append(event.name)
        session.open()
        if len(runs) == 1:
            rig.store.deliveries.renew([attempt.delivery_id], token=attempt.token, lease=30)

    handler = rig.handler(book, transactional=True)
    attempt = rig.claimed(handler, ADA)
    with caplog.at_level("INFO", logger="eventdriven_sync.executor"):
        assert rig.run(attempt) == Done()
    assert runs == ["Ada", "Ada"]
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{handler.name} runs again for event {attempt.event_id}: ")


def test_a_transaction_does_not_begin_without_its_lease(rig: Rig) -> None:
    runs: list[str] = []
    handler = rig.handler(lambda e, session: runs.append(e.name), name="book", transactional=True)
    attempt = rig.claimed(handler, ADA)
    rig.clock.advance(31)
    rig.store.deliveries.claim_due([handler.name], limit=9, lease=30, worker="other", token="other")
    assert isinstance(rig.run(attempt), RetryAt)
    assert runs == []


def test_a_batch_in_a_transaction_keeps_all_of_its_leases(rig: Rig) -> None:
    def book(batch: Any, session: MemorySession) -> None:
        session.open()
        lane.renew()

    handler = rig.batch_handler(book, transactional=True, timeout=2)
    lane = recovery(rig, handler)
    attempts = [rig.claimed(handler, ADA) for _ in range(3)]
    for attempt in attempts:
        rig.executor.read(attempt)
        rig.executor.group(attempt)
    batch = Batch(None, [attempt.payload for attempt in attempts])
    assert [each.outcome for each in rig.executor.run_batch(attempts, batch)] == [Done()] * 3
