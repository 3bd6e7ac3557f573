"""Three nats-servers: the leader killed again and again, and two of three away for a while."""

import time

from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.scene import Scene
from tests.faults.sizes import Size, sizes

STREAM = "faults_Work"


@sizes(quick=None, full=(20, 1.0), rate=25, takes=6.0)
def test_a_killed_stream_leader_loses_nothing_and_no_publish_notices(
    stage: StageFactory, row: RowFactory, size: Size
) -> None:
    longest = 0.0
    with stage(load=size.load, nats=3) as scene:
        scene.begin()
        for _ in scene.beats(size.count, after=size.every):
            killed = scene.cluster.stream_leader(STREAM)
            killed.kill()
            began = time.monotonic()
            scene.cluster.stream_leader(STREAM)
            longest = max(longest, time.monotonic() - began)
            killed.start()
        verdict = scene.finish(within=300)
    row("F14", f"kill -9 the leader of three nats-servers x{size.count}").judge(
        verdict,
        # A follower of nats-server waits 4 to 9 s, by chance, before it stands for election (server/raft.go);
        # what counts is whether publishers notice.
        note=f"without a leader for {longest:.1f} s at most",
        refused=(sum(verdict.refused.values()), 0),
        slowest_publish=(verdict.slowest_publish, 5),
        dup_starts=(verdict.dup_starts, size.count * size.load.threads),
    )


@sizes(quick=None, full=(1, 40.0), rate=40)
def test_without_a_quorum_of_nats_everything_is_accepted_and_handled_afterwards(
    stage: StageFactory, row: RowFactory, size: Size
) -> None:
    with stage(load=size.load, nats=3) as scene:
        scene.begin()
        for server in scene.cluster.nats[:2]:
            server.kill()
        accepted_before = scene.journal.count("receipt")
        scene.wait(size.every)
        accepted = scene.journal.count("receipt") - accepted_before
        _return(scene)
        verdict = scene.finish(within=300)
    row("F15", f"two of three nats-servers down for {size.every:g} s").judge(
        verdict,
        note=f"{accepted} accepted without a quorum",
        refused=(sum(verdict.refused.values()), 0),
        slowest_publish=(verdict.slowest_publish, 5),
        drain=(verdict.drain, 60 + 20),
    )
    assert accepted >= 0.8 * size.every * (size.load.rate), "publishing went on at its pace"


def _return(scene: Scene) -> None:
    for server in scene.cluster.nats[:2]:
        server.start()
    scene.cluster.await_quorum()
    scene.disturbed()
