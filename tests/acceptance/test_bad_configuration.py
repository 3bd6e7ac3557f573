"""Wrong settings and servers that are not as we need them: what is said, and what is accepted still."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import nats
import pymongo
import pytest
from pymongo.errors import OperationFailure

from eventdriven_sync import EventBus, Settings, Worker, event
from eventdriven_sync.devserver import DevServers, NatsServer, ServerBinaryMissing
from eventdriven_sync.devserver.mongod import Mongod
from eventdriven_sync.devserver.process import LocalServer
from eventdriven_sync.errors import (
    BrokerPermissionDenied,
    BrokerUnavailable,
    ConfigurationError,
    EventDrivenError,
    InvalidOption,
    StorePermissionDenied,
    StoreUnavailable,
    StreamConflict,
    UnsafeStream,
)
from tests.polling import eventually

ROOT = Path(__file__).parents[2]
NOBODY = "127.0.0.1:1"
WEEK = 7 * 86400

Build = Callable[..., EventBus]


@event("Setting.made")
@attrs.frozen(kw_only=True)
class Made:
    number: int = 1


@pytest.fixture
def build(servers: DevServers, mongo_url: str, namespace: str) -> Iterator[Build]:
    """Buses that give up and reconcile quickly."""
    buses: list[EventBus] = []

    def make(**changes: Any) -> EventBus:
        given = {"nats": servers.nats_url, "mongo": mongo_url, "namespace": namespace}
        quick = {"reconcile_after": 0.3, "reconcile_every": 0.1, "poll_every": 0.05}
        limits = {"publish_timeout": 5.0, "broker_timeout": 5.0}
        buses.append(EventBus(settings=Settings(**(given | quick | limits | changes))))
        return buses[-1]

    yield make
    for bus in buses:
        bus.close(timeout=1)


@contextmanager
def working(bus: EventBus, seen: list[int]) -> Iterator[Worker]:
    bus.group("Blog").handler(Made, name="note")(lambda made: seen.append(made.number))
    worker = Worker(bus, threads=2, grace=2.0)
    try:
        yield worker.start()
    finally:
        worker.stop(grace=1.0)


def started(server: LocalServer) -> LocalServer:
    try:
        return server.start()
    except ServerBinaryMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


# --- settings ---------------------------------------------------------------------------------------------

SETTINGS: list[tuple[dict[str, Any], type[EventDrivenError], str]] = [
    (
        {"nats": "http://ann:hunter2@h"},
        ConfigurationError,
        "nats URL is 'http://ann:***@h': it must begin with nats:// or tls://",
    ),
    ({"nats": "nats:/ann:hunter2@h"}, ConfigurationError, "it must begin with nats://"),
    ({"nats": "ann:hunter2@h"}, ConfigurationError, "must begin with nats://"),
    ({"nats": "localhost:4222"}, ConfigurationError, "it must begin with nats://"),
    ({"nats": "nats://"}, ConfigurationError, "its host or port cannot be used"),
    (
        {"nats": "nats://ann:hunter2@h:70000"},
        ConfigurationError,
        "its host or port cannot be used, ports are 1 to 65535",
    ),
    ({"nats": "nats://h:0"}, ConfigurationError, "ports are 1 to 65535"),
    ({"nats": "nats://h:port"}, ConfigurationError, "ports are 1 to 65535"),
    ({"nats": "nats://h\nx"}, ConfigurationError, "white space"),
    ({"nats": "nats://a,http://b"}, ConfigurationError, "it must begin with"),
    ({"nats": ""}, ConfigurationError, "nats URL is '': give text"),
    ({"nats": 5}, ConfigurationError, "nats URL is 5: give text"),
    (
        {"mongo": "postgres://ann:hunter2@h"},
        ConfigurationError,
        "mongo URL is 'postgres://ann:***@h': it must begin with mongodb://",
    ),
    ({"mongo": "h:27017"}, ConfigurationError, "it must begin with mongodb://"),
    ({"namespace": ""}, ConfigurationError, "namespace is ''"),
    ({"namespace": "a.b"}, ConfigurationError, "namespace is 'a.b'"),
    ({"namespace": "$JS"}, ConfigurationError, "namespace is '$JS'"),
    ({"namespace": "a_b"}, ConfigurationError, "namespace is 'a_b'"),
    ({"namespace": ">"}, ConfigurationError, "namespace is '>'"),
    ({"namespace": "a" * 33}, ConfigurationError, "1 to 32 characters"),
    ({"namespace": None}, ConfigurationError, "namespace is None"),
    ({"ack_wait": 0}, InvalidOption, "ack_wait is 0: give a number from 0.3 to 3,600"),
    ({"ack_wait": -30}, InvalidOption, "ack_wait is -30"),
    ({"ack_wait": float("inf")}, InvalidOption, "ack_wait is inf"),
    ({"lease": 0.1}, InvalidOption, "lease is 0.1: give a number from 0.3"),
    ({"lease": float("nan")}, InvalidOption, "lease is nan"),
    ({"lease": "30"}, InvalidOption, "lease is '30'"),
    ({"max_lost": 0}, InvalidOption, "max_lost is 0: give a whole number from 1 to 100"),
    ({"max_lost": 2.0}, InvalidOption, "max_lost is 2.0: give a whole number"),
    ({"max_chain_depth": 0}, InvalidOption, "max_chain_depth is 0"),
    ({"max_payload_bytes": -1}, InvalidOption, "max_payload_bytes is -1: give a whole number from 2,048"),
    ({"publish_timeout": 0}, InvalidOption, "publish_timeout is 0: give a number from 0.05 to 60"),
    ({"broker_timeout": True}, InvalidOption, "broker_timeout is True"),
    ({"stream_max_age": 1}, InvalidOption, "stream_max_age is 1: give a number from 60"),
    ({"stream_replicas": 2}, InvalidOption, "stream_replicas is 2: give 1 or 3"),
    ({"version_grace": -1}, InvalidOption, "version_grace is -1: give a number from 0"),
]


@pytest.mark.parametrize(("fields", "kind", "fact"), SETTINGS, ids=[row[2] for row in SETTINGS])
def test_a_wrong_setting_is_refused_with_its_range_and_without_its_secret(
    fields: dict[str, Any], kind: type[EventDrivenError], fact: str
) -> None:
    with pytest.raises(EventDrivenError) as caught:
        EventBus(settings=Settings(**fields))
    assert type(caught.value) is kind
    assert fact in str(caught.value)
    assert "hunter2" not in f"{caught.value!r} {caught.value.facts}"


# --- servers that are not there ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", [NOBODY, "no.such.host.invalid:4222", "[::1]:1"])
def test_an_unreachable_nats_is_named_within_the_deadline_and_events_are_accepted(
    build: Build, host: str
) -> None:
    bus = build(nats=f"nats://ann:hunter2@{host}")
    began = time.monotonic()
    bus.publish(Made())
    with pytest.raises(BrokerUnavailable) as caught:
        bus.broker.streams("any", timeout=0.5)
    assert time.monotonic() - began < 4
    assert type(caught.value) is BrokerUnavailable
    assert f"{host} did not answer within 0.5 s" in str(caught.value)
    assert "hunter2" not in f"{caught.value!r} {caught.value.facts} {bus.broker.status()}"
    assert bus.store.events.count(["Setting.made"], since=None) == 1


@pytest.mark.parametrize("host", [NOBODY, f"{NOBODY},127.0.0.1:2", "no.such.host.invalid"])
def test_an_unreachable_mongodb_is_named_within_the_deadline_and_nothing_is_accepted(
    build: Build, host: str
) -> None:
    bus = build(mongo=f"mongodb://ann:hunter2@{host}/blog?replicaSet=rs0", publish_timeout=0.5)
    for call in (lambda: bus.publish(Made()), bus.open, bus.dead_letters.count):
        began = time.monotonic()
        with pytest.raises(
            StoreUnavailable, match=r"could not be reached within 0\.5 s, nothing was"
        ) as caught:
            call()
        assert time.monotonic() - began < 2
        assert type(caught.value) is StoreUnavailable
        assert host.partition(":")[0].partition(",")[0] in str(caught.value)
        assert "hunter2" not in f"{caught.value!r} {caught.value.facts}"


def test_each_server_given_as_the_other_is_told_within_the_deadline(
    build: Build, servers: DevServers, mongo_url: str
) -> None:
    with pytest.raises(StoreUnavailable, match=r"could not be reached within 0\.5 s"):
        build(mongo=f"mongodb://127.0.0.1:{servers.nats.port}/x", publish_timeout=0.5).publish(Made())
    port = mongo_url.partition("127.0.0.1:")[2].partition("/")[0]
    bus = build(nats=f"nats://127.0.0.1:{port}")
    with pytest.raises(BrokerUnavailable, match=f"nats://127.0.0.1:{port} did not answer within 0.5 s"):
        bus.broker.streams("any", timeout=0.5)


# --- NATS servers that are otherwise ----------------------------------------------------------------------


class ConfiguredNats(NatsServer):
    """A nats-server with settings of the test; None removes one."""

    settings: dict[str, Any] = {}

    def _command(self, binary: str) -> list[str]:
        command = super()._command(binary)
        config = self.directory / "nats.conf"
        settings = json.loads(config.read_text()) | self.settings
        config.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
        return command

    def _answers(self) -> bool:
        return "Server is ready" in self.log_tail()


@pytest.fixture
def nats_with(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts a nats-server with these settings; gives its address."""
    server = ConfiguredNats(tmp_path)

    def start(**settings: Any) -> str:
        server.settings = settings
        started(server)
        return f"127.0.0.1:{server.port}"

    yield start
    server.kill()


