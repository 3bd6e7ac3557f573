"""The executor: every way an attempt can end, and what its record says."""

import contextvars
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import attrs
import pytest
from tenacity import retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_fixed

from eventdriven_sync import Discard, Reject, Retry, RetryPolicy, context, current_envelope, publishing
from eventdriven_sync.attempt import Attempt
from eventdriven_sync.batching import Batch
from eventdriven_sync.envelope import derived_id, utcnow
from eventdriven_sync.errors import (
    ChainTooDeep,
    HandlerTimeout,
    InvalidDelay,
    LeaseLost,
    StoreUnavailable,
)
from eventdriven_sync.events import event
from eventdriven_sync.outcome import MAX_MESSAGE, MAX_TRACEBACK, Dead, Discarded, Done, RetryAt
from eventdriven_sync.records import MAX_RAW
from eventdriven_sync.store import EventQuery
from tests.polling import eventually
from tests.unit.rig import Greeted, Renamed, Rig, failure

ADA = Renamed(name="Ada")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def raising(error: BaseException) -> Any:
    def handle(event: Renamed) -> None:
        raise error

    return handle


def outcome(rig: Rig, error: BaseException, **options: Any) -> Any:
    return rig.run(rig.arrived(rig.handler(raising(error), **options), ADA))


# --- the outcomes ---------------------------------------------------------------------------------------


def test_a_handler_that_returns_is_done(rig: Rig) -> None:
    seen: list[Renamed] = []
    assert rig.run(rig.arrived(rig.handler(seen.append, name="keep"), ADA)) == Done()
    assert seen == [ADA]


def test_a_retry_is_due_when_the_handler_says(rig: Rig) -> None:
    ended = outcome(rig, Retry("busy", after=61.5))
    assert ended.after == 61.5
    assert (ended.failure.error_type, ended.failure.message) == ("Retry", "busy")


def test_a_retry_asked_for_does_not_depend_on_which_errors_the_policy_retries(rig: Rig) -> None:
    ended = outcome(rig, Retry(after=60), retry=RetryPolicy(on=retry_if_exception_type(OSError)))
    assert ended.after == 60


def test_a_retry_asked_for_counts_as_a_failed_attempt(rig: Rig) -> None:
    ended = outcome(rig, Retry(after=60), retry=RetryPolicy(stop=stop_after_attempt(1)))
    assert (type(ended), ended.reason) == (Dead, "attempts_exhausted")


@pytest.mark.parametrize("after", [-1, float("nan"), float("inf"), 366 * 86400, True, "60", None])
def test_an_impossible_delay_is_refused_where_it_is_raised(after: Any) -> None:
    with pytest.raises(InvalidDelay) as caught:
        raise Retry(after=after)
    assert caught.value.field == "after"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Reject("never"), "rejected"),
        (ChainTooDeep("a loop"), "not_retryable"),
        (SystemExit(3), "not_retryable"),
        (KeyboardInterrupt(), "not_retryable"),
        (GeneratorExit(), "not_retryable"),
    ],
)
def test_some_errors_end_a_delivery_at_once(rig: Rig, error: BaseException, reason: str) -> None:
    ended = outcome(rig, error)
    assert (type(ended), ended.reason) == (Dead, reason)
    assert ended.failure.error_type == type(error).__name__


def test_a_discarded_event_keeps_its_reason(rig: Rig) -> None:
    assert outcome(rig, Discard("a test account")) == Discarded(reason="a test account")


def test_the_default_policy_ends_with_the_fifth_failure(rig: Rig) -> None:
    handler = rig.handler(raising(ValueError("no")))
    first = rig.run(rig.arrived(handler, ADA))
    fourth = rig.run(rig.claimed(handler, ADA, failed=3, failures=(failure(),) * 3))
    fifth = rig.run(rig.claimed(handler, ADA, failed=4, failures=(failure(),) * 4))
    assert 1 <= first.after <= 1.5
    assert 8 <= fourth.after <= 8.5
    assert (type(fifth), fifth.reason) == (Dead, "attempts_exhausted")


