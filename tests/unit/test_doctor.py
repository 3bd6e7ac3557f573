"""Every check of the doctor meets a situation that it must find, and one where all is well."""

import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from werkzeug.debug import DebuggedApplication
from werkzeug.serving import make_server

from eventdriven_sync.broker import RECORDER, ConsumerSpec, ConsumerState, StreamSpec, StreamState
from eventdriven_sync.brokers.jetstream import consumer_config, stream_config
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.bus import EventBus
from eventdriven_sync.cli import people
from eventdriven_sync.config import Settings
from eventdriven_sync.doctor import CHECKS, Check, dashboard_checks, diagnose, examine
from eventdriven_sync.doctor.check import CannotCheck, Unknown, version
from eventdriven_sync.doctor.dashboard_checks import Dashboard, Page, People
from eventdriven_sync.doctor.facts import REQUIRED, Facts, gather
from eventdriven_sync.doctor.ping import RoundTrip, ping
from eventdriven_sync.envelope import Envelope, utcnow
from eventdriven_sync.errors import StoreError
from eventdriven_sync.events import event
from eventdriven_sync.people import User
from eventdriven_sync.records import HandlerRecord, Pause, WorkerRecord
from eventdriven_sync.store import DeliveryQuery, EventQuery
from eventdriven_sync.stores.memory import MemoryStore
from tests.contracts.stages import FakeClock
from tests.unit.dashboards import site

ROOT = Path(__file__).parents[2]
NOW = utcnow()
STREAM = StreamSpec(name="blog_User", subjects=("blog.User", "blog.User.>"))
CONSUMER = ConsumerSpec(stream=STREAM, name="Blog__rename", subjects=("blog.User.renamed",))


@event("DoctorUser.renamed")
@attrs.frozen(kw_only=True)
class Renamed:
    name: str


# --- a healthy patient ------------------------------------------------------------------------------------


def consumer(**changes: Any) -> ConsumerState:
    given = {
        "stream": STREAM.name,
        "name": CONSUMER.name,
        "pending": 0,
        "ack_pending": 0,
        "redelivered": 0,
        "waiting": 2,
        "oldest_at": None,
        "config": consumer_config(CONSUMER),
    }
    return ConsumerState(**{**given, **changes})


def stream(*consumers: ConsumerState, **config: Any) -> StreamState:
    return StreamState(
        name=STREAM.name,
        subjects=STREAM.subjects,
        messages=3,
        size_bytes=300,
        first_sequence=1,
        last_sequence=3,
        config=stream_config(STREAM) | config,
        consumers=consumers or (consumer(),),
    )


def worker(**changes: Any) -> WorkerRecord:
    given = {
        "id": "w",
        "host": "h",
        "pid": 1,
        "handlers": ("Blog.rename",),
        "threads": 8,
        "running": (),
        "started_at": NOW,
        "seen_at": NOW,
    }
    return WorkerRecord(**{**given, **changes})


RECORD = HandlerRecord(
    name="Blog.rename", events=("User.renamed",), starts_at=NOW, registered_at=NOW, seen_at=NOW
)
PAUSE = Pause(at=NOW - timedelta(hours=2), by="ada", reason="the posts are moved")
SERVER = {"version": "2.15.1", "max_payload": 1 << 20, "auth_required": True, "tls_required": True}
SYNCED = {
    "jetstream": {"config": {"sync_always": True, "max_storage": 1000}, "stats": {"storage": 100}},
}
MONGO: dict[str, Any] = {
    "version": "7.0.28",
    "feature_version": "7.0",
    "database": "blog",
    "sharded": False,
    "replica_set": "rs0",
    "hosts": ["a:1", "b:1", "c:1"],
    "arbiters": [],
    "journaled_majority": True,
    "storage_engine": "wiredTiger",
    "clock_skew": 0.0,
    "oplog_hours": 48.0,
    "default_write_concern": "majority",
    "write_concern": {"w": "majority", "j": True},
    "indexes": {"events": {}, "deliveries": {}},
    "foreign_ttl": [],
    "unreadable": {},
}
PAGE = Page(url="https://shop.example/events/", private=True, status=303, debugger=False)
DASHBOARD = Dashboard(
    people=People(users=3, admins=1, waiting=1), key_fault="", has_key=True, debug=False, page=PAGE
)
HEALTHY = Facts(
    settings=Settings(
        nats="tls://u:secret@nats.example:4222",
        mongo="mongodb://u:secret@mongo.example/blog?tls=true",
        namespace="blog",
    ),
    nats_error="",
    mongo_error="",
    server=SERVER,
    jetstream={"api_level": 5},
    streams=[stream()],
    later=[stream()],
    consumers=[CONSUMER],
    stream_spec=lambda token: STREAM,
    mongo=MONGO,
    probe_write=0.01,
    aborted=True,
    monitoring=SYNCED,
    denied=True,
    forgotten={},
    dashboard=DASHBOARD,
    workers=[worker()],
    handlers=[RECORD],
    counts={"succeeded": 10},
    overdue=None,
    trip=RoundTrip(seconds=(0.01, 0.02), committed=True, broker_skew=0.0),
    now=NOW,
    threads=("MainThread",),
    preforkers=(),
    versions={name: least + ".9" for name, least in REQUIRED.items()},
    python=(3, 12),
)


