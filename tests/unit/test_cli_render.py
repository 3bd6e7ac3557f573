"""How values look in the terminal: times, durations, tables, the chain as a tree."""

import json
import logging
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from rich.console import Console

from eventdriven_sync.chain import Chain, ChainDelivery, ChainEvent
from eventdriven_sync.cli import words
from eventdriven_sync.cli.logs import JsonLines, Lines
from eventdriven_sync.cli.options import moment
from eventdriven_sync.cli.render import FOLD_FROM, Column, chain_tree, plain_chain, plain_table, rich_table
from eventdriven_sync.documents import chain_document
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.outcome import Failure
from eventdriven_sync.records import Delivery, Operation

NOW = datetime(2026, 6, 15, 12, 0, 0, tzinfo=UTC)


def envelope(number: int = 1, **changes: Any) -> Envelope:
    given: dict[str, Any] = {
        "id": f"{number:024x}",
        "name": "User.renamed",
        "version": 1,
        "data": {},
        "published_at": NOW,
        "operation_id": "f" * 24,
    }
    return Envelope(**given | changes)


def delivery(event: Envelope, **changes: Any) -> Delivery:
    given: dict[str, Any] = {
        "id": f"Blog.rename:{event.id}",
        "handler": "Blog.rename",
        "event_id": event.id,
        "event_name": event.name,
        "operation_id": event.operation_id,
        "state": "succeeded",
        "attempts": 1,
        "created_at": NOW,
        "duration_ms": 12.4,
    }
    return Delivery(**given | changes)


def failure(message: str = "Test Error!!") -> Failure:
    return Failure(error_type="ValueError", message=message, traceback="", failed_at=NOW, attempt=1)


OPERATION = Operation(
    id="f" * 24,
    name="rename",
    kind="http",
    status="succeeded",
    started_at=NOW,
    finished_at=NOW + timedelta(milliseconds=34),
)


def chain_of(*events: ChainEvent, **changes: Any) -> Chain:
    return Chain(operation=OPERATION, events=events, **changes)


def node(event: Envelope, *children: ChainEvent, **changes: Any) -> ChainEvent:
    child = ChainDelivery(delivery=delivery(event, **changes), events=children)
    return ChainEvent(event=event, deliveries=(child,))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "✓ Blog.rename  succeeded  1 attempt  12 ms"),
        ({"state": "pending", "attempts": 0, "duration_ms": None}, "… Blog.rename  pending"),
        ({"state": "running", "duration_ms": None}, "▶ Blog.rename  running  1 attempt"),
        (
            {"state": "dead", "reason": "rejected", "failures": (failure("no\nsuch"),), "attempts": 5},
            "✗ Blog.rename  dead (rejected)  5 attempts  12 ms  ValueError: no",
        ),
        ({"generation": 2}, "✓ Blog.rename  succeeded  1 attempt, retried 2 times  12 ms"),
        ({"state": "discarded", "reason": "old"}, "– Blog.rename  discarded (old)  1 attempt  12 ms"),
        ({"failures": (failure(),)}, "✓ Blog.rename  succeeded  1 attempt  12 ms"),
    ],
)
def test_a_handler_in_the_chain_says_how_far_it_is(changes: dict[str, Any], line: str) -> None:
    assert plain_chain(chain_of(node(envelope(), **changes))).splitlines()[2] == f"   └─ {line}"


def test_a_retry_in_the_chain_says_when_it_is_due() -> None:
    due = datetime.now(UTC) + timedelta(seconds=90)
    text = plain_chain(chain_of(node(envelope(), state="retrying", due_at=due, failures=(failure(),))))
    assert (
        "↻ Blog.rename  retrying  1 attempt  12 ms  next attempt in 1 min  ValueError: Test Error!!" in text
    )


def test_the_plain_tree_draws_every_level() -> None:
    inner = node(envelope(2, name="Blog.changed"))
    other = ChainEvent(event=envelope(3, name="User.seen", version=2, key="42"), deliveries=())
    assert plain_chain(chain_of(node(envelope(1), inner), other)) == "\n".join(
        [
            f"rename  http  succeeded  34 ms  {'f' * 24}",
            f"├─ User.renamed  {1:024x}",
            "│  └─ ✓ Blog.rename  succeeded  1 attempt  12 ms",
            f"│     └─ Blog.changed  {2:024x}",
            "│        └─ ✓ Blog.rename  succeeded  1 attempt  12 ms",
            f"└─ User.seen  v2  key 42  {3:024x}",
        ]
    )


def test_the_rich_tree_says_the_same() -> None:
    chain = chain_of(node(envelope(1), node(envelope(2, name="[bold]name"))))
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(chain_tree(chain))
    shown = [line.lstrip("│├└─ ").rstrip() for line in console.export_text().splitlines()]
    assert shown == [line.lstrip("│├└─ ") for line in plain_chain(chain).splitlines()]


