"""What the event store holds: operations, deliveries, handlers, workers and replies, as immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import attrs

from eventdriven_sync.broker import Incoming
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import PayloadNotSerializable, PayloadTooLarge, shorten
from eventdriven_sync.fingerprint import fingerprint
from eventdriven_sync.outcome import FINAL_STATES, DeliveryState, Failure, Outcome

MAX_RAW = 1024 * 1024
MAX_REPLY = 8 * 1024 * 1024
"""Bytes of headers and body; a document of MongoDB holds twice as much."""

OperationStatus = Literal["running", "succeeded", "failed"]
IdempotencyState = Literal["mine", "running", "answered"]


@attrs.frozen(kw_only=True)
class Operation:
    """The command that starts a chain of events.

    Attributes:
        id: 24 hex digits.
        kind: ``http``, ``cli``, ``cron``, ``webhook``, ``script``, …; ``publish`` for an event that was
            published outside any operation (such an operation is derived from its first event).
        variables: what the command was called with, JSON-safe.
        details: what its kind adds, JSON-safe: of ``http`` the method, path, client and status code.
        parent_id: the operation it was begun in, if any.
        status: how the command itself ended; the chain's deliveries have states of their own.
    """

    id: str
    name: str
    kind: str
    variables: Mapping[str, Any] = attrs.field(factory=dict)
    details: Mapping[str, Any] = attrs.field(factory=dict)
    user: str | None = None
    parent_id: str | None = None
    status: OperationStatus = "running"
    error: Failure | None = None
    started_at: datetime
    finished_at: datetime | None = None

    @property
    def duration_ms(self) -> float | None:
        """Milliseconds from its beginning to its end; None while it runs."""
        if self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds() * 1000


@attrs.frozen(kw_only=True)
class RawMessage:
    """A message that is no event we can read, kept as it came (at most 1 MiB)."""

    stream: str
    sequence: int
    subject: str
    headers: Mapping[str, str]
    data: bytes

    @classmethod
    def of(cls, message: Incoming) -> RawMessage:
        """What is kept of a message."""
        return cls(
            stream=message.stream,
            sequence=message.sequence,
            subject=message.subject,
            headers=dict(message.headers),
            data=message.data[:MAX_RAW],
        )


@attrs.frozen(kw_only=True)
class Delivery:
    """One event × one handler.

    Attributes:
        id: ``Group.handler:event id``.
        attempts: starts of the handler in this generation, counted before the handler runs where that
            matters (see ``starts``).
        failures: the last 10 failed attempts, oldest first, over all generations.
        failed: number of failed attempts in this generation.
        generation: 0, one more after each retry from the dead letters.
        lost: starts of this generation that ended without any outcome: the worker died. The first may have
            been waiting in its hands, every further one had begun.
        begun: False from the claim of one that was lost before until its handler is about to run.
        due_at: when the next attempt may start (``pending``, ``retrying``) or the lease ends (``running``);
            server clock.
        token: who owns or recorded the last attempt; outcomes are fenced by it.
        reason: why it is dead or discarded.
        event: the event itself while the delivery is not settled, and when it is dead.
        raw: the message itself when it is no readable event.
        original: the event as it was published, when a person had it run with another payload.
        discarded_from: the state in which a person discarded it, to which that can be undone.
        job: the group retry that sent it back last.
    """

    id: str
    handler: str
    event_id: str
    event_name: str
    operation_id: str
    state: DeliveryState
    attempts: int = 0
    failed: int = 0
    generation: int = 0
    lost: int = 0
    begun: bool = True
    failures: tuple[Failure, ...] = ()
    reason: str = ""
    created_at: datetime
    started_at: datetime | None = None
    settled_at: datetime | None = None
    duration_ms: float | None = None
    due_at: datetime | None = None
    token: str = ""
    worker: str = ""
    event: Envelope | None = None
    raw: RawMessage | None = None
    original: Envelope | None = None
    discarded_from: str = ""
    job: str = ""

    @property
    def group(self) -> str:
        """The consumer group, which is the part of the handler's name before the dot."""
        return self.handler.partition(".")[0]

    def failing_for(self, now: datetime) -> float:
        """Seconds since the first failure of this generation, 0.0 without one.

        Of many failures the first are no longer on record: the pace of those that are says how long all took.
        """
        own = [failure for failure in self.failures if failure.generation == self.generation]
        if not own:
            return 0.0
        seconds = (now - own[0].failed_at).total_seconds() * max(self.failed / len(own), 1.0)
        return max(min(seconds, (now - self.created_at).total_seconds()), 0.0)

    @property
    def fingerprint(self) -> str:
        """That of the last failure, equal for failures of the same cause; empty without failures."""
        if not self.failures:
            return ""
        return fingerprint(self.failures[-1].error_type, self.failures[-1].message)

    @property
    def final(self) -> bool:
        """Whether nothing more happens to it unless a person acts."""
        return self.state in FINAL_STATES


