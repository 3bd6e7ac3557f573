"""The executor: runs a handler for a delivery and turns whatever happens into one outcome.

Decide, record, acknowledge are explicit steps: ``outcome_of`` decides, the settler records and
acknowledges. No hook stands between them.
"""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any

import attrs
from tenacity import retry_always

from eventdriven_sync import context
from eventdriven_sync.attempt import RENEWED_BELOW, Attempt
from eventdriven_sync.codec import Codec
from eventdriven_sync.config import Settings
from eventdriven_sync.envelope import Envelope, accepted_now, utcnow
from eventdriven_sync.errors import (
    BrokerUnavailable,
    ChainTooDeep,
    CodecError,
    HandlerTimeout,
    InvalidEnvelope,
    LeaseLost,
    PublishOutcomeUnknown,
    StoreUnavailable,
    TooManyEvents,
    UnknownVersion,
    WorkerLost,
)
from eventdriven_sync.handlers import Handler
from eventdriven_sync.outcome import (
    Dead,
    DeadReason,
    Discard,
    Discarded,
    Done,
    Failure,
    Outcome,
    Reject,
    Retry,
    RetryAt,
    stack_of,
    text_of,
)
from eventdriven_sync.records import RawMessage, Settlement, delivery_id
from eventdriven_sync.store import Store

log = logging.getLogger(__name__)

# Asked for by the handler, or the servers' fault: `on` of a policy is about the handler's own errors.
_NOT_THE_HANDLERS = (Retry, StoreUnavailable, BrokerUnavailable, PublishOutcomeUnknown)
TRANSACTION_LIFETIME = 60.0  # seconds, unless somebody has set it otherwise in MongoDB

Around = Callable[[], AbstractContextManager[object]]


