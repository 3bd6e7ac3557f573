"""Counting by minute and by hour, once, and asking for any span without counting again."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventdriven_sync.counting import (
    HOUR,
    HOURS_AT_ONCE,
    KEPT,
    MINUTE,
    Counting,
    floor,
    minute_counts,
    subject_counts,
)
from eventdriven_sync.envelope import Envelope, new_id
from eventdriven_sync.errors import QueryTooSlow
from eventdriven_sync.figures import DURATION_BUCKETS_MS
from eventdriven_sync.stores.memory import MemoryStore

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def counting(store: MemoryStore) -> Counting:
    return Counting(store)


def publish(store: MemoryStore, at: datetime, name: str = "A.b", version: int = 1) -> None:
    event = Envelope(id=new_id(), name=name, version=version, data={}, published_at=at, operation_id=new_id())
    store.events.append([event], timeout=1)


def handle(store: MemoryStore, minute: datetime, *, worker: str = "one", **counts: Any) -> None:
    durations = [0] * (len(DURATION_BUCKETS_MS) + 1)
    durations[3] = sum(counts.values())
    about = {"minute": minute, "event_name": "A.b", "handler": "G.h", "durations": durations}
    zeros = {"succeeded": 0, "failed": 0, "dead": 0, "discarded": 0}
    store.directory.write_stats([{"_id": f"{minute}{worker}"} | about | zeros | counts])


def rounds(counting: Counting) -> int:
    """Until nothing is left to count; how many minutes."""
    total = 0
    while step := counting.round():
        total += step
    return total


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, store: MemoryStore) -> list[tuple[datetime, datetime]]:
    """The spans whose events are counted from now on."""
    spans: list[tuple[datetime, datetime]] = []
    published = store.figures.published

    def noted(*, since: datetime, until: datetime) -> Any:
        spans.append((since, until))
        return published(since=since, until=until)

    monkeypatch.setattr(store.figures, "published", noted)
    return spans


# --- counting -----------------------------------------------------------------------------------------


def test_an_empty_store_has_nothing_to_count(counting: Counting, store: MemoryStore) -> None:
    assert counting.round() == 0
    assert store.figures.counted_until() is None


def test_minutes_that_are_over_are_counted_once(
    counting: Counting, store: MemoryStore, clock: Clock, asked: list[Any]
) -> None:
    publish(store, NOON)
    publish(store, NOON + timedelta(seconds=59))
    clock.time = NOON + timedelta(seconds=60 + 89)
    assert counting.round() == 0
    clock.time = NOON + timedelta(seconds=60 + 91)
    assert counting.round() == 1
    assert counting.round() == 0
    assert asked == [(NOON, NOON + MINUTE)]
    [count] = store.figures.saved_published(since=NOON, until=NOON + HOUR)
    assert (count.minute, count.count) == (NOON, 2)


def test_a_round_with_nothing_due_asks_the_clock_and_nothing_else(
    counting: Counting, store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, NOON)
    clock.time = NOON + timedelta(minutes=5)
    rounds(counting)
    monkeypatch.setattr(store, "figures", None)
    clock.time += timedelta(seconds=20)
    assert counting.round() == 0


def test_another_leader_goes_on_where_the_last_one_stopped(
    store: MemoryStore, clock: Clock, asked: list[Any]
) -> None:
    publish(store, NOON)
    clock.time = NOON + timedelta(minutes=5)
    assert rounds(Counting(store)) == 3
    clock.time = NOON + timedelta(minutes=10)
    assert rounds(Counting(store)) == 5
    assert asked == [(NOON, NOON + 3 * MINUTE), (NOON + 3 * MINUTE, NOON + 8 * MINUTE)]


def test_a_long_pause_is_caught_up_in_steps(
    counting: Counting, store: MemoryStore, clock: Clock, asked: list[Any]
) -> None:
    publish(store, NOON)
    clock.time = NOON + timedelta(hours=5)
    assert rounds(counting) == 298
    assert max(until - since for since, until in asked) == HOUR
    assert [hour.hour for hour in store.figures.hours(since=NOON, until=clock.time)] == [
        NOON + number * HOUR for number in range(4)
    ]


def test_what_is_too_old_for_figures_is_not_counted(
    counting: Counting, store: MemoryStore, clock: Clock
) -> None:
    publish(store, NOON - timedelta(days=90))
    counting.round()
    counted = store.figures.counted_until()
    assert counted is not None
    assert counted - HOUR == NOON - KEPT


def test_a_stretch_that_takes_too_long_is_counted_in_shorter_ones(
    counting: Counting, store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, NOON)
    clock.time = NOON + timedelta(minutes=32)
    published, spans = store.figures.published, []

    def slow(*, since: datetime, until: datetime) -> Any:
        spans.append((until - since) // MINUTE)
        if until - since > 10 * MINUTE:
            raise QueryTooSlow("too slow")
        return published(since=since, until=until)

    monkeypatch.setattr(store.figures, "published", slow)
    for _ in range(6):
        counting.round()
    assert spans == [30, 15, 3, 3, 3, 3]


def test_a_single_minute_that_takes_too_long_is_an_error(
    counting: Counting, store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(**span: Any) -> Any:
        raise QueryTooSlow("too slow")

    publish(store, NOON)
    clock.time = NOON + timedelta(minutes=32)
    monkeypatch.setattr(store.figures, "published", slow)
    assert [counting.round() for _ in range(3)] == [0, 0, 0]
    with pytest.raises(QueryTooSlow):
        counting.round()


def test_hours_are_added_up_a_few_at_a_time_when_their_statistics_are_complete(
    counting: Counting, store: MemoryStore, clock: Clock
) -> None:
    publish(store, NOON)
    clock.time = NOON + HOUR + timedelta(minutes=2, seconds=59)
    rounds(counting)
    assert store.figures.last_hour() is None
    handle(store, NOON, succeeded=1)
    clock.time = NOON + HOUR + timedelta(minutes=4)
    rounds(counting)
    assert store.figures.last_hour() == NOON
    [hour] = store.figures.hours(since=NOON, until=clock.time)
    assert hour.published == (1, *[0] * 59)
    assert [(each.minute, each.succeeded) for each in hour.attempts] == [(NOON, 1)]
    assert [(each.name, each.count) for each in hour.names] == [("A.b", 1)]
    assert [(each.handler, each.succeeded) for each in hour.subjects] == [("G.h", 1)]


def test_hours_that_wait_are_added_up_once_and_a_few_at_a_time(
    counting: Counting, store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, NOON)
    store.figures.save_published([], since=NOON, until=NOON + 10 * HOUR)
    saved: list[datetime] = []
    keep = store.figures.save_hour
    monkeypatch.setattr(store.figures, "save_hour", lambda hour: (saved.append(hour.hour), keep(hour)))
    clock.time = NOON + 10 * HOUR + timedelta(minutes=10)
    counting.round()
    assert saved == [NOON + number * HOUR for number in range(HOURS_AT_ONCE)]
    clock.time += MINUTE
    counting.round()
    assert saved == [NOON + number * HOUR for number in range(10)]


# --- asking -------------------------------------------------------------------------------------------


@pytest.fixture
def day(store: MemoryStore, clock: Clock, counting: Counting) -> datetime:
    """Five hours with an event, a success and a failure in each minute, counted but for the last ones."""
    minutes = 5 * 60
    for number in range(minutes):
        minute = NOON + number * MINUTE
        publish(store, minute, version=1 + number % 2)
        handle(store, minute, succeeded=1)
        handle(store, minute, worker="two", failed=1)
    clock.time = NOON + minutes * MINUTE
    rounds(counting)
    return clock.time


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (0, 300),
        (0, 60),
        (60, 120),
        (30, 45),
        (30, 150),
        (17, 299),
        (290, 300),
        (299, 300),
        (-30, 30),
        (280, 320),
    ],
)
def test_every_span_of_minutes_adds_up(store: MemoryStore, day: datetime, begin: int, end: int) -> None:
    since, until = NOON + begin * MINUTE, NOON + end * MINUTE
    counts = minute_counts(store, since=since, until=until)
    assert [each.minute for each in counts] == [since + n * MINUTE for n in range(end - begin)]
    expected = [int(NOON <= each.minute < day) for each in counts]
    assert [each.published for each in counts] == expected
    assert [each.succeeded for each in counts] == expected
    assert [each.failed for each in counts] == expected


@pytest.mark.parametrize(("begin", "end"), [(0, 300), (30, 150), (60, 120), (290, 300), (280, 320)])
def test_every_span_of_subjects_adds_up(store: MemoryStore, day: datetime, begin: int, end: int) -> None:
    names, handled = subject_counts(store, since=NOON + begin * MINUTE, until=NOON + end * MINUTE)
    minutes = min(end, 300) - begin
    assert [(each.name, each.version, each.count) for each in names] == [
        ("A.b", 1, minutes // 2),
        ("A.b", 2, minutes // 2),
    ]
    [count] = handled
    assert (count.event_name, count.handler) == ("A.b", "G.h")
    assert (count.succeeded, count.failed) == (minutes, minutes)
    assert count.durations[3] == 2 * minutes


def test_only_what_nobody_has_counted_is_counted_when_asked(
    store: MemoryStore, day: datetime, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    minute_counts(store, since=NOON, until=day)
    subject_counts(store, since=NOON, until=day)
    assert asked == [(day - 2 * MINUTE, day)] * 2
    asked.clear()
    monkeypatch.setattr(store.figures, "handled_by_minute", None)
    minute_counts(store, since=NOON, until=NOON + 4 * HOUR)
    assert asked == []


def test_before_anything_was_counted_everything_is_counted_when_asked(
    store: MemoryStore, clock: Clock, asked: list[Any]
) -> None:
    publish(store, NOON)
    [count] = minute_counts(store, since=NOON, until=NOON + MINUTE)
    assert count.published == 1
    assert asked == [(NOON, NOON + MINUTE)]


@pytest.mark.parametrize(
    ("step", "expected"),
    [(MINUTE, datetime(2026, 1, 31, 13, 47, tzinfo=UTC)), (HOUR, datetime(2026, 1, 31, 13, 0, tzinfo=UTC))],
)
def test_times_are_rounded_down(step: timedelta, expected: datetime) -> None:
    assert floor(datetime(2026, 1, 31, 13, 47, 59, 999000, tzinfo=UTC), step) == expected
