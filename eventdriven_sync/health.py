"""Health: whether the servers answer, the threads live, and the work moves, with reasons in words.

A process whose connections look alive can still do nothing: its consumer is paused, its writes hang, its
pulls are lost. So health does not end with a ping; it compares what waits with what was settled.

Reasons name parts, handlers and seconds, and never what a server said: they may be shown to anybody.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

import attrs

from eventdriven_sync.config import check_number
from eventdriven_sync.errors import (
    BrokerUnavailable,
    EventDrivenError,
    StoreError,
    StoreUnavailable,
)
from eventdriven_sync.lanes import Running

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus
    from eventdriven_sync.handlers import Handler

log = logging.getLogger(__name__)

__all__ = ["HandlerProgress", "Health", "Part", "Progress", "Running", "State"]

State = Literal["ok", "degraded", "failing", "dead"]

TIMEOUT = 2.0
MOST_SECONDS = 60.0
# A delivery that is due waits for the next look of a recovery lane, and a little for its turn.
DUE_SLACK = 2.0
EVENT_STORE, BROKER = "event store", "broker"


@attrs.frozen(kw_only=True)
class Part:
    """One part of a process, or a server it needs.

    Attributes:
        state: ``degraded`` works, with something to look at; ``failing`` does not work and may recover by
            itself; ``dead`` needs a new process.
    """

    name: str
    state: State
    reason: str


@attrs.frozen(kw_only=True)
class HandlerProgress:
    """What waits for one handler.

    Attributes:
        pending: messages its consumers have not delivered; None if that is not known.
        in_hand: what this process has taken and not settled.
        overdue: seconds for which its oldest due delivery waits; 0.0 if none is due, None if not known.
        settled_ago: seconds since this process settled something of it; None if it has not yet.
        paused: a person paused it, so that what waits is as it should be.
        stalled: why it counts as stalled, or empty.
    """

    name: str
    pending: int | None
    in_hand: int = 0
    overdue: float | None
    settled_ago: float | None = None
    paused: bool = False
    stalled: str = ""


@attrs.frozen(kw_only=True)
class Progress:
    """Whether the work moves.

    Attributes:
        handlers: by name.
        running: what this process runs now, the longest first.
    """

    handlers: tuple[HandlerProgress, ...]
    running: tuple[Running, ...] = ()

    @property
    def pending(self) -> int:
        """Messages that wait in consumers, as far as is known."""
        return sum(handler.pending or 0 for handler in self.handlers)

    @property
    def overdue(self) -> float:
        """Seconds for which the oldest due delivery waits, as far as is known."""
        return max((handler.overdue or 0.0 for handler in self.handlers), default=0.0)

    @property
    def settled_ago(self) -> float | None:
        """Seconds since this process settled anything; None if it has not yet."""
        return min((h.settled_ago for h in self.handlers if h.settled_ago is not None), default=None)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it does not move; empty if it does."""
        stalled = [f"{handler.name}: {handler.stalled}" for handler in self.handlers if handler.stalled]
        return (*stalled, *(_hangs(running) for running in self.running if running.hung))


