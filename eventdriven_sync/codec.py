"""Events to documents and bytes, and back: payloads through cattrs, envelopes as CloudEvents JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from eventdriven_sync.envelope import Envelope, from_wire, is_json, to_wire
from eventdriven_sync.errors import (
    CodecError,
    InvalidEnvelope,
    PayloadInvalid,
    PayloadNotSerializable,
    PayloadTooDeep,
    PayloadTooLarge,
    Undecodable,
    shorten,
)
from eventdriven_sync.events import EventType, event_type_of
from eventdriven_sync.payload import ANY, Fault, Shape, impossible
from eventdriven_sync.shapes import LOOSE, Shapes

orjson: Any
try:
    import orjson
except ImportError:  # the extra "fast" is not installed
    orjson = None

HEADER_ALLOWANCE = 1024
MAX_PROBLEMS = 100
MAX_PATH = 200
_SHOWN_PROBLEMS = 10
_SECRET = re.compile(r"passw|secret|token|api_?key|credential", re.IGNORECASE)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[][{}]")
_DIGITS_AS_0 = bytes.maketrans(b"123456789", b"000000000")
_LONG_INT = b"0" * 19
_CONTAINERS = (dict, list)


Problem = tuple[str, Exception]


class Codec:
    """Turns events into documents and envelopes into bytes, and back. Safe to share between threads.

    Args:
        max_payload_bytes: limit of one encoded event, headers included.
        max_depth: limit of nested objects and arrays in one payload (MongoDB itself fails at 180).
    """

    def __init__(self, *, max_payload_bytes: int = 256 * 1024, max_depth: int = 100) -> None:
        self._max_bytes = max_payload_bytes
        self._max_depth = max_depth
        self._shapes = Shapes()

    def encode(self, event: object) -> dict[str, Any]:
        """The event's payload as a JSON-safe document, checked field by field.

        Raises:
            PayloadInvalid: a field holds something else than it declares; ``problems`` lists each fault.
            PayloadNotSerializable: a value has no place in JSON or MongoDB.
            PayloadTooDeep: nested deeper than the limit.
            InvalidEventType: the class was not declared with ``@event``.
        """
        shape = self._shapes.ready.get(type(event)) or self._shape(event)
        try:
            document: dict[str, Any] = shape.encode(event)
        except Exception as error:
            raise self._refused(event, shape, error) from error
        if shape.endless:
            self._check_depth(document, f"{event_type_of(event).name} cannot be published")
        return document

    def decode(self, event_type: EventType, data: Mapping[str, Any]) -> Any:
        """The user's object of a document; unknown fields are ignored, missing ones take their default.

        Raises:
            PayloadInvalid: a field is missing or of another type; ``problems`` lists each fault.
            PayloadNotSerializable: the class declares a type that no payload can hold.
        """
        shape = self._shapes.ready.get(event_type.cls) or self._shape(event_type.cls)
        try:
            return shape.decode(data)
        except Exception as error:
            problems = self._problems(shape, data, error, writing=False)
            raise _refusal(PayloadInvalid, f"{event_type.name} cannot be read", problems) from error

    def check(self, event_type: EventType) -> None:
        """Whether every field's declared type can be carried; a worker asks before it takes events.

        Raises:
            PayloadNotSerializable: the class declares a type that no payload can hold.
        """
        self._shape(event_type.cls)

    def plain(
        self,
        variables: Mapping[str, Any],
        *,
        field: str = "variables",
        refusal: str = "operation cannot begin",
    ) -> dict[str, Any]:
        """What an operation was called with, JSON-safe: undeclared, so dates, UUIDs and enums become text.

        Args:
            field: what it is, and ``refusal`` what it cannot be used for, in messages.

        Raises:
            PayloadNotSerializable: a value has no place in JSON; ``problems`` has its path.
            PayloadTooLarge, PayloadTooDeep: they exceed the limit.
        """
        try:
            document: dict[str, Any] = LOOSE.encode(variables)
        except Exception as error:
            problems = self._problems(LOOSE, variables, error, writing=True, path=field)
            raise _refusal(PayloadNotSerializable, refusal, problems) from error
        self._check_depth(document, f"{refusal}: {field}")
        size = len(_dumps(document))
        if size > self._max_bytes:
            raise PayloadTooLarge(
                f"{refusal}: {field} has {size:,} bytes encoded, limit {self._max_bytes:,} "
                "(max_payload_bytes) - store the content elsewhere and name its place",
                size=size,
                limit=self._max_bytes,
            )
        return document

    def pack(self, envelope: Envelope, namespace: str) -> bytes:
        """The envelope as a CloudEvents JSON message.

        Raises:
            PayloadTooLarge: the message, with an allowance of 1 KiB for its headers, exceeds the limit.
            PayloadNotSerializable: the payload did not come from ``encode``.
        """
        try:
            body = _dumps(to_wire(envelope, namespace))
        except (TypeError, ValueError, RecursionError) as error:
            raise PayloadNotSerializable(
                f"{envelope.name} {envelope.id} cannot be sent: {error}; payloads come from Codec.encode",
                event=envelope.name,
            ) from error
        size = len(body) + HEADER_ALLOWANCE
        if size > self._max_bytes:
            raise PayloadTooLarge(
                f"{envelope.name}: {size:,} bytes encoded (headers included), limit {self._max_bytes:,} "
                "(max_payload_bytes) - store the content elsewhere and publish a reference to it",
                event=envelope.name,
                size=size,
                limit=self._max_bytes,
            )
        return body

    def unpack(
        self,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        subject: str | None = None,
        namespace: str | None = None,
    ) -> Envelope:
        """The envelope of a message, ours or one of another language's CloudEvents library.

        Args:
            data: the body of the message.
            headers: a ``Nats-Msg-Id`` must be the event's id, a ``Content-Type`` must be JSON.
            subject: must end in the event's name.
            namespace: what the subject begins with; without it any will do.

        Raises:
            Undecodable: the bytes are no JSON.
            InvalidEnvelope: the JSON is no event, or contradicts the message that carried it.
        """
        headers = headers or {}
        _check_content_type(headers)
        document = self._parse(data)
        return from_wire(
            document, message_id=headers.get("Nats-Msg-Id"), subject=subject, namespace=namespace
        )

    def _parse(self, data: bytes) -> Any:
        data = data.removeprefix(b"\xef\xbb\xbf")
        if not data:
            raise Undecodable("empty payload: a CloudEvents JSON object is needed")
        # One level more than a payload may have: the envelope around it.
        limit = self._max_depth + 1
        document = _quick_loads(data)
        if document is not None and not (_brackets(data) > limit and _depth(document) > limit):
            return document
        document = _careful_loads(data, limit)
        problems = self._problems(ANY, document, None, writing=False)
        if problems:
            raise _refusal(InvalidEnvelope, "message cannot be read", problems)
        return document

    def _shape(self, event: object) -> Shape:
        event_type = event_type_of(event)
        try:
            return self._shapes.of(event_type.cls)
        except Fault as error:
            what = f"{event_type.name} ({event_type.cls.__qualname__}) cannot be an event"
            raise _refusal(error.kind, what, [(error.path, error)]) from error

    def _refused(self, event: object, shape: Shape, error: Exception) -> CodecError:
        problems = self._problems(shape, event, error, writing=True)
        fault = problems[0][1]
        kind = fault.kind if isinstance(fault, Fault) else PayloadInvalid
        return _refusal(kind, f"{event_type_of(event).name} cannot be published", problems)

    def _problems(
        self, shape: Shape, value: Any, error: Exception | None, *, writing: bool, path: str = ""
    ) -> list[Problem]:
        try:
            found = list(islice(self._explain(shape, value, writing, path), MAX_PROBLEMS))
        except RecursionError as too_deep:
            return [(path, too_deep)]
        return found or ([(path, error)] if error else [])

    def _explain(
        self, shape: Shape, value: Any, writing: bool, path: str = "", above: tuple[int, ...] = ()
    ) -> Iterator[Problem]:
        """The innermost faults: a part is to blame before the whole."""
        fault = _attempt(shape, value, writing)
        if fault is None:
            return
        if id(value) in above:
            yield path, impossible("refers back to an object that contains it: a cycle")
        elif len(above) > self._max_depth:
            yield path, Fault(f"is nested deeper than the limit {self._max_depth}", PayloadTooDeep)
        else:
            blamed = False
            for suffix, part, inner in shape.parts(value, writing):
                for problem in self._explain(inner, part, writing, path + suffix, (*above, id(value))):
                    blamed = True
                    yield problem
            if not blamed:
                yield path, fault

    def _check_depth(self, document: dict[str, Any], what: str) -> None:
        depth = _depth(document)
        if depth > self._max_depth:
            raise PayloadTooDeep(
                f"{what}: depth {depth}, limit {self._max_depth} - flatten it, or store the content "
                "elsewhere and refer to it",
                depth=depth,
                limit=self._max_depth,
            )


# --- faults ------------------------------------------------------------------------------------------------


def _attempt(shape: Shape, value: Any, writing: bool) -> Exception | None:
    try:
        shape.encode(value) if writing else shape.decode(value)
    except Exception as error:
        return error
    return None


def _refusal(kind: type[CodecError], what: str, problems: list[Problem]) -> CodecError:
    lines = [_line(path, fault) for path, fault in problems]
    shown = "; ".join(lines[:_SHOWN_PROBLEMS])
    more = f"; and {len(lines) - _SHOWN_PROBLEMS} more" if len(lines) > _SHOWN_PROBLEMS else ""
    return kind(f"{what}: {shown}{more}", problems=lines)


def _line(path: str, fault: Exception) -> str:
    """``address.zip: expected str, got int 5``."""
    path = path.removeprefix(".") or "payload"
    path = path if len(path) <= MAX_PATH else f"{path[: MAX_PATH - 1]}…"
    if not isinstance(fault, Fault):
        return f"{path}: {type(fault).__name__}: {str(fault)[:200]}"
    shown = "***" if fault.shown and _SECRET.search(path) else fault.shown
    joint = ": " if fault.kind is PayloadInvalid else " "
    return f"{path}{joint}{fault.reason} {shown}".rstrip()


def _depth(document: Any) -> int:
    """How many objects and arrays contain each other, the document included."""
    depth, level = 0, [document]
    while level:
        depth += 1
        inner = [part.values() if type(part) is dict else part for part in level]
        level = [part for parts in inner for part in parts if type(part) in _CONTAINERS]
    return depth


# --- bytes -------------------------------------------------------------------------------------------------


def _dumps(document: dict[str, Any]) -> bytes:
    if orjson is not None:
        body: bytes = orjson.dumps(document)
        return body
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _check_content_type(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if name.lower() == "content-type" and not is_json(value):
            raise Undecodable(
                f"unsupported content type {shorten(value)}: events are JSON (application/json)", value=value
            )


def _quick_loads(data: bytes) -> Any:
    """What orjson reads; None if it cannot, or might read it otherwise than the careful parser."""
    if orjson is None or _needs_care(data):
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _needs_care(data: bytes) -> bool:
    """Whether the text may hold what orjson lets through: NUL, and long ints as floats."""
    return b"\\u0000" in data or _LONG_INT in data.translate(_DIGITS_AS_0)


def _careful_loads(data: bytes, limit: int) -> Any:
    """What the standard library reads, with a reason why it cannot."""
    _check_nesting(data, limit)
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Undecodable(f"invalid UTF-8 at byte {error.start}", position=error.start) from error
    except json.JSONDecodeError as error:
        raise Undecodable(f"not JSON: {error}", position=error.pos) from error
    except RecursionError as error:
        raise Undecodable("nesting is too deep for the JSON parser") from error
    except ValueError as error:
        raise InvalidEnvelope(f"a number has too many digits: {error}") from error


def _brackets(data: bytes) -> int:
    return data.count(b"{") + data.count(b"[")


def _check_nesting(data: bytes, limit: int) -> None:
    """Refuses a JSON bomb before a recursive parser sees it."""
    if _brackets(data) <= limit:
        return
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", data)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > limit:
            raise Undecodable(f"nesting is deeper than {limit} levels", limit=limit)


def _no_constant(name: str) -> Any:
    raise Undecodable(f"not JSON: {name} is no JSON number")
