"""What can be wrong with NATS: the server, its streams, its consumers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from eventdriven_sync.broker import RECORDER, ConsumerState, StreamState
from eventdriven_sync.brokers.jetstream import check_consumer, check_stream
from eventdriven_sync.config import redact
from eventdriven_sync.doctor.check import Check, Unknown, fail, info, known, ok, skip, version, warn
from eventdriven_sync.doctor.facts import Facts
from eventdriven_sync.errors import ConfigurationError

SECURE_VERSION = (2, 12, 7)
GOOD_VERSION = (2, 14)
LEAST_API_LEVEL = 1
BEST_VERSION = (2, 15, 1)
HEADROOM = 16 * 1024
FULL = 0.8


def reachable(facts: Facts) -> Check:
    """NATS answers, with JetStream."""
    where = redact(facts.settings.nats)
    if not facts.nats_error:
        return ok(f"{where} answers, JetStream is on")
    return fail(facts.nats_error, f"check that nats-server runs with -js and that the URL {where} is right")


def server_version(facts: Facts) -> Check:
    """Neither insecure nor known to lose messages."""
    found = version(_server(facts).get("version"))
    text = ".".join(map(str, found))
    if found < SECURE_VERSION:
        return fail(f"nats-server {text} has known security holes", "install nats-server 2.15.1 or newer")
    if found < BEST_VERSION:
        kept = "" if found >= GOOD_VERSION else " and is no longer maintained"
        return warn(
            f"nats-server {text} can lose confirmed messages in a power loss{kept}",
            "install nats-server 2.15.1 or newer",
        )
    return ok(f"nats-server {text}")


def api_level(facts: Facts) -> Check:
    """JetStream understands what we ask of it; every server of a cluster must."""
    _server(facts)
    level = int(known(facts.jetstream).get("api_level", 0))
    if level < LEAST_API_LEVEL:
        return fail(
            f"JetStream has API level {level}, and {LEAST_API_LEVEL} is needed",
            "install nats-server 2.15.1 or newer on every server of the cluster",
        )
    return ok(f"level {level}")


def max_payload(facts: Facts) -> Check:
    """The server takes what the bus accepts."""
    have = int(_server(facts).get("max_payload", 0))
    want = facts.settings.max_payload_bytes + HEADROOM
    if have < want:
        return fail(
            f"max_payload is {have:,} bytes, events may have {want:,} with their envelope",
            f"set max_payload: {want} in nats-server.conf, or lower max_payload_bytes",
        )
    return ok(f"{have:,} bytes")


def security(facts: Facts) -> Check:
    """Over a network: user and TLS."""
    server = _server(facts)
    hosts = [urlsplit(part.strip()).hostname or "" for part in facts.settings.nats.split(",")]
    foreign = [host for host in hosts if not is_loopback(host)]
    lacks = [
        what for what, key in (("user", "auth_required"), ("TLS", "tls_required")) if not server.get(key)
    ]
    if foreign and lacks:
        return fail(
            f"{', '.join(foreign)} can be used without {' and without '.join(lacks)}",
            "configure authorization and tls in nats-server.conf, give tls://user:password@host as URL",
        )
    return ok("loopback only" if not foreign else "users and TLS")


def rights(facts: Facts) -> Check:
    """This user may use its own streams, and no others."""
    _server(facts)
    if not known(facts.denied):
        return warn(
            "NATS answers this user also about streams of others: whoever breaks in here could delete them",
            f"give the user permissions for {facts.settings.namespace}.> and for the JetStream API of the "
            "streams of its namespace only, or an account of its own",
        )
    return ok("a stream of others is refused")


def durability(facts: Facts) -> Check:
    """What a stream survives: the death of the server, or a power loss too."""
    streams = streams_of_ours(facts)
    unsafe = [s.name for s in streams if s.config.get("storage") != "file"]
    unsafe += [s.name for s in streams if s.config.get("persist_mode") == "async"]
    if unsafe:
        return fail(
            f"{', '.join(unsafe)} confirm messages that are not in a file",
            "delete the stream: it is created anew with file storage, the events are in the event store",
        )
    if isinstance(facts.monitoring, Unknown):
        return info(
            f"unknown whether NATS syncs every message to its disk: {facts.monitoring.reason}",
            "give the doctor the monitoring URL; if NATS does not, a power loss costs it up to 2 minutes of "
            "messages, and the reconciler brings them from the event store",
        )
    fewest = min((replicas_of(s) for s in streams), default=facts.settings.stream_replicas)
    if syncs_always(facts.monitoring):
        return ok(f"power-safe: every message is synced to the disk, {fewest} replica(s)")
    return info(
        f"crash-safe: {fewest} replica(s), synced to the disk now and then; after a power loss the "
        "reconciler brings what NATS forgot from the event store",
        "jetstream { sync_interval: always } in nats-server.conf makes it power-safe",
    )


def replicas(facts: Facts) -> Check:
    """Two replicas are no better than one."""
    apart = [
        f"{consumer.name} ({own}, its stream {replicas_of(stream)})"
        for stream in streams_of_ours(facts)
        for consumer in stream.consumers
        # 0 is as many as its stream has.
        if (own := _number(consumer.config.get("num_replicas"))) not in (0, replicas_of(stream))
    ]
    if apart:
        return warn(
            f"consumers with other replicas than their stream: {', '.join(apart)}",
            "delete the consumer: it is created anew with as many as its stream has",
        )
    double = [stream.name for stream in streams_of_ours(facts) if replicas_of(stream) == 2]
    if double:
        return warn(
            f"{', '.join(double)} have 2 replicas: if one of them is away, nothing can be written",
            "use 1 or 3 replicas",
        )
    return ok(", ".join(f"{s.name}: {replicas_of(s)}" for s in streams_of_ours(facts)) or "no streams yet")


def stream_settings(facts: Facts) -> Check:
    """Every stream of the namespace is as this bus wants it."""
    prefix = f"{facts.settings.namespace}_"
    streams = streams_of_ours(facts)
    for stream in streams:
        spec = facts.stream_spec(stream.name.removeprefix(prefix))
        try:
            check_stream(spec, stream.config)
        except ConfigurationError as error:
            return fail(*_split(error))
    return ok(f"as they should be: {len(streams)}" if streams else "no streams yet")


def consumer_settings(facts: Facts) -> Check:
    """Every consumer of this bus's handlers is as it should be."""
    found = {(c.stream, c.name): c for c in _consumers(streams_of_ours(facts))}
    missing = [s.name for s in facts.consumers if (s.stream.name, s.name) not in found]
    for spec in facts.consumers:
        state = found.get((spec.stream.name, spec.name))
        try:
            if state:
                check_consumer(spec, state.config)
        except ConfigurationError as error:
            return fail(*_split(error))
    if missing:
        return warn(
            f"not created yet: {', '.join(missing)}",
            "start a worker, or publish once: the first process that opens the bus creates them",
        )
    return ok(f"as they should be: {len(facts.consumers)}")


