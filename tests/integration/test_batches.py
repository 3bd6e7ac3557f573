"""Batch handlers: collecting by size, time and key, and the failure of single events."""

from tenacity import stop_after_attempt, wait_fixed

from eventdriven_sync import Batch, Discard, EventBus, Reject, RetryPolicy
from eventdriven_sync.errors import InvalidOption
from eventdriven_sync.store import EventQuery
from tests.apps.orders import BillSent, OrderPlaced
from tests.apps.site import Site, conserved
from tests.polling import eventually

QUICK = RetryPolicy(stop=stop_after_attempt(3), wait=wait_fixed(0.1))

Seen = list[tuple[object, list[int]]]


def numbers(batch: Batch[OrderPlaced]) -> list[int]:
    return sorted(order.number for order in batch.events)


def times(seen: Seen) -> dict[int, int]:
    """How often each event was in a batch."""
    every = [number for _, batch in seen for number in batch]
    return {number: every.count(number) for number in every}


def states(bus: EventBus, ids: list[str]) -> list[str]:
    return [bus.dead_letters.get(f"Billing.collect:{event_id}").state for event_id in ids]


def test_a_batch_is_handled_when_it_is_full_and_the_rest_after_max_wait(site: Site) -> None:
    bus = site.bus()
    seen: Seen = []

    @bus.group("Billing").batch_handler(OrderPlaced, max_size=5, max_wait=0.5)
    def collect(batch: Batch[OrderPlaced]) -> None:
        seen.append((batch.key, numbers(batch)))

    bus.publish_many([OrderPlaced(number=n) for n in range(12)])
    site.worker(bus)
    conserved(bus)
    assert times(seen) == dict.fromkeys(range(12), 1)
    assert sorted(len(batch) for _, batch in seen) == [2, 5, 5]
    assert {key for key, _ in seen} == {None}


def test_with_group_by_only_events_of_one_key_share_a_batch(site: Site) -> None:
    bus = site.bus()
    seen: Seen = []

    @bus.group("Billing").batch_handler(
        OrderPlaced, max_size=50, max_wait=0.3, group_by=lambda order: order.customer
    )
    def collect(batch: Batch[OrderPlaced]) -> None:
        assert {order.customer for order in batch.events} == {batch.key}
        seen.append((batch.key, numbers(batch)))

    site.worker(bus)
    customers = ("ada", "bob", "cyd")
    bus.publish_many([OrderPlaced(number=n, customer=customers[n % 3]) for n in range(30)])
    audited = conserved(bus)
    assert [h.succeeded for h in audited.handlers] == [30]
    assert times(seen) == dict.fromkeys(range(30), 1)
    assert {key for key, _ in seen} == set(customers)


def test_only_the_events_given_to_batch_fail_are_retried_or_end_as_dead_letters(site: Site) -> None:
    bus = site.bus()
    seen: Seen = []

    @bus.group("Billing").batch_handler(
        OrderPlaced, max_size=8, max_wait=0.3, retry=QUICK, group_by=lambda order: order.customer
    )
    def collect(batch: Batch[OrderPlaced]) -> None:
        seen.append((batch.key, numbers(batch)))
        for order in batch.events:
            often = times(seen)[order.number]
            if order.number == 1 and often < 3:
                batch.fail(order, OSError("the printer is busy"))
            if order.number == 2:
                batch.fail(order, ValueError("always wrong"))
            if order.number == 3:
                batch.fail(order, Reject("not ours"))
            if order.number == 4:
                batch.fail(order, Discard("not worth it"))

    bus.publish_many([OrderPlaced(number=n) for n in range(8)], event_ids=[f"order-{n}" for n in range(8)])
    site.worker(bus)
    conserved(bus)
    assert states(bus, [f"order-{n}" for n in range(8)]) == [
        *("succeeded", "succeeded", "dead", "dead", "discarded"),
        *("succeeded", "succeeded", "succeeded"),
    ]
    assert times(seen) == {0: 1, 1: 3, 2: 3, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1}
    letters = {letter.event_id: letter for letter in bus.dead_letters.find()}
    assert {key: letter.reason for key, letter in letters.items()} == {
        "order-2": "attempts_exhausted",
        "order-3": "rejected",
    }
    failures = bus.dead_letters.get("Billing.collect:order-1").failures
    assert [(f.error_type, f.message) for f in failures] == [("OSError", "the printer is busy")] * 2