class Executor:
    """Runs attempts. Thread-safe: it keeps nothing between calls.

    Args:
        worker: who runs them, for the records.
        around: makes what each call of a handler is wrapped in; what it raises is the attempt's failure.
    """

    def __init__(
        self, *, codec: Codec, store: Store, settings: Settings, worker: str, around: Around = nullcontext
    ) -> None:
        self._codec, self._store = codec, store
        self._settings, self._worker = settings, worker
        self._around = around

    def read(self, attempt: Attempt) -> None:
        """Find out which event this is; no code of the user runs. What is no event is the attempt's fault."""
        if attempt.event or attempt.fault:
            return
        try:
            attempt.event = self._envelope(attempt)
        except CodecError as error:
            attempt.fault = error
        attempt.id = delivery_id(attempt.handler.name, attempt.event_id)

    def group(self, attempt: Attempt) -> None:
        """Ask a batch handler's ``group_by`` for the key; if it fails, that is how the attempt ends."""
        attempt.begin()
        self._decode(attempt)
        batch = attempt.handler.batch
        if attempt.fault or batch is None or batch.group_by is None:
            return
        try:
            attempt.key = batch.group_by(attempt.payload)
            hash(attempt.key)
        except BaseException as error:  # the user's function, which may raise anything
            attempt.fault = error

    def run(self, attempt: Attempt) -> Settlement:
        """Run the handler of an admitted attempt; never raises."""
        attempt.begin()
        self._decode(attempt)
        if attempt.fault is not None:
            return self.settlement(attempt, attempt.fault)
        handling = attempt.handling = _handling([attempt])
        error = self._call(attempt, handling)
        handling.ended = True
        return self.settlement(attempt, error, emitted=handling.emitted)

    def run_batch(self, attempts: Sequence[Attempt], batch: Any) -> list[Settlement]:
        """Run a batch handler once for admitted attempts with their payloads; one settlement each."""
        handling = _handling(attempts)
        for attempt in attempts:
            attempt.begin()
            attempt.handling = handling
        error = self._call_batch(attempts, batch, handling)
        handling.ended = True
        return self._batch_settlements(attempts, batch, handling, error)

    def settlement(
        self, attempt: Attempt, error: BaseException | None, *, emitted: Sequence[Envelope] = ()
    ) -> Settlement:
        """The record of an attempt that ended with ``error``, or well; only then what it emitted counts."""
        outcome = self.outcome_of(attempt, error)
        event = attempt.event
        return Settlement(
            handler=attempt.handler.name,
            event_id=attempt.event_id,
            event_name=event.name if event else _subject_name(attempt),
            operation_id=event.operation_id if event else attempt.event_id,
            outcome=outcome,
            token=attempt.token,
            claimed=attempt.delivery is not None,
            started_at=attempt.started_at,
            duration_ms=(time.monotonic() - attempt.started) * 1000,
            worker=self._worker,
            event=event,
            raw=None if event else _raw(attempt),
            emitted=tuple(emitted) if isinstance(outcome, Done) else (),
        )

    def outcome_of(self, attempt: Attempt, error: BaseException | None) -> Outcome:
        """Decide: what the attempt came to."""
        if error is None:
            return Done()
        if isinstance(error, Discard):
            return Discarded(reason=text_of(error))
        failure = failure_of(error, attempt, worker=self._worker)
        reason = _fatal(error, attempt)
        if reason:
            return Dead(reason=reason, failure=failure)
        if isinstance(error, UnknownVersion):
            return self._await_newer_code(attempt, failure)
        return self._by_policy(attempt, error, failure)

    def _by_policy(self, attempt: Attempt, error: BaseException, failure: Failure) -> Outcome:
        verdict = _verdict(attempt, error)
        if isinstance(verdict, str):
            timed_out = isinstance(error, HandlerTimeout) and verdict == "attempts_exhausted"
            return Dead(reason="timeout" if timed_out else verdict, failure=failure)
        # A subclass of Retry may have left out the delay.
        asked = getattr(error, "after", verdict) if isinstance(error, Retry) else verdict
        return RetryAt(after=asked, failure=failure)

    def _await_newer_code(self, attempt: Attempt, failure: Failure) -> Outcome:
        """A rolling deployment: another process may know this version, or this one after its restart."""
        waited = _since_first_failure(attempt)
        if waited >= self._settings.version_grace:
            return Dead(reason="unknown_version", failure=failure)
        return RetryAt(after=2.0 ** min(_failed(attempt), 8), failure=failure)

    def _envelope(self, attempt: Attempt) -> Envelope:
        if attempt.delivery and attempt.delivery.event:
            return attempt.delivery.event
        kept = attempt.delivery.raw if attempt.delivery else None
        message = attempt.message or kept
        if message is None:
            raise InvalidEnvelope(f"event {attempt.event_id} is no longer stored")
        return self._codec.unpack(
            message.data,
            headers=message.headers,
            subject=message.subject,
            namespace=self._settings.namespace,
        )

    def _decode(self, attempt: Attempt) -> None:
        """Build the user's object, unless too many workers have died of this delivery.

        Its class may do anything, also kill the process: so only now, when the start has been counted.
        """
        if attempt.decoded or attempt.fault:
            return
        attempt.decoded = True
        attempt.fault = self._worker_lost(attempt)
        if attempt.fault:
            return
        try:
            attempt.payload = self._payload(attempt)
        except CodecError as error:
            attempt.fault = error
        except BaseException as error:  # the user's class does what it likes while it is built
            attempt.fault = CodecError(f"{attempt.handler.name} cannot read this: {text_of(error)}")

    def _worker_lost(self, attempt: Attempt) -> WorkerLost | None:
        # With a message the count is only what the broker believes, which alone must not end a delivery.
        lost = attempt.delivery.lost if attempt.delivery and not attempt.message else 0
        if lost < self._settings.max_lost:
            return None
        return WorkerLost(
            f"{lost} workers died while running {attempt.handler.name} for event {attempt.event_id}",
            limit=self._settings.max_lost,
        )

    def _payload(self, attempt: Attempt) -> Any:
        event = attempt.event
        assert event is not None
        kind = attempt.handler.event_type(event.name)
        if kind is None:
            raise InvalidEnvelope(f"{attempt.handler.name} knows no event class for {event.name!r}")
        if event.version > kind.version:
            raise UnknownVersion(
                f"{event.name} has version {event.version}, this worker knows {kind.version}: "
                "deploy the newer code",
                version=event.version,
                limit=kind.version,
            )
        return self._codec.decode(kind, event.data)

    def _guarded(self, handling: context.Handling, function: Any, *arguments: Any) -> BaseException | None:
        """Call user code in a context of its own, so that nothing it sets leaks into the next attempt."""

        def call() -> None:
            context.handling.set(handling)
            if context.origin.get() is not None:
                context.origin.set(None)  # an operation begun in here is the handler's own
            if self._around is nullcontext:
                function(*arguments)
                return
            with self._around():
                function(*arguments)

        try:
            contextvars.copy_context().run(call)
        except BaseException as error:  # SystemExit of a handler must not end the worker's thread either
            return error
        return None

    def _call_afresh(
        self, attempts: Sequence[Attempt], handling: context.Handling, session: Any, argument: Any
    ) -> None:
        """One run inside a transaction. The driver may run it again on a conflict: it begins from nothing."""
        function = attempts[0].handler.function
        again, handling.session = handling.session is not None, session
        if handling.abandoned or not self._prolonged(attempts):
            raise LeaseLost(f"{handling.handler} no longer owns this delivery: it does not run again")
        if again:
            log.info(
                "%s runs again for event %s%s: its transaction was ended by a conflict, and wrote nothing",
                handling.handler,
                attempts[0].event_id,
                f" and {len(attempts) - 1} more" if len(attempts) > 1 else "",
                extra={"action": "transaction_again", "delivery": attempts[0].delivery_id},
            )
        handling.emitted.clear()
        handling.held_bytes, handling.published = 0, 0
        error = self._guarded(handling, function, argument, session)
        if error is not None:
            raise error

    def _prolonged(self, attempts: Sequence[Attempt]) -> bool:
        """Whether the leases are ours, renewed before the transaction: within, that conflicts with it.

        So it gets a lease that need not be renewed as long as the transaction can last. A suspect is said to
        begin with the same call, so that nothing comes between that and the handler.
        """
        longest = min(self._time_of(attempts[0].handler), TRANSACTION_LIFETIME)
        lease = max(self._settings.lease, self._settings.lease * RENEWED_BELOW + longest)
        held = [attempt for attempt in attempts if attempt.delivery]
        for token in dict.fromkeys(attempt.token for attempt in held):
            mine = [attempt for attempt in held if attempt.token == token]
            ids, begun = [attempt.delivery_id for attempt in mine], any(each.is_suspect for each in mine)
            if self._store.deliveries.renew(ids, token=token, lease=lease, begun=begun):
                return False
            for attempt in mine:
                attempt.told_begun()
        return True

    def _call(self, attempt: Attempt, handling: context.Handling) -> BaseException | None:
        if not attempt.handler.transactional:
            return self._guarded(handling, attempt.handler.function, attempt.payload)

        def body(session: Any) -> None:
            self._call_afresh([attempt], handling, session, attempt.payload)
            settlement = self.settlement(attempt, None, emitted=accepted_now(handling.emitted, self._now()))
            self._settle_in(session, settlement, handling)

        return self._transact(body, attempt.handler)

    def _now(self) -> datetime:
        return self._store.directory.estimated_now()

    def _settle_in(self, session: Any, settlement: Settlement, handling: context.Handling) -> None:
        recorded = self._store.deliveries.settle_in(session, settlement)
        # Asked last: what was abandoned before is on record as failed, under the same token.
        if not recorded or handling.abandoned:
            raise LeaseLost(f"delivery {settlement.delivery_id} was settled by somebody else meanwhile")

    def _transact(self, body: Callable[[Any], None], handler: Handler) -> BaseException | None:
        """Business writes, emitted events and ``succeeded`` commit together."""
        try:
            self._store.run_transaction(body, timeout=self._time_of(handler))
        except BaseException as error:  # whatever a handler raises is an outcome, SystemExit included
            return error
        return None

    def _time_of(self, handler: Handler) -> float:
        """Seconds that a transactional handler may take."""
        return handler.timeout or self._settings.publish_timeout

    def _call_batch(
        self, attempts: Sequence[Attempt], batch: Any, handling: context.Handling
    ) -> BaseException | None:
        handler = attempts[0].handler
        if not handler.transactional:
            return self._guarded(handling, handler.function, batch)

        def body(session: Any) -> None:
            batch.failed.clear()
            self._call_afresh(attempts, handling, session, batch)
            handling.emitted[:] = accepted_now(handling.emitted, self._now())
            for settlement in self._batch_settlements(attempts, batch, handling, None):
                if isinstance(settlement.outcome, Done):
                    self._settle_in(session, settlement, handling)

        return self._transact(body, handler)

    def _batch_settlements(
        self, attempts: Sequence[Attempt], batch: Any, handling: context.Handling, error: BaseException | None
    ) -> list[Settlement]:
        """What the batch published travels with its first good item, and is stored before that outcome."""
        emitted: Sequence[Envelope] = handling.emitted
        settlements: list[Settlement] = []
        for attempt in attempts:
            settlement = self.settlement(
                attempt, error or batch.failed.get(id(attempt.payload)), emitted=emitted
            )
            emitted = () if settlement.emitted else emitted
            settlements.append(settlement)
        return settlements