def judged(name: str, **changes: Any) -> Check:
    checks = examine(attrs.evolve(HEALTHY, **changes))
    return next(check for check in checks if check.name == name)


def mongo(**changes: Any) -> dict[str, Any]:
    return {"mongo": MONGO | changes}


def dashboard(**changes: Any) -> dict[str, Any]:
    return {"dashboard": attrs.evolve(DASHBOARD, **changes)}


def page(**changes: Any) -> dict[str, Any]:
    return dashboard(page=attrs.evolve(PAGE, **changes))


def settings(**changes: Any) -> dict[str, Any]:
    return {"settings": attrs.evolve(HEALTHY.settings, **changes)}


def both(*states: StreamState) -> dict[str, Any]:
    return {"streams": [states[0]], "later": [states[-1]]}


def test_a_healthy_patient_has_nothing() -> None:
    assert [check for check in examine(HEALTHY) if check.level != "ok"] == []


# --- check, what is wrong, level, what the finding names -------------------------------------------------

waits = consumer(pending=7, ack_pending=3)
lonely = worker(handlers=("Other.handler",))
recorder = consumer(name=RECORDER)
unrecorded = attrs.evolve(recorder, pending=4, ack_pending=3, oldest_at=NOW - timedelta(seconds=61))
UNSEEN = {"monitoring": Unknown("no URL", skipped=True)}
SLOWLY_SYNCED = {"monitoring": {"jetstream": {"config": {"sync_interval": 120 * 10**9}}}}

