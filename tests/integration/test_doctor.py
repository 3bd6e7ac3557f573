"""The doctor on real servers: well ones, and ones that are wrong in the ways it must see."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pymongo
import pytest

from eventdriven_sync.bus import EventBus
from eventdriven_sync.config import Settings
from eventdriven_sync.devserver import DevServers, NatsServer
from eventdriven_sync.devserver.mongod import Mongod
from eventdriven_sync.devserver.ports import free_port
from eventdriven_sync.doctor import Check, diagnose
from eventdriven_sync.doctor.ping import ping
from eventdriven_sync.events import event
from eventdriven_sync.records import HandlerRecord
from eventdriven_sync.worker import Worker
from tests.apps.jetstream import ask_jetstream

# On a development machine: one member, and a server that is younger than a day.
EXPECTED = {"MongoDB replica set", "MongoDB oplog"}


@event("DoctorPost.written")
@attrs.frozen(kw_only=True)
class Written:
    title: str


@contextmanager
def opened(nats_url: str, mongo_url: str, namespace: str) -> Iterator[EventBus]:
    settings = Settings(
        nats=nats_url, mongo=mongo_url, namespace=namespace, publish_timeout=3.0, broker_timeout=2.0
    )
    with EventBus(settings=settings) as bus:
        bus.group("Blog").handler(Written, name="index")(lambda event: None)
        yield bus


@pytest.fixture(autouse=True)
def _nothing_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have imported Celery."""
    monkeypatch.setattr("eventdriven_sync.doctor.facts._preforkers", lambda: ())


@pytest.fixture
def bus(nats_url: str, mongo_url: str, namespace: str) -> Iterator[EventBus]:
    with opened(nats_url, mongo_url, namespace) as made:
        yield made


@pytest.fixture
def well(bus: EventBus) -> Iterator[EventBus]:
    """A bus with a running worker."""
    worker = Worker(bus, threads=2).start()
    yield bus
    worker.stop()


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def levels(checks: list[Check], level: str) -> set[str]:
    return {check.name for check in checks if check.level == level}


def test_development_servers_are_well(well: EventBus, servers: DevServers) -> None:
    checks = diagnose(well, monitoring_url=servers.nats.monitor_url)
    assert levels(checks, "fail") == set()
    assert levels(checks, "warn") <= EXPECTED, checks
    found = by_name(checks)
    assert "crash-safe" in found["NATS durability"].finding
    assert "published, handled and recorded in" in found["round trip"].finding
    assert "one committed" in found["transactions"].finding
    assert found["JetStream API"].level == "ok"
    assert "sent with w: majority and j: true" in found["durable write"].finding
    assert found["durability"].finding == (
        "accepted events: power-safe, 1 copy (MongoDB: replica set rs0, a write carried w: majority, j: true)"
        "; messages: crash-safe (NATS: file storage, 1 replica, sync_interval 120 s)"
    )


def test_the_round_trip_leaves_only_its_stream(
    well: EventBus, mongo_client: pymongo.MongoClient[Any], database_name: str, namespace: str
) -> None:
    trip = ping(well)
    assert (trip.obstacle, len(trip.seconds), trip.committed) == ("", 5, True)
    assert abs(trip.broker_skew or 0.0) < 1
    streams = {s.name: [c.name for c in s.consumers] for s in well.broker.streams(namespace, timeout=5)}
    assert streams == {f"{namespace}_Eventdriven": [], f"{namespace}_DoctorPost": ["Blog__index"]}
    registered: list[HandlerRecord] = well.store.directory.handlers(retired=True)
    assert [record.name for record in registered] == ["Blog.index"]
    database = mongo_client[database_name]
    for name in ("events", "deliveries", "operations", "stats"):
        assert list(database[name].find()) == []
    assert len(well.store.directory.workers()) == 1


def test_the_probes_leave_nothing(
    bus: EventBus, mongo_client: pymongo.MongoClient[Any], database_name: str
) -> None:
    diagnose(bus, round_trip=False)
    database = mongo_client[database_name]
    names = database.list_collection_names()
    assert "leases" in names
    # What remains is whose database it is.
    left = {name: list(database[name].find()) for name in names}
    assert {name: found for name, found in left.items() if found} == {
        "leases": [{"_id": "namespace", "holder": bus.settings.namespace}]
    }


def test_sync_always_is_seen_on_the_monitoring_page(tmp_path: Path, mongo_url: str, namespace: str) -> None:
    server = NatsServer(tmp_path, sync_always=True).start()
    try:
        with opened(server.url, mongo_url, namespace) as bus:
            checks = by_name(diagnose(bus, monitoring_url=server.monitor_url, round_trip=False))
    finally:
        server.stop()
    assert checks["NATS durability"].level == "ok"
    assert "power-safe" in checks["NATS durability"].finding


