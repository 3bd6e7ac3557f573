"""Admitting and settling: what the store knows before a handler runs, and what it must know before an ack.

While the store cannot be reached nothing new runs and nothing is acknowledged: both steps wait for it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import attrs
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_base

from eventdriven_sync.attempt import Attempt
from eventdriven_sync.broker import Consumption, Incoming
from eventdriven_sync.envelope import Envelope, accepted_now
from eventdriven_sync.errors import (
    PublishOutcomeUnknown,
    StoreError,
    StorePermissionDenied,
    StoreUnavailable,
)
from eventdriven_sync.executor import failure_of
from eventdriven_sync.outcome import Dead, Discarded, Done, RetryAt
from eventdriven_sync.records import Delivery, Settlement
from eventdriven_sync.stats import Stats
from eventdriven_sync.store import Store

log = logging.getLogger(__name__)

# What is waited for, however long it takes. Any other error of the store is believed when it is repeated.
_PASSING = (StoreUnavailable, PublishOutcomeUnknown, StorePermissionDenied)
REFUSALS = 5
# Outcomes of one write; how many make a second thread encode theirs while the first waits for the server;
# and how many may wait before threads do.
MAX_BATCH = 500
WORTH_ANOTHER = 100
MAX_WAITING = 2000
NEVER = float("inf")

T = TypeVar("T")
Settled = tuple[Attempt, Settlement]


class Leases:
    """What this process holds in the store: by token, the attempts whose lease must be renewed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._held: dict[str, dict[str, Attempt]] = {}
        self._counts = Counter[str]()  # by handler: they are asked for a hundred times a second

    def hold(self, attempts: Sequence[Attempt]) -> None:
        """Renew for these from now on."""
        with self._lock:
            for attempt in attempts:
                same = self._held.setdefault(attempt.token, {})
                self._counts[attempt.handler.name] += attempt.delivery_id not in same
                same[attempt.delivery_id] = attempt

    def drop(self, attempts: Sequence[Attempt]) -> None:
        """These are settled or given back."""
        with self._lock:
            for attempt in attempts:
                same = self._held.get(attempt.token, {})
                self._counts[attempt.handler.name] -= attempt.delivery_id in same
                same.pop(attempt.delivery_id, None)
                if not same:
                    self._held.pop(attempt.token, None)

    def lost(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Those whose delivery was claimed in the store and is no longer ours."""
        with self._lock:
            return [a for a in attempts if a.delivery and a.delivery_id not in self._held.get(a.token, ())]

    def held(self) -> dict[str, dict[str, Attempt]]:
        """A copy of what is held, by token and delivery id."""
        with self._lock:
            return {token: dict(attempts) for token, attempts in self._held.items()}

    def by_handler(self) -> Counter[str]:
        """How many are held for each handler."""
        with self._lock:
            return +self._counts

    def __len__(self) -> int:
        return self.by_handler().total()


class Settler:
    """Admits attempts before they run and settles them after. Thread-safe.

    Args:
        dispatch: sends stored events to the broker; never blocks.
        expect: hears in how many seconds something that was just recorded is due again.
    """

    def __init__(
        self,
        *,
        store: Store,
        leases: Leases,
        stats: Stats,
        lease: float,
        worker: str,
        dispatch: Callable[[Sequence[Envelope]], None],
        expect: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._store = store
        self._leases = leases
        self._stats = stats
        self._lease = lease
        self._worker = worker
        self._dispatch = dispatch
        self._expect = expect
        self._stopping = threading.Event()

    def give_up(self) -> None:
        """Wait no longer for a store that does not answer: what is not recorded is not acknowledged."""
        self._stopping.set()

    def admit(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Those that should run. Messages whose delivery has a record are acknowledged: the store owns it.

        A message the broker delivered before gets its start counted in the store first, so that one that
        kills its worker ends as a dead letter and not in a loop. What lost its lease while it waited here
        does not run: somebody else may have handled it.
        """
        gone = self._leases.lost(attempts)
        asked = [attempt for attempt in attempts if not attempt.checked]
        ids = [attempt.delivery_id for attempt in asked]
        states = self._until_back(lambda: self._store.deliveries.states(ids)) if asked else {}
        if states:
            gone += [a for a in asked if a.delivery_id in states]
        if gone:
            _finish(gone)
            self._stats.touch({attempt.handler.name for attempt in gone})
        refused = {id(a) for a in gone}
        refused |= {id(a) for a in self._refused([a for a in asked if id(a) not in refused])}
        for attempt in asked:
            attempt.checked = True
        return [a for a in attempts if id(a) not in refused] if refused else list(attempts)

    def settle(self, settled: Sequence[Settled]) -> None:
        """Record the outcomes, then acknowledge; what was fenced off is dropped without an ack."""
        if not settled:
            return
        stamped: list[Settled] = []
        try:
            # Stamped anew at each try: the store may have been away for long.
            results = self._until_back(lambda: self._store.deliveries.settle(self._stamp(settled, stamped)))
        except StoreError as error:
            if isinstance(error, _PASSING):
                raise
            self._settle_apart(settled, error)
            return
        self._settled(stamped, results)

    def _stamp(self, settled: Sequence[Settled], stamped: list[Settled]) -> list[Settlement]:
        stamped[:] = [(attempt, self._stamped(settlement)) for attempt, settlement in settled]
        return [settlement for _, settlement in stamped]

    def _stamped(self, settlement: Settlement) -> Settlement:
        """What the handler published is accepted now, and not when it was published."""
        if not settlement.emitted:
            return settlement
        now = self._store.directory.estimated_now()
        return attrs.evolve(settlement, emitted=accepted_now(settlement.emitted, now))

    def _settled(self, settled: Sequence[Settled], results: Sequence[bool]) -> None:
        """It is known what became of these."""
        self._leases.drop([attempt for attempt, _ in settled if attempt.delivery])
        recorded = [pair for pair, ok in zip(settled, results, strict=True) if ok]
        _finish([attempt for attempt, _ in recorded])
        for (attempt, settlement), ok in zip(settled, results, strict=True):
            if not ok:
                _fenced_off(attempt, settlement)
        emitted = [event for _, settlement in recorded for event in settlement.emitted]
        if emitted:
            self._dispatch(emitted)
        self._stats.count(*(settlement for _, settlement in recorded))
        failed = [pair for pair in recorded if not isinstance(pair[1].outcome, Done)]
        if failed:
            self._expect(min(s.outcome.after if isinstance(s.outcome, RetryAt) else NEVER for _, s in failed))
        for attempt, settlement in failed:
            _report(attempt, settlement)

    def forget(self, attempts: Sequence[Attempt]) -> None:
        """Unsettled and no longer kept alive: the broker, or the end of the lease, brings them again."""
        self._leases.drop([attempt for attempt in attempts if attempt.delivery])
        forget(attempts)

    def _settle_apart(self, settled: Sequence[Settled], error: StoreError) -> None:
        """The store refuses something for good: the one in question ends as a dead letter, not the others."""
        if len(settled) > 1:
            middle = len(settled) // 2
            self.settle(settled[:middle])
            self.settle(settled[middle:])
            return
        attempt, settlement = settled[0]
        if isinstance(settlement.outcome, Dead):
            raise error
        log.error("The event store refuses the outcome of %s: %s", settlement.delivery_id, error)
        dead = Dead(reason="not_retryable", failure=failure_of(error, attempt, worker=self._worker))
        self.settle([(attempt, attrs.evolve(settlement, outcome=dead, emitted=()))])

    def _refused(self, fresh: Sequence[Attempt]) -> list[Attempt]:
        """Of the messages delivered before, those that got a record meanwhile."""
        again = [a for a in fresh if a.message and a.message.delivered > 1 and a.event]
        if not again:
            return []
        records = [self._running(attempt) for attempt in again]
        results = self._until_back(lambda: self._store.deliveries.start(records, lease=self._lease))
        for attempt, record, ok in zip(again, records, results, strict=True):
            attempt.delivery = record if ok else None
        self._leases.hold([a for a in again if a.delivery])
        refused = [a for a in again if not a.delivery]
        _finish(refused)
        return refused

    def begin(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Say in the store of those that were lost before that they run now; those that may run."""
        suspects: dict[str, dict[str, Attempt]] = {}
        for attempt in attempts:
            if attempt.is_suspect:
                suspects.setdefault(attempt.token, {})[attempt.delivery_id] = attempt
                attempt.told_begun()
        lost = list[Attempt]()
        for token, mine in suspects.items():
            renew = partial(
                self._store.deliveries.renew, list(mine), token=token, lease=self._lease, begun=True
            )
            lost += [mine[key] for key in self._until_back(renew)]
        self._leases.drop(lost)
        return [attempt for attempt in attempts if attempt not in lost]

    def _running(self, attempt: Attempt) -> Delivery:
        event = attempt.event
        assert event is not None
        return Delivery(
            id=attempt.delivery_id,
            handler=attempt.handler.name,
            event_id=event.id,
            event_name=event.name,
            operation_id=event.operation_id,
            state="running",
            attempts=1,
            lost=1,
            created_at=attempt.started_at,
            started_at=attempt.started_at,
            token=attempt.token,
            worker=self._worker,
            event=event,
            begun=False,
        )

    def _until_back(self, step: Callable[[], T]) -> T:
        """Repeat a step of the store until it answers; every step may be repeated safely."""
        try:
            return step()
        except StoreError as error:
            return self._insist(step, [error])

    def _insist(self, step: Callable[[], T], failed: list[StoreError]) -> T:
        def again() -> T:
            if failed:
                raise failed.pop()
            return step()

        return Retrying(
            retry=retry_if_exception_type(StoreError),
            wait=wait_random_exponential(multiplier=0.1, max=2.0),
            stop=stop_when_event_set(self._stopping) | _RefusedForGood(),
            sleep=sleep_using_event(self._stopping),
            before_sleep=_store_is_away,
            reraise=True,
        )(again)


class Unsettled:
    """What has ended and is not recorded yet: threads leave it here and run on, one of them settles for all.

    Nobody sleeps to gather a batch: a thread that finds nobody settling does it, and everything that ends
    meanwhile is the next batch. If that is much, another thread encodes it while the first one waits for
    the server. Thread-safe.

    Args:
        settle: records and acknowledges.
        give_up: hears of what could not be settled, and why.
        on_empty: called when nothing waits any more.
    """

    def __init__(
        self,
        settle: Callable[[Sequence[Settled]], None],
        *,
        give_up: Callable[[Sequence[Attempt], BaseException], None],
        on_empty: Callable[[], None],
    ) -> None:
        self._settle = settle
        self._give_up = give_up
        self._on_empty = on_empty
        self._changed = threading.Condition()  # guards everything below
        self._waiting: deque[Sequence[Settled]] = deque()
        self._left = 0  # how many wait
        self._count = 0  # how many are not settled
        self._settling = 0  # how many threads do

    @property
    def empty(self) -> bool:
        """Whether everything that was left here is settled or given up."""
        with self._changed:
            return not self._count

    def leave(self, settled: Sequence[Settled]) -> None:
        """This has ended; ``work_off`` must follow. Waits while too much is unsettled."""
        if not settled:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._count < MAX_WAITING or not self._settling)
            self._waiting.append(settled)
            self._count += len(settled)
            self._left += len(settled)

    def work_off(self) -> None:
        """Settle everything that waits, unless other threads do; they take it as well."""
        while batch := self._take():
            try:
                self._settle(batch)
            except BaseException as error:  # whatever it is, the others must not wait for this thread
                self._give_up([attempt for attempt, _ in batch], error)
            finally:
                self._done(len(batch))

    def _take(self) -> list[Settled]:
        with self._changed:
            enough = not self._settling or (self._settling == 1 and self._left >= WORTH_ANOTHER)
            batch: list[Settled] = []
            while enough and self._waiting and (not batch or len(batch) + len(self._waiting[0]) <= MAX_BATCH):
                batch += self._waiting.popleft()
            self._left -= len(batch)
            self._settling += bool(batch)
            return batch

    def _done(self, count: int) -> None:
        with self._changed:
            self._settling -= 1
            self._count -= count
            self._changed.notify_all()
            empty = not self._count
        if empty:
            self._on_empty()


def _report(attempt: Attempt, settlement: Settlement) -> None:
    outcome = settlement.outcome
    facts = {"delivery": settlement.delivery_id, "operation": settlement.operation_id}
    if isinstance(outcome, RetryAt | Dead):
        failed = (attempt.delivery.failed if attempt.delivery else 0) + 1
        log.warning(
            "Failed %d times, handler: %s, error: %s event: %s",
            failed,
            settlement.handler,
            _in_one_line(outcome.failure.message),
            settlement.event_id,
            extra={"action": "delivery_failed", **facts},
        )
    if isinstance(outcome, Dead):
        log.error(
            "Added to dead letter queue, handler: %s, reason: %s, event: %s",
            settlement.handler,
            outcome.reason,
            settlement.event_id,
            extra={"action": "delivery_dead", **facts},
        )
    if isinstance(outcome, Discarded):
        log.info("Discarded by %s: %s", settlement.handler, outcome.reason, extra=facts)


def _finish(attempts: Sequence[Attempt]) -> None:
    for consumption, messages in _by_consumption(attempts):
        consumption.finish(messages)


def release(attempts: Sequence[Attempt]) -> None:
    """Give the messages of these attempts back to the broker, to be delivered at once."""
    for consumption, messages in _by_consumption(attempts):
        consumption.release(messages)


def forget(attempts: Sequence[Attempt]) -> None:
    """Neither acknowledge nor give back: the broker delivers them again after its wait."""
    for consumption, messages in _by_consumption(attempts):
        consumption.forget(messages)


def _by_consumption(attempts: Sequence[Attempt]) -> Iterable[tuple[Consumption, list[Incoming]]]:
    groups: dict[int, tuple[Consumption, list[Incoming]]] = {}
    for attempt in attempts:
        if attempt.message and attempt.consumption:
            groups.setdefault(id(attempt.consumption), (attempt.consumption, []))[1].append(attempt.message)
    return groups.values()


def _fenced_off(attempt: Attempt, settlement: Settlement) -> None:
    forget([attempt])
    log.warning(
        "A late result of %s for event %s was dropped: the delivery has a newer owner",
        settlement.handler,
        settlement.event_id,
        extra={"action": "delivery_fenced", "delivery": settlement.delivery_id},
    )


class _RefusedForGood(stop_base):
    def __call__(self, retry_state: RetryCallState) -> bool:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        return not isinstance(error, _PASSING) and retry_state.attempt_number >= REFUSALS


def _in_one_line(text: str) -> str:
    """A message may hold line breaks and terminal escapes; a log line must not."""
    cut = text[:300]
    return cut if cut.isprintable() else "".join(c if c.isprintable() else " " for c in cut)


def _store_is_away(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("The event store does not answer, waiting for it: %s", error, extra={"action": "store_wait"})
