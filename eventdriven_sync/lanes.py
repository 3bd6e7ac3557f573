"""Lanes: what has arrived for each handler of a worker, and the jobs that its threads take from them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

import attrs

from eventdriven_sync.attempt import Attempt
from eventdriven_sync.batching import Collector
from eventdriven_sync.broker import Consumption
from eventdriven_sync.handlers import Handler
from eventdriven_sync.settling import Settled

MAX_CHUNK = 256
# Work a thread may take at once, in seconds of handler time: longer, and the others idle beside it. What is
# shorter than the second is not worth another thread.
CHUNK_SECONDS, SHARED_SECONDS = 0.01, 0.001
# Of a handler that is faster than this, one thread at a time asks what is known of its chunk: what arrives
# meanwhile is the next chunk, unless it is so many that they are worth a question of their own.
FAST, WORTH_ASKING = 0.001, 64
HELD_SECONDS = 0.5
MAX_WINDOW = 2000
CLAIMED_SECONDS = 0.2
MAX_CLAIM = 512


class Lane:
    """What has arrived for one handler. The pool's condition guards every attribute.

    Attributes:
        pace: seconds per event, smoothed; 0.0 until the first one ran.
        paused: nothing is begun and nothing asked for.
        asking: how many threads ask the store what is known of their chunk.
    """

    def __init__(self, handler: Handler, *, slots: int) -> None:
        self.handler = handler
        self.slots = slots
        self.backlog: deque[Attempt] = deque()
        self.batches: deque[list[Attempt]] = deque()
        self.collector: Collector[Attempt] | None = Collector(handler.batch) if handler.batch else None
        self.consumptions: list[Consumption] = []
        self.running = 0
        self.pace = 0.0
        self.paused = False
        self.asking = 0
        self.queued = False
        self.asked = self.window()

    @property
    def ready(self) -> bool:
        """Whether a thread could take something now."""
        if self.paused or self.running >= self.slots:
            return False
        gathers = self.asking and self.pace < FAST and len(self.backlog) < WORTH_ASKING
        return bool(self.batches) or (bool(self.backlog) and not gathers)

    def window(self) -> int:
        """How many messages to hold: what the slots can work off in half a second, at least two each.

        More would keep work from the other processes of the group, less would leave threads idle.
        """
        if self.paused:
            return 0
        if self.handler.batch:
            return min(max(4 * self.handler.batch.max_size, 4 * self.slots), 20_000)
        soon = int(self.slots * HELD_SECONDS / self.pace) if self.pace else 0
        return max(2 * self.slots, min(soon, MAX_WINDOW))

    @property
    def in_hand(self) -> int:
        """Messages that the broker delivered to it and that are not settled."""
        return sum(consumption.in_hand for consumption in self.consumptions)

    @property
    def share(self) -> int:
        """How many deliveries claimed in the store to hold: a full batch, or what the slots soon work off.

        Each of them counts a start more if this process dies, so of a slow handler it is two for each slot.
        """
        if self.handler.batch:
            return self.handler.batch.max_size
        soon = int(self.slots * CLAIMED_SECONDS / self.pace) if self.pace else 0
        return max(2 * self.slots, min(soon, MAX_CLAIM))

    def clear(self) -> list[Attempt]:
        """Take out everything that has not been begun."""
        waiting = [*self.backlog, *(attempt for batch in self.batches for attempt in batch)]
        waiting += self.collector.drain() if self.collector is not None else []
        self.backlog.clear()
        self.batches.clear()
        return waiting

    def next_job(self, threads: int) -> Job:
        """A full batch if there is one, else a chunk of the backlog."""
        thread = threading.current_thread()
        if self.batches:
            return Job(lane=self, thread=thread, waiting=deque(self.batches.popleft()), batch=True)
        size = self._chunk_size(threads)
        chunk = deque(self.backlog.popleft() for _ in range(min(size, len(self.backlog))))
        return Job(lane=self, thread=thread, waiting=chunk)

    def _chunk_size(self, threads: int) -> int:
        if self.collector is not None:
            return MAX_CHUNK
        if not self.pace:
            return 1
        share = max(-(-len(self.backlog) // threads), int(SHARED_SECONDS / self.pace))
        return max(1, min(MAX_CHUNK, share, int(CHUNK_SECONDS / self.pace)))


@attrs.frozen(kw_only=True)
class Running:
    """What one thread is busy with.

    Attributes:
        count: attempts that run at once: more than one of a batch.
        seconds: since they began.
        timeout: seconds they may run, None without limit.
        hung: they exceeded it, their outcome is settled, and the thread is lost until they return.
    """

    handler: str
    count: int
    seconds: float
    timeout: float | None
    hung: bool = False


@attrs.define(eq=False, kw_only=True)
class Job:
    """What one thread works at. Its lock decides who ends an attempt: the thread or the watchdog.

    Attributes:
        closed: the worker stops: what has not begun must not begin any more.
        taken: what ran was ended by somebody else; its thread's result is dropped.
    """

    lane: Lane
    thread: threading.Thread
    waiting: deque[Attempt]
    batch: bool = False
    running: list[Attempt] = attrs.field(factory=list)
    settled: list[Settled] = attrs.field(factory=list)
    since: float = 0.0
    closed: bool = False
    taken: bool = False
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def head(self) -> Attempt | None:
        """What ``next`` would begin."""
        with self.lock:
            return self.waiting[0] if self.waiting and not (self.closed or self.taken) else None

    def next(self) -> Attempt | None:
        """Begin the next attempt; None when there is none left for this thread."""
        with self.lock:
            if self.closed or self.taken or not self.waiting:
                return None
            attempt = self.waiting.popleft()
            self.running, self.since = [attempt], time.monotonic()
            return attempt

    def next_batch(self) -> list[Attempt]:
        """Begin everything that waits, as one batch; nothing if the worker stops."""
        with self.lock:
            if self.closed:
                return []
            self.running, self.since = list(self.waiting), time.monotonic()
            self.waiting.clear()
            return self.running

    def put(self, attempts: Sequence[Attempt]) -> None:
        """These wait to be begun."""
        with self.lock:
            self.waiting.extend(attempts)

    def close(self) -> None:
        """Begin nothing more."""
        with self.lock:
            self.closed = True

    def end(self, settled: Sequence[Settled]) -> bool:
        """What runs has ended like this; False if the watchdog was first and the result is dropped."""
        with self.lock:
            if self.taken:
                return False
            self.settled.extend(settled)
            self.running = []
            return True

    def report(self, now: float, *, hung: bool = False) -> Running | None:
        """What runs in it, None between two attempts."""
        with self.lock:
            if not self.running:
                return None
            handler = self.lane.handler
            return Running(
                handler=handler.name,
                count=len(self.running),
                seconds=now - self.since,
                timeout=handler.timeout,
                hung=hung,
            )

    def overdue(self, now: float) -> bool:
        """Whether what runs has exceeded the handler's timeout."""
        timeout = self.lane.handler.timeout
        return bool(self.running) and timeout is not None and now - self.since > timeout

    def take_over(self, *, overdue_at: float | None = None) -> list[Attempt] | None:
        """End the thread's say over this job: what runs now, or None if it ended meanwhile.

        Args:
            overdue_at: only if what runs now is overdue at this moment.
        """
        with self.lock:
            if self.taken or not self.running:
                return None
            if overdue_at is not None and not self.overdue(overdue_at):
                return None
            self.taken = True
            return self.running

    def finished(self) -> list[Attempt]:
        """What has ended and is to be settled."""
        return [attempt for attempt, _ in self.settled]

    def give_back(self) -> list[Attempt]:
        """What the thread has not begun."""
        with self.lock:
            rest = list(self.waiting)
            self.waiting.clear()
            return rest
