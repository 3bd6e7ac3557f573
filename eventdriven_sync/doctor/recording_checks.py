"""What can be wrong with events that NATS alone accepts (``durability="broker"``)."""

from __future__ import annotations

from eventdriven_sync.broker import RECORDER, ConsumerState
from eventdriven_sync.doctor.check import Check, Unknown, info, known, ok, warn
from eventdriven_sync.doctor.facts import Facts
from eventdriven_sync.doctor.nats_checks import replicas_of, streams_of_ours, syncs_always

LATE = 60.0


def risk(facts: Facts) -> Check:
    """What is lost of them if NATS loses what it confirmed."""
    streams = [s for s in streams_of_ours(facts) if any(c.name == RECORDER for c in s.consumers)]
    if not streams:
        return ok("no stream holds events that NATS alone accepted")
    names = ", ".join(stream.name for stream in streams)
    held = f'{names} hold events with durability="broker" until a worker records them'
    if isinstance(facts.monitoring, Unknown):
        return info(
            f"{held}; unknown whether NATS syncs them to its disk: {facts.monitoring.reason}",
            "give the doctor the monitoring URL; if NATS does not, a power loss can cost such events",
        )
    fewest = min(map(replicas_of, streams))
    if syncs_always(facts.monitoring):
        return ok(f"{held}: power-safe, {fewest} replica(s)")
    if fewest > 1:
        return info(
            f"{held}: {fewest} replicas, synced to the disk now and then; a power loss of all of them at "
            "once costs such events",
            "run the replicas in places that do not lose power together",
        )
    return warn(
        f"{held}: 1 replica, synced to the disk now and then; a power loss costs up to 2 minutes of such "
        "events that were not recorded yet, or a young stream",
        "jetstream { sync_interval: always } in nats-server.conf, stream_replicas=3, or leave durability out",
    )


def progress(facts: Facts) -> Check:
    """The recorders keep up."""
    found = [c for stream in streams_of_ours(facts) for c in stream.consumers if c.name == RECORDER]
    late = [each for each in found if _lag(facts, each) > LATE]
    if late:
        worst = max(late, key=lambda each: _lag(facts, each))
        return warn(
            f"{worst.pending + worst.ack_pending:,} messages of {worst.stream} are not recorded, the oldest "
            f"for {_lag(facts, worst):,.0f} s; such an event is in no chain, list or count yet",
            "start a worker"
            if not known(facts.workers)
            else "run more worker processes; look into their logs",
        )
    return ok(f"up to date: {len(found)}" if found else "none is needed")


def _lag(facts: Facts, consumer: ConsumerState) -> float:
    return (facts.now - consumer.oldest_at).total_seconds() if consumer.oldest_at else 0.0
