"""Admitting and settling: nothing runs that is settled, nothing is acknowledged that is not recorded."""

import logging
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import attrs
import pytest

from eventdriven_sync import Discard, Reject
from eventdriven_sync.attempt import Attempt
from eventdriven_sync.errors import EventIdReused, StoreError, StoreUnavailable
from eventdriven_sync.settling import Settled
from eventdriven_sync.store import EventQuery
from tests.polling import eventually
from tests.unit.rig import Greeted, Renamed, Rig

ADA = Renamed(name="Ada")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def handler(rig: Rig) -> Any:
    return rig.handler(lambda e: None, name="keep")


def settled(rig: Rig, attempt: Attempt, error: BaseException | None = None) -> Settled:
    rig.executor.read(attempt)
    return attempt, rig.executor.settlement(attempt, error)


# --- admitting


def test_a_fresh_message_is_admitted_without_a_write(rig: Rig, handler: Any) -> None:
    attempt = rig.arrived(handler, ADA)
    rig.executor.read(attempt)
    assert rig.settler.admit([attempt]) == [attempt]
    assert rig.state(attempt) is None


@pytest.mark.parametrize("error", [None, Reject("no"), Discard("no"), ValueError("no")])
def test_a_message_whose_delivery_is_recorded_is_acknowledged_and_not_run(
    rig: Rig, handler: Any, error: BaseException | None
) -> None:
    envelope = rig.envelope(ADA)
    rig.settler.settle([settled(rig, rig.arrived(handler, envelope), error)])
    again = rig.arrived(handler, envelope, delivered=2)
    rig.executor.read(again)
    assert rig.settler.admit([again]) == []
    assert rig.hand.finished == [1, 2]


def test_a_redelivered_message_counts_its_start_before_it_runs(rig: Rig, handler: Any) -> None:
    attempt = rig.arrived(handler, ADA, delivered=2)
    rig.executor.read(attempt)
    assert rig.settler.admit([attempt]) == [attempt]
    assert rig.state(attempt) == "running"
    assert attempt.delivery is not None
    assert len(rig.leases) == 1
    rig.settler.settle([settled(rig, attempt)])
    assert (rig.state(attempt), rig.hand.finished, len(rig.leases)) == ("succeeded", [1], 0)


def test_of_two_workers_with_one_redelivered_message_only_one_runs_it(rig: Rig, handler: Any) -> None:
    """Both found no record; the second one's insert fails."""
    envelope = rig.envelope(ADA)
    first, second = (rig.arrived(handler, envelope, delivered=2) for _ in range(2))
    for attempt in (first, second):
        rig.executor.read(attempt)
    assert rig.settler.admit([first, second]) == [first]
    assert rig.hand.finished == [2]


def test_unreadable_messages_need_no_slow_path(rig: Rig, handler: Any) -> None:
    attempt = rig.arrived(handler, b"no json", delivered=3)
    rig.executor.read(attempt)
    assert rig.settler.admit([attempt]) == [attempt]
    assert rig.state(attempt) is None


def test_what_is_admitted_once_is_not_asked_for_again(rig: Rig, handler: Any) -> None:
    attempt = rig.arrived(handler, ADA, delivered=2)
    rig.executor.read(attempt)
    rig.settler.admit([attempt])
    assert rig.settler.admit([attempt]) == [attempt]


def test_what_lost_its_lease_while_it_waited_does_not_run(rig: Rig, handler: Any) -> None:
    """Somebody else claimed it and may have handled it."""
    lost, kept = rig.claimed(handler, ADA), rig.claimed(handler, ADA)
    rig.leases.drop([lost])
    assert rig.settler.admit([lost, kept]) == [kept]