def test_an_error_the_policy_does_not_retry_is_dead_at_once(rig: Rig) -> None:
    ended = outcome(rig, ValueError("no"), retry=RetryPolicy(on=retry_if_exception_type(OSError)))
    assert (type(ended), ended.reason) == (Dead, "not_retryable")


def test_a_store_that_was_away_is_never_the_handlers_fault(rig: Rig) -> None:
    policy = RetryPolicy(on=retry_if_exception_type(OSError))
    assert isinstance(outcome(rig, StoreUnavailable("away"), retry=policy), RetryAt)


def test_the_last_timeout_is_named_in_the_reason(rig: Rig) -> None:
    attempt = rig.claimed(rig.handler(print), ADA, failed=4, failures=(failure(),) * 4)
    attempt.event = attempt.delivery.event if attempt.delivery else None
    ended = rig.executor.outcome_of(attempt, HandlerTimeout("too long", stack="File x", limit=1))
    assert isinstance(ended, Dead)
    assert (ended.reason, ended.failure.traceback) == ("timeout", "File x")


@pytest.mark.parametrize("lost", [2, 3, 7])
def test_an_event_that_kills_its_workers_is_dead_after_three_of_them(rig: Rig, lost: int) -> None:
    ran: list[Any] = []
    ended = rig.run(rig.claimed(rig.handler(ran.append, name="keep"), ADA, lost=lost))
    if lost < 3:
        assert (ended, len(ran)) == (Done(), 1)
    else:
        assert (ended.reason, ran) == ("worker_lost", [])


def test_what_the_broker_believes_alone_never_ends_a_delivery() -> None:
    rig = Rig(max_lost=1)
    attempt = rig.arrived(rig.handler(print), ADA, delivered=9)
    rig.executor.read(attempt)
    assert rig.settler.admit([attempt]) == [attempt]
    assert attempt.delivery is not None
    assert rig.executor.run(attempt).outcome == Done()


# --- policies that misbehave, and policies that count time ----------------------------------------------


def broken(state: object) -> Any:
    raise ZeroDivisionError("the policy is broken")


@pytest.mark.parametrize(
    "policy",
    [
        RetryPolicy(wait=broken),
        RetryPolicy(stop=broken),
        RetryPolicy(on=broken),
        RetryPolicy(wait=lambda state: float("nan")),
        RetryPolicy(wait=lambda state: None),  # type: ignore[arg-type,return-value]
    ],
    ids=["wait", "stop", "on", "nan", "none"],
)
def test_a_broken_policy_is_replaced_by_the_default_one(rig: Rig, policy: RetryPolicy) -> None:
    ended = outcome(rig, ValueError("no"), retry=policy)
    assert isinstance(ended, RetryAt)
    assert (ended.failure.error_type, 1 <= ended.after <= 1.5) == ("ValueError", True)


def test_an_endless_wait_is_cut_to_a_year(rig: Rig) -> None:
    ended = outcome(rig, ValueError("no"), retry=RetryPolicy(wait=lambda state: float("inf")))
    assert ended.after == 365 * 86400


def test_a_policy_by_time_ends_although_only_the_last_failures_are_on_record(rig: Rig) -> None:
    policy = RetryPolicy(stop=stop_after_delay(3600), wait=wait_fixed(60))
    handler = rig.handler(raising(ValueError("no")), retry=policy)
    kept = tuple(failure(seconds_ago=600 - 60 * i) for i in range(10))
    long_ago = utcnow() - timedelta(days=1)
    within = rig.run(rig.claimed(handler, ADA, failed=30, failures=kept, created_at=long_ago))
    over = rig.run(rig.claimed(handler, ADA, failed=70, failures=kept, created_at=long_ago))
    assert isinstance(within, RetryAt)
    assert (type(over), over.reason) == (Dead, "attempts_exhausted")


def test_a_generation_has_its_own_time(rig: Rig) -> None:
    policy = RetryPolicy(stop=stop_after_delay(3600), wait=wait_fixed(60))
    handler = rig.handler(raising(ValueError("no")), retry=policy)
    before = tuple(failure(seconds_ago=90_000) for _ in range(5))
    ended = rig.run(rig.claimed(handler, ADA, generation=1, failed=0, failures=before))
    assert isinstance(ended, RetryAt)


