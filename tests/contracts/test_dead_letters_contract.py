"""What every ``DeliveryStore`` promises of queries and dead letters, on memory and MongoDB."""

from typing import Any

import attrs
import pytest

from eventdriven_sync.envelope import Envelope, new_id
from eventdriven_sync.outcome import Dead, Discarded, Done, Outcome, RetryAt
from eventdriven_sync.records import Delivery
from eventdriven_sync.store import DeliveryQuery, DeliveryStore
from tests.contracts.samples import Samples
from tests.contracts.stages import StoreStage

STATES = ["pending", "running", "succeeded", "retrying", "dead", "discarded"]


@pytest.fixture
def deliveries(stage: StoreStage) -> DeliveryStore:
    return stage.store.deliveries


def reach(deliveries: DeliveryStore, given: Samples, state: str, event: Envelope | None = None) -> str:
    """A delivery in this state; its id."""
    event = event or given.event()
    delivery = given.delivery(event, token="owner", attempts=1)
    if state == "pending":
        deliveries.insert_pending([given.delivery(event)])
    elif state == "running":
        deliveries.start([delivery], lease=60)
    else:
        deliveries.settle([given.settlement(event, given.outcome(state), token="owner")])
    assert deliveries.states([delivery.id]) == {delivery.id: state}
    return delivery.id


def get(deliveries: DeliveryStore, delivery_id: str) -> Delivery:
    found = deliveries.get(delivery_id)
    assert found is not None
    return found


# --- finding ------------------------------------------------------------------------------------------


class Shelf:
    """Four deliveries that differ in everything one can ask for."""

    def __init__(self, deliveries: DeliveryStore, given: Samples) -> None:
        self.given = given
        self.other_handler = f"Comment{given.tag}.count"
        self.other_event = given.event(name=f"Post{given.tag}.published", operation_id=new_id())
        event = given.event()
        smtp, value = given.failure(), given.failure(error_type="ValueError")
        self.settlements = [
            self._settlement(event, Done(), 0),
            self._settlement(given.event(), RetryAt(after=60, failure=smtp), 1),
            self._settlement(self.other_event, Dead(reason="rejected", failure=value), 2),
            self._settlement(event, Discarded(reason="not ours"), 3, handler=self.other_handler),
        ]
        deliveries.settle(self.settlements)
        self.ids = [each.delivery_id for each in self.settlements]
        self.event = event

    def _settlement(self, event: Envelope, outcome: Outcome, seconds: float, **more: Any) -> Any:
        return self.given.settlement(event, outcome, started_at=self.given.at(seconds), **more)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (lambda shelf: {"ids": (shelf.ids[0], shelf.ids[2], "Blog.never:seen")}, [2, 0]),
        (lambda shelf: {"handler": shelf.given.handler}, [2, 1, 0]),
        (lambda shelf: {"handler": shelf.other_handler}, [3]),
        (lambda shelf: {"group": shelf.given.group}, [2, 1, 0]),
        (lambda shelf: {"group": shelf.given.group[:-1]}, []),
        (lambda shelf: {"group": shelf.given.group, "states": ("dead", "succeeded")}, [2, 0]),
        (lambda shelf: {"group": shelf.given.group, "error": "ValueError"}, [2]),
        (lambda shelf: {"group": shelf.given.group, "error": "KeyError"}, []),
        (lambda shelf: {"group": shelf.given.group, "reason": "rejected"}, [2]),
        (lambda shelf: {"handler": shelf.other_handler, "reason": "not ours"}, [3]),
        (lambda shelf: {"event_id": shelf.event.id}, [3, 0]),
        (lambda shelf: {"event_name": shelf.other_event.name}, [2]),
        (lambda shelf: {"operation_id": shelf.given.operation_id}, [3, 1, 0]),
        (lambda shelf: {"operation_id": shelf.other_event.operation_id}, [2]),
        (lambda shelf: {"group": shelf.given.group, "since": shelf.given.at(1)}, [2, 1]),
        (lambda shelf: {"group": shelf.given.group, "until": shelf.given.at(1)}, [0]),
        (lambda shelf: {"group": shelf.given.group, "limit": 2}, [2, 1]),
        (lambda shelf: {"handler": shelf.given.handler, "states": ("retrying",), "error": "ValueError"}, []),
    ],
)
def test_deliveries_are_found_by(
    deliveries: DeliveryStore, given: Samples, fields: Any, expected: list[int]
) -> None:
    shelf = Shelf(deliveries, given)
    found = deliveries.find(DeliveryQuery(**fields(shelf)))
    assert [each.id for each in found] == [shelf.ids[position] for position in expected]


