"""What networks do to connections, and workers cut off from one server only: F21, F22."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from eventdriven_sync.devserver.ports import LOOPBACK
from tests.faults.cluster import Cluster
from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.crew import WORKER
from tests.faults.proxy import Faults, Proxy
from tests.faults.scene import DATABASE, Scene
from tests.faults.workload import Load
from tests.polling import eventually

# A connection that looks alive and is not must be noticed within this.
NOTICED = 15.0
FULL = [pytest.mark.faults, pytest.mark.timeout(400)]

_DELIVERED = re.compile(rb"(\$JS\.ACK\.\S+) \d+ \d+\r\nNATS/1\.0\r\nNats-Msg-Id: (\S+)\r\n")
_ACKNOWLEDGED = re.compile(rb"PUB (\$JS\.ACK\.\S+) +\d+\r\n\+ACK\r\n")


@attrs.frozen
class Lines:
    """The two connections that run through proxies."""

    nats: Proxy
    mongo: Proxy
    cluster: Cluster

    @property
    def urls(self) -> dict[str, str]:
        """Of the proxies; without ``directConnection`` the driver would go round its proxy."""
        mongo = f"mongodb://{LOOPBACK}:{self.mongo.port}/{DATABASE}?directConnection=true"
        return {"nats_url": f"nats://{LOOPBACK}:{self.nats.port}", "mongo_url": mongo}

    def set(self, faults: Faults, *, to_server: bool | None = None) -> None:
        """On both."""
        for proxy in (self.nats, self.mongo):
            proxy.set(faults, to_server=to_server)

    def heal(self) -> None:
        """Both."""
        for proxy in (self.nats, self.mongo):
            proxy.heal()


@pytest.fixture
def lines(tmp_path: Path, drawn_seed: int) -> Iterator[Lines]:
    """A proxy for each server of a cluster that has not started yet."""
    directory = tmp_path / "cluster"
    directory.mkdir()
    cluster = Cluster(directory)
    with (
        Proxy(lambda: cluster.nats[0].port, seed=drawn_seed) as nats,
        Proxy(lambda: cluster.mongo[0].port, seed=drawn_seed + 1) as mongo,
    ):
        yield Lines(nats, mongo, cluster)


def disturb(scene: Scene, lines: Lines, what: str, seconds: float) -> None:
    """One kind of fault, for so long."""
    steady = {
        "jitter of 0 to 500 ms": Faults(delay=0.5),
        "1-byte writes": Faults(piece=1),
        "20 KB/s": Faults(bytes_per_second=20_000),
    }
    until = time.monotonic() + seconds
    if what in steady:
        lines.set(steady[what])
        scene.wait(seconds)
    else:
        while time.monotonic() < until:
            size = scene.chance.randrange(1, 3_000)
            lines.set(Faults(reset_after=size), to_server=scene.chance.random() < 0.5)
            scene.wait(scene.chance.uniform(0.3, 1.5))
    lines.heal()


@pytest.mark.parametrize(
    ("what", "seconds"),
    [
        pytest.param("resets in mid-frame", 6.0, id="resets-quick"),
        *(
            pytest.param(what, 40.0, id=what.replace(" ", "-"), marks=FULL)
            for what in ("jitter of 0 to 500 ms", "1-byte writes", "20 KB/s", "resets in mid-frame")
        ),
    ],
)
def test_a_bad_network_loses_nothing(
    stage: StageFactory, row: RowFactory, lines: Lines, what: str, seconds: float
) -> None:
    load = Load(events=round(15 * seconds), rate=20, publisher_threads=4, permanent=0)
    with stage(load=load, cluster=lines.cluster, **lines.urls) as scene:
        scene.begin()
        disturb(scene, lines, what, seconds)
        scene.disturbed()
        verdict = scene.finish(within=200)
    row("F21", f"{what} on both connections, {seconds:g} s").judge(
        verdict, note=f"{lines.nats.accepted} connections to NATS, {lines.mongo.accepted} to MongoDB"
    )


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("to_server", [True, False, None], ids=["to-server", "to-client", "both-ways"])
def test_a_half_open_connection_is_noticed_soon(
    stage: StageFactory, row: RowFactory, lines: Lines, to_server: bool | None
) -> None:
    load = Load(events=600, rate=15, publishers=1, workers=1, publisher_threads=4, permanent=0)
    with stage(load=load, cluster=lines.cluster, settings={"publish_timeout": 5.0}, **lines.urls) as scene:
        scene.begin()
        noticed = {name: silence(proxy, to_server) for name, proxy in proxies(lines)}
        scene.disturbed()
        verdict = scene.finish(within=200)
    way = {True: "to the server", False: "to the client", None: "both ways"}[to_server]
    row("F21", f"half-open, dropped silently {way}").judge(
        verdict,
        nats_noticed_seconds=(noticed["nats"], NOTICED),
        mongo_noticed_seconds=(noticed["mongo"], NOTICED),
    )


def proxies(lines: Lines) -> list[tuple[str, Proxy]]:
    return [("nats", lines.nats), ("mongo", lines.mongo)]


def silence(proxy: Proxy, to_server: bool | None) -> float:
    """Drop everything on the connections there are; seconds until all of them were given up."""
    before = proxy.connections()
    began = time.monotonic()
    proxy.set(Faults(silent=True), to_server=to_server)
    # Whoever notices closes its end, or connects anew beside it.
    eventually(lambda: proxy.given_up(before), timeout=60, message="the half-open connections are given up")
    took = time.monotonic() - began
    proxy.heal()
    return took


class Wire:
    """What a worker and NATS say to each other, read from the bytes of one connection at a time."""

    def __init__(self) -> None:
        self._said = {True: bytearray(), False: bytearray()}
        self._guard = threading.Lock()  # guards _said

    def hear(self, to_server: bool, data: bytes) -> None:
        """The tap of the proxy."""
        with self._guard:
            self._said[to_server] += data

    def acknowledged(self) -> set[str]:
        """The ids of deliveries whose message the worker acknowledged."""
        with self._guard:
            to_server, to_client = bytes(self._said[True]), bytes(self._said[False])
        ids = dict(_DELIVERED.findall(to_client))
        return {_delivery_id(reply, ids[reply]) for reply in set(_ACKNOWLEDGED.findall(to_server))}


def _delivery_id(reply: bytes, event_id: bytes) -> str:
    consumer = next(part for part in reply.decode().split(".") if "__" in part)
    return f"{consumer.replace('__', '.')}:{event_id.decode()}"


@contextmanager
def cut_off(scene: Scene, proxy: Proxy, seconds: float) -> Iterator[None]:
    """Nothing passes for so long; the block looks at it shortly before the end."""
    proxy.set(Faults(held=True))
    scene.wait(seconds)
    yield
    proxy.heal()
    scene.disturbed()


@pytest.mark.parametrize(
    ("which", "seconds"),
    [
        pytest.param("mongo", 5.0, id="mongo-quick"),
        pytest.param("mongo", 60.0, id="mongo-full", marks=FULL),
        pytest.param("nats", 60.0, id="nats-full", marks=FULL),
    ],
)
def test_a_worker_cut_off_from_one_server_acknowledges_only_what_is_recorded(
    stage: StageFactory, row: RowFactory, lines: Lines, which: str, seconds: float
) -> None:
    wire = Wire()
    lines.nats.tap = wire.hear
    load = Load(events=round(20 * (seconds + 5)), rate=20, workers=1, publisher_threads=4, permanent=0)
    with stage(load=load, cluster=lines.cluster, settings={"publish_timeout": 5.0}) as scene:
        # Publishers go to the servers themselves.
        scene.crew.environ[WORKER] |= {
            "EVENTDRIVEN_NATS": lines.urls["nats_url"],
            "EVENTDRIVEN_MONGO": lines.urls["mongo_url"],
        }
        scene.begin()
        with cut_off(scene, dict(proxies(lines))[which], seconds):
            acknowledged = wire.acknowledged()
            recorded = {d["_id"] for d in scene.database["deliveries"].find({}, {"_id": 1})}
        verdict = scene.finish(within=200)
    row("F22", f"worker cut off from {which} {seconds:g} s").judge(
        verdict,
        note=f"{len(acknowledged)} acknowledged and {len(recorded)} recorded at the end of it",
        acknowledged_without_outcome=(len(acknowledged - recorded), 0),
    )
    assert acknowledged
    assert len(wire.acknowledged()) > len(acknowledged)
