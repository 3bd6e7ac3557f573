"""``eventdriven handlers``: who is subscribed to what."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import attrs
import click

from eventdriven_sync.cli.options import Group, agreed, dry_run_option, limit_option, since_option, yes_option
from eventdriven_sync.cli.render import Column
from eventdriven_sync.cli.session import Session, person
from eventdriven_sync.cli.words import did_you_mean, many, when
from eventdriven_sync.documents import Document, document
from eventdriven_sync.errors import BrokerError, ConfigurationError, NotFound, shorten
from eventdriven_sync.records import HandlerRecord
from eventdriven_sync.store import DeliveryQuery

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

STATES = ("pending", "running", "retrying", "succeeded", "dead", "discarded")


@attrs.frozen(kw_only=True)
class Subscriber:
    """A handler as the catalogue shows it.

    Attributes:
        state: ``in code``, ``vanished`` (not in the code of ``--app``), ``retired``, ``paused``, or
            ``registered`` when there is no code to compare with.
        backlog: messages its consumers still hold; None when NATS cannot be asked.
        deliveries: how many are in each state.
    """

    record: HandlerRecord
    state: str
    backlog: int | None
    deliveries: Mapping[str, int]


HANDLER_COLUMNS: tuple[Column[Subscriber], ...] = (
    Column(title="handler", text=lambda s: s.record.name),
    Column(title="state", text=lambda s: s.state, state=True),
    Column(title="events", text=lambda s: ", ".join(s.record.events), flexible=True),
    Column(title="backlog", text=lambda s: "?" if s.backlog is None else f"{s.backlog:,}", right=True),
    Column(title="deliveries", text=lambda s: _counts(s.deliveries), flexible=True),
    Column(
        title="since", text=lambda s: when(s.record.starts_at) if s.record.starts_at else "all", extra=True
    ),
    Column(title="seen", text=lambda s: when(s.record.seen_at), extra=True),
    Column(title="policy", text=lambda s: s.record.policy, flexible=True, extra=True),
    Column(title="code", text=lambda s: s.record.location, flexible=True, extra=True),
)


@click.group(cls=Group)
def handlers() -> None:
    """Handlers: who is subscribed to what."""


@handlers.command("list")
@click.option("--retired", is_flag=True, help="Also those that were retired.")
@click.option("--group", help="Of this group.")
@since_option
@limit_option
@click.pass_obj
def list_handlers(
    session: Session, *, retired: bool, group: str | None, since: datetime | None, limit: int
) -> None:
    """List handlers with their backlog and what became of their deliveries.

    With --app a handler that is registered but no longer in the code shows as vanished; events pile up for
    it until it is retired. --since leaves out those that were last seen earlier.
    """
    bus = session.bus()
    records = [
        record
        for record in bus.store.directory.handlers(retired=retired)
        if group in (None, record.group) and (since is None or record.seen_at >= since)
    ][:limit]
    backlogs = _backlogs(session, bus)
    known = set(session.app_bus().handlers) if session.app else None
    found = [
        Subscriber(
            record=record,
            state=_state(record, known),
            backlog=None if backlogs is None else backlogs.get(_consumer(record.name), 0),
            deliveries=bus.store.deliveries.count(DeliveryQuery(handler=record.name)),
        )
        for record in records
    ]
    session.out.rows(
        found,
        HANDLER_COLUMNS,
        as_document=_document,
        empty="No handler is registered yet: start a worker with --app, or publish with it.",
    )


@handlers.command("retire")
@click.argument("name", metavar="GROUP.HANDLER")
@yes_option
@dry_run_option
@click.pass_obj
def retire_handler(session: Session, *, name: str, yes: bool, dry_run: bool) -> None:
    """Retire a handler that is gone from the code: its consumers are deleted, nothing more is owed to it.

    Its deliveries stay on record. Started again it begins anew.
    """
    if session.app and name in session.app_bus().handlers:
        raise ConfigurationError(
            f"handler {name} is in the code of {session.app}: every start would register it again; "
            "remove it there first",
            field="name",
        )
    bus = session.bus()
    record = _record(bus, name)
    streams = sorted({f"{bus.settings.namespace}_{event.partition('.')[0]}" for event in record.events})
    _warn(session, bus, record)
    if dry_run:
        session.out.line(f"{name} would be retired, its consumers on {', '.join(streams)} deleted.")
        session.out.document({"name": name, "retired": False, "streams": streams, "dry_run": True})
        return
    agreed(f"Retire {name} for good?", yes=yes)
    for stream in streams:
        bus.broker.delete_consumer(stream, _consumer(name), timeout=bus.settings.broker_timeout)
    bus.store.directory.retire(name)
    session.out.line(f"{name} is retired.")
    session.out.document({"name": name, "retired": True, "streams": streams, "dry_run": False})


@handlers.command("pause")
@click.argument("name", metavar="GROUP.HANDLER")
@click.option(
    "--reason", required=True, help="Why: it is shown wherever the handler is, and in the audit log."
)
@click.pass_obj
def pause_handler(session: Session, *, name: str, reason: str) -> None:
    """Let running workers begin nothing more of a handler, within seconds. Its events wait."""
    from eventdriven_sync.monitor import Monitor

    Monitor(session.bus()).pause(name, by=person(), reason=reason)
    session.out.line(f"{name} is paused; `eventdriven handlers resume {name}` lets it run again.")
    session.out.document({"name": name, "paused": True})


@handlers.command("resume")
@click.argument("name", metavar="GROUP.HANDLER")
@click.pass_obj
def resume_handler(session: Session, *, name: str) -> None:
    """Let a paused handler run again."""
    from eventdriven_sync.monitor import Monitor

    Monitor(session.bus()).resume(name, by=person())
    session.out.line(f"{name} runs again.")
    session.out.document({"name": name, "paused": False})


def _warn(session: Session, bus: EventBus, record: HandlerRecord) -> None:
    """Say what retiring gives up."""
    counts = bus.store.deliveries.count(DeliveryQuery(handler=record.name))
    still = sum(counts.get(state, 0) for state in ("pending", "running", "retrying"))
    backlog = (_backlogs(session, bus) or {}).get(_consumer(record.name), 0)
    if still or backlog:
        session.out.note(
            f"{many(backlog, 'message')} and {many(still, 'open delivery', 'open deliveries')} are given up."
        )
    busy = [worker.id for worker in bus.store.directory.workers() if record.name in worker.handlers]
    if busy:
        session.out.warning(f"{many(len(busy), 'worker')} still runs it: {', '.join(busy)}")


def _record(bus: EventBus, name: str) -> HandlerRecord:
    known = {record.name: record for record in bus.store.directory.handlers(retired=True)}
    if name not in known:
        raise NotFound(
            f"no handler {shorten(name)} is registered{did_you_mean(name, known)}; "
            "`eventdriven handlers list` shows them",
            id=name,
        )
    if known[name].retired_at:
        raise ConfigurationError(f"handler {name} was retired {when(known[name].retired_at)}", field="name")
    return known[name]


def _backlogs(session: Session, bus: EventBus) -> dict[str, int] | None:
    """Messages each consumer still holds, by its name; None when NATS cannot be asked."""
    try:
        streams = bus.broker.streams(f"{bus.settings.namespace}_", timeout=bus.settings.broker_timeout)
    except BrokerError as error:
        session.out.warning(f"backlogs are unknown: {error}")
        return None
    found: dict[str, int] = {}
    for stream in streams:
        for consumer in stream.consumers:
            held = consumer.pending + consumer.ack_pending
            found[consumer.name] = found.get(consumer.name, 0) + held
    return found


def _consumer(name: str) -> str:
    return name.replace(".", "__")


def _state(record: HandlerRecord, known: set[str] | None) -> str:
    if record.retired_at:
        return "retired"
    if record.paused:
        return "paused"
    if known is None:
        return "registered"
    return "in code" if record.name in known else "vanished"


def _counts(deliveries: Mapping[str, int]) -> str:
    return ", ".join(f"{deliveries[state]:,} {state}" for state in STATES if deliveries.get(state))


def _document(subscriber: Subscriber) -> Document:
    counts = {state: subscriber.deliveries.get(state, 0) for state in STATES}
    return document(subscriber.record) | {
        "state": subscriber.state,
        "backlog": subscriber.backlog,
        "deliveries": counts,
    }
