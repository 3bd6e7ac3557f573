"""A connection that is kept up: built, watched, thrown away when it is of no use, and built anew."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from eventdriven_sync.brokers.bridge import end_task
from eventdriven_sync.brokers.wire import Message

_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0
_STEADY = 5.0
_WATCH_EVERY = 1.0
_PROBE_EVERY = _PROBE_LIMIT = 5.0
# Handed to the socket at once: nats-py does not let the loop run by itself while its buffer has room.
_AT_ONCE = 128


class Session(Protocol):
    """One connection to the server, from connected to lost. A lost one never comes back."""

    @property
    def alive(self) -> bool:
        """Whether it is connected and its reader and writer run."""

    async def hand_over(self, messages: Sequence[Message]) -> None:
        """Hand all messages to the socket, or raise before the first."""

    def hand_over_now(self, messages: Sequence[Message]) -> bool:
        """The same at once; False if the socket takes none just now."""

    def write(self, commands: bytes) -> bool:
        """Hand whole commands of the protocol to the socket at once; False if it takes none just now."""

    async def ended(self, timeout: float) -> None:
        """Wait until its reader or writer ends, or so many seconds."""

    async def rtt(self, timeout: int) -> float:
        """A round trip to the server."""

    async def discard(self) -> None:
        """Free everything at once, whatever state it is in. Never raises."""


S = TypeVar("S", bound=Session)


class Link(Generic[S]):
    """Connects, notices within 10 seconds that a connection is of no use any more, and builds a new one.

    There is one way to recover, whatever broke: throw the session away and connect again. nats-py's own
    reconnecting stays off; its task can die unnoticed. Loop thread only, except ``down_for`` and ``rebuilt``.

    Args:
        connect: builds a session; fails or returns within its own limit.
        on_up: prepares a new session (subscriptions) before anything is sent through it.
        on_down: hears that the session is gone.
        on_error: hears why.
    """

    def __init__(
        self,
        connect: Callable[[], Coroutine[Any, Any, S]],
        *,
        on_up: Callable[[S], Awaitable[None]],
        on_down: Callable[[], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.session: S | None = None
        self.built = 0
        self._connect = connect
        self._on_up = on_up
        self._on_down = on_down
        self._on_error = on_error
        self._down_since: float | None = time.monotonic()
        self._outgoing: deque[Message] = deque()
        self._wake = asyncio.Event()

    @property
    def down_for(self) -> float:
        """Seconds without a connection, 0 while connected."""
        since = self._down_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def rebuilt(self) -> int:
        """How often a lost connection was replaced."""
        return max(0, self.built - 1)

    def send(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> bool:
        """Queue one message for the socket, in order; False without a connection."""
        if self.session is None:
            return False
        self._outgoing.append((subject, data, reply, headers))
        if len(self._outgoing) == 1:
            asyncio.get_running_loop().call_soon(self._send_out)
        return True

    def write(self, commands: bytes) -> bool:
        """Hand whole commands to the socket now; False if it takes none, or if something is queued."""
        return not self._outgoing and self.session is not None and self.session.write(commands)

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                await self._serve(await self._connect())
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
            except Exception as error:
                self._on_error(error)
            pause = _FIRST_PAUSE if time.monotonic() - began > _STEADY else min(pause * 2, _LAST_PAUSE)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def drain(self) -> None:
        """Wait until everything queued was handed to the socket and the server has read it."""
        while self._outgoing and self.session is not None:
            await asyncio.sleep(0.005)
        if self.session is not None:
            await self.session.rtt(1)

    async def _serve(self, session: S) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._on_up(session)
            self.session, self._down_since = session, None
            self.built += 1
            parts = (self._write(session), self._probe(session), self._watch(session))
            tasks = {asyncio.create_task(part) for part in parts}
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                if not task.cancelled():
                    task.result()
        finally:
            if self.session is not None:
                self.session, self._down_since = None, time.monotonic()
            self._outgoing.clear()
            self._on_down()
            await session.discard()
            for task in tasks:
                await end_task(task)

    def _send_out(self) -> None:
        """What was queued in this turn of the loop goes out in one piece, past the writer and its buffer.

        What the socket does not take, or cannot be sent, is left to the writer.
        """
        session = self.session
        while self._outgoing and session is not None:
            messages = list(islice(self._outgoing, _AT_ONCE))
            try:
                taken = session.hand_over_now(messages)
            except Exception:
                taken = False  # the writer finds out which of them it is, and tells
            if not taken:
                self._wake.set()
                return
            for _ in messages:
                self._outgoing.popleft()

    async def _write(self, session: S) -> None:
        while self.session is session:
            await self._wake.wait()
            self._wake.clear()
            while self._outgoing and self.session is session:
                count = min(len(self._outgoing), _AT_ONCE)
                await self._publish(session, [self._outgoing.popleft() for _ in range(count)])
                await asyncio.sleep(0)

    async def _publish(self, session: S, messages: Sequence[Message]) -> None:
        """One message that cannot be sent must not stop the others."""
        try:
            await session.hand_over(messages)
        except Exception as error:
            if not session.alive:
                raise
            if len(messages) == 1:
                self._on_error(error)
                return
            for message in messages:
                await self._publish(session, [message])

    async def _probe(self, session: S) -> None:
        """A connection can look open for minutes after the other side is gone."""
        while True:
            await asyncio.sleep(_PROBE_EVERY)
            await asyncio.wait_for(session.rtt(int(_PROBE_LIMIT)), _PROBE_LIMIT + 1)

    async def _watch(self, session: S) -> None:
        """An exception in nats-py's reader ends it silently; ``is_connected`` stays true."""
        while session.alive:
            await session.ended(_WATCH_EVERY)


def _is_cancelled() -> bool:
    """Whether somebody cancels this task, or nats-py let the cancellation of a part of its own escape."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
