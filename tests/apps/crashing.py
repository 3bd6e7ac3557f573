"""Twelve events, a handler for them and one for what it publishes, and processes that die at one boundary.

Many of these run beside each other on one bus: each case has events, handlers and processes of its own. They
are forked by a server that has everything imported, so that a process costs next to nothing.
"""

import functools
import logging
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import attrs
from pymongo import monitoring

from eventdriven_sync import EventBus, Settings, Worker, event, reconciler
from eventdriven_sync.confirmed import recorder_of
from eventdriven_sync.events import Durability
from tests.apps.crash_points import (
    AFTER_COMMIT,
    AFTER_START,
    BEFORE_COMMIT,
    BEFORE_START,
    BEFORE_WATERMARK,
    CrashingBroker,
    CrashingStore,
    CrashingWire,
    CrashPoint,
)
from tests.apps.orders import QUICK
from tests.apps.witness import Witness

EVENTS = 12
FIRST, SEVENTH, LAST = 1, 7, EVENTS
BATCH = 4
# So long that each outcome is recorded for itself.
WORK = 0.02
# A commit does not know its events, and redelivered ones come in any order.
COUNTED = (BEFORE_COMMIT, AFTER_COMMIT, BEFORE_START, AFTER_START, BEFORE_WATERMARK)


@attrs.frozen
class Case:
    """One boundary and one event of twelve.

    Attributes:
        how: the process's part: ``worker``, ``batch``, ``transactional``, ``publisher``, ``session``,
            ``reconciler``, ``recorder``.
    """

    how: str
    place: str
    nth: int
    number: int

    @property
    def name(self) -> str:
        return f"Case{self.number}"

    @property
    def handler(self) -> str:
        return f"{self.name}.handle"

    @property
    def target(self) -> str:
        """The event at which it dies."""
        return self.event_id(self.nth)

    def event_id(self, number: int) -> str:
        return f"{self.name}-{number:02d}"

    @property
    def ids(self) -> list[str]:
        return [self.event_id(number) for number in range(1, EVENTS + 1)]

    def delivery_id(self, number: int) -> str:
        return f"{self.handler}:{self.event_id(number)}"

    def begun(self, number: int) -> Any:
        return self.kind(number=number)

    @property
    def kind(self) -> type:
        """The class of its events."""
        return _kind(f"{self.name}.begun", "broker" if self.how == "recorder" else "store")

    def publish(self, bus: EventBus) -> None:
        """All twelve."""
        bus.publish_many([self.begun(n) for n in range(1, EVENTS + 1)], event_ids=self.ids)


@functools.cache
def _kind(name: str, durability: Durability = "store") -> type:
    return event(name, durability=durability)(
        attrs.make_class(name.replace(".", "_"), {"number": attrs.field(type=int)}, frozen=True)
    )


def lead(bus: EventBus, witness: Witness) -> None:
    """A handler for nothing, for a worker that leads."""

    @bus.group("Leader").handler(_kind("Leader.nothing"), name="idle")
    def idle(event: Any) -> None: ...


def build(bus: EventBus, witness: Witness, case: Case) -> None:
    """The handlers of one case."""
    group = bus.group(case.name)
    start = "all" if case.how == "reconciler" else "new"
    begun, followed = case.kind, _kind(f"{case.name}.followed")

    def handle(event: Any) -> None:
        witness.note("start", case=case.number, number=event.number)
        threading.Event().wait(WORK)
        group.publish(followed(number=event.number))
        witness.note("end", case=case.number, number=event.number)

    def book(event: Any, session: Any) -> None:
        books = bus.mongo_client.get_default_database().books
        books.insert_one({"case": case.number, "number": event.number}, session=session)
        handle(event)

    def handle_all(batch: Any) -> None:
        for each in batch.events:
            witness.note("start", case=case.number, number=each.number)
        for each in batch.events:
            # Another batch may hold the event the second time: its place in this one is no name.
            group.publish(followed(number=each.number), idempotency_key=f"{case.name} {each.number}")
            witness.note("end", case=case.number, number=each.number)

    def follow(event: Any) -> None:
        witness.note("follow", case=case.number, number=event.number)

    if case.how == "transactional":
        group.handler(begun, name="handle", retry=QUICK, transactional=True)(book)
    elif case.how == "batch":
        group.batch_handler(begun, name="handle", retry=QUICK, max_size=BATCH, max_wait=0.1)(handle_all)
    else:
        group.handler(begun, name="handle", retry=QUICK, start=start)(handle)
    group.handler(followed, name="follow", retry=QUICK)(follow)