def consumer_position(facts: Facts) -> Check:
    """No consumer has delivered more than its stream still knows: it would be silent until that grew."""
    ahead = [
        f"{consumer.name} ({consumer.delivered:,} of {stream.last_sequence:,})"
        for stream in streams_of_ours(facts)
        for consumer in stream.consumers
        if consumer.delivered > stream.last_sequence
    ]
    if ahead:
        return fail(
            f"ahead of a stream that lost messages: {', '.join(ahead)}",
            "delete the consumer: it is created anew, and the reconciler brings what the stream lost",
        )
    return ok("none is ahead of its stream")


def consumer_slots(facts: Facts) -> Check:
    """Enough unacknowledged messages allowed for all threads there are."""
    threads = sum(worker.threads for worker in known(facts.workers))
    narrow = [
        f"{c.name} ({c.config['max_ack_pending']})"
        for c in _consumers(streams_of_ours(facts))
        if 0 < _number(c.config.get("max_ack_pending")) < 2 * threads
    ]
    if narrow:
        return fail(
            f"max_ack_pending of {', '.join(narrow)} is below twice the {threads} threads of all workers",
            "run fewer threads, or delete the consumer so that it is created with the present limit",
        )
    return ok(f"room for the {threads} threads of all workers")


def consumer_progress(facts: Facts) -> Check:
    """What waits in a consumer is moving."""
    before = {(c.stream, c.name): c for c in _consumers(streams_of_ours(facts))}
    served = {name.replace(".", "__") for worker in known(facts.workers) for name in worker.handlers}
    served |= {RECORDER} if known(facts.workers) else set()  # every worker records
    # Of those there is a check of its own.
    paused = {record.name.replace(".", "__") for record in known(facts.handlers) if record.paused}
    verdicts = [
        _progress(before.get((after.stream, after.name), after), after, served=after.name in served)
        for after in _consumers(known(facts.later))
        if after.name not in paused
    ]
    worst = sorted(filter(None, verdicts), key=lambda check: check.level)
    return worst[0] if worst else ok(f"nothing is stuck in {len(verdicts)} consumer(s)")


