"""The worker's threads: fair lanes, one per handler, and a watchdog over what runs too long.

A lane holds what has arrived for its handler. Lanes with work and free slots take turns, so that a busy
handler cannot starve the others. A thread takes a chunk: many events of a fast handler, one of a slow one.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence

from eventdriven_sync.attempt import Attempt
from eventdriven_sync.batching import Batch
from eventdriven_sync.errors import Closed, HandlerTimeout, StoreError
from eventdriven_sync.executor import Executor
from eventdriven_sync.handlers import Handler
from eventdriven_sync.lanes import Job, Lane, Running
from eventdriven_sync.settling import Settler, Unsettled, release
from eventdriven_sync.watchdog import Watchdog

log = logging.getLogger(__name__)

# A handler that runs longer than this gives the rest of its chunk back to the lane.
SLOW = 0.1
# Seconds that a stopping worker takes beyond its grace to tell servers, which may be away, what is left.
LAST_WORD = 0.5


def finish_within(seconds: float, step: Callable[[], object]) -> bool:
    """Run a last step of a stopping worker, but wait no longer: the store's own deadline may be far.

    Returns whether it ended.
    """
    thread = threading.Thread(target=step, name="eventdriven-stop", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


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
        self._unsettled = Unsettled(
            lambda settled: settler.settle(settled), give_up=self._give_up, on_empty=self._all_settled
        )
        self._on_surplus = on_surplus
        # guards the lanes, _ready, _jobs, _unrun, _hung and _threads
        self._changed = threading.Condition()
        self._ready: deque[Lane] = deque()
        self._lanes: list[Lane] = []
        self._jobs: dict[int, Job] = {}
        self._unrun: list[Attempt] = []
        self._hung: dict[int, Job] = {}
        self._threads: set[threading.Thread] = set()
        self._started = 0
        self._stopping = False
        self._watchdog = Watchdog(self._look)

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
        """These have arrived. Returns at once; safe from any thread. Refused when the pool is stopping.

        A paused lane keeps what was claimed in the store, and sends back to the broker what came from there.
        """
        with self._changed:
            taken: Sequence[Attempt] = [] if self._stopping else attempts
            refused: Sequence[Attempt] = attempts if self._stopping else []
            self._unrun += refused
            if lane.paused and not self._stopping:
                taken = [attempt for attempt in attempts if attempt.delivery]
                refused = [attempt for attempt in attempts if not attempt.delivery]
            if first:
                lane.backlog.extendleft(reversed(taken))
            else:
                lane.backlog.extend(taken)
            self._enqueue(lane)
        _send_back(refused)

    def pause(self, lane: Lane) -> list[Attempt]:
        """Begin nothing more of a lane; what it has not begun is returned, for the caller to give back.

        What runs ends as usual, and what a thread has just taken may still be begun.
        """
        with self._changed:
            lane.paused = True
            waiting = lane.clear()
            for job in self._jobs.values():
                waiting += job.give_back() if job.lane is lane else []
            lane.asked = lane.window()
        _resize(lane)
        return waiting

    def resume(self, lane: Lane) -> None:
        """Begin what comes for the lane again."""
        with self._changed:
            lane.paused = False
            lane.asked = lane.window()
            self._enqueue(lane)
        _resize(lane)

    def busy(self) -> list[str]:
        """The deliveries that run now."""
        with self._changed:
            jobs = list(self._jobs.values())
        return [attempt.delivery_id for job in jobs for attempt in list(job.running)]

    def running(self) -> list[Running]:
        """What the threads are busy with, and what hangs beyond its timeout."""
        with self._changed:
            jobs = [job for job in self._jobs.values() if not job.taken]
            hung = list(self._hung.values())
        now = time.monotonic()
        found = [job.report(now) for job in jobs] + [job.report(now, hung=True) for job in hung]
        return [each for each in found if each is not None]

    def missing(self) -> int:
        """How many of its threads are gone that should take work; those that hang were replaced."""
        with self._changed:
            alive = sum(thread.is_alive() for thread in self._threads)
            return max(self._size - (alive - len(self._hung)), 0)

    @property
    def watched(self) -> bool:
        """Whether the watchdog over handlers that hang is alive."""
        return self._watchdog.alive

    @property
    def waiting(self) -> int:
        """How many attempts wait for a thread."""
        with self._changed:
            return sum(len(lane.backlog) + sum(map(len, lane.batches)) for lane in self._lanes)

    def drain(self, *, grace: float) -> list[Attempt]:
        """Begin nothing new, let what runs end within ``grace`` seconds; return what did not run or end.

        Messages that wait for a thread go back to the broker before that wait.
        """
        with self._changed:
            self._stopping = True
            waiting = self._clear_lanes()
            for job in self._jobs.values():
                job.close()
            self._changed.notify_all()
        _send_back(waiting)
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and self._unsettled.empty, timeout=grace)
            self._settler.give_up()
            jobs = list(self._jobs.values())
        finish_within(LAST_WORD / 2, lambda: self._interrupt(jobs))
        self._watchdog.stop()
        return self.leftovers()

    def leftovers(self) -> list[Attempt]:
        """What was refused or not begun since ``drain`` began and has not been returned yet."""
        with self._changed:
            self._clear_lanes()
            unrun, self._unrun = self._unrun, []
            return unrun

    def _interrupt(self, jobs: Sequence[Job]) -> None:
        """The grace is over: settle what these jobs have finished, give back what they have not."""
        taken = [job for job in jobs if self._unfinished(job)]
        for job in taken:
            self._unsettled.leave(job.settled)
        self._unsettled.work_off()

    def _unfinished(self, job: Job) -> bool:
        unfinished = job.take_over()
        if unfinished is None:
            return False
        _abandon(unfinished)
        with self._changed:
            self._unrun += [*unfinished, *job.give_back()]
        return True

    def _clear_lanes(self) -> list[Attempt]:
        waiting = [attempt for lane in self._lanes for attempt in lane.clear()]
        self._unrun += waiting
        return waiting

    def _enqueue(self, lane: Lane) -> None:
        """One thread is woken; it wakes the next one if it leaves something."""
        if lane.ready and not lane.queued:
            lane.queued = True
            self._ready.append(lane)
            self._changed.notify()

    def _start_thread(self, taken: Job | None = None) -> None:
        self._started += 1
        name = f"eventdriven-handler-{self._started}"
        thread = threading.Thread(target=self._work, args=(taken,), name=name, daemon=True)
        thread.start()
        with self._changed:
            self._threads = {each for each in self._threads if each.is_alive()} | {thread}

    def _work(self, taken: Job | None) -> None:
        """A thread's life: settle for the thread it replaces, if any, then take jobs until told to stop."""
        if taken:
            self._unsettled.leave(taken.settled)
            with self._changed:
                self._forget_job(taken)
            self._unsettled.work_off()
        while (job := self._take()) is not None:
            try:
                self._process(job)
            except BaseException as error:  # nothing that user code does may cost us the thread
                if not job.taken:
                    self._give_up([*job.give_back(), *job.running, *job.finished()], error)
            if not self._finished(job):
                return
            self._unsettled.work_off()

    def _all_settled(self) -> None:
        if self._stopping:
            with self._changed:
                self._changed.notify_all()

    def _give_up(self, attempts: Sequence[Attempt], error: BaseException) -> None:
        """These come again: they are neither acknowledged nor kept alive any longer."""
        if isinstance(error, (StoreError, Closed)):
            log.warning("Stopped while the event store was away, unrecorded deliveries come again: %s", error)
        else:
            log.error("A worker thread met an unexpected error; its messages come again", exc_info=error)
        self._settler.forget(attempts)

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
            lane.asking += 1
            self._jobs[id(job)] = job
            self._watchdog.wake()
            self._enqueue(lane)
            return job

    def _process(self, job: Job) -> None:
        arrived = job.give_back()
        try:
            for attempt in arrived:
                self._executor.read(attempt)
            admitted = self._settler.admit(arrived)
            if job.batch and not job.lane.handler.transactional:
                admitted = self._settler.begin(admitted)
        except BaseException:
            job.put(arrived)
            raise
        finally:
            self._asked(job.lane)
        job.put(admitted)
        if job.batch:
            self._run_batch(job)
        else:
            self._collect(job)
            self._run_each(job)
        if not job.taken:
            self._unsettled.leave(job.settled)

    def _asked(self, lane: Lane) -> None:
        with self._changed:
            lane.asking -= 1
            self._enqueue(lane)

    def _run_each(self, job: Job) -> None:
        began, count = time.monotonic(), 0
        while True:
            self._tell_begun(job)
            if (attempt := job.next()) is None:
                break
            settlement = self._executor.run(attempt)
            if not job.end([(attempt, settlement)]):
                return
            count += 1
        if count:
            self._learn(job.lane, (time.monotonic() - began) / count)

    def _tell_begun(self, job: Job) -> None:
        """If the next one is a suspect, have the store know that it begins; its timeout does not run yet.

        Of a transactional handler, or batch, the renewal right before it says so: ``Executor`` does that.
        """
        if job.lane.handler.transactional:
            return
        while (head := job.head()) is not None and head.is_suspect:
            if not self._settler.begin([head]):
                job.put([attempt for attempt in job.give_back() if attempt is not head])

    def _run_batch(self, job: Job) -> None:
        attempts = job.next_batch()
        if not attempts:
            return
        batch = Batch(attempts[0].key, [attempt.payload for attempt in attempts])
        settlements = self._executor.run_batch(attempts, batch)
        job.end(list(zip(attempts, settlements, strict=True)))

    def _collect(self, job: Job) -> None:
        """Batch handlers: put what can be read into its bucket; only what cannot stays with the job."""
        collector = job.lane.collector
        if collector is None or job.closed:
            return
        attempts = job.give_back()
        for attempt in attempts:
            self._executor.group(attempt)
        job.put([attempt for attempt in attempts if attempt.fault])
        with self._changed:
            for attempt in attempts:
                if not attempt.fault and (full := collector.add(attempt.key, attempt)):
                    job.lane.batches.append(full)
            self._enqueue(job.lane)

    def _learn(self, lane: Lane, seconds: float) -> None:
        """Smooth the pace and ask the broker for what the lane can work off soon."""
        with self._changed:
            lane.pace = seconds if not lane.pace else 0.7 * lane.pace + 0.3 * seconds
            window = lane.window()
            changed = not lane.asked / 1.5 < window < lane.asked * 1.5
            lane.asked = window if changed else lane.asked
        if changed:
            _resize(lane)

    def _finished(self, job: Job) -> bool:
        """Whether the thread goes on; False if it was replaced while its handler hung."""
        with self._changed:
            if job.taken:
                self._hung.pop(id(job), None)
                return False
            rest = job.give_back()
            self._unrun += rest
            self._forget_job(job)
        _send_back(rest)
        return True

    def _forget_job(self, job: Job) -> None:
        self._jobs.pop(id(job), None)
        job.lane.running -= 1
        self._enqueue(job.lane)
        if self._stopping:
            self._changed.notify_all()

    def _look(self) -> bool:
        """Replace threads that hang, begin batches that are due; whether anybody works or gathers."""
        with self._changed:
            jobs = list(self._jobs.values())
            for lane in self._lanes:
                if lane.collector is not None and not self._stopping:
                    lane.batches.extend(lane.collector.due())
                    self._enqueue(lane)
            collects = any(lane.collector.holds for lane in self._lanes if lane.collector)
        now = time.monotonic()
        for job in jobs:
            if job.overdue(now):
                self._replace(job, now)
            elif job.waiting and job.running and now - job.since > SLOW:
                self.offer(job.lane, job.give_back(), first=True)
        return bool(jobs) or collects

    def _replace(self, job: Job, now: float) -> None:
        """The handler hangs: record that with its stack, and let a new thread take the slot."""
        stack = _stack_of(job.thread)
        running = job.take_over(overdue_at=now)
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
            self._hung[id(job)] = job
            self._start_thread(taken=job)
        if len(self._hung) > max(2 * self._size, 8):
            self._on_surplus()


def _resize(lane: Lane) -> None:
    """Ask the broker for what the lane has room for."""
    for consumption in lane.consumptions:
        consumption.resize(lane.asked)


def _send_back(attempts: Sequence[Attempt]) -> None:
    """To the broker, at once; what was claimed in the store goes back there in good order, later."""
    release([attempt for attempt in attempts if not attempt.delivery])


def _abandon(attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        if attempt.handling:
            attempt.handling.abandoned = True


def _stack_of(thread: threading.Thread) -> str:
    # The interpreter makes frame objects under a lock that starting a thread needs as well. A collection in
    # there may let go of the GIL, and both wait for ever: https://github.com/python/cpython/issues/106883
    collects = gc.isenabled()
    gc.disable()
    try:
        frame = sys._current_frames().get(thread.ident or 0)
    finally:
        if collects:
            gc.enable()
    return "".join(traceback.format_stack(frame)) if frame else ""
