"""Operations: the commands that start chains of events, and what became of each chain."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ContextDecorator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs

from eventdriven_sync import context
from eventdriven_sync.chain import Chain, build_chain
from eventdriven_sync.config import check_text
from eventdriven_sync.envelope import Envelope, derived_id, new_id, utcnow
from eventdriven_sync.errors import EventDrivenError, InvalidOption, NotFound, OperationTimeout, shorten
from eventdriven_sync.executor import failure_of
from eventdriven_sync.handlers import check_count
from eventdriven_sync.outcome import Failure
from eventdriven_sync.recorded import Recorded
from eventdriven_sync.records import Operation
from eventdriven_sync.store import MAX_TEXT, DeliveryQuery, EventQuery, OperationQuery

if TYPE_CHECKING:
    from types import TracebackType

    from eventdriven_sync.bus import EventBus

log = logging.getLogger(__name__)

# Among the details of an operation: the event of which one handler got a copy.
RUN_AGAIN = "run_again"
MAX_CHAIN = 20_000
MAX_CHAIN_DELIVERIES = 100_000
FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.25


class OperationScope(ContextDecorator):
    """A running operation: a context manager, and a decorator that begins a new one at each call.

    Attributes:
        id: the operation's id, known before it begins.
    """

    def __init__(
        self,
        bus: EventBus,
        *,
        name: str,
        kind: str,
        variables: Mapping[str, Any],
        user: str | None,
        details: Mapping[str, Any] | None = None,
        idempotency_key: str = "",
    ) -> None:
        self._bus = bus
        self._given = {
            "name": _text(name, "name"),
            "kind": _text(kind, "kind"),
            "user": _text(user, "user") if user else None,
        }
        self._key = context.check_key(idempotency_key)
        self._variables = _mapping(variables, "variables")
        self._details = _mapping(details or {}, "details")
        self.id = self._repeatable_id() if self._key else new_id()
        self._operation: Operation | None = None
        self._outer: context.Origin | None = None
        self._own: context.Origin | None = None
        self._stored = False

    def _repeatable_id(self) -> str:
        namespace = self._bus.settings.namespace
        return derived_id("operation", namespace, str(self._given["name"]), self._key, at="")

    def _recreate_cm(self) -> OperationScope:
        """Contextlib asks for this when a decorated function is called: every call is an operation."""
        return OperationScope(
            self._bus,
            variables=self._variables,
            details=self._details,
            idempotency_key=self._key,
            **self._given,  # type: ignore[arg-type]
        )

    def __enter__(self) -> OperationScope:
        self.begin()
        try:
            self.store()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.end(failure_of(error) if error else None)
        except EventDrivenError as unsaved:
            if error is None:
                raise
            # The error of the block is what its caller must see.
            log.warning("Operation %s failed, which was not stored: %s", self.id, unsaved)

    def begin(self) -> None:
        """Begin without storing anything: the first event published inside does, or ``store``, or ``end``."""
        self._operation = Operation(
            id=self.id,
            parent_id=context.current_operation_id(),
            variables=self._plain(self._variables),
            details=self._plain(self._details),
            started_at=utcnow(),
            **self._given,  # type: ignore[arg-type]
        )
        self._outer = context.origin.get()
        self._own = context.Origin(
            operation_id=self.id, idempotency_key=self._key, before_publishing=self._store_once
        )
        context.origin.set(self._own)

    def store(self, *, timeout: float | None = None) -> None:
        """Store its present state.

        Args:
            timeout: seconds, ``settings.publish_timeout`` by default.

        Raises:
            StoreUnavailable, PublishOutcomeUnknown, StorePermissionDenied, ConfigurationError.
        """
        seconds = timeout or self._bus.settings.publish_timeout
        self._bus.open(timeout=seconds)
        self._bus.store.events.save_operation(self._begun(), timeout=seconds)
        self._stored = True

    def describe(
        self,
        *,
        variables: Mapping[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
        user: str | None = None,
    ) -> None:
        """Say more about it while it runs; stored with its next state.

        Args:
            variables: they replace those it was begun with.
            details: they are added to those that are known.
            user: on whose behalf.
        """
        running = self._begun()
        kept = running.variables if variables is None else self._plain(_mapping(variables, "variables"))
        self._operation = attrs.evolve(
            running,
            variables=kept,
            details={**running.details, **self._plain(_mapping(details or {}, "details"))},
            user=_text(user, "user") if user else running.user,
        )

    def end(self, failure: Failure | None = None, *, timeout: float | None = None) -> None:
        """It has ended: with a failure, or well. What is published from now on no longer belongs to it.

        Args:
            timeout: seconds for storing it, ``settings.publish_timeout`` by default.

        Raises:
            what ``store`` raises; it has ended all the same.
        """
        self._leave()
        self._operation = attrs.evolve(
            self._begun(),
            status="failed" if failure else "succeeded",
            error=failure,
            finished_at=utcnow(),
        )
        self.store(timeout=timeout)

    def suspend(self, failure: Failure | None = None, *, timeout: float | None = None) -> None:
        """It will be begun again with the same key; until then it is stored as running. ``leave`` follows.

        To be called before anybody can begin it again: who does may end it at once, which must come last.

        Args:
            failure: why this run does not end it.
            timeout: seconds for storing it, ``settings.publish_timeout`` by default.

        Raises:
            what ``store`` raises.
        """
        self._operation = attrs.evolve(self._begun(), error=failure)
        self.store(timeout=timeout)

    def leave(self) -> None:
        """What is published from now on no longer belongs to it; nothing is stored."""
        self._leave()

    def forget(self) -> None:
        """End it without a record, unless something was published in it."""
        if self._stored:
            self.end()
        else:
            self._leave()

    def _plain(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values of the caller, JSON-safe."""
        return self._bus.codec.plain(values) if values else {}

    def _begun(self) -> Operation:
        if self._operation is None:
            raise InvalidOption(f"operation {self.id} has not begun: call begin() first", field="operation")
        return self._operation

    def _leave(self) -> None:
        # Not by a token: a request may end in another context than it began in.
        context.origin.set(self._outer)

    def _store_once(self) -> None:
        if not self._stored:
            self.store()

    def wait(self, timeout: float | None = None) -> Chain:
        """Wait until every delivery of the whole chain is settled, and return the chain.

        Args:
            timeout: seconds, None to wait for ever.

        Raises:
            OperationTimeout: deliveries are still pending, running or retrying; they go on.
            InvalidOption: called inside the operation's own block, which it would wait for.
        """
        if self._own is not None and context.origin.get() is self._own:
            raise InvalidOption(
                f"operation {self.id} is still running: call wait() after its `with` block", field="wait"
            )
        return self._bus.operations.wait(self.id, timeout=timeout)