def test_nothing_is_admitted_while_the_store_is_away(rig: Rig, handler: Any) -> None:
    attempt = rig.arrived(handler, ADA)
    rig.executor.read(attempt)
    rig.store.unavailable = True
    found: list[list[Attempt]] = []
    waiting = threading.Thread(target=lambda: found.append(rig.settler.admit([attempt])), daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert found == []
    rig.store.unavailable = False
    eventually(lambda: found == [[attempt]])


# --- settling


def test_the_outcome_is_recorded_before_the_message_is_acknowledged(rig: Rig, handler: Any) -> None:
    attempt = rig.arrived(handler, ADA)
    states: list[str | None] = []
    finish = rig.hand.finish
    rig.hand.finish = lambda m: (states.append(rig.state(attempt)), finish(m))[1]  # type: ignore[method-assign]
    rig.settler.settle([settled(rig, attempt)])
    assert (states, rig.hand.finished) == (["succeeded"], [1])


def test_settling_waits_for_the_store_and_acknowledges_nothing_meanwhile(rig: Rig, handler: Any) -> None:
    attempt = rig.arrived(handler, ADA)
    pair = settled(rig, attempt)
    rig.store.unavailable = True
    waiting = threading.Thread(target=rig.settler.settle, args=([pair],), daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert (waiting.is_alive(), rig.hand.finished) == (True, [])
    rig.store.unavailable = False
    waiting.join(10)
    assert (rig.state(attempt), rig.hand.finished) == ("succeeded", [1])


def test_told_to_give_up_it_waits_no_longer(rig: Rig, handler: Any) -> None:
    pair = settled(rig, rig.arrived(handler, ADA))
    rig.store.unavailable = True
    rig.settler.give_up()
    with pytest.raises(StoreUnavailable):
        rig.settler.settle([pair])
    assert rig.hand.finished == []


def test_a_fenced_off_result_sends_no_acknowledgement(
    rig: Rig, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    envelope = rig.envelope(ADA)
    first, late = rig.arrived(handler, envelope), rig.arrived(handler, envelope)
    rig.settler.settle([settled(rig, first)])
    late_settlement = attrs.evolve(
        settled(rig, late, ValueError("late"))[1], emitted=(rig.envelope(Greeted(name="late")),)
    )
    rig.settler.settle([(late, late_settlement)])
    assert rig.state(late) == "succeeded"
    assert (rig.hand.finished, rig.hand.forgotten, rig.dispatched) == ([1], [2], [])
    assert "delivery_fenced" in [getattr(record, "action", "") for record in caplog.records]


def test_a_claimed_delivery_somebody_else_owns_now_is_left_alone(rig: Rig, handler: Any) -> None:
    attempt = rig.claimed(handler, ADA)
    rig.clock.advance(60)
    rig.store.deliveries.claim_due([handler.name], limit=1, lease=30, worker="other", token="other")
    rig.settler.settle([settled(rig, attempt)])
    assert rig.state(attempt) == "running"
    assert len(rig.leases) == 0


def test_settling_twice_is_settling_once(rig: Rig, handler: Any) -> None:
    pair = settled(rig, rig.arrived(handler, ADA), ValueError("no"))
    rig.settler.settle([pair])
    rig.settler.settle([pair])
    found = rig.store.deliveries.get(pair[0].delivery_id)
    assert found is not None
    assert found.failed == 1


def test_emitted_events_are_stored_and_sent_after_the_outcome(rig: Rig) -> None:
    def greet(event: Renamed) -> None:
        rig.group.publish(Greeted(name=event.name))

    attempt = rig.arrived(rig.handler(greet), ADA)
    rig.executor.read(attempt)
    rig.settler.settle([(attempt, rig.executor.run(attempt))])
    assert [event.name for event in rig.dispatched] == ["RigUser.greeted"]
    assert rig.store.events.get([rig.dispatched[0].id])


def test_what_a_handler_published_long_ago_is_accepted_with_its_outcome(rig: Rig) -> None:
    """The reconciler's watermark has passed the moment of publishing: with that time it would not be seen."""

    def greet(event: Renamed) -> None:
        rig.group.publish(Greeted(name="first"))
        rig.group.publish(Greeted(name="last"))

    attempt = rig.arrived(rig.handler(greet), ADA)
    rig.executor.read(attempt)
    settlement = rig.executor.run(attempt)
    held = [
        attrs.evolve(each, published_at=each.published_at - timedelta(seconds=ago))
        for each, ago in zip(settlement.emitted, (300, 100), strict=True)
    ]
    before = rig.clock()
    rig.settler.settle([(attempt, attrs.evolve(settlement, emitted=tuple(held)))])
    stored = rig.store.events.get([each.id for each in held])
    first, last = (stored[each.id].published_at for each in held)
    assert before - timedelta(seconds=1) <= first < last <= rig.clock()
    assert [each.published_at for each in rig.dispatched] == [first, last]


def test_events_of_an_outcome_that_waited_for_the_store_take_the_time_of_its_return(rig: Rig) -> None:
    def greet(event: Renamed) -> None:
        rig.group.publish(Greeted(name=event.name))

    attempt = rig.arrived(rig.handler(greet), ADA)
    rig.executor.read(attempt)
    settlement = rig.executor.run(attempt)
    settle, left_at = rig.store.deliveries.settle, rig.clock()

    def away_at_first(settlements: Any) -> Any:
        rig.store.deliveries.settle = settle  # type: ignore[method-assign]
        rig.clock.advance(300)
        raise StoreUnavailable("away")

    rig.store.deliveries.settle = away_at_first  # type: ignore[method-assign]
    rig.settler.settle([(attempt, settlement)])
    (stored,) = rig.store.events.find(EventQuery())
    assert stored.published_at >= left_at + timedelta(seconds=299)


class Refusing:
    """Stands before the memory store's deliveries and refuses one for good."""

    def __init__(self, rig: Rig, poison: Attempt, error: StoreError, *, also_dead: bool = False) -> None:
        self._real, self._poison, self._error = rig.store.deliveries, poison, error
        self._also_dead = also_dead
        rig.store.deliveries = self  # type: ignore[assignment]

    def settle(self, settlements: Any) -> Any:
        for each in settlements:
            dead = type(each.outcome).__name__ == "Dead"
            if each.delivery_id == self._poison.delivery_id and (self._also_dead or not dead):
                raise self._error
        return self._real.settle(settlements)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.mark.parametrize("error", [StoreError("MongoDB refused the outcome"), EventIdReused("other content")])
def test_what_the_store_refuses_for_good_ends_dead_and_holds_up_nobody(
    rig: Rig, handler: Any, error: StoreError
) -> None:
    attempts = [rig.arrived(handler, ADA) for _ in range(3)]
    pairs = [settled(rig, attempt) for attempt in attempts]
    Refusing(rig, attempts[1], error)
    rig.settler.settle(pairs)
    assert [rig.state(attempt) for attempt in attempts] == ["succeeded", "dead", "succeeded"]
    found = rig.store.deliveries.get(attempts[1].delivery_id)
    assert found is not None
    assert (found.reason, found.failures[0].error_type) == ("not_retryable", type(error).__name__)
    assert sorted(rig.hand.finished) == [1, 2, 3]


def test_what_cannot_even_be_recorded_as_dead_is_reported_and_not_acknowledged(
    rig: Rig, handler: Any
) -> None:
    attempt = rig.arrived(handler, ADA)
    pair = settled(rig, attempt)
    Refusing(rig, attempt, StoreError("refused"), also_dead=True)
    with pytest.raises(StoreError, match="refused"):
        rig.settler.settle([pair])
    assert rig.hand.finished == []


def test_failures_are_told_as_users_know_them(
    rig: Rig, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = rig.claimed(handler, ADA, failed=4, attempts=5)
    with caplog.at_level(logging.INFO):
        rig.settler.settle([settled(rig, attempt, ValueError("Test Error!!"))])
    assert caplog.messages[0] == (
        f"Failed 5 times, handler: Blog.keep, error: Test Error!! event: {attempt.event_id}"
    )
    assert caplog.messages[1].startswith("Added to dead letter queue, handler: Blog.keep")


def test_every_recorded_outcome_is_counted(rig: Rig, handler: Any) -> None:
    for error in (None, None, ValueError("no"), Reject("no"), Discard("no")):
        rig.settler.settle([settled(rig, rig.arrived(handler, ADA), error)])
    (row,) = rig.stats.drain()
    assert [row[key] for key in ("succeeded", "failed", "dead", "discarded")] == [2, 1, 1, 1]


# --- leases


def test_leases_know_what_is_held_for_whom(rig: Rig, handler: Any) -> None:
    other = rig.handler(lambda e: None, name="other")
    held = [rig.claimed(handler, ADA), rig.claimed(handler, ADA), rig.claimed(other, ADA)]
    assert rig.leases.by_handler() == {"Blog.keep": 2, "Blog.other": 1}
    assert set(rig.leases.held()) == {attempt.token for attempt in held}
    rig.leases.drop(held[:1])
    assert (len(rig.leases), rig.leases.lost(held)) == (2, held[:1])
    rig.leases.drop(held)
    assert rig.leases.held() == {}


def test_forgetting_drops_the_lease_with_the_message(rig: Rig, handler: Any) -> None:
    claimed, arrived = rig.claimed(handler, ADA), rig.arrived(handler, ADA)
    rig.settler.forget([claimed, arrived])
    assert (len(rig.leases), rig.hand.forgotten) == (0, [1])


def test_what_is_held_twice_or_dropped_twice_counts_once(rig: Rig, handler: Any) -> None:
    kept, left = rig.claimed(handler, ADA), rig.claimed(handler, ADA)
    rig.leases.hold([kept, kept])
    assert rig.leases.by_handler() == {"Blog.keep": 2}
    rig.leases.drop([left, left])
    rig.leases.drop([left])
    assert rig.leases.by_handler() == {"Blog.keep": 1}
    rig.leases.drop([kept])
    assert (rig.leases.by_handler(), len(rig.leases)) == ({}, 0)