ILL: list[tuple[str, dict[str, Any], str, str]] = [
    ("NATS", {"nats_error": "NATS at x did not answer within 5 s"}, "fail", "did not answer"),
    ("NATS version", {"server": SERVER | {"version": "2.12.6"}}, "fail", "security"),
    ("NATS version", {"server": SERVER | {"version": "2.12.8"}}, "warn", "no longer maintained"),
    ("NATS version", {"server": SERVER | {"version": "2.15.0-beta.1"}}, "warn", "power loss"),
    ("NATS version", {"server": SERVER | {"version": "main"}}, "warn", "could not be checked"),
    ("JetStream API", {"jetstream": {"api_level": 0}}, "fail", "level 0"),
    ("JetStream API", {"jetstream": Unknown("permission denied")}, "warn", "permission denied"),
    ("NATS max_payload", {"server": SERVER | {"max_payload": 256 * 1024}}, "fail", "262,144"),
    (
        "NATS security",
        {"server": SERVER | {"tls_required": False}},
        "fail",
        "nats.example can be used without TLS",
    ),
    ("NATS security", {"server": {"version": "2.15.1"}}, "fail", "without user and without TLS"),
    ("NATS durability", {"streams": [stream(storage="memory")]}, "fail", "blog_User"),
    ("NATS durability", {"streams": [stream(persist_mode="async")]}, "fail", "not in a file"),
    (
        "NATS durability",
        {"monitoring": {"jetstream": {"config": {"sync_interval": 120}}}},
        "info",
        "crash-safe",
    ),
    ("NATS durability", {"monitoring": Unknown("no URL", skipped=True)}, "info", "unknown whether"),
    (
        "NATS storage",
        {"monitoring": {"jetstream": {"config": {"max_storage": 10}, "stats": {"storage": 9}}}},
        "warn",
        "90%",
    ),
    ("NATS storage", {"monitoring": {}}, "info", "skipped"),
    ("NATS storage", {"monitoring": Unknown("connection refused")}, "warn", "connection refused"),
    ("NATS clock", {"trip": RoundTrip(broker_skew=-3.5)}, "warn", "3.5 s behind"),
    ("NATS clock", {"trip": RoundTrip(broker_skew=31.0)}, "fail", "31.0 s ahead"),
    ("NATS clock", {"trip": RoundTrip()}, "warn", "could not be checked"),
    ("stream settings", {"streams": [stream(retention="workqueue")]}, "fail", "retention is workqueue"),
    ("stream settings", {"streams": [stream(max_age=60 * 10**9)]}, "fail", "max_age is 60 s"),
    ("stream settings", {"streams": [stream(no_ack=True)]}, "fail", "no_ack"),
    ("stream settings", {"streams": [stream(mirror={"name": "x"})]}, "fail", "mirror"),
    ("stream settings", {"streams": [stream(max_bytes=10, discard="old")]}, "fail", "discard is old"),
    ("stream settings", {"streams": [stream(duplicate_window=10**9)]}, "fail", "duplicate_window is 1 s"),
    ("stream replicas", {"streams": [stream(num_replicas=2)]}, "warn", "blog_User have 2 replicas"),
    (
        "stream replicas",
        {
            "streams": [
                stream(consumer(config=consumer_config(CONSUMER) | {"num_replicas": 1}), num_replicas=3)
            ]
        },
        "warn",
        "Blog__rename (1, its stream 3)",
    ),
    ("consumer position", {"streams": [stream(consumer(delivered=4))]}, "fail", "Blog__rename (4 of 3)"),
    (
        "consumer settings",
        {"streams": [stream(consumer(config=consumer_config(CONSUMER) | {"max_deliver": 5}))]},
        "fail",
        "max_deliver is 5",
    ),
    (
        "consumer settings",
        {"streams": [stream(consumer(config=consumer_config(CONSUMER) | {"ack_wait": 10**9}))]},
        "fail",
        "ack_wait is 1 s",
    ),
    (
        "consumer settings",
        {"streams": [stream(consumer(config=consumer_config(CONSUMER) | {"inactive_threshold": 5}))]},
        "fail",
        "inactive_threshold",
    ),
    ("consumer settings", {"streams": []}, "warn", "not created yet: Blog__rename"),
    ("consumer slots", {"workers": [worker(threads=9000), worker(threads=9000)]}, "fail", "18000 threads"),
    ("consumer progress", both(stream(waits)) | {"workers": [lonely]}, "warn", "no worker runs"),
    ("consumer progress", both(stream(waits)), "fail", "nothing is delivered"),
    ("consumer progress", both(stream(attrs.evolve(waits, paused=True))), "warn", "which is paused"),
    (
        "consumer progress",
        both(stream(waits), stream(attrs.evolve(waits, waiting=0))),
        "warn",
        "3 are in the hands of workers",
    ),
    ("consumer progress", both(stream(waits), stream(attrs.evolve(waits, pending=9))), "warn", "not fewer"),
    ("consumer progress", both(stream(unrecorded)) | {"workers": []}, "warn", "no worker runs"),
    ("recorder", {"streams": [stream(unrecorded)]}, "warn", "7 messages of blog_User are not recorded"),
    ("recorder", {"streams": [stream(unrecorded)], "workers": []}, "warn", "the oldest for 61 s"),
    (
        "unrecorded events",
        {"streams": [stream(consumer(), recorder)]} | SLOWLY_SYNCED,
        "warn",
        "a power loss costs up to 2 minutes of such events",
    ),
    (
        "unrecorded events",
        {"streams": [stream(consumer(), recorder, num_replicas=3)]} | SLOWLY_SYNCED,
        "info",
        "a power loss of all of them at once",
    ),
    ("unrecorded events", {"streams": [stream(recorder)]} | UNSEEN, "info", "unknown whether NATS syncs"),
    ("MongoDB", {"mongo_error": "MongoDB could not be reached"}, "fail", "could not be reached"),
    ("MongoDB version", mongo(version="4.4.29"), "fail", "too old"),
    ("MongoDB version", mongo(feature_version="4.4"), "fail", "feature compatibility version 4.4"),
    (
        "MongoDB version",
        mongo(feature_version=None, unreadable={"feature_version": "not authorized"}),
        "warn",
        "not authorized",
    ),
    ("MongoDB replica set", mongo(replica_set=None), "fail", "standalone"),
    ("MongoDB replica set", mongo(hosts=["a:1"]), "warn", "so are the events"),
    ("MongoDB replica set", mongo(hosts=["a:1", "b:1"]), "warn", "nothing can be written"),
    ("MongoDB replica set", mongo(replica_set=None, sharded=True), "info", "sharded"),
    ("MongoDB arbiters", mongo(arbiters=["z:1"]), "warn", "z:1 only vote"),
    ("MongoDB majority", mongo(journaled_majority=False), "warn", "is false"),
    (
        "MongoDB majority",
        mongo(journaled_majority=None, unreadable={"replica_set": "not authorized"}),
        "warn",
        "not authorized",
    ),
    ("MongoDB storage engine", mongo(storage_engine="inMemory"), "fail", "inMemory"),
    ("MongoDB security", settings(mongo="mongodb://h1,h2:1/blog"), "fail", "h1, h2:1 is used without user"),
    ("MongoDB security", settings(mongo="mongodb://u:p@h1/blog"), "fail", "without TLS"),
    ("MongoDB clock", mongo(clock_skew=-2.5), "warn", "2.5 s behind"),
    ("MongoDB clock", mongo(clock_skew=40.0), "fail", "40.0 s ahead"),
    ("MongoDB oplog", mongo(oplog_hours=3.0), "warn", "3.0 h"),
    ("MongoDB oplog", mongo(oplog_hours=None), "warn", "does not tell"),
    ("MongoDB oplog", mongo(replica_set=None), "info", "no replica set"),
    ("durable write", {"probe_write": Unknown("not enough members")}, "fail", "not enough members"),
    ("durable write", {"probe_write": 2.5}, "warn", "2.5 s"),
    ("durable write", mongo(write_concern={"w": "majority"}), "fail", "{'w': 'majority'} instead"),
    ("durable write", mongo(write_concern={"w": 1, "j": True}), "fail", "instead of majority and journal"),
    ("default write concern", mongo(default_write_concern=1), "warn", "w: 1"),
    ("transactions", {"aborted": Unknown("Transaction numbers are only allowed")}, "fail", "numbers"),
    ("transactions", {"aborted": False}, "fail", "left its write"),
    ("transactions", {"trip": RoundTrip(obstacle="no primary")}, "fail", "no primary"),
    ("indexes", mongo(indexes={"events": {"operation": None}}), "fail", "events.operation is missing"),
    ("indexes", mongo(indexes={"events": {"operation": "key is 1"}}), "fail", "events.operation key is 1"),
    ("indexes", mongo(foreign_ttl=["deliveries.old"]), "fail", "deliveries.old deletes documents"),
    ("durability", mongo(replica_set=None), "fail", "accepted events: unsafe, 1 copy (MongoDB: a standalone"),
    ("durability", mongo(storage_engine="inMemory"), "fail", "unsafe, 3 copies (MongoDB: the storage engine"),
    (
        "durability",
        mongo(write_concern={"w": 1}),
        "fail",
        "unsafe, 3 copies (MongoDB: replica set rs0, writes",
    ),
    ("durability", {"mongo": Unknown("MongoDB cannot be reached", skipped=True)}, "info", "skipped"),
    ("round trip", {"trip": RoundTrip(obstacle="event 1 was not handled")}, "fail", "not handled"),
    ("round trip", {"trip": RoundTrip(committed=True)}, "fail", "nothing was measured"),
    ("round trip", {"trip": Unknown("not asked for", skipped=True)}, "info", "not asked for"),
    ("workers", {"workers": [lonely]}, "warn", "no worker runs Blog.rename"),
    (
        "paused handlers",
        {"handlers": [attrs.evolve(RECORD, paused=PAUSE)]},
        "warn",
        "Blog.rename since 2.0 h by ada",
    ),
    (
        "backlog",
        {"streams": [stream(consumer(pending=2, oldest_at=NOW - timedelta(hours=3)))]},
        "warn",
        "messages in consumers: 2, open deliveries: 0; the oldest message waits for 3.0 h",
    ),
    ("overdue deliveries", {"overdue": 61.0}, "warn", "61 s"),
    ("dead letters", {"counts": {"dead": 1234}}, "warn", "1,234"),
    ("NATS rights", {"denied": False}, "warn", "streams of others"),
    ("NATS rights", {"denied": Unknown("NATS has no users", skipped=True)}, "info", "no users"),
    ("publish timeout", settings(publish_timeout=20.0), "warn", "run twice"),
    ("forgotten events", {"forgotten": {"Blog.rename": 1200}}, "fail", "nobody: Blog.rename 1,200"),
    ("forgotten events", {"forgotten": {"Blog.rename": 2}, "workers": []}, "warn", "Blog.rename 2"),
    ("forgotten events", {"forgotten": Unknown("too many", skipped=True)}, "info", "too many"),
    ("dashboard users", dashboard(people=People(users=2, admins=0, waiting=0)), "warn", "no admin"),
    (
        "dashboard users",
        dashboard(people=People(users=0, admins=0, waiting=0)),
        "info",
        "no users of its own",
    ),
    ("dashboard settings", dashboard(debug=True), "fail", "FLASK_DEBUG"),
    ("dashboard settings", dashboard(key_fault="the key is short; make one"), "fail", "the key is short"),
    ("dashboard access", page(debugger=True), "fail", "debugger"),
    ("dashboard access", page(private=False), "fail", "clear text"),
    ("dashboard access", page(status=200), "fail", "to strangers"),
    ("dashboard access", page(status=404), "warn", "status 404"),
    ("dashboard access", dashboard(page=Unknown("no URL", skipped=True)), "info", "no URL"),
    ("dashboard access", dashboard(page=Unknown("it is silent")), "warn", "silent"),
    ("Python", {"python": (3, 10)}, "fail", "too old"),
    ("Python", {"python": (3, 14)}, "warn", "newer"),
    ("libraries", {"versions": {"nats-py": "2.9.0"}}, "fail", "nats-py 2.9.0 (needs 2.16)"),
    ("forking", {"threads": ("eventdriven-nats",), "preforkers": ("gunicorn",)}, "warn", "gunicorn"),
    ("forking", {"threads": ("pymongo_server_monitor",)}, "info", "before the diagnosis"),
]