def test_nats_without_jetstream_is_a_wrong_configuration(build: Build, nats_with: Callable[..., str]) -> None:
    address = nats_with(jetstream=None)
    bus, seen = build(nats=f"nats://ann:hunter2@{address}"), list[int]()
    with (
        pytest.raises(ConfigurationError, match=f"{address} runs without JetStream.*with -js") as caught,
        working(bus, seen),
    ):
        pass
    assert type(caught.value) is ConfigurationError
    assert "hunter2" not in f"{caught.value!r} {caught.value.facts}"
    bus.publish(Made())
    assert bus.store.events.count(["Setting.made"], since=None) == 1


@pytest.mark.parametrize("user", ["ann:wrong2", "nobody:wrong2", "wrong2", ""])
def test_credentials_that_nats_refuses_are_not_shown(
    build: Build, nats_with: Callable[..., str], user: str
) -> None:
    address = nats_with(authorization={"users": [{"user": "ann", "password": "right"}]})
    bus = build(nats=f"nats://{user}@{address}" if user else f"nats://{address}")
    with pytest.raises(BrokerPermissionDenied, match=f"{address} refuses the credentials") as caught:
        bus.broker.streams("any", timeout=5)
    assert "wrong2" not in f"{caught.value!r} {caught.value.facts} {bus.broker.status()}"


