"""The rates of the last minutes as a chart: bars for what was handled, a line for what was published."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import attrs

WIDTH = 1000.0
HEIGHT = 120.0
STACK = ("succeeded", "failed", "dead")
_NICE = (1, 2, 5)


class Minute(Protocol):
    """What the chart needs of a minute."""

    @property
    def minute(self) -> datetime:
        """When it begins."""

    @property
    def published(self) -> int:
        """Events."""

    @property
    def succeeded(self) -> int:
        """Attempts that ended well."""

    @property
    def failed(self) -> int:
        """Attempts that failed and are tried again."""

    @property
    def dead(self) -> int:
        """Attempts after which there is none any more."""


@attrs.frozen(kw_only=True)
class Bar:
    """A part of a minute's bar."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@attrs.frozen(kw_only=True)
class Column:
    """The place of a minute, and what is said about it."""

    minute: datetime
    title: str
    x: float
    width: float


@attrs.frozen(kw_only=True)
class Chart:
    """Bars, line and scale; ``top`` is the number at the upper edge."""

    bars: tuple[Bar, ...]
    columns: tuple[Column, ...]
    path: str
    top: int
    empty: bool
    width: float = WIDTH
    height: float = HEIGHT


def draw(minutes: Sequence[Minute]) -> Chart:
    """The chart of these minutes, oldest first."""
    highest = max((max(_handled(each), each.published) for each in minutes), default=0)
    top = nice(highest)
    step = WIDTH / max(len(minutes), 1)
    bars: list[Bar] = []
    for number, each in enumerate(minutes):
        bars += _bars(each, number * step, step, top)
    points = [
        f"{(number + 0.5) * step:.1f} {HEIGHT - HEIGHT * each.published / top:.1f}"
        for number, each in enumerate(minutes)
    ]
    columns = [
        Column(minute=each.minute, title=_title(each), x=round(number * step, 2), width=round(step, 2))
        for number, each in enumerate(minutes)
    ]
    path = "M" + "L".join(points) if points else ""
    return Chart(bars=tuple(bars), columns=tuple(columns), path=path, top=top, empty=not highest)


def nice(number: int) -> int:
    """The least of 5, 10, 20, 50, 100 … that is not below a number."""
    power = 1
    while True:
        for factor in _NICE:
            if max(number, 5) <= factor * power:
                return factor * power
        power *= 10


def _handled(minute: Minute) -> int:
    return minute.succeeded + minute.failed + minute.dead


def _bars(minute: Minute, x: float, step: float, top: int) -> list[Bar]:
    found = []
    y = HEIGHT
    for kind in STACK:
        height = HEIGHT * getattr(minute, kind) / top
        if height:
            # What happened once in a busy minute is still seen.
            height = max(height, 1.5)
            y -= height
            found.append(
                Bar(
                    kind=kind,
                    x=round(x + step * 0.14, 2),
                    y=round(y, 2),
                    width=round(step * 0.72, 2),
                    height=round(height, 2),
                )
            )
    return found


def _title(minute: Minute) -> str:
    return (
        f"{minute.published:,} published, {minute.succeeded:,} succeeded, "
        f"{minute.failed:,} failed, {minute.dead:,} dead"
    )
