"""The facts that the checks look at, gathered once; what cannot be learned is ``Unknown``."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import logging
import secrets
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from eventdriven_sync.audit import audit
from eventdriven_sync.broker import ConsumerSpec, StreamSpec, StreamState
from eventdriven_sync.config import Settings
from eventdriven_sync.doctor.check import CannotCheck, Unknown, known
from eventdriven_sync.doctor.dashboard_checks import Dashboard, count_people, look
from eventdriven_sync.doctor.ping import Ping, RoundTrip, ping
from eventdriven_sync.envelope import Envelope, new_id, utcnow
from eventdriven_sync.errors import BrokerPermissionDenied, EventDrivenError, StoreUnavailable
from eventdriven_sync.events import event_type_of
from eventdriven_sync.records import HandlerRecord, WorkerRecord
from eventdriven_sync.store import DeliveryQuery

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

log = logging.getLogger(__name__)

T = TypeVar("T")

PREFORKERS = ("gunicorn", "celery", "uwsgi", "billiard")
SECOND_LOOK_AFTER = 5.0
# How far back forgotten events are looked for, in seconds, and among how many.
RECENT = 300.0
MOST_AUDITED = 20_000
_HTTP_TIMEOUT = 3.0
_HTTP_LIMIT = 4 * 1024 * 1024

# As in setup.py; a program run from a source tree has no metadata to read it from.
REQUIRED: Mapping[str, str] = {
    "attrs": "24.1",
    "cattrs": "24.1",
    "click": "8.1.7",
    "nats-py": "2.16",
    "pymongo": "4.10",
    "tenacity": "9",
}


@attrs.frozen(kw_only=True)
class Facts:
    """Everything the checks look at.

    Attributes:
        nats_error: why NATS cannot be used, or empty.
        mongo_error: why the event store could not be opened, or empty.
        server: what NATS says of itself: version, max_payload, auth_required, tls_required.
        jetstream: what JetStream says of itself: api_level.
        streams: of the namespace, with their consumers.
        later: the same a few seconds later, if something waited in a consumer.
        consumers: what the handlers of this bus need.
        stream_spec: the stream this bus wants for a first token.
        mongo: what the event store says of its server.
        probe_write: seconds of one majority-committed, journaled write.
        aborted: whether a transaction that was aborted left nothing behind.
        monitoring: NATS's monitoring page ``/varz``.
        denied: whether NATS refuses this user a stream outside of the namespace.
        forgotten: accepted events of the last minutes that nothing will bring, by handler.
        dashboard: who may sign in, its settings, what strangers see.
        counts: deliveries by state.
        overdue: seconds since the oldest due delivery could have been started.
        trip: the round trip.
        threads: names of threads that ran before the diagnosis.
        preforkers: programs that fork workers, as far as they are seen in this process.
        versions: installed versions of what this library needs.
    """

    settings: Settings
    nats_error: str
    mongo_error: str
    server: Mapping[str, Any] | Unknown
    jetstream: Mapping[str, Any] | Unknown
    streams: list[StreamState] | Unknown
    later: list[StreamState] | Unknown
    consumers: list[ConsumerSpec]
    stream_spec: Callable[[str], StreamSpec]
    mongo: Mapping[str, Any] | Unknown
    probe_write: float | Unknown
    aborted: bool | Unknown
    monitoring: Mapping[str, Any] | Unknown
    denied: bool | Unknown
    forgotten: Mapping[str, int] | Unknown
    dashboard: Dashboard
    workers: list[WorkerRecord] | Unknown
    handlers: list[HandlerRecord] | Unknown
    counts: Mapping[str, int] | Unknown
    overdue: float | Unknown | None
    trip: RoundTrip | Unknown
    now: datetime
    threads: tuple[str, ...]
    preforkers: tuple[str, ...]
    versions: Mapping[str, str] | Unknown
    python: tuple[int, int]


def gather(
    bus: EventBus, *, monitoring_url: str | None, round_trip: bool, dashboard_url: str | None = None
) -> Facts:
    """Ask both servers; never raises for what they answer."""
    threads = tuple(thread.name for thread in threading.enumerate())
    began = time.monotonic()
    nats_error, server, streams = _ask_nats(bus)
    mongo_error, mongo = _ask_mongo(bus)
    directory, deliveries = bus.store.directory, bus.store.deliveries
    handlers = _unless(mongo, directory.handlers)
    return Facts(
        settings=bus.settings,
        nats_error=nats_error,
        mongo_error=mongo_error,
        server=server,
        jetstream=_unless(streams, lambda: bus.broker.info(timeout=bus.settings.broker_timeout)),
        streams=streams,
        consumers=[
            spec for handler in bus.handlers.values() for spec in bus.topology.consumers(handler, None)
        ],
        stream_spec=bus.topology.stream,
        mongo=mongo,
        probe_write=_unless(mongo, lambda: _probe_write(bus)),
        aborted=_unless(mongo, lambda: _probe_abort(bus)),
        monitoring=monitoring_page(monitoring_url),
        denied=_unless(streams, lambda: _is_denied(bus, server)),
        forgotten=_unless(mongo, lambda: _unless(streams, lambda: _forgotten(bus))),
        dashboard=look(_unless(mongo, lambda: count_people(bus)), url=dashboard_url),
        workers=_unless(mongo, directory.workers),
        handlers=handlers,
        counts=_unless(mongo, lambda: deliveries.count(DeliveryQuery())),
        overdue=_unless(handlers, lambda: _overdue(bus, known(handlers))),
        trip=_make_trip(bus, wanted=round_trip, needs=(server, streams, mongo)),
        later=_look_later(bus, streams, began),
        now=utcnow(),
        threads=threads,
        preforkers=_preforkers(),
        versions=learn(_versions),
        python=(sys.version_info.major, sys.version_info.minor),
    )


# --- the servers ----------------------------------------------------------------------------------------


def _ask_nats(bus: EventBus) -> tuple[str, Mapping[str, Any] | Unknown, list[StreamState] | Unknown]:
    """Why it cannot be used, what it says of itself, and its streams."""
    streams = learn(lambda: streams_of(bus))
    status = bus.broker.status()
    error = streams.reason if isinstance(streams, Unknown) else ""
    if not status.server or not status.connected:
        error = error or "NATS has not said who it is"
        unreachable = Unknown("NATS cannot be reached", skipped=True)
        return error, unreachable, unreachable if isinstance(streams, Unknown) else streams
    if error:
        streams = Unknown("JetStream does not answer", skipped=True)
    return error, status.server, streams


def streams_of(bus: EventBus) -> list[StreamState]:
    """The streams of the bus's namespace, with their consumers."""
    return bus.broker.streams(f"{bus.settings.namespace}_", timeout=bus.settings.broker_timeout)


