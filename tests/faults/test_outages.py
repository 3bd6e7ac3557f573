"""NATS away for long, and NATS back with nothing of what it had stored."""

import time

from tests.apps.jetstream import message_ids
from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.scene import Scene
from tests.faults.sizes import Size, sizes

STREAM = "faults_Work"
# Until the first publishes have found out that NATS is gone.
NOTICED_AFTER = 2.0


@sizes(quick=None, full=(1, 60.0), rate=80)
def test_an_outage_of_nats_is_not_noticed_by_publishers(
    stage: StageFactory, row: RowFactory, size: Size
) -> None:
    with stage(load=size.load) as scene:
        scene.begin()
        scene.wait(10)
        up = (time.time() - 8, time.time())
        scene.cluster.nats[0].kill()
        down = (time.time() + NOTICED_AFTER, time.time() + size.every)
        scene.wait(size.every)
        scene.cluster.nats[0].start()
        scene.disturbed()
        verdict = scene.finish(within=300)
        ids = message_ids(scene.cluster.nats_url, STREAM)
        before, during = (_p99(scene, *window) for window in (up, down))
    row("F16", f"NATS down for {size.every:g} s").judge(
        verdict,
        note=f"p99 of publish {before * 1000:.0f} ms before, {during * 1000:.0f} ms meanwhile",
        refused=(sum(verdict.refused.values()), 0),
        p99_rise_ms=((during - before) * 1000, 50),
        drain=(verdict.drain, 120),
        stream_duplicates=(len(ids) - len(set(ids)), 0),
    )


@sizes(quick=(1, 4.0), full=(4, 8.0), rate=60)
def test_jetstreams_directory_deleted_while_it_is_down_loses_nothing(
    stage: StageFactory, row: RowFactory, size: Size
) -> None:
    with stage(load=size.load) as scene:
        scene.begin()
        for _ in scene.beats(size.count, after=size.every):
            scene.cluster.nats[0].kill()
            scene.cluster.nats[0].wipe()
            scene.cluster.nats[0].start()
        verdict = scene.finish(within=300)
    row("wipe", f"kill -9 nats-server and rm -rf of its store x{size.count}").judge(
        verdict,
        dup_starts=(verdict.dup_starts, size.count * size.load.threads),
        refused=(sum(verdict.refused.values()), 0),
        drain=(verdict.drain, 120),
    )


def _p99(scene: Scene, since: float, until: float) -> float:
    took = sorted(n["seconds"] for n in scene.journal.notes("receipt") if since <= n["at"] < until)
    assert len(took) > 100, "enough to speak of a percentile"
    return float(took[int(len(took) * 0.99)])