def storage(facts: Facts) -> Check:
    """Room is left in NATS's store."""
    jetstream = known(facts.monitoring).get("jetstream") or {}
    most = (jetstream.get("config") or {}).get("max_storage") or 0
    used = (jetstream.get("stats") or {}).get("storage") or 0
    if not most:
        skip("the monitoring page tells no limit")
    if used > FULL * most:
        return warn(
            f"{used / most:.0%} of max_file_store are used",
            "give NATS a larger disk and max_file_store, or shorten stream_max_age; full, it takes nothing",
        )
    return ok(f"{used / most:.0%} of max_file_store used")


def is_loopback(host: str) -> bool:
    """Whether it is this machine."""
    return host in ("localhost", "::1", "") or host.startswith("127.")


def _progress(before: ConsumerState, after: ConsumerState, *, served: bool) -> Check | None:
    moved = (before.pending, before.ack_pending) != (after.pending, after.ack_pending)
    if not after.pending or after.pending < before.pending:
        return None
    waits = f"{after.pending:,} messages wait in {after.name}"
    if after.paused:
        return warn(f"{waits}, which is paused", f"nats consumer resume {after.stream} {after.name}")
    if not served:
        return warn(f"{waits} and no worker runs its handler", "start a worker for it, or retire the handler")
    if after.waiting and not moved:
        return fail(
            f"{waits}, {after.waiting} pulls wait too, and nothing is delivered",
            f"delete the consumer {after.name} of stream {after.stream} (it is created anew) and look into "
            "the log of nats-server",
        )
    return warn(
        f"{waits}, not fewer than before; {after.ack_pending:,} are in the hands of workers",
        "run more threads or processes if this goes on; look for handlers that hang",
    )


def _server(facts: Facts) -> Mapping[str, Any]:
    server = known(facts.server)
    if server.get("version") == "memory":
        skip("the broker is in memory, for tests")
    return server


def streams_of_ours(facts: Facts) -> list[StreamState]:
    """The streams of the namespace; the check is left out where there is no server."""
    _server(facts)
    return known(facts.streams)


def _consumers(streams: list[StreamState]) -> Iterator[ConsumerState]:
    return (consumer for stream in streams for consumer in stream.consumers)


def replicas_of(stream: StreamState) -> int:
    """How many servers keep its messages."""
    return _number(stream.config.get("num_replicas", 1))


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def syncs_always(monitoring: Mapping[str, Any]) -> bool:
    """The field is absent when it is off; the interval shows 2 minutes either way."""
    config = (monitoring.get("jetstream") or {}).get("config") or {}
    return config.get("sync_always") is True


def _split(error: ConfigurationError) -> tuple[str, str]:
    """Our messages end with the cure, after the last semicolon."""
    finding, _, cure = error.message.rpartition("; ")
    return (finding, cure) if finding else (cure, "adapt the setting")
