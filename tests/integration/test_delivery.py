"""What becomes of an event when nothing dies: handled, retried, dead-lettered, and seen in its chain."""

import asyncio
import itertools
import logging
from itertools import pairwise
from typing import Any

import nats
import pytest
from tenacity import retry_if_exception_type, stop_after_attempt, wait_exponential, wait_fixed

from eventdriven_sync import Discard, EventBus, Reject, Retry, RetryPolicy, current_envelope, event
from eventdriven_sync.errors import EventIdReused
from eventdriven_sync.store import DeliveryQuery, EventQuery
from tests.apps import orders
from tests.apps.orders import BillSent, OrderPlaced
from tests.apps.site import Gate, Site, conserved
from tests.polling import eventually


@event("User.nameUpdated", key="user_id")
class UserNameUpdated:
    user_id: str
    first_name: str


@event("Blog.userUpdated")
class BlogUserUpdated:
    user_id: str


@event("Comment.userUpdated")
class CommentUserUpdated:
    user_id: str


WITNESSED = ("billed", "shipped", "filed")
WAITS = (0.3, 0.6, 1.2, 2.4)
GROWING = RetryPolicy(stop=stop_after_attempt(5), wait=wait_exponential(multiplier=0.3))
QUICK = RetryPolicy(stop=stop_after_attempt(3), wait=wait_fixed(0.1))


class Faulty:
    """Two groups that handle the same event; the handler of one of them fails until it is mended."""

    def __init__(self, bus: EventBus) -> None:
        self.mended = False
        self.calls: list[str] = []
        blog, comment = bus.group("Blog"), bus.group("Comment")

        @blog.handler(UserNameUpdated)
        def rename_author(event: UserNameUpdated) -> None:
            self.calls.append("Blog")
            blog.publish(BlogUserUpdated(user_id=event.user_id))

        @comment.handler(UserNameUpdated, retry=GROWING)
        def update_author(event: UserNameUpdated) -> None:
            self.calls.append("Comment")
            comment.publish(CommentUserUpdated(user_id=event.user_id))
            if not self.mended:
                raise RuntimeError("Test Error!!")


def names(bus: EventBus) -> list[str]:
    """The names of every accepted event."""
    return sorted(event.name for event in bus.store.events.find(EventQuery(limit=1000)))


def test_the_main_job_from_the_operation_over_the_dead_letter_to_a_green_chain(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="eventdriven_sync")
    bus = site.bus()
    faulty = Faulty(bus)
    site.worker(bus)
    with bus.operation("userUpdateNames", kind="script", variables={"first_name": "Ada"}) as operation:
        receipt = bus.publish(UserNameUpdated(user_id="42", first_name="Ada"))
    assert receipt.operation_id == operation.id

    chain = operation.wait(timeout=60)
    assert chain.settled
    assert not chain.succeeded
    assert faulty.calls.count("Comment") == 5
    assert faulty.calls.count("Blog") == 1
    assert names(bus) == ["Blog.userUpdated", "User.nameUpdated"], "a failed attempt publishes nothing"

    letters = bus.dead_letters.find(operation_id=operation.id)
    assert [(letter.handler, letter.reason, letter.failed) for letter in letters] == [
        ("Comment.update_author", "attempts_exhausted", 5)
    ]
    letter = bus.dead_letters.get(letters[0].id)
    assert letter.event is not None
    assert letter.event.data == {"user_id": "42", "first_name": "Ada"}
    assert [failure.attempt for failure in letter.failures] == [1, 2, 3, 4, 5]
    assert {failure.error_type for failure in letter.failures} == {"RuntimeError"}
    assert "raise RuntimeError" in letter.failures[0].traceback

    gaps = [(b.failed_at - a.failed_at).total_seconds() for a, b in pairwise(letter.failures)]
    assert gaps == sorted(gaps)
    for gap, wait in zip(gaps, WAITS, strict=True):
        assert wait - 0.05 <= gap < wait + 5

    told = [record.message for record in caplog.records if receipt.id in record.message]
    assert told == [
        f"Failed {n} times, handler: Comment.update_author, error: Test Error!! event: {receipt.id}"
        for n in range(1, 6)
    ] + [
        "Added to dead letter queue, handler: Comment.update_author, reason: attempts_exhausted, "
        f"event: {receipt.id}"
    ]

    faulty.mended = True
    bus.dead_letters.retry(letter.id, by="a tester")
    chain = operation.wait(timeout=30)
    assert chain.succeeded
    assert faulty.calls.count("Comment") == 6
    assert faulty.calls.count("Blog") == 1, "the retry reaches only the handler that failed"
    assert names(bus) == ["Blog.userUpdated", "Comment.userUpdated", "User.nameUpdated"]
    retried = bus.dead_letters.get(letter.id)
    assert (retried.state, retried.generation, retried.failed) == ("succeeded", 1, 0)
    assert retried.failures == letter.failures
    assert {(node.event.name, node.event.depth) for node in chain.walk()} == {
        ("User.nameUpdated", 0),
        ("Blog.userUpdated", 1),
        ("Comment.userUpdated", 1),
    }
    conserved(bus)