def test_a_subject_the_user_may_not_publish_to_is_told_and_its_events_are_handled(
    build: Build, nats_with: Callable[..., str], namespace: str
) -> None:
    deny = {"publish": {"deny": [f"{namespace}.Setting.>"]}}
    users = [{"user": "ann", "password": "hunter2", "permissions": deny}]
    bus, seen = build(nats=f"nats://ann:hunter2@{nats_with(authorization={'users': users})}"), list[int]()
    with working(bus, seen):
        bus.publish(Made(number=7))
        assert bus.flush()
        assert f"no permission to publish to {namespace}.Setting.made" in bus.broker.status().last_error
        eventually(lambda: seen == [7], timeout=20)


def test_a_stream_the_user_may_not_create_is_told(
    build: Build, nats_with: Callable[..., str], namespace: str
) -> None:
    deny = {"publish": {"deny": ["$JS.API.STREAM.CREATE.>"]}}
    users = [{"user": "ann", "password": "hunter2", "permissions": deny}]
    bus = build(nats=f"nats://ann:hunter2@{nats_with(authorization={'users': users})}")
    with (
        pytest.raises(
            BrokerPermissionDenied, match=rf"publish to \$JS.API.STREAM.CREATE.{namespace}_Setting"
        ),
        working(bus, []),
    ):
        pass