def test_a_stream_with_other_settings_is_named(bus: EventBus, nats_url: str, namespace: str) -> None:
    name = f"{namespace}_DoctorPost"
    subjects = [f"{namespace}.DoctorPost", f"{namespace}.DoctorPost.>"]
    ask_jetstream(
        nats_url,
        f"STREAM.CREATE.{name}",
        {"name": name, "subjects": subjects, "retention": "interest", "storage": "memory"},
    )
    checks = by_name(diagnose(bus, round_trip=False))
    assert checks["stream settings"].level == "fail"
    assert name in checks["stream settings"].finding
    assert checks["NATS durability"].level == "fail"


def test_a_consumer_with_other_settings_is_named(bus: EventBus, nats_url: str, namespace: str) -> None:
    bus.open()
    specs = bus.subscribe(list(bus.handlers.values()))
    bus.broker.declare(specs, timeout=5)
    stream, name = specs[0].stream.name, specs[0].name
    bus.broker.delete_consumer(stream, name, timeout=5)
    config = {"durable_name": name, "name": name, "ack_policy": "explicit", "max_deliver": 3}
    config |= {"filter_subjects": list(specs[0].subjects), "ack_wait": 30 * 10**9, "max_ack_pending": 20_000}
    ask_jetstream(
        nats_url,
        f"CONSUMER.CREATE.{stream}.{name}",
        {"stream_name": stream, "config": config, "action": "create"},
    )
    found = by_name(diagnose(bus, round_trip=False))["consumer settings"]
    assert (found.level, name in found.finding) == ("fail", True), found
    assert "max_deliver is 3" in found.finding