def crash_all(cases: Sequence[Case], settings: Settings, witness: Witness, *, at_once: int = 6) -> None:
    """Run each case's process until it is killed at its boundary; some beside each other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ThreadPoolExecutor(at_once) as pool:
        ends = list(pool.map(lambda case: _end_of(context, case, settings, witness), cases))
    assert ends == [-9] * len(cases), "\n".join(
        f"{case}: {_log(witness, case).read_text()}"
        for case, end in zip(cases, ends, strict=True)
        if end != -9
    )


def _end_of(context: ForkServerContext, case: Case, settings: Settings, witness: Witness) -> int | None:
    process: ForkServerProcess = context.Process(
        target=run, args=(case, settings, witness.path, _log(witness, case))
    )
    process.start()
    process.join(30)
    code = process.exitcode
    process.kill()
    process.join()
    return code


def _log(witness: Witness, case: Case) -> Path:
    return witness.path.with_name(f"{case.name}.log")


def run(case: Case, settings: Settings, witness_path: Path, log: Path) -> None:
    """The process of one case."""
    logging.basicConfig(filename=log, level=logging.INFO, format="%(asctime)s %(message)s")
    witness, plain = Witness(witness_path), EventBus(settings=settings)
    point = CrashPoint(case.place, nth=case.nth, event="" if case.place in COUNTED else case.target)
    monitoring.register(CrashingWire(point))
    bus = EventBus(
        settings=settings,
        broker=CrashingBroker(plain.broker, point),
        store=CrashingStore(plain.store, point),
    )
    roles: dict[str, Callable[[EventBus, Witness, Case], None]] = {
        "publisher": publish_one_by_one,
        "session": publish_in_transactions,
        "reconciler": reconcile,
        "recorder": record,
    }
    roles.get(case.how, work)(bus, witness, case)


def work(bus: EventBus, witness: Witness, case: Case) -> None:
    build(bus, witness, case)
    # Of what it publishes nobody takes care here.
    Worker(bus, handlers=[case.handler], threads=1).run()


def publish_one_by_one(bus: EventBus, witness: Witness, case: Case) -> None:
    for number in range(1, EVENTS + 1):
        bus.publish(case.begun(number), event_id=case.event_id(number))
        witness.note("published", case=case.number, number=number)


def publish_in_transactions(bus: EventBus, witness: Witness, case: Case) -> None:
    for number in range(1, EVENTS + 1):
        with bus.transaction() as session:
            books = bus.mongo_client.get_default_database().books
            books.insert_one({"case": case.number, "number": number}, session=session)
            bus.publish(case.begun(number), event_id=case.event_id(number))
        witness.note("published", case=case.number, number=number)


def reconcile(bus: EventBus, witness: Witness, case: Case) -> None:
    """Rounds without end, which bring lost events one by one."""
    reconciler.PAGE = 1
    bus.open()
    leader = reconciler.Reconciler(
        store=bus.store, broker=bus.broker, settings=bus.settings, holder=f"case {case.number}"
    )
    while True:
        leader.round()
        threading.Event().wait(0.05)


def record(bus: EventBus, witness: Witness, case: Case) -> None:
    """A recorder and nothing else."""
    build(bus, witness, case)
    bus.open()
    recorder_of(bus).start()
    threading.Event().wait()
