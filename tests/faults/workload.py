"""What the processes do: two groups that handle numbered events, some of which fail."""

import random
import threading
from typing import Any

import attrs
from pymongo.uri_parser import parse_uri
from tenacity import stop_after_attempt, wait_exponential_jitter

from eventdriven_sync import EventBus, RetryPolicy, event
from tests.faults.journal import Journal

EFFECTS = "effects"
TRANSACTIONAL = "Ledger.book"
PLAIN = "Mail.send"


@event("Work.asked", key="number")
@attrs.frozen(kw_only=True)
class WorkAsked:
    number: int


@attrs.frozen(kw_only=True)
class Load:
    """How much there is to do, and who does it. Its fields travel to the processes as JSON.

    Attributes:
        events: published in all, by all publishers together.
        rate: events per second of all publishers together; 0 is as fast as they can.
        publishers: processes; ``publisher_threads`` is for each of them, likewise for workers.
        shortest: seconds a handler works at least; most take less than a third of ``longest``.
        transient: part of the attempts that fail by chance.
        permanent: part of the events at which both handlers fail in every attempt.
        repeat_doubtful: a publisher that was killed between ``begun`` and ``receipt`` publishes that event
            again, with the same id; otherwise it goes on with the next.
        attempts: until an event is dead.
        app: the module whose ``build(bus, journal, load)`` makes the handlers.
        handlers: their names, for the checker.
        options: for another app.
    """

    events: int
    rate: float = 0.0
    publishers: int = 2
    publisher_threads: int = 8
    workers: int = 2
    worker_threads: int = 8
    shortest: float = 0.005
    longest: float = 0.15
    transient: float = 0.03
    permanent: float = 0.005
    repeat_doubtful: bool = True
    attempts: int = 5
    app: str = __name__
    handlers: tuple[str, ...] = (TRANSACTIONAL, PLAIN)
    options: dict[str, Any] = attrs.field(factory=dict)

    @property
    def threads(self) -> int:
        """How many handlers run at once in all."""
        return self.workers * self.worker_threads

    def fails_for_ever(self, number: int) -> bool:
        """Whether this event is one of the permanent failures, which are spread evenly."""
        return self.permanent > 0 and number % round(1 / self.permanent) == 7

    def retry(self) -> RetryPolicy:
        """The policy of the handlers: quick, so that a run ends soon after its last fault."""
        return RetryPolicy(
            stop=stop_after_attempt(self.attempts),
            wait=wait_exponential_jitter(initial=0.3, max=5, jitter=0.3),
        )


def event_id(number: int) -> str:
    """The id under which a number is published, also by the successor of a publisher that died."""
    return f"event-{number}"


class Disturbed(Exception):
    """What handlers fail with."""


def work(journal: Journal, load: Load, handler: str, asked: WorkAsked) -> None:
    """Say that it began, take some time, and fail if that is this event's or this attempt's lot."""
    journal.note("start", handler=handler, id=event_id(asked.number))
    threading.Event().wait(load.shortest + (load.longest - load.shortest) * random.random() ** 3)
    if load.fails_for_ever(asked.number) or random.random() < load.transient:
        journal.note("failed", handler=handler, id=event_id(asked.number))
        raise Disturbed(f"number {asked.number}")


def build(bus: EventBus, journal: Journal, load: Load) -> None:
    """Two handlers of each event: one whose effect commits with its success, and an ordinary one.

    Those that ``load.handlers`` names.
    """
    if TRANSACTIONAL in load.handlers:
        _build_ledger(bus, journal, load)
    if PLAIN in load.handlers:
        _build_mail(bus, journal, load)


def _build_ledger(bus: EventBus, journal: Journal, load: Load) -> None:
    database = parse_uri(bus.settings.mongo)["database"]

    @bus.group("Ledger").handler(WorkAsked, transactional=True, retry=load.retry())
    def book(asked: WorkAsked, session: Any) -> None:
        # No start yet: while a dead worker's transaction holds the document we are called again and again.
        journal.note("entered", handler=TRANSACTIONAL, id=event_id(asked.number))
        session.client[database][EFFECTS].update_one(
            {"_id": event_id(asked.number)}, {"$inc": {"times": 1}}, upsert=True, session=session
        )
        work(journal, load, TRANSACTIONAL, asked)
        journal.note("done", handler=TRANSACTIONAL, id=event_id(asked.number))


def _build_mail(bus: EventBus, journal: Journal, load: Load) -> None:
    @bus.group("Mail").handler(WorkAsked, retry=load.retry())
    def send(asked: WorkAsked) -> None:
        work(journal, load, PLAIN, asked)
        journal.note("done", handler=PLAIN, id=event_id(asked.number))
