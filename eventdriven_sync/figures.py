"""What monitoring needs of a store beside the records themselves: counts, groups and the audit trail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import attrs

from eventdriven_sync.queries import check_query

MAX_GROUPS = 200
MAX_IDS = 100
MAX_LINKS = 20_000

# Upper bounds in milliseconds; the last bucket is everything above.
DURATION_BUCKETS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 60_000)


@attrs.frozen(kw_only=True)
class PublishedCount:
    """How many events of a name and version were published in a minute."""

    minute: datetime
    name: str
    version: int
    count: int


@attrs.frozen(kw_only=True)
class HandledCount:
    """What became of the attempts of a handler at events of a name, or of all attempts of a minute.

    Attributes:
        failed: attempts that failed and are tried again; ``dead`` ones are not among them.
        durations: attempts per bucket of ``DURATION_BUCKETS_MS``, the last for everything above.
    """

    minute: datetime | None = None
    event_name: str = ""
    handler: str = ""
    succeeded: int
    failed: int
    dead: int
    discarded: int
    durations: tuple[int, ...] = ()


@attrs.frozen(kw_only=True)
class HourCount:
    """An hour that is over, added up once and for all.

    Attributes:
        published: per minute of the hour.
        attempts: per minute of the hour, without durations.
        names: what was published, by name and version; ``minute`` is the hour.
        subjects: what was handled, by event name and handler.
    """

    hour: datetime
    published: tuple[int, ...]
    attempts: tuple[HandledCount, ...]
    names: tuple[PublishedCount, ...]
    subjects: tuple[HandledCount, ...]


@attrs.frozen(kw_only=True)
class LetterGroup:
    """Dead letters of one handler whose last errors have the same fingerprint.

    Attributes:
        error_type: class name of the error.
        message: that of the newest one, as an example.
        first_at: the first attempt of the oldest.
        last_at: when the last of them died.
    """

    handler: str
    fingerprint: str
    error_type: str
    message: str
    count: int
    first_at: datetime
    last_at: datetime


@attrs.frozen(kw_only=True)
class EventLink:
    """An event without its payload: where it comes from."""

    id: str
    name: str
    parent_ids: tuple[str, ...]
    source: str


@attrs.frozen(kw_only=True)
class DeliveryLink:
    """A delivery without its failures: what became of an event at a handler."""

    event_id: str
    handler: str
    state: str
    failed: int
    duration_ms: float | None


@attrs.frozen(kw_only=True)
class Links:
    """Events of one name, with everything that happened in their chains.

    Attributes:
        roots: the events of the name, newest first.
        events: all events of the operations they belong to, themselves among them.
        deliveries: likewise.
        truncated: True if there is more.
    """

    roots: tuple[EventLink, ...]
    events: tuple[EventLink, ...]
    deliveries: tuple[DeliveryLink, ...]
    truncated: bool


def _first_ids(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(ids)[:MAX_IDS]


@attrs.frozen(kw_only=True)
class AuditEntry:
    """What a person did, or tried to do.

    Attributes:
        id: 24 hex digits.
        at: the store's clock; None until it is recorded.
        who: the name of the person.
        ip: the client's address, empty outside the browser.
        action: what was done, such as ``retry`` or ``login_failed``.
        ids: of the records it was done to, the first 100.
        before: what matters of their state before, JSON-safe.
        after: likewise afterwards; ``error`` if it did not come to that.
    """

    id: str
    at: datetime | None = None
    who: str
    ip: str = ""
    action: str
    ids: tuple[str, ...] = attrs.field(default=(), converter=_first_ids)
    before: Mapping[str, Any] = attrs.field(factory=dict)
    after: Mapping[str, Any] = attrs.field(factory=dict)
    reason: str = ""


@attrs.frozen(kw_only=True)
class AuditQuery:
    """Which entries; empty fields match everything. Newest first; ``after``: last id of the page before."""

    who: str | None = None
    action: str | None = None
    touched: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    after: str | None = None
    limit: int = 100

    def __attrs_post_init__(self) -> None:
        check_query(self)


class Figures(Protocol):
    """Counts and groups. Each call is one bounded aggregation, served by an index.

    Errors: QueryTooSlow (it took longer than two seconds), StoreUnavailable, StorePermissionDenied.
    """

    def published(self, *, since: datetime, until: datetime) -> list[PublishedCount]:
        """Events published in ``[since, until)`` by minute, name and version."""

    def handled_by_minute(self, *, since: datetime, until: datetime) -> list[HandledCount]:
        """Attempts settled in ``[since, until)`` by minute, oldest first, without durations."""

    def handled_by_subject(self, *, since: datetime, until: datetime) -> list[HandledCount]:
        """Attempts settled in ``[since, until)`` by event name and handler."""

    def oldest_published(self) -> datetime | None:
        """When the oldest stored event was published."""

    def save_published(self, counts: Sequence[PublishedCount], *, since: datetime, until: datetime) -> None:
        """Keep the counts of every minute of ``[since, until)``, also of those without events."""

    def saved_published(self, *, since: datetime, until: datetime) -> list[PublishedCount]:
        """Counts kept by ``save_published``, of minutes in ``[since, until)``, oldest first."""

    def counted_until(self) -> datetime | None:
        """The end of the last minute kept by ``save_published``."""

    def save_hour(self, hour: HourCount) -> None:
        """Keep an hour, or replace it."""

    def hours(self, *, since: datetime, until: datetime) -> list[HourCount]:
        """Hours kept that begin in ``[since, until)``, oldest first."""

    def last_hour(self) -> datetime | None:
        """The begin of the last hour kept."""

    def oldest_open(self) -> datetime | None:
        """``created_at`` of the oldest delivery that is pending, running or retrying."""

    def letter_groups(
        self,
        handlers: Sequence[str] | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[LetterGroup]:
        """Dead letters created in ``[since, until)`` by handler and fingerprint, the largest group first.

        Of more than ``MAX_GROUPS`` groups the largest.
        """

    def links(self, name: str, *, since: datetime, until: datetime, limit: int) -> Links:
        """The newest events of a name published in ``[since, until)``, with their chains.

        Args:
            limit: of the events; of what is in their chains at most ``MAX_LINKS`` events and deliveries.
        """


class AuditTrail(Protocol):
    """Who did what. Entries are added and never changed."""

    def record(self, entry: AuditEntry) -> None:
        """Add an entry durably; its ``at`` becomes the store's time. Repeating it changes nothing."""

    def find(self, query: AuditQuery) -> list[AuditEntry]:
        """Entries by query."""
