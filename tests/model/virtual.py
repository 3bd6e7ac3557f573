"""Threads and time of a simulated run: tasks that a loop resumes one at a time, in the order it is told.

The library's own threads run here unchanged: ``installed`` puts ``Threads`` and ``VirtualTime`` in the place
of the modules ``threading`` and ``time``. A task gives up its turn only where the real thread would wait:
for a server, a condition, an event or the end of another thread. The loop notices a lock held meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet
from tenacity import wait_fixed

from eventdriven_sync import (
    attempt,
    batching,
    bus,
    envelope,
    executor,
    lanes,
    operations,
    pool,
    reconciler,
    recording,
    recovery,
    settling,
    stats,
    watchdog,
    worker,
)
from eventdriven_sync.codec import Codec
from eventdriven_sync.stores import memory as memory_store

_CODEC = Codec()
NEVER = 20_000
EPOCH = datetime(2030, 1, 1, tzinfo=UTC)


class Killed(BaseException):
    """The process of this task was killed: nothing of it goes on."""


class Process:
    """What is killed as a whole: its tasks, and what they hold."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.tasks: list[Task] = []


class Task:
    """A thread of a process, with what the library asks of ``threading.Thread``."""

    def __init__(self, loop: Loop, target: Callable[..., Any], args: tuple[Any, ...], name: str) -> None:
        self.name = name
        self.process = loop.process
        self.ident: int | None = None
        self.daemon = True
        self.waiters: list[Task] = []
        self.waits_in: list[Task] | None = None
        self.deadline: float | None = None
        self.held = 0
        self._loop = loop
        self._run = partial(target, *args)
        self.greenlet = greenlet(self._body, loop.main)

    def start(self) -> None:
        """Let it take its turns from now on."""
        self.ident = self._loop.next_ident()
        self.process.tasks.append(self)
        self._loop.ready.append(self)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, or for ``timeout`` seconds."""
        if self.ident is not None and not self.greenlet.dead:
            self._loop.park(self.waiters, timeout)

    def is_alive(self) -> bool:
        return self.ident is not None and not self.greenlet.dead

    def _body(self) -> None:
        try:
            self._run()
        except Killed:
            pass
        except BaseException as error:  # a thread that dies is something the run must report
            self._loop.crashed.append(error)
        finally:
            self.process.tasks.remove(self)
            self._loop.wake(self.waiters, len(self.waiters))


class Loop:
    """Resumes tasks and keeps the time, in seconds from the beginning of the run.

    Args:
        choose: which of so many goes next.

    Attributes:
        turns: how many turns were given; orders what happened.
        crashed: errors that ended a task.
    """

    def __init__(self, choose: Callable[[int], int]) -> None:
        self.main = getcurrent()
        self.choose = choose
        self.now = 0.0
        self.turns = 0
        self.ready: list[Task] = []
        self.timed: dict[Task, None] = {}
        self.current: Task | None = None
        self.crashed: list[BaseException] = []
        self._outside = Process("outside")
        self._clock = EPOCH
        self._idents = 0

    @property
    def process(self) -> Process:
        """Whose turn it is."""
        return self.current.process if self.current else self._outside

    def clock(self) -> datetime:
        """The virtual time as a datetime."""
        return self._clock

    def next_ident(self) -> int:
        """An identity no other task has."""
        self._idents += 1
        return self._idents

    def spawn(self, process: Process, target: Callable[..., Any], *args: Any, name: str = "main") -> Task:
        """Start a task in a process."""
        task = Task(self, target, args, name)
        task.process = process
        task.start()
        return task

    def step(self) -> bool:
        """Give one task its turn; False if all of them wait."""
        if not self.ready:
            return False
        chosen = self.choose(len(self.ready))
        task = self.ready[chosen]
        self.ready[chosen] = self.ready[-1]
        self.ready.pop()
        self._resume(task)
        return True

    def rest(self, after_each: Callable[[], None]) -> None:
        """Give turns until all of them wait."""
        turns = 0
        while self.step():
            after_each()
            turns += 1
            if turns > NEVER:
                raise AssertionError(f"still busy after {NEVER:,} turns without any time in between")

    def advance(self, seconds: float) -> None:
        """Let time pass; who waited for this moment may go on."""
        self.now = round(self.now + seconds, 3)
        self._clock = EPOCH + timedelta(milliseconds=round(self.now * 1000))
        for task in [task for task in self.timed if task.deadline is not None and task.deadline <= self.now]:
            self._unpark(task)

    def to_next_deadline(self) -> float:
        """Seconds until somebody's wait is over."""
        return max(0.001, min((task.deadline or 0.0 for task in self.timed), default=self.now) - self.now)

    def kill(self, process: Process) -> None:
        """End all tasks of a process where they stand, as ``kill -9`` does: each of their calls raises."""
        process.dead = True
        for task in list(process.tasks):
            self._withdraw(task)
            # One that never had a turn has no place where it could be told.
            self._resume(task, Killed() if task.greenlet else GreenletExit())
            if not task.greenlet.dead:
                raise AssertionError(f"{process.name}: {task.name} goes on after it was killed")
            if task in process.tasks:  # it never had a turn
                process.tasks.remove(task)

    # --- what tasks call ------------------------------------------------------------------------------

    def pause(self) -> None:
        """A call of a server: others take their turns before it is answered."""
        task = self.current
        if task is None:
            return
        self.ready.append(task)
        self._leave(task)

    def sleep(self, seconds: float) -> None:
        """Wait for a time."""
        self.park(None, seconds)

    def park(self, waiters: list[Task] | None, timeout: float | None) -> None:
        """Wait until woken from ``waiters``, or for ``timeout`` seconds."""
        task = self.current
        if task is None:
            raise AssertionError("the loop itself cannot wait")
        if waiters is not None:
            waiters.append(task)
            task.waits_in = waiters
        if timeout is not None:
            task.deadline = self.now + max(timeout, 0.001)
            self.timed[task] = None
        self._leave(task)

    def wake(self, waiters: list[Task], count: int) -> None:
        """The first so many of those who wait go on."""
        for task in waiters[:count]:
            self._unpark(task)

    def _unpark(self, task: Task) -> None:
        self._withdraw(task)
        self.ready.append(task)

    def _withdraw(self, task: Task) -> None:
        if task.waits_in is not None:
            task.waits_in.remove(task)
            task.waits_in = None
        if task.deadline is not None:
            del self.timed[task]
            task.deadline = None
        if task in self.ready:
            self.ready.remove(task)

    def _resume(self, task: Task, error: BaseException | None = None) -> None:
        self.turns += 1
        before, self.current = self.current, task
        try:
            task.greenlet.throw(error) if error else task.greenlet.switch()
        finally:
            self.current = before

    def _leave(self, task: Task) -> None:
        if task.process.dead:
            self._withdraw(task)
            raise Killed
        if task.held:
            raise AssertionError(f"{task.process.name}: {task.name} waits for others while it holds a lock")
        self.main.switch()