@attrs.frozen(kw_only=True)
class Health:
    """How a bus or a worker is, at one moment.

    Example:
        >>> assert bus.health().ready, bus.health().reasons
    """

    parts: tuple[Part, ...]
    progress: Progress

    @property
    def live(self) -> bool:
        """Whether the process itself works; if not, only a new one helps. Says nothing of servers."""
        return not any(part.state == "dead" for part in self.parts)

    @property
    def ready(self) -> bool:
        """Whether everything works that it needs, servers among it."""
        return not any(part.state in ("failing", "dead") for part in self.parts)

    @property
    def moving(self) -> bool:
        """Whether no work waits in vain and no handler hangs beyond its timeout."""
        return not self.progress.reasons

    @property
    def ok(self) -> bool:
        """Whether it is live and ready, and its work moves."""
        return self.live and self.ready and self.moving

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything there is to look at, in words; empty if all is well."""
        parts = tuple(f"{part.name}: {part.reason}" for part in self.parts if part.state != "ok")
        return parts + self.progress.reasons


class WorkFields(TypedDict):
    """Fields of ``HandlerProgress`` that only the servers know."""

    pending: int | None
    overdue: float | None


@attrs.frozen(kw_only=True)
class Answers:
    """What the servers said when they were asked.

    Attributes:
        pending: by handler, as far as it is known.
        paused: handlers with a consumer that is paused.
        overdue: seconds by handler, as far as it is known.
    """

    store: Part
    broker: Part
    pending: Mapping[str, int]
    paused: frozenset[str]
    overdue: Mapping[str, float]

    def work(self, name: str) -> WorkFields:
        """What waits for a handler, as far as it is known."""
        return {"pending": self.pending.get(name), "overdue": self.overdue.get(name)}


def check_timeout(timeout: float) -> float:
    """The timeout of a health check, or InvalidOption."""
    return float(check_number(timeout, field="timeout", low=0.05, high=MOST_SECONDS))


def ask(bus: EventBus, handlers: Sequence[Handler], *, timeout: float) -> Answers:
    """Ask both servers, each for half of the time at most; never raises for what they answer."""
    store, overdue = _ask_store(bus, [handler.name for handler in handlers], timeout / 2)
    broker, pending, paused = _ask_broker(bus, handlers, timeout / 2)
    return Answers(store=store, broker=broker, pending=pending, paused=frozenset(paused), overdue=overdue)


def bus_health(bus: EventBus, *, timeout: float) -> Health:
    """See ``EventBus.health``."""
    deadline = time.monotonic() + check_timeout(timeout)
    handlers = list(bus.handlers.values())
    answers = ask(bus, handlers, timeout=0.8 * timeout)
    idle = [HandlerProgress(name=h.name, **answers.work(h.name)) for h in handlers]
    waiting = [handler for handler in idle if waits(handler)]
    served = _served(bus, deadline) if waiting and answers.store.state == "ok" else None
    return Health(
        parts=(answers.store, _without_need(answers.broker)),
        progress=Progress(handlers=tuple(_judge_unserved(handler, served) for handler in idle)),
    )


def waits(handler: HandlerProgress) -> bool:
    """Whether there is work for it: messages, or a delivery that is due and late."""
    return bool(handler.pending or handler.in_hand) or (handler.overdue or 0.0) > DUE_SLACK


def _without_need(broker: Part) -> Part:
    """Whoever only publishes does not depend on it."""
    if broker.state != "failing":
        return broker
    reason = f"{broker.reason}; events are accepted, and brought when it is back"
    return attrs.evolve(broker, state="degraded", reason=reason)


def _served(bus: EventBus, deadline: float) -> set[str] | None:
    """The handlers that some worker runs; None if the event store does not tell."""
    try:
        workers = bus.store.directory.workers(timeout=_left(deadline))
    except StoreError as error:
        log.info("Which workers there are is not known: %s", error)
        return None
    return {name for worker in workers for name in worker.handlers}


def _judge_unserved(handler: HandlerProgress, served: set[str] | None) -> HandlerProgress:
    """Where no worker is at hand whose progress could be seen: whether there is one at all."""
    if served is None or handler.name in served or not waits(handler):
        return handler
    return attrs.evolve(handler, stalled="events wait for it, and no worker runs it")


def _ask_store(bus: EventBus, names: Sequence[str], timeout: float) -> tuple[Part, dict[str, float]]:
    deadline = time.monotonic() + timeout
    try:
        bus.open(timeout=timeout)
        bus.store.directory.now(timeout=_left(deadline))
        overdue = _overdue(bus, names, deadline)
    except StoreUnavailable:
        return _failing(EVENT_STORE, f"it does not answer within {timeout:.2g} s"), {}
    except EventDrivenError as error:
        return _failing(EVENT_STORE, f"it answers with an error ({type(error).__name__})"), {}
    return Part(name=EVENT_STORE, state="ok", reason="it answers"), overdue


def _overdue(bus: EventBus, names: Sequence[str], deadline: float) -> dict[str, float]:
    """One question for all, and one for each only when something is late."""
    oldest = _late(bus, names, deadline)
    if oldest <= DUE_SLACK:
        return dict.fromkeys(names, 0.0)
    found: dict[str, float] = {}
    for name in names:
        if time.monotonic() >= deadline:
            break
        found[name] = _late(bus, [name], deadline)
    return found


def _late(bus: EventBus, names: Sequence[str], deadline: float) -> float:
    due = bus.store.deliveries.next_due(names, timeout=_left(deadline))
    return 0.0 if due is None else max(-due, 0.0)


def _ask_broker(
    bus: EventBus, handlers: Sequence[Handler], timeout: float
) -> tuple[Part, dict[str, int], set[str]]:
    deadline = time.monotonic() + timeout
    pending: dict[str, int] = {}
    paused: set[str] = set()
    fault = ""
    for handler in handlers:
        if pending and time.monotonic() >= deadline:
            break
        try:
            _ask_consumers(bus, handler, _left(deadline), pending, paused)
        except BrokerUnavailable:
            fault = f"it does not answer within {timeout:.2g} s"
            break
        except EventDrivenError as error:
            fault = f"it answers with an error ({type(error).__name__})"
    if not bus.broker.status().connected:
        fault = "it is not connected"
    part = Part(name=BROKER, state="failing" if fault else "ok", reason=fault or "it is connected")
    return part, pending, paused


def _ask_consumers(
    bus: EventBus, handler: Handler, timeout: float, pending: dict[str, int], paused: set[str]
) -> None:
    for spec in bus.topology.consumers(handler, None):
        state = bus.broker.consumer_state(spec.stream.name, spec.name, timeout=timeout)
        if state is None:
            continue
        pending[handler.name] = pending.get(handler.name, 0) + state.pending
        if state.paused:
            paused.add(handler.name)


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.05)


def _failing(name: str, reason: str) -> Part:
    return Part(name=name, state="failing", reason=reason)


def _hangs(running: Running) -> str:
    return (
        f"{running.handler}: a thread hangs in it for {running.seconds:.0f} s, beyond its timeout of "
        f"{running.timeout or 0.0:g} s"
    )
