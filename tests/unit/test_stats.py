"""Counters per minute."""

from typing import Any

from eventdriven_sync.figures import DURATION_BUCKETS_MS
from eventdriven_sync.outcome import Dead, Discarded, Done, RetryAt
from eventdriven_sync.stats import Stats
from tests.unit.rig import Renamed, Rig, failure


class Seconds:
    now = 60.0 * 1000

    def __call__(self) -> float:
        return self.now


def settlement(outcome: Any, duration_ms: float = 3.0) -> Any:
    import attrs

    rig = Rig()
    attempt = rig.claimed(rig.handler(lambda e: None, name="keep"), Renamed(name="x"))
    return attrs.evolve(rig.executor.settlement(attempt, None), outcome=outcome, duration_ms=duration_ms)


def test_every_outcome_has_its_column() -> None:
    stats = Stats(source="w", clock=Seconds())
    for outcome in (
        Done(), RetryAt(after=1, failure=failure()), Dead(reason="rejected", failure=failure()),
        Discarded(reason="x"), Done(),
    ):  # fmt: skip
        stats.count(settlement(outcome))
    (row,) = stats.drain()
    assert [row[key] for key in ("succeeded", "failed", "dead", "discarded")] == [2, 1, 1, 1]
    assert sum(row["durations"]) == 5


def test_durations_fall_into_their_bucket() -> None:
    stats = Stats(source="w", clock=Seconds())
    for duration in (0.5, 1.0, 1.5, 60_000, 60_001):
        stats.count(settlement(Done(), duration))
    (row,) = stats.drain()
    assert row["durations"] == [2, 1] + [0] * (len(DURATION_BUCKETS_MS) - 3) + [1, 1]


def test_a_minute_is_written_with_absolute_values_until_it_is_over() -> None:
    clock = Seconds()
    stats = Stats(source="w", clock=clock)
    stats.count(settlement(Done()))
    assert [row["succeeded"] for row in stats.drain()] == [1]
    stats.count(settlement(Done()))
    assert [row["succeeded"] for row in stats.drain()] == [2]
    clock.now += 120
    assert [row["succeeded"] for row in stats.drain()] == [2]
    assert stats.drain() == []


def test_what_is_handed_out_is_a_copy() -> None:
    stats = Stats(source="w", clock=Seconds())
    stats.count(settlement(Done()))
    (row,) = stats.drain()
    row["durations"][0] = 99
    assert stats.drain()[0]["durations"][0] == 0
