"""The chain of an operation over time: a row for each node, with its waiting and its attempts as bars.

Long times in which nothing ran (a retry in ten minutes) are cut out of the axis and marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import attrs

from eventdriven_sync.chain import Chain, ChainDelivery, ChainEvent
from eventdriven_sync.cli.words import clean, duration, first_line
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.outcome import Failure
from eventdriven_sync.records import Delivery

WIDTH = 1000.0
"""Units of the axis; bars have their ``x`` and ``width`` in it."""

ROWS = 500
GAP_WIDTH = 40.0
LONG_GAP = 0.25
SHORTEST_GAP_MS = 1000.0
NARROWEST = 3.0


@attrs.frozen(kw_only=True)
class Bar:
    """A stretch of time: ``kind`` is ``wait``, ``failed``, ``mark`` or a delivery's or operation's state."""

    kind: str
    x: float
    width: float
    title: str


@attrs.frozen(kw_only=True)
class Row:
    """A node with its bars. ``kind`` is ``operation``, ``event`` or ``delivery``."""

    id: str
    kind: str
    label: str
    state: str
    depth: int
    note: str
    bars: tuple[Bar, ...]


@attrs.frozen(kw_only=True)
class Tick:
    """A label of the axis; ``gap`` where time was cut out, ``width`` how wide that is drawn."""

    x: float
    text: str
    gap: bool = False
    width: float = 0.0


@attrs.frozen(kw_only=True)
class Waterfall:
    """Rows, axis and how many rows were left out."""

    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    left_out: int
    width: float = WIDTH


@attrs.frozen(kw_only=True)
class _Span:
    """A stretch of real time."""

    kind: str
    start: datetime
    end: datetime
    title: str


@attrs.define(kw_only=True)
class _Draft:
    """A row whose places are not known yet."""

    id: str
    kind: str
    label: str
    state: str
    depth: int
    note: str
    spans: list[_Span]


def waterfall(chain: Chain, *, now: datetime) -> Waterfall:
    """The rows in the order of the chain, at most ``ROWS`` of them."""
    drafts = _drafts(chain, now)
    shown = drafts[:ROWS]
    axis = _axis(shown)
    rows = tuple(
        Row(
            id=draft.id,
            kind=draft.kind,
            label=draft.label,
            state=draft.state,
            depth=min(draft.depth, 12),
            note=draft.note,
            bars=tuple(_bar(span, axis) for span in draft.spans),
        )
        for draft in shown
    )
    return Waterfall(rows=rows, ticks=axis.ticks(), left_out=len(drafts) - len(shown))


def _drafts(chain: Chain, now: datetime) -> list[_Draft]:
    operation = chain.operation
    end = operation.finished_at or now
    state = {"failed": "dead"}.get(operation.status, operation.status)
    drafts = [
        _Draft(
            id=operation.id,
            kind="operation",
            label=clean(operation.name),
            state=state,
            depth=0,
            note=duration(operation.duration_ms),
            spans=[
                _Span(kind=state, start=operation.started_at, end=end, title=f"operation {operation.status}")
            ],
        )
    ]
    waiting: list[tuple[ChainEvent | tuple[ChainDelivery, Envelope], int]] = [
        (event, 1) for event in reversed(chain.events)
    ]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, ChainEvent):
            drafts.append(_event_draft(item.event, depth))
            waiting += [((child, item.event), depth + 1) for child in reversed(item.deliveries)]
        else:
            child, event = item
            drafts.append(_delivery_draft(child.delivery, event, depth, now))
            waiting += [(below, depth + 1) for below in reversed(child.events)]
    return drafts


def _event_draft(event: Envelope, depth: int) -> _Draft:
    at = event.published_at
    return _Draft(
        id=event.id,
        kind="event",
        label=clean(event.name),
        state="",
        depth=depth,
        note="",
        spans=[_Span(kind="mark", start=at, end=at, title="published")],
    )


def _delivery_draft(delivery: Delivery, event: Envelope, depth: int, now: datetime) -> _Draft:
    spans = [_failed(failure, event.published_at) for failure in delivery.failures]
    last = _last_attempt(delivery, now)
    spans += [last] if last else []
    due = [_until_due(delivery, now)] if delivery.state in ("retrying", "pending") and delivery.due_at else []
    return _Draft(
        id=delivery.id,
        kind="delivery",
        label=clean(delivery.handler),
        state=delivery.state,
        depth=depth,
        note=duration(delivery.duration_ms),
        spans=[*_waits(event.published_at, spans, delivery, now), *spans, *due],
    )


def _failed(failure: Failure, earliest: datetime) -> _Span:
    start = failure.failed_at - timedelta(milliseconds=failure.duration_ms)
    text = first_line(f"{failure.error_type}: {failure.message}")
    title = f"attempt {failure.attempt} failed after {duration(failure.duration_ms)}: {text}"
    return _Span(kind="failed", start=max(start, earliest), end=max(failure.failed_at, earliest), title=title)


def _last_attempt(delivery: Delivery, now: datetime) -> _Span | None:
    """The attempt that is running, or that ended without being a recorded failure."""
    if delivery.started_at is None or delivery.state not in ("running", "succeeded", "discarded"):
        return None
    if delivery.state == "running":
        return _Span(
            kind="running", start=delivery.started_at, end=max(now, delivery.started_at), title="running"
        )
    ran = timedelta(milliseconds=delivery.duration_ms or 0)
    title = f"{delivery.state} after {duration(delivery.duration_ms)}"
    return _Span(kind=delivery.state, start=delivery.started_at, end=delivery.started_at + ran, title=title)


def _until_due(delivery: Delivery, now: datetime) -> _Span:
    due = delivery.due_at or now
    return _Span(kind="due", start=min(now, due), end=due, title="until the next attempt")


def _waits(begin: datetime, attempts: Sequence[_Span], delivery: Delivery, now: datetime) -> list[_Span]:
    """The times before and between attempts."""
    found = []
    for attempt in attempts:
        if attempt.start > begin:
            waited = duration((attempt.start - begin).total_seconds() * 1000)
            found.append(_Span(kind="wait", start=begin, end=attempt.start, title=f"waited {waited}"))
        begin = max(begin, attempt.end)
    if delivery.state in ("pending", "retrying") and now > begin:
        found.append(_Span(kind="wait", start=begin, end=now, title="waiting"))
    return found


# --- the axis ----------------------------------------------------------------------------------------


@attrs.frozen
class _Piece:
    """A stretch of the axis: milliseconds ``start`` to ``end`` are drawn from ``x`` on, ``width`` wide."""

    start: float
    end: float
    x: float
    width: float
    gap: bool


@attrs.frozen
class _Axis:
    zero: datetime
    pieces: tuple[_Piece, ...]

    def x(self, at: datetime) -> float:
        """Where a moment is drawn."""
        ms = _since(self.zero, at)
        piece = next((piece for piece in self.pieces if ms <= piece.end), self.pieces[-1])
        span = piece.end - piece.start
        share = (ms - piece.start) / span if span else 0.0
        return piece.x + piece.width * min(max(share, 0.0), 1.0)

    def ticks(self) -> tuple[Tick, ...]:
        """Begin and quarters of each stretch that is drawn to scale, and the length of each cut."""
        found = []
        for piece in self.pieces:
            span = piece.end - piece.start
            if piece.gap:
                middle = piece.x + piece.width / 2
                found.append(Tick(x=middle, text=duration(span), gap=True, width=piece.width))
                continue
            steps = 4 if piece.width > WIDTH / 2 else 2 if piece.width > WIDTH / 5 else 1
            found += [
                Tick(x=piece.x + piece.width * n / steps, text=_offset(piece.start + span * n / steps))
                for n in range(steps + (piece is self.pieces[-1]))
            ]
        return tuple(found)


def _axis(drafts: Sequence[_Draft]) -> _Axis:
    """A scale on which the times when something ran have their place, however long the pauses were."""
    zero = min(span.start for draft in drafts for span in draft.spans)
    busy = _merged(
        (_since(zero, span.start), _since(zero, span.end))
        for draft in drafts
        for span in draft.spans
        if span.kind not in ("wait", "due")
    )
    end = max(_since(zero, span.end) for draft in drafts for span in draft.spans)
    if busy[-1][1] < end:
        busy.append((end, end))
    return _Axis(zero, tuple(_pieces(busy)))


def _pieces(busy: Sequence[tuple[float, float]]) -> list[_Piece]:
    total = sum(end - start for start, end in busy)
    limit = max(total * LONG_GAP, SHORTEST_GAP_MS)
    stretches: list[tuple[float, float, bool]] = [(*busy[0], False)]
    for start, end in busy[1:]:
        before = stretches[-1]
        if start - before[1] > limit:
            stretches += [(before[1], start, True), (start, end, False)]
        else:
            stretches[-1] = (before[0], end, False)
    gaps = sum(gap for _, _, gap in stretches)
    gap_width = min(GAP_WIDTH, WIDTH / 2 / gaps) if gaps else 0.0
    scaled = sum(end - start for start, end, gap in stretches if not gap) or 1.0
    pieces, x = [], 0.0
    for start, end, gap in stretches:
        width = gap_width if gap else (WIDTH - gaps * gap_width) * (end - start) / scaled
        pieces.append(_Piece(start, end, x, width, gap))
        x += width
    return pieces


def _merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _bar(span: _Span, axis: _Axis) -> Bar:
    x = axis.x(span.start)
    width = max(axis.x(span.end) - x, NARROWEST)
    return Bar(kind=span.kind, x=round(min(x, WIDTH - width), 1), width=round(width, 1), title=span.title)


def _since(zero: datetime, at: datetime) -> float:
    return (at - zero).total_seconds() * 1000


def _offset(milliseconds: float) -> str:
    return f"+{duration(milliseconds)}" if milliseconds else "0"
