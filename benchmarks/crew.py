"""Worker processes of this library, watched by the benchmark that started them: count, rate, CPU, memory."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any, Self

import psutil

from benchmarks.shop import Ordered, cpu_seconds
from eventdriven_sync import EventBus, Settings, Worker

THREADS = 8
LIMIT = 600.0
_POLL = 0.005
# What each process tells: how many it handled, and when the first and the last of them ended.
_HANDLED, _FIRST, _LAST = range(3)


class Crew:
    """So many processes that run the same handlers, as a context manager.

    Args:
        handlers: of one group, each of which gets every event.
        burn: seconds of CPU that a handler takes (``time.thread_time``: what others compute does not count).
    """

    def __init__(
        self, settings: Settings, *, processes: int = 1, handlers: int = 1, burn: float = 0.0
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._go = context.Barrier(processes + 1)
        self._told: list[Any] = [context.Array("d", 3) for _ in range(processes)]
        self._processes = [
            context.Process(target=_work, args=(settings, handlers, burn, told, self._go), daemon=True)
            for told in self._told
        ]
        self._cpu_before = 0.0

    def __enter__(self) -> Self:
        """Starts them; returns when each is about to connect."""
        for process in self._processes:
            process.start()
        self._go.wait(60)
        self.reset_cpu()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(30)

    def wait(self, handled: int) -> None:
        """Until all together have handled so many."""
        until = time.monotonic() + LIMIT
        while self.handled < handled:
            if time.monotonic() > until or not all(process.is_alive() for process in self._processes):
                raise RuntimeError(f"{self.handled} of {handled} handled when a process or the time ended")
            time.sleep(_POLL)

    @property
    def handled(self) -> int:
        """How many events all together have handled."""
        return int(sum(told[_HANDLED] for told in self._told))

    @property
    def seconds(self) -> float:
        """From the end of the first handling to the end of the last."""
        return self.ended_at - min(told[_FIRST] for told in self._told if told[_FIRST])

    @property
    def ended_at(self) -> float:
        """When the last handling so far ended, by ``time.monotonic``."""
        return float(max(told[_LAST] for told in self._told))

    def reset_cpu(self) -> None:
        """Count their CPU from now on, which begins where they are about to connect."""
        self._cpu_before = self._cpu()

    @property
    def cpu(self) -> float:
        """Seconds that they have computed."""
        return self._cpu() - self._cpu_before

    @property
    def memory_mb(self) -> float:
        """Resident, of all together."""
        return sum(psutil.Process(process.pid).memory_info().rss for process in self._processes) / 2**20

    def _cpu(self) -> float:
        return sum(cpu_seconds(process.pid) for process in self._processes if process.pid)


def _work(settings: Settings, handlers: int, burn: float, told: Any, go: Any) -> None:
    bus = EventBus(settings=settings)

    def count(event: Ordered) -> None:
        until = time.thread_time() + burn
        while time.thread_time() < until:
            pass
        with told.get_lock():
            told[_LAST] = time.monotonic()
            told[_FIRST] = told[_FIRST] or told[_LAST]
            told[_HANDLED] += 1

    for number in range(handlers):
        bus.group("Group").handler(Ordered, name=f"count{number}", start="all")(count)
    worker = Worker(bus, threads=THREADS)
    go.wait(60)
    worker.run()
