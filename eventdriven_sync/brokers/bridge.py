"""The border between threads and asyncio: one loop thread per process.

Threads cross the border in batches: ``Bridge.post`` is an append and one wake-up for however many posts come
before the loop gets to run; ``Bridge.call`` waits for a coroutine within a deadline.

A forked child inherits the loop without the thread that runs it. It must not even close it: the epoll object
is shared, so closing would take away the parent's wake-ups. The child parks it and starts its own on first
use.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from eventdriven_sync.errors import Closed, ConfigurationError

logger = logging.getLogger(__name__)

THREAD_NAME = "eventdriven-nats"
EXIT_TIMEOUT = 5.0
# How much longer than its deadline a call waits for a loop that is late (another thread computes).
_GRACE = 0.25

T = TypeVar("T")

_shared: dict[str, Bridge] = {}
_started: WeakSet[Bridge] = WeakSet()
_graveyard: list[Bridge] = []
_hooks: list[str] = []


class User(Protocol):
    """Somebody who keeps the bridge running until ``leave``; closed when the process exits."""

    def close(self, *, timeout: float) -> None:
        """Send what is pending and leave the bridge, within ``timeout`` seconds."""


class Bridge:
    """An asyncio loop in its own daemon thread; ``join`` gives the process's one. Thread-safe."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._guard = threading.Lock()  # guards _users, _thread and _closed
        self._users: set[User] = set()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._posted: deque[Callable[[], object]] = deque()
        self._kicked = False

    def admit(self, user: User) -> bool:
        """Keep running for ``user``; False if the bridge is already closing."""
        with self._guard:
            if self._closed:
                return False
            self._users.add(user)
            if self._thread is None:
                self._start()
            return True

    def leave(self, user: User, *, timeout: float) -> None:
        """Let the bridge end if nobody else uses it; waits up to ``timeout`` seconds for its thread."""
        with self._guard:
            self._users.discard(user)
            if self._users or self._closed or self._thread is None:
                return
            self._closed = True
            if _shared.get("bridge") is self:
                del _shared["bridge"]
        if self.pid == os.getpid():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout)

    def users(self) -> list[User]:
        """Who uses the bridge now."""
        with self._guard:
            return list(self._users)

    def post(self, action: Callable[[], object]) -> None:
        """Run ``action`` on the loop soon; dropped if the bridge is closed or was inherited by a fork.

        Whoever posts bounds it: dispatches by their queue, acknowledgements by what is in hand.
        """
        if self._closed or self.pid != os.getpid():
            return
        self._posted.append(action)
        # The loop clears the flag before it takes the actions, so no wake-up is lost.
        if not self._kicked:
            self._kicked = True
            with contextlib.suppress(RuntimeError):  # the loop was closed in this moment
                self._loop.call_soon_threadsafe(self._run_posted)

    def soon(self, action: Callable[[], object]) -> None:
        """On the loop thread: run ``action`` after what is being read now."""
        self._loop.call_soon(action)

    def call(self, coroutine: Coroutine[Any, Any, T], *, timeout: float) -> T:
        """Run a coroutine on the loop and wait for its result.

        When the time is over the coroutine is cancelled on the loop and never keeps running.

        Raises:
            TimeoutError: it did not end within ``timeout`` seconds.
            Closed: the bridge is closed.
            ConfigurationError: called on the loop's own thread, which would wait for itself.
        """
        refusal = self._refusal()
        if refusal is not None:
            coroutine.close()
            raise refusal
        answer: Future[T] = Future()
        deadline = time.monotonic() + timeout
        try:
            self._loop.call_soon_threadsafe(self._begin, coroutine, deadline, answer)
        except RuntimeError as error:
            coroutine.close()
            raise Closed("the connection to NATS was closed; build a new bus") from error
        try:
            return answer.result(max(0.0, timeout) + _GRACE)
        finally:
            answer.cancel()  # also after Ctrl-C; does nothing when the answer is there

    def _refusal(self) -> ConfigurationError | None:
        if threading.current_thread() is self._thread:
            return ConfigurationError(
                f"a blocking call on the thread {THREAD_NAME} would wait for itself: "
                "hand the work to another thread"
            )
        if self._closed or self.pid != os.getpid():
            return Closed("the connection to NATS was closed; build a new bus")
        return None

    def _start(self) -> None:
        _register_hooks()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_on_stray_error)
        _started.add(self)  # before the thread: a fork must find every loop that could run
        thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        thread.start()
        self._thread = thread

    def _run(self) -> None:
        """The thread."""
        asyncio.set_event_loop(self._loop)
        while not self._closed:
            try:
                self._loop.run_forever()
            except BaseException:  # a SystemExit raised in a callback must not end the process's connection
                logger.exception("the loop was interrupted and goes on", extra={"action": "loop_interrupted"})
        self._loop.run_until_complete(_end_all())
        self._loop.close()

    def _run_posted(self) -> None:
        self._kicked = False
        # What is posted meanwhile has its own wake-up: the loop also serves others in between.
        for _ in range(len(self._posted)):
            action = self._posted.popleft()
            try:
                action()
            except Exception:
                logger.exception("a posted action failed", extra={"action": "post_failed"})

    def _begin(self, coroutine: Coroutine[Any, Any, T], deadline: float, answer: Future[T]) -> None:
        if answer.cancelled():
            coroutine.close()
            return
        task = self._loop.create_task(_answer(coroutine, deadline, answer))
        answer.add_done_callback(lambda _: self._cancel_unless_done(task, answer))

    def _cancel_unless_done(self, task: asyncio.Task[None], answer: Future[Any]) -> None:
        if answer.cancelled():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(task.cancel)

    def park(self) -> None:
        """In a forked child: touch nothing of the parent's loop, and keep it from being collected."""
        if self.pid == os.getpid():
            return
        self._posted.clear()
        self._loop.set_exception_handler(lambda *_: None)
        _graveyard.append(self)


