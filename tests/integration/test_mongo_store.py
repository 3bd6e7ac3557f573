"""What is true of the MongoDB store only: what it sends, what its indexes serve, how its documents look."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import bson
import pymongo
import pytest
from bson.son import SON
from pymongo import monitoring
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from eventdriven_sync.devserver.mongod import Mongod
from eventdriven_sync.devserver.process import LocalServer, ServerBinaryMissing
from eventdriven_sync.envelope import Envelope, new_id
from eventdriven_sync.errors import (
    Closed,
    ConfigurationError,
    EventIdReused,
    PayloadNotSerializable,
    QueryTooSlow,
    StorePermissionDenied,
)
from eventdriven_sync.figures import AuditEntry, AuditQuery, HourCount
from eventdriven_sync.outcome import Dead, Discarded, Done, Failure, RetryAt
from eventdriven_sync.people import MAX_SESSIONS, Session, User, UserChange
from eventdriven_sync.store import NEW, DeliveryQuery, EventQuery, OperationQuery
from eventdriven_sync.stores import client as driver
from eventdriven_sync.stores import mongo_events
from eventdriven_sync.stores.mongo import MongoStore
from tests.contracts.samples import Samples
from tests.polling import eventually

TIMEOUT = 10.0
WEAK = "&w=1&journal=false&retryWrites=false&readPreference=secondary&readConcernLevel=local"
WRITES = {"insert", "update", "delete", "findAndModify"}
CLIENTS_OWN = {"ping", "endSessions", "abortTransaction"}


class Commands(monitoring.CommandListener):
    """Notes every command a store sends."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.sent.append({name: event.command[name] for name in event.command})

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    def names(self) -> list[str]:
        return [next(iter(command)) for command in self.sent]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """What is sent by stores that connect from now on."""
    noted = Commands()
    build = driver.MongoClient

    def client(url: str, *, event_listeners: list[Any], **options: Any) -> Any:
        return build(url, event_listeners=[*event_listeners, noted], **options)

    monkeypatch.setattr(driver, "MongoClient", client)
    return noted


@pytest.fixture
def store(mongo_url: str, commands: Commands) -> Iterator[MongoStore]:
    store = MongoStore(mongo_url + WEAK)
    store.open(timeout=TIMEOUT)
    commands.sent.clear()
    yield store
    store.close()


@pytest.fixture
def stored(mongo_client: pymongo.MongoClient[Any], database_name: str) -> Database[dict[str, Any]]:
    """The store's database, by a client with settings of its own."""
    return mongo_client[database_name]


@pytest.fixture
def given(store: MongoStore, commands: Commands) -> Samples:
    samples = Samples(store.directory.now())
    commands.sent.clear()
    return samples


