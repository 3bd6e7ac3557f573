"""What execution and the facade need of an event store: the packages under ``stores/`` provide it.

Every write is durable (``w=majority, j=true``) when the call returns, every call ends within its deadline.
Errors: StoreUnavailable (nothing was written), PublishOutcomeUnknown (sent, not answered in time),
StorePermissionDenied. Repeating a write with the same ids and tokens is always safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import EventDrivenError
from eventdriven_sync.figures import AuditTrail, Figures
from eventdriven_sync.jobs import Jobs
from eventdriven_sync.people import People
from eventdriven_sync.queries import MAX_TEXT as MAX_TEXT
from eventdriven_sync.queries import DeliveryQuery as DeliveryQuery
from eventdriven_sync.queries import EventQuery as EventQuery
from eventdriven_sync.queries import OperationQuery as OperationQuery
from eventdriven_sync.records import (
    Delivery,
    HandlerRecord,
    IdempotencyRecord,
    Operation,
    Reply,
    Settlement,
    WorkerRecord,
)

T = TypeVar("T")

NEW = datetime.max.replace(tzinfo=UTC)
"""As a handler's ``starts_at``: from the moment of its registration, by the server's clock."""


class EventStore(Protocol):
    """Events and the operations they belong to."""

    def append(self, events: Sequence[Envelope], *, timeout: float, session: Any = None) -> list[bool]:
        """Store events; per event True if it was stored before with the same content.

        Concurrent callers share one write. With ``session`` they become part of its transaction.

        Raises:
            EventIdReused: an id exists with other content (derived ids excepted: there the first stays).
            StoreUnavailable, PublishOutcomeUnknown.
        """

    def record(self, events: Sequence[Envelope]) -> list[EventDrivenError | None]:
        """Store events that the broker accepted: per event None, or why it can never be stored.

        One whose id is stored already stays as it is, also if its content differs.

        Raises:
            StoreUnavailable, PublishOutcomeUnknown, StorePermissionDenied: do it again.
        """

    def get(self, ids: Sequence[str]) -> dict[str, Envelope]:
        """The events with these ids, as far as they exist."""

    def find(self, query: EventQuery) -> list[Envelope]:
        """Events by query."""

    def count(
        self,
        names: Sequence[str],
        *,
        since: datetime | None,
        until: datetime | None = None,
    ) -> int:
        """How many events of these names were published in ``[since, until)``."""

    def save_operation(self, operation: Operation, *, timeout: float) -> None:
        """Insert the operation, or replace it by this state of it."""

    def operation(self, operation_id: str) -> Operation | None:
        """The operation, or None."""

    def find_operations(self, query: OperationQuery) -> list[Operation]:
        """Operations by query."""


class DeliveryStore(Protocol):
    """Deliveries: outcomes, retries and dead letters. ``$$NOW`` is the server's clock everywhere."""

    def states(self, delivery_ids: Sequence[str]) -> dict[str, str]:
        """The state of those that have a record: the known-outcome query, one round trip."""

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Store emitted events, then outcomes; concurrent callers share writes.

        Per settlement True if recorded (now or by an earlier try of the same token), False if fenced off:
        somebody else owns or settled the delivery. ``RetryAt`` sets ``due_at`` to server time + ``after``.
        """

    def settle_in(self, session: Any, settlement: Settlement) -> bool:
        """The same inside a transaction of ``transaction``/``run_transaction``; False means: abort.

        The same token again is False as well: committing it would commit the business writes twice.
        """

    def start(self, deliveries: Sequence[Delivery], *, lease: float) -> list[bool]:
        """Slow path: insert these as ``running`` with their ``token`` and a lease of ``lease`` seconds.

        The attempt is counted. False where a record exists already.
        """

    def claim_due(
        self,
        handlers: Sequence[str],
        *,
        limit: int,
        lease: float,
        worker: str,
        token: str,
    ) -> list[Delivery]:
        """Claim deliveries that are due: pending or retrying at ``due_at``, running with an expired lease.

        They get the state ``running``, ``attempts`` + 1, ``lost`` + 1 where the lease had expired on one
        that had begun, and ``token``. Those that are lost already have not begun until ``renew`` says so.
        """

    def renew(
        self,
        delivery_ids: Sequence[str],
        *,
        token: str,
        lease: float,
        begun: bool = False,
        ending_within: float | None = None,
    ) -> set[str]:
        """Prolong leases; return the ids that are no longer held under ``token``.

        Args:
            lease: seconds from now.
            begun: their handler runs now: if they are lost from here on, it counts.
            ending_within: seconds; those that last longer are left as they are. Not together with ``begun``.
        """

    def release(self, delivery_ids: Sequence[str], *, token: str) -> None:
        """Give claimed deliveries back unrun: ``retrying``, due at once, the start not counted."""

    def insert_pending(self, deliveries: Sequence[Delivery]) -> int:
        """Reconciler and replay: insert as ``pending``, due at once; how many were inserted.

        Those that have a record stay as they are.
        """

    def next_due(self, handlers: Sequence[str], *, timeout: float | None = None) -> float | None:
        """Seconds until the next delivery is due (negative: overdue), None if there is none.

        Args:
            timeout: seconds, the store's own by default.
        """

    def get(self, delivery_id: str) -> Delivery | None:
        """The delivery, or None."""

    def find(self, query: DeliveryQuery) -> list[Delivery]:
        """Deliveries by query, without embedded events."""

    def count(self, query: DeliveryQuery) -> dict[str, int]:
        """Number of deliveries by state (``limit`` and ``after`` are ignored)."""

    def retry_dead(self, query: DeliveryQuery, *, by: str, job: str = "") -> int:
        """Move dead deliveries matching the query to ``retrying``; how many.

        Generation + 1, attempts and failed 0, due at once, history kept; they remember ``job``. ``limit`` and
        ``after`` of the query are ignored. After an error some may have been moved; the same call moves the
        rest.
        """

    def retry_with(self, delivery_id: str, event: Envelope, *, by: str) -> bool:
        """The same for one, with this event in place of its own, which stays as ``original``.

        False if it is not dead, or has no readable event.
        """

    def discard(self, query: DeliveryQuery, *, reason: str, by: str) -> int:
        """Move dead or retrying deliveries to ``discarded``; how many. Ignores ``limit`` and ``after``."""

    def undo_discard(self, delivery_id: str, *, by: str) -> bool:
        """Bring one that ``discard`` moved back to the state it had; if it was retrying it is due at once.

        False if it is not discarded, or by its handler.
        """


class Directory(Protocol):
    """Handlers, workers, leases and statistics."""

    def register(self, records: Sequence[HandlerRecord]) -> list[HandlerRecord]:
        """Upsert by name and return what is stored.

        ``starts_at`` and ``registered_at`` stay as first registered (given as None it
        means all; given as ``NEW`` it becomes server time), a retired handler begins anew.
        """

    def handlers(self, *, retired: bool = False) -> list[HandlerRecord]:
        """Handlers by name; retired ones only if asked for."""

    def retire(self, name: str) -> bool:
        """Mark as retired: nothing more is owed to it. False if unknown."""

    def pause(self, name: str, *, by: str, reason: str) -> bool:
        """Mark as paused: running workers obey within seconds. False if unknown."""

    def resume(self, name: str) -> bool:
        """No longer paused. False if unknown."""

    def reconciled(self, marks: Sequence[tuple[HandlerRecord, datetime]]) -> None:
        """Advance the watermarks of handlers; they never go back.

        Each with its record as it was read: a handler that was registered anew since then begins anew.
        """

    def now(self, *, timeout: float | None = None) -> datetime:
        """The server's clock; ``timeout`` in seconds, the store's own by default."""

    def estimated_now(self, *, timeout: float | None = None) -> datetime:
        """The server's clock as it was read some time ago and must be now, never behind it.

        It is asked only now and then (``timeout`` is for that), so this is cheap. Events are dated by it: a
        publisher whose own clock is wrong would hide them from whoever looks at events by their time.
        """

    def lead(self, role: str, holder: str, *, ttl: float) -> bool:
        """Take or keep the lease on a role; True while ``holder`` has it."""

    def resign(self, role: str, holder: str) -> None:
        """Give the lease back at once."""

    def heartbeat(self, worker: WorkerRecord) -> None:
        """Say that a worker lives."""

    def workers(self, *, timeout: float | None = None) -> list[WorkerRecord]:
        """Workers heard of within the last minute; ``timeout`` as of ``now``."""

    def forget_worker(self, worker_id: str) -> None:
        """The worker stopped in good order."""

    def write_stats(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Replace per-minute documents by ``_id`` (absolute values, so repeating is safe).

        ``minute`` is the datetime at which their minute begins: ``stats`` asks for it.
        """

    def stats(self, *, since: datetime) -> list[dict[str, Any]]:
        """Per-minute documents since then."""


