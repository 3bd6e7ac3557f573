"""The application that simulated processes run: events that say how they want to be handled, and handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from tenacity import stop_after_attempt, wait_fixed

from eventdriven_sync.context import current_envelope
from eventdriven_sync.events import event
from eventdriven_sync.handlers import Handler, make_batch_options, make_handler
from eventdriven_sync.outcome import Discard, Reject
from eventdriven_sync.retry import RetryPolicy
from eventdriven_sync.stores.memory import MemorySession

if TYPE_CHECKING:
    from tests.model.simulator import Node, World
    from tests.model.witness import Run

ATTEMPTS = 3
TIMEOUT = 20.0
SHORT_WORK = 1.5
LONG_WORK = 6.0
OVERTIME = 1.5 * TIMEOUT

# How a delivery of an event ends if nothing but its handler decides.
ENDS = {
    "ok": "succeeded",
    "fail": "succeeded",
    "hopeless": "dead",
    "reject": "dead",
    "discard": "discarded",
    "long": "succeeded",
    "long_retry": "succeeded",
    "slow": "succeeded",
    "poison": "dead",
}
EMITS = ("", "first", "last")
FAILS = {"long_retry": 1, "fail": ATTEMPTS - 1, "hopeless": 10_000}


@event("Sim.made", key="id")
@attrs.frozen(kw_only=True)
class Made:
    """An event that says what becomes of it.

    Attributes:
        id: also the event's own.
        plan: a key of ``ENDS``.
        emits: when its handler publishes another event: ``first`` or ``last``, or not at all.
    """

    id: str
    plan: str = "ok"
    emits: str = ""


@event("Chain.followed")
@attrs.frozen(kw_only=True)
class Followed:
    id: str
    plan: str = "ok"


class Stage:
    """Whose code runs: handlers are made once, worlds come and go."""

    def __init__(self) -> None:
        self.world: World | None = None

    @property
    def node(self) -> Node:
        """The process whose turn it is."""
        assert self.world is not None
        return self.world.loop.process  # type: ignore[return-value]


stage = Stage()


def keep(event: Made) -> None:
    run = stage.node.notes.begin("Blog.keep", event.id)
    if event.emits == "first":
        _follow(event, run)
    _act(event, run)
    if event.emits == "last":
        _follow(event, run)
    run.how = "returned"


def _follow(event: Made, run: Run) -> None:
    child = stage.node.bus.publish(Followed(id=event.id))
    stage.node.notes.emitted(run, child.id)


def count(event: Made, session: MemorySession) -> None:
    run = stage.node.notes.begin("Blog.count", event.id)
    session.open()  # as its first write does
    _act(event, run)
    # Returned has it when its transaction went through: until then it is run again on any conflict.
    stage.node.staged[id(session)].append(("Blog.count", event.id))


def tally(batch: Any) -> None:
    runs = [stage.node.notes.begin("Stats.tally", made.id) for made in batch.events]
    for made, run in zip(batch.events, runs, strict=True):
        try:
            _act(made, run)
        except Exception as error:
            batch.fail(made, error)
        else:
            run.how = "returned"


def note(event: Followed) -> None:
    envelope = current_envelope()
    assert envelope is not None
    run = stage.node.notes.begin("Audit.note", envelope.id)
    _act(event, run)
    run.how = "returned"


def _act(event: Made | Followed, run: Run) -> None:
    """Work for a while, then end as the event asks."""
    world, plan = stage.node.world, event.plan
    if plan == "poison":
        world.die(stage.node)
    if plan == "slow" and run.number == 1:
        world.fault("slow", stage.node)
        world.loop.sleep(OVERTIME)
    elif plan in ("long", "long_retry") and _has_time(run, FAILS.get(plan, 0)):
        world.loop.sleep(LONG_WORK)
    elif world.choose(3):
        world.loop.pause()
    else:
        world.loop.sleep(SHORT_WORK * (1 + world.choose(3)) / 3)
    if run.raised_before < FAILS.get(plan, 0):
        run.how = "raised"
        raise ValueError("asked for")
    if plan in ("reject", "discard"):
        run.how = "raised"
        raise Reject("asked for") if plan == "reject" else Discard("asked for")


def _has_time(run: Run, fails: int) -> bool:
    """After its failures. A batch may hold several; a transaction takes as long each time it is run again."""
    if run.handler == "Blog.count":
        return run.raised_before >= fails
    return run.number == 1 + fails and run.handler != "Stats.tally"


def _handlers() -> dict[str, Handler]:
    policy = RetryPolicy(stop=stop_after_attempt(ATTEMPTS), wait=wait_fixed(1))
    rows: list[tuple[str, Any, type, bool, Any]] = [
        ("Blog", keep, Made, False, None),
        ("Blog", count, Made, True, None),
        ("Stats", tally, Made, False, make_batch_options(max_size=3, max_wait=2.0, group_by=None)),
        ("Audit", note, Followed, False, None),
    ]
    made = [
        make_handler(
            group=group,
            function=function,
            events=[kind],
            name=None,
            retry=policy,
            timeout=TIMEOUT,
            threads=None,
            transactional=transactional,
            start="new",
            batch=batch,
        )
        for group, function, kind, transactional, batch in rows
    ]
    return {handler.name: handler for handler in made}


HANDLERS = _handlers()