def test_many_siblings_are_folded_but_never_a_failed_one() -> None:
    many = [node(envelope(n)) for n in range(100)]
    many[70] = node(envelope(70), state="dead", reason="rejected", failures=(failure(),))
    text = plain_chain(chain_of(*many))
    assert text.count("User.renamed  0") == FOLD_FROM + 1
    assert "✗ Blog.rename  dead" in text
    assert f"└─ … and {100 - FOLD_FROM - 1} more User.renamed events without failures" in text


def test_an_empty_or_cut_chain_says_so() -> None:
    assert "└─ published no event" in plain_chain(chain_of())
    assert "more events than are shown" in plain_chain(chain_of(node(envelope()), truncated=True))


def test_a_chain_deeper_than_the_stack_can_be_shown() -> None:
    depth = sys.getrecursionlimit() + 10
    deepest = node(envelope(0))
    for number in range(1, depth):
        deepest = node(envelope(number), deepest)
    assert len(plain_chain(chain_of(deepest)).splitlines()) == 2 * depth + 1
    assert chain_tree(chain_of(deepest)).children
    assert chain_document(chain_of(deepest))["events"]


def test_what_a_failed_operation_says_is_in_the_first_line() -> None:
    failed = attrs.evolve(OPERATION, status="failed", error=failure("no\nconnection"))
    assert "failed  34 ms  ValueError: no " in plain_chain(Chain(operation=failed, events=()))


ROWS = [("Comment.update_author:" + "a" * 24, "x" * 80, "user")]
COLUMNS: tuple[Column[tuple[str, str, str]], ...] = (
    Column(title="id", text=lambda row: row[0]),
    Column(title="last error", text=lambda row: row[1], flexible=True),
    Column(title="by", text=lambda row: row[2], extra=True),
)


@pytest.mark.parametrize(("width", "titles"), [(60, ["id"]), (80, ["id", "last error", "by"])])
def test_a_table_drops_what_it_can_spare_before_it_breaks_an_id(width: int, titles: list[str]) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(rich_table(COLUMNS, ROWS, width=width))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    assert ("by" in shown.splitlines()[0]) == ("by" in titles)
    assert (ROWS[0][0] in shown) == (width == 80)
    assert shown.replace("\n", "").count("x") == 80


def test_a_plain_table_cuts_nothing() -> None:
    assert plain_table(COLUMNS, ROWS).splitlines()[1] == "  ".join(ROWS[0])


@pytest.mark.parametrize(
    ("before", "text"),
    [
        (timedelta(seconds=5), "5 s ago"),
        (timedelta(minutes=3), "3 min ago"),
        (timedelta(hours=23), "23 h ago"),
        (timedelta(seconds=-5), "in 5 s"),
    ],
)
def test_times_of_the_last_day_are_relative(before: timedelta, text: str) -> None:
    assert words.when(NOW - before, now=NOW) == text


def test_older_times_are_local_dates() -> None:
    assert (
        words.when(NOW - timedelta(days=2), now=NOW)
        == f"{(NOW - timedelta(days=2)).astimezone():%m-%d %H:%M}"
    )
    assert words.when(NOW - timedelta(days=400), now=NOW).startswith("2025-")
    assert words.when(None) == "-"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(None, ""), (0.4, "0 ms"), (999, "999 ms"), (1234, "1.2 s"), (185_000, "3 min 5 s")],
)
def test_durations_have_the_unit_that_fits(milliseconds: float | None, text: str) -> None:
    assert words.duration(milliseconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\x1b[2Jb", "a\\x1b[2Jb"), ("a\nb", "a\\nb"), ("\u202eabc", "\\u202eabc"), ("Ünïcode ✓", "Ünïcode ✓")],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert words.clean(text) == shown


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("30m", 1800), ("2h", 7200), ("7d", 604_800), (" 1w ", 604_800)]
)
def test_since_counts_back_from_now(text: str, seconds: float) -> None:
    assert abs((datetime.now(UTC) - moment(text)).total_seconds() - seconds) < 5


def test_since_takes_iso_times_and_reads_those_without_an_offset_as_local() -> None:
    assert moment("2026-06-15T12:00:00+00:00") == NOW
    assert moment("2026-06-15T12:00") == datetime(2026, 6, 15, 12).astimezone()


def record(message: str, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("eventdriven_sync.worker", logging.WARNING, "", 1, message, None, None)
    vars(made).update(extra)
    return made


def test_a_log_line_has_time_level_and_message() -> None:
    line = Lines().format(record("Failed 1 times, handler: A.b\x1b[2J", action="delivery_failed"))
    assert line[9:] == "WARNING Failed 1 times, handler: A.b\\x1b[2J"


def test_a_json_log_line_carries_the_facts() -> None:
    found = json.loads(JsonLines().format(record("Failed 1 times", action="delivery_failed", attempt=1)))
    assert (found["action"], found["attempt"], found["level"]) == ("delivery_failed", 1, "warning")
    assert set(found) == {"time", "level", "logger", "message", "action", "attempt"}
