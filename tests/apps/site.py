"""Where an application runs in a test: its settings, its witness, its buses, workers and processes."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import attrs

from eventdriven_sync import EventBus, Settings, Worker
from eventdriven_sync.audit import Audit, audit
from eventdriven_sync.errors import BrokerUnavailable
from tests.apps.witness import Witness
from tests.polling import eventually

ROOT = Path(__file__).parents[2]

Build = Callable[[EventBus, Witness], None]


class Process:
    """A worker or publisher process with its log."""

    def __init__(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        self.log_path = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.apps.run", *command],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def ready(self) -> Self:
        """Wait until the worker runs."""

        def runs() -> bool:
            assert not self.ended, self.log
            return " runs " in self.log

        eventually(runs, timeout=30)
        return self

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait(30)

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit code; negative if a signal ended it."""
        return self._popen.wait(timeout)


class Site:
    """One application on real servers. Whatever it started ends with ``close``.

    Attributes:
        settings: of every bus and process, unless a call changes some.
    """

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.settings = settings
        self.witness = Witness(directory / "witness.jsonl")
        self._directory = directory
        self._buses: list[EventBus] = []
        self._workers: list[Worker] = []
        self._processes: list[Process] = []

    def bus(self, build: Build | None = None, **changes: Any) -> EventBus:
        """A bus of this process; its handlers are registered when this returns."""
        bus = EventBus(settings=attrs.evolve(self.settings, **changes))
        self._buses.append(bus)
        if build:
            build(bus, self.witness)
            bus.open()
        return bus

    def worker(self, bus: EventBus, **options: Any) -> Worker:
        """A running worker in threads of this process."""
        worker = Worker(bus, **({"threads": 4, "grace": 5.0} | options))
        self._workers.append(worker)
        return worker.start()

    def worker_process(self, app: str, *arguments: object, **changes: Any) -> Process:
        """A worker process that runs an application; ``ready`` waits until it does."""
        return self._process("worker", app, arguments, changes)

    def publisher_process(self, app: str, *arguments: object, **changes: Any) -> Process:
        """A process that publishes orders."""
        return self._process("publisher", app, arguments, changes)

    def environ(self, **changes: Any) -> dict[str, str]:
        """The environment variables from which ``EventBus.from_env`` reads our settings."""
        settings = attrs.asdict(attrs.evolve(self.settings, **changes))
        own = {f"EVENTDRIVEN_{name.upper()}": str(value) for name, value in settings.items()}
        return {k: v for k, v in os.environ.items() if not k.startswith("EVENTDRIVEN_")} | own

    def close(self) -> None:
        """End everything; what processes printed belongs to the report of a failed test."""
        for process in self._processes:
            process.kill()
            print(f"--- {process.log_path.name}\n{process.log}")
        for worker in self._workers:
            worker.stop(grace=1.0)
        for bus in self._buses:
            bus.close()

    def _process(
        self, role: str, app: str, arguments: tuple[object, ...], changes: dict[str, Any]
    ) -> Process:
        log = self._directory / f"{role}-{len(self._processes) + 1}.log"
        command = [role, f"tests.apps.{app}", str(self.witness.path), *map(str, arguments)]
        self._processes.append(Process(command, self.environ(**changes), log))
        return self._processes[-1]


def conserved(bus: EventBus, *, timeout: float = 30.0) -> Audit:
    """Wait until every accepted event came to an end with every handler, and its message is acknowledged.

    Also that the audit says so: nothing is lost.
    """

    def check() -> Audit:
        try:
            result = audit(bus)
        except BrokerUnavailable as error:  # it was down a moment ago: ask again
            raise AssertionError(str(error)) from error
        assert result.ok, result
        for handler in result.handlers:
            assert handler.accepted == handler.succeeded + handler.dead + handler.discarded, handler
            assert handler.in_consumer == 0, handler
        return result

    return eventually(check, timeout=timeout, message="every accepted event is settled and acknowledged")


class Gate:
    """Holds handlers of this process until the test opens it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def pass_through(self) -> None:
        """Called by a handler."""
        self.entered.release()
        if not self._opened.wait(60):
            raise TimeoutError("nobody opened the gate")

    def await_entry(self, count: int = 1) -> None:
        """Wait until so many handlers stand before the gate."""
        for _ in range(count):
            assert self.entered.acquire(timeout=30), "no handler came to the gate"
