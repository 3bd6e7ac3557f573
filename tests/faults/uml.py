"""Power loss: a server in a User-Mode-Linux guest, which is ended like a machine whose plug is pulled.

The guest is a Linux kernel as a process. Its page cache is its own memory, so what the server had not synced
to its disk, a file of the host, is gone when the guest is killed. Needs root and Debian's user-mode-linux.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from eventdriven_sync.devserver import NatsServer
from tests.faults.cluster import SetMongod

KERNEL = "linux.uml"
SHELF = Path("/dev/shm")
DISK_MIB = 768
BOOT_TIMEOUT = 90.0

_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t tmpfs tmp /run
mount -t ext4 -o data=ordered /dev/ubda {data} || exit 1
ip link set lo up && ip addr add {address}/30 dev vec0 && ip link set vec0 up || exit 1
exec {program}
"""


def missing() -> str:
    """Why there can be no guest here, or nothing."""
    if os.geteuid() != 0:
        return "a guest's network needs root"
    needed = (KERNEL, "mkfs.ext4", "ip")
    absent = [program for program in needed if not shutil.which(program)]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install user-mode-linux e2fsprogs iproute2"
    return "" if Path("/dev/net/tun").exists() else "no /dev/net/tun"


class Guest:
    """The machine: a disk, a network of two addresses, and a program that is its first process.

    Attributes:
        address: of the guest, reachable from the host.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._tap = f"uml{random.randrange(16**6):06x}"
        network = f"10.{random.randint(200, 250)}.{random.randint(1, 250)}"
        self.address = f"{network}.2"
        # In the memory of the host, which outlives the guest as a disk would, and syncs without waiting.
        self._shelf = tempfile.TemporaryDirectory(prefix="guest-", dir=SHELF)
        self._disk = Path(self._shelf.name, "disk.img")
        with self._disk.open("wb") as disk:
            disk.truncate(DISK_MIB * 1024 * 1024)
        _run("mkfs.ext4", "-q", "-F", str(self._disk))
        _run("ip", "tuntap", "add", "dev", self._tap, "mode", "tap")
        _run("ip", "addr", "add", f"{network}.1/30", "dev", self._tap)
        _run("ip", "link", "set", self._tap, "up")

    def command(self, program: list[str], data: Path) -> list[str]:
        """Boot, mount the disk at ``data`` and run the program, with the host's files to read."""
        init = self._directory / "init"
        init.write_text(_INIT.format(data=data, address=self.address, program=" ".join(program)))
        init.chmod(0o700)
        return [
            *(
                KERNEL,
                "mem=768M",
                f"ubd0={self._disk}",
                "rootfstype=hostfs",
                "ro",
                f"init={init}",
                "panic=-1",
            ),
            *("con=null", "con0=null,fd:1", f"vec0:transport=tap,ifname={self._tap},depth=128,gro=1"),
        ]

    def remove(self) -> None:
        """Take its network and its disk away."""
        self._shelf.cleanup()
        _run("ip", "link", "del", self._tap)


class GuestNats(NatsServer):
    """A nats-server in a guest of its own; ``kill`` is a power loss."""

    def __init__(self, directory: Path, *, sync_always: bool) -> None:
        super().__init__(directory, sync_always=sync_always, start_timeout=BOOT_TIMEOUT)
        self.guest = Guest(directory)

    @property
    def url(self) -> str:
        """As the host reaches it."""
        return f"nats://{self.guest.address}:{self.port}"

    def _command(self, binary: str) -> list[str]:
        command = super()._command(binary)
        config = self.directory / "nats.conf"
        settings: dict[str, Any] = json.loads(config.read_text())
        settings |= {"listen": f"0.0.0.0:{self.port}", "http": f"127.0.0.1:{self.monitor_port}"}
        config.write_text(json.dumps(settings))
        return self.guest.command(command, self.data_dir)

    def _answers(self) -> bool:
        try:
            with _connect(self.guest.address, self.port) as connection, connection.makefile("rb") as lines:
                greeting = lines.readline(65536)
        except OSError:
            return False
        return greeting.startswith(b"INFO {") and json.loads(greeting[5:]).get("jetstream") is True

    def _signal(self, number: signal.Signals) -> None:
        _signal_guest(self.process, number)


class GuestMongod(SetMongod):
    """A mongod, a set of one, in a guest of its own; ``kill`` is a power loss."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, start_timeout=BOOT_TIMEOUT)
        self.guest = Guest(directory)

    @property
    def host(self) -> str:
        """As the host reaches it."""
        return self.guest.address

    def _command(self, binary: str) -> list[str]:
        command = super()._command(binary)
        command[command.index("--bind_ip") + 1] = "0.0.0.0"
        return self.guest.command(command, self.data_dir)

    def _answers(self) -> bool:
        try:
            _connect(self.guest.address, self.port).close()
        except OSError:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        _signal_guest(self.process, number)


def _signal_guest(process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
    """To the kernel and all its processes, which are one process group of the host."""
    if process is not None and process.poll() is None:
        os.killpg(process.pid, number)


def _connect(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port), timeout=1.0)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
