"""Subjects: what was published under each event name, and how its handlers did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate

import attrs

from eventdriven_sync.figures import DURATION_BUCKETS_MS, HandledCount, PublishedCount
from eventdriven_sync.records import HandlerRecord


@attrs.frozen(kw_only=True)
class SubjectRow:
    """An event name in a time span.

    Attributes:
        published: how many events.
        handlers: who is subscribed to it, by name.
        succeeded, failed, dead: attempts of all its handlers; ``failed`` ones are tried again.
        p50_ms, p95_ms: of their durations, estimated from counters; None if nothing was handled.
        versions: of the payload, as published in the span.
    """

    name: str
    published: int
    handlers: tuple[str, ...]
    succeeded: int
    failed: int
    dead: int
    p50_ms: float | None
    p95_ms: float | None
    versions: tuple[int, ...]


def subject_rows(
    published: Iterable[PublishedCount],
    handled: Iterable[HandledCount],
    handlers: Sequence[HandlerRecord],
) -> list[SubjectRow]:
    """A row for each name that was published, handled or is subscribed to, by name."""
    counts: dict[str, list[PublishedCount]] = defaultdict(list)
    for each in published:
        counts[each.name].append(each)
    attempts: dict[str, list[HandledCount]] = defaultdict(list)
    for row in handled:
        attempts[row.event_name].append(row)
    subscribed: dict[str, list[str]] = defaultdict(list)
    for record in handlers:
        for name in record.events:
            subscribed[name].append(record.name)
    names = sorted({*counts, *attempts, *subscribed} - {""})
    return [_row(name, counts[name], attempts[name], subscribed[name]) for name in names]


def _row(
    name: str, counts: Sequence[PublishedCount], attempts: Sequence[HandledCount], handlers: Sequence[str]
) -> SubjectRow:
    durations = [sum(bucket) for bucket in zip(*(row.durations for row in attempts), strict=True)]
    return SubjectRow(
        name=name,
        published=sum(each.count for each in counts),
        handlers=tuple(sorted(handlers)),
        succeeded=sum(row.succeeded for row in attempts),
        failed=sum(row.failed for row in attempts),
        dead=sum(row.dead for row in attempts),
        p50_ms=estimate(durations, 0.5),
        p95_ms=estimate(durations, 0.95),
        versions=tuple(sorted({each.version for each in counts})),
    )


def estimate(durations: Sequence[int], part: float) -> float | None:
    """The duration in milliseconds that this part of the attempts stayed within; None without attempts.

    Args:
        durations: attempts per bucket of ``DURATION_BUCKETS_MS``; within one they count as evenly spread.
        part: from 0 to 1.
    """
    total = sum(durations)
    if not total:
        return None
    wanted = part * total
    bounds = (0, *DURATION_BUCKETS_MS)
    for number, reached in enumerate(accumulate(durations)):
        if reached >= wanted and durations[number] and number < len(DURATION_BUCKETS_MS):
            into = (wanted - (reached - durations[number])) / durations[number]
            return bounds[number] + into * (bounds[number + 1] - bounds[number])
    return float(DURATION_BUCKETS_MS[-1])
