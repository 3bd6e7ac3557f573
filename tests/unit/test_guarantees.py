"""The page of what is promised says what the code does: states, moves, crash points, settings."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import attrs
import pytest

from eventdriven_sync.config import Settings
from eventdriven_sync.outcome import MOVES, DeadReason
from tests.apps import crash_points

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "guarantees.md").read_text()
SVG = "{http://www.w3.org/2000/svg}"
ALLOWED = {(before or "none", after) for before, moves in MOVES.items() for after in moves}
NEAR = 4.0

Point = tuple[float, float]


def table(heading: str) -> Iterator[list[str]]:
    """The rows of the first table under a heading, cell by cell."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert rows, f"there is no table under {heading!r}"
    for row in rows[2:]:
        yield [cell.strip() for cell in row.strip("|").split("|")]


@pytest.fixture(scope="module")
def picture() -> ElementTree.Element:
    return ElementTree.parse(DOCS / "states.svg").getroot()


def test_the_picture_shows_each_allowed_move_once_and_no_other(picture: ElementTree.Element) -> None:
    drawn = [(path.get("data-from"), path.get("data-to")) for path in arrows(picture)]
    assert sorted(map(str, drawn)) == sorted(map(str, ALLOWED))


def test_each_arrow_begins_and_ends_at_the_boxes_it_is_named_after(picture: ElementTree.Element) -> None:
    boxes = {box.get("id"): box for box in picture.iter(f"{SVG}rect") if box.get("id")}
    for path in arrows(picture):
        begin, end = ends(path.get("d", ""))
        assert touches(boxes[path.get("data-from")], begin), path.attrib
        assert touches(boxes[path.get("data-to")], end), path.attrib


def test_each_state_has_its_name_in_its_box(picture: ElementTree.Element) -> None:
    texts = [
        (text.text, (float(text.get("x", "")), float(text.get("y", ""))))
        for text in picture.iter(f"{SVG}text")
    ]
    for state in {name for move in ALLOWED for name in move}:
        box = next(box for box in picture.iter(f"{SVG}rect") if box.get("id") == state)
        shown = "no record" if state == "none" else state
        assert any(text == shown and inside(box, point) for text, point in texts), state


def test_the_table_of_states_is_the_table_of_the_code() -> None:
    written = {}
    for before, after in table("States of a delivery"):
        outside = re.sub(r"\([^()]*\)", "", after)
        written[before.strip("`").replace("no record", "none")] = set(re.findall(r"`(\w+)`", outside))
    assert written == {before or "none": set(moves) for before, moves in MOVES.items()}


def test_every_reason_of_a_dead_letter_is_named() -> None:
    reasons = PAGE.partition("Dead reasons: ")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", reasons)) == set(DeadReason.__args__)


def test_every_point_at_which_tests_kill_a_process_has_its_row_and_no_row_is_untested() -> None:
    killed = {value for name, value in vars(crash_points).items() if name.isupper()}
    rows = [cells[0] for cells in table("When a process dies")]
    named = {point for point in killed for row in rows if row.endswith(point)}
    assert named == killed
    assert not [row for row in rows if not row.endswith(tuple(killed))]


def test_the_settings_are_those_of_the_code() -> None:
    defaults = {field.name: field.default for field in attrs.fields(Settings)}
    for name, default, *_ in table("Times and limits"):
        number, _, unit = default.partition(" ")
        factor = {"s": 1, "days": 86400, "": 1}[unit]
        assert defaults[name.strip("`")] == float(number) * factor, name


def arrows(picture: ElementTree.Element) -> list[ElementTree.Element]:
    return [path for path in picture.iter(f"{SVG}path") if path.get("data-from")]


def ends(drawn: str) -> tuple[Point, Point]:
    """Where a path begins and ends: of ``M x y C …`` and ``M x y H x``, in absolute numbers."""
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", drawn)]
    begin = (numbers[0], numbers[1])
    return begin, (numbers[-1], begin[1]) if "H" in drawn else (numbers[-2], numbers[-1])


def touches(box: ElementTree.Element, point: Point) -> bool:
    """Whether a point is at the border of a box."""
    return inside(box, point, margin=NEAR) and not inside(box, point, margin=-NEAR)


def inside(box: ElementTree.Element, point: Point, *, margin: float = 0.0) -> bool:
    x, y, width, height = (float(box.get(name, "")) for name in ("x", "y", "width", "height"))
    return x - margin <= point[0] <= x + width + margin and y - margin <= point[1] <= y + height + margin
