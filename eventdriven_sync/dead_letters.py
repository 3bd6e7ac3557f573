"""The dead-letter queue: deliveries that failed for good, to be inspected, retried or discarded."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from eventdriven_sync.config import check_text
from eventdriven_sync.errors import InvalidOption, InvalidTransition, NotFound, shorten
from eventdriven_sync.handlers import check_count
from eventdriven_sync.records import Delivery
from eventdriven_sync.store import MAX_TEXT, DeliveryQuery, DeliveryStore

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus


class DeadLetters:
    """Dead deliveries of a bus. ``bus.dead_letters`` makes one; thread-safe."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    def find(
        self,
        *,
        handler: str | None = None,
        group: str | None = None,
        event: str | None = None,
        error: str | None = None,
        reason: str | None = None,
        operation_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Delivery]:
        """Dead letters, newest first.

        Args:
            handler: ``Group.handler``.
            group: every handler of this group.
            event: an event name.
            error: the class name of the last error (``SMTPServerDisconnected``).
            reason: why they are dead (``attempts_exhausted``, ``rejected``, …).
            after: the last id of the page before.

        Raises:
            InvalidOption: ``limit`` is no whole number from 1 to 10,000.
        """
        check_count(limit, field="limit", high=10_000)
        return self._deliveries().find(
            DeliveryQuery(
                states=("dead",),
                handler=handler,
                group=group,
                event_name=event,
                error=error,
                reason=reason,
                operation_id=operation_id,
                since=since,
                until=until,
                after=after,
                limit=limit,
            )
        )

    def count(self, *, handler: str | None = None, group: str | None = None) -> int:
        """How many dead letters there are."""
        query = DeliveryQuery(states=("dead",), handler=handler, group=group)
        return self._deliveries().count(query).get("dead", 0)

    def get(self, delivery_id: str) -> Delivery:
        """A delivery with its event and every recorded failure, dead or not.

        Raises:
            NotFound: no delivery has this id.
        """
        check_text(delivery_id, field="delivery id", most=MAX_TEXT)
        found = self._deliveries().get(delivery_id)
        if found is None:
            raise NotFound(
                f"no delivery has the id {shorten(delivery_id)}; `eventdriven dead list` shows the dead ones",
                id=delivery_id,
            )
        return found

    def retry(self, delivery_id: str, *, by: str = "") -> None:
        """Run it again with fresh attempts: only the handler that failed sees the event. History stays.

        Raises:
            NotFound: no delivery has this id.
            InvalidTransition: it is not dead.
        """
        if not self._deliveries().retry_dead(DeliveryQuery(ids=(delivery_id,)), by=by):
            state = self.get(delivery_id).state
            raise InvalidTransition(
                f"delivery {delivery_id} is {state!r}; only 'dead' can be retried",
                id=delivery_id,
                state=state,
            )

    def retry_all(
        self,
        *,
        handler: str | None = None,
        group: str | None = None,
        event: str | None = None,
        error: str | None = None,
        reason: str | None = None,
        operation_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str = "",
    ) -> int:
        """Retry every dead letter that matches; arguments as in ``find``. Returns how many."""
        query = DeliveryQuery(
            states=("dead",),
            handler=handler,
            group=group,
            event_name=event,
            error=error,
            reason=reason,
            operation_id=operation_id,
            since=since,
            until=until,
        )
        return self._deliveries().retry_dead(query, by=by)

    def discard(self, delivery_id: str, *, reason: str, by: str = "") -> None:
        """Give up on a dead (or retrying) delivery for good; it stays on record as ``discarded``.

        Raises:
            NotFound: no delivery has this id.
            InvalidTransition: it is neither dead nor retrying.
            InvalidOption: the reason is empty.
        """
        if not isinstance(reason, str) or not reason.strip():
            raise InvalidOption('discard needs a reason="…": it stays on record', field="reason")
        if not self._deliveries().discard(DeliveryQuery(ids=(delivery_id,)), reason=reason[:2000], by=by):
            state = self.get(delivery_id).state
            raise InvalidTransition(
                f"delivery {delivery_id} is {state!r}; only 'dead' and 'retrying' can be discarded",
                id=delivery_id,
                state=state,
            )

    def _deliveries(self) -> DeliveryStore:
        self._bus.open()
        return self._bus.store.deliveries
