"""Development servers in the foreground, until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from eventdriven_sync.devserver.pair import DevServers
from eventdriven_sync.devserver.process import ServerStartFailed


def run_up(
    data_dir: Path | None,
    *,
    nats_port: int | None = None,
    mongo_port: int | None = None,
    nats_binary: str | None = None,
    mongod_binary: str | None = None,
    sync_always: bool = False,
    namespace: str = "dev",
    echo: Callable[[str], object] = print,
) -> None:
    """Run both servers until SIGINT or SIGTERM; what ``eventdriven dev up`` does. Main thread only.

    Raises:
        ServerBinaryMissing: a program is not installed.
        ServerStartFailed: a server failed to start, or ended by itself later.
    """
    servers = DevServers(
        data_dir=data_dir,
        nats_port=nats_port,
        mongo_port=mongo_port,
        nats_binary=nats_binary,
        mongod_binary=mongod_binary,
        sync_always=sync_always,
    )
    with _stop_signals() as stop:
        began = time.monotonic()
        echo("starting nats-server and mongod ...")
        with servers:
            echo(f"both answer after {time.monotonic() - began:.1f} s; data and logs in {servers.data_dir}")
            for name, value in servers.settings(namespace=namespace).items():
                echo(f"export {name}='{value}'")
            echo("Ctrl-C stops them.")
            while not stop.wait(0.5):
                _refuse_dead(servers)
            echo("stopping ...")
    echo("stopped.")


def _refuse_dead(servers: DevServers) -> None:
    for server in (servers.nats, servers.mongo):
        if not server.running:
            raise ServerStartFailed(
                f"{server.program} ended by itself. The end of its log ({server.log_path}):\n"
                f"{server.log_tail()}",
                log_path=server.log_path,
            )


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; the previous handlers are put back at the end."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
