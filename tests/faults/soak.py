"""Half an hour of ordinary work with something killed every half minute: nothing lost, and nothing grows.

One ordinary handler: 200 transactions a second beside the rest are more than two cores can do for long.
``tox -e soak`` runs it for 30 minutes; ``--soak-minutes 3`` is a try.
"""

from collections import defaultdict
from collections.abc import Sequence

import attrs
import pytest

from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.crew import PUBLISHER, WORKER, Sample
from tests.faults.scene import Scene
from tests.faults.workload import PLAIN, Load

MIB = 1024 * 1024
RATE = 200
EVERY = 30.0
# Caches and pools fill in the beginning.
WARM_AFTER = 240.0
# The first worker and the first publisher live all the time; the second ones are killed.
SPARED, KILLED = 0, 1


@attrs.frozen(kw_only=True)
class Use:
    """How what one process used went over time, from its warm-up on."""

    role: str
    minutes: float
    mib_per_10_minutes: float
    fds: tuple[int, int]
    threads: tuple[int, int]

    def words(self) -> str:
        """For the table."""
        return (
            f"{self.role} {self.mib_per_10_minutes:+.2f} MiB per 10 min, "
            f"files {self.fds[0]}-{self.fds[1]}, threads {self.threads[0]}-{self.threads[1]}"
        )


@pytest.mark.timeout(3600)
def test_half_an_hour_of_work_and_kills_loses_nothing_and_grows_nothing(
    stage: StageFactory, row: RowFactory, request: pytest.FixtureRequest
) -> None:
    minutes: float = request.config.getoption("--soak-minutes")
    load = Load(events=round(RATE * 60 * minutes), rate=RATE, longest=0.05, handlers=(PLAIN,))
    with stage(load=load, sync_always=True) as scene:
        scene.begin()
        kills = round(minutes * 60 / EVERY) - 1
        for beat in scene.beats(kills, after=EVERY, spread=0.1):
            _kill(scene, beat)
        verdict = scene.finish(within=900)
        used = [_use(role, samples) for role, samples in _by_role(scene.crew.samples).items()]
    row("soak", f"{minutes:g} minutes at {RATE} events/s, one kill -9 every {EVERY:g} s").judge(
        verdict,
        note="; ".join(use.words() for use in used),
        dup_starts=(verdict.dup_starts, kills * load.threads),
        mib_per_10_minutes=(max(use.mib_per_10_minutes for use in used), 1),
        files_more=(max(use.fds[1] - use.fds[0] for use in used), 8),
        threads_more=(max(use.threads[1] - use.threads[0] for use in used), 4),
    )


def _kill(scene: Scene, beat: int) -> None:
    """In turn: a worker, a publisher, nats-server, mongod."""
    if beat % 4 == 0:
        scene.crew.kill(WORKER, index=KILLED)
    elif beat % 4 == 1:
        scene.crew.kill(PUBLISHER, index=KILLED)
    else:
        server = scene.cluster.nats[0] if beat % 4 == 2 else scene.cluster.mongo[0]
        server.kill()
        server.start()


def _by_role(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Those of the processes that were spared, warm."""
    spared = {f"{WORKER}-{SPARED}", f"{PUBLISHER}-{SPARED}"}
    longest = max(sample.seconds for sample in samples)
    found = defaultdict(list)
    for sample in samples:
        if sample.role in spared and sample.seconds > min(WARM_AFTER, longest / 4):
            found[sample.role].append(sample)
    return found


def _use(role: str, samples: Sequence[Sample]) -> Use:
    """The slope is that of a straight line through all samples, by least squares."""
    times = [sample.seconds for sample in samples]
    sizes = [sample.rss for sample in samples]
    mean_time, mean_size = sum(times) / len(times), sum(sizes) / len(sizes)
    spread = sum((time - mean_time) ** 2 for time in times)
    slope = sum((t - mean_time) * (s - mean_size) for t, s in zip(times, sizes, strict=True)) / spread
    return Use(
        role=role,
        minutes=(times[-1] - times[0]) / 60,
        mib_per_10_minutes=slope * 600 / MIB,
        fds=_first_and_last(samples, "fds"),
        threads=_first_and_last(samples, "threads"),
    )


def _first_and_last(samples: Sequence[Sample], field: str) -> tuple[int, int]:
    """The highest of the first quarter and of the last: single samples catch connections being made."""
    quarter = max(1, len(samples) // 4)
    first, last = (max(getattr(s, field) for s in part) for part in (samples[:quarter], samples[-quarter:]))
    return first, last
