"""Rows per event name, and what durations are estimated from counters."""

from datetime import UTC, datetime
from typing import Any

import pytest

from eventdriven_sync.envelope import utcnow
from eventdriven_sync.figures import DURATION_BUCKETS_MS, HandledCount, PublishedCount
from eventdriven_sync.monitoring.subjects import estimate, subject_rows
from eventdriven_sync.records import HandlerRecord

MINUTE = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
BUCKETS = len(DURATION_BUCKETS_MS) + 1


def durations(**buckets: int) -> tuple[int, ...]:
    return tuple(buckets.get(f"b{number}", 0) for number in range(BUCKETS))


def published(name: str, count: int, version: int = 1) -> PublishedCount:
    return PublishedCount(minute=MINUTE, name=name, version=version, count=count)


def handled(name: str, handler: str, **counts: Any) -> HandledCount:
    rest = {"succeeded": 0, "failed": 0, "dead": 0, "discarded": 0, "durations": durations()}
    return HandledCount(event_name=name, handler=handler, **(rest | counts))


def handler(name: str, *events: str) -> HandlerRecord:
    now = utcnow()
    return HandlerRecord(name=name, events=events, starts_at=None, registered_at=now, seen_at=now)


def test_a_row_adds_up_minutes_versions_and_handlers() -> None:
    [row] = subject_rows(
        [published("A.b", 3), published("A.b", 4), published("A.b", 1, version=2)],
        [
            handled("A.b", "G.one", succeeded=5, dead=1, durations=durations(b3=4, b6=5)),
            handled("A.b", "G.two", succeeded=1, failed=2, durations=durations(b3=4)),
        ],
        [handler("G.two", "A.b"), handler("G.one", "A.b")],
    )
    assert (row.name, row.published, row.versions) == ("A.b", 8, (1, 2))
    assert row.handlers == ("G.one", "G.two")
    assert (row.succeeded, row.failed, row.dead) == (6, 2, 1)
    assert row.p50_ms == pytest.approx(5 + 5 * 6.5 / 8)


def test_what_was_only_published_handled_or_subscribed_has_a_row() -> None:
    rows = subject_rows([published("C.c", 1)], [handled("B.b", "G.h", failed=1)], [handler("G.h", "A.a")])
    assert [(row.name, row.published, row.failed, row.handlers) for row in rows] == [
        ("A.a", 0, 0, ("G.h",)),
        ("B.b", 0, 1, ()),
        ("C.c", 1, 0, ()),
    ]
    assert rows[0].p50_ms is None
    assert rows[0].p95_ms is None


@pytest.mark.parametrize(
    ("counts", "part", "expected"),
    [
        (durations(), 0.5, None),
        (durations(b0=10), 0.5, 0.5),
        (durations(b0=10), 1.0, 1.0),
        (durations(b3=10), 0.5, 7.5),
        (durations(b0=95, b6=5), 0.95, 1.0),
        (durations(b0=90, b6=10), 0.95, 75.0),
        (durations(b0=1, b14=9), 0.95, 60_000),
        (durations(b14=1), 0.5, 60_000),
        (durations(b0=1), 0.0, 0.0),
    ],
)
def test_durations_are_estimated_from_buckets(
    counts: tuple[int, ...], part: float, expected: float | None
) -> None:
    found = estimate(counts, part)
    assert found == (None if expected is None else pytest.approx(expected))
