"""What monitoring needs of a store beside the records themselves: counts, groups and the audit trail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import attrs

from eventdriven_sync.store import check_query

MAX_GROUPS = 1000
MAX_IDS = 100

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


class AuditTrail(Protocol):
    """Who did what. Entries are added and never changed."""

    def record(self, entry: AuditEntry) -> None:
        """Add an entry durably; its ``at`` becomes the store's time. Repeating it changes nothing."""

    def find(self, query: AuditQuery) -> list[AuditEntry]:
        """Entries by query."""
