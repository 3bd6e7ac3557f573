"""Everything that can be killed is killed at random: who, when and in which order the seed draws."""

from collections import defaultdict

import pytest

from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.crew import PUBLISHER, WORKER, Crew
from tests.faults.scene import Scene
from tests.faults.sizes import Size, sizes

MIB = 1024 * 1024


def kill_nats(scene: Scene) -> None:
    scene.cluster.nats[0].kill()
    scene.cluster.nats[0].start()


def kill_primary(scene: Scene) -> None:
    killed = scene.cluster.primary()
    killed.kill()
    killed.start()


def kill_worker(scene: Scene) -> None:
    scene.crew.kill(WORKER)


def kill_publisher(scene: Scene) -> None:
    scene.crew.kill(PUBLISHER)


FAULTS = (kill_nats, kill_primary, kill_worker, kill_publisher)


@pytest.mark.parametrize("nth", range(5))
@sizes(quick=None, full=(20, 1.2), rate=40, takes=2.0)
def test_random_kills_of_everything_lose_nothing(
    stage: StageFactory, row: RowFactory, size: Size, drawn_seed: int, nth: int
) -> None:
    seed = drawn_seed + nth
    with stage(load=size.load, mongo=3, sync_always=True, seed=seed) as scene:
        scene.begin()
        killed = []
        for _ in scene.beats(size.count, after=size.every):
            fault = scene.chance.choice(FAULTS)
            killed.append(fault.__name__)
            fault(scene)
        verdict = scene.finish(within=300)
    counted = ", ".join(f"{killed.count(f.__name__)} {f.__name__}" for f in FAULTS)
    starts = (killed.count("kill_nats") + killed.count("kill_primary")) * size.load.threads
    starts += killed.count("kill_worker") * size.load.worker_threads
    row("F8", f"{size.count} kills of anything", seed).judge(
        verdict,
        note=counted.replace("kill_", ""),
        dup_starts=(verdict.dup_starts, starts),
        rss_growth_mib=(growth(scene.crew) / MIB, 50),
    )


def growth(crew: Crew) -> int:
    """The most that any process grew from its tenth second on, in bytes."""
    seen: dict[int, list[int]] = defaultdict(list)
    for sample in crew.samples:
        if sample.seconds > 10:
            seen[sample.pid].append(sample.rss)
    return max((values[-1] - values[0] for values in seen.values()), default=0)