def _is_denied(bus: EventBus, server: Mapping[str, Any] | Unknown) -> bool:
    """Whether a question about a stream that is none of ours is refused."""
    if not known(server).get("auth_required"):
        known(Unknown("NATS has no users, so everybody may everything", skipped=True))
    try:
        bus.broker.consumer_state("doctor-probe", "nobody", timeout=bus.settings.broker_timeout)
    except BrokerPermissionDenied:
        return True
    return False


def _forgotten(bus: EventBus) -> dict[str, int]:
    """A small audit: of what the reconciler should have looked after in the last minutes."""
    settings = bus.settings
    grace = settings.reconcile_after + settings.reconcile_every
    now = bus.store.directory.now()
    since, until = now - timedelta(seconds=grace + RECENT), now - timedelta(seconds=grace)
    names = sorted({name for record in bus.store.directory.handlers() for name in record.events})
    count = bus.store.events.count(names, since=since, until=until) if names else 0
    if count > MOST_AUDITED:
        known(
            Unknown(
                f"{count:,} events in a few minutes are too many for here: eventdriven audit", skipped=True
            )
        )
    return {each.name: each.lost for each in audit(bus, since=since).handlers if each.lost}


def _ask_mongo(bus: EventBus) -> tuple[str, Mapping[str, Any] | Unknown]:
    """Why the event store cannot be used, and what its server says of itself."""
    try:
        bus.store.open(timeout=bus.settings.publish_timeout)
    except StoreUnavailable as error:
        return str(error), Unknown("MongoDB cannot be reached", skipped=True)
    except EventDrivenError as error:
        return str(error), learn(bus.store.info)
    return "", learn(bus.store.info)