class Operations:
    """Reading operations and their chains. ``bus.operations`` makes one; thread-safe."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    def get(self, operation_id: str) -> Operation:
        """The operation; of a chain that has no record of it one derived from its first event.

        That is an event published outside any operation; also a chain that went on in another process
        before its operation was stored, or whose operation was never stored since its process died.

        Raises:
            NotFound: neither an operation nor the events of any chain have this id.
        """
        check_text(operation_id, field="operation id", most=MAX_TEXT)
        self._bus.open()
        events = self._bus.store.events
        found = events.operation(operation_id)
        if found:
            return found
        chain = events.find(EventQuery(operation_id=operation_id, oldest_first=True, limit=1))
        first = chain[0] if chain else events.get([operation_id]).get(operation_id)
        if first is None:
            raise NotFound(
                f"no operation has the id {shorten(operation_id)}; `eventdriven operations list` shows them",
                id=operation_id,
            )
        return _derived(operation_id, first)

    def find(
        self,
        *,
        kind: str | None = None,
        name: str | None = None,
        user: str | None = None,
        status: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Operation]:
        """Stored operations, newest first; ``after`` is the last id of the page before.

        Raises:
            InvalidOption: ``limit`` is no whole number from 1 to 10,000.
        """
        check_count(limit, field="limit", high=10_000)
        self._bus.open()
        return self._bus.store.events.find_operations(
            OperationQuery(
                kind=kind,
                name=name,
                user=user,
                status=status,
                since=since,
                until=until,
                after=after,
                limit=limit,
            )
        )

    def chain(self, operation_id: str, *, limit: int | None = None, brief: bool = False) -> Chain:
        """The tree operation → events → deliveries → events, with times, states, attempts and errors.

        A handler that has not begun yet appears as a ``pending`` delivery.

        Args:
            limit: how many events are shown at most, 20,000 by default, the first ones: the chain says if it
                is ``truncated``. Of deliveries up to five times as many.
            brief: leave out the stacks of failures.

        Raises:
            NotFound: no operation has this id.
            InvalidOption: ``limit`` is no whole number from 1 to 20,000.
        """
        limit = MAX_CHAIN if limit is None else limit
        check_count(limit, field="limit", high=MAX_CHAIN)
        operation = self.get(operation_id)
        store = self._bus.store
        # In this order: what a handler published is stored before its success, so whoever sees the success
        # sees the events, and a chain never looks settled while an event of it is still to be handled.
        most = min(5 * limit, MAX_CHAIN_DELIVERIES)
        deliveries = store.deliveries.find(DeliveryQuery(operation_id=operation_id, limit=most, brief=brief))
        copied = self._copied(operation)
        events = copied + store.events.find(
            EventQuery(operation_id=operation_id, oldest_first=True, limit=limit)
        )
        return build_chain(
            operation,
            events,
            deliveries,
            store.directory.handlers(),
            only={event.id: operation.details["handler"] for event in copied},
            truncated=len(events) >= limit or len(deliveries) >= most,
        )

    def _copied(self, operation: Operation) -> list[Envelope]:
        """The copy of an event that one handler got in this operation: no collection of events has it."""
        source = operation.details.get(RUN_AGAIN)
        found = self._bus.store.events.get([source]) if operation.kind == "manual" and source else {}
        return [
            attrs.evolve(
                event,
                id=operation.id,
                operation_id=operation.id,
                published_at=operation.started_at,
                parent_ids=(),
                source="",
                depth=0,
            )
            for event in found.values()
        ]

    def wait(self, operation_id: str, *, timeout: float | None = None) -> Chain:
        """Wait until the whole chain is settled; see ``OperationScope.wait``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause, recorded = FIRST_PAUSE, Recorded(self._bus)
        while True:
            chain = self._chain_if_recorded(operation_id)
            found = sum(1 for _ in chain.walk()) if chain else 0
            if (chain is None or chain.settled) and recorded.all_of(found):
                return chain or self.chain(operation_id)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise OperationTimeout(
                    f"operation {operation_id} has {chain.open if chain else 0} open deliveries after "
                    f"{timeout:g} s, or events that are not recorded yet; it goes on",
                    chain=chain,
                    limit=timeout,
                )
            time.sleep(pause if left is None else min(pause, left))
            pause = min(pause * 1.5, LONGEST_PAUSE)

    def _chain_if_recorded(self, operation_id: str) -> Chain | None:
        """None if nothing is known of it, while that may only not have been recorded yet."""
        try:
            return self.chain(operation_id)
        except NotFound:
            if not self._bus.topology.recorders():
                raise
            return None


def _derived(operation_id: str, first: Envelope) -> Operation:
    return Operation(
        id=operation_id,
        name=first.name,
        kind="publish",
        status="succeeded",
        started_at=first.published_at,
        finished_at=first.published_at,
    )


def _mapping(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidOption(
            f'operation {field} is {shorten(value)}: give a dict such as {{"file": name}}', field=field
        )
    return dict(value)


def _text(value: object, field: str) -> str:
    return check_text(value, field=field, most=200, of="operation ")


__all__: Sequence[str] = ["Chain", "OperationScope", "Operations"]
