"""The vital signs of a worker: its threads, its background loops, and whether its work moves."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from eventdriven_sync.health import (
    Answers,
    HandlerProgress,
    Health,
    Part,
    Progress,
    State,
    ask,
    check_timeout,
    waits,
)
from eventdriven_sync.lanes import Lane, Running
from eventdriven_sync.pool import Pool
from eventdriven_sync.pulse import Pulse, Reading
from eventdriven_sync.settling import Leases
from eventdriven_sync.stats import Stats

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

THREADS = "worker threads"
# Beyond the deadlines of the calls that a round is made of.
PATIENCE = 10.0
# A round asks a server several times, each within its own deadline. Who calls a thread dead has it killed.
_CALLS = 10


class Vitals:
    """Says how a worker is. Thread-safe.

    Args:
        threads: how many attempts may run at once.
        loops: the pulses of its background threads, by name.
    """

    def __init__(
        self,
        bus: EventBus,
        *,
        threads: int,
        pool: Pool,
        lanes: Mapping[str, Lane],
        leases: Leases,
        stats: Stats,
        loops: Mapping[str, Pulse],
    ) -> None:
        self._bus = bus
        self._size = threads
        self._pool = pool
        self._lanes = lanes
        self._leases = leases
        self._stats = stats
        self._loops = loops
        self._stalls = Stalls(
            {
                name: bus.settings.stall_after + (lane.handler.batch.max_wait if lane.handler.batch else 0.0)
                for name, lane in lanes.items()
            }
        )

    def health(self, *, timeout: float, idle: str) -> Health:
        """See ``Worker.health``.

        Args:
            idle: why the worker does not work at all at this moment, or empty.
        """
        check_timeout(timeout)
        if idle:
            return Health(
                parts=(Part(name=THREADS, state="failing", reason=idle),),
                progress=Progress(handlers=(), running=self._running()),
            )
        answers = ask(self._bus, [lane.handler for lane in self._lanes.values()], timeout=timeout)
        running = self._running()
        loops = tuple(self._loop(name, pulse.read()) for name, pulse in self._loops.items())
        return Health(
            parts=(answers.store, answers.broker, self._threads(running), *loops),
            progress=Progress(
                handlers=self._stalls.judge(self._work(answers), running, self._size, paused=answers.paused),
                running=running,
            ),
        )

    def _running(self) -> tuple[Running, ...]:
        return tuple(sorted(self._pool.running(), key=lambda running: -running.seconds))

    def _threads(self, running: Sequence[Running]) -> Part:
        missing = self._pool.missing()
        if missing:
            return _part(THREADS, "dead", f"{missing} of {self._size} have ended")
        if not self._pool.watched:
            return _part(THREADS, "dead", "the watchdog over handlers that hang has ended")
        hung = sum(each.hung for each in running)
        if hung:
            return _part(THREADS, "degraded", f"{hung} hang in handlers and were replaced")
        return _part(THREADS, "ok", f"{len(running)} of {self._size} are busy")

    def _loop(self, name: str, reading: Reading) -> Part:
        settings = self._bus.settings
        if reading.started and not reading.alive:
            return _part(name, "dead", "its thread has ended")
        lost = _CALLS * settings.publish_timeout + settings.broker_timeout + reading.pause + PATIENCE
        if reading.started and reading.silent > lost:
            return _part(name, "dead", f"it did not come round for {reading.silent:.0f} s")
        if reading.started and reading.unwell > settings.publish_timeout + 3 * reading.pause:
            return _part(name, "failing", f"its rounds fail since {reading.unwell:.0f} s")
        return _part(name, "ok", "it comes round")

    def _work(self, answers: Answers) -> list[HandlerProgress]:
        now, settled = time.monotonic(), self._stats.settled_at()
        # What came by a message is in the lane's hand already.
        claimed = [a for held in self._leases.held().values() for a in held.values() if not a.message]
        held = Counter(attempt.handler.name for attempt in claimed)
        return [
            HandlerProgress(
                name=name,
                in_hand=lane.in_hand + held[name],
                settled_ago=now - settled[name] if name in settled else None,
                paused=lane.paused,
                **answers.work(name),
            )
            for name, lane in sorted(self._lanes.items())
        ]


class Stalls:
    """Remembers since when work of each handler waits while nothing of it is settled. Thread-safe.

    What runs within its timeout is no stall, and neither is what waits here for a thread while all of them
    are busy with that: the clock begins anew.

    Args:
        patience: by handler, seconds.
    """

    def __init__(self, patience: Mapping[str, float]) -> None:
        self._patience = patience
        self._waits_since: dict[str, float] = {}
        self._lock = threading.Lock()  # guards _waits_since

    def judge(
        self,
        work: Sequence[HandlerProgress],
        running: Sequence[Running],
        threads: int,
        *,
        paused: frozenset[str] = frozenset(),
    ) -> tuple[HandlerProgress, ...]:
        """The same with ``stalled`` filled in."""
        now = time.monotonic()
        at_work = {each.handler for each in running if not each.hung}
        full = sum(not each.hung for each in running) >= threads
        with self._lock:
            for handler in work:
                queues = full and bool(handler.in_hand or handler.overdue)
                if not waits(handler) or handler.paused or handler.name in at_work or queues:
                    self._waits_since[handler.name] = now
            since = {each.name: self._waits_since.setdefault(each.name, now) for each in work}
        return tuple(
            attrs.evolve(each, stalled=self._reason(each, now - since[each.name], each.name in paused))
            for each in work
        )

    def _reason(self, handler: HandlerProgress, waited: float, paused: bool) -> str:
        settled = waited if handler.settled_ago is None else handler.settled_ago
        seconds = min(waited, settled)
        if seconds <= self._patience[handler.name]:
            return ""
        waiting = (handler.pending or 0) + handler.in_hand
        what = f"{waiting:,} messages wait" if waiting else "deliveries are due"
        why = "; its consumer is paused" if paused else ""
        return f"{what} and nothing was settled for {seconds:.0f} s{why}"


def _part(name: str, state: State, reason: str) -> Part:
    return Part(name=name, state=state, reason=reason)