def test_what_is_found_carries_no_event(deliveries: DeliveryStore, given: Samples) -> None:
    delivery_id = reach(deliveries, given, "dead")
    [found] = deliveries.find(DeliveryQuery(ids=(delivery_id,)))
    assert found.event is None
    assert found == attrs.evolve(get(deliveries, delivery_id), event=None)


def test_pages_of_deliveries_hold_each_of_them_once(deliveries: DeliveryStore, given: Samples) -> None:
    for seconds in (0, 0, 0, 1, 1, 2, 3):
        settlement = given.settlement(given.event(), Done(), started_at=given.at(seconds))
        deliveries.settle([settlement])
    query = DeliveryQuery(handler=given.handler, limit=2)
    seen: list[Delivery] = []
    while page := deliveries.find(attrs.evolve(query, after=seen[-1].id if seen else None)):
        assert len(page) <= 2
        seen += page
    assert len({each.id for each in seen}) == len(seen) == 7
    assert seen == sorted(seen, key=lambda each: each.created_at, reverse=True)


def test_deliveries_are_counted_by_state_whatever_the_page(deliveries: DeliveryStore, given: Samples) -> None:
    ids = [reach(deliveries, given, state) for state in [*STATES, "dead"]]
    counts = deliveries.count(DeliveryQuery(handler=given.handler, limit=1, after=ids[0]))
    assert {state: n for state, n in counts.items() if n} == dict.fromkeys(STATES, 1) | {"dead": 2}
    only = deliveries.count(DeliveryQuery(handler=given.handler, states=("dead",)))
    assert {state: n for state, n in only.items() if n} == {"dead": 2}
    assert not any(deliveries.count(DeliveryQuery(handler="Nobody.none")).values())


# --- retrying dead letters ----------------------------------------------------------------------------


def test_a_dead_letter_sent_back_begins_a_new_generation(deliveries: DeliveryStore, given: Samples) -> None:
    event = given.event()
    delivery_id = reach(deliveries, given, "dead", event)
    assert deliveries.retry_dead(DeliveryQuery(ids=(delivery_id,)), by="ada") == 1
    record = get(deliveries, delivery_id)
    assert (record.state, record.generation, record.attempts, record.failed, record.lost, record.reason) == (
        "retrying",
        1,
        0,
        0,
        0,
        "",
    )
    assert record.failures == (given.failure(),)
    assert record.event == event


def test_a_dead_letter_sent_back_is_due_at_once(deliveries: DeliveryStore, given: Samples) -> None:
    delivery_id = reach(deliveries, given, "dead")
    deliveries.retry_dead(DeliveryQuery(handler=given.handler), by="ada")
    [claimed] = deliveries.claim_due([given.handler], limit=5, lease=60, worker="w", token="claim-1")
    assert (claimed.id, claimed.attempts, claimed.generation) == (delivery_id, 1, 1)
    assert claimed.event is not None


def test_a_worker_lost_count_begins_anew_with_the_generation(
    stage: StoreStage, deliveries: DeliveryStore, given: Samples
) -> None:
    event = given.event()
    deliveries.start([given.delivery(event, token="slow-1", attempts=1)], lease=0.05)
    stage.pass_time(0.06)
    deliveries.claim_due([given.handler], limit=5, lease=60, worker="w", token="claim-1")
    lost = Dead(reason="worker_lost", failure=given.failure())
    assert deliveries.settle([given.settlement(event, lost, token="claim-1", claimed=True)]) == [True]
    delivery_id = f"{given.handler}:{event.id}"
    assert get(deliveries, delivery_id).lost == 1
    deliveries.retry_dead(DeliveryQuery(ids=(delivery_id,)), by="ada")
    assert get(deliveries, delivery_id).lost == 0