def test_a_backlog_without_worker_is_named(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventdriven_sync.doctor.facts.SECOND_LOOK_AFTER", 0.1)
    specs = bus.subscribe(list(bus.handlers.values()))
    bus.broker.declare(specs, timeout=5)
    bus.publish(Written(title="x"))
    bus.flush()
    checks = by_name(diagnose(bus, round_trip=False))
    assert "no worker runs its handler" in checks["consumer progress"].finding
    assert checks["workers"].level == "warn"
    assert "messages in consumers: 1" in checks["backlog"].finding


def test_a_missing_index_is_named(
    bus: EventBus, mongo_client: pymongo.MongoClient[Any], database_name: str
) -> None:
    bus.open()
    mongo_client[database_name].events.drop_index("operation")
    found = by_name(diagnose(bus, round_trip=False))["indexes"]
    assert (found.level, "events.operation" in found.finding) == ("fail", True), found


def test_an_index_that_deletes_dead_letters_is_named(
    bus: EventBus, mongo_client: pymongo.MongoClient[Any], database_name: str
) -> None:
    bus.open()
    mongo_client[database_name].deliveries.create_index("created_at", expireAfterSeconds=60, name="tidy")
    found = by_name(diagnose(bus, round_trip=False))["indexes"]
    assert (found.level, "deliveries.tidy deletes documents" in found.finding) == ("fail", True), found


def test_a_weaker_default_write_concern_is_named(own_servers: DevServers, namespace: str) -> None:
    # Once a default was set, MongoDB takes no way back to its own.
    with pymongo.MongoClient[Any](own_servers.mongo_url()) as client:
        client.admin.command("setDefaultRWConcern", 1, defaultWriteConcern={"w": 1})
    with opened(own_servers.nats_url, own_servers.mongo_url("app"), namespace) as bus:
        checks = by_name(diagnose(bus, round_trip=False))
    assert (checks["default write concern"].level, checks["durable write"].level) == ("warn", "ok")
    assert "w: 1" in checks["default write concern"].finding


def test_what_the_url_says_about_write_concern_does_not_weaken_ours(
    nats_url: str, mongo_url: str, namespace: str
) -> None:
    weak = f"{mongo_url}{'&' if '?' in mongo_url else '?'}w=1&journal=false"
    with opened(nats_url, weak, namespace) as bus:
        checks = by_name(diagnose(bus, round_trip=False))
    assert checks["durable write"].level == "ok"
    assert "accepted events: power-safe" in checks["durability"].finding


def test_a_paused_consumer_with_a_backlog_is_named(
    well: EventBus, nats_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventdriven_sync.doctor.facts.SECOND_LOOK_AFTER", 0.1)
    until = {"pause_until": "2100-01-01T00:00:00Z"}
    ask_jetstream(nats_url, f"CONSUMER.PAUSE.{namespace}_DoctorPost.Blog__index", until)
    well.publish(Written(title="x"))
    well.flush()
    found = by_name(diagnose(well, round_trip=False))["consumer progress"]
    assert (found.level, "Blog__index, which is paused" in found.finding) == ("warn", True), found


def test_servers_that_are_gone_are_one_failure_each(own_servers: DevServers, namespace: str) -> None:
    own_servers.nats.kill()
    own_servers.mongo.kill()
    with opened(own_servers.nats_url, own_servers.mongo_url(), namespace) as bus:
        checks = diagnose(bus)
    assert levels(checks, "fail") == {"NATS", "MongoDB"}
    assert levels(checks, "warn") == set()
    assert by_name(checks)["indexes"].finding.startswith("skipped")


def test_nats_without_jetstream_is_named(tmp_path: Path, mongo_url: str, namespace: str) -> None:
    with plain_nats(tmp_path) as url, opened(url, mongo_url, namespace) as bus:
        checks = by_name(diagnose(bus))
    assert (checks["NATS"].level, "JetStream" in checks["NATS"].finding) == ("fail", True)
    assert checks["NATS version"].level == "ok"
    assert checks["round trip"].finding.startswith("skipped")


def test_refused_credentials_are_named(tmp_path: Path, mongo_url: str, namespace: str) -> None:
    with plain_nats(tmp_path, "-js", "--user", "u", "--pass", "right", "-sd", str(tmp_path)) as url:
        wrong = url.replace("//", "//u:wrong@")
        with opened(wrong, mongo_url, namespace) as bus:
            found = by_name(diagnose(bus))["NATS"]
    assert (found.level, "credentials" in found.finding) == ("fail", True), found
    assert "wrong" not in found.finding + found.cure


def test_a_standalone_mongod_fails(tmp_path: Path, nats_url: str, namespace: str) -> None:
    with standalone_mongod(tmp_path) as url, opened(nats_url, url, namespace) as bus:
        checks = diagnose(bus)
    failed = levels(checks, "fail")
    assert {"MongoDB", "MongoDB replica set", "transactions"} <= failed, checks
    assert "standalone" in by_name(checks)["MongoDB"].finding
    assert by_name(checks)["MongoDB version"].level == "ok"


@contextmanager
def plain_nats(directory: Path, *options: str) -> Iterator[str]:
    port = free_port()
    binary = NatsServer(directory).find_binary()
    with running([binary, "-a", "127.0.0.1", "-p", str(port), *options]):
        yield f"nats://127.0.0.1:{port}"


@contextmanager
def standalone_mongod(directory: Path) -> Iterator[str]:
    port = free_port()
    data = directory / "standalone"
    data.mkdir()
    binary = Mongod(directory).find_binary()
    with running([binary, "--dbpath", str(data), "--bind_ip", "127.0.0.1", "--port", str(port)]):
        url = f"mongodb://127.0.0.1:{port}/alone"
        with pymongo.MongoClient[Any](url, serverSelectionTimeoutMS=20_000) as client:
            client.admin.command("ping")
        yield url
    shutil.rmtree(data)


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_a_user_that_may_touch_streams_of_others_is_named(
    tmp_path: Path, mongo_url: str, namespace: str
) -> None:
    streams = f"{namespace}_DoctorPost"
    permissions = {
        "publish": [
            *(f"$JS.API.{path}" for path in ("INFO", "STREAM.LIST", "STREAM.NAMES")),
            *(f"$JS.API.STREAM.{verb}.{streams}" for verb in ("INFO", "CREATE", "MSG.GET")),
            *(f"$JS.API.CONSUMER.{verb}.{streams}.>" for verb in ("INFO", "CREATE", "MSG.NEXT", "DELETE")),
            f"$JS.API.CONSUMER.LIST.{streams}",
            f"{namespace}.>",
        ],
        "subscribe": ["_INBOX.>"],
    }
    users = [
        {"user": "narrow", "password": "n", "permissions": permissions},
        {"user": "wide", "password": "w"},
    ]
    configuration = tmp_path / "nats.conf"
    configuration.write_text(json.dumps({"authorization": {"users": users}}))
    found = {}
    with plain_nats(tmp_path, "-c", str(configuration), "-js", "-sd", str(tmp_path)) as url:
        for user in ("narrow", "wide"):
            own = url.replace("//", f"//{user}:{user[0]}@")
            with opened(own, mongo_url, namespace) as bus:
                checks = by_name(diagnose(bus, round_trip=False))
                found[user] = (checks["NATS"].level, checks["NATS rights"].level)
    assert found == {"narrow": ("ok", "ok"), "wide": ("ok", "warn")}
