"""One start of a handler for one delivery: what came, and what is known of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs

from eventdriven_sync import context
from eventdriven_sync.broker import Consumption, Incoming
from eventdriven_sync.envelope import Envelope, new_id, utcnow
from eventdriven_sync.handlers import Handler
from eventdriven_sync.records import Delivery, delivery_id

# A lease is renewed when less than this part of it is left.
RENEWED_BELOW = 2 / 3


@attrs.define(eq=False, kw_only=True)
class Attempt:
    """One start of a handler for one delivery.

    Attributes:
        message: from the live lane, with the consumption that acknowledges it.
        delivery: the claimed record, when the store owns the delivery (recovery lane, slow path).
        event: None when the message is no event we can read; ``fault`` says why.
        payload: the user's object, decoded when the attempt was admitted.
        fault: what stands against running the handler at all.
        id: of the delivery, once it is known which event this is.
        key: what a batch handler's ``group_by`` said.
    """

    handler: Handler
    message: Incoming | None = None
    consumption: Consumption | None = None
    delivery: Delivery | None = None
    event: Envelope | None = None
    payload: Any = None
    fault: BaseException | None = None
    token: str = attrs.field(factory=new_id)
    id: str = ""
    checked: bool = False
    decoded: bool = False
    key: Any = None
    handling: context.Handling | None = None
    started_at: datetime = attrs.field(factory=utcnow)
    started: float = attrs.field(factory=time.monotonic)

    @property
    def is_suspect(self) -> bool:
        """Whether a worker that had it died, and the store does not know yet that it runs again."""
        return self.delivery is not None and not self.delivery.begun

    def told_begun(self) -> None:
        """The store knows that it runs."""
        if self.delivery is not None and not self.delivery.begun:
            self.delivery = attrs.evolve(self.delivery, begun=True)

    @property
    def event_id(self) -> str:
        """The event's id; for an unreadable message its place in the stream."""
        if self.delivery:
            return self.delivery.event_id
        if self.event:
            return self.event.id
        assert self.message is not None
        # With its time: a stream that was created anew counts from 1 again.
        return f"{self.message.stream}-{self.message.sequence}-{self.message.stored_at.timestamp():.0f}"

    @property
    def delivery_id(self) -> str:
        """The id of the delivery."""
        return self.id or delivery_id(self.handler.name, self.event_id)

    def begin(self) -> None:
        """The handler starts now."""
        self.started_at, self.started = utcnow(), time.monotonic()


def attempts_of(
    handler: Handler, messages: Sequence[Incoming], consumption: Consumption | None
) -> list[Attempt]:
    """What has arrived together, each with a token of its own."""
    first, now, started = new_id(), utcnow(), time.monotonic()
    return [
        Attempt(
            handler=handler,
            message=message,
            consumption=consumption,
            token=f"{first}-{number}",
            started_at=now,
            started=started,
        )
        for number, message in enumerate(messages)
    ]