class IdempotencyStore(Protocol):
    """Requests that are run once per key: who runs one, and what it was answered. By the server's clock.

    A record lives ``keep`` seconds and is absent afterwards; until then no request with another fingerprint
    runs under its key, whatever became of the first one, unless that was abandoned.
    """

    def begin(
        self, key: str, *, fingerprint: str, token: str, lease: float, keep: float
    ) -> IdempotencyRecord:
        """Claim the key for a request, or say what is there.

        Args:
            key: 1 to 200 characters, and as unforgeable as it should be: the caller checks it.
            fingerprint: of the request. The answer has that of the first request with this key: compare them
                before anything else, a different one is a different request, whatever the state.
            token: identifies this attempt and no other. Calling it again with the same token is safe and
                prolongs the lease.
            lease: seconds for which the claim is held without a word. Then a request with the same
                fingerprint may take it over, since the process that had it is taken for dead. One with
                another fingerprint never does: it is told ``running`` until the record is absent.
            keep: seconds from now until the record is absent; at least ``lease``.
        """

    def finish(self, key: str, *, token: str, reply: Reply, keep: float) -> bool:
        """Keep the reply for ``keep`` seconds from now.

        False if ``token`` does not own the record any more: it was taken over, abandoned, or is absent. A
        lease that is over and was not taken over does not matter. Once answered, the first reply stays:
        finishing again with the same token is True and changes nothing.

        Raises:
            PayloadTooLarge: headers and body have more than 8 MiB; the record is still running.
            PayloadNotSerializable: a header is no text that UTF-8 can carry.
        """

    def abandon(self, key: str, *, token: str) -> None:
        """Forget the running record that ``token`` owns, so that the next request with this key runs.

        Nothing happens if it was answered, taken over or is absent.
        """