def test_a_retried_dead_letter_that_fails_again_counts_its_own_attempts(site: Site) -> None:
    bus = site.bus()

    @bus.group("Billing").handler(OrderPlaced, retry=QUICK)
    def bill(order: OrderPlaced) -> None:
        raise ValueError("still broken")

    site.worker(bus)
    bus.publish(OrderPlaced(number=1), event_id="one")
    for generation in range(2):
        letter = eventually(lambda: bus.dead_letters.find(reason="attempts_exhausted"), timeout=30)[0]
        assert (letter.generation, letter.failed) == (generation, 3)
        assert bus.dead_letters.retry_all(error="ValueError") == 1
    letter = eventually(lambda: bus.dead_letters.find(), timeout=30)[0]
    failures = bus.dead_letters.get(letter.id).failures
    assert [(f.generation, f.attempt) for f in failures] == [(g, a) for g in range(3) for a in (1, 2, 3)]
    conserved(bus)


def test_two_worker_processes_share_a_group_and_two_groups_get_every_event(site: Site) -> None:
    bus = site.bus()
    processes = [site.worker_process("shop", "--threads", 4) for _ in range(2)]
    for process in processes:
        process.ready()
    numbers = itertools.count()

    def both_took_part() -> bool:
        """One process may take a whole burst: more come until each has had some."""
        bus.publish_many([OrderPlaced(number=next(numbers), seconds=0.002) for _ in range(30)])
        took_part = {p.pid for p in processes}
        return all(set(site.witness.counts(what, by="pid")) == took_part for what in WITNESSED)

    eventually(both_took_part, timeout=60)
    published = next(numbers)
    audited = conserved(bus, timeout=60)
    assert {h.name: h.succeeded for h in audited.handlers} == dict.fromkeys(
        ["Archive.file", "Billing.bill", "Shipping.ship"], published
    )
    for what in WITNESSED:
        counts = site.witness.counts(what)
        assert set(counts) == set(range(published))
        assert set(counts.values()) == {1}, f"{what}: every event once"


def test_a_hung_handler_is_run_again_after_its_timeout_and_its_late_result_is_dropped(site: Site) -> None:
    processes = [site.worker_process("hanging", "--threads", 1).ready() for _ in range(2)]
    bus = site.bus()
    receipt = bus.publish(OrderPlaced(number=7, gate="late"))
    delivery = eventually(
        lambda: bus.store.deliveries.find(DeliveryQuery(event_id=receipt.id, states=("succeeded",))),
        timeout=30,
    )[0]
    first, second = site.witness.notes("start")
    assert (first["pid"], first["thread"]) != (second["pid"], second["thread"])
    site.witness.note("open", gate="late")
    eventually(lambda: site.witness.notes("late end"))
    refused = site.witness.notes("late publish")
    assert [note["immediate"] for note in refused] == [False, True]
    assert all("no longer owns this delivery" in note["error"] for note in refused)
    bills = bus.store.events.find(EventQuery(names=("Bill.sent",)))
    assert [bill.data["number"] for bill in bills] == [7]
    after = bus.dead_letters.get(delivery.id)
    assert [(f.error_type, "hang_in_here" in f.traceback) for f in after.failures] == [
        ("HandlerTimeout", True)
    ]
    assert after.settled_at == delivery.settled_at
    assert not any(process.ended for process in processes)
    conserved(bus)


