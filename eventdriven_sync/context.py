"""Who is acting: the operation, the delivery being handled and the open transaction of this context.

Context variables, so nested operations, threads started with ``contextvars.copy_context`` and greenlets
each see their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import attrs

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.records import Operation


@attrs.define(eq=False)
class Handling:
    """The attempt that runs in this context: collects what the handler publishes until it returns.

    Attributes:
        handler: ``Group.handler``.
        parents: the events being handled: one, or a whole batch.
        emitted: published and held back; stored with the outcome.
        held_bytes: their size on the wire.
        published: how many events this attempt published, immediate ones included: the ordinal of the next.
        abandoned: the attempt timed out or lost its lease: it may publish no more.
        ended: the handler returned or raised: what threads it left behind publish is refused.
        session: the transaction of a transactional handler.
    """

    handler: str
    parents: Sequence[Envelope]
    emitted: list[Envelope] = attrs.field(factory=list)
    held_bytes: int = 0
    published: int = 0
    abandoned: bool = False
    ended: bool = False
    session: Any = None


@attrs.define(eq=False)
class Transaction:
    """An open ``bus.transaction()``: what was published in it is dispatched after the commit."""

    session: Any
    published: list[Envelope] = attrs.field(factory=list)


handling: ContextVar[Handling | None] = ContextVar("eventdriven_handling", default=None)
operation: ContextVar[Operation | None] = ContextVar("eventdriven_operation", default=None)
transaction: ContextVar[Transaction | None] = ContextVar("eventdriven_transaction", default=None)


def current_envelope() -> Envelope | None:
    """The event being handled in this context (a batch: its first), or None outside handlers."""
    running = handling.get()
    return running.parents[0] if running else None


def current_operation_id() -> str | None:
    """The id of the operation this context belongs to, or None."""
    begun, running = operation.get(), handling.get()
    if begun:
        return begun.id
    return running.parents[0].operation_id if running else None