class Store(Protocol):
    """The event store: views on one database, and its transactions."""

    @property
    def events(self) -> EventStore:
        """Events and operations."""

    @property
    def deliveries(self) -> DeliveryStore:
        """Deliveries."""

    @property
    def directory(self) -> Directory:
        """Handlers, workers, leases, statistics."""

    @property
    def figures(self) -> Figures:
        """Counts and groups for monitoring."""

    @property
    def trail(self) -> AuditTrail:
        """Who did what."""

    @property
    def jobs(self) -> Jobs:
        """Group retries."""

    @property
    def people(self) -> People:
        """Users of the dashboard, their sessions and tries."""

    @property
    def idempotency(self) -> IdempotencyStore:
        """Requests that are run once per key."""

    @property
    def client(self) -> Any:
        """The driver's client in this process, to which sessions belong; ConfigurationError in memory."""

    def open(self, *, timeout: float) -> None:
        """Connect, create and verify the indexes. Safe to call again.

        Raises:
            StoreUnavailable, StorePermissionDenied, ConfigurationError (not a replica set, too old).
        """

    def transaction(self, *, timeout: float) -> AbstractContextManager[Any]:
        """A transaction (majority, journaled, snapshot): commits when the block ends, aborts if it raises.

        Yields the session for the user's own writes.

        Raises:
            PublishOutcomeUnknown: the commit was sent and not answered in time.
        """

    def run_transaction(self, body: Callable[[Any], T], *, timeout: float) -> T:
        """Run ``body(session)`` in a transaction; run it again on transient errors within ``timeout``."""

    def erase(self, handler: str, event_ids: Sequence[str]) -> None:
        """Remove a handler, these events, their deliveries to it, and its statistics of the last hour.

        For a probe that leaves nothing behind: nobody else may be subscribed to these events. At most 1,000.
        """

    def info(self) -> dict[str, Any]:
        """Facts about the server for the doctor: version, replica set, indexes, journaling, clock."""

    def close(self) -> None:
        """Disconnect."""
