"""Events, settlements and records for contract tests, with names no other test uses.

The real store is shared by all tests, so every test stays with its own names.
"""

import uuid
from datetime import datetime, timedelta
from typing import Any

import attrs

from eventdriven_sync.envelope import Envelope, new_id
from eventdriven_sync.jobs import RetryJob
from eventdriven_sync.outcome import Dead, Discarded, Done, Failure, Outcome, RetryAt
from eventdriven_sync.records import (
    Delivery,
    HandlerRecord,
    Operation,
    RawMessage,
    Reply,
    Settlement,
    WorkerRecord,
    delivery_id,
)


class Samples:
    """Builders that share one handler, event name, operation and time."""

    def __init__(self, now: datetime) -> None:
        self.tag = uuid.uuid4().hex[:8]
        self.now = now
        self.group = f"Blog{self.tag}"
        self.handler = f"{self.group}.notify"
        self.event_name = f"User{self.tag}.nameUpdated"
        self.operation_id = new_id()

    def at(self, seconds: float) -> datetime:
        return self.now + timedelta(seconds=seconds)

    def event(self, **changes: Any) -> Envelope:
        event = Envelope(
            id=new_id(),
            name=self.event_name,
            version=1,
            data={"user_id": "42", "tags": ["a", {"deep": [1, 2.5, None, True]}]},
            published_at=self.now,
            operation_id=self.operation_id,
        )
        return attrs.evolve(event, **changes)

    def full_event(self) -> Envelope:
        return self.event(
            version=3,
            parent_ids=(new_id(), new_id()),
            source=self.handler,
            key="42",
            depth=2,
            trace={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        )

    def failure(self, **changes: Any) -> Failure:
        failure = Failure(
            error_type="SMTPServerDisconnected",
            message="Connection unexpectedly closed",
            traceback="Traceback (most recent call last): …",
            failed_at=self.now,
            attempt=1,
            worker="host:1",
            duration_ms=12.5,
        )
        return attrs.evolve(failure, **changes)

    def outcome(self, state: str, *, after: float = 60.0, failure: Failure | None = None) -> Outcome:
        """The outcome that leads to this state."""
        outcomes: dict[str, Outcome] = {
            "succeeded": Done(),
            "retrying": RetryAt(after=after, failure=failure or self.failure()),
            "dead": Dead(reason="attempts_exhausted", failure=failure or self.failure()),
            "discarded": Discarded(reason="not ours"),
        }
        return outcomes[state]

    def settlement(self, event: Envelope, outcome: Outcome, **changes: Any) -> Settlement:
        settlement = Settlement(
            handler=self.handler,
            event_id=event.id,
            event_name=event.name,
            operation_id=event.operation_id,
            outcome=outcome,
            token="live-1",
            claimed=False,
            started_at=self.now,
            duration_ms=12.5,
            worker="host:1",
            event=event,
        )
        return attrs.evolve(settlement, **changes)

    def delivery(self, event: Envelope, **changes: Any) -> Delivery:
        handler = changes.get("handler", self.handler)
        delivery = Delivery(
            id=delivery_id(handler, event.id),
            handler=handler,
            event_id=event.id,
            event_name=event.name,
            operation_id=event.operation_id,
            state="pending",
            created_at=self.now,
            event=event,
        )
        return attrs.evolve(delivery, **changes)

    def raw(self) -> RawMessage:
        return RawMessage(
            stream="blog_User",
            sequence=7,
            subject="blog.User.nameUpdated",
            headers={"Nats-Msg-Id": "x"},
            data=b"\x00\xff{",
        )

    def operation(self, **changes: Any) -> Operation:
        operation = Operation(
            id=new_id(),
            name=f"import-{self.tag}",
            kind="script",
            variables={"file": "users.csv", "limits": [1, 2]},
            details={"host": "one", "exit_code": 0},
            user=f"ada-{self.tag}",
            started_at=self.now,
        )
        return attrs.evolve(operation, **changes)

    def handler_record(self, **changes: Any) -> HandlerRecord:
        record = HandlerRecord(
            name=self.handler,
            events=(self.event_name,),
            starts_at=None,
            registered_at=self.now,
            seen_at=self.now,
            location="blog.handlers:notify:12",
            policy="5 attempts",
            options={"threads": 4},
        )
        return attrs.evolve(record, **changes)

    def reply(self, **changes: Any) -> Reply:
        reply = Reply(
            status=201,
            headers=(("Content-Type", "application/json"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=ä")),
            body=b'{"id": 7}\x00\xff',
            operation_id=self.operation_id,
        )
        return attrs.evolve(reply, **changes)

    def job(self, **changes: Any) -> RetryJob:
        job = RetryJob(
            id=new_id(),
            handler=self.handler,
            fingerprint="0a1b2c3d4e5f",
            since=self.at(-60),
            by="$ada",
            reason="$$NOW",
            canary=2,
            state="canary",
            total=7,
            created_at=self.now,
            advanced_at=self.now,
        )
        return attrs.evolve(job, **changes)

    def worker(self, **changes: Any) -> WorkerRecord:
        worker = WorkerRecord(
            id=f"worker-{self.tag}",
            host="host",
            pid=1,
            handlers=(self.handler,),
            threads=4,
            running=(),
            started_at=self.now,
            seen_at=self.now,
        )
        return attrs.evolve(worker, **changes)