def use_everything(store: MongoStore, given: Samples) -> None:
    """Call everything the store can do, with something to do."""
    deliveries, directory, operation = store.deliveries, store.directory, given.operation()
    events = [given.event() for _ in range(12)]
    store.events.append(events, timeout=TIMEOUT)
    store.events.append([*events[:1], attrs.evolve(events[1], parent_ids=(new_id(),))], timeout=TIMEOUT)
    store.events.save_operation(operation, timeout=TIMEOUT)
    states = ("succeeded", "retrying", "dead", "discarded", "dead", "retrying")
    outcomes = [given.outcome(state, after=0) for state in states]
    settled = [
        given.settlement(event, outcome, emitted=(given.full_event(),))
        for event, outcome in zip(events, outcomes, strict=False)
    ]
    deliveries.settle(settled)
    deliveries.settle([attrs.evolve(each, token="late") for each in settled])
    deliveries.start([given.delivery(event, attempts=1, token="s") for event in events[6:8]], lease=0.0)
    deliveries.insert_pending([given.delivery(event) for event in events[8:10]])
    deliveries.next_due([given.handler])
    claimed = deliveries.claim_due([given.handler], limit=10, lease=30, worker="w", token="c")
    assert len(claimed) == 6
    deliveries.renew([claimed[0].id, "nobody's"], token="c", lease=30)
    deliveries.release([claimed[0].id], token="c")
    done = given.settlement(events[0], Done(), token="c", claimed=True)
    deliveries.settle([attrs.evolve(done, event_id=claimed[1].event_id), done])
    with store.transaction(timeout=TIMEOUT) as session:
        store.events.append([given.event(), events[0]], timeout=TIMEOUT, session=session)
        late = given.settlement(events[11], Done(), emitted=(given.full_event(),))
        assert deliveries.settle_in(session, late)
    store.run_transaction(
        lambda session: store.database.business.insert_one({"_id": 1}, session=session), timeout=TIMEOUT
    )
    look_for_everything(store, given, events, operation.id)
    letter = settled[4].delivery_id
    deliveries.retry_with(letter, events[4], by="ada")
    deliveries.discard(DeliveryQuery(ids=(letter,)), reason="old", by="ada")
    deliveries.undo_discard(letter, by="ada")
    deliveries.retry_dead(DeliveryQuery(fingerprint="0a", died_before=given.now), by="ada", job="j")
    deliveries.retry_dead(DeliveryQuery(error="SMTPServerDisconnected"), by="ada")
    deliveries.retry_dead(DeliveryQuery(ids=(settled[2].delivery_id,)), by="ada")
    deliveries.discard(DeliveryQuery(handler=given.handler), reason="old", by="ada")
    directory.register([given.handler_record(starts_at=NEW)])
    directory.handlers()
    directory.handlers(retired=True)
    directory.reconciled([(given.handler_record(), given.now)])
    directory.pause(given.handler, by="ada", reason="")
    directory.resume(given.handler)
    directory.retire(given.handler)
    directory.lead("reconciler", "one", ttl=5)
    directory.lead("reconciler", "two", ttl=5)
    directory.resign("reconciler", "one")
    directory.heartbeat(given.worker())
    directory.workers()
    directory.forget_worker(given.worker().id)
    directory.write_stats([{"_id": "a", "minute": given.now, "failed": 1}])
    directory.stats(since=given.at(-60))
    job = given.job()
    store.jobs.add(job)
    store.jobs.get(job.id)
    store.jobs.change(job.id, {"moved": 1})
    for over in (None, True, False):
        store.jobs.find(over=over, after=job.id, limit=5)
    store.trail.record(AuditEntry(id=new_id(), who="ada", action="retry", ids=(events[0].id,)))
    request: dict[str, Any] = {"fingerprint": "f", "lease": 30, "keep": 60}
    for token in ("t", "other", "t"):
        store.idempotency.begin("key", token=token, **request)
    assert store.idempotency.finish("key", token="t", reply=given.reply(), keep=60)
    assert store.idempotency.begin("key", token="other", **request).reply == given.reply()
    store.idempotency.begin("abandoned", token="t", **request)
    store.idempotency.abandon("abandoned", token="t")
    figure_everything(store, given)
    know_everybody(store, given)


def know_everybody(store: MongoStore, given: Samples) -> None:
    """Users, their sessions and their tries."""
    people = store.people
    ada = User(name="ada", password="x", role="admin", created_at=given.now)
    assert [people.add_user(ada), people.add_user(ada)] == [True, False]
    people.users()
    people.users(state="active")
    people.count_users()
    people.count_users(role="admin", state="active")
    people.change_user("ada", UserChange(role="viewer"))
    people.signed_in("ada")
    for number in range(MAX_SESSIONS + 1):
        session = Session(id=f"s{number}", user="ada", role="viewer", started_at=given.now)
        people.open_session(session, idle=60, lifetime=600)
    people.prolong("s1", idle=60)
    assert people.session("s1")
    people.end_session("s1")
    people.end_sessions("ada")
    people.strike(["a", "b", "a"], window=60)
    people.forgive("a", count=1)
    people.forgive("b")


def figure_everything(store: MongoStore, given: Samples) -> None:
    """Ask for every figure, and for the audit trail."""
    figures, since, until = store.figures, given.at(-3600), given.at(3600)
    figures.published(since=since, until=until)
    figures.handled_by_minute(since=since, until=until)
    figures.handled_by_subject(since=since, until=until)
    figures.oldest_open()
    figures.oldest_published()
    minute = given.now.replace(second=0, microsecond=0)
    figures.save_published([], since=minute, until=minute + timedelta(minutes=2))
    figures.saved_published(since=since, until=until)
    figures.counted_until()
    figures.save_hour(HourCount(hour=minute, published=(), attempts=(), names=(), subjects=()))
    figures.hours(since=since, until=until)
    figures.last_hour()
    figures.links(given.event_name, since=since, until=until, limit=5)
    store.deliveries.count(DeliveryQuery(states=("dead",)))
    figures.letter_groups()
    figures.letter_groups([given.handler], since=since, until=until)
    for query in (
        AuditQuery(),
        AuditQuery(who="ada", since=since),
        AuditQuery(action="retry", until=until),
        AuditQuery(touched="x"),
    ):
        newest = store.trail.find(query)
        store.trail.find(attrs.evolve(query, after=newest[0].id if newest else "x"))


