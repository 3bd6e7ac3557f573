"""Both development servers as one thing to start and stop."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import IO, Self

from eventdriven_sync.devserver.mongod import Mongod
from eventdriven_sync.devserver.nats_server import NatsServer
from eventdriven_sync.devserver.process import ServerStartFailed


class DevServers:
    """A nats-server and a mongod, started and stopped together; a context manager.

    ```python
    with DevServers() as servers:
        bus = EventBus(nats=servers.nats_url, mongo=servers.mongo_url(), namespace="dev")
    ```

    Args:
        data_dir: keeps data, logs and ports between starts; None is a new directory that ``stop`` removes.
        nats_port: a loopback port; None takes the port of the last start in ``data_dir``, or a free one.
        mongo_port: likewise.
        nats_binary: path of nats-server; None searches (see ``LocalServer.find_binary``).
        mongod_binary: likewise.
        sync_always: nats-server writes every message through to the disk before it confirms.
        start_timeout: seconds each server may take until it answers.

    Attributes:
        nats: the nats-server, to kill, pause, wipe or start on its own.
        mongo: the mongod, likewise.
    """

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        nats_port: int | None = None,
        mongo_port: int | None = None,
        nats_binary: str | None = None,
        mongod_binary: str | None = None,
        sync_always: bool = False,
        start_timeout: float = 20.0,
    ) -> None:
        self._throw_away = data_dir is None
        self._lock: IO[str] | None = None
        # mongod resolves its paths itself: never leave them relative to a directory that may change.
        temporary = Path(tempfile.gettempdir(), f"eventdriven-{uuid.uuid4().hex[:12]}")
        self.data_dir = (data_dir or temporary).absolute()
        self.nats = NatsServer(
            self.data_dir / "nats",
            port=nats_port,
            binary=nats_binary,
            sync_always=sync_always,
            start_timeout=start_timeout,
        )
        self.mongo = Mongod(
            self.data_dir / "mongo", port=mongo_port, binary=mongod_binary, start_timeout=start_timeout
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def nats_url(self) -> str:
        """``nats://127.0.0.1:PORT``."""
        return self.nats.url

    def mongo_url(self, database: str = "eventdriven") -> str:
        """The connection string of MongoDB with this database."""
        return self.mongo.url_for(database)

    def settings(self, *, namespace: str = "dev", database: str = "eventdriven") -> dict[str, str]:
        """The environment variables with which ``EventBus.from_env`` finds these servers."""
        return {
            "EVENTDRIVEN_NATS": self.nats_url,
            "EVENTDRIVEN_MONGO": self.mongo_url(database),
            "EVENTDRIVEN_NAMESPACE": namespace,
        }

    def start(self) -> Self:
        """Start both servers at the same time and wait until both answer.

        Raises:
            ServerBinaryMissing: a program is not installed.
            ServerStartFailed: a server failed to start, or another process uses ``data_dir``.
        """
        servers = (self.nats, self.mongo)
        for server in servers:
            server.find_binary()
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        try:
            for server in servers:
                server.launch()
            for server in servers:
                server.await_ready()
        except BaseException:
            self._end_servers()
            # The directory stays even if it is a temporary one: the error names the log in it.
            self._give_lock_back()
            raise
        return self

    def stop(self) -> None:
        """Stop both servers and remove their data if it was temporary; a second call does nothing."""
        self._end_servers()
        self._give_lock_back()
        if self._throw_away:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def _end_servers(self) -> None:
        for server in (self.nats, self.mongo):
            if self._throw_away:
                server.kill()
            else:
                server.terminate()
        for server in (self.nats, self.mongo):
            server.await_end(10.0)

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = (self.data_dir / "lock").open("a", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ServerStartFailed(
                f"another process runs development servers in {self.data_dir}; "
                "stop it or take another directory",
                data_dir=self.data_dir,
            ) from None
        self._lock = lock

    def _give_lock_back(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
