"""``eventdriven publish``: an event from the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, NoReturn

import attrs
import click

from eventdriven_sync.cli.options import Command
from eventdriven_sync.cli.session import FAILED, Session, person
from eventdriven_sync.cli.words import did_you_mean, listed
from eventdriven_sync.documents import chain_document
from eventdriven_sync.errors import InvalidEventType, OperationTimeout, PayloadInvalid, shorten

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus, Receipt
    from eventdriven_sync.events import EventType

FLUSH = 2.0
LONGEST_WAIT = 86400.0


@click.command(cls=Command)
@click.argument("name")
@click.argument("payload", metavar="JSON", required=False)
@click.option(
    "--file", type=click.File("r", encoding="utf-8"), help="Read the JSON from a file, - for stdin."
)
@click.option("--id", "event_id", metavar="ID", help="A given id: publishing it twice is one event.")
@click.option("--idempotency-key", metavar="TEXT", help="Equal keys of one event name give one event.")
@click.option(
    "--wait",
    type=click.FloatRange(0, LONGEST_WAIT),
    metavar="SECONDS",
    help="Wait so long until everything it sets off is settled, and show that; exit 1 if not all succeeded.",
)
@click.pass_obj
def publish(
    session: Session,
    *,
    name: str,
    payload: str | None,
    file: IO[str] | None,
    event_id: str | None,
    idempotency_key: str | None,
    wait: float | None,
) -> None:
    """Publish an event of the application (needs --app).

    NAME is the event's name, JSON its payload:

        eventdriven --app blog:bus publish User.nameUpdated '{"user_id": "42"}'

    With --json the first line is the receipt; with --wait the second is the chain.
    """
    bus = session.app_bus()
    kind = _event_type(bus, name)
    event = _event(bus, kind, _payload(payload, file))
    with bus.operation(f"publish {name}"[:200], kind="cli", user=person()):
        receipt = bus.publish(event, event_id=event_id, idempotency_key=idempotency_key)
    operation_id = _operation_of(bus, receipt)
    session.out.document(
        {"name": name, "id": receipt.id, "operation_id": operation_id, "duplicate": receipt.duplicate}
    )
    accepted = "was accepted before" if receipt.duplicate else "accepted"
    session.out.line(f"{name} {accepted}: {receipt.id}, operation {operation_id}")
    if not bus.flush(FLUSH):
        session.out.note(
            "NATS has not taken it yet; it is stored, and a worker will bring it to its handlers."
        )
    if wait is None:
        session.out.note(f"`eventdriven chain {operation_id}` shows what it sets off.")
        return
    _wait(session, bus, operation_id, wait)


def _wait(session: Session, bus: EventBus, operation_id: str, seconds: float) -> None:
    late: OperationTimeout | None = None
    try:
        chain = bus.operations.wait(operation_id, timeout=seconds)
    except OperationTimeout as error:
        late, chain = error, error.chain
    session.out.document(chain_document(chain))
    session.out.chain(chain)
    if late:
        raise late
    if not chain.succeeded:
        click.get_current_context().exit(FAILED)


def _operation_of(bus: EventBus, receipt: Receipt) -> str:
    """Of an event that was there before: the operation that published it first."""
    if not receipt.duplicate:
        return receipt.operation_id
    stored = bus.store.events.get([receipt.id]).get(receipt.id)
    return stored.operation_id if stored else receipt.operation_id


def _event_type(bus: EventBus, name: str) -> EventType:
    from eventdriven_sync.events import declared

    known = {**declared, **bus.topology.event_types}
    if name not in known:
        raise InvalidEventType(
            f"no event {shorten(name)} in this application{did_you_mean(name, known)}; "
            f"it has {listed(known)}",
            field="name",
        )
    return known[name]


def _payload(text: str | None, file: IO[str] | None) -> Any:
    if (text is None) == (file is None):
        raise click.UsageError("give the payload once: as JSON after the name, or with --file")
    try:
        text = file.read() if file else text or ""
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise click.UsageError(
            f"the payload is no JSON: {error.msg} at line {error.lineno}, column {error.colno}: "
            f"{shorten(text)}. In a shell put it into single quotes."
        ) from error
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"the payload cannot be read: {error}") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shorten(twice)} occurs twice in one object")
    return found


def _event(bus: EventBus, kind: EventType, data: Any) -> Any:
    if not isinstance(data, Mapping):
        raise click.UsageError(f'the payload is {shorten(data)}: give a JSON object, {{"field": value}}')
    fields = [field.alias for field in attrs.fields(kind.cls) if field.init]
    for key in data:
        # Reading ignores unknown fields, for events of newer publishers; here it would hide a slip.
        if key not in fields:
            raise PayloadInvalid(
                f"{kind.name} has no field {shorten(key)}{did_you_mean(key, fields)}; "
                f"it has {listed(fields)}",
                field=key,
            )
    return bus.codec.decode(kind, data)