def delivery_id(handler: str, event_id: str) -> str:
    """The id of the delivery of an event to a handler."""
    return f"{handler}:{event_id}"


@attrs.frozen(kw_only=True)
class Settlement:
    """One attempt with its outcome, as the store records it.

    Attributes:
        token: identifies the attempt. Recording the same attempt twice is one record.
        claimed: True when the delivery was claimed in the store (the record exists and is fenced by
            ``token``); False for the live lane's first record.
        emitted: events the handler published; stored just before the outcome, only with ``Done``.
    """

    handler: str
    event_id: str
    event_name: str
    operation_id: str
    outcome: Outcome
    token: str
    claimed: bool
    started_at: datetime
    duration_ms: float
    worker: str
    event: Envelope | None = None
    raw: RawMessage | None = None
    emitted: tuple[Envelope, ...] = ()

    @property
    def delivery_id(self) -> str:
        """The id of the delivery it belongs to."""
        return delivery_id(self.handler, self.event_id)


@attrs.frozen(kw_only=True)
class Pause:
    """A person stopped a handler: nothing of it is begun until it is resumed; events wait."""

    at: datetime
    by: str
    reason: str


@attrs.frozen(kw_only=True)
class HandlerRecord:
    """Who is subscribed to what: for reconciling, audit, doctor and the topology view.

    Attributes:
        name: ``Group.handler``.
        events: the event names, sorted.
        starts_at: events published from then on are owed to it (server clock); None is all of them.
        reconciled_until: everything published before has been compared with its deliveries.
        location: ``module:function`` and line, for the handler catalogue.
        policy: the retry policy in words.
        paused: since when and why it does not run; None if it does.
    """

    name: str
    events: tuple[str, ...]
    starts_at: datetime | None
    registered_at: datetime
    seen_at: datetime
    retired_at: datetime | None = None
    reconciled_until: datetime | None = None
    location: str = ""
    policy: str = ""
    options: Mapping[str, Any] = attrs.field(factory=dict)
    paused: Pause | None = None

    @property
    def group(self) -> str:
        """The consumer group."""
        return self.name.partition(".")[0]


@attrs.frozen(kw_only=True)
class WorkerRecord:
    """A live worker process: its heartbeat and what it runs now."""

    id: str
    host: str
    pid: int
    handlers: tuple[str, ...]
    threads: int
    running: tuple[str, ...]
    started_at: datetime
    seen_at: datetime


@attrs.frozen(kw_only=True)
class Reply:
    """The answer to an idempotent request, kept to be given again.

    Attributes:
        headers: in order; a name may come more than once.
        operation_id: the operation that the request was.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    operation_id: str | None


@attrs.frozen(kw_only=True)
class IdempotencyRecord:
    """What is known of an idempotency key at the moment it is asked for.

    Attributes:
        key: as the caller gave it.
        fingerprint: of the first request with this key; one with another fingerprint is another request.
        state: ``mine``: this call has claimed the key and must finish or abandon it with ``token``;
            ``running``: somebody else has; ``answered``: ``reply`` is what the first request got.
        token: who has claimed or answered it.
    """

    key: str
    fingerprint: str
    state: IdempotencyState
    token: str
    reply: Reply | None = None


def check_reply(reply: Reply) -> None:
    """PayloadTooLarge or PayloadNotSerializable unless the store can keep it."""
    size = len(reply.body)
    for name, value in reply.headers:
        try:
            size += len(name.encode()) + len(value.encode())
        except UnicodeEncodeError as error:
            raise PayloadNotSerializable(
                f"header {shorten(name)} of the reply is {shorten(value)}: give text that UTF-8 can carry",
                field=name,
            ) from error
    if size > MAX_REPLY:
        raise PayloadTooLarge(
            f"the reply has {size:,} bytes of headers and body, limit {MAX_REPLY:,}: store the content "
            "elsewhere and answer with its address, or do not keep this reply",
            size=size,
            limit=MAX_REPLY,
        )