def look_for_everything(store: MongoStore, given: Samples, events: list[Envelope], operation_id: str) -> None:
    key, since, until = events[0].id, given.at(-60), given.at(60)
    store.events.get([key])
    store.events.count([given.event_name], since=since, until=until)
    for query in (
        EventQuery(),
        EventQuery(names=(given.event_name,), since=since, until=until, after=key, oldest_first=True),
        EventQuery(operation_id=given.operation_id, after=key),
        EventQuery(source=given.handler, key="42"),
        EventQuery(names=(given.event_name,), since=since, payload={"user_id": "42"}),
        EventQuery(key="42", after=key),
        EventQuery(key="42", since=since, oldest_first=True),
    ):
        store.events.find(query)
    store.events.operation(operation_id)
    store.events.find_operations(OperationQuery(after=operation_id))
    store.events.find_operations(OperationQuery(kind="script", user="ada", status="running", since=since))
    for asked in (
        OperationQuery(kind="script", until=until),
        OperationQuery(name="import", after=operation_id),
        OperationQuery(user="ada"),
        OperationQuery(status="failed", after=operation_id),
        OperationQuery(status="running"),
        OperationQuery(status="succeeded"),
    ):
        store.events.find_operations(asked)
    delivery_id = f"{given.handler}:{key}"
    store.deliveries.states([delivery_id])
    store.deliveries.get(delivery_id)
    for wanted in (
        DeliveryQuery(),
        DeliveryQuery(ids=(delivery_id,), group=given.group),
        DeliveryQuery(handler=given.handler, states=("dead", "retrying"), since=since, until=until),
        DeliveryQuery(group=given.group, error="SMTPServerDisconnected", after=delivery_id),
        DeliveryQuery(event_id=key, event_name=given.event_name),
        DeliveryQuery(operation_id=given.operation_id, reason="rejected"),
        DeliveryQuery(operation_id=given.operation_id, event_id=key),
        DeliveryQuery(states=("dead",), handler=given.handler, fingerprint="0a1b", after=delivery_id),
        DeliveryQuery(states=("dead",), fingerprint="0a1b", brief=True),
        DeliveryQuery(states=("dead",), handler=given.handler, died_before=until),
        DeliveryQuery(job="j"),
    ):
        store.deliveries.find(wanted)
        store.deliveries.count(wanted)


# --- what is sent -------------------------------------------------------------------------------------


def test_every_write_is_majority_and_journaled_whatever_the_uri_says(
    mongo_url: str, commands: Commands
) -> None:
    store = MongoStore(mongo_url + WEAK)
    store.open(timeout=TIMEOUT)
    use_everything(store, Samples(store.directory.now()))
    store.close()
    written = set()
    for command in list(commands.sent):
        name = next(iter(command))
        if name in WRITES | {"commitTransaction", "createIndexes"}:
            written.add((name, "autocommit" in command))
            concern = command.get("writeConcern")
            # Within a transaction the concern travels with the commit.
            inside = "autocommit" in command and name != "commitTransaction"
            assert concern == (None if inside else {"w": "majority", "j": True}), command
        if command.get("startTransaction"):
            assert command["readConcern"]["level"] == "snapshot"
        elif name in {"find", "aggregate", "distinct"} and "autocommit" not in command:
            assert command["readConcern"]["level"] == "majority", command
            assert command.get("$readPreference", {"mode": "primary"}) == {"mode": "primary"}
    outside = {(name, False) for name in (*WRITES, "createIndexes")}
    assert written == outside | {("insert", True), ("commitTransaction", True)}


def test_what_happens_often_takes_few_round_trips(
    store: MongoStore, given: Samples, commands: Commands
) -> None:
    def sent(call: Callable[[], Any]) -> list[str]:
        commands.sent.clear()
        call()
        return commands.names()

    events = [given.event() for _ in range(3)]
    done = [given.settlement(event, Done()) for event in events]
    assert sent(lambda: store.events.append(events, timeout=TIMEOUT)) == ["insert"]
    assert sent(lambda: store.deliveries.states([each.delivery_id for each in done])) == ["find"]
    assert sent(lambda: store.deliveries.settle(done[:2])) == ["insert"]
    emitting = attrs.evolve(done[2], emitted=(given.full_event(), given.full_event()))
    assert sent(lambda: store.deliveries.settle([emitting])) == ["insert", "insert"]
    failed = [given.settlement(given.event(), given.outcome("retrying", after=0)) for _ in range(3)]
    assert sent(lambda: store.deliveries.settle(failed)) == ["update"]
    claim = {"limit": 9, "lease": 30, "worker": "w", "token": "c"}
    claiming = sent(lambda: store.deliveries.claim_due([given.handler], **claim))
    assert claiming == ["find", "update", "find"]
    again = [attrs.evolve(each, token="c", claimed=True) for each in failed]
    assert sent(lambda: store.deliveries.settle(again)) == ["update"]
    assert sent(lambda: store.deliveries.claim_due(["Blog.other"], **claim)) == ["find"]
    request: dict[str, Any] = {"fingerprint": "f", "token": "t", "lease": 30, "keep": 60}
    assert sent(lambda: store.idempotency.begin("key", **request)) == ["findAndModify"]
    answer = {"token": "t", "reply": given.reply(), "keep": 60}
    assert sent(lambda: store.idempotency.finish("key", **answer)) == ["update"]
    assert sent(lambda: store.idempotency.abandon("key", token="t")) == ["delete"]
    assert sent(lambda: store.open(timeout=TIMEOUT)) == []


