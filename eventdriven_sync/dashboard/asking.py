"""What the address of a page asks for, as typed values. Nothing of a request reaches a query unchecked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from flask import request

from eventdriven_sync.dashboard import parameters
from eventdriven_sync.dashboard.mount import url, visit
from eventdriven_sync.errors import InvalidOption, shorten

W = TypeVar("W", bound=str)

NOTICES = {
    "retried": "It runs again, with fresh attempts.",
    "discarded": "It is discarded; your reason is on record.",
    "undone": "It is back where it was.",
    "again": "The handler runs once more.",
    "published": "It is published again: this is its new chain.",
    "cancelled": "Nothing more is sent back.",
    "paused": "Workers begin nothing more of it; its events wait.",
    "resumed": "It runs again.",
    "approved": "They may sign in now.",
    "role": "The role is changed; they have to sign in anew.",
    "disabled": "They may sign in no more; their sessions have ended.",
}
MAX_ID = 300
MAX_IDS = 40
_INSIDE = re.compile(r"/[\w./:~%@,;=?&+!$'()*-]*")


def text(name: str) -> str | None:
    """A text, without blanks around it; None if it is missing or empty.

    Raises:
        InvalidOption: it is longer than 1,000 characters.
    """
    value = request.args.get(name, "").strip()
    return parameters.text(name, value) if value else None


def one_of(name: str, words: Sequence[W]) -> W | None:
    """One of these words; None if it is missing.

    Raises:
        InvalidOption: it is another one.
    """
    value = text(name)
    if value is not None:
        parameters.choice(*words)(name, value)
    return next((word for word in words if word == value), None)


def moment(name: str) -> datetime | None:
    """``30m``, ``2h``, ``7d`` before now, or an ISO 8601 time; one without an offset is UTC.

    Raises:
        InvalidOption: it is neither.
    """
    value = text(name)
    if value is None:
        return None
    return parameters.moment(name, f"{value}Z" if _has_no_offset(value) else value)


def ago(span: str) -> datetime:
    """So long before now: ``24h``."""
    return parameters.moment("span", span)


def _has_no_offset(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is None
    except ValueError:
        return False


def ids(name: str) -> frozenset[str]:
    """The ids that a page has open or closed; more than it can hold are forgotten."""
    return frozenset(value[:MAX_ID] for value in request.args.getlist(name)[:MAX_IDS] if value)


def payload(name: str) -> dict[str, str | int | float | bool] | None:
    """``user.id=42``: a field of a payload and its value; numbers, true and false as such, text in quotes.

    Raises:
        InvalidOption: it has no ``=``.
    """
    value = text(name)
    if value is None:
        return None
    path, sign, wanted = value.partition("=")
    if not sign or not path.strip():
        raise InvalidOption(
            f'{name} is {shorten(value)}: give a field and its value, such as user.id=42 or name="Ada"',
            field=name,
        )
    return {path.strip(): _scalar(wanted.strip())}


def _scalar(wanted: str) -> str | int | float | bool:
    if wanted in ("true", "false"):
        return wanted == "true"
    if len(wanted) > 1 and wanted[0] == wanted[-1] == '"':
        return wanted[1:-1]
    for kind in (int, float):
        try:
            return kind(wanted)
        except ValueError:
            continue
    return wanted


def kept(*names: str) -> dict[str, str]:
    """Those of the parameters that are given, as they were given: for links to the same list."""
    return {name: value for name in names if (value := text(name)) is not None}


def back() -> str:
    """Where a form was sent from, if that is a page of this dashboard; else the overview."""
    return inside(request.form.get("back", "")) or url("overview")


def inside(address: str) -> str:
    """The address if it is a page of this dashboard; empty if not."""
    ours = address.startswith(f"{request.script_root}{visit().mount.prefix}/")
    return address if ours and _INSIDE.fullmatch(address) and not address.startswith("//") else ""


def notice() -> str:
    """A word on what the person did just now; empty if nothing."""
    return NOTICES.get(request.args.get("notice", ""), "")


def noted(address: str, notice: str) -> str:
    """The address with a word on what was done."""
    return f"{address}{'&' if '?' in address else '?'}notice={notice}"
