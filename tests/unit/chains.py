"""Chains for tests of what is drawn: built from few words."""

from datetime import UTC, datetime, timedelta
from typing import Any

from eventdriven_sync.chain import Chain, ChainDelivery, ChainEvent
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.outcome import Failure
from eventdriven_sync.records import Delivery, Operation, delivery_id

NOW = datetime(2026, 6, 15, 12, 0, 0, tzinfo=UTC)
OPERATION = Operation(
    id="f" * 24,
    name="rename",
    kind="http",
    status="succeeded",
    started_at=NOW,
    finished_at=NOW + timedelta(milliseconds=34),
)


def later(milliseconds: float) -> datetime:
    return NOW + timedelta(milliseconds=milliseconds)


def failure(message: str = "Test Error!!", *, at: float = 20, took: float = 5, attempt: int = 1) -> Failure:
    return Failure(
        error_type="ValueError",
        message=message,
        traceback=f"Traceback …\nValueError: {message}",
        failed_at=later(at),
        attempt=attempt,
        duration_ms=took,
    )


def event(number: int, *deliveries: ChainDelivery, name: str = "User.renamed", **changes: Any) -> ChainEvent:
    given: dict[str, Any] = {
        "id": f"{number:024x}",
        "name": name,
        "version": 1,
        "data": {},
        "published_at": later(10),
        "operation_id": OPERATION.id,
    }
    return ChainEvent(event=Envelope(**given | changes), deliveries=deliveries)


def handled(
    number: int, *below: ChainEvent, handler: str = "Blog.rename", state: str = "succeeded", **changes: Any
) -> ChainDelivery:
    given: dict[str, Any] = {
        "id": delivery_id(handler, f"{number:024x}"),
        "handler": handler,
        "event_id": f"{number:024x}",
        "event_name": "User.renamed",
        "operation_id": OPERATION.id,
        "state": state,
        "attempts": 1,
        "created_at": later(15),
        "started_at": later(15),
        "duration_ms": 12.4,
    }
    return ChainDelivery(delivery=Delivery(**given | changes), events=below)


def chain_of(*events: ChainEvent, **changes: Any) -> Chain:
    given: dict[str, Any] = {"operation": OPERATION, "events": events}
    return Chain(**given | changes)


def rename() -> Chain:
    """The chain every reader knows: one module has handled the rename, the other failed for good."""
    failures = tuple(failure(at=20 + 100 * n, attempt=n) for n in range(1, 4))
    return chain_of(
        event(
            1,
            handled(1, event(2, handled(2, handler="User.saw"), name="Blog.userUpdated")),
            handled(
                1,
                handler="Comment.rename",
                state="dead",
                reason="attempts_exhausted",
                attempts=3,
                failures=failures,
                started_at=later(315),
            ),
        )
    )


def fan_out(count: int, *, dead: int = 0) -> Chain:
    """An operation with so many events of one name, the last ones dead."""
    return chain_of(
        *(
            event(
                n,
                handled(
                    n, event(n + count, name="Blog.done"), state="dead" if n > count - dead else "succeeded"
                ),
            )
            for n in range(1, count + 1)
        )
    )
