"""Business writes, events and the success of a delivery in one commit, whenever the process dies."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pymongo
import pytest

from eventdriven_sync import EventBus
from eventdriven_sync.errors import InvalidOption
from eventdriven_sync.store import EventQuery
from tests.apps import ledger, orders
from tests.apps.crash_points import AFTER_COMMIT, BEFORE_ACK, BEFORE_COMMIT
from tests.apps.orders import BillSent, OrderPlaced
from tests.apps.site import Site, conserved
from tests.polling import eventually

KILLED = -signal.SIGKILL


@pytest.fixture
def database(mongo_client: pymongo.MongoClient[Any], mongo_url: str, database_name: str) -> Any:
    """The application's own database, looked into beside the library."""
    return mongo_client[database_name]


@pytest.fixture(autouse=True)
def short_transactions(mongo_client: pymongo.MongoClient[Any]) -> Iterator[None]:
    """MongoDB keeps what a killed process left open for 60 s, and its documents locked; here for 2 s."""
    admin = mongo_client.admin
    before = admin.command("setParameter", 1, transactionLifetimeLimitSeconds=2)["was"]
    yield
    admin.command("setParameter", 1, transactionLifetimeLimitSeconds=before)


def bills(bus: EventBus) -> list[int]:
    return sorted(
        e.data["number"] for e in bus.store.events.find(EventQuery(names=("Bill.sent",), limit=1000))
    )


@pytest.mark.parametrize(
    ("place", "nth"), [(BEFORE_COMMIT, 1), (BEFORE_COMMIT, 4), (AFTER_COMMIT, 1), (BEFORE_ACK, 4)]
)
def test_effect_and_events_of_a_transactional_handler_appear_once_wherever_it_is_killed(
    site: Site, database: Any, place: str, nth: int
) -> None:
    bus = site.bus(ledger.build)
    # A customer each: transactions on one document meet, and the loser runs again.
    bus.publish_many([OrderPlaced(number=n, customer=f"customer {n}") for n in range(8)])
    crashing = site.worker_process("ledger", "--threads", 1, "--crash", place, "--nth", nth)
    assert crashing.wait() == KILLED
    *before, last = [note["number"] for note in site.witness.notes("start")]
    site.worker_process("ledger", "--threads", 2)
    audited = conserved(bus)
    assert [h.succeeded for h in audited.handlers] == [8]
    assert sorted(database.balances.find(), key=lambda balance: balance["_id"]) == [
        {"_id": f"customer {n}", "orders": 1} for n in range(8)
    ]
    assert bills(bus) == list(range(8))
    # Others may start twice: MongoDB lets transactions try again, also when they create a collection.
    starts = site.witness.counts("start")
    assert [starts[number] for number in before] == [1] * len(before), "what was committed runs no more"
    assert (starts[last] > 1) == (place == BEFORE_COMMIT)


def test_a_transactional_handler_killed_in_the_middle_leaves_nothing_and_runs_again(
    site: Site, database: Any
) -> None:
    bus = site.bus(ledger.build)
    bus.publish(OrderPlaced(number=1, gate="g"))
    first = site.worker_process("ledger", "--threads", 1)
    eventually(lambda: site.witness.notes("start"), timeout=30)
    first.kill()
    assert list(database.balances.find()) == []
    site.witness.note("open", gate="g")
    site.worker_process("ledger", "--threads", 1)
    conserved(bus)
    assert list(database.balances.find()) == [{"_id": "ada", "orders": 1}]
    assert bills(bus) == [1]


def test_a_transactional_handler_that_fails_leaves_nothing_behind(site: Site, database: Any) -> None:
    bus = site.bus()
    fail = [True]

    @bus.group("Billing").handler(OrderPlaced, transactional=True, retry=orders.QUICK)
    def book(order: OrderPlaced, session: Any) -> None:
        books = session.client[database.name].books
        books.insert_one({"_id": order.number}, session=session)
        bus.publish(BillSent(number=order.number))
        if fail[0]:
            raise ValueError("no ink")

    site.worker(bus)
    bus.publish(OrderPlaced(number=1))
    letter = eventually(lambda: bus.dead_letters.find(), timeout=30)[0]
    assert letter.failed == 5
    assert list(database.books.find()) == []
    assert bills(bus) == []
    fail[0] = False
    bus.dead_letters.retry(letter.id)
    conserved(bus)
    assert list(database.books.find()) == [{"_id": 1}]
    assert bills(bus) == [1]


def test_a_transactional_handler_that_outlasts_its_lease_succeeds_when_it_is_tried_again(
    site: Site, database: Any
) -> None:
    """Tried again it runs under a lease: a renewal in the middle of the transaction would end it."""
    bus = site.bus(lease=0.6)
    starts: list[int] = []

    @bus.group("Billing").handler(OrderPlaced, transactional=True, retry=orders.QUICK, timeout=20)
    def book(order: OrderPlaced, session: Any) -> None:
        starts.append(order.number)
        if len(starts) == 1:
            raise ValueError("no ink")
        session.client[database.name].books.insert_one({"_id": order.number}, session=session)
        threading.Event().wait(1.2)

    site.worker(bus)
    bus.publish(OrderPlaced(number=1))
    assert [h.succeeded for h in conserved(bus).handlers] == [1]
    assert list(database.books.find()) == [{"_id": 1}]
    assert len(starts) <= 3, "at most once more, after the conflict with a renewal"


def test_transactional_handlers_that_write_the_same_document_all_count_once(
    site: Site, database: Any
) -> None:
    bus = site.bus(ledger.build)
    site.worker(bus, threads=8)
    bus.publish_many([OrderPlaced(number=n) for n in range(40)])
    audited = conserved(bus, timeout=60)
    assert [h.succeeded for h in audited.handlers] == [40]
    assert list(database.balances.find()) == [{"_id": "ada", "orders": 40}]
    assert bills(bus) == list(range(40))


def test_users_writes_and_events_commit_together_and_are_dispatched_after_the_commit(
    site: Site, database: Any
) -> None:
    bus = site.bus(orders.build)
    site.worker(bus)
    with bus.transaction() as session:
        session.client[database.name].baskets.insert_one({"_id": 1}, session=session)
        receipt = bus.publish(OrderPlaced(number=1))
        assert bus.store.events.get([receipt.id]) == {}, "not visible before the commit"
        with pytest.raises(InvalidOption), bus.transaction():
            pass
    conserved(bus)
    assert site.witness.counts("end") == {1: 1}
    assert list(database.baskets.find()) == [{"_id": 1}]


def test_an_aborted_transaction_publishes_nothing(site: Site, database: Any) -> None:
    bus = site.bus(orders.build)
    site.worker(bus)

    def change_of_mind() -> None:
        with bus.transaction() as session:
            session.client[database.name].baskets.insert_one({"_id": 1}, session=session)
            bus.publish(OrderPlaced(number=1))
            raise LookupError("changed my mind")

    with pytest.raises(LookupError, match="changed my mind"):
        change_of_mind()
    bus.publish(OrderPlaced(number=2))
    conserved(bus)
    assert site.witness.counts("start") == {2: 1}
    assert bus.store.events.count(["Order.placed"], since=None) == 1
    assert list(database.baskets.find()) == []
