"""Where the nodes of a graph stand: layers from left to right, each parent in the middle of its children."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import attrs

from eventdriven_sync.dashboard.graph import Node

WIDTH = 196
HEIGHT = 46
COLUMN = 272
ROW = 62
MARGIN = 16
TITLE_UNITS = 21.5
NOTE_UNITS = 31.0

_NARROW = frozenset("ijltfrI.,:;|'`!()[]{}- ")
_WIDE = frozenset("mwMW@%&—…")


@attrs.frozen(kw_only=True)
class Box:
    """A node with its place: left upper corner, in the units of the drawing.

    Attributes:
        title, note: its two lines, cut to the width of the box.
        parent_id: the node before it, empty for the operation.
    """

    node: Node
    x: float
    y: float
    title: str
    note: str
    parent_id: str = ""


@attrs.frozen(kw_only=True)
class Line:
    """The curve from a parent to its child, and where its time stands."""

    node: Node
    path: str
    x: float
    y: float


@attrs.frozen(kw_only=True)
class Scene:
    """A drawing: boxes and lines inside ``width`` × ``height``."""

    boxes: Sequence[Box]
    lines: Sequence[Line]
    width: float
    height: float
    box_width: int = WIDTH
    box_height: int = HEIGHT


def lay_out(root: Node) -> Scene:
    """Give every node its place; linear in their number."""
    depth, middle = _depths(root), _middles(root)
    boxes: list[Box] = []
    lines: list[Line] = []
    parent_of = {child.id: node for node in root.walk() for child in node.children}
    for node in root.walk():
        parent = parent_of.get(node.id)
        x, y = MARGIN + depth[node.id] * COLUMN, MARGIN + middle[node.id]
        boxes.append(_box(node, x, y, parent))
        if parent is not None:
            lines.append(_line(node, x, y, MARGIN + middle[parent.id]))
    return Scene(
        boxes=boxes,
        lines=lines,
        width=max(depth.values()) * COLUMN + WIDTH + 2 * MARGIN + 30,
        height=max(middle.values()) + HEIGHT + 2 * MARGIN,
    )


def cut(text: str, units: float) -> str:
    """The text, shortened in its middle to about ``units`` average letters: ends of names tell them apart."""
    if _length(text) <= units:
        return text
    head, tail = "", ""
    while text and _length(head) + _length(tail) + 1 < units:
        head, text = head + text[0], text[1:]
        if text and _length(head) > _length(tail) + 2:
            tail, text = text[-1] + tail, text[:-1]
    return f"{head.rstrip()}…{tail.lstrip()}"


def _length(text: str) -> float:
    return sum(_letter(each) for each in text)


def _letter(each: str) -> float:
    if unicodedata.east_asian_width(each) in "WF":
        return 1.9
    if unicodedata.combining(each):
        return 0.0
    return 0.55 if each in _NARROW else 1.5 if each in _WIDE else 1.2 if each.isupper() else 1.0


def _depths(root: Node) -> dict[str, int]:
    depth = {root.id: 0}
    for node in root.walk():
        for child in node.children:
            depth[child.id] = depth[node.id] + 1
    return depth


def _middles(root: Node) -> dict[str, float]:
    """Tops of the boxes: leaves one below the other, parents between their first and last child."""
    middle: dict[str, float] = {}
    leaves = 0
    every = list(root.walk())
    for node in every:
        if not node.children:
            middle[node.id] = leaves * ROW
            leaves += 1
    for node in reversed(every):
        if node.children:
            middle[node.id] = (middle[node.children[0].id] + middle[node.children[-1].id]) / 2
    return middle


def _box(node: Node, x: float, y: float, parent: Node | None) -> Box:
    title = f"{node.label} ×{node.count:,}" if node.count > 1 else node.label
    return Box(
        node=node,
        x=x,
        y=y,
        title=cut(title, TITLE_UNITS),
        note=cut(node.note, NOTE_UNITS),
        parent_id=parent.id if parent else "",
    )


def _line(node: Node, x: float, y: float, parent_y: float) -> Line:
    start, end = x - COLUMN + WIDTH, x
    first, last = parent_y + HEIGHT / 2, y + HEIGHT / 2
    bend = start + 26
    path = f"M{start:g} {first:g}C{bend:g} {first:g} {start:g} {last:g} {bend:g} {last:g}H{end:g}"
    return Line(node=node, path=path, x=end - 6, y=last - 5)