# --- indexes ------------------------------------------------------------------------------------------


def test_every_query_is_served_by_an_index(store: MongoStore, given: Samples, commands: Commands) -> None:
    use_everything(store, given)
    explained = 0
    for command in list(commands.sent):
        if next(iter(command)) in CLIENTS_OWN | {"insert", "hello", "commitTransaction"}:
            continue
        for asked in _single(command):
            plan = store.database.command("explain", asked, verbosity="queryPlanner")
            stages = set(_stages(plan))
            assert "COLLSCAN" not in stages, asked
            if _is_count(asked):
                assert "FETCH" not in stages, asked
            elif not _small_result(asked):
                assert "SORT" not in stages, asked
            explained += 1
    assert explained > 60


def _single(command: dict[str, Any]) -> Iterator[SON[str, Any]]:
    """The command without what belongs to its session, one statement each."""
    session_fields = {"lsid", "$clusterTime", "txnNumber", "$db", "readConcern", "writeConcern", "autocommit"}
    bare = SON((n, v) for n, v in command.items() if n not in session_fields | {"startTransaction"})
    bare = SON(
        (n, v)
        for n, v in bare.items()
        if n not in {"$readPreference", "maxTimeMS", "bypassEmptyTsReplacement"}
    )
    statements = next((name for name in ("updates", "deletes") if name in bare), None)
    if statements is None:
        yield bare
        return
    for each in bare[statements]:
        yield SON((name, [each] if name == statements else value) for name, value in bare.items())


def _is_count(command: dict[str, Any]) -> bool:
    """Counts of many events or letters read nothing but an index."""
    return command.get("aggregate") == "events" or (command.get("hint") == "dead" and "aggregate" in command)


def _small_result(command: dict[str, Any]) -> bool:
    """Few documents by nature are sorted in memory: the chain of one operation, deliveries of one event."""
    where = command.get("filter", {})
    return "operation_id" in where or "_id" in where


def _stages(plan: Any) -> Iterator[str]:
    if isinstance(plan, dict):
        if isinstance(plan.get("stage"), str):
            yield plan["stage"]
        for name, value in plan.items():
            if name != "rejectedPlans":
                yield from _stages(value)
    if isinstance(plan, list):
        for value in plan:
            yield from _stages(value)


def test_the_newest_of_a_rare_kind_are_found_without_reading_the_others(
    store: MongoStore, given: Samples, commands: Commands
) -> None:
    """Of lists whose filter matches little, an index leads to just that."""
    for number in range(60):
        rare = number % 20 == 0
        operation = given.operation(
            kind="cron" if rare else "http",
            name="rare" if rare else "often",
            user="eve" if rare else "ada",
            status="failed" if rare else "succeeded",
        )
        store.events.save_operation(operation, timeout=TIMEOUT)
    store.events.append(
        [given.event(key="rare" if n % 20 == 0 else str(n)) for n in range(60)], timeout=TIMEOUT
    )
    for number in range(60):
        often = number % 20
        store.trail.record(
            AuditEntry(
                id=new_id(),
                who="ada" if often else "eve",
                action="retry" if often else "pause",
                ids=("often" if often else "rare",),
            )
        )
    commands.sent.clear()
    for asked_for in ({"who": "eve"}, {"action": "pause"}, {"touched": "rare"}):
        assert len(store.trail.find(AuditQuery(limit=10, **asked_for))) == 3
    for query in ({"kind": "cron"}, {"name": "rare"}, {"user": "eve"}, {"status": "failed"}):
        assert len(store.events.find_operations(OperationQuery(limit=10, **query))) == 3
    assert len(store.events.find(EventQuery(key="rare"))) == 3
    for command in [each for each in commands.sent if "sort" in each]:
        asked = next(_single(command))
        found = store.database.command("explain", asked, verbosity="executionStats")["executionStats"]
        assert (found["nReturned"], found["totalDocsExamined"]) == (3, 3), asked


