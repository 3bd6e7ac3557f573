"""What must hold at the end of a simulated run, whatever happened in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eventdriven_sync.audit import audit
from eventdriven_sync.bus import EventBus
from eventdriven_sync.records import Delivery
from tests.model.application import ATTEMPTS, ENDS, FAILS
from tests.model.simulator import SETTINGS, Profile, World
from tests.model.witness import EXPLAIN

# Ends that a delivery may come to against its handler's will, each by faults that explain it.
AGAINST_ITS_WILL = {"worker_lost", "timeout", "attempts_exhausted"}

# Of these a message comes as if for the first time, and its start is not counted in the store; or a start
# that was counted ended without the worker's death.
UNCOUNTED = {
    "retry_dead",
    "wipe",
    "forget_acks",
    "recount",
    "redeliver",
    "disconnect",
    "delay",
    "stall",
    "store",
}


def verdict(seed: int, *, profile: Profile | None = None) -> str:
    """Run one seed; what went wrong with all that is needed to see it again, or nothing."""
    world = World(seed, profile=profile)
    drawn = world.profile
    try:
        with world:
            world.run()
            broken = broken_laws(world)
    except Exception as error:
        broken = [f"the run ended with {error!r}"]
    if not broken:
        return ""
    repeat = f"seed {seed} with {drawn}; again: pytest tests/model -k whatever --seed {seed}"
    return "\n  ".join([repeat, *broken])


def verdicts(seeds: range) -> list[str]:
    """Of many seeds what went wrong."""
    return [wrong for wrong in map(verdict, seeds) if wrong]


def broken_laws(world: World) -> list[str]:
    """Every law that the run broke, in words; to be asked when the faults are over and all is settled."""
    return [
        *world.witness.broken,
        *(f"a task died: {error!r}" for error in world.loop.crashed),
        *_losses(world),
        *_ends(world),
        *_effects(world),
        *_children(world),
        *_audited(world),
    ]


def _losses(world: World) -> Iterator[str]:
    """What was accepted is stored, and what was refused is not; a transaction writes all or nothing."""
    stored = world.store._state._tables.events
    witness = world.witness
    yield from (f"{each} was accepted and is not stored" for each in witness.accepted if each not in stored)
    refused = witness.refused - witness.unsure - set(witness.accepted)
    yield from (f"{each} was refused and is stored" for each in refused if each in stored)
    yield from (f"the row of {each} has no event" for each in witness.rows if each not in stored)


def _ends(world: World) -> Iterator[str]:
    """Every stored event is settled for every handler, and as its handler wanted it."""
    for key, payload in world.owed().items():
        record = world.deliveries.get(key)
        wanted = ENDS[payload["plan"]]
        if record is None or not record.final:
            yield f"{key} is {record.state if record else 'without a delivery'} at the end"
        elif record.state != wanted and not _may_end(world, record):
            yield f"{key} ended as {record.state} ({record.reason}) and should be {wanted}"
        else:
            yield from _runs(world, key, record, payload["plan"])
    beyond = set(world.deliveries) - set(world.owed())
    yield from (f"{key} is a delivery of no stored event" for key in beyond)


def _may_end(world: World, record: Delivery) -> bool:
    """Workers that died, handlers that hung and a store that was away cost attempts."""
    return _seen(world, EXPLAIN) and record.state == "dead" and record.reason in AGAINST_ITS_WILL


def _seen(world: World, kinds: set[str]) -> bool:
    return any(fault.kind in kinds for fault in world.witness.faults)


def _runs(world: World, key: str, record: Delivery, plan: str) -> Iterator[str]:
    """What the witness saw of it."""
    handler, _, event_id = key.partition(":")
    runs = world.witness.runs[handler, event_id]
    if record.state == "succeeded" and not any(run.how == "returned" for run in runs):
        yield f"{key} succeeded, but its handler never returned"
    # In a batch it may also have ended with another one that hung: that is on record as a failure.
    killed = len(runs) - record.failed
    if plan == "poison" and killed > SETTINGS.max_lost and not _seen(world, UNCOUNTED):
        yield f"{key} killed {killed} workers, limit {SETTINGS.max_lost}"
    lost = record.state == "dead" and record.reason == "worker_lost"
    if lost and not runs and world.witness.unheard[key] <= 0:
        yield f"{key} is dead of lost workers and was never run"
    if record.state == "dead" and record.reason == "attempts_exhausted" and plan in FAILS:
        tries = sum(run.how == "raised" for run in runs)
        if tries < min(ATTEMPTS, FAILS[plan]) and not _seen(world, EXPLAIN):
            yield f"{key} is dead after {tries} failed attempts"


def _effects(world: World) -> Iterator[str]:
    """What a transactional handler wrote is there exactly once if it succeeded, and else not at all."""
    for key, record in world.deliveries.items():
        handler, _, event_id = key.partition(":")
        if not world.handlers[handler].transactional:
            continue
        found, wanted = world.witness.effects[handler, event_id], int(record.state == "succeeded")
        if found != wanted:
            yield f"{key} is {record.state} and its effect was written {found} times"


def _children(world: World) -> Iterator[str]:
    """A success has published what its handler published, the same in every attempt; a failure nothing.

    A result that is fenced off has stored its events by then. It is found out when the owner comes to another
    end than success, which only faults can bring about.
    """
    stored = world.store._state._tables.events
    for (handler, event_id), children in world.witness.children.items():
        record = world.deliveries.get(f"{handler}:{event_id}")
        if len(children) != 1:
            yield f"{handler}:{event_id} published {children} in its attempts"
        for child in children & set(stored) if record and record.state != "succeeded" else ():
            if not any(run.how == "returned" for run in world.witness.runs[handler, event_id]):
                yield f"{handler}:{event_id} never succeeded, its child {child} is stored"
        for child in children - set(stored) if record and record.state == "succeeded" else ():
            yield f"{handler}:{event_id} succeeded, its child {child} is not stored"


def _audited(world: World) -> Iterator[str]:
    """The conservation law, as users check it."""
    bus: Any = EventBus(settings=SETTINGS, broker=world.broker, store=world.store)
    found = audit(bus)
    yield from (f"audit: {handler}" for handler in found.handlers if not handler.ok or handler.missing)
    counted = sum(handler.accepted for handler in found.handlers)
    if counted != len(world.owed()):
        yield f"audit counts {counted} deliveries, there are {len(world.owed())}"