def failure_of(
    error: BaseException, attempt: Attempt | None = None, *, worker: str = "", below: str = __name__
) -> Failure:
    """An exception as it is kept on record: class, text and stack, each cut to its limit.

    Args:
        below: the module whose frames, and what called it, say nothing: the stack begins below them.
    """
    delivery = attempt.delivery if attempt else None
    return Failure(
        error_type=type(error).__name__,
        message=text_of(error),
        traceback=stack_of(error, below=below),
        failed_at=utcnow(),
        attempt=delivery.attempts if delivery else 1,
        generation=delivery.generation if delivery else 0,
        worker=worker,
        duration_ms=(time.monotonic() - attempt.started) * 1000 if attempt else 0.0,
    )


def _handling(attempts: Sequence[Attempt]) -> context.Handling:
    parents = [attempt.event for attempt in attempts if attempt.event]
    return context.Handling(handler=attempts[0].handler.name, parents=parents)


def _fatal(error: BaseException, attempt: Attempt) -> DeadReason | None:
    """Why no further attempt can help, or None."""
    if isinstance(error, Reject):
        return "rejected"
    if isinstance(error, WorkerLost):
        return "worker_lost"
    if isinstance(error, ChainTooDeep | TooManyEvents):
        return "not_retryable"
    if error is not attempt.fault or isinstance(error, UnknownVersion) or not isinstance(error, CodecError):
        return None
    if attempt.event is None:
        return "invalid" if isinstance(error, InvalidEnvelope) else "undecodable"
    return "unknown_event" if isinstance(error, InvalidEnvelope) else "invalid"


def _failed(attempt: Attempt) -> int:
    return attempt.delivery.failed if attempt.delivery else 0


def _verdict(attempt: Attempt, error: BaseException) -> float | DeadReason:
    """What the handler's policy says."""
    policy = attempt.handler.retry
    if isinstance(error, _NOT_THE_HANDLERS):
        policy = attrs.evolve(policy, on=retry_always)
    return policy.decide(error, failures=_failed(attempt) + 1, elapsed=_since_first_failure(attempt))


def _since_first_failure(attempt: Attempt) -> float:
    return attempt.delivery.failing_for(utcnow()) if attempt.delivery else 0.0


def _subject_name(attempt: Attempt) -> str:
    if attempt.delivery:
        return attempt.delivery.event_name
    assert attempt.message is not None
    return attempt.message.subject.partition(".")[2]


def _raw(attempt: Attempt) -> RawMessage | None:
    kept = attempt.delivery.raw if attempt.delivery else None
    return RawMessage.of(attempt.message) if attempt.message else kept
