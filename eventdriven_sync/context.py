"""Who is acting: the operation, the delivery being handled and the open transaction of this context.

Context variables, so nested operations, threads started with ``contextvars.copy_context`` and greenlets
each see their own. A chain leaves the process with ``current_chain`` and goes on elsewhere in
``continue_chain``: in a task queue, a subprocess, a request to another service.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import attrs

from eventdriven_sync.config import check_number, check_text
from eventdriven_sync.envelope import Envelope, check_id, derived_id
from eventdriven_sync.errors import InvalidEventId, InvalidOption, shorten

MAX_PARENTS = 50
MAX_KEY = 1000


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


@attrs.define(eq=False, kw_only=True)
class Origin:
    """What is published in this context follows from: an operation, or a chain that goes on here.

    Attributes:
        operation_id: the operation events belong to.
        parent_ids: the events whose handling led here, through a task queue for example.
        source: the handler that did, or empty.
        depth: number of events between the operation and what is published here.
        idempotency_key: ids of events are derived from it and from what they say; empty for new ids.
        before_publishing: stores an operation that has not been stored yet.
    """

    operation_id: str
    parent_ids: tuple[str, ...] = ()
    source: str = ""
    depth: int = 0
    idempotency_key: str = ""
    before_publishing: Callable[[], None] | None = None
    _times: dict[str, itertools.count[int]] = attrs.field(factory=dict, init=False)

    def event_id(self, namespace: str, content_hash: str) -> str:
        """The id of an event of this content: when all is run again, the n-th of its kind gets it again.

        Of the content and not of its place: what runs again may take another way, and an event that is
        published there for the first time must not pass for another one.
        """
        nth = next(self._times.setdefault(content_hash, itertools.count(1)))  # atomic: threads may share it
        return derived_id("origin", namespace, self.idempotency_key, content_hash, str(nth), at="")


handling: ContextVar[Handling | None] = ContextVar("eventdriven_handling", default=None)
origin: ContextVar[Origin | None] = ContextVar("eventdriven_origin", default=None)
transaction: ContextVar[Transaction | None] = ContextVar("eventdriven_transaction", default=None)


def current_envelope() -> Envelope | None:
    """The event being handled in this context (a batch: its first), or None outside handlers."""
    running = handling.get()
    return running.parents[0] if running else None


def current_operation_id() -> str | None:
    """The id of the operation this context belongs to, or None."""
    begun, running = origin.get(), handling.get()
    if begun:
        return begun.operation_id
    return running.parents[0].operation_id if running else None


def current_chain() -> dict[str, Any]:
    """What another process needs to go on with this chain, as JSON-safe values; empty outside of any chain.

    Send it along (a task's headers, a message, an environment variable) and give it to ``continue_chain``.
    """
    operation_id = current_operation_id()
    if operation_id is None:
        return {}
    parent_ids, source, depth = ancestry()
    return {"operation_id": operation_id, "parent_ids": list(parent_ids), "source": source, "depth": depth}


def ancestry() -> tuple[tuple[str, ...], str, int]:
    """Of an event published now: its parents' ids, who publishes it, and its depth in the chain."""
    running, begun = handling.get(), origin.get()
    if running:
        parents = tuple(parent.id for parent in running.parents[:MAX_PARENTS])
        return parents, running.handler, max(parent.depth for parent in running.parents) + 1
    return (begun.parent_ids, begun.source, begun.depth) if begun else ((), "", 0)


@contextmanager
def continue_chain(chain: Mapping[str, Any], *, idempotency_key: str = "") -> Iterator[None]:
    """Go on with a chain of another process: what is published inside belongs to its operation.

    Args:
        chain: what ``current_chain`` gave there.
        idempotency_key: what names this run, up to 1,000 characters: when the block is run again with the
            same key, the same events get the same ids, so that publishing them again is safe.

    Raises:
        InvalidOption: ``chain`` cannot be what ``current_chain`` gave.

    Example:
        >>> with bus.operation("import"):  # doctest: +SKIP
        ...     queue.send({"row": 7, "chain": current_chain()})
        >>> with continue_chain(message["chain"], idempotency_key=message["id"]):  # doctest: +SKIP
        ...     bus.publish(RowImported(row=7))
    """
    token = origin.set(origin_of(chain, idempotency_key=idempotency_key))
    try:
        yield
    finally:
        origin.reset(token)


def check_key(value: object) -> str:
    """An idempotency key of up to 1,000 characters, empty for none, or InvalidOption."""
    return "" if value == "" else check_text(value, field="idempotency_key", most=MAX_KEY)


def origin_of(chain: Mapping[str, Any], *, idempotency_key: str = "") -> Origin:
    """What is published follows from this chain of another process; InvalidOption if it is none."""
    key = check_key(idempotency_key)
    if not isinstance(chain, Mapping) or "operation_id" not in chain:
        raise InvalidOption(f"chain is {shorten(chain)}: give what current_chain() gave", field="chain")
    parents = chain.get("parent_ids", [])
    source = chain.get("source", "")
    if not isinstance(parents, list | tuple) or len(parents) > MAX_PARENTS:
        raise InvalidOption(
            f"parent_ids of chain is {shorten(parents)}: give at most {MAX_PARENTS} ids", field="parent_ids"
        )
    try:
        return Origin(
            operation_id=check_id(chain["operation_id"], field="operation_id"),
            parent_ids=tuple(check_id(parent, field="parent_ids") for parent in parents),
            source=source and check_text(source, field="source", most=200),
            depth=check_number(chain.get("depth", 0), field="depth", low=0, high=2**31 - 1, whole=True),
            idempotency_key=key,
        )
    except InvalidEventId as error:
        raise InvalidOption(f"chain cannot be continued: {error}", field="chain") from error