def join(user: User) -> Bridge:
    """The bridge of this process, running, with ``user`` among those who keep it.

    Raises:
        RuntimeError: no thread can be started any more (the interpreter shuts down).
    """
    while True:
        bridge = _shared.get("bridge") or _shared.setdefault("bridge", Bridge())
        if bridge.pid != os.getpid():
            _after_fork_in_child()  # forked without Python's knowledge (uWSGI)
        elif bridge.admit(user):
            return bridge


async def _answer(coroutine: Coroutine[Any, Any, T], deadline: float, answer: Future[T]) -> None:
    task = asyncio.get_running_loop().create_task(coroutine)
    try:
        await asyncio.wait({task}, timeout=max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(InvalidStateError):  # the caller went away in this moment
            if not task.done():
                answer.set_exception(TimeoutError())
            elif task.cancelled():
                answer.set_exception(Closed("the connection to NATS was closed meanwhile"))
            elif (error := task.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(task.result())
    finally:
        await end_task(task)


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel until it is over: nats-py swallows a cancellation while it flushes."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)


async def _end_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1.0)


def _on_stray_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A task of nats-py that failed with nobody waiting for it; asyncio would print a traceback each time."""
    logger.info(
        "%s: %r", context.get("message"), context.get("exception"), extra={"action": "loop_stray_error"}
    )


# --- fork and exit ------------------------------------------------------------------------------------


def _register_hooks() -> None:
    """Once per process family for fork and atexit, once per process for multiprocessing."""
    if not _hooks:
        _hooks.append("registered")
        os.register_at_fork(after_in_child=_after_fork_in_child)
        atexit.register(_at_exit)
    # Children of multiprocessing (before Python 3.13) and billiard (Celery) skip atexit.
    for package in ("multiprocessing", "billiard"):
        if util := sys.modules.get(f"{package}.util"):
            util.Finalize(None, _at_exit, exitpriority=100)


def _after_fork_in_child() -> None:
    for bridge in list(_started):
        bridge.park()
    _shared.clear()
    _started.clear()


def _at_exit() -> None:
    """Send what was dispatched, with a bounded wait. Nothing depends on it: the events are stored."""
    bridge = _shared.get("bridge")
    if bridge is None or bridge.pid != os.getpid():
        return
    deadline = time.monotonic() + EXIT_TIMEOUT
    for user in bridge.users():
        user.close(timeout=max(0.1, deadline - time.monotonic()))