# --- what is no readable event --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "undecodable"),
        (b"{", "undecodable"),
        (b"\xff\xfe", "undecodable"),
        (b"[" * 1_000_000, "undecodable"),
        (b"[]", "invalid"),
        (b"{}", "invalid"),
        (b"1" * 100_000, "invalid"),
    ],
    ids=["empty", "cut off", "no UTF-8", "a bomb", "a list", "no fields", "a huge number"],
)
def test_what_is_no_event_is_dead_with_its_bytes_and_not_run(rig: Rig, data: bytes, reason: str) -> None:
    ran: list[Any] = []
    attempt = rig.arrived(rig.handler(ran.append, name="keep"), data)
    rig.executor.read(attempt)
    settlement = rig.executor.run(attempt)
    assert isinstance(settlement.outcome, Dead)
    assert (settlement.outcome.reason, ran) == (reason, [])
    assert settlement.raw is not None
    assert settlement.raw.data == data
    assert settlement.event_id.startswith(f"rig_RigUser-{settlement.raw.sequence}-")
    assert settlement.event_name == "RigUser.renamed"


def test_of_a_huge_unreadable_message_one_mebibyte_is_kept(rig: Rig) -> None:
    attempt = rig.arrived(rig.handler(print), b"x" * (MAX_RAW + 1))
    rig.executor.read(attempt)
    raw = rig.executor.run(attempt).raw
    assert raw is not None
    assert len(raw.data) == MAX_RAW


def test_a_payload_of_the_wrong_shape_is_dead_without_retries(rig: Rig) -> None:
    ended = rig.run(rig.arrived(rig.handler(print), rig.envelope(ADA, data={"name": 5})))
    assert (type(ended), ended.reason) == (Dead, "invalid")
    assert "name" in ended.failure.message


def test_an_event_the_handler_no_longer_listens_to_is_dead(rig: Rig) -> None:
    ended = rig.run(rig.claimed(rig.handler(print), Greeted(name="Ada")))
    assert (type(ended), ended.reason) == (Dead, "unknown_event")


def test_an_event_that_is_stored_nowhere_any_more_is_dead(rig: Rig) -> None:
    ended = rig.run(rig.claimed(rig.handler(print), ADA, event=None))
    assert (type(ended), ended.reason) == (Dead, "invalid")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even this")


def explode(instance: object, attribute: object, value: object) -> None:
    if value == "boom":
        raise Unprintable


@event("RigUser.fragile")
@attrs.frozen(kw_only=True)
class Fragile:
    name: str = attrs.field(validator=explode)


def test_a_class_that_fails_while_it_is_built_costs_only_its_own_delivery(rig: Rig) -> None:
    envelope = attrs.evolve(rig.envelope(Fragile(name="fine")), data={"name": "boom"})
    attempt = rig.arrived(rig.handler(print, Fragile), envelope)
    ended = rig.run(attempt)
    assert (type(ended), ended.reason) == (Dead, "invalid")


# --- newer versions -------------------------------------------------------------------------------------


def test_a_newer_version_waits_for_newer_code(rig: Rig) -> None:
    handler = rig.handler(print)
    newer = rig.envelope(ADA, version=2)
    delays = [rig.run(rig.arrived(handler, newer)).after]
    for failed in (1, 2, 8, 9):
        delays.append(rig.run(rig.claimed(handler, newer, failed=failed, failures=(failure(),))).after)
    assert delays == [1, 2, 4, 256, 256]


def test_a_version_nobody_deploys_ends_although_only_the_last_failures_are_on_record() -> None:
    rig = Rig(version_grace=3600)
    newer = rig.envelope(ADA, version=2)
    kept = tuple(failure(seconds_ago=2560 - 256 * i) for i in range(10))
    ended = rig.run(
        rig.claimed(
            rig.handler(print),
            newer,
            failed=20,
            failures=kept,
            created_at=utcnow() - timedelta(hours=2),
        )
    )
    assert (type(ended), ended.reason) == (Dead, "unknown_version")


