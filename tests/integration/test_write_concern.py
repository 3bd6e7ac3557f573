"""Each write of the library is majority-committed and journaled, whatever the connection string says.

A listener sees every command that the library sends to a real mongod while it is used in every way. Which
writes there are is read from the source: one that nobody drives here fails, since nobody has looked at it.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import flask
import pymongo
import pytest
from pymongo import monitoring
from tenacity import stop_after_attempt, wait_none

import eventdriven_sync
from eventdriven_sync import Discard, EventBus, Reject, RetryPolicy, Settings, Worker, event
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.counting import HOUR
from eventdriven_sync.dashboard.accounts import Accounts, SignInRefused, session_id
from eventdriven_sync.dashboard.passwords import Hasher
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.doctor import diagnose
from eventdriven_sync.envelope import new_id
from eventdriven_sync.errors import InvalidOption
from eventdriven_sync.figures import HourCount
from eventdriven_sync.flask import EventDriven
from eventdriven_sync.monitor import Monitor
from eventdriven_sync.people import MAX_SESSIONS, UserChange
from eventdriven_sync.stores import client as driver
from tests.apps.orders import BillSent, OrderPlaced
from tests.apps.site import Gate, conserved
from tests.integration.conftest import QUICK
from tests.polling import eventually
from tests.unit.dashboards import CHEAP, PASSWORD

PACKAGE = Path(eventdriven_sync.__file__).parent
DURABLE = {"w": "majority", "j": True}
# What the connection string asks for: answers before anything is written.
WEAK = "&w=0&journal=false&readConcernLevel=local"

# The driver's methods that write, and the commands they send.
METHODS = {
    "insert_one": "insert",
    "insert_many": "insert",
    "bulk_write": "bulk",
    "update_one": "update",
    "update_many": "update",
    "replace_one": "update",
    "delete_one": "delete",
    "delete_many": "delete",
    "find_one_and_update": "findAndModify",
    "find_one_and_replace": "findAndModify",
    "find_one_and_delete": "findAndModify",
    "create_index": "createIndexes",
    "create_indexes": "createIndexes",
    "create_collection": "create",
    "drop": "drop",
    "drop_collection": "drop",
    "drop_index": "dropIndexes",
    "drop_indexes": "dropIndexes",
    "rename": "renameCollection",
    "commit_transaction": "commitTransaction",
}
BULK = {"insert", "update", "delete"}
WRITES = {*BULK, *METHODS.values()} - {"bulk"}
READS = {"find", "getMore", "aggregate", "distinct", "count", "listIndexes", "hello", "buildInfo"}
READS |= {"serverStatus", "replSetGetConfig", "getParameter", "getDefaultRWConcern"}
# They end what was begun, and store nothing.
ENDS = {"abortTransaction", "endSessions", "killCursors"}


@attrs.frozen
class Place:
    """A function of the package that writes, and by which command."""

    file: str
    function: str
    command: str


@attrs.frozen
class Sent:
    """A command on its way to the server, and the functions of the package that were on the stack."""

    command: dict[str, Any]
    functions: frozenset[tuple[str, str]]

    @property
    def name(self) -> str:
        return next(iter(self.command))

    @property
    def inside(self) -> bool:
        """Whether it is part of a transaction, whose commit carries the concern of all of it."""
        return "autocommit" in self.command and self.name != "commitTransaction"

    def is_of(self, place: Place) -> bool:
        names = {"bulk": BULK, "any": {self.name}}.get(place.command, {place.command})
        return self.name in names and (place.file, place.function) in self.functions


class Wire(monitoring.CommandListener):
    """Notes every command that clients of this database send."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        command = {name: event.command[name] for name in event.command}
        self.sent.append(Sent(command, frozenset(_functions())))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


def _functions() -> Iterator[tuple[str, str]]:
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            yield str(path.relative_to(PACKAGE)), frame.f_code.co_qualname.partition(".<locals>")[0]
        frame = frame.f_back


def places() -> set[Place]:
    """Every function that calls a writing method of the driver, or hands one on.

    The driver is used under ``stores/`` only: another test sees to that.
    """
    found = set()
    for path in (PACKAGE / "stores").rglob("*.py"):
        file = str(path.relative_to(PACKAGE))
        for function, body in _outermost(ast.parse(path.read_text())):
            for node in ast.walk(body):
                if isinstance(node, ast.Attribute) and node.attr in METHODS:
                    found.add(Place(file, function, METHODS[node.attr]))
                elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "command":
                    found.add(Place(file, function, "any"))
    return found