def test_a_handler_chooses_its_outcome_by_raising_retry_reject_or_discard(site: Site) -> None:
    bus = site.bus()
    calls: list[str] = []

    @bus.group("Billing").handler(OrderPlaced, retry=QUICK)
    def bill(order: OrderPlaced) -> None:
        calls.append(order.customer)
        if order.customer == "later" and calls.count("later") == 1:
            raise Retry("the printer is busy", after=0.2)
        if order.customer == "never":
            raise Reject("no such customer")
        if order.customer == "nothing":
            raise Discard("nothing to pay")

    site.worker(bus)
    ids = {c: bus.publish(OrderPlaced(number=1, customer=c)).id for c in ("later", "never", "nothing")}
    conserved(bus)
    found = {c: bus.dead_letters.get(f"Billing.bill:{event_id}") for c, event_id in ids.items()}
    assert {c: (d.state, d.reason) for c, d in found.items()} == {
        "later": ("succeeded", ""),
        "never": ("dead", "rejected"),
        "nothing": ("discarded", "nothing to pay"),
    }
    assert sorted(calls) == ["later", "later", "never", "nothing"]
    assert [f.message for f in found["later"].failures] == ["the printer is busy"]
    assert [f.message for f in found["never"].failures] == ["no such customer"]


def test_only_errors_the_policy_retries_get_another_attempt(site: Site) -> None:
    bus = site.bus()
    calls: list[int] = []

    @bus.group("Billing").handler(OrderPlaced, retry=RetryPolicy(on=retry_if_exception_type(OSError)))
    def bill(order: OrderPlaced) -> None:
        calls.append(order.number)
        raise KeyError(order.number)

    site.worker(bus)
    bus.publish(OrderPlaced(number=1))
    letter = eventually(lambda: bus.dead_letters.find(), timeout=30)[0]
    assert (letter.reason, letter.failed) == ("not_retryable", 1)
    assert calls == [1]
    conserved(bus)


def send_raw(url: str, subject: str, data: bytes) -> None:
    async def send() -> None:
        client = await nats.connect(url, connect_timeout=5)
        try:
            await client.jetstream().publish(subject, data)
        finally:
            await client.close()

    asyncio.run(send())


def test_a_foreign_message_that_cannot_be_read_becomes_a_visible_dead_letter(site: Site) -> None:
    bus = site.bus(orders.build)
    site.worker(bus)
    namespace = site.settings.namespace
    for data in (b"\xff\xfe not an event", b'{"id": "lacks-the-rest"}'):
        send_raw(site.settings.nats, f"{namespace}.Order.placed", data)
    bus.publish(OrderPlaced(number=1))
    letters = eventually(lambda: len(found := bus.dead_letters.find()) == 2 and found, timeout=30)
    by_reason = {letter.reason: bus.dead_letters.get(letter.id) for letter in letters}
    assert set(by_reason) == {"undecodable", "invalid"}
    undecodable = by_reason["undecodable"]
    assert undecodable.raw is not None
    assert undecodable.raw.data == b"\xff\xfe not an event"
    assert undecodable.raw.subject == f"{namespace}.Order.placed"
    assert undecodable.failures[0].error_type == "Undecodable"
    conserved(bus)
    assert site.witness.counts("end") == {1: 1}, "events behind it are handled"


def test_a_foreign_cloud_event_is_handled_like_our_own(site: Site) -> None:
    bus = site.bus()
    seen: list[Any] = []

    @bus.group("Billing").handler(OrderPlaced)
    def bill(order: OrderPlaced) -> None:
        seen.append((order, current_envelope()))

    site.worker(bus)
    foreign = (
        b'{"specversion": "1.0", "id": "from-elsewhere-1", "source": "https://shop.example/orders",'
        b' "type": "Order.placed", "time": "2026-01-31T12:00:00+01:00", "data": {"number": 5}}'
    )
    send_raw(site.settings.nats, f"{site.settings.namespace}.Order.placed", foreign)
    order, envelope = eventually(lambda: seen, timeout=30)[0]
    assert order == OrderPlaced(number=5)
    assert (envelope.id, envelope.operation_id) == ("from-elsewhere-1", "from-elsewhere-1")
    delivery = "Billing.bill:from-elsewhere-1"
    eventually(lambda: bus.store.deliveries.states([delivery]) == {delivery: "succeeded"})