def test_without_grace_a_newer_version_is_dead_at_once() -> None:
    rig = Rig(version_grace=0)
    ended = rig.run(rig.arrived(rig.handler(print), rig.envelope(ADA, version=2)))
    assert (type(ended), ended.reason) == (Dead, "unknown_version")


# --- what is kept of an error ---------------------------------------------------------------------------


def test_an_error_without_readable_text_is_recorded_all_the_same(rig: Rig) -> None:
    ended = outcome(rig, Unprintable())
    assert ended.failure.error_type == "Unprintable"
    assert "SystemExit" in ended.failure.message
    assert ended.failure.traceback


def test_lone_surrogates_become_storable_text(rig: Rig) -> None:
    ended = outcome(rig, ValueError("a \ud800 b"))
    assert ended.failure.message == "a \\ud800 b"
    assert ended.failure.traceback.encode()


def test_a_long_text_is_cut(rig: Rig) -> None:
    ended = outcome(rig, ValueError("\ud800" * 100_000))
    assert len(ended.failure.message) == MAX_MESSAGE


def test_a_traceback_is_cut_to_its_end_counted_in_bytes(rig: Rig) -> None:
    ended = outcome(rig, ValueError("ü" * 40_000 + "the end"))
    size = len(ended.failure.traceback.encode())
    assert MAX_TRACEBACK - 4 <= size <= MAX_TRACEBACK
    assert ended.failure.traceback.rstrip().endswith("the end")


@pytest.mark.parametrize("transactional", [False, True])
def test_a_traceback_begins_in_the_users_code(rig: Rig, transactional: bool) -> None:
    def handle(event: Renamed, session: object = None) -> None:
        raise ValueError("no")

    ended = rig.run(rig.arrived(rig.handler(handle, transactional=transactional), ADA))
    frames = [line for line in ended.failure.traceback.splitlines() if line.startswith("  File")]
    assert len(frames) == 1
    assert frames[0].endswith("in handle")


def test_the_cause_of_an_error_is_kept(rig: Rig) -> None:
    def handle(event: Renamed) -> None:
        try:
            raise OSError("disk")
        except OSError as error:
            raise ValueError("no") from error

    ended = rig.run(rig.arrived(rig.handler(handle), ADA))
    assert "OSError: disk" in ended.failure.traceback


def test_endless_recursion_is_a_failure_like_any_other(rig: Rig) -> None:
    def handle(event: Renamed) -> None:
        handle(event)

    ended = rig.run(rig.arrived(rig.handler(handle), ADA))
    assert ended.failure.error_type == "RecursionError"


def test_the_number_of_the_attempt_and_the_generation_are_recorded(rig: Rig) -> None:
    attempt = rig.claimed(rig.handler(raising(ValueError("no"))), ADA, attempts=3, generation=2)
    kept = rig.run(attempt).failure
    assert (kept.attempt, kept.generation, kept.worker) == (3, 2, "rig")


# --- what handlers publish ------------------------------------------------------------------------------


def test_what_a_handler_publishes_is_held_until_it_is_done(rig: Rig) -> None:
    stored: list[int] = []

    def greet(event: Renamed) -> None:
        receipt = rig.group.publish(Greeted(name=event.name))
        stored.append(len(rig.store.events.get([receipt.id])))

    attempt = rig.arrived(rig.handler(greet), ADA)
    rig.executor.read(attempt)
    settlement = rig.executor.run(attempt)
    assert stored == [0]
    (emitted,) = settlement.emitted
    parent = attempt.event
    assert parent is not None
    assert (emitted.parent_ids, emitted.source) == ((parent.id,), "Blog.greet")
    assert (emitted.operation_id, emitted.depth) == (parent.operation_id, 1)


@pytest.mark.parametrize("error", [ValueError("no"), Reject("no"), Discard("no"), Retry(after=1)])
def test_an_attempt_that_is_not_done_publishes_nothing(rig: Rig, error: Exception) -> None:
    def greet(event: Renamed) -> None:
        rig.group.publish(Greeted(name=event.name))
        raise error

    attempt = rig.arrived(rig.handler(greet), ADA)
    rig.executor.read(attempt)
    assert rig.executor.run(attempt).emitted == ()


