"""Processes that die: at random, and exactly at each boundary on an event's way.

Handlers run in processes of their own and tell a witness file what they did; the file outlives them.
"""

import random
import signal

import pytest

from eventdriven_sync import EventBus
from eventdriven_sync.store import EventQuery
from tests.apps import orders
from tests.apps.crash_points import AFTER_CLAIM, BEFORE_ACK, BEFORE_DISPATCH, BEFORE_SETTLE
from tests.apps.orders import OrderPlaced
from tests.apps.site import Process, Site, conserved
from tests.polling import eventually

KILLED = -signal.SIGKILL


def bills(bus: EventBus) -> list[int]:
    """The numbers of every bill that was published."""
    return sorted(
        e.data["number"] for e in bus.store.events.find(EventQuery(names=("Bill.sent",), limit=1000))
    )


def succeeded(bus: EventBus, handler: str = "Billing.bill") -> int:
    """How many deliveries succeeded, once every event is settled."""
    audited = conserved(bus, timeout=60)
    return next(h.succeeded for h in audited.handlers if h.name == handler)


def test_every_accepted_event_is_handled_though_workers_are_killed_again_and_again(site: Site) -> None:
    # Each kill is a start without outcome; none of these events is to be given up for it.
    changes = {"max_lost": 100}
    bus = site.bus(orders.build, **changes)
    numbers = range(160)
    bus.publish_many([OrderPlaced(number=n, seconds=0.02) for n in numbers])
    chance = random.Random(1)
    worker: Process | None = None
    for kills in range(1, 4):
        worker = site.worker_process("orders", "--threads", 4, **changes).ready()
        before = len(site.witness.notes("end"))
        wanted = before + chance.randrange(5, 25)
        eventually(lambda wanted=wanted: len(site.witness.notes("end")) >= wanted, timeout=30)
        worker.kill()
        assert len(set(site.witness.counts("end"))) < len(numbers), f"nothing left to do at kill {kills}"
    site.worker_process("orders", "--threads", 4, **changes)
    assert succeeded(bus) == len(numbers)
    starts, ends = site.witness.counts("start"), site.witness.counts("end")
    assert set(ends) == set(numbers)
    # Of what a worker had in hand when it was killed, only what it had begun runs again: one per thread,
    # and what had ended but was not recorded yet.
    assert starts.total() - len(numbers) <= 3 * 4 * 2
    assert bills(bus) == list(numbers), "an attempt that runs again emits the same event"


def test_a_worker_killed_between_recording_and_acknowledging_runs_nothing_again(site: Site) -> None:
    bus = site.bus(orders.build)
    # Slow enough to be recorded one by one.
    bus.publish_many([OrderPlaced(number=n, seconds=0.01) for n in range(10)])
    crashing = site.worker_process("orders", "--threads", 1, "--crash", BEFORE_ACK, "--nth", 3)
    assert crashing.wait() == KILLED
    assert site.witness.notes("end")
    site.worker_process("orders", "--threads", 1)
    assert succeeded(bus) == 10
    assert set(site.witness.counts("start").values()) == {1}, "no handler runs again"
    assert bills(bus) == list(range(10))


@pytest.mark.parametrize("urgent", [False, True], ids=["held", "immediate"])
def test_a_worker_killed_before_recording_runs_the_handler_again_with_one_result(
    site: Site, urgent: bool
) -> None:
    bus = site.bus(orders.build)
    bus.publish_many([OrderPlaced(number=n, seconds=0.01, urgent=urgent) for n in range(10)])
    crashing = site.worker_process("orders", "--threads", 1, "--crash", BEFORE_SETTLE, "--nth", 3)
    assert crashing.wait() == KILLED
    unrecorded = site.witness.notes("end")[-1]["number"]
    site.worker_process("orders", "--threads", 1)
    assert succeeded(bus) == 10
    starts = site.witness.counts("start")
    assert starts[unrecorded] == 2
    assert set(starts) == set(range(10))
    assert bills(bus) == list(range(10)), "both attempts emit the same event"
    delivery = bus.dead_letters.get(f"Billing.bill:{_event_id(bus, unrecorded)}")
    assert (delivery.attempts, delivery.lost) == (1, 1), "the start without outcome is on record"


def _event_id(bus: EventBus, number: int) -> str:
    return next(
        e.id
        for e in bus.store.events.find(EventQuery(names=("Order.placed",), limit=1000))
        if e.data["number"] == number
    )


def test_a_delivery_claimed_for_its_retry_by_a_worker_that_dies_is_claimed_by_another(site: Site) -> None:
    bus = site.bus(orders.build)
    # Nobody opens the gate for the first worker: its death leaves the event to the second, which counts the
    # start in the store; that one dies having claimed the delivery for the next.
    receipt = bus.publish(OrderPlaced(number=1, gate="g"))
    first = site.worker_process("orders", "--threads", 1)
    eventually(lambda: site.witness.counts("start")[1] == 1, timeout=30)
    first.kill()
    second = site.worker_process("orders", "--threads", 1)
    eventually(lambda: site.witness.counts("start")[1] == 2, timeout=30)
    second.kill()
    third = site.worker_process("orders", "--threads", 1, "--crash", AFTER_CLAIM, max_lost=10)
    assert third.wait() == KILLED
    assert site.witness.counts("start")[1] == 2, "it died before it ran the handler"
    site.worker_process("orders", "--threads", 1, max_lost=10)
    eventually(lambda: site.witness.counts("start")[1] == 3, timeout=30)
    site.witness.note("open", gate="g")
    assert succeeded(bus) == 1
    delivery = bus.dead_letters.get(f"Billing.bill:{receipt.id}")
    assert delivery.lost == 2, "the third had claimed it and not begun"
    assert bills(bus) == [1]


@pytest.mark.parametrize("arguments", [[], ["--in-transaction"]], ids=["publish", "transaction"])
def test_what_a_publisher_stored_before_it_was_killed_is_brought_by_the_reconciler(
    site: Site, arguments: list[str]
) -> None:
    bus = site.bus(orders.build)
    worker = site.worker_process("orders").ready()
    crash = ["--crash", BEFORE_DISPATCH, "--nth", 3, "--count", 5]
    publisher = site.publisher_process("orders", *crash, *arguments)
    assert publisher.wait() == KILLED
    assert site.witness.counts("published") == {0: 1, 1: 1}
    # The third event was stored; its publisher never learned that it was accepted.
    assert succeeded(bus) == 3
    assert site.witness.counts("end") == {0: 1, 1: 1, 2: 1}
    assert "to Billing.bill that its consumer no longer had" in worker.log
