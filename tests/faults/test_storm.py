"""Every attempt fails for a while, then none does."""

from collections import Counter
from pathlib import Path

from tests.faults import storm
from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.scene import Scene
from tests.faults.sizes import Size, sizes

# Of our consumers: with as many in hand JetStream would deliver nothing more.
MAX_ACK_PENDING = 20_000
STREAM, CONSUMER = "faults_Work", "Mail__send"


@sizes(quick=None, full=(1, 60.0), rate=30, app=storm.__name__, handlers=(storm.HANDLER,))
def test_a_storm_of_retries_is_spread_and_ends_well(
    stage: StageFactory, row: RowFactory, size: Size, tmp_path: Path
) -> None:
    failing = tmp_path / "storm"
    failing.touch()
    size.load.options["storm"] = str(failing)
    with stage(load=size.load) as scene:
        scene.crew.start_workers()
        scene.journal.note("begin")
        scene.crew.start_publishers()
        most_held = _most_held(scene, size.every)
        failing.unlink()
        scene.disturbed()
        verdict = scene.finish(within=300)
        attempts = Counter(int(note["at"]) for note in scene.journal.notes("start"))
    row("F30", f"every attempt fails for {size.every:g} s").judge(
        verdict,
        note=f"{attempts.total()} attempts; the group is not paused by itself",
        share_of_the_busiest_second=(max(attempts.values()) / attempts.total(), 0.2),
        ack_pending=(most_held, MAX_ACK_PENDING),
        drain=(verdict.drain, 60),
        dup_starts=(verdict.dup_starts, 0),
    )
    assert not verdict.dead


def _most_held(scene: Scene, seconds: float) -> int:
    """The most messages that the consumer waited for to be acknowledged, looked at now and then."""
    bus, held = scene.bus(), [0]

    def look() -> None:
        state = bus.broker.consumer_state(STREAM, CONSUMER, timeout=10)
        held.append(state.ack_pending if state else 0)

    for _ in range(int(seconds / 2)):
        scene.wait(2)
        look()
    bus.close()
    return max(held)