def test_a_question_that_takes_too_long_is_ended_with_the_cure(
    store: MongoStore, given: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {f"f{number}": number for number in range(200)}
    for _ in range(5):
        store.events.append([given.event(data=data) for _ in range(1000)], timeout=TIMEOUT)
    monkeypatch.setattr(mongo_events, "MAX_QUESTION", 0.005)
    query = EventQuery(names=(given.event_name,), since=given.at(-60), payload={"f199": "no"})
    with pytest.raises(QueryTooSlow, match=r"events took longer than 0\.005 s.*shorter time span"):
        store.events.find(query)
    monkeypatch.undo()
    assert store.events.find(attrs.evolve(query, payload={"f1": 1}, limit=1))


def test_claiming_reads_no_more_than_it_claims(store: MongoStore, given: Samples, commands: Commands) -> None:
    mine, others = given.handler, f"{given.group}.other"
    # Due for others, each at a time of its own and before mine: not to be looked at.
    outcomes = [given.outcome("retrying", after=number / 1000) for number in range(300)]
    store.deliveries.settle([given.settlement(given.event(), each, handler=others) for each in outcomes])
    eventually(lambda: store.directory.now() > given.at(1))
    store.deliveries.settle([given.settlement(given.event(), Done()) for _ in range(50)])
    later = given.outcome("retrying", after=3600)
    store.deliveries.settle([given.settlement(given.event(), later) for _ in range(50)])
    store.deliveries.insert_pending([given.delivery(given.event()) for _ in range(80)])
    commands.sent.clear()
    assert len(store.deliveries.claim_due([mine], limit=40, lease=30, worker="w", token="c")) == 40
    candidates = next(_single(commands.sent[0]))
    # 40 are claimed by now, and as many are left: the same question again.
    found = store.database.command("explain", candidates, verbosity="executionStats")["executionStats"]
    assert found["nReturned"] == 40
    assert found["totalDocsExamined"] <= 44
    assert found["totalKeysExamined"] <= 44


def test_deliveries_of_many_handlers_come_in_order_and_in_pages(
    store: MongoStore, given: Samples, commands: Commands
) -> None:
    settled = [
        given.settlement(
            given.event(),
            given.outcome(("succeeded", "dead", "retrying")[number % 3]),
            handler=f"{given.group}.h{number % 70}",
            started_at=given.at(-(number // 4)),
        )
        for number in range(210)
    ]
    store.deliveries.settle(settled)
    found, after = [], None
    while page := store.deliveries.find(DeliveryQuery(after=after, limit=50)):
        found += page
        after = page[-1].id
    expected = sorted(((s.started_at, s.delivery_id) for s in settled), reverse=True)
    assert [(each.created_at, each.id) for each in found] == expected
    listing = next(c for c in commands.sent if "sort" in c)
    plan = store.database.command("explain", next(_single(listing)), verbosity="queryPlanner")
    assert "SORT_MERGE" in set(_stages(plan))


@pytest.mark.parametrize("oldest_first", [False, True])
def test_pages_do_not_skip_ids_of_the_users_own(
    store: MongoStore, given: Samples, oldest_first: bool
) -> None:
    own = [given.event(id=f"invoice-{number}") for number in range(5)]
    generated = [given.event() for _ in range(5)]
    store.events.append([*own, *generated], timeout=TIMEOUT)
    found: list[str] = []
    query = EventQuery(names=(given.event_name,), limit=2, oldest_first=oldest_first)
    while page := store.events.find(query):
        found += [event.id for event in page]
        query = attrs.evolve(query, after=page[-1].id)
    assert sorted(found) == sorted(event.id for event in [*own, *generated])


def test_an_index_with_other_settings_is_named_and_not_changed(
    mongo_url: str, mongo_client: pymongo.MongoClient[Any], database_name: str
) -> None:
    events = mongo_client[database_name].events
    events.create_index([("name", 1), ("published_at", 1)], name="name_published")
    store = MongoStore(mongo_url)
    with pytest.raises(ConfigurationError, match=r"name_published.*key is .* and should be .*dropIndex"):
        store.open(timeout=TIMEOUT)
    assert list(events.index_information()["name_published"]["key"]) == [("name", 1), ("published_at", 1)]
    store.close()


def test_the_facts_name_a_missing_index(store: MongoStore) -> None:
    assert not any(store.info()["indexes"].values())
    store.database.deliveries.drop_index("due")
    assert store.info()["indexes"]["deliveries"] == {"due": None}


def test_the_facts_for_the_doctor(store: MongoStore) -> None:
    facts = store.info()
    assert facts["version"][0].isdigit()
    assert facts["replica_set"] == "rs0"
    assert len(facts["hosts"]) == 1
    assert facts["arbiters"] == []
    assert facts["journaled_majority"] is True
    assert facts["storage_engine"] == "wiredTiger"
    assert abs(facts["clock_skew"]) < 2
    assert facts["oplog_hours"] >= 0
    assert facts["collections"]["events"]["documents"] == 0
    assert facts["unreadable"] == {}


# --- documents ----------------------------------------------------------------------------------------


def test_the_payload_can_be_queried_and_ids_are_object_ids(
    store: MongoStore, given: Samples, stored: Database[Any]
) -> None:
    event = given.event(data={"user": {"city": "Ulm"}}, parent_ids=(new_id(), "invoice-7"))
    store.events.append([event], timeout=TIMEOUT)
    document = stored.events.find_one({"data.user.city": "Ulm"})
    assert document is not None
    assert document["_id"] == bson.ObjectId(event.id)
    assert document["parent_ids"] == [bson.ObjectId(event.parent_ids[0]), "invoice-7"]


@pytest.mark.parametrize(
    "data",
    [
        {"$ref": "#/definitions/user", "$id": 1, "$db": "x"},
        {"$set": {"a.b": 1}, "": 0, "$$NOW": "$name"},
        {"large": 2**63 - 1, "small": -(2**63), "float": 1.0, "list": [{"$ref": "a", "$id": 2**40}]},
        {"text": "\x00 ünï 😀", "none": None},
    ],
)
def test_a_payload_comes_back_as_it_was(store: MongoStore, given: Samples, data: dict[str, Any]) -> None:
    event = given.event(data=data)
    store.events.append([event], timeout=TIMEOUT)
    read = store.events.get([event.id])[event.id]
    assert read == event
    assert not any(isinstance(value, bson.Int64) for value in read.data.values())
    assert read.content_hash() == event.content_hash()
    later = given.settlement(event, given.outcome("retrying", after=0))
    store.deliveries.settle([later])
    claimed = store.deliveries.claim_due([given.handler], limit=1, lease=30, worker="w", token="c")
    assert claimed[0].event == event


def test_one_event_that_mongodb_cannot_hold_fails_its_own_publisher_only(
    store: MongoStore, given: Samples
) -> None:
    with pytest.raises(PayloadNotSerializable, match="cannot be stored in MongoDB"):
        store.events.append([given.event(data={"n": 2**64})], timeout=TIMEOUT)
    assert store.events.append([given.event()], timeout=TIMEOUT) == [False]


def test_more_than_one_message_can_carry_is_stored_in_several(
    store: MongoStore, given: Samples, commands: Commands
) -> None:
    known, reused = given.event(data={"n": 1}), given.event(data={"n": 2})
    store.events.append([known, reused], timeout=TIMEOUT)
    commands.sent.clear()
    large = [given.event(data={"text": "x" * 250_000}) for _ in range(120)]
    assert store.events.append([*large[:100], known, *large[100:]], timeout=30) == [
        event is known for event in [*large[:100], known, *large[100:]]
    ]
    assert commands.names() == ["insert", "insert", "find"]
    with pytest.raises(EventIdReused) as caught:
        store.events.append([*large, attrs.evolve(reused, data={"n": 3})], timeout=30)
    assert caught.value.event_id == reused.id


def test_an_insert_that_was_not_replicated_is_repeated(
    store: MongoStore, given: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = store._link.now
    command, unmet = connection.database.command, {"code": 64, "errmsg": "waiting for replication timed out"}
    answers = [{"writeConcernError": unmet}]

    def weak(body: dict[str, Any]) -> Any:
        """The first is written, and then not replicated in time."""
        return command(body) | (answers.pop() if answers else {})

    monkeypatch.setattr(connection.database, "command", weak)
    event = given.event()
    assert store.events.append([event], timeout=TIMEOUT) == [True]
    assert answers == []
    assert store.events.get([event.id]) == {event.id: event}


def test_a_failing_event_that_mongodb_cannot_hold_still_becomes_a_delivery(
    store: MongoStore, given: Samples
) -> None:
    foreign = given.event(data={"n": 2**64})
    store.deliveries.settle([given.settlement(foreign, given.outcome("retrying", after=0))])
    [claimed] = store.deliveries.claim_due([given.handler], limit=1, lease=30, worker="w", token="c")
    assert claimed.event == foreign


TRICKY = "$$ROOT {$add: 1} \ud800 $name"
STORED = "$$ROOT {$add: 1} ? $name"


def test_text_that_looks_like_an_expression_is_stored_literally(
    store: MongoStore, given: Samples, stored: Database[Any]
) -> None:
    failure = Failure(
        error_type=TRICKY, message=TRICKY, traceback=TRICKY, failed_at=given.now, attempt=1, worker="$worker"
    )
    kept = attrs.evolve(failure, error_type=STORED, message=STORED, traceback=STORED)
    event = given.event()
    first = given.settlement(event, RetryAt(after=0, failure=failure), token="$token", worker="$worker")
    assert store.deliveries.settle([first]) == [True]
    claim = {"limit": 1, "lease": 30, "worker": "$worker", "token": "$token"}
    [claimed] = store.deliveries.claim_due([given.handler], **claim)
    assert (claimed.token, claimed.worker) == ("$token", "$worker")
    dead = attrs.evolve(first, outcome=Dead(reason="rejected", failure=failure), claimed=True)
    assert store.deliveries.settle([dead]) == [True]
    record = store.deliveries.get(claimed.id)
    assert record is not None
    assert record.failures == (kept, kept)
    assert store.deliveries.discard(DeliveryQuery(error=STORED), reason="$reason", by="$by") == 1
    discarded = stored.deliveries.find_one({"_id": claimed.id})
    assert discarded is not None
    assert discarded["reason"] == "$reason"
    assert discarded["actions"][0]["by"] == "$by"
    live = given.settlement(given.event(), Discarded(reason="$x"), worker="$worker")
    assert store.deliveries.settle([live]) == [True]


def test_a_success_is_stored_without_the_event_and_is_never_due(
    store: MongoStore, given: Samples, stored: Database[Any]
) -> None:
    event = given.event()
    store.deliveries.settle([given.settlement(event, given.outcome("retrying", after=0))])
    store.deliveries.claim_due([given.handler], limit=1, lease=30, worker="w", token="c")
    store.deliveries.settle([given.settlement(event, Done(), token="c", claimed=True)])
    document = stored.deliveries.find_one({"event_id": bson.ObjectId(event.id)})
    assert document is not None
    assert not {"event", "raw", "due_at"} & set(document)
    assert len(document["failures"]) == 1


def test_what_a_person_did_is_kept_and_bounded(
    store: MongoStore, given: Samples, stored: Database[Any]
) -> None:
    event = given.event()
    store.deliveries.settle([given.settlement(event, given.outcome("dead"))])
    for turn in range(25):
        assert store.deliveries.retry_dead(DeliveryQuery(handler=given.handler), by=f"ada {turn}") == 1
        token = f"c{turn}"
        store.deliveries.claim_due([given.handler], limit=1, lease=30, worker="w", token=token)
        store.deliveries.settle([given.settlement(event, given.outcome("dead"), token=token, claimed=True)])
    document = stored.deliveries.find_one({})
    assert document is not None
    assert [each["by"] for each in document["actions"]] == [f"ada {turn}" for turn in range(5, 25)]
    assert {each["action"] for each in document["actions"]} == {"retry"}


def test_the_log_says_why_a_transaction_runs_again(
    store: MongoStore, stored: Database[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    business = store.database.business
    business.insert_one({"_id": 1, "runs": 0})

    def body(session: Any) -> None:
        found = business.find_one({"_id": 1}, session=session)
        assert found is not None
        if found["runs"] == 0:
            business.update_one({"_id": 1}, {"$set": {"runs": 1}})
        business.update_one({"_id": 1}, {"$inc": {"runs": 1}}, session=session)

    with caplog.at_level("DEBUG", logger="eventdriven_sync.stores.mongo"):
        store.run_transaction(body, timeout=TIMEOUT)
    assert stored.business.find_one() == {"_id": 1, "runs": 2}
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith("A transaction runs again: ")
    assert "WriteConflict" in told


def test_concurrent_publishers_of_one_id_store_it_once(store: MongoStore, given: Samples) -> None:
    event = given.event()
    with ThreadPoolExecutor(16) as pool:
        publish = [pool.submit(store.events.append, [event], timeout=TIMEOUT) for _ in range(64)]
    assert sorted(each.result()[0] for each in publish) == [False] + [True] * 63


def test_workers_claiming_at_the_same_time_never_share_a_delivery(
    store: MongoStore, mongo_url: str, given: Samples
) -> None:
    store.deliveries.insert_pending([given.delivery(given.event()) for _ in range(300)])
    other = MongoStore(mongo_url)
    start = threading.Barrier(6)

    def work(worker: int) -> list[str]:
        deliveries = (store, other)[worker % 2].deliveries
        mine: list[str] = []
        start.wait(TIMEOUT)
        while deliveries.next_due([given.handler]) < 0:
            token = f"{worker}.{len(mine)}"
            claimed = deliveries.claim_due([given.handler], limit=7, lease=60, worker="w", token=token)
            assert all(each.token == token and each.attempts == 1 for each in claimed)
            mine += [each.id for each in claimed]
        return mine

    with ThreadPoolExecutor(6) as pool:
        claimed = [key for each in pool.map(work, range(6)) for key in each]
    other.close()
    assert len(claimed) == len(set(claimed)) == 300


def test_the_reply_to_a_request_is_kept_as_binary_until_a_time_the_server_knows(
    store: MongoStore, given: Samples, stored: Database[Any]
) -> None:
    store.idempotency.begin("key", fingerprint="f", token="t", lease=30, keep=60)
    assert store.idempotency.finish("key", token="t", reply=given.reply(), keep=3600)
    document = stored.idempotency.find_one({})
    assert document is not None
    assert document["reply"]["body"] == given.reply().body
    assert stored.idempotency.count_documents({"reply.body": {"$type": "binData"}}) == 1
    left = document["expires_at"] - store.directory.now()
    assert 3590 < left.total_seconds() <= 3600
    stored.idempotency.update_one({}, {"$set": {"expires_at": given.at(-1)}})
    assert store.idempotency.begin("key", fingerprint="f", token="next", lease=30, keep=60).state == "mine"
    again = stored.idempotency.find_one({})
    assert again is not None
    assert set(again) == {"_id", "fingerprint", "token", "state", "lease_until", "expires_at"}
    index = stored.idempotency.index_information()["expires"]
    assert (index["key"], index["expireAfterSeconds"]) == ([("expires_at", 1)], 0)


def test_a_key_that_somebody_else_inserted_at_this_moment_is_read(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    request: dict[str, Any] = {"fingerprint": "f", "lease": 30, "keep": 60}
    update = Collection.find_one_and_update

    def too_late(target: Any, *arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(Collection, "find_one_and_update", update)
        assert store.idempotency.begin("key", token="first", **request).state == "mine"
        raise DuplicateKeyError("E11000 duplicate key", 11000)

    monkeypatch.setattr(Collection, "find_one_and_update", too_late)
    found = store.idempotency.begin("key", token="second", **request)
    assert (found.state, found.token) == ("running", "first")


# --- opening ------------------------------------------------------------------------------------------


def test_a_closed_store_says_so(mongo_url: str) -> None:
    store = MongoStore(mongo_url)
    store.open(timeout=TIMEOUT)
    store.close()
    store.close()
    with pytest.raises(Closed):
        store.events.get(["x"])


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://user:p/w@host/blog",
        "mongodb://user:hid@den@host:99999/blog",
        "mongodb://user:secret@host:port/blog",
        "mongodb://",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="mongo URL mongodb://") as error:
        MongoStore(url).open(timeout=1)
    told = f"{error.value} {error.value.__cause__}"
    assert not any(secret in told for secret in ("p/w", "hid", "den@", "secret"))


class Alone(Mongod):
    """A mongod that is no replica set, and asks for a user."""

    def _command(self, binary: str) -> list[str]:
        command = super()._command(binary)
        begin = command.index("--replSet")
        return [*command[:begin], *command[begin + 4 :], "--auth"]

    def await_ready(self) -> None:
        LocalServer.await_ready(self)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | str]:
    """Where a standalone mongod is, with a user ``reader`` who may only read."""
    server = Alone(tmp_path_factory.mktemp("alone"))
    try:
        server.start()
    except ServerBinaryMissing as error:
        pytest.skip(str(error))
    address = f"127.0.0.1:{server.port}"
    client = eventually(lambda: pymongo.MongoClient[Any](address, serverSelectionTimeoutMS=5000))
    client.admin.command("createUser", "admin", pwd="x", roles=["root"])
    client.close()
    with pymongo.MongoClient[Any](f"mongodb://admin:x@{address}") as admin:
        admin.blog.command("createUser", "reader", pwd="x", roles=["read"])
    yield address
    server.kill()
    server.await_end(TIMEOUT)


def test_a_standalone_server_is_refused_with_the_cure(alone: str) -> None:
    store = MongoStore(f"mongodb://reader:x@{alone}/blog")
    with pytest.raises(ConfigurationError, match=r"standalone.*--replSet"):
        store.open(timeout=TIMEOUT)
    store.close()


def test_what_the_user_may_not_do_is_named(alone: str) -> None:
    store = MongoStore(f"mongodb://reader:x@{alone}/blog")
    with pytest.raises(StorePermissionDenied, match=r"storing events.*not authorized") as error:
        store.events.append([Samples(store.directory.now()).event()], timeout=TIMEOUT)
    assert error.value.code == 13
    store.close()


def test_a_wrong_password_is_no_missing_server(alone: str) -> None:
    store = MongoStore(f"mongodb://reader:wrong@{alone}/blog")
    with pytest.raises(StorePermissionDenied, match="Authentication failed") as error:
        store.open(timeout=TIMEOUT)
    assert "wrong" not in str(error.value)
    store.close()
