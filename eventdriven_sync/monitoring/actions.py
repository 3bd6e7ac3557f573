"""What a person does, written to the audit trail before it is done: nothing happens off the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from eventdriven_sync.config import check_text
from eventdriven_sync.envelope import new_id
from eventdriven_sync.errors import EventDrivenError, InvalidOption, InvalidTransition
from eventdriven_sync.figures import AuditEntry
from eventdriven_sync.records import Delivery

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

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


class Actions:
    """Changes deliveries on behalf of people. Thread-safe."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    def retry(self, delivery_id: str, person: Person) -> None:
        """Run a dead delivery again with fresh attempts."""
        letter = self._in_state(delivery_id, ("dead",), "retried")
        with self.recorded(
            "retry", [delivery_id], person, before=state_of(letter), after={"state": "retrying"}
        ):
            self._bus.dead_letters.retry(delivery_id, by=person.name)

    def discard(self, delivery_id: str, person: Person) -> None:
        """Give up on a dead or retrying delivery."""
        if not person.reason.strip():
            raise InvalidOption('discard needs a reason="…": it stays on record', field="reason")
        letter = self._in_state(delivery_id, ("dead", "retrying"), "discarded")
        with self.recorded(
            "discard", [delivery_id], person, before=state_of(letter), after={"state": "discarded"}
        ):
            self._bus.dead_letters.discard(delivery_id, reason=person.reason, by=person.name)

    @contextmanager
    def recorded(
        self,
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
        self._bus.store.trail.record(entry)
        try:
            yield
        except EventDrivenError as error:
            failed = {"error": f"{type(error).__name__}: {error}"}
            self._bus.store.trail.record(attrs.evolve(entry, id=new_id(), after=failed))
            raise

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


def state_of(delivery: Delivery) -> dict[str, Any]:
    """What the audit trail keeps of a delivery."""
    return {
        "state": delivery.state,
        "reason": delivery.reason,
        "generation": delivery.generation,
        "failed": delivery.failed,
    }
