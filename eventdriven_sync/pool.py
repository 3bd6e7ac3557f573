"""The worker's threads: fair lanes, one per handler, and a watchdog over what runs too long.

A lane holds what has arrived for its handler. Lanes with work and free slots take turns, so that a busy
handler cannot starve the others. A thread takes a chunk: many events of a fast handler, one of a slow one.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from eventdriven_sync.batching import Batch, Collector
from eventdriven_sync.broker import Consumption
from eventdriven_sync.errors import HandlerTimeout, StoreError
from eventdriven_sync.executor import Attempt, Executor
from eventdriven_sync.handlers import Handler
from eventdriven_sync.settling import Settled, Settler, forget

log = logging.getLogger(__name__)

TICK = 0.05
MAX_CHUNK = 64
# Work a thread may take at once, in seconds of handler time: longer, and the others idle beside it.
CHUNK_SECONDS = 0.002
HELD_SECONDS = 0.5
MAX_WINDOW = 2000
# A handler that runs longer than this gives the rest of its chunk back to the lane.
SLOW = 0.1


class Lane:
    """What has arrived for one handler. The pool's condition guards every attribute.

    Attributes:
        pace: seconds per event, smoothed; 0.0 until the first one ran.
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
        self.queued = False
        self.asked = self.window()

    @property
    def ready(self) -> bool:
        """Whether a thread could take something now."""
        return bool(self.backlog or self.batches) and self.running < self.slots

    def window(self) -> int:
        """How many messages to hold: what the slots can work off in half a second, at least two each.

        More would keep work from the other processes of the group, less would leave threads idle.
        """
        if self.handler.batch:
            return min(max(4 * self.handler.batch.max_size, 4 * self.slots), 20_000)
        soon = int(self.slots * HELD_SECONDS / self.pace) if self.pace else 0
        return max(2 * self.slots, min(soon, MAX_WINDOW))

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
        share = -(-len(self.backlog) // threads)
        paced = int(CHUNK_SECONDS / self.pace) if self.pace else 1
        return max(1, min(MAX_CHUNK, share, paced))


@attrs.define(eq=False, kw_only=True)
class Job:
    """What one thread works at. Its lock decides who ends an attempt: the thread or the watchdog."""

    lane: Lane
    thread: threading.Thread
    waiting: deque[Attempt]
    batch: bool = False
    running: list[Attempt] = attrs.field(factory=list)
    settled: list[Settled] = attrs.field(factory=list)
    since: float = 0.0
    taken: bool = False
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def next(self) -> Attempt | None:
        """Begin the next attempt; None when there is none left for this thread."""
        with self.lock:
            if self.taken or not self.waiting:
                return None
            attempt = self.waiting.popleft()
            self.running, self.since = [attempt], time.monotonic()
            return attempt

    def begin(self, attempts: Sequence[Attempt]) -> None:
        """Begin a whole batch."""
        with self.lock:
            self.running, self.since = list(attempts), time.monotonic()

    def end(self, settled: Sequence[Settled]) -> bool:
        """What runs has ended like this; False if the watchdog was first and the result is dropped."""
        with self.lock:
            if self.taken:
                return False
            self.settled.extend(settled)
            self.running = []
            return True

    def overdue(self, now: float) -> bool:
        """Whether what runs has exceeded the handler's timeout."""
        timeout = self.lane.handler.timeout
        return bool(self.running) and timeout is not None and now - self.since > timeout

    def take_over(self) -> list[Attempt] | None:
        """End the thread's say over this job: what runs now, or None if it ended meanwhile."""
        with self.lock:
            if self.taken or not self.running:
                return None
            self.taken = True
            return self.running

    def give_back(self) -> list[Attempt]:
        """What the thread has not begun."""
        with self.lock:
            rest = list(self.waiting)
            self.waiting.clear()
            return rest


class Pool:
    """Threads that take from lanes, run handlers and settle.

    Args:
        threads: how many attempts run at once.
        on_surplus: called when so many threads hang beyond their timeout that the process should be replaced.
    """

    def __init__(
        self,
        *,
        threads: int,
        executor: Executor,
        settler: Settler,
        on_surplus: Callable[[], None] = lambda: None,
    ) -> None:
        self._size = threads
        self._executor = executor
        self._settler = settler
        self._on_surplus = on_surplus
        self._changed = threading.Condition()  # guards the lanes, _ready, _jobs and _hung
        self._ready: deque[Lane] = deque()
        self._lanes: list[Lane] = []
        self._jobs: dict[int, Job] = {}
        self._hung = 0
        self._started = 0
        self._stopping = False
        self._stopped = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="eventdriven-watchdog", daemon=True)

    def lane(self, handler: Handler) -> Lane:
        """A new lane for a handler."""
        lane = Lane(handler, slots=min(handler.threads or self._size, self._size))
        with self._changed:
            self._lanes.append(lane)
        return lane

    def start(self) -> None:
        """Start the threads."""
        for _ in range(self._size):
            self._start_thread()
        self._watchdog.start()

    def offer(self, lane: Lane, attempts: Sequence[Attempt], *, first: bool = False) -> None:
        """These have arrived. Returns at once; safe from any thread."""
        with self._changed:
            if first:
                lane.backlog.extendleft(reversed(attempts))
            else:
                lane.backlog.extend(attempts)
            self._enqueue(lane, len(attempts))

    def busy(self) -> list[str]:
        """The deliveries that run now."""
        with self._changed:
            jobs = list(self._jobs.values())
        return [attempt.delivery_id for job in jobs for attempt in list(job.running)]

    @property
    def waiting(self) -> int:
        """How many attempts wait for a thread."""
        with self._changed:
            return sum(len(lane.backlog) + sum(map(len, lane.batches)) for lane in self._lanes)

    def drain(self, *, grace: float) -> list[Attempt]:
        """Begin nothing new, let what runs end within ``grace`` seconds; return what did not run or end."""
        with self._changed:
            self._stopping = True
            unrun = self._clear_lanes()
            self._changed.notify_all()
            for job in self._jobs.values():
                unrun += job.give_back()
            self._changed.wait_for(lambda: not self._jobs, timeout=grace)
            self._settler.give_up()
            jobs = list(self._jobs.values())
            unrun += self._clear_lanes()
        for job in jobs:
            unrun += self._interrupt(job)
        self._stopped.set()
        self._watchdog.join(timeout=1.0)
        return unrun

    def _interrupt(self, job: Job) -> list[Attempt]:
        """The grace is over: settle what this job has finished, return what it has not."""
        unfinished = job.take_over()
        if unfinished is None:
            return []
        _abandon(unfinished)
        self._settler.settle(job.settled)
        return [*unfinished, *job.give_back()]

    def _clear_lanes(self) -> list[Attempt]:
        unrun: list[Attempt] = []
        for lane in self._lanes:
            unrun += lane.backlog
            unrun += [attempt for batch in lane.batches for attempt in batch]
            unrun += lane.collector.drain() if lane.collector is not None else []
            lane.backlog.clear()
            lane.batches.clear()
        return unrun

    def _enqueue(self, lane: Lane, count: int = 1) -> None:
        if lane.ready and not lane.queued:
            lane.queued = True
            self._ready.append(lane)
        self._changed.notify(min(count, self._size))

    def _start_thread(self, first: Callable[[], None] | None = None) -> None:
        self._started += 1
        name = f"eventdriven-handler-{self._started}"
        thread = threading.Thread(target=self._work, args=(first,), name=name, daemon=True)
        thread.start()

    def _work(self, first: Callable[[], None] | None) -> None:
        if first:
            first()
        while (job := self._take()) is not None:
            try:
                self._process(job)
            except StoreError as error:
                log.warning(
                    "Stopped while the event store was away, unrecorded deliveries come again: %s", error
                )
            except Exception:
                log.exception("A worker thread met an unexpected error; its messages come again")
                forget([*job.waiting, *job.running, *(attempt for attempt, _ in job.settled)])
            if not self._finished(job):
                return

    def _take(self) -> Job | None:
        """The next chunk of the lane whose turn it is; blocks until there is one, None when stopping."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._stopping)
            if self._stopping:
                return None
            lane = self._ready.popleft()
            lane.queued = False
            job = lane.next_job(self._size)
            lane.running += 1
            self._jobs[id(job)] = job
            self._enqueue(lane)
            return job

    def _process(self, job: Job) -> None:
        if job.batch:
            self._run_batch(job)
        else:
            for attempt in job.waiting:
                self._executor.read(attempt)
            job.waiting = deque(self._settler.admit(job.waiting))
            self._collect(job)
            self._run_each(job)
        if not job.taken:
            self._settler.settle(job.settled)

    def _run_each(self, job: Job) -> None:
        began, count = time.monotonic(), 0
        while (attempt := job.next()) is not None:
            settlement = self._executor.run(attempt)
            if not job.end([(attempt, settlement)]):
                return
            count += 1
        if count:
            self._learn(job.lane, (time.monotonic() - began) / count)

    def _run_batch(self, job: Job) -> None:
        attempts = list(job.waiting)
        job.waiting.clear()
        options = job.lane.handler.batch
        assert options is not None
        key = options.group_by(attempts[0].payload) if options.group_by else None
        job.begin(attempts)
        batch = Batch(key, [attempt.payload for attempt in attempts])
        settlements = self._executor.run_batch(attempts, batch)
        job.end(list(zip(attempts, settlements, strict=True)))

    def _collect(self, job: Job) -> None:
        """Batch handlers: put what can be read into its bucket; only what cannot stays with the job."""
        collector = job.lane.collector
        if collector is None:
            return
        keyed = [(attempt, self._key(job, attempt)) for attempt in job.give_back()]
        with self._changed:
            for attempt, key in keyed:
                if attempt.fault:
                    job.waiting.append(attempt)
                elif key is not _NO_KEY:
                    full = collector.add(key, attempt)
                    job.lane.batches.extend([full] if full else [])
            self._enqueue(job.lane, len(job.lane.batches))

    def _key(self, job: Job, attempt: Attempt) -> Any:
        """What ``group_by`` says; if it fails, that is how the attempt ends."""
        group_by = job.lane.handler.batch and job.lane.handler.batch.group_by
        if not group_by or attempt.fault:
            return None
        try:
            key = group_by(attempt.payload)
            hash(key)
        except Exception as error:  # the user's function
            attempt.begin()
            job.end([(attempt, self._executor.settlement(attempt, error))])
            return _NO_KEY
        return key

    def _learn(self, lane: Lane, seconds: float) -> None:
        """Smooth the pace and ask the broker for what the lane can work off soon."""
        with self._changed:
            lane.pace = seconds if not lane.pace else 0.7 * lane.pace + 0.3 * seconds
            window = lane.window()
            changed = not lane.asked / 1.5 < window < lane.asked * 1.5
            lane.asked = window if changed else lane.asked
        if changed:
            for consumption in lane.consumptions:
                consumption.resize(window)

    def _finished(self, job: Job) -> bool:
        """Whether the thread goes on; False if it was replaced while its handler hung."""
        with self._changed:
            if job.taken:
                return False
            self._forget_job(job)
            return True

    def _forget_job(self, job: Job) -> None:
        self._jobs.pop(id(job), None)
        job.lane.running -= 1
        self._enqueue(job.lane)
        if self._stopping:
            self._changed.notify_all()

    def _watch(self) -> None:
        while not self._stopped.wait(TICK):
            with self._changed:
                jobs = list(self._jobs.values())
                for lane in self._lanes:
                    if lane.collector is not None and not self._stopping:
                        lane.batches.extend(lane.collector.due())
                        self._enqueue(lane, len(lane.batches))
            now = time.monotonic()
            for job in jobs:
                if job.overdue(now):
                    self._replace(job)
                elif job.waiting and job.running and now - job.since > SLOW:
                    self.offer(job.lane, job.give_back(), first=True)

    def _replace(self, job: Job) -> None:
        """The handler hangs: record that with its stack, and let a new thread take the slot."""
        stack = _stack_of(job.thread)
        running = job.take_over()
        if running is None:
            return
        _abandon(running)
        error = HandlerTimeout(
            f"{job.lane.handler.name} ran longer than its timeout of {job.lane.handler.timeout:g} s",
            stack=stack,
            limit=job.lane.handler.timeout,
        )
        job.settled += [(attempt, self._executor.settlement(attempt, error)) for attempt in running]
        self.offer(job.lane, job.give_back(), first=True)
        with self._changed:
            self._hung += 1
            self._start_thread(first=lambda: self._settle_taken(job))
        if self._hung > max(2 * self._size, 8):
            self._on_surplus()

    def _settle_taken(self, job: Job) -> None:
        self._settler.settle(job.settled)
        with self._changed:
            self._forget_job(job)


_NO_KEY = object()


def _abandon(attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        if attempt.handling:
            attempt.handling.abandoned = True


def _stack_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else ""
