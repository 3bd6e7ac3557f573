"""What of an answer its reader may see: secrets are hidden, and what their role or groups do not reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import attrs
from werkzeug.exceptions import Forbidden

from eventdriven_sync.chain import Chain, ChainDelivery, ChainEvent
from eventdriven_sync.dashboard.access import Identity
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import NotFound, shorten
from eventdriven_sync.figures import AuditEntry, LetterGroup
from eventdriven_sync.jobs import RetryJob
from eventdriven_sync.monitor import Monitor
from eventdriven_sync.monitoring.records import Overview
from eventdriven_sync.outcome import Failure
from eventdriven_sync.records import Delivery, Operation, Pause, RawMessage
from eventdriven_sync.redaction import Redaction

T = TypeVar("T")

# What is stored was bounded when it was stored: here nothing is to be left out.
AS_STORED = Redaction(max_text=64 * 1024, max_items=10_000, max_depth=50, max_bytes=8 * 1024 * 1024)

_QUESTIONS = frozenset(
    {
        "audit_log",
        "chain",
        "chain_summary",
        "event",
        "events",
        "handlers",
        "job",
        "jobs",
        "letter",
        "letter_groups",
        "letters",
        "operation",
        "operations",
        "overview",
        "streams",
        "subjects",
        "workers",
    }
)

# What sets much in motion, and may be done so often only.
_BULK = frozenset({"publish_again", "retry_group", "run_again"})

NOT_SHOWN: Mapping[str, Any] = {"…": "payloads are shown to operators and admins"}


class Screen:
    """Copies records for one reader. Not shared between threads: made for one request.

    Args:
        reader: who looks.
        redaction: how secrets are hidden.
    """

    def __init__(self, reader: Identity, redaction: Redaction) -> None:
        self._reader = reader
        self._redaction = redaction
        self._rules: dict[type[Any], Callable[[Any], Any]] = {
            AuditEntry: self._entry,
            Chain: self._chain,
            Delivery: self._delivery,
            Envelope: self._envelope,
            Failure: self._failure,
            LetterGroup: self._letter_group,
            Operation: self._operation,
            Overview: self._overview,
            Pause: self._pause,
            RawMessage: self._raw,
            RetryJob: self._job,
        }

    def of(self, value: T) -> T:
        """The value as its reader may see it; records inside others as well."""
        return cast(T, self._any(value))

    def reaches(self, value: object) -> bool:
        """Whether the reader's groups include the one that a record belongs to."""
        if isinstance(value, (Delivery, LetterGroup, RetryJob)):
            return self.reaches_handler(value.handler)
        return True

    def reaches_handler(self, handler: str) -> bool:
        """Whether the reader's groups include the handler's."""
        return self._reader.reaches(handler.partition(".")[0])

    @property
    def reaches_everything(self) -> bool:
        """Whether the reader is bound to no groups."""
        return not self._reader.groups

    def _any(self, value: Any) -> Any:
        rule = self._rules.get(type(value))
        if rule is not None:
            return rule(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self._any(each) for each in value if self.reaches(each))
        if isinstance(value, Mapping):
            return self._redaction.document(value)
        return self._record(value) if attrs.has(type(value)) else value

    def _record(self, value: Any) -> Any:
        """A record without rules of its own: an answer that holds others."""
        fields = {
            field.alias or field.name: self._any(getattr(value, field.name))
            for field in attrs.fields(type(value))
            if field.init
        }
        return attrs.evolve(value, **fields)

    def _payload(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._redaction.document(document) if self._reader.sees_payloads else NOT_SHOWN

    def _envelope(self, event: Envelope) -> Envelope:
        key = event.key and self._redaction.text(event.key)
        return attrs.evolve(event, data=self._payload(event.data), key=key)

    def _operation(self, operation: Operation) -> Operation:
        return attrs.evolve(
            operation,
            variables=self._payload(operation.variables),
            details=self._payload(operation.details),
            error=self._any(operation.error),
        )

    def _failure(self, failure: Failure) -> Failure:
        text = self._redaction.text
        stack = text(failure.traceback) if self._reader.sees_payloads else ""
        return attrs.evolve(failure, message=text(failure.message), traceback=stack)

    def _delivery(self, delivery: Delivery) -> Delivery:
        return attrs.evolve(
            delivery,
            failures=tuple(map(self._failure, delivery.failures)),
            reason=self._redaction.text(delivery.reason),
            event=self._any(delivery.event),
            raw=self._any(delivery.raw),
            original=self._any(delivery.original),
        )

    def _raw(self, raw: RawMessage) -> RawMessage:
        if not self._reader.sees_payloads:
            return attrs.evolve(raw, headers={}, data=b"")
        text = self._redaction.text(raw.data.decode("utf-8", "backslashreplace"))
        headers = {name: str(value) for name, value in self._redaction.document(raw.headers).items()}
        return attrs.evolve(raw, headers=headers, data=text.encode("utf-8", "backslashreplace"))

    def _letter_group(self, group: LetterGroup) -> LetterGroup:
        return attrs.evolve(group, message=self._redaction.text(group.message))

    def _entry(self, entry: AuditEntry) -> AuditEntry:
        return attrs.evolve(
            entry,
            before=self._audited(entry.before),
            after=self._audited(entry.after),
            reason=self._redaction.text(entry.reason),
        )

    def _job(self, job: RetryJob) -> RetryJob:
        text = self._redaction.text
        return attrs.evolve(job, reason=text(job.reason), note=text(job.note))

    def _overview(self, overview: Overview) -> Overview:
        """Its problems quote what people and servers said."""
        problems = tuple(map(self._redaction.text, overview.problems))
        return cast(Overview, attrs.evolve(self._record(overview), problems=problems))

    def _pause(self, pause: Pause) -> Pause:
        return attrs.evolve(pause, reason=self._redaction.text(pause.reason))

    def _audited(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """What an action found or left; of an edited retry the payload."""
        shown = self._redaction.document(state)
        if "payload" in shown and not self._reader.sees_payloads:
            return shown | {"payload": NOT_SHOWN}
        return shown

    def _chain(self, chain: Chain) -> Chain:
        """Deepest first, without recursion: a chain may be deeper than Python's stack."""
        order = list(chain.walk())
        done: dict[str, ChainEvent] = {}
        for node in reversed(order):
            done[node.event.id] = ChainEvent(
                event=self._envelope(node.event),
                deliveries=tuple(
                    ChainDelivery(
                        delivery=self._in_chain(child.delivery),
                        events=tuple(done[below.event.id] for below in child.events),
                    )
                    for child in node.deliveries
                ),
            )
        return attrs.evolve(
            chain,
            operation=self._operation(chain.operation),
            events=tuple(done[node.event.id] for node in chain.events),
        )

    def _in_chain(self, delivery: Delivery) -> Delivery:
        """A chain goes through all groups: of one that is not theirs a reader sees how it went, not why."""
        if not self.reaches(delivery):
            delivery = attrs.evolve(delivery, failures=(), reason="", event=None, raw=None, original=None)
        return self._delivery(delivery)


class ScreenedMonitor:
    """A ``Monitor`` whose answers are screened and whose actions reach the reader's groups only."""

    def __init__(self, monitor: Monitor, screen: Screen, slow_down: Callable[[], None]) -> None:
        self._monitor = monitor
        self._screen = screen
        self._slow_down = slow_down

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._monitor, name)

        def screened(*args: Any, **options: Any) -> Any:
            if name not in _QUESTIONS:
                self._check_action(name, args)
            if name in _BULK:
                self._slow_down()
            answer = method(*args, **options)
            if not self._screen.reaches(answer):
                raise _unknown(args[0])
            return self._screen.of(answer)

        return screened

    def _check_action(self, name: str, args: tuple[Any, ...]) -> None:
        """Of what belongs to another group nobody learns more than of what does not exist."""
        if self._screen.reaches_everything:
            return
        touched = _TOUCHED.get(name)
        if touched is None or len(args) != 1:
            raise Forbidden("You act on deliveries of some groups only: this touches others as well.")
        if not self._screen.reaches_handler(touched(self._monitor, args[0])):
            raise _unknown(args[0])


def screened(
    monitor: Monitor, reader: Identity, redaction: Redaction, *, slow_down: Callable[[], None]
) -> Monitor:
    """The monitor as this reader may use it.

    Args:
        slow_down: called before each action that touches or begins many deliveries; raises when there were
            too many of them.
    """
    return cast(Monitor, ScreenedMonitor(monitor, Screen(reader, redaction), slow_down))


def _handler_of_letter(monitor: Monitor, delivery_id: str) -> str:
    return monitor.letter(delivery_id).handler


def _handler_of_job(monitor: Monitor, job_id: str) -> str:
    return monitor.job(job_id).handler


def _handler_itself(monitor: Monitor, handler: str) -> str:
    return str(handler)


# Which handler an action touches, by its first argument. Others are not for who is bound to groups.
_TOUCHED: Mapping[str, Callable[[Monitor, str], str]] = {
    "retry": _handler_of_letter,
    "retry_edited": _handler_of_letter,
    "discard": _handler_of_letter,
    "undo_discard": _handler_of_letter,
    "run_again": _handler_of_letter,
    "preview_retry": _handler_itself,
    "retry_group": _handler_itself,
    "pause": _handler_itself,
    "resume": _handler_itself,
    "cancel": _handler_of_job,
}


def _unknown(record_id: str) -> NotFound:
    return NotFound(f"nothing has the id {shorten(record_id)}", id=record_id)
