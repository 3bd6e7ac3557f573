"""``eventdriven dead``: the dead-letter queue."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import attrs
import click

from eventdriven_sync.cli.options import (
    Group,
    after_option,
    agreed,
    dry_run_option,
    limit_option,
    since_option,
    until_option,
    yes_option,
)
from eventdriven_sync.cli.output import Progress
from eventdriven_sync.cli.render import Column, attempts, last_error
from eventdriven_sync.cli.session import Session, person
from eventdriven_sync.cli.words import (
    clean,
    clean_lines,
    command_line,
    duration,
    many,
    moment_in_full,
    when,
)
from eventdriven_sync.documents import delivery_summary, document
from eventdriven_sync.errors import InvalidOption, InvalidTransition
from eventdriven_sync.outcome import Failure
from eventdriven_sync.records import Delivery
from eventdriven_sync.store import DeliveryQuery, DeliveryStore

CHUNK = 200

DEAD_COLUMNS: tuple[Column[Delivery], ...] = (
    Column(title="died", text=lambda d: when(d.settled_at)),
    Column(title="id", text=lambda d: d.id),
    Column(title="event", text=lambda d: d.event_name, extra=True),
    Column(title="reason", text=lambda d: d.reason, extra=True),
    Column(title="last error", text=lambda d: last_error(d, limit=120), flexible=True),
)


def _filters(function: Callable[..., None]) -> Callable[..., None]:
    """Options that choose dead letters; the command gets them as one ``query``."""

    @click.option("--handler", metavar="GROUP.HANDLER", help="Of this handler.")
    @click.option("--group", help="Of every handler of this group.")
    @click.option("--event", metavar="EVENT", help="Of this event name.")
    @click.option("--error", metavar="CLASS", help="Whose last error is of this class, such as ValueError.")
    @click.option("--reason", help="Dead for this reason: attempts_exhausted, rejected, timeout, …")
    @click.option("--operation", metavar="ID", help="Of this operation's chain.")
    @since_option
    @until_option
    @functools.wraps(function)
    def with_query(
        session: Session,
        *,
        handler: str | None,
        group: str | None,
        event: str | None,
        error: str | None,
        reason: str | None,
        operation: str | None,
        since: datetime | None,
        until: datetime | None,
        **rest: Any,
    ) -> None:
        query = DeliveryQuery(
            states=("dead",),
            handler=handler,
            group=group,
            event_name=event,
            error=error,
            reason=reason,
            operation_id=operation,
            since=since,
            until=until,
        )
        function(session, query=query, **rest)

    return with_query


@click.group(cls=Group)
def dead() -> None:
    """Dead letters: deliveries that failed for good."""


@dead.command("list")
@click.pass_obj
@_filters
@after_option
@limit_option
def list_dead(session: Session, *, query: DeliveryQuery, after: str | None, limit: int) -> None:
    """List dead letters, newest first."""
    found = session.bus().store.deliveries.find(attrs.evolve(query, after=after, limit=limit))
    session.out.rows(
        found,
        DEAD_COLUMNS,
        as_document=delivery_summary,
        empty="No dead letter matches: nothing failed for good.",
    )
    session.out.more(found, limit, lambda delivery: delivery.id)


@dead.command("show")
@click.argument("delivery_id", metavar="ID")
@click.pass_obj
def show_dead(session: Session, *, delivery_id: str) -> None:
    """Show a delivery, dead or not: its event and every recorded attempt with its stack."""
    delivery = session.bus().dead_letters.get(delivery_id)
    out = session.out
    out.document(document(delivery))
    out.facts(_facts(delivery))
    for failure in delivery.failures:
        out.line()
        out.line(_attempt(failure))
        out.line(clean_lines(failure.traceback or failure.message).rstrip())
    if delivery.event:
        out.line()
        out.payload(document(delivery)["event"]["data"])
    if delivery.raw:
        out.line()
        out.payload(document(delivery)["raw"])
    if delivery.state == "dead":
        out.note("\nRetry it:   " + command_line("eventdriven", "dead", "retry", delivery.id))
        out.note(
            "Give it up: " + command_line("eventdriven", "dead", "discard", delivery.id, "--reason", "…")
        )


def _facts(delivery: Delivery) -> list[tuple[str, object]]:
    return [
        ("delivery", delivery.id),
        ("handler", delivery.handler),
        ("event", f"{delivery.event_name} {delivery.event_id}"),
        ("operation", delivery.operation_id),
        ("state", delivery.state),
        ("reason", delivery.reason),
        ("attempts", attempts(delivery)),
        ("created", moment_in_full(delivery.created_at)),
        ("settled", moment_in_full(delivery.settled_at) if delivery.settled_at else ""),
        ("next attempt", moment_in_full(delivery.due_at) if delivery.state == "retrying" else ""),
        ("worker", delivery.worker),
    ]


def _attempt(failure: Failure) -> str:
    generation = f", after retry {failure.generation}" if failure.generation else ""
    where = f" on {clean(failure.worker)}" if failure.worker else ""
    return (
        f"attempt {failure.attempt}{generation}: {moment_in_full(failure.failed_at)}, "
        f"{duration(failure.duration_ms)}{where}"
    )


@dead.command("retry")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that match the filters.")
@click.pass_obj
@_filters
@yes_option
@dry_run_option
def retry_dead(
    session: Session,
    *,
    ids: tuple[str, ...],
    everything: bool,
    query: DeliveryQuery,
    yes: bool,
    dry_run: bool,
) -> None:
    """Run dead letters again, with fresh attempts. Only the handler that failed sees the event.

    Give their ids, or --all with filters. --all asks first.
    """
    chosen = _choose(session, ids, query, everything=everything)
    if _go_on(session, chosen, "retried", question="Retry them?", yes=yes or not everything, dry_run=dry_run):
        store = session.bus().store.deliveries
        by = person()
        moved = _in_chunks(session, chosen, "retried", lambda part: store.retry_dead(part, by=by))
        _report(session, "retried", moved, chosen)


@dead.command("discard")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--reason", required=True, metavar="TEXT", help="Why; it stays on record.")
@yes_option
@dry_run_option
@click.pass_obj
def discard_dead(session: Session, *, ids: tuple[str, ...], reason: str, yes: bool, dry_run: bool) -> None:
    """Give up on dead (or retrying) deliveries for good; they stay on record as discarded."""
    if not reason.strip():
        raise InvalidOption("--reason is empty: it stays on record, say why", field="reason")
    chosen = _named(session, ids, verb="discarded", states=("dead", "retrying"))
    if _go_on(session, chosen, "discarded", question="Discard for good?", yes=yes, dry_run=dry_run):
        store = session.bus().store.deliveries
        by = person()
        moved = _in_chunks(
            session, chosen, "discarded", lambda part: store.discard(part, reason=reason[:2000], by=by)
        )
        _report(session, "discarded", moved, chosen)


def _choose(
    session: Session,
    ids: Sequence[str],
    query: DeliveryQuery,
    *,
    everything: bool,
) -> list[str]:
    """The ids of what is meant: those given, or all that match now. What dies later is not among them."""
    filtered = query != DeliveryQuery(states=("dead",))
    if ids and (everything or filtered):
        raise click.UsageError("give ids, or --all with filters, not both")
    if ids:
        return _named(session, ids, verb="retried", states=("dead",))
    if not everything:
        raise click.UsageError("give ids, or --all" + (" with these filters" if filtered else ""))
    return _matching(session.bus().store.deliveries, query)


def _named(session: Session, ids: Sequence[str], *, verb: str, states: Sequence[str]) -> list[str]:
    """The ids, after a look at each: one that cannot be moved stops the command before anything is done."""
    dead_letters = session.bus().dead_letters
    for delivery_id in ids:
        state = dead_letters.get(delivery_id).state
        if state not in states:
            allowed = " and ".join(repr(each) for each in states)
            raise InvalidTransition(
                f"delivery {delivery_id} is {state!r}; only {allowed} can be {verb}",
                id=delivery_id,
                state=state,
            )
    return list(dict.fromkeys(ids))


def _matching(store: DeliveryStore, query: DeliveryQuery) -> list[str]:
    found: list[str] = []
    while True:
        page = store.find(attrs.evolve(query, after=found[-1] if found else None, limit=CHUNK))
        found += [delivery.id for delivery in page]
        if len(page) < CHUNK:
            return list(dict.fromkeys(found))


def _go_on(
    session: Session, chosen: Sequence[str], verb: str, *, question: str, yes: bool, dry_run: bool
) -> bool:
    """Say what is meant and ask; False if there is nothing to do."""
    by_handler = Counter(delivery_id.partition(":")[0] for delivery_id in chosen)
    for handler, count in by_handler.most_common():
        session.out.note(f"{many(count, 'delivery', 'deliveries')} of {handler}")
    if not chosen or dry_run:
        would = f"{many(len(chosen), 'delivery', 'deliveries')} would be {verb}"
        session.out.line(would if chosen else f"No dead letter matches, nothing is {verb}.")
        session.out.document({"matched": len(chosen), verb: 0, "dry_run": dry_run})
        return False
    agreed(question, yes=yes)
    return True


def _in_chunks(
    session: Session, chosen: Sequence[str], verb: str, move: Callable[[DeliveryQuery], int]
) -> int:
    moved = 0
    with Progress(session.out, f"of {len(chosen):,} {verb}") as count:
        for start in range(0, len(chosen), CHUNK):
            moved += move(DeliveryQuery(ids=tuple(chosen[start : start + CHUNK])))
            count.tell(moved)
    return moved


def _report(session: Session, verb: str, moved: int, chosen: Sequence[str]) -> None:
    session.out.line(f"{many(moved, 'delivery', 'deliveries')} {verb}.")
    session.out.document({"matched": len(chosen), verb: moved, "dry_run": False})
    if moved < len(chosen):
        session.out.warning(f"{len(chosen) - moved} had been retried or discarded by somebody else meanwhile")