# --- streams that are otherwise ---------------------------------------------------------------------------


def create_stream(url: str, name: str, subjects: list[str], **config: Any) -> None:
    async def create() -> None:
        client = await nats.connect(url)
        defaults = {"storage": "file", "max_age": WEEK * 10**9, "duplicate_window": 120 * 10**9}
        body = {"name": name, "subjects": subjects, "retention": "limits"} | defaults | config
        answer = await client.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(body).encode())
        await client.close()
        assert "error" not in json.loads(answer.data), answer.data

    asyncio.run(create())


STREAMS: list[tuple[dict[str, Any], type[EventDrivenError], str]] = [
    ({"storage": "memory"}, UnsafeStream, "storage is memory, we need file"),
    ({"retention": "workqueue"}, UnsafeStream, "retention is workqueue, we need limits"),
    ({"retention": "interest"}, UnsafeStream, "retention is interest, we need limits"),
    ({"no_ack": True}, UnsafeStream, "no_ack is True, we need False"),
    (
        {"max_msgs": 10},
        UnsafeStream,
        "discard is old, with max_msgs 10, we need new, or no limit but max_age",
    ),
    ({"max_bytes": 10**6}, UnsafeStream, "discard is old, with max_bytes 1000000"),
    ({"max_msgs_per_subject": 1}, UnsafeStream, "discard is old, with max_msgs_per_subject 1"),
    (
        {"max_age": 60 * 10**9, "duplicate_window": 10**10},
        StreamConflict,
        "max_age is 60 s, we need 604800 s",
    ),
    ({"duplicate_window": 10**9}, StreamConflict, "duplicate_window is 1 s, we need"),
    (
        {"subjects": ["{0}.Setting.>"]},
        StreamConflict,
        "subjects is ['{0}.Setting.>'], we need ['{0}.Setting', '{0}.Setting.>']",
    ),
    (
        {"name": "{0}-other"},
        StreamConflict,
        "its subjects {0}.Setting, {0}.Setting.> are already taken by {0}-other",
    ),
    ({"name": "{0}-wide", "subjects": ["{0}.>"]}, StreamConflict, "are already taken by {0}-wide"),
]


@pytest.mark.parametrize(("config", "kind", "fact"), STREAMS, ids=[row[2] for row in STREAMS])
def test_a_worker_refuses_a_stream_that_is_otherwise_and_leaves_it_alone(
    build: Build,
    nats_url: str,
    namespace: str,
    config: dict[str, Any],
    kind: type[EventDrivenError],
    fact: str,
) -> None:
    ours = {"name": f"{namespace}_Setting", "subjects": [f"{namespace}.Setting", f"{namespace}.Setting.>"]}
    given = ours | json.loads(json.dumps(config).replace("{0}", namespace))
    create_stream(nats_url, **given)
    bus = build()
    before = bus.broker.streams(namespace, timeout=5)
    with pytest.raises(StreamConflict) as caught, working(bus, []):
        pass
    assert type(caught.value) is kind
    assert fact.replace("{0}", namespace) in str(caught.value)
    after = bus.broker.streams(namespace, timeout=5)
    assert [stream.config for stream in after] == [stream.config for stream in before]


def test_what_a_full_stream_refuses_is_accepted_told_and_handled(
    build: Build, nats_url: str, namespace: str
) -> None:
    subjects = [f"{namespace}.Setting", f"{namespace}.Setting.>"]
    create_stream(nats_url, f"{namespace}_Setting", subjects, max_msgs=1, discard="new")
    bus, seen = build(), list[int]()
    with working(bus, seen):
        for number in range(5):
            bus.publish(Made(number=number))
        eventually(lambda: "maximum messages exceeded (10077)" in bus.broker.status().last_error)
        eventually(lambda: sorted(seen) == [0, 1, 2, 3, 4], timeout=20)


