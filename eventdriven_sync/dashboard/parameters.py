"""What comes with a request, as typed values: nothing of it reaches a query as it came."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import attrs
from flask import request
from werkzeug.exceptions import BadRequest

from eventdriven_sync.config import check_number, check_text
from eventdriven_sync.dashboard.access import Role, check_role
from eventdriven_sync.errors import InvalidOption, shorten
from eventdriven_sync.store import MAX_TEXT

T = TypeVar("T")
Parser = Callable[[str, str], Any]
"""Takes a parameter's name and text, and gives its value or raises InvalidOption."""


@attrs.frozen
class JsonParser:
    """A parser of a JSON value that is no text, in a body."""

    parse: Callable[[str, Any], Any]

    def __call__(self, name: str, given: Any) -> Any:
        """The value, or InvalidOption."""
        return self.parse(name, given)


MAX_PAGE = 200
MAX_REASON = 2000
MAX_SPAN = timedelta(days=3650)

_AGO = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_OFFSET = re.compile(r" (\d\d:?\d\d)$")


def arguments(**parsers: Parser) -> dict[str, Any]:
    """The query parameters by name, as far as they are given and not empty.

    Raises:
        BadRequest: one is unknown, or comes twice.
        InvalidOption: one has a wrong value.
    """
    given = request.args
    unknown = [name for name in given if name not in parsers]
    if unknown:
        raise BadRequest(f"{shorten(unknown[0])} is no parameter here: there are {', '.join(parsers)}.")
    twice = [name for name in given if len(given.getlist(name)) > 1]
    if twice:
        raise BadRequest(f"{twice[0]} is given more than once.")
    return {name: parse(name, given[name]) for name, parse in parsers.items() if given.get(name)}


def body(**parsers: Parser) -> dict[str, Any]:
    """The fields of the JSON object in the request's body, as far as they are given.

    Raises:
        BadRequest: it is no JSON object, or has other fields.
        InvalidOption: a field has a wrong value.
    """
    document = _json_object()
    unknown = [name for name in document if name not in parsers]
    if unknown:
        raise BadRequest(f"{shorten(unknown[0])} is no field here: there are {', '.join(parsers) or 'none'}.")
    return {name: _field(name, document[name], parse) for name, parse in parsers.items() if name in document}


def _field(name: str, value: Any, parse: Parser) -> Any:
    if not isinstance(parse, JsonParser) and not isinstance(value, str):
        raise BadRequest(f"{name} is {shorten(value)}: give text.")
    return parse(name, value)


def required(found: Mapping[str, Any], name: str) -> Any:
    """The field of a body, or BadRequest."""
    if name not in found:
        raise BadRequest(f"{name} is missing.")
    return found[name]


def text(name: str, given: str) -> str:
    """Text of at most 1,000 characters."""
    return check_text(given, field=name, most=MAX_TEXT)


def reason(name: str, given: str) -> str:
    """Why somebody does something: up to 2,000 characters that are not all blank."""
    if not given.strip():
        raise InvalidOption(f"{name} is empty: it stays on record, say why", field=name)
    return check_text(given, field=name, most=MAX_REASON)


def role(name: str, given: str) -> Role:
    """A role."""
    return check_role(given)


def choice(*options: str) -> Parser:
    """One of some words."""

    def parse(name: str, given: str) -> str:
        if given not in options:
            raise InvalidOption(f"{name} is {shorten(given)}: give {', '.join(options)}", field=name)
        return given

    return parse


def number(low: int, high: int) -> Parser:
    """A whole number in a range, in ASCII digits."""

    def parse(name: str, given: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", given) or not low <= int(given) <= high:
            raise InvalidOption(
                f"{name} is {shorten(given)}: give a whole number from {low:,} to {high:,}",
                field=name,
                limit=(low, high),
            )
        return int(given)

    return parse


def whole(low: int, high: int) -> JsonParser:
    """A whole number in a range, as JSON has it."""
    return JsonParser(lambda name, given: check_number(given, field=name, low=low, high=high, whole=True))


def _an_object(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InvalidOption(f"{name} is {shorten(given)}: give a JSON object", field=name)
    return given


an_object = JsonParser(_an_object)
page_size = number(1, MAX_PAGE)


def moment(name: str, given: str) -> datetime:
    """ISO 8601 with an offset, or ``30m``, ``2h``, ``7d`` before now."""
    ago = _AGO.fullmatch(given)
    try:
        if ago:
            span = timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
            return datetime.now(UTC) - min(span, MAX_SPAN)
        # A plus that was not escaped is a space.
        found = datetime.fromisoformat(_OFFSET.sub(r"+\1", given))
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise InvalidOption(
        f"{name} is {shorten(given)}: give a time with its offset, such as 2026-01-31T12:00:00Z, or 30m, 2h "
        "or 7d for so long ago",
        field=name,
    )


def payload_fields(name: str, given: str) -> dict[str, Any]:
    """A JSON object of payload fields with the scalars that they are to be equal to."""
    found = _loads(given, what=name)
    if not isinstance(found, dict):
        raise InvalidOption(f'{name} is {shorten(given)}: give a JSON object such as {{"user.id": "42"}}')
    return found


def _json_object() -> dict[str, Any]:
    found = _loads(request.get_data(cache=False), what="the body")
    if not isinstance(found, dict):
        raise BadRequest(f"The body is {shorten(found)}: give a JSON object.")
    return found


def _loads(given: str | bytes, *, what: str) -> Any:
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{what} is no JSON: {shorten(str(error))}") from error
