"""Which records: one value per kind of question, shared by all readers and checked when it is made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from typing import Any

import attrs

from eventdriven_sync.config import check_text
from eventdriven_sync.errors import InvalidOption, shorten

MAX_TEXT = 1000
MAX_PATH_DEPTH = 5
MAX_PAYLOAD_FIELDS = 5

_STEP = re.compile(r"[^$.\x00][^.\x00]{0,99}")


def check_query(query: Any) -> None:
    """InvalidOption unless text is text: a dict from a web form would be an expression to MongoDB."""
    for field in attrs.fields(type(query)):
        name, kind, value = field.name, str(field.type), getattr(query, field.name)
        if value is None:
            continue
        if kind.startswith("datetime") and not (isinstance(value, datetime) and value.tzinfo):
            raise InvalidOption(f"{name} is {shorten(value)}: give an aware datetime", field=name)
        for part in value if kind.startswith("tuple") else [value] if kind.startswith("str") else ():
            if part != "":
                check_text(part, field=name, most=MAX_TEXT)


def check_payload(payload: Mapping[str, Any]) -> None:
    """InvalidOption unless these are fields of a payload, by dotted path, with scalars to be equal to."""
    if not isinstance(payload, Mapping) or len(payload) > MAX_PAYLOAD_FIELDS:
        raise InvalidOption(
            f"payload is {shorten(payload)}: give up to {MAX_PAYLOAD_FIELDS} fields, such as "
            '{"user.id": "42"}',
            field="payload",
            limit=MAX_PAYLOAD_FIELDS,
        )
    for path, value in payload.items():
        steps = path.split(".") if isinstance(path, str) else []
        if not 0 < len(steps) <= MAX_PATH_DEPTH or not all(_STEP.fullmatch(step) for step in steps):
            raise InvalidOption(
                f"payload field {shorten(path)} cannot be asked for: give names joined by dots, at most "
                f"{MAX_PATH_DEPTH} of 1 to 100 characters, none of them beginning with $",
                field="payload",
                limit=MAX_PATH_DEPTH,
            )
        _check_scalar(path, value)


def _check_scalar(path: str, value: Any) -> None:
    if isinstance(value, str):
        check_text(value or "-", field=f"payload field {path}", most=MAX_TEXT)
        return
    whole = isinstance(value, int) and (isinstance(value, bool) or -(2**63) <= value < 2**63)
    if not whole and not (isinstance(value, float) and isfinite(value)):
        raise InvalidOption(
            f"payload field {path} is {shorten(value)}: give text, a number of 64 bits, true or false",
            field="payload",
        )


@attrs.frozen(kw_only=True)
class EventQuery:
    """Which events; empty fields match everything. Newest first; ``after``: last id of the page before.

    Attributes:
        payload: fields of the payload by dotted path, with the scalars they must be equal to, or contain if
            they are lists. No index serves them: only together with ``names`` and ``since``.
    """

    names: tuple[str, ...] = ()
    operation_id: str | None = None
    source: str | None = None
    key: str | None = None
    payload: Mapping[str, Any] = attrs.field(factory=dict)
    since: datetime | None = None
    until: datetime | None = None
    after: str | None = None
    oldest_first: bool = False
    limit: int = 100

    def __attrs_post_init__(self) -> None:
        check_query(self)
        check_payload(self.payload)
        if self.payload and not (self.names and self.since):
            raise InvalidOption(
                "a payload field is looked for event by event: give the event's name and since as well",
                field="payload",
            )


@attrs.frozen(kw_only=True)
class DeliveryQuery:
    """Which deliveries; empty fields match everything. Newest first by ``created_at``.

    Attributes:
        error: class name of the last error.
        fingerprint: of the last error, see ``fingerprint``.
        job: sent back by this group retry.
        died_before: dead since before then.
        brief: find them without the stacks of their failures.
    """

    ids: tuple[str, ...] = ()
    handler: str | None = None
    group: str | None = None
    states: tuple[str, ...] = ()
    error: str | None = None
    fingerprint: str | None = None
    reason: str | None = None
    event_id: str | None = None
    event_name: str | None = None
    operation_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    job: str | None = None
    died_before: datetime | None = None
    after: str | None = None
    limit: int = 100
    brief: bool = False

    def __attrs_post_init__(self) -> None:
        check_query(self)


@attrs.frozen(kw_only=True)
class OperationQuery:
    """Which operations; empty fields match everything. Newest first; ``after``: last id of the last page."""

    kind: str | None = None
    name: str | None = None
    user: str | None = None
    status: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    after: str | None = None
    limit: int = 100

    def __attrs_post_init__(self) -> None:
        check_query(self)
