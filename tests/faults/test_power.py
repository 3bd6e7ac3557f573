"""Power loss: the machine of one server is gone with all it had not synced, and comes back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.js.errors import NotFoundError

from tests.apps.jetstream import message_ids
from tests.conftest import lacking
from tests.faults.cluster import Cluster
from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.power import PoweredMongod, PoweredNats, missing
from tests.faults.sizes import PATIENCE
from tests.faults.workload import Load

pytestmark = [pytest.mark.faults, pytest.mark.timeout(PATIENCE)]
STREAM = "faults_Work"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    if absent := missing():
        lacking(absent)
    return Cluster(tmp_path)


@pytest.fixture(params=[False, True], ids=["default_sync", "sync_always"])
def nats(request: pytest.FixtureRequest, tmp_path: Path, cluster: Cluster) -> Iterator[PoweredNats]:
    server = PoweredNats(tmp_path / "nats-powered", sync_always=request.param)
    cluster.nats = [server]
    yield server
    server.kill()
    server.disk.remove()


@pytest.fixture
def mongod(tmp_path: Path, cluster: Cluster) -> Iterator[PoweredMongod]:
    server = PoweredMongod(tmp_path / "mongo-powered")
    cluster.mongo = [server]
    yield server
    server.kill()
    server.disk.remove()


def test_nats_losing_power_loses_nothing(
    stage: StageFactory, row: RowFactory, cluster: Cluster, nats: PoweredNats, request: pytest.FixtureRequest
) -> None:
    safe = bool(request.node.callspec.params["nats"])
    count = 5 if safe else 2
    # What is synced every two minutes only is lost as a whole.
    load = Load(events=3000, rate=50) if safe else Load(events=4000, rate=100)
    kept, had = 0, 0
    with stage(load=load, cluster=cluster) as scene:
        scene.begin()
        for _ in scene.beats(count, after=5.0):
            before = set(message_ids(nats.url, STREAM))
            nats.kill()
            nats.start()
            had += len(before)
            kept += len(before & _ids(nats))
        verdict = scene.finish(within=300)
    name, sync = ("F11", "sync always") if safe else ("F10", "default sync")
    lost = (had - kept) / had
    row(name, f"power loss of nats-server x{count} ({sync})").judge(
        verdict,
        note=f"the stream lost {lost:.0%} of what it had confirmed",
        share_lost_by_the_stream=(lost, 0.0 if safe else 1.0),
        drain=(verdict.drain, 120),
    )


def test_mongodb_losing_power_loses_nothing(
    stage: StageFactory, row: RowFactory, cluster: Cluster, mongod: PoweredMongod
) -> None:
    with stage(load=Load(events=2500, rate=40), cluster=cluster) as scene:
        scene.begin()
        for _ in scene.beats(5, after=4.0):
            mongod.kill()
            mongod.start()
            scene.cluster.primary()
        verdict = scene.finish(within=300)
    refused = ", ".join(f"{count} {name}" for name, count in verdict.refused.items())
    row("F12", "power loss of mongod, a set of one, x5").judge(
        verdict, note=f"refused: {refused or 'nothing'}", drain=(verdict.drain, 120)
    )


def _ids(nats: PoweredNats) -> set[str]:
    """What the stream has; nothing if it is gone itself."""
    try:
        return set(message_ids(nats.url, STREAM))
    except NotFoundError:
        return set()