def test_generations_are_counted(deliveries: DeliveryStore, given: Samples) -> None:
    event = given.event()
    delivery_id = reach(deliveries, given, "dead", event)
    for generation in (1, 2, 3):
        deliveries.retry_dead(DeliveryQuery(ids=(delivery_id,)), by="ada")
        token = f"claim-{generation}"
        deliveries.claim_due([given.handler], limit=5, lease=60, worker="w", token=token)
        settlement = given.settlement(event, given.outcome("dead"), token=token, claimed=True)
        assert deliveries.settle([settlement]) == [True]
    record = get(deliveries, delivery_id)
    assert (record.state, record.generation, record.failed, len(record.failures)) == ("dead", 3, 1, 4)


@pytest.mark.parametrize("state", [state for state in STATES if state != "dead"])
def test_only_dead_letters_are_sent_back(deliveries: DeliveryStore, given: Samples, state: str) -> None:
    delivery_id = reach(deliveries, given, state)
    before = get(deliveries, delivery_id)
    assert deliveries.retry_dead(DeliveryQuery(handler=given.handler), by="ada") == 0
    assert deliveries.retry_dead(DeliveryQuery(ids=(delivery_id,), states=(state,)), by="ada") == 0
    assert get(deliveries, delivery_id) == before


def test_only_dead_letters_of_the_query_are_sent_back(deliveries: DeliveryStore, given: Samples) -> None:
    kept = reach(deliveries, given, "dead")
    value = Dead(reason="rejected", failure=given.failure(error_type="ValueError"))
    deliveries.settle([given.settlement(given.event(), value) for _ in range(3)])
    query = DeliveryQuery(handler=given.handler, error="ValueError")
    assert deliveries.retry_dead(query, by="ada") == 3
    assert deliveries.retry_dead(query, by="ada") == 0
    assert get(deliveries, kept).state == "dead"


# --- discarding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["dead", "retrying"])
def test_a_person_discards_what_is_dead_or_waits(
    deliveries: DeliveryStore, given: Samples, state: str
) -> None:
    delivery_id = reach(deliveries, given, state)
    query = DeliveryQuery(ids=(delivery_id,))
    assert deliveries.discard(query, reason="customer left", by="ada") == 1
    record = get(deliveries, delivery_id)
    assert (record.state, record.reason, record.due_at) == ("discarded", "customer left", None)
    assert record.failures == (given.failure(),)
    assert deliveries.discard(query, reason="again", by="ada") == 0
    assert deliveries.claim_due([given.handler], limit=5, lease=60, worker="w", token="t") == []


@pytest.mark.parametrize("state", [state for state in STATES if state not in ("dead", "retrying")])
def test_nothing_else_is_discarded(deliveries: DeliveryStore, given: Samples, state: str) -> None:
    delivery_id = reach(deliveries, given, state)
    before = get(deliveries, delivery_id)
    assert deliveries.discard(DeliveryQuery(handler=given.handler), reason="no", by="ada") == 0
    assert get(deliveries, delivery_id) == before


def test_only_deliveries_of_the_query_are_discarded(deliveries: DeliveryStore, given: Samples) -> None:
    dead, retrying = reach(deliveries, given, "dead"), reach(deliveries, given, "retrying")
    query = DeliveryQuery(handler=given.handler, states=("dead",))
    assert deliveries.discard(query, reason="no", by="ada") == 1
    assert deliveries.states([dead, retrying]) == {dead: "discarded", retrying: "retrying"}


# --- undoing a discard --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["dead", "retrying"])
def test_a_discard_can_be_undone(deliveries: DeliveryStore, given: Samples, state: str) -> None:
    delivery_id = reach(deliveries, given, state)
    before = get(deliveries, delivery_id)
    deliveries.discard(DeliveryQuery(ids=(delivery_id,)), reason="customer left", by="ada")
    assert get(deliveries, delivery_id).discarded_from == state
    assert deliveries.undo_discard(delivery_id, by="eve")
    after = get(deliveries, delivery_id)
    assert attrs.evolve(after, due_at=before.due_at) == before
    assert not deliveries.undo_discard(delivery_id, by="eve")
    claimed = deliveries.claim_due([given.handler], limit=5, lease=60, worker="w", token="t")
    assert [each.id for each in claimed] == ([delivery_id] if state == "retrying" else [])


