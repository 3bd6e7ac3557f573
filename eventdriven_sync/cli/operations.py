"""``eventdriven operations`` and ``eventdriven chain``: commands, and what they set off."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

import click

from eventdriven_sync.cli.options import (
    Command,
    Group,
    after_option,
    limit_option,
    since_option,
    until_option,
)
from eventdriven_sync.cli.render import Column
from eventdriven_sync.cli.session import Session
from eventdriven_sync.cli.words import clean_lines, duration, moment_in_full, when
from eventdriven_sync.documents import chain_document, document
from eventdriven_sync.records import Operation

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

WATCH_EVERY = 0.5

OPERATION_COLUMNS: tuple[Column[Operation], ...] = (
    Column(title="started", text=lambda o: when(o.started_at)),
    Column(title="operation", text=lambda o: o.name, flexible=True),
    Column(title="kind", text=lambda o: o.kind),
    Column(title="status", text=lambda o: o.status, state=True),
    Column(title="took", text=lambda o: duration(o.duration_ms), right=True),
    Column(title="user", text=lambda o: o.user or "", flexible=True, extra=True),
    Column(title="id", text=lambda o: o.id),
)


@click.group(cls=Group)
def operations() -> None:
    """Operations: the commands that started chains of events."""


@operations.command("list")
@click.option("--name", help="Of this name.")
@click.option("--kind", help="Of this kind: http, cli, cron, webhook, script, …")
@click.option("--user", help="Of this user.")
@click.option("--status", type=click.Choice(["running", "succeeded", "failed"]), help="That ended so.")
@since_option
@until_option
@after_option
@limit_option
@click.pass_obj
def list_operations(
    session: Session,
    *,
    name: str | None,
    kind: str | None,
    user: str | None,
    status: str | None,
    since: datetime | None,
    until: datetime | None,
    after: str | None,
    limit: int,
) -> None:
    """List operations, newest first."""
    found = session.bus().operations.find(
        name=name,
        kind=kind,
        user=user,
        status=status,
        since=since,
        until=until,
        after=after,
        limit=limit,
    )
    session.out.rows(
        found,
        OPERATION_COLUMNS,
        empty='No operation matches. Code inside `with bus.operation("name"):` is one.',
    )
    session.out.more(found, limit, lambda operation: operation.id)


@operations.command("show")
@click.argument("operation_id", metavar="ID")
@click.pass_obj
def show_operation(session: Session, *, operation_id: str) -> None:
    """Show an operation: what it was called with, how it ended."""
    operation = session.bus().operations.get(operation_id)
    out = session.out
    out.document(document(operation))
    out.facts(
        [
            ("operation", operation.name),
            ("id", operation.id),
            ("kind", operation.kind),
            ("user", operation.user),
            ("begun in", operation.parent_id),
            ("status", operation.status),
            ("started", moment_in_full(operation.started_at)),
            ("took", duration(operation.duration_ms)),
            ("chain", f"eventdriven chain {operation.id}"),
        ]
    )
    for part in ("details", "variables"):
        if found := document(operation)[part]:
            out.line(f"\n{part}")
            out.payload(found)
    if operation.error:
        out.line()
        out.line(clean_lines(operation.error.traceback or operation.error.message))


@click.command(cls=Command)
@click.argument("chain_id", metavar="ID")
@click.option("--watch", is_flag=True, help="Show it again whenever it changes, until everything is settled.")
@click.pass_obj
def chain(session: Session, *, chain_id: str, watch: bool) -> None:
    """Show what an operation set off, as a tree: events, their handlers, the events of those.

    ID is an operation's or that of any event of the chain.
    """
    bus = session.bus()
    operation_id = _operation_of(bus, chain_id)
    shown = None
    while True:
        found = bus.operations.chain(operation_id)
        if found != shown:
            session.out.document(chain_document(found))
            session.out.chain(found)
        if not watch or found.settled:
            return
        shown = found
        time.sleep(WATCH_EVERY)


def _operation_of(bus: EventBus, chain_id: str) -> str:
    event = bus.store.events.get([chain_id]).get(chain_id)
    return event.operation_id if event else chain_id
