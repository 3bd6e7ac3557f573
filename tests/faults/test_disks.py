"""Disks that are full or fail under MongoDB and NATS: F24 and F25."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventdriven_sync import EventBus
from eventdriven_sync.envelope import new_id
from eventdriven_sync.errors import PublishOutcomeUnknown, StoreError
from tests.apps.orders import OrderPlaced
from tests.conftest import lacking
from tests.faults.cluster import Cluster, SetMongod
from tests.faults.conftest import RowFactory, StageFactory
from tests.faults.scene import Scene
from tests.faults.workload import Load
from tests.polling import eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

TIMEOUT = 3.0
MEGABYTES = 400


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, so small that it can be filled."""
    if os.geteuid() != 0:
        lacking("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


class Receipts:
    """Publishes one by one and remembers what was accepted, refused and left open."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self.accepted: list[str] = []
        self.refused: list[str] = []
        self.unknown: list[str] = []

    @property
    def troubles(self) -> int:
        """How many were not accepted."""
        return len(self.refused) + len(self.unknown)

    def publish(self, number: int) -> None:
        chosen = new_id()
        try:
            self._bus.publish(OrderPlaced(number=number), event_id=chosen, timeout=TIMEOUT)
            self.accepted.append(chosen)
        except PublishOutcomeUnknown:
            self.unknown.append(chosen)
        except StoreError:
            self.refused.append(chosen)

    def until_trouble(self, *, most: float = 30.0) -> None:
        """Until something is not accepted."""
        until, number, before = time.monotonic() + most, 0, self.troubles
        while self.troubles == before:
            assert time.monotonic() < until, "everything is accepted, the fault hit nothing"
            self.publish(number)
            number += 1


def judge(scene: Scene, receipts: Receipts, name: str, fault: str, row: RowFactory) -> None:
    """After the disk is well again: what was accepted is there, what was refused is not."""
    bus = scene.bus()
    try:
        stored = bus.store.events.get([*receipts.accepted, *receipts.refused, *receipts.unknown])
    finally:
        bus.close()
    row(name, fault).keep(
        {"events": len(receipts.accepted), "lost": len(set(receipts.accepted) - set(stored))},
        note=f"{len(receipts.refused)} refused, {len(receipts.unknown)} in doubt",
        refused_but_stored=(len(set(receipts.refused) & set(stored)), 0),
        accepted_but_missing=(len(set(receipts.accepted) - set(stored)), 0),
    )
    assert receipts.accepted


def scene_on(stage: StageFactory, cluster: Cluster) -> Scene:
    return stage(load=Load(events=1), cluster=cluster, settings={"publish_timeout": TIMEOUT})


def test_with_a_full_disk_nothing_more_is_accepted_and_what_was_stays(
    stage: StageFactory, row: RowFactory, small_disk: Path, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path)
    cluster.mongo = [SetMongod(small_disk, start_timeout=60)]
    with scene_on(stage, cluster) as scene:
        bus = scene.bus()
        receipts = Receipts(bus)
        for number in range(50):
            receipts.publish(number)
        fill(small_disk)
        receipts.until_trouble(most=120)
        for number in range(3):
            receipts.publish(number)
        bus.close()
        cluster.mongo[0].kill()
        (small_disk / "filler").unlink()
        cluster.mongo[0].start()
        judge(scene, receipts, "F24", f"the disk of mongod is full ({MEGABYTES} MB tmpfs)", row)


def fill(place: Path) -> None:
    """To the last byte."""
    with (place / "filler").open("wb", buffering=0) as file:
        size = 1024 * 1024
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    assert shutil.disk_usage(place).free < 64 * 1024


@pytest.mark.parametrize("which", ["mongo", "nats"])
def test_when_the_disk_does_not_take_it_there_is_no_receipt(
    stage: StageFactory, row: RowFactory, tmp_path: Path, which: str
) -> None:
    if shutil.which("strace") is None:
        lacking("strace not found: apt-get install strace")
    with scene_on(stage, Cluster(tmp_path, sync_always=True)) as scene:
        bus = scene.bus()
        receipts = Receipts(bus)
        for number in range(50):
            receipts.publish(number)
        server = (scene.cluster.mongo if which == "mongo" else scene.cluster.nats)[0]
        assert server.process is not None
        trace = subprocess.Popen(
            [
                *("strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-p", str(server.process.pid)),
                *("-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"),
            ]
        )
        try:
            if which == "mongo":
                receipts.until_trouble()
                eventually(lambda: not server.running, timeout=30, message="mongod gives up by itself")
            else:
                for number in range(200):
                    receipts.publish(number)
        finally:
            trace.terminate()
            trace.wait(30)
        injected = (tmp_path / "trace").read_text().count("INJECTED")
        bus.close()
        server.kill()
        server.start()
        judge(scene, receipts, "F25", f"every fsync of {which} fails with EIO ({injected} times)", row)
        assert injected
