"""Servers that are killed with -9 again and again while events come."""

from tests.faults.checker import Verdict
from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.results import Row
from tests.faults.scene import Scene
from tests.faults.sizes import Size, sizes


@sizes(quick=(3, 2.0), full=(20, 1.2), rate=30)
def test_a_killed_nats_server_loses_nothing(stage: StageFactory, row: RowFactory, size: Size) -> None:
    verdict = kill_nats(stage(load=size.load, sync_always=True), size)
    judge_nats(row("F2", f"kill -9 nats-server x{size.count} (R1, sync always)"), verdict, size)


@sizes(quick=None, full=(20, 1.2), rate=30)
def test_a_killed_nats_server_that_syncs_now_and_then_loses_nothing(
    stage: StageFactory, row: RowFactory, size: Size
) -> None:
    verdict = kill_nats(stage(load=size.load), size)
    judge_nats(row("F3", f"kill -9 nats-server x{size.count} (R1, default sync)"), verdict, size)


def kill_nats(scene: Scene, size: Size) -> Verdict:
    with scene:
        scene.begin()
        for _ in scene.beats(size.count, after=size.every):
            scene.cluster.nats[0].kill()
            scene.cluster.nats[0].start()
        return scene.finish(within=240)


def judge_nats(row: Row, verdict: Verdict, size: Size) -> None:
    row.judge(
        verdict,
        dup_starts=(verdict.dup_starts, size.count * size.load.threads),
        drain=(verdict.drain, 60),
        refused=(sum(verdict.refused.values()), 0),
    )


@sizes(quick=None, full=(10, 5.0), rate=30, takes=8.0)
def test_a_killed_primary_loses_nothing_and_no_publish_fails(
    stage: StageFactory, row: RowFactory, size: Size
) -> None:
    with stage(load=size.load, mongo=3) as scene:
        scene.begin()
        for _ in scene.beats(size.count, after=size.every, spread=0.2):
            killed = scene.cluster.primary()
            killed.kill()
            scene.cluster.primary()
            killed.start()
        verdict = scene.finish(within=240)
    row("F6", f"kill -9 mongod, the primary of 3, x{size.count}").judge(
        verdict,
        refused=(sum(verdict.refused.values()), 0),
        slowest_publish=(verdict.slowest_publish, 14),
    )


@sizes(quick=(3, 2.0), full=(10, 2.0), rate=50, takes=3.0)
def test_a_killed_single_mongod_loses_nothing(stage: StageFactory, row: RowFactory, size: Size) -> None:
    with stage(load=size.load) as scene:
        scene.begin()
        for _ in scene.beats(size.count, after=size.every):
            scene.cluster.mongo[0].kill()
            scene.cluster.mongo[0].start()
        verdict = scene.finish(within=240)
    refused = ", ".join(f"{count} {name}" for name, count in verdict.refused.items())
    row("F7", f"kill -9 mongod, a set of one, x{size.count}").judge(
        verdict, note=f"refused: {refused or 'nothing'}"
    )
