"""Servers to be hurt: one or three nats-servers with JetStream, one mongod or a replica set of three."""

import json
from pathlib import Path
from typing import Any, Self

import pymongo
from pymongo.errors import PyMongoError

from eventdriven_sync.devserver import Mongod, NatsServer
from eventdriven_sync.devserver.ports import LOOPBACK, free_port
from eventdriven_sync.devserver.process import LocalServer
from tests.apps.jetstream import ask_jetstream
from tests.polling import eventually

# MongoDB's own is 10 s, and where the two that are left vote for themselves a second election follows.
ELECTION_MS = 5000
START_TIMEOUT = 60.0


class ClusterNats(NatsServer):
    """One of three nats-servers."""

    def __init__(self, directory: Path, *, sync_always: bool) -> None:
        super().__init__(directory, sync_always=sync_always, start_timeout=START_TIMEOUT)
        self.port = free_port()
        self.route_port = free_port(besides=self.port)
        self.others: list[ClusterNats] = []

    def _command(self, binary: str) -> list[str]:
        command = super()._command(binary)
        config = self.directory / "nats.conf"
        settings = json.loads(config.read_text())
        settings["cluster"] = {
            "name": "faults",
            "listen": f"{LOOPBACK}:{self.route_port}",
            "routes": [f"nats://{LOOPBACK}:{other.route_port}" for other in self.others],
        }
        config.write_text(json.dumps(settings, indent=2))
        return command


class SetMongod(Mongod):
    """A member of a replica set; it ends the transactions of dead clients after ten seconds.

    By default it takes a minute: so long nobody else can write to what a killed worker's transaction had
    written to, and a run with fifty kills would spend its time on waiting for that.
    """

    @property
    def host(self) -> str:
        """The address it is reached at."""
        return LOOPBACK

    def await_ready(self) -> None:
        """Wait until it accepts connections; who is primary the set decides, which ``Cluster`` makes."""
        LocalServer.await_ready(self)

    def _command(self, binary: str) -> list[str]:
        return [*super()._command(binary), "--setParameter", "transactionLifetimeLimitSeconds=10"]


class Cluster:
    """The servers of one run; a context manager.

    Args:
        nats: 1 or 3 nats-servers; with 3 streams are to have ``stream_replicas=3``.
        mongo: 1 or 3 mongods.
        sync_always: nats-server writes every message through before it confirms.

    Attributes:
        nats, mongo: the servers, to kill, pause, wipe and start one by one; to be replaced before the start
            by servers of another kind.
    """

    def __init__(self, directory: Path, *, nats: int = 1, mongo: int = 1, sync_always: bool = False) -> None:
        self.nats: list[NatsServer] = _nats(directory, nats, sync_always=sync_always)
        self.mongo: list[SetMongod] = _mongo(directory, mongo)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def servers(self) -> list[LocalServer]:
        """All of them."""
        return [*self.nats, *self.mongo]

    @property
    def nats_url(self) -> str:
        """Of all nats-servers."""
        return ",".join(server.url for server in self.nats)

    def mongo_url(self, database: str = "app") -> str:
        """Of the replica set, with this database."""
        hosts = ",".join(f"{server.host}:{server.port}" for server in self.mongo)
        return f"mongodb://{hosts}/{database}?replicaSet=rs0"

    def start(self) -> Self:
        """Start all servers and wait until they can be used."""
        try:
            for server in self.servers:
                server.launch()
            for server in self.servers:
                server.await_ready()
            self._initiate()
            self.await_quorum()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all servers at once; their data is the test's to delete."""
        for server in self.servers:
            server.kill()

    def await_quorum(self, *, within: float = START_TIMEOUT) -> None:
        """Wait until JetStream has a leader; a single server needs none."""
        if len(self.nats) > 1:
            eventually(lambda: self._meta_leader() is not None, timeout=within, message="a JetStream leader")

    def stream_leader(self, stream: str) -> NatsServer:
        """The running nats-server that leads a stream."""

        def leader() -> NatsServer | None:
            try:
                info = ask_jetstream(self._alive(), f"STREAM.INFO.{stream}", {})
            except Exception as error:  # an election is going on: ask again
                raise AssertionError(str(error)) from error
            name = info.get("cluster", {}).get("leader")
            return next((s for s in self.nats if s.running and s._server_name == name), None)

        return self.nats[0] if len(self.nats) == 1 else eventually(leader, timeout=30)

    def primary(self, *, within: float = 60.0) -> SetMongod:
        """The mongod that is primary now."""
        return eventually(self._primary, timeout=within, message="a primary")

    def _primary(self) -> SetMongod | None:
        return next((s for s in self.mongo if s.running and hello(s).get("isWritablePrimary")), None)

    def _alive(self) -> str:
        return next(server.url for server in self.nats if server.running)

    def _meta_leader(self) -> str | None:
        try:
            ask_jetstream(self._alive(), "INFO", {})
        except Exception as error:  # not yet
            raise AssertionError(str(error)) from error
        return self._alive()

    def _initiate(self) -> None:
        members = [{"_id": i, "host": f"{s.host}:{s.port}"} for i, s in enumerate(self.mongo)]
        with direct(self.mongo[0]) as client:
            wanted = {"_id": "rs0", "members": members, "settings": {"electionTimeoutMillis": ELECTION_MS}}
            client.admin.command("replSetInitiate", wanted)
        self.primary()
        eventually(
            lambda: sum(bool(hello(s).get("secondary")) for s in self.mongo) == len(self.mongo) - 1,
            timeout=60,
            message="secondaries",
        )


def hello(server: SetMongod) -> dict[str, Any]:
    """What a mongod says of itself; empty if it does not answer."""
    try:
        with direct(server) as client:
            return dict(client.admin.command("hello"))
    except PyMongoError:
        return {}


def direct(server: SetMongod) -> pymongo.MongoClient[Any]:
    """A client of this one member, whatever it is."""
    return pymongo.MongoClient(
        f"mongodb://{server.host}:{server.port}/?directConnection=true",
        serverSelectionTimeoutMS=1000,
        socketTimeoutMS=5000,
    )


def _nats(directory: Path, count: int, *, sync_always: bool) -> list[NatsServer]:
    if count == 1:
        return [NatsServer(directory / "nats-0", sync_always=sync_always, start_timeout=START_TIMEOUT)]
    nodes = [ClusterNats(directory / f"nats-{i}", sync_always=sync_always) for i in range(count)]
    for node in nodes:
        node.others = [other for other in nodes if other is not node]
    return list(nodes)


def _mongo(directory: Path, count: int) -> list[SetMongod]:
    return [SetMongod(directory / f"mongo-{i}", start_timeout=START_TIMEOUT) for i in range(count)]
