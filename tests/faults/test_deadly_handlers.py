"""Handlers that kill their process or hang for ever: F27, F28, F29."""

import signal

import pytest

from tests.faults import deadly
from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.crew import WORKER
from tests.faults.workload import Load

STARTS = 3
FULL = [pytest.mark.faults, pytest.mark.timeout(400)]


def load_of(how: str, at: list[int], events: int) -> Load:
    return Load(
        events=events,
        app=deadly.__name__,
        handlers=(deadly.HANDLER,),
        options={"how": how, "at": at},
        publisher_threads=4,
        workers=1,
        attempts=2,
        transient=0,
        permanent=0,
    )


@pytest.mark.parametrize(
    ("name", "how", "events"),
    [
        pytest.param("F27", deadly.SEGFAULT, 200, id="segfault-quick"),
        pytest.param("F27", deadly.SEGFAULT, 10_000, id="segfault-full", marks=FULL),
        pytest.param("F28", deadly.EAT, 10_000, id="memory-full", marks=FULL),
    ],
)
def test_an_event_that_kills_its_worker_each_time_is_dead_after_three_starts(
    stage: StageFactory, row: RowFactory, name: str, how: str, events: int
) -> None:
    at = events // 2
    with stage(load=load_of(how, [at], events)) as scene:
        scene.begin()
        verdict = scene.finish(within=300)
        deaths = sum(count for (role, _), count in scene.crew.deaths.items() if role == WORKER)
        codes = {code for role, code in scene.crew.deaths if role == WORKER}
        dead = [d["_id"] for d in scene.database["deliveries"].find({"state": "dead"})]
    row(name, f"one event of {events} is the death of its worker ({how})").judge(
        verdict, starts_of_it=(verdict.most_lost_starts, STARTS), deaths=(deaths, STARTS)
    )
    assert codes == {-signal.SIGSEGV}
    assert verdict.dead == {"worker_lost": 1}
    assert dead == [f"{deadly.HANDLER}:event-{at}"]


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_handlers_that_hang_for_ever_are_dead_and_the_others_go_on(
    stage: StageFactory, row: RowFactory
) -> None:
    at = [100 + 10 * n for n in range(8)]
    seconds = {}
    for hanging in ([], at):
        with stage(load=load_of(deadly.HANG, hanging, 4_000)) as scene:
            scene.begin()
            verdict = scene.finish(within=200)
            times = [note["at"] for note in scene.journal.notes("done")]
            seconds[bool(hanging)] = max(times) - min(times)
    row("F29", "8 handlers of 8 threads hang for ever").judge(
        verdict,
        note=f"{seconds[False]:.1f} s without them, {seconds[True]:.1f} s with them",
        times_as_long_for_others=(seconds[True] / seconds[False], 2.0),
    )
    assert verdict.dead == {"timeout": 8}