@pytest.mark.parametrize(("name", "changes", "level", "said"), ILL, ids=lambda value: str(value)[:40])
def test_a_fault_is_found(name: str, changes: dict[str, Any], level: str, said: str) -> None:
    found = judged(name, **changes)
    assert (found.level, said in found.finding) == (level, True), found
    assert found.cure or level == "info"


def test_a_recorder_is_served_by_every_worker_and_power_safe_where_nats_is() -> None:
    assert (
        judged("consumer progress", **both(stream(unrecorded), stream(recorder)), workers=[lonely]).level
        == "ok"
    )
    assert judged("recorder", streams=[stream(recorder)]).finding == "up to date: 1"
    found = judged("unrecorded events", streams=[stream(recorder)])
    assert (found.level, "power-safe, 1 replica(s)" in found.finding) == ("ok", True)


def test_what_waits_for_a_paused_handler_is_not_stuck() -> None:
    paused = {"handlers": [attrs.evolve(RECORD, paused=PAUSE)]}
    assert judged("consumer progress", **both(stream(waits)), **paused).level == "ok"


ALL_OF_IT = (
    "accepted events: power-safe, 3 copies (MongoDB: replica set rs0, a write carried w: majority, j: true); "
    "messages: power-safe (NATS: file storage, 1 replica, sync_interval always)"
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ALL_OF_IT),
        (mongo(hosts=["a:1"]), "power-safe, 1 copy (MongoDB: replica set rs0, "),
        (mongo(replica_set=None, sharded=True), "power-safe (MongoDB: a sharded cluster, "),
        (mongo(write_concern=None), "unknown, 3 copies (MongoDB: replica set rs0, and no write"),
        (SLOWLY_SYNCED, "crash-safe (NATS: file storage, 1 replica, sync_interval 120 s)"),
        (UNSEEN, "unknown (NATS: file storage, 1 replica, sync_interval not seen"),
        ({"streams": [stream(num_replicas=3)]}, "power-safe (NATS: file storage, 3 replicas, "),
        ({"streams": [stream(storage="memory")]}, "unsafe (NATS: blog_User has storage memory)"),
        ({"streams": [stream(persist_mode="async")]}, "unsafe (NATS: blog_User has persist_mode async)"),
        ({"streams": Unknown("JetStream does not answer")}, "unknown (NATS: JetStream does not answer)"),
    ],
)
def test_the_durability_class_is_one_line(changes: dict[str, Any], said: str) -> None:
    found = judged("durability", **changes)
    assert (found.level, said in found.finding, "\n" in found.finding) == ("ok", True, False), found