class Lock:
    """A lock that nobody ever waits for: who holds it does not give up the turn."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def __enter__(self) -> Lock:
        if self._loop.current:
            self._loop.current.held += 1
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop.current:
            self._loop.current.held -= 1


class Condition(Lock):
    """``threading.Condition``, as far as the library uses it."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self._waiters: list[Task] = []

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        task, until = self._loop.current, None if timeout is None else self._loop.now + timeout
        assert task is not None
        while not (result := predicate()):
            left = None if until is None else until - self._loop.now
            if left is not None and left <= 0:
                return result
            held, task.held = task.held, task.held - 1
            try:
                self._loop.park(self._waiters, left)
            finally:
                task.held = held
        return result

    def notify(self, n: int = 1) -> None:
        self._loop.wake(self._waiters, n)

    def notify_all(self) -> None:
        self._loop.wake(self._waiters, len(self._waiters))


class Event:
    """``threading.Event``."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._set = False
        self._waiters: list[Task] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._loop.wake(self._waiters, len(self._waiters))

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            self._loop.park(self._waiters, timeout)
        return self._set


def _threads(loop: Loop) -> SimpleNamespace:
    """What stands in the place of the module ``threading``."""

    def thread(
        *, target: Callable[..., Any], args: tuple[Any, ...] = (), name: str = "", daemon: bool = True
    ) -> Task:
        return Task(loop, target, args, name)

    return SimpleNamespace(
        Thread=thread,
        Lock=partial(Lock, loop),
        Condition=partial(Condition, loop),
        Event=partial(Event, loop),
        current_thread=lambda: loop.current,
    )


def _time(loop: Loop) -> SimpleNamespace:
    """What stands in the place of the module ``time``."""
    return SimpleNamespace(monotonic=lambda: loop.now, time=lambda: EPOCH.timestamp() + loop.now)


@contextmanager
def installed(loop: Loop) -> Iterator[None]:
    """The library runs in this loop and its time inside the block. Its log is silent."""
    threads, clock = _threads(loop), _time(loop)
    changes: list[tuple[Any, str, Any]] = [
        *(
            (module, "threading", threads)
            for module in (lanes, pool, reconciler, recording, recovery, settling, watchdog, worker)
        ),
        *(
            (module, "time", clock)
            for module in (attempt, executor, lanes, memory_store, pool, recording, recovery)
        ),
        *((module, "utcnow", loop.clock) for module in (attempt, envelope, executor, operations, worker)),
        # Neither has a state; together they would take half of the time of a run.
        (bus, "Codec", lambda **_: _CODEC),
        (executor, "stack_of", lambda error, below: ""),
        # A watchdog that looks 20 times a second would take every second turn.
        (watchdog, "TICK", 1.0),
        (watchdog, "LINGERS", 1),
        # As much shorter than the real one as the other times of a run.
        (reconciler, "LATE", 4.0),
        (settling, "wait_random_exponential", lambda **_: wait_fixed(0.5)),
    ]
    defaults = [
        (batching.Collector.__init__.__kwdefaults__, "clock", clock.monotonic),
        (stats.Stats.__init__.__kwdefaults__, "clock", clock.time),
    ]
    kept = [(place, name, getattr(place, name)) for place, name, _ in changes]
    kept_defaults = [(place, name, place[name]) for place, name, _ in defaults]
    library = logging.getLogger("eventdriven_sync")
    level = library.level
    library.setLevel(logging.CRITICAL + 1)
    try:
        for place, name, value in changes:
            setattr(place, name, value)
        for place, name, value in defaults:
            place[name] = value
        yield
    finally:
        library.setLevel(level)
        for place, name, value in kept:
            setattr(place, name, value)
        for place, name, value in kept_defaults:
            place[name] = value
