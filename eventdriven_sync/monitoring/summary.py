"""The chain summary of an event name: what its events set off, added up over many of them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

import attrs

from eventdriven_sync.figures import DeliveryLink, EventLink, Links

MAX_DEPTH = 20


@attrs.frozen(kw_only=True)
class SummaryHandler:
    """A handler at one place of the summary.

    Attributes:
        count: deliveries to it.
        failed: those of them that failed at least once, whatever became of them.
        open: those that are not settled.
        p50_ms, p95_ms: of the last attempts' durations; None if there was none.
        events: what it published in answer.
    """

    name: str
    count: int
    succeeded: int
    failed: int
    dead: int
    open: int
    p50_ms: float | None
    p95_ms: float | None
    events: tuple[SummaryEvent, ...]

    @property
    def failure_ratio(self) -> float:
        """The part of the deliveries that failed at least once."""
        return self.failed / self.count if self.count else 0.0


@attrs.frozen(kw_only=True)
class SummaryEvent:
    """Events of one name at one place of the summary."""

    name: str
    count: int
    handlers: tuple[SummaryHandler, ...]


@attrs.frozen(kw_only=True)
class ChainSummary:
    """What the events of one name set off.

    Attributes:
        total: events of this name in the time span.
        sampled: how many of them were looked at, the newest.
        root: those events; what they set off hangs below.
        truncated: True if they set off more than was read.
    """

    name: str
    since: datetime
    until: datetime
    total: int
    sampled: int
    root: SummaryEvent
    truncated: bool


def summarise(name: str, links: Links) -> SummaryEvent:
    """Add up what these events set off, place by place: the same handler after another event is another."""
    return _Sum(links).event(name, list(links.roots), 0)


class _Sum:
    def __init__(self, links: Links) -> None:
        self._answers: dict[tuple[str, str], list[EventLink]] = defaultdict(list)
        for event in links.events:
            for parent in event.parent_ids:
                self._answers[parent, event.source].append(event)
        self._deliveries: dict[str, list[DeliveryLink]] = defaultdict(list)
        for delivery in links.deliveries:
            self._deliveries[delivery.event_id].append(delivery)
        self._counted = {event.id for event in links.roots}

    def event(self, name: str, events: Sequence[EventLink], depth: int) -> SummaryEvent:
        by_handler: dict[str, list[DeliveryLink]] = defaultdict(list)
        for event in events:
            for delivery in self._deliveries[event.id]:
                by_handler[delivery.handler].append(delivery)
        return SummaryEvent(
            name=name,
            count=len(events),
            handlers=tuple(self._handler(*item, depth) for item in sorted(by_handler.items())),
        )

    def _handler(self, name: str, deliveries: Sequence[DeliveryLink], depth: int) -> SummaryHandler:
        states = [delivery.state for delivery in deliveries]
        took = [delivery.duration_ms for delivery in deliveries if delivery.duration_ms is not None]
        return SummaryHandler(
            name=name,
            count=len(deliveries),
            succeeded=states.count("succeeded"),
            failed=sum(delivery.failed > 0 for delivery in deliveries),
            dead=states.count("dead"),
            open=sum(state in ("pending", "running", "retrying") for state in states),
            p50_ms=statistics.median(took) if took else None,
            p95_ms=_percentile(took),
            events=self._below(name, deliveries, depth),
        )

    def _below(self, name: str, deliveries: Sequence[DeliveryLink], depth: int) -> tuple[SummaryEvent, ...]:
        """What a handler answered with. An event of several parents is counted at the first of them."""
        if depth >= MAX_DEPTH:
            return ()
        by_name: dict[str, list[EventLink]] = defaultdict(list)
        for delivery in deliveries:
            for event in self._answers[delivery.event_id, name]:
                if event.id not in self._counted:
                    self._counted.add(event.id)
                    by_name[event.name].append(event)
        return tuple(self.event(answer, events, depth + 1) for answer, events in sorted(by_name.items()))


def _percentile(took: Sequence[float]) -> float | None:
    if len(took) < 2:
        return took[0] if took else None
    return statistics.quantiles(took, n=20, method="inclusive")[-1]
