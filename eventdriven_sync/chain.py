"""The chain of an operation: a tree built from its events and deliveries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import attrs

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.records import Delivery, HandlerRecord, Operation, delivery_id


@attrs.frozen(kw_only=True)
class ChainDelivery:
    """A delivery in a chain, with the events its handler published."""

    delivery: Delivery
    events: tuple[ChainEvent, ...]


@attrs.frozen(kw_only=True)
class ChainEvent:
    """An event in a chain, with its deliveries, one for each handler subscribed to it."""

    event: Envelope
    deliveries: tuple[ChainDelivery, ...]


@attrs.frozen(kw_only=True)
class Chain:
    """What an operation set off.

    Attributes:
        operation: the command itself.
        events: the events it published; theirs hang below their deliveries.
        truncated: True if the chain has more events than are shown.
    """

    operation: Operation
    events: tuple[ChainEvent, ...]
    truncated: bool = False

    def walk(self) -> Iterator[ChainEvent]:
        """Every event of the chain, each before what it set off."""
        waiting = list(reversed(self.events))
        while waiting:
            event = waiting.pop()
            yield event
            for delivery in reversed(event.deliveries):
                waiting.extend(reversed(delivery.events))

    @property
    def deliveries(self) -> list[Delivery]:
        """Every delivery of the chain."""
        return [child.delivery for event in self.walk() for child in event.deliveries]

    @property
    def open(self) -> int:
        """How many deliveries are not settled."""
        return sum(not delivery.final for delivery in self.deliveries)

    @property
    def settled(self) -> bool:
        """Whether every delivery is ``succeeded``, ``dead`` or ``discarded``."""
        return not self.open and self.operation.status != "running"

    @property
    def succeeded(self) -> bool:
        """Whether the command and every delivery ended well (``discarded`` counts as well)."""
        good = all(delivery.state in ("succeeded", "discarded") for delivery in self.deliveries)
        return good and self.operation.status == "succeeded"


def build_chain(
    operation: Operation,
    events: Sequence[Envelope],
    deliveries: Sequence[Delivery],
    handlers: Sequence[HandlerRecord],
    *,
    only: Mapping[str, str] | None = None,
    truncated: bool = False,
) -> Chain:
    """The tree. An event hangs below the delivery that published it, or below the operation.

    Args:
        only: events that one handler alone is to get, with that handler.
    """
    by_event: dict[str, dict[str, Delivery]] = defaultdict(dict)
    for delivery in deliveries:
        by_event[delivery.event_id][delivery.handler] = delivery
    for event in events:
        chosen = (only or {}).get(event.id)
        add_expected(event, by_event[event.id], [h for h in handlers if chosen in (None, h.name)])
    parents = _parents(events, by_event)
    nodes = _nodes(events, by_event, parents)
    known = {event.id: event for event in events}
    roots = tuple(nodes[key] for key in known if key not in parents)
    return Chain(operation=operation, events=roots, truncated=truncated)


def add_expected(event: Envelope, found: dict[str, Delivery], handlers: Sequence[HandlerRecord]) -> None:
    """Add to ``found`` (by handler) what has no record yet: a handler that is owed the event is pending."""
    for record in handlers:
        owed = event.name in record.events and (
            record.starts_at is None or event.published_at >= record.starts_at
        )
        if owed and record.name not in found:
            found[record.name] = Delivery(
                id=delivery_id(record.name, event.id),
                handler=record.name,
                event_id=event.id,
                event_name=event.name,
                operation_id=event.operation_id,
                state="pending",
                created_at=event.published_at,
            )


def _parents(
    events: Sequence[Envelope], by_event: Mapping[str, Mapping[str, Delivery]]
) -> dict[str, tuple[str, str]]:
    """For each event that a handler of this chain published: (parent event, handler)."""
    parents: dict[str, tuple[str, str]] = {}
    for event in events:
        for parent in event.parent_ids:
            if event.source in by_event.get(parent, {}):
                parents[event.id] = (parent, event.source)
                break
    return parents


def _nodes(
    events: Sequence[Envelope],
    by_event: Mapping[str, Mapping[str, Delivery]],
    parents: dict[str, tuple[str, str]],
) -> dict[str, ChainEvent]:
    """Every event as a node; children before their parents. An event in a circle becomes a root."""
    below: dict[tuple[str, str], list[Envelope]] = defaultdict(list)
    for event in sorted(events, key=lambda e: (e.published_at, e.id)):
        if event.id in parents:
            below[parents[event.id]].append(event)
    nodes: dict[str, ChainEvent] = {}
    for event in reversed(_downwards(events, by_event, parents, below)):
        nodes[event.id] = ChainEvent(
            event=event,
            deliveries=tuple(
                ChainDelivery(
                    delivery=delivery,
                    events=tuple(
                        nodes[child.id] for child in below[event.id, handler] if child.id in parents
                    ),
                )
                for handler, delivery in sorted(by_event[event.id].items())
            ),
        )
    return nodes


def _downwards(
    events: Sequence[Envelope],
    by_event: Mapping[str, Mapping[str, Delivery]],
    parents: dict[str, tuple[str, str]],
    below: Mapping[tuple[str, str], Sequence[Envelope]],
) -> list[Envelope]:
    """The events, each after its parent. What no root leads to loses its parent: it is one now."""
    order: list[Envelope] = []
    seen: set[str] = set()
    for start in [*(e for e in events if e.id not in parents), *events]:
        if start.id in seen:
            continue
        parents.pop(start.id, None)
        waiting = [start]
        while waiting:
            event = waiting.pop()
            seen.add(event.id)
            order.append(event)
            for handler in by_event[event.id]:
                waiting += [e for e in below[event.id, handler] if e.id not in seen]
    return order
