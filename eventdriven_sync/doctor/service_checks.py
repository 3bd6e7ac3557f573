"""What can be wrong with the service itself: its backlog, its workers, its process and libraries."""

from __future__ import annotations

from eventdriven_sync.doctor.check import Check, Unknown, fail, info, known, ok, version, warn
from eventdriven_sync.doctor.facts import REQUIRED, Facts
from eventdriven_sync.doctor.mongo_checks import judge_clock

LATE = 60.0
OLD = 3600.0
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
_THREADS = ("eventdriven", "pymongo")


def round_trip(facts: Facts) -> Check:
    """An event is published, handled and recorded."""
    trip = known(facts.trip)
    if trip.obstacle:
        return fail(trip.obstacle, "see the other checks, and the logs of both servers")
    times = sorted(trip.seconds)
    if not times:
        return fail("nothing was measured", "see the other checks")
    return ok(
        f"published, handled and recorded in {times[len(times) // 2] * 1000:.0f} ms "
        f"(median of {len(times)}, slowest {times[-1] * 1000:.0f} ms)"
    )


def broker_clock(facts: Facts) -> Check:
    """NATS's clock and ours agree."""
    trip = known(facts.trip)
    if trip.broker_skew is None:
        known(Unknown("the consumer did not show when it got the event; NATS may be behind MongoDB"))
    return judge_clock("NATS", trip.broker_skew or 0.0)


def workers(facts: Facts) -> Check:
    """Every registered handler is run by somebody."""
    alive = known(facts.workers)
    if not known(facts.handlers):
        return ok("no handler is registered")
    served = {name for worker in alive for name in worker.handlers}
    alone = [record.name for record in known(facts.handlers) if record.name not in served]
    if alone:
        return warn(
            f"no worker runs {', '.join(alone)}",
            "start one (eventdriven worker), or retire what is gone (eventdriven handlers retire NAME)",
        )
    return ok(f"every handler is run (workers: {len(alive)})")


def paused(facts: Facts) -> Check:
    """Nobody forgot a handler that was to stand still for a while."""
    found = [
        f"{record.name} since {(facts.now - pause.at).total_seconds() / 3600:.1f} h by {pause.by}"
        for record in known(facts.handlers)
        if (pause := record.paused)
    ]
    if found:
        return warn(f"paused: {', '.join(found)}", "resume it in the dashboard when its reason is gone")
    return ok("none")


def overdue(facts: Facts) -> Check:
    """Nothing that is due waits long: retries, recovered events, deliveries of dead workers."""
    late = known(facts.overdue)
    if late is not None and late > LATE:
        return warn(
            f"the oldest delivery that is due waits for {late:,.0f} s",
            "start a worker for its handler, or more of them (see eventdriven handlers list)",
        )
    return ok("nothing is overdue")


def forgotten(facts: Facts) -> Check:
    """Everything accepted lately has a delivery, or NATS still has it."""
    lost = known(facts.forgotten)
    if not lost:
        return ok("none in the last minutes")
    text = f"accepted and with nobody: {', '.join(f'{name} {count:,}' for name, count in lost.items())}"
    if not known(facts.workers):
        return warn(text, "start a worker: its reconciler brings them")
    return fail(text, "look into the workers' logs for their reconciler, then run eventdriven audit")


def publish_timeout(facts: Facts) -> Check:
    """Publishing gives up before the reconciler begins to look after an event."""
    timeout, after = facts.settings.publish_timeout, facts.settings.reconcile_after
    if timeout >= after:
        return warn(
            f"publish_timeout is {timeout:g} s and reconcile_after {after:g} s: an event that takes so long "
            "may be brought twice at once, and its handlers run twice",
            f"lower publish_timeout, or raise reconcile_after above {timeout:g}",
        )
    return ok(f"{timeout:g} s, the reconciler waits {after:g} s")


def dead_letters(facts: Facts) -> Check:
    """Nobody has to look at anything."""
    dead = known(facts.counts).get("dead", 0)
    if dead:
        return warn(f"{dead:,} deliveries are dead", "eventdriven dead list, then dead retry or dead discard")
    return ok("none")


def backlog(facts: Facts) -> Check:
    """How much waits, and since when."""
    consumers = [c for stream in known(facts.streams) for c in stream.consumers]
    waiting = sum(consumer.pending for consumer in consumers)
    counts = known(facts.counts)
    opened = sum(counts.get(state, 0) for state in ("pending", "running", "retrying"))
    oldest = min((c.oldest_at for c in consumers if c.oldest_at), default=None)
    text = f"messages in consumers: {waiting:,}, open deliveries: {opened:,}"
    age = (facts.now - oldest).total_seconds() if oldest else 0.0
    if age > OLD:
        return warn(
            f"{text}; the oldest message waits for {age / 3600:.1f} h", "run more threads or processes"
        )
    return ok(text)


def libraries(facts: Facts) -> Check:
    """Versions of what we stand on."""
    versions = known(facts.versions)
    old = [
        f"{name} {have} (needs {REQUIRED[name]})"
        for name, have in versions.items()
        if version(have) < version(REQUIRED[name])
    ]
    if old:
        return fail(f"too old: {', '.join(old)}", "pip install --upgrade eventdriven_sync")
    return ok(", ".join(f"{name} {have}" for name, have in versions.items()))


def python(facts: Facts) -> Check:
    """A version that this library is tested with."""
    text = ".".join(map(str, facts.python))
    if facts.python < OLDEST_PYTHON:
        return fail(f"Python {text} is too old", "use Python 3.11 to 3.13")
    if facts.python > NEWEST_PYTHON:
        return warn(f"Python {text} is newer than what this was tested with", "use Python 3.11 to 3.13")
    return ok(f"Python {text}")


def forking(facts: Facts) -> Check:
    """No connection is open where processes are forked."""
    threads = [name for name in facts.threads if name.startswith(_THREADS)]
    if not threads:
        return ok("nothing was open before")
    if not facts.preforkers:
        return info(f"connections were open before the diagnosis ({len(threads)} threads)")
    return warn(
        f"{', '.join(sorted(set(threads)))} ran before the diagnosis, where {', '.join(facts.preforkers)} "
        "forks processes",
        "open no MongoClient and publish nothing while modules are imported; a bus opens itself anew in a "
        "forked process, a MongoClient of yours does not",
    )
