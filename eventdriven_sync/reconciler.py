"""The reconciler: brings the events that fell out of the broker.

An accepted event that a handler neither has a delivery for nor can still get from its consumer becomes a
``pending`` delivery. So a wiped stream, a broker that was down and a publisher that died between store and
broker lose nothing. One process at a time does this, by lease.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import attrs

from eventdriven_sync.broker import RECORDER, Broker, ConsumerState
from eventdriven_sync.config import Settings
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import BrokerError, BrokerUnavailable, Closed, StoreError
from eventdriven_sync.pulse import Pulse
from eventdriven_sync.records import Delivery, HandlerRecord, delivery_id
from eventdriven_sync.store import EventQuery, Store

log = logging.getLogger(__name__)

PAGE = 500
ROLE = "reconciler"
# An event may become visible this long after its publishing time: whoever publishes may try for 60 s, clocks
# of publishers differ. The watermark stays behind by this much, and what lies between is looked at again.
LATE = 90.0
# Handlers whose watermark is younger are looked at together, unless they listen to too many events: MongoDB
# merges up to 200 scans of its index in their order, and sorts beyond.
CAUGHT_UP = timedelta(seconds=LATE + 300)
MAX_NAMES = 150
_LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)

# Of handlers, as their records were read: until when their events have been compared.
Marks = list[tuple[HandlerRecord, datetime]]


@attrs.frozen(kw_only=True)
class _Recent:
    """What is to be compared for several handlers, oldest first, and which of their deliveries are known."""

    events: Sequence[Envelope]
    known: Mapping[str, str]


@attrs.frozen(kw_only=True)
class _Round:
    """One round of the reconciler.

    Attributes:
        until: younger events are given their time.
        recent: what is to be compared for some handlers, if it was read for all of them together.
        unrecorded: by stream, when the oldest event was published that the recorder may not have stored.
    """

    now: datetime
    until: datetime
    recent: _Recent | None = None
    unrecorded: dict[str, datetime | None] = attrs.field(factory=dict)


class Reconciler:
    """Looks after events that fell out of the broker. Thread-safe; ``round`` may be called by anybody.

    Args:
        holder: who asks for the lease.
        chores: what the one that leads does besides after each round.
    """

    def __init__(
        self,
        *,
        store: Store,
        broker: Broker,
        settings: Settings,
        holder: str,
        chores: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._store = store
        self._broker = broker
        self._settings = settings
        self._holder = holder
        self._chores = chores
        self._leads = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="eventdriven-reconciler", daemon=True)
        self.pulse = Pulse(self._thread, pause=settings.reconcile_every)

    def start(self) -> None:
        """Start the thread."""
        self.pulse.start()

    def stop(self, timeout: float) -> None:
        """End the thread and give the lease to the next."""
        self._stopping.set()
        if self._thread.ident:
            self._thread.join(timeout)

    def round(self) -> int:
        """Compare every handler's events with its deliveries; how many deliveries were brought."""
        ttl = 10.0 + 3 * self._settings.reconcile_every
        self._leads = self._store.directory.lead(ROLE, self._holder, ttl=ttl)
        if not self._leads:
            return 0
        now = self._store.directory.now()
        current = _Round(now=now, until=now - timedelta(seconds=self._settings.reconcile_after))
        due = [each for each in self._store.directory.handlers() if _begins_before(current.until, each)]
        caught_up = [each for each in due if not _begins_before(current.until - CAUGHT_UP, each)]
        recent = self._look_at_recent(caught_up, current)
        together = {} if recent is None else {each.name: each for each in caught_up}
        brought = self._share(together.values(), attrs.evolve(current, recent=recent))
        return brought + sum(self._share([each], current) for each in due if each.name not in together)

    def _run(self) -> None:
        while not self._stopping.wait(self._settings.reconcile_every):
            self.pulse.beat()
            if self._guard(self.round):
                self.pulse.well()
            for chore in self._chores if self._leads else ():
                self.pulse.beat()
                self._guard(chore)
        try:
            self._store.directory.resign(ROLE, self._holder)
        except (StoreError, Closed) as error:
            log.info("The reconciler's lease ends by itself: %s", error)

    def _guard(self, step: Callable[[], object]) -> bool:
        """Whether the step went well; what goes wrong in it must not keep the next ones from theirs."""
        try:
            step()
            return True
        except (StoreError, BrokerError, Closed) as error:
            log.warning("The reconciler waits: %s", error, extra={"action": "reconciler_wait"})
        except Exception:
            log.exception("The reconciler met an unexpected error and goes on")
        return False

    def _look_at_recent(self, caught_up: Sequence[HandlerRecord], current: _Round) -> _Recent | None:
        """What is to be compared for all of them, if it is little: two questions then do for all."""
        begins = [since for record in caught_up if (since := _since(record)) is not None]
        names = {name for record in caught_up for name in record.events}
        if len(begins) < 2 or len(names) > MAX_NAMES:
            return None
        for record in caught_up:
            self._recorded_until(record, current)  # before the events are looked at
        events = self._events(sorted(names), min(begins), current.until)
        ids = [delivery_id(record.name, event.id) for record in caught_up for event in _owed(record, events)]
        if len(events) == PAGE or len(ids) > PAGE:
            return None
        return _Recent(events=events, known=self._store.deliveries.states(ids) if ids else {})

    def _share(self, records: Iterable[HandlerRecord], current: _Round) -> int:
        """Compare for these; their watermarks are stored in one write, also if something ends the round."""
        marks: Marks = []
        try:
            return sum(self._try(record, current, marks) for record in records)
        finally:
            if marks:
                self._store.directory.reconciled(marks)

    def _try(self, record: HandlerRecord, current: _Round, marks: Marks) -> int:
        """What is wrong with one handler's stream must not keep the others from theirs."""
        self.pulse.beat()
        try:
            return self._reconcile(record, current, marks)
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            log.warning("The reconciler leaves out %s: %s", record.name, error)
            return 0

    def _reconcile(self, record: HandlerRecord, current: _Round, marks: Marks) -> int:
        # Before the events are looked at: what is recorded from now on may be missing among them.
        recorded_until, since = self._recorded_until(record, current), _since(record)
        brought, compared_until = self._compare(record, current)
        if compared_until is not None:
            settled_until = min(compared_until, recorded_until - timedelta(seconds=LATE))
            if since is None or settled_until > since:
                marks.append((record, settled_until))
        if brought:
            log.warning(
                "Brought %d events to %s that its consumer no longer had",
                brought,
                record.name,
                extra={"action": "reconciled", "handler": record.name, "count": brought},
            )
        return brought

    def _compare(self, record: HandlerRecord, current: _Round) -> tuple[int, datetime | None]:
        """Bring what is lost; also say from when on something is still with the broker, or not compared."""
        brought, waiting, reached = 0, None, _since(record)
        reach: dict[str, datetime | None] = {}
        for page in self._pages(record, current):
            if self._stopping.is_set():
                return brought, waiting or reached
            self.pulse.beat()
            missing = self._missing(record, page, current)
            lost = [event for event in missing if not self._still_comes(record, event, reach)]
            brought += self._bring(record, lost)
            gone = {event.id for event in lost}
            kept = min((e.published_at for e in missing if e.id not in gone), default=None)
            waiting = waiting or kept
            reached = page[-1].published_at if page else reached
        return brought, waiting or current.until

    def _pages(self, record: HandlerRecord, current: _Round) -> Iterator[list[Envelope]]:
        """What is to be compared of a handler, oldest first."""
        if current.recent is not None:
            yield list(_owed(record, current.recent.events))
            return
        page = self._events(record.events, _since(record), current.until)
        yield page
        while len(page) == PAGE:
            page = self._events(record.events, _since(record), current.until, after=page[-1].id)
            yield page

    def _events(
        self, names: Sequence[str], since: datetime | None, until: datetime, *, after: str | None = None
    ) -> list[Envelope]:
        return self._store.events.find(
            EventQuery(
                names=tuple(names), since=since, until=until, oldest_first=True, limit=PAGE, after=after
            )
        )

    def _recorded_until(self, record: HandlerRecord, current: _Round) -> datetime:
        """Until when the store has every event of this handler, those that NATS alone accepted as well."""
        waiting: list[datetime | None] = []
        for token in {name.partition(".")[0] for name in record.events}:
            if token not in current.unrecorded:
                current.unrecorded[token] = self._ask_recorder(token)
            waiting.append(current.unrecorded[token])
        return min([current.now, *filter(None, waiting)])

    def _ask_recorder(self, token: str) -> datetime | None:
        try:
            state = self._consumer(token, RECORDER)
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            log.warning("What is not recorded yet of %s is not known: %s", token, error)
            return _LONG_AGO
        return state.oldest_at if state else None

    def _consumer(self, token: str, name: str) -> ConsumerState | None:
        stream = f"{self._settings.namespace}_{token}"
        return self._broker.consumer_state(stream, name, timeout=self._settings.broker_timeout)

    def _missing(self, record: HandlerRecord, page: Sequence[Envelope], current: _Round) -> list[Envelope]:
        ids = {delivery_id(record.name, event.id): event for event in page}
        if current.recent is not None:
            known = current.recent.known
        else:
            known = self._store.deliveries.states(list(ids)) if ids else {}
        return [event for key, event in ids.items() if key not in known]

    def _still_comes(self, record: HandlerRecord, event: Envelope, reach: dict[str, datetime | None]) -> bool:
        """Whether the consumer may still deliver it: its backlog begins before the event was published.

        The margin allows for clocks that differ and for dispatches that reached the broker late.
        """
        token = event.name.partition(".")[0]
        if token not in reach:
            state = self._consumer(token, record.name.replace(".", "__"))
            reach[token] = state.oldest_at if state else None
        oldest = reach[token]
        margin = timedelta(seconds=self._settings.reconcile_after)
        return oldest is not None and event.published_at >= oldest - margin

    def _bring(self, record: HandlerRecord, lost: Sequence[Envelope]) -> int:
        if not lost:
            return 0
        now = self._store.directory.now()
        return self._store.deliveries.insert_pending(
            [
                Delivery(
                    id=delivery_id(record.name, event.id),
                    handler=record.name,
                    event_id=event.id,
                    event_name=event.name,
                    operation_id=event.operation_id,
                    state="pending",
                    created_at=now,
                    due_at=now,
                    event=event,
                )
                for event in lost
            ]
        )


def _since(record: HandlerRecord) -> datetime | None:
    """From when on its events are to be compared."""
    return max(filter(None, (record.starts_at, record.reconciled_until)), default=None)


def _begins_before(moment: datetime, record: HandlerRecord) -> bool:
    since = _since(record)
    return since is None or since < moment


def _owed(record: HandlerRecord, events: Sequence[Envelope]) -> Iterator[Envelope]:
    """Those of the events that are to be compared for this handler."""
    since = _since(record)
    return (e for e in events if e.name in record.events and (since is None or e.published_at >= since))
