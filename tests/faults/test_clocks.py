"""Processes whose clocks are wrong by an hour, in either direction."""

from pathlib import Path

import pytest

from tests.conftest import lacking
from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.crew import PUBLISHER, WORKER
from tests.faults.scene import Scene
from tests.faults.sizes import PATIENCE
from tests.faults.workload import Load

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.mark.faults
@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("role", [WORKER, PUBLISHER])
@pytest.mark.parametrize("offset", ["+3600", "-3600"])
def test_a_clock_that_is_an_hour_off_loses_nothing(
    stage: StageFactory, row: RowFactory, role: str, offset: str
) -> None:
    if LIBRARY is None:
        lacking("libfaketime not found: apt-get install faketime")
    with stage(load=Load(events=700, rate=60)) as scene:
        wrong = {"LD_PRELOAD": str(LIBRARY), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        scene.crew.changes[role, 0] = wrong
        scene.begin()
        for beat in scene.beats(4, after=2.0):
            (_kill_a_worker if beat % 2 else _wipe_nats)(scene)
        verdict = scene.finish(within=120)
    row("clock", f"the clock of one {role} is {offset} s off, kill -9 worker x2, NATS wiped x2").judge(
        verdict, dup_starts=(verdict.dup_starts, 2 * 8 + 2 * 16)
    )


def _kill_a_worker(scene: Scene) -> None:
    scene.crew.kill(WORKER)


def _wipe_nats(scene: Scene) -> None:
    scene.cluster.nats[0].kill()
    scene.cluster.nats[0].wipe()
    scene.cluster.nats[0].start()
