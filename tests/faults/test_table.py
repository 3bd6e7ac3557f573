"""The results table: which lines are in it, in which order, and that the page is made of them."""

from typing import Any

from tests.faults.table import KEPT, PAGE, TEMPLATE, latest, page, read, table


def line(row: str, **fields: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "row": row,
        "fault": "none",
        "seed": 1,
        "events": 1000,
        "lost": 0,
        "dup_effects": 0,
        "dup_starts": 2,
        "bounds": {"dup_starts": [2, 16], "drain": [3.5, 60]},
        "note": "",
        "ok": True,
        "date": "2026-11-26",
        "versions": {"mongod": "6.0.5"},
    }
    return known | fields


def test_the_page_is_made_of_the_kept_lines() -> None:
    lines = read(KEPT)
    assert lines == latest(lines)
    assert PAGE.read_text(encoding="utf-8") == page(lines, TEMPLATE.read_text(encoding="utf-8"))


def test_no_kept_line_says_that_something_was_lost_or_done_twice() -> None:
    lines = read(KEPT)
    assert {(each["lost"], each.get("dup_effects", 0)) for each in lines if "lost" in each} == {(0, 0)}


def test_rows_are_in_the_order_of_their_numbers_and_those_without_one_come_last() -> None:
    found = latest([line("wipe"), line("F10"), line("F2"), line("soak"), line("F1")])
    assert [each["row"] for each in found] == ["F1", "F2", "F10", "soak", "wipe"]


def test_a_row_that_was_run_again_takes_the_place_of_its_old_line() -> None:
    found = latest([line("F2", seed=1), line("F2", seed=2), line("F2", fault="another", seed=3)])
    assert [each["seed"] for each in found] == [3, 2]


def test_the_mix_keeps_the_line_of_every_seed() -> None:
    assert len(latest([line("F8", seed=seed) for seed in range(5)])) == 5


def test_a_line_of_the_table_names_every_figure_and_its_bound() -> None:
    assert (
        table([line("F2", seed=7)]).splitlines()[-1]
        == "| F2 | none | 1,000 | 0 | 0 | 2 ≤ 16 | drain 3.5 ≤ 60 | 7 |"
    )


def test_a_bound_that_was_not_kept_is_said_so() -> None:
    assert "**not kept**: drain 3.5" in table([line("F2", ok=False)])


def test_what_a_row_noted_and_what_it_ran_with_is_on_the_page() -> None:
    text = page([line("F2", note="nothing refused")], "{run} {table} {notes}")
    assert "1 rows, 2026-11-26: mongod 6.0.5." in text
    assert "- **F2**, none: nothing refused." in text
