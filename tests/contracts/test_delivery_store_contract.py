"""What every ``DeliveryStore`` promises of outcomes, claims and leases, on memory and MongoDB."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial

import attrs
import pytest

from eventdriven_sync.outcome import Dead, Done, RetryAt
from tests.contracts.lane import LONG, Lane
from tests.contracts.stages import TIMEOUT

OUTCOMES = ["succeeded", "retrying", "dead", "discarded"]
LEASE = 0.2


def near(moment: datetime | None, expected: datetime) -> bool:
    return moment is not None and abs((moment - expected).total_seconds()) < 5


# --- the live lane's first record ---------------------------------------------------------------------


def test_only_deliveries_with_a_record_have_a_state(lane: Lane) -> None:
    lane.reach("dead")
    assert lane.deliveries.states([lane.id, f"{lane.id}0"]) == {lane.id: "dead"}
    assert lane.deliveries.states([]) == {}
    assert lane.deliveries.get(f"{lane.id}0") is None


@pytest.mark.parametrize("state", OUTCOMES)
def test_the_first_outcome_becomes_the_record(lane: Lane, state: str) -> None:
    assert lane.settle(lane.given.outcome(state), token="live-1")
    record = lane.record
    assert (record.state, record.attempts, record.generation, record.lost) == (state, 1, 0, 0)
    assert (record.handler, record.event_id, record.event_name, record.operation_id) == (
        lane.given.handler,
        lane.event.id,
        lane.event.name,
        lane.event.operation_id,
    )
    assert record.created_at == record.started_at == lane.given.now
    assert (record.token, record.worker, record.duration_ms) == ("live-1", "host:1", 12.5)


@pytest.mark.parametrize(
    ("state", "failed", "reason", "embedded", "due"),
    [
        ("succeeded", 0, "", False, False),
        ("retrying", 1, "", True, True),
        ("dead", 1, "attempts_exhausted", True, False),
        ("discarded", 0, "not ours", False, False),
    ],
)
def test_an_outcome_leaves(
    lane: Lane, state: str, failed: int, reason: str, embedded: bool, due: bool
) -> None:
    lane.settle(lane.given.outcome(state))
    record = lane.record
    assert (record.failed, record.reason) == (failed, reason)
    assert record.failures == (lane.given.failure(),) * failed
    assert record.event == (lane.event if embedded else None)
    assert (record.due_at is not None) == due
    assert record.final == (not due)
    if record.final:
        assert near(record.settled_at, lane.given.now)


@pytest.mark.parametrize("state", OUTCOMES)
def test_recording_the_same_attempt_again_changes_nothing(lane: Lane, state: str) -> None:
    lane.settle(lane.given.outcome(state))
    before = lane.record
    assert lane.settle(lane.given.outcome(state))
    assert lane.record == before


@pytest.mark.parametrize("state", OUTCOMES)
@pytest.mark.parametrize("claimed", [False, True])
def test_another_attempt_is_fenced_off_a_settled_delivery(lane: Lane, state: str, claimed: bool) -> None:
    lane.reach(state)
    before = lane.record
    for outcome in OUTCOMES:
        assert not lane.settle(lane.given.outcome(outcome), token="late", claimed=claimed)
    assert lane.record == before


@pytest.mark.parametrize("state", ["pending", "running"])
def test_the_live_lane_is_fenced_off_a_delivery_the_store_owns(lane: Lane, state: str) -> None:
    lane.reach(state)
    before = lane.record
    assert not lane.settle(Done(), token="live-1")
    assert lane.record == before


def test_many_outcomes_are_answered_in_their_order(lane: Lane) -> None:
    events = [lane.given.event() for _ in range(4)]
    lane.deliveries.settle([lane.given.settlement(events[1], Done(), token="owner")])
    settlements = [
        lane.given.settlement(e, lane.given.outcome(s)) for e, s in zip(events, OUTCOMES, strict=True)
    ]
    assert lane.deliveries.settle(settlements) == [True, False, True, True]
    states = lane.deliveries.states([each.delivery_id for each in settlements])
    assert list(map(states.get, (s.delivery_id for s in settlements))) == [
        "succeeded",
        "succeeded",
        "dead",
        "discarded",
    ]
    assert lane.deliveries.settle([]) == []


def test_of_many_attempts_at_once_one_is_recorded(lane: Lane) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: lane.settle(Done(), token=f"live-{n}"), range(16)))
    assert answers.count(True) == 1
    assert lane.record.token == f"live-{answers.index(True)}"


def test_a_message_that_is_no_event_is_kept_as_it_came(lane: Lane) -> None:
    raw = lane.given.raw()
    lane.settle(Dead(reason="undecodable", failure=lane.given.failure()), event=None, raw=raw)
    assert lane.record.raw == raw
    assert lane.record.event is None


# --- emitted events -----------------------------------------------------------------------------------


def test_emitted_events_are_stored_with_a_success(lane: Lane) -> None:
    emitted = (lane.given.full_event(), lane.given.full_event())
    for _ in range(2):
        assert lane.settle(Done(), emitted=emitted)
    assert lane.stage.store.events.get([each.id for each in emitted]) == {e.id: e for e in emitted}


def test_emitted_events_that_are_stored_already_are_no_hindrance(lane: Lane) -> None:
    first = lane.given.full_event()
    lane.stage.store.events.append([first], timeout=TIMEOUT)
    assert lane.settle(Done(), emitted=(attrs.evolve(first, data={}), lane.given.full_event()))
    assert lane.record.state == "succeeded"
    assert lane.stage.store.events.get([first.id]) == {first.id: first}


@pytest.mark.parametrize("state", ["retrying", "dead", "discarded"])
def test_an_attempt_without_success_publishes_nothing(lane: Lane, state: str) -> None:
    emitted = lane.given.full_event()
    assert lane.settle(lane.given.outcome(state), emitted=(emitted,))
    assert lane.stage.store.events.get([emitted.id]) == {}


# --- retries ------------------------------------------------------------------------------------------


def test_a_retry_is_due_after_its_delay_by_the_servers_clock(lane: Lane) -> None:
    lane.settle(RetryAt(after=30.0, failure=lane.given.failure()), started_at=lane.given.at(-300))
    assert near(lane.record.due_at, lane.given.at(30))
    assert lane.claim() == []


def test_a_retry_runs_once_its_delay_is_over(lane: Lane) -> None:
    lane.settle(RetryAt(after=LEASE, failure=lane.given.failure()))
    assert lane.claim() == []
    lane.stage.pass_time(LEASE)
    assert [each.id for each in lane.claim()] == [lane.id]


def test_failures_are_counted_and_the_last_ten_kept(lane: Lane) -> None:
    for attempt in range(1, 13):
        lane.claim(f"t{attempt}")
        outcome = RetryAt(after=0, failure=lane.given.failure(attempt=attempt))
        assert lane.settle(outcome, token=f"t{attempt}", claimed=attempt > 1)
    record = lane.record
    assert (record.failed, record.attempts) == (12, 12)
    assert [failure.attempt for failure in record.failures] == list(range(3, 13))


@pytest.mark.parametrize("state", OUTCOMES)
def test_a_claimed_attempt_records_its_outcome(lane: Lane, state: str) -> None:
    lane.settle(RetryAt(after=0, failure=lane.given.failure()))
    lane.claim("claim-1")
    second = lane.given.failure(attempt=2, message="again")
    assert lane.settle(lane.given.outcome(state, failure=second), token="claim-1", claimed=True)
    record = lane.record
    failed = 1 + (state in ("retrying", "dead"))
    assert (record.state, record.attempts, record.failed) == (state, 2, failed)
    assert record.failures == (lane.given.failure(), second)[:failed]
    assert record.event == (lane.event if state in ("retrying", "dead") else None)
    assert (record.due_at is not None) == (state == "retrying")
    assert record.created_at == lane.given.now


@pytest.mark.parametrize("state", ["retrying", "dead"])
def test_the_event_stays_when_an_outcome_comes_without_it(lane: Lane, state: str) -> None:
    lane.start(token="slow-1")
    assert lane.settle(lane.given.outcome(state), token="slow-1", claimed=True, event=None)
    assert lane.record.event == lane.event


@pytest.mark.parametrize("state", OUTCOMES)
def test_recording_a_claimed_attempt_again_changes_nothing(lane: Lane, state: str) -> None:
    lane.start(token="slow-1")
    lane.settle(lane.given.outcome(state), token="slow-1", claimed=True)
    before = lane.record
    assert lane.settle(lane.given.outcome(state), token="slow-1", claimed=True)
    assert lane.record == before


def test_a_claimed_attempt_needs_its_own_token(lane: Lane) -> None:
    lane.start(token="slow-1")
    before = lane.record
    assert not lane.settle(Done(), token="other", claimed=True)
    assert lane.record == before


def test_a_claimed_attempt_without_a_record_is_fenced_off(lane: Lane) -> None:
    assert not lane.settle(Done(), token="claim-1", claimed=True)
    assert lane.deliveries.get(lane.id) is None


# --- the slow path ------------------------------------------------------------------------------------


def test_a_start_is_recorded_before_the_handler_runs(lane: Lane) -> None:
    assert lane.start(token="slow-1", lease=30.0)
    record = lane.record
    assert (record.state, record.attempts, record.token) == ("running", 1, "slow-1")
    assert record.event == lane.event
    assert near(record.due_at, lane.given.at(30))


@pytest.mark.parametrize("state", ["pending", "running", *OUTCOMES])
def test_nothing_starts_where_a_record_exists(lane: Lane, state: str) -> None:
    lane.reach(state)
    before = lane.record
    assert not lane.start(token="slow-1")
    assert lane.record == before


def test_several_starts_are_answered_in_their_order(lane: Lane) -> None:
    events = [lane.given.event() for _ in range(3)]
    lane.insert(events[1])
    records = [lane.given.delivery(each, state="running", attempts=1, token="slow") for each in events]
    assert lane.deliveries.start(records, lease=LONG) == [True, False, True]
    assert lane.deliveries.start([], lease=LONG) == []


# --- claiming -----------------------------------------------------------------------------------------


def test_a_claim_takes_the_delivery_with_its_event(lane: Lane) -> None:
    lane.insert()
    [claimed] = lane.claim("claim-1", lease=30.0)
    assert (claimed.state, claimed.attempts, claimed.lost) == ("running", 1, 0)
    assert (claimed.token, claimed.worker, claimed.event) == ("claim-1", "host:2", lane.event)
    assert near(claimed.due_at, lane.given.at(30))
    assert claimed == lane.record


def test_what_is_claimed_is_not_claimed_again(lane: Lane) -> None:
    lane.insert()
    assert len(lane.claim("claim-1")) == 1
    assert lane.claim("claim-2") == []


def test_only_deliveries_of_the_named_handlers_are_claimed(lane: Lane) -> None:
    lane.insert()
    claim = {"limit": 10, "lease": LONG, "worker": "w", "token": "t"}
    assert lane.deliveries.claim_due([f"{lane.given.group}.other"], **claim) == []
    assert lane.deliveries.claim_due([], **claim) == []
    assert len(lane.deliveries.claim_due(["Any.other", lane.given.handler], **claim)) == 1


def test_no_more_than_the_limit_is_claimed_the_longest_due_first(lane: Lane) -> None:
    events = [lane.given.event() for _ in range(4)]
    for event in events:
        lane.insert(event)
        lane.stage.pass_time(0.002)
    claimed = [each.event_id for token in ("a", "b", "c") for each in lane.claim(token, limit=2)]
    assert set(claimed[:2]) == {event.id for event in events[:2]}
    assert set(claimed) == {event.id for event in events}


def test_a_lease_that_ran_out_is_claimed_as_a_lost_start(lane: Lane) -> None:
    lane.start(token="slow-1", lease=LEASE)
    assert lane.claim("claim-1", lease=LEASE) == []
    for lost in (1, 2):
        lane.stage.pass_time(LEASE)
        [claimed] = lane.claim(f"claim-{lost}", lease=LEASE)
        assert (claimed.attempts, claimed.lost, claimed.token) == (1 + lost, lost, f"claim-{lost}")
        assert not claimed.begun
        assert lane.deliveries.renew([lane.id], token=claimed.token, lease=LEASE, begun=True) == set()
        assert lane.record.begun


def test_what_waited_in_the_hands_of_a_dead_worker_counts_as_lost_only_once(lane: Lane) -> None:
    lane.insert(lane.given.event())
    for attempt, lost in ((1, 0), (2, 1), (3, 1)):
        [claimed] = lane.claim(f"claim-{attempt}", lease=LEASE)
        assert (claimed.attempts, claimed.lost, claimed.begun) == (attempt, lost, not lost)
        lane.deliveries.renew([claimed.id], token=claimed.token, lease=LEASE)  # a lease alone begins nothing
        lane.stage.pass_time(LEASE)


def test_nothing_begins_under_a_lease_that_is_lost(lane: Lane) -> None:
    lane.start(token="slow-1", lease=LEASE)
    lane.stage.pass_time(LEASE)
    lane.claim("claim-1")
    assert lane.deliveries.renew([lane.id], token="slow-1", lease=LONG, begun=True) == {lane.id}
    assert not lane.record.begun


def test_a_retry_is_no_lost_start(lane: Lane) -> None:
    lane.settle(RetryAt(after=0, failure=lane.given.failure()))
    [claimed] = lane.claim()
    assert (claimed.attempts, claimed.lost) == (2, 0)


def test_who_lost_the_lease_records_nothing(lane: Lane) -> None:
    lane.start(token="slow-1", lease=LEASE)
    lane.stage.pass_time(LEASE)
    lane.claim("claim-1")
    assert not lane.settle(Done(), token="slow-1", claimed=True)
    assert lane.settle(lane.given.outcome("dead"), token="claim-1", claimed=True)
    assert lane.record.state == "dead"


def test_who_is_late_but_not_replaced_still_records(lane: Lane) -> None:
    lane.start(token="slow-1", lease=LEASE)
    lane.stage.pass_time(LEASE)
    assert lane.settle(Done(), token="slow-1", claimed=True)


def test_claims_at_once_share_the_deliveries(lane: Lane) -> None:
    lane.insert(*[lane.given.event() for _ in range(20)])
    with ThreadPoolExecutor(4) as pool:
        claims = list(pool.map(lambda n: lane.claim(f"claim-{n}", limit=20), range(8)))
    claims += [lane.claim("rest", limit=20)]
    assert len([each.id for claim in claims for each in claim]) == 20
    assert len({each.id for claim in claims for each in claim}) == 20


@pytest.mark.parametrize("state", ["succeeded", "dead", "discarded"])
def test_what_is_settled_is_never_claimed(lane: Lane, state: str) -> None:
    lane.reach(state)
    lane.stage.pass_time(0.01)
    assert lane.claim() == []


# --- leases -------------------------------------------------------------------------------------------


def test_renewing_keeps_a_delivery_from_being_claimed(lane: Lane) -> None:
    lane.start(token="slow-1", lease=LEASE)
    assert lane.deliveries.renew([lane.id], token="slow-1", lease=LONG) == set()
    lane.stage.pass_time(LEASE)
    assert lane.claim() == []
    assert lane.record.attempts == 1


def test_only_a_lease_that_ends_soon_is_renewed_if_that_is_asked(lane: Lane) -> None:
    lane.start(token="slow-1", lease=LONG)
    lasting = lane.record
    renew = partial(lane.deliveries.renew, [lane.id], lease=LONG)
    assert renew(token="slow-1", ending_within=LONG / 2) == set()
    assert lane.record == lasting
    assert renew(token="other", ending_within=LONG / 2) == {lane.id}
    lane.stage.pass_time(0.01)
    assert renew(token="slow-1", ending_within=2 * LONG) == set()
    assert lasting.due_at is not None
    assert lane.record.due_at is not None
    assert lane.record.due_at > lasting.due_at


def test_renewing_tells_what_is_no_longer_held(lane: Lane) -> None:
    other = lane.given.event()
    lane.start(token="slow-1")
    lane.deliveries.start([lane.given.delivery(other, state="running", token="slow-1")], lease=LONG)
    lane.settle(Done(), token="slow-1", claimed=True)
    ids = [lane.id, f"{lane.given.handler}:{other.id}", "Blog.never:seen"]
    assert lane.deliveries.renew(ids, token="slow-1", lease=LONG) == {lane.id, "Blog.never:seen"}
    assert lane.deliveries.renew(ids, token="other", lease=LONG) == set(ids)
    assert lane.deliveries.renew([], token="other", lease=LONG) == set()


def test_a_released_delivery_is_due_at_once_and_its_start_not_counted(lane: Lane) -> None:
    lane.settle(RetryAt(after=0, failure=lane.given.failure()))
    lane.claim("claim-1")
    lane.deliveries.release([lane.id], token="claim-1")
    record = lane.record
    assert (record.state, record.attempts, record.lost, record.failed) == ("retrying", 1, 0, 1)
    assert record.event == lane.event
    assert [each.attempts for each in lane.claim("claim-2")] == [2]


def test_a_result_after_the_release_is_fenced_off(lane: Lane) -> None:
    lane.insert()
    lane.claim("claim-1")
    lane.deliveries.release([lane.id], token="claim-1")
    assert not lane.settle(Done(), token="claim-1", claimed=True)
    assert lane.record.state == "retrying"


def test_only_the_owner_releases(lane: Lane) -> None:
    lane.start(token="slow-1")
    before = lane.record
    lane.deliveries.release([lane.id, "Blog.never:seen"], token="other")
    lane.deliveries.release([], token="slow-1")
    assert lane.record == before


# --- pending deliveries and due times -----------------------------------------------------------------


def test_pending_deliveries_are_inserted_where_no_record_exists(lane: Lane) -> None:
    new = lane.given.event()
    lane.reach("succeeded")
    before = lane.record
    assert lane.insert(lane.event, new) == 1
    assert lane.insert(lane.event, new) == 0
    assert lane.record == before
    inserted = lane.deliveries.get(f"{lane.given.handler}:{new.id}")
    assert inserted is not None
    assert (inserted.state, inserted.attempts, inserted.event) == ("pending", 0, new)
    assert near(inserted.due_at, lane.given.now)
    assert lane.deliveries.insert_pending([]) == 0


def test_the_next_due_time_is_told_in_seconds(lane: Lane) -> None:
    handlers = [lane.given.handler]
    assert lane.deliveries.next_due(handlers) is None
    assert lane.deliveries.next_due([]) is None
    lane.start(lease=90.0)
    assert 80 < (lane.deliveries.next_due(handlers) or 0) <= 90
    lane.deliveries.settle(
        [lane.given.settlement(lane.given.event(), lane.given.outcome("retrying", after=30))]
    )
    assert 20 < (lane.deliveries.next_due(handlers) or 0) <= 30
    lane.insert(lane.given.event())
    lane.stage.pass_time(0.01)
    overdue = lane.deliveries.next_due(["Any.other", *handlers])
    assert overdue is not None
    assert -5 < overdue < 0


@pytest.mark.parametrize("state", ["succeeded", "dead", "discarded"])
def test_what_is_settled_is_not_due(lane: Lane, state: str) -> None:
    lane.reach(state)
    assert lane.deliveries.next_due([lane.given.handler]) is None