# --- MongoDB that refuses -----------------------------------------------------------------------------------


class GuardedMongod(Mongod):
    """A replica set of one that asks for a user: in ``blog`` a ``reader`` may read, a ``writer`` write."""

    def _command(self, binary: str) -> list[str]:
        key = self.directory / "key"
        key.touch(mode=0o600)
        key.write_text("onlyForThisTest", encoding="ascii")
        return [*super()._command(binary), "--keyFile", str(key)]

    def await_ready(self) -> None:
        LocalServer.await_ready(self)
        address = f"127.0.0.1:{self.port}"
        with pymongo.MongoClient[Any](address, directConnection=True) as client:
            members = [{"_id": 0, "host": address}]
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
            eventually(lambda: client.admin.command("hello")["isWritablePrimary"], timeout=20)
            eventually(lambda: _created(client, "root", ["root"]))
        with pymongo.MongoClient[Any](f"mongodb://root:x@{address}", directConnection=True) as client:
            _created(client, "reader", [{"role": "read", "db": "blog"}])
            _created(client, "writer", [{"role": "readWrite", "db": "blog"}])


def _created(client: pymongo.MongoClient[Any], user: str, roles: list[Any]) -> bool:
    try:
        client.admin.command("createUser", user, pwd="x", roles=roles)
    except OperationFailure as error:
        raise AssertionError(str(error)) from error
    return True


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = started(GuardedMongod(tmp_path_factory.mktemp("guarded")))
    yield f"127.0.0.1:{server.port}"
    server.kill()


@pytest.mark.parametrize(
    ("user", "database", "fact"),
    [
        ("reader:x@", "blog", "(while creating indexes): OperationFailure: not authorized on blog"),
        ("writer:x@", "other", "(while creating indexes): OperationFailure: not authorized on other"),
        ("writer:hunter2@", "blog", "Authentication failed"),
        ("nobody:hunter2@", "blog", "Authentication failed"),
        ("", "blog", "requires authentication"),
    ],
)
def test_what_mongodb_does_not_allow_is_named(
    build: Build, guarded: str, user: str, database: str, fact: str
) -> None:
    bus = build(mongo=f"mongodb://{user}{guarded}/{database}?replicaSet=rs0&authSource=admin")
    with pytest.raises(StorePermissionDenied) as caught:
        bus.publish(Made())
    assert type(caught.value) is StorePermissionDenied
    assert fact in str(caught.value)
    assert "give the user readWrite on the database of the URL" in str(caught.value)
    assert "hunter2" not in f"{caught.value!r} {caught.value.facts}"


def test_a_user_with_read_write_on_the_database_is_enough(build: Build, guarded: str) -> None:
    bus = build(mongo=f"mongodb://writer:x@{guarded}/blog?replicaSet=rs0&authSource=admin")
    assert bus.publish(Made()).duplicate is False


# --- the command line -------------------------------------------------------------------------------------


def test_retrying_what_cannot_be_retried_ends_with_2_and_names_the_state(build: Build) -> None:
    bus, seen = build(), list[int]()
    with working(bus, seen):
        receipt = bus.publish(Made())
        delivery = f"Blog.note:{receipt.id}"
        eventually(lambda: bus.store.deliveries.get(delivery))
    told = {
        delivery: f"delivery {delivery} is 'succeeded'; only 'dead' can be retried",
        "nobody": "no delivery has the id 'nobody'",
        "": "give text of 1 to 1,000 characters",
        os.fsdecode(b"\xff"): "lone surrogate",
    }
    settings = {"nats": bus.settings.nats, "mongo": bus.settings.mongo, "namespace": bus.settings.namespace}
    environ = os.environ | {f"EVENTDRIVEN_{name.upper()}": value for name, value in settings.items()}
    for given, fact in told.items():
        command = [sys.executable, "-m", "eventdriven_sync", "dead", "retry", "--", given]
        ended = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, timeout=60, check=False)
        assert (ended.returncode, ended.stdout) == (2, b""), ended
        assert fact in ended.stderr.decode()
        assert b"Traceback" not in ended.stderr
