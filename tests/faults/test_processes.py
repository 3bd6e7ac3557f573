"""Processes that are killed, or not, while events come."""

import pytest

from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.crew import PUBLISHER, WORKER
from tests.faults.sizes import PATIENCE, Size, sizes
from tests.faults.workload import Load


@pytest.mark.faults
@pytest.mark.timeout(PATIENCE)
def test_without_a_fault_every_handler_runs_once(stage: StageFactory, row: RowFactory) -> None:
    with stage(load=Load(events=10_000)) as scene:
        scene.begin()
        verdict = scene.finish(within=600)
    row("F1", "none").judge(verdict, dup_starts=(verdict.dup_starts, 0))


@sizes(quick=(3, 1.5), full=(50, 0.6), rate=60)
def test_killed_workers_lose_nothing(stage: StageFactory, row: RowFactory, size: Size) -> None:
    with stage(load=size.load) as scene:
        scene.begin()
        for _ in scene.beats(size.count, after=size.every):
            scene.crew.kill(WORKER)
        verdict = scene.finish(within=300)
    row("F4", f"kill -9 worker x{size.count}").judge(
        verdict,
        dup_starts=(verdict.dup_starts, size.count * size.load.worker_threads),
        starts_of_a_dead_event=(verdict.most_lost_starts, 3),
    )


@sizes(quick=(3, 1.0), full=(50, 0.6), rate=60, repeat_doubtful=False)
def test_killed_publishers_lose_nothing_they_had_a_receipt_for(
    stage: StageFactory, row: RowFactory, size: Size
) -> None:
    with stage(load=size.load) as scene:
        scene.begin()
        for _ in scene.beats(size.count, after=size.every):
            scene.crew.kill(PUBLISHER)
        verdict = scene.finish(within=300)
    row("F5", f"kill -9 publisher x{size.count}").judge(
        verdict,
        note=f"{verdict.doubtful} were stored without a receipt",
        dup_starts=(verdict.dup_starts, 0),
    )
