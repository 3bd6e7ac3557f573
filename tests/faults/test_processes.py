"""Processes that are killed, or not, while events come: F1, F4, F5."""

import pytest

from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.crew import PUBLISHER, WORKER
from tests.faults.workload import Load


def size(events: int, rate: float, kills: int, every: float, *, full: bool = False) -> object:
    """Parameters of a row: a quick one, or the full one that only the catalogue runs."""
    marks = [pytest.mark.faults, pytest.mark.timeout(900)] if full else []
    return pytest.param(events, rate, kills, every, marks=marks, id="full" if full else "quick")


@pytest.mark.faults
def test_without_a_fault_every_handler_runs_once(stage: StageFactory, row: RowFactory) -> None:
    with stage(load=Load(events=10_000)) as scene:
        scene.begin()
        verdict = scene.finish(within=400)
    row("F1", "none").judge(verdict, dup_starts=(verdict.dup_starts, 0))


@pytest.mark.parametrize(
    ("events", "rate", "kills", "every"), [size(300, 40, 3, 1.5), size(4_000, 70, 50, 1.0, full=True)]
)
def test_killed_workers_lose_nothing(
    stage: StageFactory, row: RowFactory, events: int, rate: float, kills: int, every: float
) -> None:
    load = Load(events=events, rate=rate)
    with stage(load=load) as scene:
        scene.begin()
        for _ in scene.beats(kills, after=every):
            scene.crew.kill(WORKER)
        verdict = scene.finish(within=240)
    row("F4", f"kill -9 worker x{kills}").judge(
        verdict,
        dup_starts=(verdict.dup_starts, kills * load.worker_threads),
        starts_of_a_dead_event=(verdict.most_lost_starts, 3),
    )


@pytest.mark.parametrize(
    ("events", "rate", "kills", "every"), [size(300, 40, 3, 1.5), size(4_000, 70, 50, 1.0, full=True)]
)
def test_killed_publishers_lose_nothing_they_had_a_receipt_for(
    stage: StageFactory, row: RowFactory, events: int, rate: float, kills: int, every: float
) -> None:
    load = Load(events=events, rate=rate, repeat_doubtful=False)
    with stage(load=load) as scene:
        scene.begin()
        for _ in scene.beats(kills, after=every):
            scene.crew.kill(PUBLISHER)
        verdict = scene.finish(within=240)
    row("F5", f"kill -9 publisher x{kills}").judge(
        verdict,
        note=f"{verdict.doubtful} were stored without a receipt",
        dup_starts=(verdict.dup_starts, 0),
    )
