"""A RabbitMQ node on loopback, in a directory of its own, gone with the benchmark."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil

LIMIT = 60.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Rabbit:
    """Debian's rabbitmq-server; without plugins, listening on loopback only."""

    def __init__(self, directory: Path) -> None:
        self.port = _free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        home = directory / "rabbit"
        home.mkdir()
        self._log = home / "log"
        self._environ = os.environ | {
            "HOME": str(home),
            "RABBITMQ_NODENAME": f"bench{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(_free_port()),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
        }

    def __enter__(self) -> Self:
        server = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [server], env=self._environ, stdout=output, stderr=subprocess.STDOUT
            )
        until = time.monotonic() + LIMIT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"rabbitmq-server does not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes():
            process.kill()
        self._process.wait(10)

    def processes(self) -> Iterator[psutil.Process]:
        """The node and what it started."""
        try:
            parent = psutil.Process(self._process.pid)
            yield from [*parent.children(recursive=True), parent]
        except psutil.NoSuchProcess:
            return

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.5) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(connection.recv(8))
        except OSError:
            return False
