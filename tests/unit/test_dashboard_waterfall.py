"""The chain over time: bars where something ran, and no room for long pauses."""

from datetime import timedelta

import attrs
import pytest

from eventdriven_sync.dashboard.waterfall import NARROWEST, ROWS, WIDTH, Waterfall, waterfall
from tests.unit.chains import NOW, OPERATION, chain_of, event, failure, fan_out, handled, later, rename


def drawn(found: Waterfall, label: str) -> list[tuple[str, str]]:
    (row,) = [row for row in found.rows if row.label == label]
    return [(bar.kind, bar.title) for bar in row.bars]


def test_rows_follow_the_chain_and_show_waiting_and_running() -> None:
    found = waterfall(rename(), now=later(1000))
    assert [(row.kind, row.label, row.depth) for row in found.rows] == [
        ("operation", "rename", 0),
        ("event", "User.renamed", 1),
        ("delivery", "Blog.rename", 2),
        ("event", "Blog.userUpdated", 3),
        ("delivery", "User.saw", 4),
        ("delivery", "Comment.rename", 2),
    ]
    assert drawn(found, "Blog.rename") == [("wait", "waited 5 ms"), ("succeeded", "succeeded after 12 ms")]


def test_every_failed_attempt_has_its_bar_with_its_error() -> None:
    bars = drawn(waterfall(rename(), now=later(1000)), "Comment.rename")
    assert [kind for kind, _ in bars] == ["wait", "wait", "wait", "failed", "failed", "failed"]
    assert bars[-1][1] == "attempt 3 failed after 5 ms: ValueError: Test Error!!"


def test_what_runs_reaches_until_now_and_what_waits_until_it_is_due() -> None:
    running = chain_of(event(1, handled(1, state="running", duration_ms=None)))
    found = waterfall(running, now=later(115))
    assert drawn(found, "Blog.rename")[-1] == ("running", "running")
    last = found.rows[-1].bars[-1]
    assert last.x + last.width == pytest.approx(WIDTH)
    retrying = chain_of(event(1, handled(1, state="retrying", failures=(failure(),), due_at=later(500))))
    assert drawn(waterfall(retrying, now=later(100)), "Blog.rename")[-1] == ("due", "until the next attempt")


def test_a_delivery_that_has_not_begun_waits() -> None:
    pending = chain_of(event(1, handled(1, state="pending", started_at=None, duration_ms=None)))
    assert drawn(waterfall(pending, now=later(100)), "Blog.rename") == [("wait", "waiting")]


def test_long_pauses_are_cut_out_of_the_axis() -> None:
    failures = (failure(at=20), failure(at=600_020, attempt=2))
    chain = chain_of(event(1, handled(1, state="dead", failures=failures, started_at=later(600_015))))
    found = waterfall(chain, now=later(700_000))
    (gap,) = [tick for tick in found.ticks if tick.gap]
    assert gap.text == "9 min 59 s"
    first, second = [bar for bar in found.rows[-1].bars if bar.kind == "failed"]
    assert 0 < first.x < second.x < WIDTH
    assert first.width > 50


def test_every_bar_lies_on_the_axis_and_can_be_seen() -> None:
    for chain in (rename(), fan_out(30, dead=2), chain_of()):
        for row in waterfall(chain, now=later(5000)).rows:
            for bar in row.bars:
                assert bar.width >= NARROWEST
                assert bar.x >= 0
                assert bar.x + bar.width <= WIDTH + 0.11


def test_clocks_that_disagree_do_not_turn_a_bar_around() -> None:
    early = NOW - timedelta(seconds=5)
    operation = attrs.evolve(OPERATION, finished_at=early)
    chain = chain_of(
        event(1, handled(1, started_at=early, failures=(failure(at=-9000),))), operation=operation
    )
    found = waterfall(chain, now=early)
    assert all(bar.width > 0 for row in found.rows for bar in row.bars)


def test_an_operation_that_took_no_time_has_an_axis() -> None:
    found = waterfall(chain_of(operation=attrs.evolve(OPERATION, finished_at=NOW)), now=NOW)
    assert [tick.text for tick in found.ticks][:1] == ["0"]


def test_of_many_rows_the_first_are_shown_and_the_rest_counted() -> None:
    found = waterfall(fan_out(1000), now=later(1000))
    assert (len(found.rows), found.left_out) == (ROWS, 3001 - ROWS)
