"""``eventdriven events``: what was accepted."""

from __future__ import annotations

from datetime import datetime

import click

from eventdriven_sync.cli.options import Group, after_option, limit_option, since_option, until_option
from eventdriven_sync.cli.render import Column, attempts, last_error
from eventdriven_sync.cli.session import Session
from eventdriven_sync.cli.words import duration, moment_in_full, when
from eventdriven_sync.documents import delivery_summary, document
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import NotFound, shorten
from eventdriven_sync.records import Delivery
from eventdriven_sync.store import DeliveryQuery, EventQuery

MAX_DELIVERIES = 1000

EVENT_COLUMNS: tuple[Column[Envelope], ...] = (
    Column(title="published", text=lambda e: when(e.published_at)),
    Column(title="event", text=lambda e: e.name),
    Column(title="id", text=lambda e: e.id),
    Column(title="key", text=lambda e: e.key or "", flexible=True, extra=True),
    Column(title="by", text=lambda e: e.source, extra=True),
)

DELIVERY_COLUMNS: tuple[Column[Delivery], ...] = (
    Column(title="handler", text=lambda d: d.handler),
    Column(title="state", text=lambda d: f"{d.state} ({d.reason})" if d.reason else d.state, state=True),
    Column(title="attempts", text=attempts, extra=True),
    Column(title="took", text=lambda d: duration(d.duration_ms), right=True),
    Column(title="last error", text=last_error, flexible=True),
)


@click.group(cls=Group)
def events() -> None:
    """Events that were accepted."""


@events.command("list")
@click.option("--name", "names", multiple=True, metavar="EVENT", help="Of this name; may be repeated.")
@click.option("--operation", metavar="ID", help="Of this operation's chain.")
@click.option("--source", metavar="GROUP[.HANDLER]", help="Published by this group or handler.")
@click.option("--key", help="With this key.")
@since_option
@until_option
@after_option
@limit_option
@click.pass_obj
def list_events(
    session: Session,
    *,
    names: tuple[str, ...],
    operation: str | None,
    source: str | None,
    key: str | None,
    since: datetime | None,
    until: datetime | None,
    after: str | None,
    limit: int,
) -> None:
    """List events, newest first."""
    query = EventQuery(
        names=names,
        operation_id=operation,
        source=source,
        key=key,
        since=since,
        until=until,
        after=after,
        limit=limit,
    )
    found = session.bus().store.events.find(query)
    session.out.rows(
        found,
        EVENT_COLUMNS,
        empty="No event matches. `eventdriven publish NAME JSON` publishes one.",
    )
    session.out.more(found, limit, lambda event: event.id)


@events.command("show")
@click.argument("event_id", metavar="ID")
@click.pass_obj
def show_event(session: Session, *, event_id: str) -> None:
    """Show an event: its metadata, its payload and what became of it."""
    store = session.bus().store
    event = store.events.get([event_id]).get(event_id)
    if event is None:
        raise NotFound(
            f"no event has the id {shorten(event_id)}; `eventdriven events list` shows them", id=event_id
        )
    deliveries = store.deliveries.find(DeliveryQuery(event_id=event_id, limit=MAX_DELIVERIES))
    out = session.out
    out.document(document(event) | {"deliveries": [delivery_summary(each) for each in deliveries]})
    out.facts(event_facts(event))
    out.line()
    out.payload(document(event)["data"])
    out.line()
    if not out.json:
        out.rows(deliveries, DELIVERY_COLUMNS, empty="No handler has begun with it yet.")


def event_facts(event: Envelope) -> list[tuple[str, object]]:
    """What is known of an event beside its payload."""
    return [
        ("event", f"{event.name} (version {event.version})"),
        ("id", event.id),
        ("published", moment_in_full(event.published_at)),
        ("by", event.source),
        ("key", event.key),
        ("operation", event.operation_id),
        ("caused by", ", ".join(event.parent_ids)),
        ("depth", event.depth),
    ]
