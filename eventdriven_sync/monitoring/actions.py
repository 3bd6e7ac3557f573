"""What a person does, written to the audit trail before it is done: nothing happens off the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from eventdriven_sync.config import check_text
from eventdriven_sync.envelope import Envelope, new_id, utcnow
from eventdriven_sync.errors import EventDrivenError, InvalidOption, InvalidTransition, NotFound, shorten
from eventdriven_sync.figures import AuditEntry
from eventdriven_sync.operations import RUN_AGAIN
from eventdriven_sync.records import Delivery, Operation, delivery_id
from eventdriven_sync.store import MAX_TEXT

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus, Receipt

MAX_NAME = 200
MAX_REASON = 2000


@attrs.frozen(kw_only=True)
class Person:
    """Who acts, why, and from where.

    Raises:
        InvalidOption: without a name, or with texts that are none.
    """

    name: str
    reason: str = ""
    ip: str = ""

    def __attrs_post_init__(self) -> None:
        check_text(self.name, field="by", most=MAX_NAME)
        for field, most in (("reason", MAX_REASON), ("ip", MAX_NAME)):
            if getattr(self, field) != "":
                check_text(getattr(self, field), field=field, most=most)

    def explain(self, action: str) -> None:
        """InvalidOption without a reason."""
        if not self.reason.strip():
            raise InvalidOption(f'{action} needs a reason="…": it stays on record', field="reason")


class Actions:
    """What people do to deliveries, events and handlers. Thread-safe.

    Each method takes ``by``, who wants it, and perhaps ``reason`` and the client's address ``ip``: they stand
    in the audit log.
    """

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    def retry(self, delivery_id: str, *, by: str, reason: str = "", ip: str = "") -> None:
        """Run a dead delivery again with fresh attempts: only the handler that failed sees the event.

        Raises:
            NotFound: no delivery has this id.
            InvalidTransition: it is not dead.
        """
        person = Person(name=by, reason=reason, ip=ip)
        letter = self._in_state(delivery_id, ("dead",), "retried")
        after = {"state": "retrying"}
        with recorded(self._bus, "retry", [delivery_id], person, before=state_of(letter), after=after):
            self._bus.dead_letters.retry(delivery_id, by=by)

    def retry_edited(
        self,
        delivery_id: str,
        payload: Mapping[str, Any],
        *,
        by: str,
        reason: str = "",
        ip: str = "",
    ) -> None:
        """Run a dead delivery again with another payload. The event itself stays as it was published.

        Other handlers do not see it. The delivery keeps its event as ``original``.

        Raises:
            NotFound: no delivery has this id.
            InvalidTransition: it is not dead, or has no readable event.
            PayloadInvalid, PayloadNotSerializable, PayloadTooLarge, PayloadTooDeep: the handler's event
                cannot carry the payload.
        """
        person = Person(name=by, reason=reason, ip=ip)
        letter = self._in_state(delivery_id, ("dead",), "retried")
        if letter.event is None:
            raise InvalidTransition(
                f"delivery {delivery_id} has no readable event whose payload could be changed; retry it as "
                "it is, or discard it",
                id=delivery_id,
                state=letter.state,
            )
        edited = self._with_payload(letter.event, payload)
        before = state_of(letter) | {"payload": letter.event.data}
        after = {"state": "retrying", "payload": edited.data}
        with recorded(self._bus, "retry_edited", [delivery_id], person, before=before, after=after):
            if not self._bus.store.deliveries.retry_with(delivery_id, edited, by=by):
                self._refuse(delivery_id, ("dead",), "retried")

    def discard(self, delivery_id: str, *, by: str, reason: str, ip: str = "") -> None:
        """Give up on a dead or retrying delivery; it stays on record as ``discarded``.

        Raises:
            NotFound: no delivery has this id.
            InvalidTransition: it is neither dead nor retrying.
            InvalidOption: the reason is empty.
        """
        person = Person(name=by, reason=reason, ip=ip)
        person.explain("discard")
        letter = self._in_state(delivery_id, ("dead", "retrying"), "discarded")
        after = {"state": "discarded"}
        with recorded(self._bus, "discard", [delivery_id], person, before=state_of(letter), after=after):
            self._bus.dead_letters.discard(delivery_id, reason=reason, by=by)

    def undo_discard(self, delivery_id: str, *, by: str, reason: str = "", ip: str = "") -> None:
        """Bring a delivery that a person discarded back to where it was: dead, or retrying and due at once.

        Raises:
            NotFound: no delivery has this id.
            InvalidTransition: it is not discarded, or by its handler.
        """
        person = Person(name=by, reason=reason, ip=ip)
        letter = self._in_state(delivery_id, ("discarded",), "brought back")
        if not letter.discarded_from:
            raise InvalidTransition(
                f"delivery {delivery_id} was discarded by its handler ({shorten(letter.reason)}): only what "
                "a person discarded can be brought back; run it again instead",
                id=delivery_id,
                state=letter.state,
            )
        after = {"state": letter.discarded_from}
        with recorded(self._bus, "undo_discard", [delivery_id], person, before=state_of(letter), after=after):
            if not self._bus.store.deliveries.undo_discard(delivery_id, by=by):
                self._refuse(delivery_id, ("discarded",), "brought back")

    def publish_again(self, event_id: str, *, by: str, reason: str = "", ip: str = "") -> Receipt:
        """Publish an event's payload once more, as a new event in a new operation, for all its handlers.

        Raises:
            NotFound: no event has this id.
            PublishOutcomeUnknown.
        """
        person = Person(name=by, reason=reason, ip=ip)
        event = self._event(event_id)
        fresh = new_id()
        after = {"event_id": fresh}
        with recorded(self._bus, "publish_again", [event_id, fresh], person, before={}, after=after):
            return self._publish(event, fresh, person)

    def run_again(self, delivery_id: str, *, by: str, reason: str = "", ip: str = "") -> str:
        """Run a handler once more for an event, whatever became of it; the id of the delivery that runs.

        A dead delivery is retried. One that is over is left as it is: the handler gets a delivery of a copy
        of the event, in an operation of its own. No other handler sees it.

        Raises:
            NotFound: no delivery has this id, or its event is no longer stored.
            InvalidTransition: it is pending, running or retrying: it runs by itself.
        """
        letter = self._in_state(delivery_id, ("dead", "succeeded", "discarded"), "run again")
        if letter.state == "dead":
            self.retry(delivery_id, by=by, reason=reason, ip=ip)
            return delivery_id
        person = Person(name=by, reason=reason, ip=ip)
        event = self._event(letter.event_id)
        fresh = new_id()
        copy = _delivery_of(letter.handler, event, fresh)
        after = {"delivery": copy.id}
        with recorded(
            self._bus, "run_again", [delivery_id, copy.id], person, before=state_of(letter), after=after
        ):
            details = {RUN_AGAIN: event.id, "handler": letter.handler, "reason": reason}
            self._record_operation(fresh, "run again", person, details)
            self._bus.store.deliveries.insert_pending([copy])
        return copy.id

    def pause(self, handler: str, *, by: str, reason: str, ip: str = "") -> None:
        """Let running workers begin nothing more of a handler, within seconds; its events wait.

        Raises:
            NotFound: no handler has this name.
            InvalidOption: the reason is empty.
        """
        person = Person(name=by, reason=reason, ip=ip)
        person.explain("pause")
        before = self._pause_of(handler)
        with recorded(self._bus, "pause", [handler], person, before=before, after={"paused": True}):
            self._bus.store.directory.pause(handler, by=by, reason=reason)

    def resume(self, handler: str, *, by: str, reason: str = "", ip: str = "") -> None:
        """Let a paused handler run again.

        Raises:
            NotFound: no handler has this name.
        """
        person = Person(name=by, reason=reason, ip=ip)
        before = self._pause_of(handler)
        with recorded(self._bus, "resume", [handler], person, before=before, after={"paused": False}):
            self._bus.store.directory.resume(handler)

    # --- inside -------------------------------------------------------------------------------------

    def _in_state(self, delivery_id: str, states: Sequence[str], done: str) -> Delivery:
        letter = self._bus.dead_letters.get(delivery_id)
        if letter.state not in states:
            raise InvalidTransition(
                f"delivery {delivery_id} is {letter.state!r}; only {' and '.join(map(repr, states))} can be "
                f"{done}",
                id=delivery_id,
                state=letter.state,
            )
        return letter

    def _refuse(self, delivery_id: str, states: Sequence[str], done: str) -> None:
        """Somebody was faster: say how it is now."""
        letter = self._in_state(delivery_id, states, done)
        raise InvalidTransition(
            f"delivery {delivery_id} was changed by somebody else in this moment; look at it again",
            id=delivery_id,
            state=letter.state,
        )

    def _with_payload(self, event: Envelope, payload: Mapping[str, Any]) -> Envelope:
        if not isinstance(payload, Mapping):
            raise InvalidOption(
                f"payload is {shorten(payload)}: give an object with the fields of {event.name}",
                field="payload",
            )
        codec, refusal = self._bus.codec, f"{event.name} cannot be retried"
        edited = attrs.evolve(event, data=codec.plain(payload, field="payload", refusal=refusal))
        kind = self._bus.topology.event_types.get(event.name)
        if kind is not None and kind.version == event.version:
            codec.decode(kind, edited.data)
        return edited

    def _event(self, event_id: str) -> Envelope:
        check_text(event_id, field="event id", most=MAX_TEXT)
        self._bus.open()
        found = self._bus.store.events.get([event_id]).get(event_id)
        if found is None:
            raise NotFound(
                f"no event has the id {shorten(event_id)}; `eventdriven events list` shows them", id=event_id
            )
        return found

    def _publish(self, event: Envelope, fresh: str, person: Person) -> Receipt:
        from eventdriven_sync.bus import Receipt

        details = {"published_again": event.id, "reason": person.reason}
        with self._bus.operation("publish again", kind="manual", user=person.name, details=details) as own:
            timeout = self._bus.settings.publish_timeout
            now = self._bus.store.directory.estimated_now(timeout=timeout)
            copy = attrs.evolve(_copy(event, fresh), operation_id=own.id, published_at=now)
            [duplicate] = self._bus.store.events.append([copy], timeout=timeout)
            self._bus.dispatch([copy])
        return Receipt(id=fresh, operation_id=own.id, duplicate=duplicate)

    def _record_operation(
        self, operation_id: str, name: str, person: Person, details: Mapping[str, Any]
    ) -> None:
        now = utcnow()
        operation = Operation(
            id=operation_id,
            name=name,
            kind="manual",
            user=person.name,
            details=details,
            status="succeeded",
            started_at=now,
            finished_at=now,
        )
        timeout = self._bus.settings.publish_timeout
        self._bus.store.events.save_operation(operation, timeout=timeout)

    def _pause_of(self, handler: str) -> dict[str, Any]:
        check_text(handler, field="handler", most=MAX_TEXT)
        self._bus.open()
        for record in self._bus.store.directory.handlers():
            if record.name == handler:
                paused = record.paused
                return {"paused": True, "reason": paused.reason} if paused else {"paused": False}
        raise NotFound(
            f"no handler has the name {shorten(handler)}; `eventdriven handlers list` shows them", id=handler
        )


@contextmanager
def recorded(
    bus: EventBus,
    action: str,
    ids: Sequence[str],
    person: Person,
    *,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> Iterator[None]:
    """Record an action, then do it in the block; a second entry says so if it did not come to that."""
    entry = AuditEntry(
        id=new_id(),
        who=person.name,
        ip=person.ip,
        action=action,
        ids=tuple(ids),
        before=before,
        after=after,
        reason=person.reason,
    )
    bus.store.trail.record(entry)
    try:
        yield
    except EventDrivenError as error:
        failed = {"error": f"{type(error).__name__}: {error}"}
        bus.store.trail.record(attrs.evolve(entry, id=new_id(), after=failed))
        raise


def state_of(delivery: Delivery) -> dict[str, Any]:
    """What the audit trail keeps of a delivery."""
    return {
        "state": delivery.state,
        "reason": delivery.reason,
        "generation": delivery.generation,
        "failed": delivery.failed,
    }


def _copy(event: Envelope, fresh: str) -> Envelope:
    """The event as the first of a chain of its own."""
    return attrs.evolve(
        event,
        id=fresh,
        operation_id=fresh,
        published_at=utcnow(),
        parent_ids=(),
        source="",
        depth=0,
        trace={},
    )


def _delivery_of(handler: str, event: Envelope, fresh: str) -> Delivery:
    copy = _copy(event, fresh)
    return Delivery(
        id=delivery_id(handler, fresh),
        handler=handler,
        event_id=fresh,
        event_name=event.name,
        operation_id=fresh,
        state="pending",
        created_at=copy.published_at,
        event=copy,
    )