def test_every_check_has_a_fault_that_it_finds() -> None:
    found = {name for name, _, level, _ in ILL if level in ("warn", "fail")}
    assert found == {name for name, _ in CHECKS}


def test_names_are_unique() -> None:
    names = [name for name, _ in CHECKS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "changes",
    [
        settings(nats="nats://127.0.0.1:4222,nats://localhost:4223") | {"server": {"version": "2.15.1"}},
        settings(nats="nats://[::1]:4222") | {"server": {"version": "2.15.1"}},
        settings(mongo="mongodb://localhost:27017,[::1]:27018/blog"),
        settings(mongo="mongodb+srv://u:p@cluster.example/blog"),
        settings(mongo="mongodb://h/?authMechanism=MONGODB-X509&tls=true"),
    ],
)
def test_what_is_secure_enough(changes: dict[str, Any]) -> None:
    assert judged("NATS security", **changes).level == "ok"
    assert judged("MongoDB security", **changes).level == "ok"


def test_no_password_is_shown() -> None:
    shown = repr(examine(attrs.evolve(HEALTHY, nats_error="x", mongo_error="y")))
    assert "secret" not in shown


def test_a_check_that_breaks_is_a_warning_and_the_others_go_on() -> None:
    checks = examine(attrs.evolve(HEALTHY, server=SERVER | {"max_payload": "much"}, counts=None))
    broken = [check.name for check in checks if check.level == "warn"]
    assert broken == ["NATS max_payload", "backlog", "dead letters"]
    assert len(checks) == len(CHECKS)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2.15.1", (2, 15, 1)),
        ("v2.9.0-beta", (2, 9, 0)),
        ("7", (7,)),
        ("6.0.5-rc1", (6, 0, 5)),
        ("3.x.1", (3,)),
    ],
)
def test_versions_are_read_as_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert version(text) == numbers