def test_running_again_emits_the_same_events(rig: Rig) -> None:
    def greet(event: Renamed) -> None:
        rig.group.publish_many([Greeted(name="a"), Greeted(name="b")])
        rig.group.publish(Greeted(name="c"))

    handler, envelope = rig.handler(greet), rig.envelope(ADA)
    ids = []
    for attempt in (rig.arrived(handler, envelope), rig.claimed(handler, envelope)):
        rig.executor.read(attempt)
        ids.append([each.id for each in rig.executor.run(attempt).emitted])
    assert ids[0] == ids[1]
    assert ids[0] == [derived_id(envelope.id, "Blog.greet", str(i), at=envelope.id) for i in (1, 2, 3)]


def test_two_handlers_of_one_event_emit_different_events(rig: Rig) -> None:
    def greet(event: Renamed) -> None:
        rig.group.publish(Greeted(name="a"))

    envelope = rig.envelope(ADA)
    attempts = [rig.arrived(rig.handler(greet, name=name), envelope) for name in ("one", "two")]
    for attempt in attempts:
        rig.executor.read(attempt)
    first, second = (rig.executor.run(attempt).emitted[0].id for attempt in attempts)
    assert first != second


def test_immediate_publishes_are_stored_whatever_becomes_of_the_attempt(rig: Rig) -> None:
    def greet(event: Renamed) -> None:
        rig.group.publish(Greeted(name="now"), immediate=True)
        raise ValueError("no")

    attempt = rig.arrived(rig.handler(greet), ADA)
    rig.executor.read(attempt)
    assert rig.executor.run(attempt).emitted == ()
    assert attempt.event is not None
    stored = rig.store.events.get([derived_id(attempt.event.id, "Blog.greet", "1", at=attempt.event.id)])
    assert len(stored) == 1


def test_a_chain_that_grows_too_long_ends_as_a_dead_letter() -> None:
    rig = Rig(max_chain_depth=3)

    def greet(event: Renamed) -> None:
        rig.group.publish(Greeted(name="again"))

    handler = rig.handler(greet)
    assert rig.run(rig.arrived(handler, rig.envelope(ADA, depth=2))) == Done()
    ended = rig.run(rig.arrived(handler, rig.envelope(ADA, depth=3)))
    assert (type(ended), ended.reason, ended.failure.error_type) == (Dead, "not_retryable", "ChainTooDeep")
    assert "limit 3" in ended.failure.message


@pytest.mark.parametrize("immediate", [False, True])
def test_an_abandoned_attempt_publishes_no_more(rig: Rig, immediate: bool) -> None:
    attempts: list[Attempt] = []
    caught: list[BaseException] = []

    def greet(event: Renamed) -> None:
        assert attempts[0].handling is not None
        attempts[0].handling.abandoned = True
        try:
            rig.group.publish(Greeted(name="late"), immediate=immediate)
        except LeaseLost as error:
            caught.append(error)

    attempts.append(rig.arrived(rig.handler(greet), ADA))
    rig.executor.read(attempts[0])
    assert rig.executor.run(attempts[0]).emitted == ()
    assert len(caught) == 1
    assert rig.bus.store.events.count(["RigUser.greeted"], since=None) == 0


def test_what_a_thread_left_behind_publishes_after_the_handler_returned_is_refused(rig: Rig) -> None:
    """It could no longer be stored with the outcome: a receipt would be a lie."""
    left: list[contextvars.Context] = []
    attempt = rig.arrived(rig.handler(lambda e: left.append(contextvars.copy_context()), name="leave"), ADA)
    assert rig.run(attempt) == Done()
    with pytest.raises(LeaseLost, match="has ended"):
        left[0].run(rig.group.publish, Greeted(name="late"))