def _outermost(module: ast.Module, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            yield from _outermost(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node


@pytest.fixture(scope="module")
def wire(servers: DevServers, mongo_client: pymongo.MongoClient[Any]) -> Iterator[Wire]:
    """What the library sends while everything is done with it once."""
    noted = Wire()
    build = driver.MongoClient

    def client(url: str, *, event_listeners: list[Any], **options: Any) -> Any:
        return build(url, event_listeners=[*event_listeners, noted], **options)

    name = f"t{new_id()}"
    settings = Settings(nats=servers.nats_url, mongo=servers.mongo_url(name) + WEAK, namespace=name, **QUICK)
    # Two transactions that create the same collection would meet.
    mongo_client[name].create_collection("books")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "MongoClient", client)
        with EventBus(settings=settings) as bus:
            use_everything(bus)
    yield noted
    mongo_client.drop_database(name)


def use_everything(bus: EventBus) -> None:
    """Everything that a publisher, a worker, a person and an operator do."""
    handle_everything(bus)
    diagnose(bus)
    stop_in_the_middle(bus)
    mend_by_hand(bus)
    answer_once(bus)
    know_people(bus)
    lead_for_an_hour(bus)


# --- what is done -------------------------------------------------------------------------------------


@event("WirePage.viewed", durability="broker")
@attrs.frozen(kw_only=True)
class PageViewed:
    """Accepted by NATS alone: the worker's recorder stores it."""

    page: int


class Shop:
    """Handlers of every kind, which fail as long as they are told to."""

    def __init__(self, bus: EventBus) -> None:
        self.broken = True
        self.tried: set[int] = set()
        self.gate = Gate()
        billing, shipping = bus.group("Billing"), bus.group("Shipping")
        quick = RetryPolicy(stop=stop_after_attempt(3), wait=wait_none())
        billing.handler(OrderPlaced, name="bill", retry=quick, transactional=True)(self.bill)
        billing.handler(OrderPlaced, name="credit", retry=quick)(self.credit)
        shipping.batch_handler(OrderPlaced, name="ship", max_size=3, max_wait=0.01)(self.ship)
        shipping.batch_handler(BillSent, name="file", max_size=3, max_wait=0.01, transactional=True)(
            self.file
        )
        self.bus, self.billing = bus, billing

    def bill(self, order: OrderPlaced, session: Any) -> None:
        """Transactional; the first try of each order fails, so the second is claimed."""
        self.bus.mongo_client.get_default_database().books.insert_one(
            {"order": order.number}, session=session
        )
        self.billing.publish(BillSent(number=order.number))
        if order.number not in self.tried:
            self.tried.add(order.number)
            raise ConnectionError("once")

    def credit(self, order: OrderPlaced) -> None:
        if order.gate:
            self.gate.pass_through()
        if order.number % 3 == 1 and self.broken:
            raise Reject("no account")
        if order.number % 3 == 2:
            raise Discard("a trial")
        self.billing.publish(BillSent(number=-order.number - 1))
        self.billing.publish(BillSent(number=-order.number - 100), immediate=True)

    def ship(self, batch: Any) -> None: ...

    def file(self, batch: Any, session: Any) -> None: ...


SHOPS: dict[int, Shop] = {}


def handle_everything(bus: EventBus) -> None:
    SHOPS[id(bus)] = Shop(bus)
    worker = Worker(bus, threads=4, grace=5.0).start()
    with bus.operation("import", variables={"file": "orders.csv"}):
        bus.publish(OrderPlaced(number=0), idempotency_key="first")
        bus.publish(OrderPlaced(number=0), idempotency_key="first")
        bus.publish_many([OrderPlaced(number=n) for n in range(1, 4)])
    with bus.transaction() as session:
        bus.mongo_client.get_default_database().books.insert_one({"order": "many"}, session=session)
        bus.publish_many([OrderPlaced(number=n) for n in range(4, 9)])
    with pytest.raises(InvalidOption), bus.transaction():
        bus.publish(OrderPlaced(number=99), timeout=-1)
    bus.publish_many([PageViewed(page=n) for n in range(3)])
    eventually(lambda: bus.store.events.count(["WirePage.viewed"], since=None) == 3, timeout=30)
    # What NATS never had the reconciler brings.
    with EventBus(settings=bus.settings, broker=MemoryBroker(), store=bus.store) as deaf:
        deaf.publish_many([OrderPlaced(number=n) for n in range(9, 12)])
        audited = conserved(bus, timeout=60)
        deaf._store = None  # the store is the other bus's to close
    ends = {h.name: (h.succeeded, h.dead, h.discarded) for h in audited.handlers}
    assert ends["Billing.credit"] == (4, 4, 4)
    worker.stop()


def stop_in_the_middle(bus: EventBus) -> None:
    """A worker that leaves a handler behind; the next one counts the start, and is stopped as well."""
    shop = SHOPS[id(bus)]
    for _ in range(2):
        worker = Worker(bus, threads=1, handlers=["Billing.credit"], grace=0.0).start()
        if not shop.gate.entered.acquire(timeout=0):
            bus.publish(OrderPlaced(number=12, gate="g"))
            shop.gate.await_entry()
        worker.stop()
    shop.gate.open()
    worker = Worker(bus, threads=4).start()
    conserved(bus, timeout=60)
    worker.stop()


def mend_by_hand(bus: EventBus) -> None:
    """What a person does to dead letters, handlers and jobs."""
    shop, monitor, letters = SHOPS[id(bus)], Monitor(bus), bus.dead_letters
    first, second, third, fourth = (letter.id for letter in letters.find())
    letters.discard(first, reason="too old", by="ada")
    monitor.undo_discard(first, by="ada")
    monitor.pause("Billing.credit", by="ada", reason="look")
    monitor.resume("Billing.credit", by="ada")
    shop.broken = False
    letters.retry(second, by="ada")
    monitor.retry_edited(third, payload={"number": 30}, by="ada")
    job = monitor.retry_group("Billing.credit", canary=1, by="ada")
    worker = Worker(bus, threads=4).start()
    eventually(lambda: monitor.job(job.id).over, timeout=30)
    conserved(bus, timeout=60)
    again = monitor.run_again(first, by="ada")
    monitor.publish_again(letters.get(fourth).event_id, by="ada")
    conserved(bus, timeout=60)
    worker.stop()
    assert bus.dead_letters.count() == 0, again
    assert bus.store.directory.retire("Shipping.ship")


def answer_once(bus: EventBus) -> None:
    """Requests with an Idempotency-Key, one of which fails."""
    events, app = EventDriven(), flask.Flask("shop")
    events.init_app(app, bus=bus)

    @app.post("/orders/<int:number>")
    @events.idempotent
    def order(number: int) -> str:
        events.publish(OrderPlaced(number=number))
        if number == 41:
            raise ConnectionError("away")
        return "placed"

    client = app.test_client()
    for number, status in ((40, 200), (40, 200), (41, 500)):
        answer = client.post(f"/orders/{number}", headers={"Idempotency-Key": f"order {number}"})
        assert answer.status_code == status


def know_people(bus: EventBus) -> None:
    accounts = Accounts(bus, hasher=Hasher(CHEAP))
    accounts.add("ada", PASSWORD, role="admin", by="cli")
    accounts.register("bob", PASSWORD, address="10.0.0.1")
    accounts.approve("bob", by="ada")
    accounts.change("bob", UserChange(role="operator"), by="ada")
    with pytest.raises(SignInRefused):
        accounts.sign_in("ada", "wrong horse battery", address="10.0.0.1")
    user = accounts.sign_in("ada", PASSWORD, address="10.0.0.1")
    for number in range(MAX_SESSIONS + 1):
        accounts.open_session(user, f"secret {number}", address="10.0.0.1")
    bus.store.people.prolong(session_id("secret 5"), idle=60)
    accounts.sign_out("secret 5")
    accounts.set_password("ada", PASSWORD + "!", by="ada")


def lead_for_an_hour(bus: EventBus) -> None:
    """What the leading worker does when minutes and hours are over."""
    bus.store.directory.reconciled([(bus.store.directory.handlers()[0], bus.store.directory.now())])
    begin = bus.store.directory.now().replace(minute=0, second=0, microsecond=0)
    bus.store.figures.save_published([], since=begin, until=begin + HOUR)
    bus.store.figures.save_hour(HourCount(hour=begin, published=(), attempts=(), names=(), subjects=()))


# --- what was seen ------------------------------------------------------------------------------------


def test_each_write_carries_majority_and_journal_though_the_uri_asks_for_no_answer(wire: Wire) -> None:
    outside = [sent for sent in wire.sent if sent.name in WRITES and not sent.inside]
    assert {sent.name for sent in outside} == {
        *BULK,
        "findAndModify",
        "createIndexes",
        "commitTransaction",
    }
    for sent in outside:
        assert sent.command.get("writeConcern") == DURABLE, sent


def test_a_transaction_is_committed_with_majority_and_journal_and_its_writes_leave_that_to_the_commit(
    wire: Wire,
) -> None:
    written = {_transaction(s) for s in wire.sent if s.inside and s.name in WRITES}
    ended = {_transaction(s) for s in wire.sent if s.name in ("commitTransaction", "abortTransaction")}
    assert len(written) > 10
    assert written <= ended
    for sent in wire.sent:
        if sent.inside and sent.name not in ENDS:
            assert "writeConcern" not in sent.command, "the server refuses it there"


def _transaction(sent: Sent) -> tuple[Any, Any]:
    return sent.command["lsid"]["id"], sent.command["txnNumber"]


def test_what_the_recorder_stores_is_among_them(wire: Wire) -> None:
    recorded = Place("stores/mongo_recording.py", "record_events", "insert")
    found = [sent for sent in wire.sent if sent.is_of(recorded)]
    assert sum(len(sent.command["documents"]) for sent in found) >= 3


def test_no_write_of_the_source_was_left_out(wire: Wire) -> None:
    known = places()
    assert len(known) > 30, "the source was not read as it should be"
    unseen = {place for place in known if not any(sent.is_of(place) for sent in wire.sent)}
    assert not unseen, f"no test drives these writes, so nobody has seen their write concern: {unseen}"


def test_no_command_is_of_a_kind_that_nobody_has_looked_at(wire: Wire) -> None:
    kinds = {sent.name for sent in wire.sent}
    assert kinds <= WRITES | READS | ENDS
    for sent in wire.sent:
        stages = {name for stage in sent.command.get("pipeline", ()) for name in stage}
        assert not stages & {"$out", "$merge"}, sent
    # Business writes in a handler's transaction come from the test, everything else from the library.
    strangers = [s for s in wire.sent if s.name in WRITES and not s.functions and not s.inside]
    assert not strangers, strangers
