"""The worker: runs the handlers of a bus in threads until it is told to stop."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING

from eventdriven_sync.attempt import Attempt, attempts_of
from eventdriven_sync.broker import ConsumerSpec, Consumption, Incoming
from eventdriven_sync.config import check_number
from eventdriven_sync.confirmed import recorder_of
from eventdriven_sync.counting import Counting
from eventdriven_sync.envelope import utcnow
from eventdriven_sync.errors import (
    BrokerUnavailable,
    Closed,
    ConfigurationError,
    EventDrivenError,
    StoreError,
    shorten,
)
from eventdriven_sync.executor import Executor
from eventdriven_sync.greenlets import refuse_greenlets
from eventdriven_sync.group_retries import GroupRetries
from eventdriven_sync.handlers import Handler, check_count
from eventdriven_sync.health import Health
from eventdriven_sync.heap import calm_collector
from eventdriven_sync.lanes import Lane
from eventdriven_sync.pool import LAST_WORD, Pool, finish_within
from eventdriven_sync.pulse import Pulse
from eventdriven_sync.reconciler import Reconciler
from eventdriven_sync.records import WorkerRecord
from eventdriven_sync.recovery import RecoveryLane
from eventdriven_sync.settling import Leases, Settler, release
from eventdriven_sync.stats import Stats
from eventdriven_sync.vitals import Vitals

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

log = logging.getLogger(__name__)

HEARTBEAT = 5.0
# Between two looks at which handlers are paused.
OBEYING = 2.0
DEFAULT_GRACE = 25.0
# Each of the last steps of a stop gets so much, also when the time is over.
LEAST = 0.1
EXIT_HUNG = 70
EXIT_HARD = 130


class Worker:
    """Runs handlers of a bus: all of them, those of some groups, or some by name.

    Several workers, in threads, processes or on machines, share the work of each group.

    Args:
        bus: the bus with its handlers.
        groups: names of groups; with ``handlers`` both are taken together.
        handlers: names ``Group.handler``.
        threads: how many attempts run at once, 1 to 1,024.
        grace: seconds that running handlers get to end when the worker stops.

    Raises:
        ConfigurationError: no such group or handler, nothing to run, or an option outside its range.
        PayloadNotSerializable: an event class declares a field that no payload can hold.
    """

    def __init__(
        self,
        bus: EventBus,
        *,
        groups: Sequence[str] | None = None,
        handlers: Sequence[str] | None = None,
        threads: int = 8,
        grace: float = DEFAULT_GRACE,
    ) -> None:
        check_count(threads, field="threads", high=1024)
        check_number(grace, field="grace", low=0, high=3600)
        self._bus = bus
        self._chosen = _choose(bus, groups, handlers)
        self._threads = threads
        self._grace = grace
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        # Not an Event: its lock may be held by the very thread that a signal interrupts.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._exit_code = 0
        self._signals = 0
        self._consumptions: list[Consumption] = []
        self._running = self._works = False
        self._until, self._signed_off = 0.0, True
        self._build()

    def start(self) -> Worker:
        """Connect, subscribe and begin; returns when the worker runs. A broker that is down is waited for.

        Raises:
            StoreUnavailable: MongoDB cannot be reached.
            StreamConflict, UnsafeStream, ConsumerConflict: NATS has other settings than ours.
            ConfigurationError: it was started before, or gevent or eventlet has patched this process.
        """
        refuse_greenlets()
        if self._running:
            raise ConfigurationError("this worker was started before; build a new Worker")
        self._running = True
        self._bus.open()
        consumers = self._declare()
        self._pool.start()
        self._obey()
        for handler, specs in consumers:
            self._consume(handler, specs)
        self._recovery.start()
        self._recorder.start()
        self._reconciler.start()
        self._beat()
        self._heartbeat.start()
        self._works = True
        log.info(
            "Worker %s runs %s in %d threads",
            self.id,
            ", ".join(sorted(self._chosen)),
            self._threads,
            extra={"action": "worker_started"},
        )
        return self

    @calm_collector()
    def run(self) -> int:
        """Start, wait for SIGTERM or SIGINT (or ``stop`` from another thread), stop; returns the exit code.

        The first signal lets running handlers end within the grace period, a second one ends the process at
        once. To be called in the main thread. A signal also disconnects the bus from NATS. Until it returns
        the garbage collector looks less often (docs/operating.md).
        """
        previous = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            try:
                self.start()
                self._wake.get()
            finally:
                self.stop()
                if self._signals:
                    self._disconnect()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._exit_code

    def stop(self, *, grace: float | None = None) -> None:
        """Stop in good order: pull no more, let running handlers end, give the rest back at once.

        Args:
            grace: seconds for running handlers, the worker's own by default. A handler that runs longer is
                left behind: its delivery is given back and its result will be dropped. Telling the
                servers takes a second more at most, whether they answer or not.
        """
        self._wake.put(None)
        if not self._running or self._stopped.is_set():
            return
        self._stopped.set()
        seconds = self._grace if grace is None else grace
        self._until = time.monotonic() + seconds + LAST_WORD
        for consumption in self._consumptions:
            consumption.stop()
        self._recovery.stop()
        unrun = self._pool.drain(grace=seconds)
        self._signed_off = finish_within(_left(self._until), lambda: self._sign_off(unrun))
        self._bus.flush(timeout=_left(self._until))
        log.info("Worker %s stopped", self.id, extra={"action": "worker_stopped"})

    def _disconnect(self) -> None:
        """The process is about to end, and at its exit nobody should wait for a server again."""
        if not self._signed_off:
            # Whoever still waits for the store keeps the driver's threads going, for which the exit waits.
            finish_within(LEAST, self._bus.store.close)
        self._bus.broker.close(timeout=_left(self._until))

    def _sign_off(self, unrun: Sequence[Attempt]) -> None:
        """Give back what did not run, and leave; with the store away leases end by themselves."""
        self._give_back(unrun)
        self._recovery.join(timeout=LAST_WORD)
        # What the recovery lane was claiming when it was told to stop, and what the broker sent meanwhile.
        self._give_back(self._pool.leftovers())
        self._recorder.stop(timeout=LAST_WORD)
        self._reconciler.stop(timeout=LAST_WORD)
        if self._heart.ident:
            self._heart.join(timeout=LAST_WORD)
            self._say_goodbye()

    def health(self, *, timeout: float = 2.0) -> Health:
        """How this worker is: its threads and loops, both servers, and whether its work moves.

        Work stalls when it waits and nothing was settled for ``settings.stall_after`` seconds, which only
        whoever asks again and again can see: the time begins when a call finds that something waits. It
        takes ``timeout`` seconds at most (0.05 to 60) and never raises for what servers answer.
        """
        idle = "" if self._works else "the worker has not started"
        return self._vitals.health(timeout=timeout, idle="it stops" if self._stopped.is_set() else idle)

    def busy(self) -> list[str]:
        """The ids of the deliveries that run now."""
        return self._pool.busy()

    def _build(self) -> None:
        settings, store = self._bus.settings, self._bus.store
        self._stopped = threading.Event()
        self._stats = Stats(source=self.id)
        self._leases = Leases()
        self._settler = Settler(
            store=store,
            leases=self._leases,
            stats=self._stats,
            lease=settings.lease,
            worker=self.id,
            dispatch=self._bus.dispatch,
            expect=lambda seconds: self._recovery.expect(seconds),
        )
        executor = Executor(
            codec=self._bus.codec,
            store=store,
            settings=settings,
            worker=self.id,
            around=self._bus.handler_context,
        )
        self._pool = Pool(
            threads=self._threads, executor=executor, settler=self._settler, on_surplus=self._on_surplus
        )
        for handler in self._chosen.values():
            for kind in handler.event_types:
                self._bus.codec.check(kind)
        self._lanes: dict[str, Lane] = {name: self._pool.lane(h) for name, h in self._chosen.items()}
        self._recovery = RecoveryLane(
            store=store,
            pool=self._pool,
            lanes=self._lanes,
            leases=self._leases,
            worker=self.id,
            lease=settings.lease,
            poll_every=settings.poll_every,
            max_lost=settings.max_lost,
        )
        self._recorder = recorder_of(self._bus)
        self._reconciler = self._make_reconciler()
        self._heart = threading.Thread(target=self._heartbeats, name="eventdriven-heartbeat", daemon=True)
        self._heartbeat = Pulse(self._heart, pause=HEARTBEAT)
        self._began_at: datetime = utcnow()
        self._vitals = self._make_vitals()

    def _make_reconciler(self) -> Reconciler:
        store = self._bus.store
        counting = Counting(store, unrecorded_since=self._recorder.unrecorded_since)
        return Reconciler(
            store=store,
            broker=self._bus.broker,
            settings=self._bus.settings,
            holder=self.id,
            chores=[counting.round, GroupRetries(store).round],
        )

    def _make_vitals(self) -> Vitals:
        return Vitals(
            self._bus,
            threads=self._threads,
            pool=self._pool,
            lanes=self._lanes,
            leases=self._leases,
            stats=self._stats,
            loops={
                "recovery lane": self._recovery.pulse,
                "recorder": self._recorder.pulse,
                "reconciler": self._reconciler.pulse,
                "heartbeat": self._heartbeat,
            },
        )

    def _declare(self) -> list[tuple[Handler, list[ConsumerSpec]]]:
        consumers = [(handler, self._bus.subscribe([handler])) for handler in self._chosen.values()]
        specs = [spec for _, found in consumers for spec in found]
        try:
            self._bus.broker.declare(specs, timeout=self._bus.settings.broker_timeout)
        except BrokerUnavailable as error:
            log.warning("NATS cannot be reached yet, the worker waits for it: %s", error)
            self._bus.broker.declare_later(specs)
        return consumers

    def _consume(self, handler: Handler, specs: Sequence[ConsumerSpec]) -> None:
        lane = self._lanes[handler.name]
        for spec in specs:
            arrival = _Arrival(self._pool, lane)
            consumption = self._bus.broker.consume(spec, arrival.deliver, window=lane.window())
            arrival.connect(consumption)
            lane.consumptions.append(consumption)
            self._consumptions.append(consumption)

    def _give_back(self, attempts: Sequence[Attempt]) -> None:
        release(attempts)
        claimed: dict[str, list[Attempt]] = {}
        for attempt in attempts:
            if attempt.delivery:
                claimed.setdefault(attempt.token, []).append(attempt)
        for same in claimed.values():
            self._leases.drop(same)
        try:
            for token, same in claimed.items():
                self._bus.store.deliveries.release([a.delivery_id for a in same], token=token)
        except (StoreError, Closed) as error:
            log.warning("Claimed deliveries are given back when their leases end: %s", error)

    def _heartbeats(self) -> None:
        beaten = time.monotonic()
        while not self._stopped.wait(OBEYING):
            self._heartbeat.beat()
            try:
                self._obey()
                if time.monotonic() - beaten >= HEARTBEAT:
                    beaten = time.monotonic()
                    self._beat()
            except Exception:
                log.exception("The worker's heartbeat met an unexpected error and goes on")

    def _obey(self) -> None:
        """Pause what a person paused since the last look, and resume the rest."""
        try:
            records = self._bus.store.directory.handlers()
        except (StoreError, Closed) as error:
            log.warning("Which handlers are paused could not be read: %s", error)
            return
        paused = {record.name for record in records if record.paused}
        for name, lane in self._lanes.items():
            if name in paused and not lane.paused:
                self._give_back(self._pool.pause(lane))
                log.info("Paused %s", name, extra={"action": "handler_paused", "handler": name})
            elif name not in paused and lane.paused:
                self._pool.resume(lane)
                log.info("Resumed %s", name, extra={"action": "handler_resumed", "handler": name})

    def _beat(self) -> None:
        try:
            self._bus.store.directory.heartbeat(
                WorkerRecord(
                    id=self.id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    handlers=tuple(sorted(self._chosen)),
                    threads=self._threads,
                    running=tuple(self._pool.busy()[:100]),
                    started_at=self._began_at,
                    seen_at=utcnow(),
                )
            )
            self._bus.store.directory.write_stats(self._stats.drain())
            self._heartbeat.well()
        except EventDrivenError as error:
            log.warning("The worker's heartbeat was not stored: %s", error)

    def _say_goodbye(self) -> None:
        try:
            self._bus.store.directory.write_stats(self._stats.drain())
            self._bus.store.directory.forget_worker(self.id)
        except (StoreError, Closed) as error:
            log.info("The worker could not sign off: %s", error)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            os._exit(EXIT_HARD)
        self._wake.put(None)

    def _on_surplus(self) -> None:
        """Hung threads cannot be stopped; a process full of them should be replaced."""
        log.critical("Too many handlers hang beyond their timeout; this worker process ends to be replaced")
        self._exit_code = EXIT_HUNG
        self._wake.put(None)


class _Arrival:
    """Wraps arriving messages as attempts of a lane. The first may come before ``consume`` has returned."""

    def __init__(self, pool: Pool, lane: Lane) -> None:
        self._pool = pool
        self._lane = lane
        self._lock = threading.Lock()  # guards _consumption and _early
        self._consumption: Consumption | None = None
        self._early: list[Incoming] = []

    def connect(self, consumption: Consumption) -> None:
        """From now on it is known who acknowledges them."""
        with self._lock:
            self._consumption = consumption
            early, self._early = self._early, []
        if early:
            self.deliver(early)

    def deliver(self, messages: list[Incoming]) -> None:
        """Called on the broker's thread."""
        with self._lock:
            consumption = self._consumption
            if consumption is None:
                self._early.extend(messages)
                return
        self._pool.offer(self._lane, attempts_of(self._lane.handler, messages, consumption))


def _left(until: float) -> float:
    """Seconds for one of the last steps."""
    return min(max(until - time.monotonic(), LEAST), LAST_WORD)


def _choose(
    bus: EventBus, groups: Sequence[str] | None, handlers: Sequence[str] | None
) -> dict[str, Handler]:
    known = bus.handlers
    if groups is None and handlers is None:
        chosen = dict(known)
    else:
        chosen = {
            name: h for name, h in known.items() if h.group in (groups or ()) or name in (handlers or ())
        }
        _check_known(groups or (), {handler.group for handler in known.values()}, "group")
        _check_known(handlers or (), set(known), "handler")
    if not chosen:
        raise ConfigurationError(
            "this worker has no handlers: import the modules that declare them before building the Worker"
        )
    return chosen


def _check_known(names: Sequence[str], known: set[str], what: str) -> None:
    if isinstance(names, str):
        raise ConfigurationError(f"{what}s is the text {names!r}: give a list", field=f"{what}s")
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"no {what} {shorten(name)} in this bus; it has {', '.join(sorted(known)) or 'none'}",
                field=what,
            )