@pytest.mark.parametrize("limit", ["MAX_HELD", "MAX_HELD_BYTES"])
def test_what_one_attempt_may_hold_is_limited(rig: Rig, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stored in one write with the outcome, which must not take for ever."""
    monkeypatch.setattr(publishing, limit, 2 if limit == "MAX_HELD" else 700)

    def greet(event: Renamed) -> None:
        for number in range(event.number):
            rig.group.publish(Greeted(name=str(number)))

    handler = rig.handler(greet)
    assert rig.run(rig.arrived(handler, Renamed(name="Ada", number=2))) == Done()
    ended = rig.run(rig.arrived(handler, Renamed(name="Ada", number=3)))
    assert (type(ended), ended.reason, ended.failure.error_type) == (Dead, "not_retryable", "TooManyEvents")
    assert "immediate=True" in ended.failure.message


def test_a_signal_of_the_users_own_making_without_a_delay_is_retried(rig: Rig) -> None:
    class Busy(Retry):
        def __init__(self) -> None:
            Exception.__init__(self, "busy")

    def handle(event: Renamed) -> None:
        raise Busy

    ended = rig.run(rig.arrived(rig.handler(handle), ADA))
    assert isinstance(ended, RetryAt)
    assert ended.failure.error_type == "Busy"


def test_the_context_of_one_attempt_does_not_reach_the_next(rig: Rig) -> None:
    names: list[str | None] = []

    def look(event: Renamed) -> None:
        found = current_envelope()
        names.append(found.data["name"] if found else None)

    handler = rig.handler(look)
    rig.run(rig.arrived(handler, Renamed(name="a")))
    rig.run(rig.arrived(handler, Renamed(name="b")))
    assert (names, current_envelope()) == (["a", "b"], None)


# --- transactional handlers -----------------------------------------------------------------------------


def test_a_transactional_handler_commits_its_events_with_its_success(rig: Rig) -> None:
    def greet(event: Renamed, session: object) -> None:
        rig.group.publish(Greeted(name=event.name))

    attempt = rig.arrived(rig.handler(greet, transactional=True), ADA)
    assert rig.run(attempt) == Done()
    assert rig.state(attempt) == "succeeded"
    assert rig.store.events.count(["RigUser.greeted"], since=None) == 1


def test_a_failing_transactional_handler_leaves_nothing_behind(rig: Rig) -> None:
    def greet(event: Renamed, session: object) -> None:
        rig.group.publish(Greeted(name=event.name))
        raise ValueError("no")

    attempt = rig.arrived(rig.handler(greet, transactional=True), ADA)
    assert isinstance(rig.run(attempt), RetryAt)
    assert rig.state(attempt) is None
    assert rig.store.events.count(["RigUser.greeted"], since=None) == 0


def test_a_conflict_runs_the_transaction_again_from_nothing(rig: Rig) -> None:
    runs: list[int] = []
    envelope = rig.envelope(ADA)

    def greet(event: Renamed, session: Any) -> None:
        runs.append(1)
        rig.group.publish(Greeted(name=event.name))
        if len(runs) == 1:
            session.events.get(envelope.id)
            rig.store.events.append([envelope], timeout=1)

    attempt = rig.arrived(rig.handler(greet, transactional=True), envelope)
    rig.executor.read(attempt)
    settlement = rig.executor.run(attempt)
    assert (settlement.outcome, len(runs), len(settlement.emitted)) == (Done(), 2, 1)
    assert settlement.emitted[0].id == derived_id(envelope.id, "Blog.greet", "1", at=envelope.id)


def test_what_a_transaction_published_long_ago_is_accepted_with_its_commit(rig: Rig) -> None:
    def greet(event: Renamed, session: object) -> None:
        rig.group.publish(Greeted(name=event.name))
        assert attempt.handling is not None
        (held,) = attempt.handling.emitted
        attempt.handling.emitted[:] = [
            attrs.evolve(held, published_at=held.published_at - timedelta(seconds=50))
        ]

    attempt = rig.arrived(rig.handler(greet, transactional=True), ADA)
    began = rig.clock()
    assert rig.run(attempt) == Done()
    (stored,) = rig.store.events.find(EventQuery())
    assert stored.published_at >= began - timedelta(seconds=1)


def test_what_a_transaction_of_a_batch_published_long_ago_is_accepted_with_its_commit(rig: Rig) -> None:
    def greet(batch: Any, session: object) -> None:
        rig.group.publish(Greeted(name="all"))
        handling = context.handling.get()
        assert handling is not None
        (held,) = handling.emitted
        handling.emitted[:] = [attrs.evolve(held, published_at=held.published_at - timedelta(seconds=50))]

    began = rig.clock()
    run_batch(rig, greet, [ADA, ADA], transactional=True)
    (stored,) = rig.store.events.find(EventQuery())
    assert stored.published_at >= began - timedelta(seconds=1)


def test_a_transaction_that_returns_after_its_timeout_does_not_commit(rig: Rig) -> None:
    """The watchdog recorded the failure under the same token: the store alone would take it for a repeat."""

    def greet(event: Renamed, session: object) -> None:
        rig.group.publish(Greeted(name=event.name))
        assert attempt.handling is not None
        attempt.handling.abandoned = True
        late = rig.executor.settlement(attempt, HandlerTimeout("too long", stack="", limit=1))
        rig.settler.settle([(attempt, late)])

    attempt = rig.arrived(rig.handler(greet, transactional=True), ADA)
    assert isinstance(rig.run(attempt), RetryAt)
    assert rig.state(attempt) == "retrying"
    assert rig.store.events.count(["RigUser.greeted"], since=None) == 0


def test_an_abandoned_transaction_aborts_whatever_the_store_says(rig: Rig) -> None:
    def greet(event: Renamed, session: object) -> None:
        rig.group.publish(Greeted(name=event.name))

    attempt = rig.arrived(rig.handler(greet, transactional=True), ADA)
    settle_in = rig.store.deliveries.settle_in

    def settle_and_lose(session: Any, settlement: Any) -> bool:
        assert attempt.handling is not None
        attempt.handling.abandoned = True
        return settle_in(session, settlement)

    rig.store.deliveries.settle_in = settle_and_lose  # type: ignore[method-assign]
    assert isinstance(rig.run(attempt), RetryAt)
    assert rig.state(attempt) is None


def test_a_delivery_settled_by_somebody_else_aborts_the_transaction(rig: Rig) -> None:
    def greet(event: Renamed, session: object) -> None:
        rig.group.publish(Greeted(name=event.name))

    handler, envelope = rig.handler(greet, transactional=True), rig.envelope(ADA)
    other = rig.arrived(handler, envelope)
    assert rig.run(other) == Done()
    ended = rig.run(rig.arrived(handler, envelope))
    assert ended.failure.error_type == "LeaseLost"


# --- batches --------------------------------------------------------------------------------------------


def run_batch(rig: Rig, function: Any, payloads: list[Any], **options: Any) -> list[Any]:
    handler = rig.batch_handler(function, **options)
    attempts = [rig.arrived(handler, payload) for payload in payloads]
    for attempt in attempts:
        rig.executor.read(attempt)
        rig.executor.group(attempt)
    return rig.executor.run_batch(attempts, Batch(None, [attempt.payload for attempt in attempts]))


def test_only_the_items_given_to_fail_fail(rig: Rig) -> None:
    def count(batch: Any) -> None:
        batch.fail(batch.events[1], Reject("bad"))
        batch.fail(batch.events[2], Retry(after=7))
        batch.fail(batch.events[3], Discard("twice"))

    ended = [s.outcome for s in run_batch(rig, count, [Renamed(name=n) for n in "abcd"])]
    assert ended[0] == Done()
    assert (ended[1].reason, ended[2].after, ended[3]) == ("rejected", 7, Discarded(reason="twice"))


def test_a_batch_that_raises_fails_every_item_for_itself(rig: Rig) -> None:
    def count(batch: Any) -> None:
        batch.fail(batch.events[0], Reject("bad"))
        raise ValueError("no")

    ended = [s.outcome for s in run_batch(rig, count, [Renamed(name=n) for n in "ab"])]
    assert [type(each) for each in ended] == [RetryAt, RetryAt]


def test_equal_events_of_a_batch_are_told_apart(rig: Rig) -> None:
    def count(batch: Any) -> None:
        batch.fail(batch.events[1], Reject("this one"))

    ended = [type(s.outcome) for s in run_batch(rig, count, [ADA, ADA, ADA])]
    assert ended == [Done, Dead, Done]


def test_what_a_batch_publishes_is_stored_once_with_a_good_item(rig: Rig) -> None:
    def count(batch: Any) -> None:
        rig.group.publish(Greeted(name="all"))
        batch.fail(batch.events[0], ValueError("no"))

    settlements = run_batch(rig, count, [Renamed(name=n) for n in "abc"])
    assert [len(s.emitted) for s in settlements] == [0, 1, 0]
    assert len(settlements[1].emitted[0].parent_ids) == 3


def test_a_batch_of_which_nothing_succeeded_publishes_nothing(rig: Rig) -> None:
    def count(batch: Any) -> None:
        rig.group.publish(Greeted(name="all"))
        for each in batch.events:
            batch.fail(each, ValueError("no"))

    assert all(s.emitted == () for s in run_batch(rig, count, [ADA, ADA]))


def test_a_transactional_batch_commits_its_good_items_together(rig: Rig) -> None:
    def count(batch: Any, session: object) -> None:
        rig.group.publish(Greeted(name="all"))
        batch.fail(batch.events[0], ValueError("no"))

    settlements = run_batch(rig, count, [ADA, ADA, ADA], transactional=True)
    found = [rig.store.deliveries.get(s.delivery_id) for s in settlements]
    assert [each and each.state for each in found] == [None, "succeeded", "succeeded"]
    assert rig.store.events.count(["RigUser.greeted"], since=None) == 1


@pytest.mark.parametrize(
    "group_by",
    [lambda event: [], lambda event: 1 / 0, lambda event: sys.exit(1)],
    ids=["unhashable", "raises", "exits"],
)
def test_a_failing_group_by_is_a_failed_attempt(rig: Rig, group_by: Any) -> None:
    def count(batch: Any) -> None: ...

    attempt = rig.arrived(rig.batch_handler(count, group_by=group_by), ADA)
    rig.executor.read(attempt)
    rig.executor.group(attempt)
    ended = rig.executor.run(attempt).outcome
    assert isinstance(ended, RetryAt | Dead)
    assert ended.failure.error_type in ("TypeError", "ZeroDivisionError", "SystemExit")


def test_the_executor_keeps_nothing_between_threads(rig: Rig) -> None:
    def greet(event: Renamed) -> None:
        rig.group.publish(Greeted(name=event.name))

    handler = rig.handler(greet)
    attempts = [rig.arrived(handler, Renamed(name=str(i))) for i in range(40)]
    emitted: dict[str, str] = {}

    def work(mine: list[Attempt]) -> None:
        for attempt in mine:
            rig.executor.read(attempt)
            emitted[attempt.payload.name] = rig.executor.run(attempt).emitted[0].data["name"]

    threads = [threading.Thread(target=work, args=(attempts[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert emitted == {str(i): str(i) for i in range(40)}


@pytest.mark.parametrize("batch", [False, True])
def test_a_suspect_of_a_transactional_handler_begins_with_the_renewal_right_before_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, batch: bool
) -> None:
    """What comes between would count as a start that killed its worker, though it never ran."""
    order: list[str] = []
    renew = rig.store.deliveries.renew

    def renewing(ids: Sequence[str], *, token: str, lease: float, begun: bool = False) -> set[str]:
        order.append(f"renewed, begun={begun}")
        return renew(ids, token=token, lease=lease, begun=begun)

    def greet(event: object, session: Any) -> None:
        order.append("ran")

    monkeypatch.setattr(rig.store.deliveries, "renew", renewing)
    register = rig.batch_handler if batch else rig.handler
    handler = register(greet, transactional=True, **({"max_wait": 0.01} if batch else {}))
    attempt = rig.claimed(handler, ADA, lost=1, begun=False)
    pool = rig.pool()
    lane = pool.lane(handler)
    pool.start()
    pool.offer(lane, [attempt])
    eventually(lambda: rig.state(attempt) == "succeeded")
    assert order == ["renewed, begun=True", "ran"]
    stored = rig.store.deliveries.get(attempt.delivery_id)
    assert stored is not None
    assert stored.begun
