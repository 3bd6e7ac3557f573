"""The doctor: checks servers, settings and the service itself, and says what to do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from eventdriven_sync.doctor import (
    dashboard_checks,
    durability,
    mongo_checks,
    nats_checks,
    recording_checks,
    service_checks,
)
from eventdriven_sync.doctor.check import CannotCheck, Check
from eventdriven_sync.doctor.facts import Facts, gather

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

__all__ = ["Check", "diagnose"]

log = logging.getLogger(__name__)

CHECKS: tuple[tuple[str, Callable[[Facts], Check]], ...] = (
    ("NATS", nats_checks.reachable),
    ("NATS version", nats_checks.server_version),
    ("JetStream API", nats_checks.api_level),
    ("NATS max_payload", nats_checks.max_payload),
    ("NATS security", nats_checks.security),
    ("NATS rights", nats_checks.rights),
    ("NATS durability", nats_checks.durability),
    ("NATS storage", nats_checks.storage),
    ("NATS clock", service_checks.broker_clock),
    ("stream settings", nats_checks.stream_settings),
    ("stream replicas", nats_checks.replicas),
    ("consumer settings", nats_checks.consumer_settings),
    ("consumer position", nats_checks.consumer_position),
    ("consumer slots", nats_checks.consumer_slots),
    ("consumer progress", nats_checks.consumer_progress),
    ("recorder", recording_checks.progress),
    ("unrecorded events", recording_checks.risk),
    ("MongoDB", mongo_checks.reachable),
    ("MongoDB version", mongo_checks.server_version),
    ("MongoDB replica set", mongo_checks.replica_set),
    ("MongoDB arbiters", mongo_checks.arbiters),
    ("MongoDB majority", mongo_checks.journaled_majority),
    ("MongoDB storage engine", mongo_checks.storage_engine),
    ("MongoDB security", mongo_checks.security),
    ("MongoDB clock", mongo_checks.clock),
    ("MongoDB oplog", mongo_checks.oplog),
    ("durable write", mongo_checks.durable_write),
    ("default write concern", mongo_checks.default_concern),
    ("transactions", mongo_checks.transactions),
    ("indexes", mongo_checks.indexes),
    ("durability", durability.verdict),
    ("publish timeout", service_checks.publish_timeout),
    ("round trip", service_checks.round_trip),
    ("workers", service_checks.workers),
    ("paused handlers", service_checks.paused),
    ("backlog", service_checks.backlog),
    ("overdue deliveries", service_checks.overdue),
    ("forgotten events", service_checks.forgotten),
    ("dead letters", service_checks.dead_letters),
    ("dashboard users", dashboard_checks.users),
    ("dashboard settings", dashboard_checks.settings),
    ("dashboard access", dashboard_checks.access),
    ("Python", service_checks.python),
    ("libraries", service_checks.libraries),
    ("forking", service_checks.forking),
)


def diagnose(
    bus: EventBus,
    *,
    monitoring_url: str | None = None,
    round_trip: bool = True,
    dashboard_url: str | None = None,
) -> list[Check]:
    """Check both servers, the settings and the service; takes up to 20 seconds and never raises for findings.

    It opens the event store (which creates what indexes are missing), takes and gives back a lease, and
    aborts a transaction. With ``round_trip`` it publishes six events ``Eventdriven.ping`` and handles them;
    they and their handler are removed again, only their stream remains.

    Args:
        monitoring_url: NATS's monitoring port, for example ``http://localhost:8222``; only there can be seen
            whether messages are synced to the disk.
        round_trip: whether to publish.
        dashboard_url: of the dashboard, as people reach it: what a stranger is shown there.

    Example:
        >>> assert not [check for check in diagnose(bus) if check.level == "fail"]
    """
    facts = gather(bus, monitoring_url=monitoring_url, round_trip=round_trip, dashboard_url=dashboard_url)
    return examine(facts)


def examine(facts: Facts) -> list[Check]:
    """All checks on these facts."""
    return [_perform(name, check, facts) for name, check in CHECKS]


def _perform(name: str, check: Callable[[Facts], Check], facts: Facts) -> Check:
    try:
        return attrs.evolve(check(facts), name=name)
    except CannotCheck as obstacle:
        if obstacle.unknown.skipped:
            return Check(name, "info", f"skipped: {obstacle}")
        return _unchecked(name, str(obstacle))
    except Exception as error:  # a server may answer anything; the other checks go on
        log.debug("The check %s failed", name, exc_info=True)
        return _unchecked(name, f"{type(error).__name__}: {error}")


def _unchecked(name: str, why: str) -> Check:
    return Check(name, "warn", f"could not be checked: {why}", "see to it that it can be, or look yourself")
