"""What a check says, and how it says that it could not be made."""

from __future__ import annotations

from typing import Literal, NoReturn, TypeVar

import attrs

T = TypeVar("T")

Level = Literal["ok", "info", "warn", "fail"]


@attrs.frozen
class Check:
    """The result of one check.

    Attributes:
        level: ``fail`` can lose or stop events, ``warn`` should be looked at, ``info`` is good to know.
        finding: what was found.
        cure: what to do about it; empty if there is nothing to do.
    """

    name: str
    level: Level
    finding: str
    cure: str = ""


@attrs.frozen
class Unknown:
    """Stands for a fact that could not be learned.

    Attributes:
        skipped: True if that is reported elsewhere, or is as it should be.
    """

    reason: str
    skipped: bool = False


class CannotCheck(Exception):
    """The check needs a fact that is not known."""

    def __init__(self, unknown: Unknown) -> None:
        super().__init__(unknown.reason)
        self.unknown = unknown


def known(fact: T | Unknown) -> T:
    """The fact itself.

    Raises:
        CannotCheck: it is not known.
    """
    if isinstance(fact, Unknown):
        raise CannotCheck(fact)
    return fact


def skip(reason: str) -> NoReturn:
    """There is nothing to check here."""
    raise CannotCheck(Unknown(reason, skipped=True))


def ok(finding: str) -> Check:
    """All is well; the runner fills in the name, here and below."""
    return Check("", "ok", finding)


def info(finding: str, cure: str = "") -> Check:
    """Good to know."""
    return Check("", "info", finding, cure)


def warn(finding: str, cure: str) -> Check:
    """Should be looked at."""
    return Check("", "warn", finding, cure)


def fail(finding: str, cure: str) -> Check:
    """Can lose or stop events."""
    return Check("", "fail", finding, cure)


def version(text: object) -> tuple[int, ...]:
    """``"2.15.1-beta"`` as (2, 15, 1), to be compared.

    Raises:
        CannotCheck: it does not begin with a number.
    """
    numbers: list[int] = []
    for part in str(text).removeprefix("v").split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    if not numbers:
        raise CannotCheck(Unknown(f"version {text!r} cannot be read"))
    return tuple(numbers)