def test_an_event_newer_than_the_code_waits_for_a_newer_worker(site: Site) -> None:
    def version(number: int) -> tuple[EventBus, type, list[Any]]:
        @event("Price.changed", version=number)
        class PriceChanged:
            cents: int

        bus, seen = site.bus(), []

        @bus.group("Billing").handler(PriceChanged)
        def reprice(change: Any) -> None:
            seen.append(change)

        return bus, PriceChanged, seen

    old_bus, _, seen_by_old = version(1)
    new_bus, new_class, seen_by_new = version(2)
    old_worker = site.worker(old_bus)
    receipt = new_bus.publish(new_class(cents=99))
    waiting = eventually(
        lambda: old_bus.store.deliveries.find(DeliveryQuery(event_id=receipt.id, states=("retrying",))),
        timeout=30,
    )[0]
    failure = old_bus.dead_letters.get(waiting.id).failures[0]
    assert failure.error_type == "UnknownVersion"
    old_worker.stop()
    site.worker(new_bus)
    conserved(new_bus)
    assert [change.cents for change in seen_by_new] == [99]
    assert seen_by_old == []


def test_one_event_id_is_one_event_and_cannot_be_reused_for_another(site: Site) -> None:
    bus = site.bus(orders.build)
    site.worker(bus)
    first = bus.publish(OrderPlaced(number=1), event_id="order-1")
    again = bus.publish(OrderPlaced(number=1), event_id="order-1")
    assert (first.id, first.duplicate) == ("order-1", False)
    assert (again.id, again.duplicate) == ("order-1", True)
    by_key = [bus.publish(OrderPlaced(number=2), idempotency_key="order two") for _ in range(2)]
    assert by_key[0].id == by_key[1].id
    assert [receipt.duplicate for receipt in by_key] == [False, True]
    with pytest.raises(EventIdReused) as failure:
        bus.publish(OrderPlaced(number=3), event_id="order-1")
    assert "order-1" in str(failure.value)
    conserved(bus)
    assert site.witness.counts("end") == {1: 1, 2: 1}
    assert bus.store.events.count(["Order.placed"], since=None) == 2


def test_a_repeated_publish_of_a_handled_event_runs_nothing_again(site: Site) -> None:
    bus = site.bus(orders.build)
    site.worker(bus)
    bus.publish(OrderPlaced(number=1), event_id="order-1")
    conserved(bus)
    assert bus.publish(OrderPlaced(number=1), event_id="order-1").duplicate
    bus.publish(OrderPlaced(number=2))
    conserved(bus)
    assert site.witness.counts("start") == {1: 1, 2: 1}


def test_a_busy_handler_does_not_starve_another(site: Site) -> None:
    bus = site.bus()
    gate, seen = Gate(), []

    @bus.group("Slow").handler(OrderPlaced, threads=2)
    def slow(order: OrderPlaced) -> None:
        gate.pass_through()

    @bus.group("Quick").handler(OrderPlaced)
    def quick(order: OrderPlaced) -> None:
        seen.append(order.number)

    site.worker(bus, threads=4)
    bus.publish_many([OrderPlaced(number=n) for n in range(20)])
    gate.await_entry(2)
    eventually(lambda: sorted(seen) == list(range(20)), timeout=30)
    assert not gate.entered.acquire(blocking=False), "threads=2 is kept"
    gate.open()
    conserved(bus)


def test_an_event_no_handler_is_subscribed_to_is_accepted_and_harmless(site: Site) -> None:
    bus = site.bus()
    receipt = bus.publish(BillSent(number=1))
    assert bus.store.events.get([receipt.id])[receipt.id].data == {"number": 1}
    assert bus.operations.chain(receipt.id).settled