@pytest.mark.parametrize("text", ["", "memory", None, "x.1"])
def test_what_is_no_version_cannot_be_checked(text: Any) -> None:
    with pytest.raises(CannotCheck):
        version(text)


def test_the_least_versions_are_those_of_setup() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    core = re.search(r"^CORE = \[(.*?)\]", setup, re.MULTILINE | re.DOTALL)
    assert core
    assert dict(re.findall(r'"([\w-]+)>=([\d.]+)"', core[1])) == REQUIRED


# --- the whole diagnosis, in memory -----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process import Celery and leave connections open."""
    monkeypatch.setattr("eventdriven_sync.doctor.facts.PREFORKERS", ())


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus(
        settings=Settings(nats="memory://", mongo="memory://", namespace="blog"),
        broker=MemoryBroker(),
        store=MemoryStore(),
    ) as made:
        made.group("Blog").handler(Renamed, name="rename")(lambda event: None)
        yield made


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_in_memory_nothing_fails_and_what_needs_servers_is_skipped(bus: EventBus) -> None:
    checks = by_name(diagnose(bus))
    assert [c for c in checks.values() if c.level in ("fail", "warn")] == []
    assert "in memory" in checks["NATS version"].finding
    assert "in memory" in checks["MongoDB oplog"].finding
    assert checks["round trip"].level == "ok"


def test_the_round_trip_leaves_no_handler_consumer_or_worker(bus: EventBus) -> None:
    bus.open()
    assert ping(bus).obstacle == ""
    assert [record.name for record in bus.store.directory.handlers(retired=True)] == ["Blog.rename"]
    assert bus.store.events.find(EventQuery()) == []
    assert bus.store.deliveries.find(DeliveryQuery()) == []
    assert bus.store.directory.stats(since=NOW - timedelta(hours=1)) == []
    consumers = [c.name for s in bus.broker.streams("blog_", timeout=1) for c in s.consumers]
    assert consumers == ["Blog__rename"]
    assert bus.store.directory.workers() == []
    assert not [t for t in threading.enumerate() if t.name.startswith("eventdriven-worker")]
    assert list(bus.handlers) == ["Blog.rename"]


def test_the_round_trip_can_be_repeated(bus: EventBus) -> None:
    assert ping(bus).obstacle == ""
    second = ping(bus)
    assert (second.obstacle, len(second.seconds), second.committed) == ("", 5, True)