def _look_later(
    bus: EventBus, streams: list[StreamState] | Unknown, began: float
) -> list[StreamState] | Unknown:
    """A second look, a while after the first, if anything waited."""
    if isinstance(streams, Unknown):
        return streams
    if any(consumer.pending for stream in streams for consumer in stream.consumers):
        threading.Event().wait(max(began + SECOND_LOOK_AFTER - time.monotonic(), 0.0))
        return learn(lambda: streams_of(bus))
    return streams


def _probe_write(bus: EventBus) -> float:
    """A lease that nobody else wants, taken and given back: two durable writes."""
    holder, began = secrets.token_hex(8), time.monotonic()
    bus.store.directory.lead("doctor", holder, ttl=1.0)
    bus.store.directory.resign("doctor", holder)
    return (time.monotonic() - began) / 2


def _probe_abort(bus: EventBus) -> bool:
    event = _probe_event()
    timeout = bus.settings.publish_timeout
    try:
        with bus.store.transaction(timeout=timeout) as session:
            bus.store.events.append([event], timeout=timeout, session=session)
            raise _Abort
    except _Abort:
        return event.id not in bus.store.events.get([event.id])


class _Abort(Exception):
    """Thrown and caught here."""


def _probe_event() -> Envelope:
    kind, id = event_type_of(Ping), new_id()
    return Envelope(
        id=id,
        name=kind.name,
        version=kind.version,
        data={"number": -1},
        published_at=utcnow(),
        operation_id=id,
    )


def _overdue(bus: EventBus, handlers: list[HandlerRecord]) -> float | None:
    if not handlers:
        return None
    due = bus.store.deliveries.next_due([record.name for record in handlers])
    return None if due is None else max(-due, 0.0)


def _make_trip(bus: EventBus, *, wanted: bool, needs: tuple[object, ...]) -> RoundTrip | Unknown:
    if not wanted:
        return Unknown("not asked for", skipped=True)
    if any(isinstance(need, Unknown) for need in needs):
        return Unknown("a server cannot be used", skipped=True)
    return learn(lambda: ping(bus))


def monitoring_page(url: str | None) -> Mapping[str, Any] | Unknown:
    """NATS's page /varz; not visible to a client."""
    if not url:
        return Unknown(
            "no monitoring URL given (http_port of nats-server, for example http://host:8222)", skipped=True
        )
    address = f"{url.rstrip('/')}/varz"
    if not address.startswith(("http://", "https://")):
        return Unknown(f"monitoring URL {url!r} does not begin with http:// or https://")
    try:
        with urllib.request.urlopen(address, timeout=_HTTP_TIMEOUT) as answer:
            page = json.loads(answer.read(_HTTP_LIMIT))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Unknown(f"{address} cannot be read: {error}")
    return page if isinstance(page, dict) else Unknown(f"{address} is no monitoring page of nats-server")


# --- this process ---------------------------------------------------------------------------------------


def _preforkers() -> tuple[str, ...]:
    started_as = Path(sys.argv[0]).name if sys.argv else ""
    return tuple(name for name in PREFORKERS if name in sys.modules or started_as.startswith(name))


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in REQUIRED}


# --- learning -------------------------------------------------------------------------------------------


def learn(ask: Callable[[], T]) -> T | Unknown:
    """The answer, or why there is none."""
    try:
        return ask()
    except CannotCheck as obstacle:
        return obstacle.unknown
    except EventDrivenError as error:
        return Unknown(str(error))
    except Exception as error:  # a diagnosis goes on, whatever a server answers
        log.debug("A fact could not be gathered", exc_info=True)
        return Unknown(f"{type(error).__name__}: {error}")


def _unless(obstacle: object, ask: Callable[[], T]) -> T | Unknown:
    return obstacle if isinstance(obstacle, Unknown) else learn(ask)