@pytest.mark.parametrize("state", STATES)
def test_only_what_a_person_discarded_is_brought_back(
    deliveries: DeliveryStore, given: Samples, state: str
) -> None:
    delivery_id = reach(deliveries, given, state)
    before = get(deliveries, delivery_id)
    assert not deliveries.undo_discard(delivery_id, by="ada")
    assert get(deliveries, delivery_id) == before
    assert not deliveries.undo_discard("Blog.never:seen", by="ada")


# --- retrying with another payload --------------------------------------------------------------------


def test_a_dead_letter_runs_with_another_payload_and_the_original_is_kept(
    deliveries: DeliveryStore, given: Samples
) -> None:
    event = given.event(data={"user_id": "$wrong"})
    delivery_id = reach(deliveries, given, "dead", event)
    first = attrs.evolve(event, data={"user_id": "$$NOW"})
    assert deliveries.retry_with(delivery_id, first, by="ada")
    [claimed] = deliveries.claim_due([given.handler], limit=5, lease=60, worker="w", token="c")
    assert (claimed.event, claimed.original, claimed.generation) == (first, event, 1)
    dead = given.settlement(first, given.outcome("dead"), token="c", claimed=True)
    assert deliveries.settle([dead]) == [True]
    second = attrs.evolve(event, data={"user_id": "right"})
    assert deliveries.retry_with(delivery_id, second, by="ada")
    record = get(deliveries, delivery_id)
    assert (record.state, record.event, record.original) == ("retrying", second, event)
    [found] = deliveries.find(DeliveryQuery(ids=(delivery_id,)))
    assert found.original is None


@pytest.mark.parametrize("state", [state for state in STATES if state != "dead"])
def test_nothing_else_runs_with_another_payload(
    deliveries: DeliveryStore, given: Samples, state: str
) -> None:
    event = given.event()
    delivery_id = reach(deliveries, given, state, event)
    before = get(deliveries, delivery_id)
    assert not deliveries.retry_with(delivery_id, attrs.evolve(event, data={}), by="ada")
    assert get(deliveries, delivery_id) == before


def test_what_is_no_event_has_no_payload_to_change(deliveries: DeliveryStore, given: Samples) -> None:
    event = given.event()
    dead = attrs.evolve(given.settlement(event, given.outcome("dead")), event=None, raw=given.raw())
    deliveries.settle([dead])
    assert not deliveries.retry_with(dead.delivery_id, event, by="ada")
    assert get(deliveries, dead.delivery_id).state == "dead"


# --- many at once -------------------------------------------------------------------------------------


def test_what_a_job_sent_back_is_counted_by_state(deliveries: DeliveryStore, given: Samples) -> None:
    ids = [reach(deliveries, given, "dead") for _ in range(3)]
    reach(deliveries, given, "dead")
    job = f"job-{given.tag}"
    assert deliveries.retry_dead(DeliveryQuery(ids=tuple(ids)), by="ada", job=job) == 3
    [claimed] = deliveries.claim_due([given.handler], limit=1, lease=60, worker="w", token="c")
    assert claimed.job == job
    deliveries.settle([given.settlement(given.event(id=claimed.event_id), Done(), token="c", claimed=True)])
    counts = deliveries.count(DeliveryQuery(job=job))
    assert {state: n for state, n in counts.items() if n} == {"retrying": 2, "succeeded": 1}
    assert {each.id for each in deliveries.find(DeliveryQuery(job=job))} == set(ids)
    assert not deliveries.count(DeliveryQuery(job="another"))


def test_letters_that_died_before_a_moment_are_found(
    stage: StoreStage, deliveries: DeliveryStore, given: Samples
) -> None:
    old = reach(deliveries, given, "dead")
    stage.pass_time(0.1)
    moment = stage.store.directory.now()
    stage.pass_time(0.1)
    fresh = given.settlement(given.event(), given.outcome("dead"), started_at=stage.store.directory.now())
    deliveries.settle([fresh])
    query = DeliveryQuery(states=("dead",), handler=given.handler, died_before=moment)
    assert [each.id for each in deliveries.find(query)] == [old]
    assert deliveries.retry_dead(query, by="ada") == 1
    assert get(deliveries, fresh.delivery_id).state == "dead"
    later = DeliveryQuery(handler=given.handler, died_before=stage.store.directory.now())
    assert old not in [each.id for each in deliveries.find(later)]
