"""The monitor: one layer of questions and actions for pages, JSON API, command line and Python."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import attrs

from eventdriven_sync.chain import Chain, add_expected
from eventdriven_sync.config import check_text
from eventdriven_sync.counting import MINUTE, floor, subject_counts
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import InvalidOption, NotFound
from eventdriven_sync.figures import AuditEntry, AuditQuery, LetterGroup
from eventdriven_sync.handlers import check_count
from eventdriven_sync.monitoring import views
from eventdriven_sync.monitoring.actions import Actions
from eventdriven_sync.monitoring.jobs import GroupRetryActions
from eventdriven_sync.monitoring.records import EventDetail, HandlerRow, Overview, Page, StreamRow, page_of
from eventdriven_sync.monitoring.subjects import SubjectRow, subject_rows
from eventdriven_sync.monitoring.summary import ChainSummary, summarise
from eventdriven_sync.records import Delivery, Operation, WorkerRecord
from eventdriven_sync.store import MAX_TEXT, DeliveryQuery, EventQuery, OperationQuery, Store

MAX_PAGE = 200
MAX_MINUTES = 1440
MAX_CHAIN_SHOWN = 2000
MAX_SAMPLE = 1000
DEFAULT_SAMPLE = 300
DEFAULT_SPAN = timedelta(days=1)
MAX_SPAN = timedelta(days=31)


class Monitor(Actions, GroupRetryActions):
    """Everything one can ask and do about a bus. Thread-safe.

    Lists come in pages of at most 200, newest first; ``page.after`` is the ``after`` of the next one. Times
    are aware datetimes, a span is ``[since, until)``. Every question is bounded: one that takes longer than
    two seconds at the store is QueryTooSlow.

    Raises (every method):
        InvalidOption: an argument is out of range or of a wrong type.
        StoreUnavailable, StorePermissionDenied.

    Example:
        >>> monitor = Monitor(bus)  # doctest: +SKIP
        >>> monitor.overview().dead  # doctest: +SKIP
        3
    """

    # --- how everything is --------------------------------------------------------------------------

    def overview(self, *, minutes: int = 60) -> Overview:
        """Rates per minute, what waits, who works, and what is wrong.

        Args:
            minutes: how many, up to 1,440, the present one among them.
        """
        check_count(minutes, field="minutes", high=MAX_MINUTES)
        self._bus.open()
        return views.overview(self._bus, minutes=minutes)

    def handlers(self) -> list[HandlerRow]:
        """The handlers by name, with the live workers that run them; retired ones aside."""
        return views.handler_rows(self._bus, self._store.directory.workers())

    def workers(self) -> list[WorkerRecord]:
        """Workers heard of within the last minute, with what they run now."""
        return self._store.directory.workers()

    def streams(self) -> list[StreamRow]:
        """The streams with their consumers.

        Raises:
            BrokerUnavailable, BrokerPermissionDenied.
        """
        handlers = self.handlers()
        return views.stream_rows(self._bus, handlers, self._store.directory.now())

    # --- operations and events ----------------------------------------------------------------------

    def operations(
        self,
        *,
        kind: str | None = None,
        name: str | None = None,
        user: str | None = None,
        status: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page[Operation]:
        """Stored operations."""
        check_count(limit, field="limit", high=MAX_PAGE)
        query = OperationQuery(
            kind=kind,
            name=name,
            user=user,
            status=status,
            since=since,
            until=until,
            after=after,
            limit=limit + 1,
        )
        return page_of(self._store.events.find_operations(query), limit, lambda operation: operation.id)

    def operation(self, operation_id: str) -> Operation:
        """The operation; for an event published outside any operation one derived from that event.

        Raises:
            NotFound: neither an operation nor such an event has this id.
        """
        return self._bus.operations.get(operation_id)

    def chain(self, operation_id: str, *, limit: int = MAX_CHAIN_SHOWN) -> Chain:
        """What the operation set off, without the stacks of failures (``letter`` has them).

        Args:
            limit: events at most; a chain of more is ``truncated``.

        Raises:
            NotFound: no operation has this id.
        """
        return self._bus.operations.chain(operation_id, limit=limit, brief=True)

    def events(
        self,
        *,
        name: str | None = None,
        group: str | None = None,
        key: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        payload: Mapping[str, Any] | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page[Envelope]:
        """Events of all names, or of some.

        Args:
            group: events that handlers of this group are subscribed to.
            payload: fields of the payload by dotted path, with the text, number or truth value they must be
                equal to: ``{"user.id": "42"}``; only together with ``name`` and ``since``.

        Raises:
            QueryTooSlow: with ``payload``, the span is too long for two seconds.
        """
        check_count(limit, field="limit", high=MAX_PAGE)
        names = (name,) if name is not None else ()
        query = EventQuery(
            names=names,
            key=key,
            since=since,
            until=until,
            payload=payload or {},
            after=after,
            limit=limit + 1,
        )
        return page_of(self._events(query, group), limit, lambda event: event.id)

    def event(self, event_id: str) -> EventDetail:
        """An event with its deliveries and its operation.

        Raises:
            NotFound: no event has this id.
        """
        envelope = self._event(event_id)
        recorded = self._store.deliveries.find(DeliveryQuery(event_id=event_id, limit=MAX_PAGE))
        by_handler = {delivery.handler: delivery for delivery in recorded}
        add_expected(envelope, by_handler, self._store.directory.handlers())
        return EventDetail(
            envelope=envelope,
            deliveries=tuple(delivery for _, delivery in sorted(by_handler.items())),
            operation=self._operation_of(envelope),
        )

    # --- subjects -----------------------------------------------------------------------------------

    def subjects(self, *, since: datetime | None = None, until: datetime | None = None) -> list[SubjectRow]:
        """A row for each event name: what was published, and how its handlers did.

        Args:
            since: the last 24 hours by default; at most 31 days before ``until``. Rounded down to the minute.
            until: now by default.

        Raises:
            QueryTooSlow: no worker has counted the span, and it has too many events to count now.
        """
        begin, end = self._span(since, until)
        published, handled = subject_counts(self._store, since=begin, until=end)
        return subject_rows(published, handled, self._store.directory.handlers())

    def chain_summary(
        self,
        name: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        sample: int = DEFAULT_SAMPLE,
    ) -> ChainSummary:
        """What the events of a name set off, added up: handlers, their answers, failures and durations.

        Args:
            since: the last 24 hours by default; at most 31 days before ``until``. Rounded down to the minute.
            until: now by default.
            sample: how many events are looked at, the newest, up to 1,000.
        """
        check_count(sample, field="sample", high=MAX_SAMPLE)
        check_text(name, field="name", most=MAX_TEXT)
        begin, end = self._span(since, until)
        links = self._store.figures.links(name, since=begin, until=end, limit=sample)
        published, _ = subject_counts(self._store, since=begin, until=end)
        return ChainSummary(
            name=name,
            since=begin,
            until=end,
            total=max(len(links.roots), sum(each.count for each in published if each.name == name)),
            sampled=len(links.roots),
            root=summarise(name, links),
            truncated=links.truncated,
        )

    # --- dead letters -------------------------------------------------------------------------------

    def letter_groups(
        self,
        *,
        handler: str | None = None,
        group: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[LetterGroup]:
        """Dead letters by handler and cause, the largest group first: at most 200.

        Args:
            since: letters whose first attempt was then or later.
        """
        query = DeliveryQuery(handler=handler, group=group, since=since, until=until)
        handlers = None if query.handler is None else [query.handler]
        found = self._store.figures.letter_groups(handlers, since=since, until=until)
        return [each for each in found if query.group in (None, each.handler.partition(".")[0])]

    def letters(
        self,
        *,
        handler: str | None = None,
        group: str | None = None,
        fingerprint: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page[Delivery]:
        """Dead letters, without events and stacks.

        Args:
            fingerprint: whose last error has it; ``LetterGroup`` and ``Delivery`` tell.
        """
        check_count(limit, field="limit", high=MAX_PAGE)
        query = DeliveryQuery(
            states=("dead",),
            handler=handler,
            group=group,
            fingerprint=fingerprint,
            since=since,
            until=until,
            after=after,
            limit=limit + 1,
            brief=True,
        )
        return page_of(self._store.deliveries.find(query), limit, lambda delivery: delivery.id)

    def letter(self, delivery_id: str) -> Delivery:
        """A delivery with its event and every recorded failure, dead or not.

        Raises:
            NotFound: no delivery has this id.
        """
        return self._bus.dead_letters.get(delivery_id)

    # --- what people do -----------------------------------------------------------------------------

    def audit_log(
        self,
        *,
        who: str | None = None,
        action: str | None = None,
        touched: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page[AuditEntry]:
        """What people did.

        Args:
            touched: the id of a record: what was done to it.
        """
        check_count(limit, field="limit", high=MAX_PAGE)
        query = AuditQuery(
            who=who,
            action=action,
            touched=touched,
            since=since,
            until=until,
            after=after,
            limit=limit + 1,
        )
        return page_of(self._store.trail.find(query), limit, lambda entry: entry.id)

    # --- inside -------------------------------------------------------------------------------------

    @property
    def _store(self) -> Store:
        self._bus.open()
        return self._bus.store

    def _span(self, since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
        """Whole minutes; a day up to now if nothing is said."""
        EventQuery(since=since, until=until)  # checks them
        now = self._store.directory.now()
        end = floor(min(until or now, now) + MINUTE, MINUTE)
        begin = floor(since or end - DEFAULT_SPAN, MINUTE)
        if not timedelta() < end - begin <= MAX_SPAN:
            raise InvalidOption(
                f"since {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} is no span to count in: it must begin "
                f"before it ends, and be at most {MAX_SPAN.days} days long",
                field="since",
                limit=MAX_SPAN,
            )
        return begin, end

    def _events(self, query: EventQuery, group: str | None) -> list[Envelope]:
        if group is None:
            return self._store.events.find(query)
        check_text(group, field="group", most=MAX_TEXT)
        handled = {
            name
            for record in self._store.directory.handlers(retired=True)
            if record.group == group
            for name in record.events
        }
        names = tuple(sorted(handled.intersection(query.names) if query.names else handled))
        return self._store.events.find(attrs.evolve(query, names=names)) if names else []

    def _operation_of(self, envelope: Envelope) -> Operation | None:
        try:
            return self._bus.operations.get(envelope.operation_id)
        except NotFound:  # it began elsewhere
            return None
