"""The reconciler: brings the events that fell out of the broker.

An accepted event that a handler neither has a delivery for nor can still get from its consumer becomes a
``pending`` delivery. So a wiped stream, a broker that was down and a publisher that died between store and
broker lose nothing. One process at a time does this, by lease.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

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
_LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)


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
        # By stream, of this round: how long ago what the recorder has not stored yet may have begun.
        self._unrecorded: dict[str, datetime | None] = {}
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
        self._unrecorded.clear()
        return sum(self._try(record, now) for record in self._store.directory.handlers())

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

    def _try(self, record: HandlerRecord, now: datetime) -> int:
        """What is wrong with one handler's stream must not keep the others from theirs."""
        try:
            return self._reconcile(record, now)
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            log.warning("The reconciler leaves out %s: %s", record.name, error)
            return 0

    def _reconcile(self, record: HandlerRecord, now: datetime) -> int:
        until = now - timedelta(seconds=self._settings.reconcile_after)
        since = max(filter(None, (record.starts_at, record.reconciled_until)), default=None)
        if since is not None and since >= until:
            return 0
        # Before the events are looked at: what is recorded from now on may be missing among them.
        recorded_until = self._recorded_until(record, now)
        brought, compared_until = self._compare(record, since, until)
        if compared_until is not None:
            settled_until = min(compared_until, recorded_until - timedelta(seconds=LATE))
            if since is None or settled_until > since:
                self._store.directory.reconciled(record.name, settled_until)
        if brought:
            log.warning(
                "Brought %d events to %s that its consumer no longer had",
                brought,
                record.name,
                extra={"action": "reconciled", "handler": record.name, "count": brought},
            )
        return brought

    def _compare(
        self, record: HandlerRecord, since: datetime | None, until: datetime
    ) -> tuple[int, datetime | None]:
        """Bring what is lost; also say from when on something is still with the broker, or not compared."""
        brought, waiting, reached, after = 0, None, since, None
        reach: dict[str, datetime | None] = {}
        while not self._stopping.is_set():
            self.pulse.beat()
            query = EventQuery(
                names=record.events, since=since, until=until, oldest_first=True, limit=PAGE, after=after
            )
            page = self._store.events.find(query)
            missing = self._missing(record, page)
            lost = [event for event in missing if not self._still_comes(record, event, reach)]
            brought += self._bring(record, lost)
            gone = {event.id for event in lost}
            kept = min((e.published_at for e in missing if e.id not in gone), default=None)
            waiting = waiting or kept
            if len(page) < PAGE:
                return brought, waiting or until
            after, reached = page[-1].id, page[-1].published_at
        return brought, waiting or reached

    def _recorded_until(self, record: HandlerRecord, now: datetime) -> datetime:
        """Until when the store has every event of this handler, those that NATS alone accepted as well."""
        waiting = [
            self._unrecorded_since(token) for token in {name.partition(".")[0] for name in record.events}
        ]
        return min([now, *filter(None, waiting)])

    def _unrecorded_since(self, token: str) -> datetime | None:
        if token not in self._unrecorded:
            self._unrecorded[token] = self._ask_recorder(token)
        return self._unrecorded[token]

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

    def _missing(self, record: HandlerRecord, page: Sequence[Envelope]) -> list[Envelope]:
        ids = {delivery_id(record.name, event.id): event for event in page}
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
