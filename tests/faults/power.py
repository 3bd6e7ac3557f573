"""Power loss: a server whose data lie on a disk of their own, from which the plug is pulled.

The disk is an ext4 file system in a file. Linux can shut a file system down at once and without writing its
journal: what was not synced is gone, as after a power failure, and mounting it again is what a machine does
that comes back. File systems are tested like this themselves: https://github.com/kdave/xfstests, src/godown.c
Needs root.
"""

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import tempfile
from pathlib import Path

from eventdriven_sync.devserver import NatsServer
from eventdriven_sync.devserver.process import LocalServer
from tests.faults.cluster import SetMongod

SHELF = Path("/dev/shm")
DISK_MIB = 768
START_TIMEOUT = 90.0

# _IOR('X', 125, __u32) and its flag NOLOGFLUSH: include/uapi/linux/fs.h and fs/ext4/ext4.h of Linux.
FS_IOC_SHUTDOWN, WITHOUT_JOURNAL = 0x8004587D, 2


def missing() -> str:
    """Why no disk can be made here, or nothing."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if not shutil.which("mkfs.ext4"):
        return "mkfs.ext4 not found: apt-get install e2fsprogs"
    return "" if Path("/dev/loop-control").exists() else "no /dev/loop-control"


class Disk:
    """A file system in a file, mounted at a place."""

    def __init__(self, place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self._place = place
        self._mounted = False
        # In the memory of the machine, where a sync costs nothing.
        self._shelf = tempfile.TemporaryDirectory(prefix="disk-", dir=SHELF)
        self._file = Path(self._shelf.name, "disk.img")
        with self._file.open("wb") as file:
            file.truncate(DISK_MIB * 1024 * 1024)
        _run("mkfs.ext4", "-q", "-F", str(self._file))

    def plug_in(self) -> None:
        """Mount what is left of it."""
        if not self._mounted:
            _run("mount", "-o", "loop,data=ordered", str(self._file), str(self._place))
            self._mounted = True

    def pull_plug(self) -> None:
        """From now on nothing is read or written, and what was not synced is gone."""
        place = os.open(self._place, os.O_RDONLY)
        try:
            fcntl.ioctl(place, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_JOURNAL))
        finally:
            os.close(place)

    def take_out(self) -> None:
        """Unmount it; whoever used it must have ended."""
        if self._mounted:
            _run("umount", str(self._place))
            self._mounted = False

    def remove(self) -> None:
        """Throw it away."""
        self.take_out()
        self._shelf.cleanup()


class _Powered(LocalServer):
    """A server on a disk of its own; ``kill`` is a power loss."""

    disk: Disk

    def launch(self) -> None:
        """Mount the disk and start the process."""
        self.disk.plug_in()
        super().launch()

    def kill(self) -> None:
        """Everything stops at the same moment: nothing is confirmed that the disk did not take."""
        if self.running:
            self.pause()
            self.disk.pull_plug()
        self._signal(signal.SIGKILL)
        self.await_end(START_TIMEOUT)
        self.disk.take_out()


class PoweredNats(_Powered, NatsServer):
    """A nats-server."""

    def __init__(self, directory: Path, *, sync_always: bool) -> None:
        super().__init__(directory, sync_always=sync_always, start_timeout=START_TIMEOUT)
        self.disk = Disk(self.data_dir)


class PoweredMongod(_Powered, SetMongod):
    """A mongod, a set of one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, start_timeout=START_TIMEOUT)
        self.disk = Disk(self.data_dir)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
