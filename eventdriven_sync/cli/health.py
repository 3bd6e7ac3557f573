"""``eventdriven audit``, ``doctor`` and ``streams``: whether all is well."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from eventdriven_sync.broker import ConsumerState, StreamState
from eventdriven_sync.cli.options import Command, limit_option, since_option
from eventdriven_sync.cli.output import Progress
from eventdriven_sync.cli.render import Column
from eventdriven_sync.cli.session import FAILED, Session
from eventdriven_sync.cli.words import many, size, when
from eventdriven_sync.documents import document

if TYPE_CHECKING:
    from eventdriven_sync.audit import HandlerAudit
    from eventdriven_sync.doctor import Check

AUDIT_COLUMNS: tuple[Column[HandlerAudit], ...] = (
    Column(title="handler", text=lambda h: h.name),
    Column(title="", text=lambda h: "ok" if h.ok else "failed", state=True),
    Column(title="accepted", text=lambda h: f"{h.accepted:,}", right=True),
    Column(title="open", text=lambda h: f"{h.pending + h.running + h.retrying:,}", right=True),
    Column(title="succeeded", text=lambda h: f"{h.succeeded:,}", right=True),
    Column(title="dead", text=lambda h: f"{h.dead:,}", right=True),
    Column(title="discarded", text=lambda h: f"{h.discarded:,}", right=True, extra=True),
    Column(title="in consumer", text=lambda h: f"{h.in_consumer:,}", right=True, extra=True),
    Column(title="missing", text=lambda h: f"{h.missing:,}", right=True),
)

CHECK_COLUMNS: tuple[Column[Check], ...] = (
    Column(title="check", text=lambda c: c.name),
    Column(title="", text=lambda c: c.level, state=True),
    Column(title="finding", text=lambda c: c.finding, flexible=True),
    Column(title="cure", text=lambda c: c.cure, flexible=True),
)

STREAM_COLUMNS: tuple[Column[StreamState], ...] = (
    Column(title="stream", text=lambda s: s.name),
    Column(title="messages", text=lambda s: f"{s.messages:,}", right=True),
    Column(title="size", text=lambda s: size(s.size_bytes), right=True),
    Column(title="sequences", text=lambda s: f"{s.first_sequence:,}–{s.last_sequence:,}"),
    Column(title="subjects", text=lambda s: ", ".join(s.subjects), flexible=True, extra=True),
)

CONSUMER_COLUMNS: tuple[Column[ConsumerState], ...] = (
    Column(title="consumer", text=lambda c: c.name),
    Column(title="stream", text=lambda c: c.stream, flexible=True),
    Column(title="pending", text=lambda c: f"{c.pending:,}", right=True),
    Column(title="ack pending", text=lambda c: f"{c.ack_pending:,}", right=True),
    Column(title="redelivered", text=lambda c: f"{c.redelivered:,}", right=True),
    Column(title="waiting pulls", text=lambda c: f"{c.waiting:,}", right=True),
    Column(title="oldest", text=lambda c: when(c.oldest_at), extra=True),
)


@click.command(cls=Command)
@since_option
@click.pass_obj
def audit(session: Session, *, since: datetime | None) -> None:
    """Check that no accepted event was lost: exit 0 if every one is accounted for, 1 if not.

    For every handler, events accepted for it = deliveries in all states + those still in its consumer.
    """
    from eventdriven_sync.audit import audit as run
    from eventdriven_sync.doctor.durability import describe

    bus = session.bus()
    with Progress(session.out, "events compared") as count:
        result = run(bus, since=since, progress=count.tell)
    durability = describe(bus)
    session.out.rows(
        result.handlers,
        AUDIT_COLUMNS,
        as_document=lambda handler: document(handler) | {"ok": handler.ok, "durability": durability},
        empty="No handler is registered: there is nothing to compare.",
    )
    session.out.note(f"Durability: {durability}")
    if result.unrecorded:
        session.out.note(f"Not recorded yet, and not in these counts: {many(result.unrecorded, 'message')}.")
    if result.ok:
        session.out.line("Every accepted event is accounted for.")
        return
    for handler in result.handlers:
        if not handler.ok:
            session.out.warning(
                f"{handler.name}: {many(handler.lost, 'event')} lost, {', '.join(handler.lost_examples)}"
            )
    session.out.line(
        "Events are missing. A running worker's reconciler brings what can be brought; audit again."
    )
    click.get_current_context().exit(FAILED)


@click.command(cls=Command)
@click.option(
    "--monitoring-url", metavar="URL", help="NATS's monitoring port, such as http://localhost:8222."
)
@click.option(
    "--no-round-trip", is_flag=True, help="Do not publish and handle test events (Eventdriven.ping)."
)
@click.option(
    "--dashboard-url", metavar="URL", help="Of the dashboard, as people reach it: what strangers see there."
)
@click.pass_obj
def doctor(
    session: Session, *, monitoring_url: str | None, no_round_trip: bool, dashboard_url: str | None
) -> None:
    """Check servers, settings and the service; say what to do. Exit 1 if a check failed.

    It takes up to 20 seconds. Six test events are published, handled and removed again.
    """
    from eventdriven_sync.doctor import diagnose

    session.out.note("Checking; this takes up to 20 seconds …")
    bus = session.unopened_bus()
    checks = diagnose(
        bus, monitoring_url=monitoring_url, round_trip=not no_round_trip, dashboard_url=dashboard_url
    )
    session.out.rows(checks, CHECK_COLUMNS, empty="There was nothing to check.")
    failed = [check for check in checks if check.level == "fail"]
    warned = [check for check in checks if check.level == "warn"]
    for check in checks:
        if check.name == "durability":
            session.out.line(f"Durability: {check.finding}")
    session.out.line(f"{many(len(checks), 'check')}, {len(failed)} failed, {many(len(warned), 'warning')}.")
    if failed:
        click.get_current_context().exit(FAILED)


@click.command(cls=Command)
@limit_option
@click.pass_obj
def streams(session: Session, *, limit: int) -> None:
    """Show the streams of the namespace and their consumers, with what is pending."""
    bus = session.bus()
    prefix = f"{bus.settings.namespace}_"
    found = bus.broker.streams(prefix, timeout=bus.settings.broker_timeout)[:limit]
    session.out.rows(
        found,
        STREAM_COLUMNS,
        empty=f"No stream begins with {prefix!r}: the first event or handler of the namespace creates one.",
    )
    consumers = [consumer for stream in found for consumer in stream.consumers]
    if found and not session.out.json:
        session.out.line()
        session.out.rows(
            consumers, CONSUMER_COLUMNS, empty="They have no consumers: no handler is registered."
        )