def test_a_round_trip_that_cannot_be_tidied_up_says_so_and_counts(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise StoreError("may not delete")

    monkeypatch.setattr(bus.store, "erase", refuse)
    assert ping(bus).obstacle == ""
    assert "The round trip left its events: may not delete" in caplog.text


def test_without_round_trip_nothing_is_published(bus: EventBus) -> None:
    checks = by_name(diagnose(bus, round_trip=False))
    assert "not asked for" in checks["round trip"].finding
    assert bus.store.events.find(EventQuery()) == []


def test_a_round_trip_that_does_not_arrive_fails(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus.broker, "drop_dispatches", True)
    trip = ping(bus, patience=0.2)
    assert "not handled within 0.2 s" in trip.obstacle
    assert bus.store.directory.handlers() == []


def test_a_broker_out_of_reach_is_one_failure_and_the_rest_is_skipped(bus: EventBus) -> None:
    bus.broker.disconnect()  # type: ignore[attr-defined]
    checks = by_name(diagnose(bus))
    assert [c.name for c in checks.values() if c.level == "fail"] == ["NATS"]
    assert checks["NATS"].cure
    assert checks["stream settings"] == Check("stream settings", "info", "skipped: NATS cannot be reached")
    assert checks["round trip"].level == "info"


def test_a_store_out_of_reach_is_one_failure_and_the_rest_is_skipped(bus: EventBus) -> None:
    bus.store.unavailable = True  # type: ignore[attr-defined]
    checks = by_name(diagnose(bus))
    assert [c.name for c in checks.values() if c.level == "fail"] == ["MongoDB"]
    assert checks["indexes"].finding == "skipped: MongoDB cannot be reached"
    assert checks["dead letters"].finding == "skipped: MongoDB cannot be reached"


def test_a_store_that_cannot_be_opened_otherwise_is_still_looked_at(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise StoreError("an index is not ours")

    monkeypatch.setattr(bus.store, "open", refuse)
    monkeypatch.setattr(bus.store, "info", lambda: MONGO | {"indexes": {"events": {"operation": "differs"}}})
    checks = by_name(diagnose(bus))
    assert checks["MongoDB"].finding == "an index is not ours"
    assert checks["MongoDB version"].level == "ok"
    assert checks["indexes"].level == "fail"


@pytest.mark.parametrize("answer", [RuntimeError("odd"), {"hosts": 5}, {}])
def test_no_answer_of_a_server_breaks_the_diagnosis(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    def answer_oddly() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(bus.store, "info", answer_oddly)
    checks = diagnose(bus, round_trip=False)
    assert len(checks) == len(CHECKS)
    assert "could not be checked" in by_name(checks)["MongoDB version"].finding


# --- the dashboard ----------------------------------------------------------------------------------------


def test_the_variable_of_the_dashboards_key_is_the_one_that_its_command_reads() -> None:
    assert dashboard_checks.KEY_VARIABLE == people.KEY_VARIABLE


def test_users_of_the_dashboard_are_counted(bus: EventBus) -> None:
    bus.open()
    assert by_name(diagnose(bus, round_trip=False))["dashboard users"].finding.startswith("skipped")
    for name, role, state in (("ada", "admin", "disabled"), ("bob", "viewer", "waiting")):
        bus.store.people.add_user(User(name=name, password="x", role=role, state=state, created_at=NOW))
    found = by_name(diagnose(bus, round_trip=False))["dashboard users"]
    assert (found.level, "2 user(s), and no admin" in found.finding) == ("warn", True), found


@pytest.mark.parametrize(
    ("variable", "value", "level", "said"),
    [
        ("FLASK_DEBUG", "1", "fail", "FLASK_DEBUG is set"),
        ("FLASK_DEBUG", "0", "ok", "no debug mode"),
        (dashboard_checks.KEY_VARIABLE, "secret" * 8, "fail", "48 bytes"),
        (dashboard_checks.KEY_VARIABLE, "0123456789abcdefghijklmnopqrstuvwxyz", "ok", "a key"),
    ],
)
def test_settings_of_the_dashboard_are_read_and_no_key_is_shown(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, level: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    facts = gather(bus, monitoring_url=None, round_trip=False)
    found = by_name(examine(facts))["dashboard settings"]
    assert (found.level, said in found.finding) == (level, True), found
    assert len(value) < 5 or value not in repr(facts) + repr(found)


@pytest.fixture
def served() -> Iterator[Callable[[Any], str]]:
    """Serves WSGI applications; gives the URL."""
    servers: list[Any] = []

    def serve(app: Any) -> str:
        servers.append(make_server("127.0.0.1", 0, app, threaded=True))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_dashboard_that_asks_strangers_to_sign_in_is_well(
    bus: EventBus, served: Callable[[Any], str]
) -> None:
    url = served(site(bus)) + "/events"
    found = by_name(diagnose(bus, round_trip=False, dashboard_url=url))["dashboard access"]
    assert (found.level, found.finding) == ("ok", f"{url}/ asks strangers to sign in")


def test_a_dashboard_that_is_open_to_everybody_is_named(bus: EventBus, served: Callable[[Any], str]) -> None:
    url = served(site(bus, insecure=True)) + "/events/"
    found = by_name(diagnose(bus, round_trip=False, dashboard_url=url))["dashboard access"]
    assert (found.level, "shows the events to strangers" in found.finding) == ("fail", True), found


def test_a_dashboard_under_a_debugger_is_named(bus: EventBus, served: Callable[[Any], str]) -> None:
    url = served(DebuggedApplication(site(bus), evalex=True)) + "/events"
    found = by_name(diagnose(bus, round_trip=False, dashboard_url=url))["dashboard access"]
    assert (found.level, "debugger" in found.finding) == ("fail", True), found


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("http://shop.example/events", False),
        ("https://shop.example/events", True),
        ("http://localhost:8400", True),
        ("http://[::1]:8400", True),
    ],
)
def test_a_dashboard_is_private_with_tls_or_on_this_machine(
    url: str, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_checks, "_answer", lambda address: (303, "text/html"))
    found = dashboard_checks.visit(url)
    assert isinstance(found, Page)
    assert found.private == private


@pytest.mark.parametrize(
    ("url", "said"),
    [("ftp://x", "does not begin with http"), ("http://127.0.0.1:1/events", "is silent: "), ("x", "http")],
)
def test_a_dashboard_url_that_is_no_use_is_named(bus: EventBus, url: str, said: str) -> None:
    found = by_name(diagnose(bus, round_trip=False, dashboard_url=url))["dashboard access"]
    assert (found.level, said in found.finding) == ("warn", True), found


# --- forgotten events -------------------------------------------------------------------------------------


def test_events_that_nothing_will_bring_are_found_and_too_many_to_look_at_are_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    store, broker = MemoryStore(clock=clock), MemoryBroker(clock=clock, manual=True)
    broker.drop_dispatches = True
    with EventBus(settings=Settings(nats="memory://", mongo="memory://"), broker=broker, store=store) as bus:
        bus.group("Blog").handler(Renamed, name="rename")(lambda event: None)
        bus.open()
        event = codec_event(bus, clock)
        store.events.append([event], timeout=1)
        clock.advance(20)
        assert by_name(diagnose(bus, round_trip=False))["forgotten events"].level == "ok"
        clock.advance(10)
        found = by_name(diagnose(bus, round_trip=False))["forgotten events"]
        assert (found.level, "Blog.rename 1" in found.finding) == ("warn", True), found
        monkeypatch.setattr("eventdriven_sync.doctor.facts.MOST_AUDITED", 0)
        skipped = by_name(diagnose(bus, round_trip=False))["forgotten events"]
        assert (skipped.level, "too many" in skipped.finding) == ("info", True), skipped


def codec_event(bus: EventBus, clock: FakeClock) -> Envelope:
    """An event of this moment by the store's clock."""
    return attrs.evolve(
        bus._publisher.envelope(Renamed(name="Ada"), source="", timeout=None), published_at=clock()
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://localhost", "does not begin with http"),
        ("http://127.0.0.1:1", "cannot be read"),
        ("http://[broken", "could not be checked"),
    ],
)
def test_a_monitoring_url_that_is_no_use_is_named(bus: EventBus, url: str, said: str) -> None:
    checks = by_name(diagnose(bus, monitoring_url=url, round_trip=False))
    assert checks["NATS storage"].level == "warn"
    assert said in checks["NATS storage"].finding


def test_a_second_look_is_taken_only_if_something_waits(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventdriven_sync.doctor.facts.SECOND_LOOK_AFTER", 0.01)
    looks: list[str] = []
    look: Callable[..., Any] = bus.broker.streams
    monkeypatch.setattr(
        bus.broker,
        "streams",
        lambda prefix, *, timeout: (looks.append(prefix), look(prefix, timeout=timeout))[1],
    )
    bus.open()
    gather(bus, monitoring_url=None, round_trip=False)
    assert looks == ["blog_"]
    bus.publish(Renamed(name="Ada"))
    gather(bus, monitoring_url=None, round_trip=False)
    assert looks == ["blog_"] * 3