def test_a_batch_that_raises_fails_as_a_whole_and_publishes_once_when_it_succeeds(site: Site) -> None:
    bus = site.bus()
    billing = bus.group("Billing")
    seen: Seen = []

    @billing.batch_handler(OrderPlaced, max_size=4, max_wait=0.3, retry=QUICK)
    def collect(batch: Batch[OrderPlaced]) -> None:
        seen.append((batch.key, numbers(batch)))
        billing.publish(BillSent(number=len(batch)))
        if len(seen) == 1:
            raise RuntimeError("Test Error!!")

    bus.publish_many([OrderPlaced(number=n) for n in range(4)])
    site.worker(bus)
    audited = conserved(bus)
    assert [h.succeeded for h in audited.handlers] == [4]
    assert times(seen) == dict.fromkeys(range(4), 2)
    bills = bus.store.events.find(EventQuery(names=("Bill.sent",)))
    assert sum(bill.data["number"] for bill in bills) == 4, "what the failed batch published is dropped"
    assert all(bill.parent_ids for bill in bills)


def test_a_key_function_that_fails_is_the_failure_of_its_event_only(site: Site) -> None:
    bus = site.bus()
    seen: Seen = []

    def key(order: OrderPlaced) -> str:
        if order.number == 1:
            raise LookupError("who is that?")
        return order.customer

    @bus.group("Billing").batch_handler(OrderPlaced, max_size=4, max_wait=0.2, retry=QUICK, group_by=key)
    def collect(batch: Batch[OrderPlaced]) -> None:
        seen.append((batch.key, numbers(batch)))

    site.worker(bus)
    bus.publish_many([OrderPlaced(number=n) for n in range(3)])
    conserved(bus)
    assert times(seen) == {0: 1, 2: 1}
    letter = bus.dead_letters.find()[0]
    assert (letter.reason, letter.failed) == ("attempts_exhausted", 3)
    assert bus.dead_letters.get(letter.id).failures[-1].message == "who is that?"


def test_a_batch_that_is_being_collected_is_left_to_others_when_the_worker_stops(site: Site) -> None:
    bus = site.bus()
    seen: Seen = []

    @bus.group("Billing").batch_handler(OrderPlaced, max_size=10, max_wait=60.0)
    def collect(batch: Batch[OrderPlaced]) -> None:
        seen.append((batch.key, numbers(batch)))

    worker = site.worker(bus)
    bus.publish_many([OrderPlaced(number=n) for n in range(6)])
    stream = f"{site.settings.namespace}_Order"

    def in_hand() -> bool:
        state = bus.broker.consumer_state(stream, "Billing__collect", timeout=5)
        return state is not None and state.ack_pending == 6

    eventually(in_hand, timeout=30)
    worker.stop()
    assert seen == []
    site.worker(bus)
    bus.publish_many([OrderPlaced(number=n) for n in range(6, 10)])
    conserved(bus, timeout=40)
    assert seen == [(None, list(range(10)))]


def test_batch_fail_refuses_what_is_not_in_the_batch(site: Site) -> None:
    bus = site.bus()
    refused: list[str] = []

    @bus.group("Billing").batch_handler(OrderPlaced, max_size=1)
    def collect(batch: Batch[OrderPlaced]) -> None:
        try:
            batch.fail(OrderPlaced(number=1), ValueError("a copy, not the event itself"))
        except InvalidOption as error:
            refused.append(str(error))

    site.worker(bus)
    bus.publish(OrderPlaced(number=1))
    audited = conserved(bus)
    assert [h.succeeded for h in audited.handlers] == [1]
    assert "is not one of batch.events" in refused[0]
