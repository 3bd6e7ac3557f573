"""Servers that are away or frozen for a while: F17, F18, F19."""

import pytest

from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.scene import Scene
from tests.faults.workload import Load
from tests.polling import eventually

TIMEOUT = 3.0
# A call may come so much after its deadline; the quick rows run beside other tests.
LATE, QUICK_LATE = 0.5, 3.0
FULL = [pytest.mark.faults, pytest.mark.timeout(400)]


def acknowledged(scene: Scene) -> int:
    """How many messages JetStream needs not deliver any more, over all consumers."""
    bus = scene.bus()
    try:
        (stream,) = bus.broker.streams("faults_Work", timeout=10)
    finally:
        bus.close()
    return sum(stream.messages - c.pending - c.ack_pending for c in stream.consumers)


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seconds", [60.0])
def test_without_mongodb_nothing_is_accepted_begun_or_acknowledged_and_nothing_is_lost(
    stage: StageFactory, row: RowFactory, seconds: float
) -> None:
    load = Load(events=round(60 * (seconds / 4 + 4)), rate=60, publisher_threads=4)
    with stage(load=load, settings={"publish_timeout": TIMEOUT}) as scene:
        scene.begin()
        scene.cluster.mongo[0].kill()
        # What had been admitted before may still begin, and what was recorded is acknowledged.
        scene.wait(2.0)
        begun, settled = scene.journal.count("start"), acknowledged(scene)
        scene.wait(seconds - 2.0)
        begun, settled = scene.journal.count("start") - begun, acknowledged(scene) - settled
        scene.cluster.mongo[0].start()
        scene.disturbed()
        verdict = scene.finish(within=120)
    row("F17", f"MongoDB down {seconds:g} s").judge(
        verdict,
        slowest_publish=(verdict.slowest_publish, TIMEOUT + LATE),
        begun_without_store=(begun, 0),
        acknowledged_without_store=(settled, 0),
    )
    # Who was sending when it was killed cannot know; whoever came later can.
    assert verdict.refused["StoreUnavailable"] > 0
    assert verdict.refused.keys() <= {"StoreUnavailable", "PublishOutcomeUnknown"}
    assert verdict.refused.get("PublishOutcomeUnknown", 0) <= load.publishers * load.publisher_threads


@pytest.mark.parametrize(
    ("calls", "seconds"), [pytest.param(200, 3, id="quick"), pytest.param(3_000, 30, id="full", marks=FULL)]
)
def test_publishing_does_not_notice_that_nats_is_frozen(
    stage: StageFactory, row: RowFactory, calls: int, seconds: float
) -> None:
    # Each call has a thread of its own, so all of them are made at once.
    load = Load(events=calls, publisher_threads=calls // 2, permanent=0 if calls < 1_000 else 0.005)
    with stage(load=load, settings={"publish_timeout": 15.0}) as scene:
        scene.crew.start_workers()
        scene.cluster.nats[0].pause()
        scene.crew.start_publishers()
        eventually(lambda: scene.journal.count("receipt") >= calls, timeout=60, message="receipts")
        published_while_frozen = scene.journal.count("receipt")
        scene.wait(seconds)
        scene.cluster.nats[0].resume()
        scene.disturbed()
        verdict = scene.finish(within=200)
    row("F18", f"SIGSTOP nats-server {seconds:g} s under {calls} publishes at once").judge(
        verdict,
        note=f"{published_while_frozen} accepted while it was frozen",
        slowest_publish=(verdict.slowest_publish, 15.0 + (LATE if calls > 1_000 else QUICK_LATE)),
        refused=(sum(verdict.refused.values()), 0),
    )


@pytest.mark.parametrize(
    ("seconds", "permanent"),
    [pytest.param(5, 0.0, id="quick"), pytest.param(30, 0.005, id="full", marks=FULL)],
)
def test_a_frozen_mongod_costs_no_call_more_than_its_deadline(
    stage: StageFactory, row: RowFactory, seconds: float, permanent: float
) -> None:
    load = Load(events=round(40 * (seconds / 4 + 3)), rate=60, publisher_threads=4, permanent=permanent)
    with stage(load=load, settings={"publish_timeout": TIMEOUT}) as scene:
        scene.begin()
        scene.cluster.mongo[0].pause()
        scene.wait(seconds)
        scene.cluster.mongo[0].resume()
        scene.disturbed()
        verdict = scene.finish(within=120)
    row("F19", f"SIGSTOP mongod {seconds:g} s").judge(
        verdict, slowest_publish=(verdict.slowest_publish, TIMEOUT + (LATE if permanent else QUICK_LATE))
    )
    assert verdict.refused.keys() <= {"StoreUnavailable", "PublishOutcomeUnknown"}
    assert sum(verdict.refused.values()) > 0
