"""``@event``: gives an attrs class a stable name and a version, which is all that makes it an event."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar, dataclass_transform

import attrs

from eventdriven_sync.errors import InvalidEventType, shorten

C = TypeVar("C", bound=type)
Durability = Literal["store", "broker"]

MAX_NAME = 200
MAX_TOKENS = 16
MAX_VERSION = 2**31 - 1
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_.-]")
_ATTRIBUTE = "__eventdriven__"

# The last class declared under each name: lets the CLI publish by name. A bus has its own, strict table.
declared: dict[str, EventType] = {}


@attrs.frozen(kw_only=True)
class EventType:
    """What is known of an event class.

    Attributes:
        name: ``User.nameUpdated``; its first token names the stream.
        version: of the payload's shape, from 1.
        key: the field whose value groups events, or None.
        cls: the user's attrs class.
        durability: who holds an event when ``publish`` returns: the event store, or the broker alone.
    """

    name: str
    version: int
    key: str | None
    cls: type
    durability: Durability = "store"

    @property
    def stream_token(self) -> str:
        """The first token of the name: events that share it share a stream."""
        return self.name.partition(".")[0]


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(attrs.field,))
def event(
    name: str, *, version: int = 1, key: str | None = None, durability: Durability = "store"
) -> Callable[[C], C]:
    """Declare a class to be an event.

    A class that attrs has not seen yet becomes ``attrs.frozen(kw_only=True)``.

    Args:
        name: stable, ASCII, tokens joined by dots (``User.nameUpdated``): at most 200 characters and 16
            tokens of ``A-Z a-z 0-9 _ -``.
        version: positive; raise it when the payload's shape changes.
        key: a field of the class; its value travels with the event as its key.
        durability: ``"store"``: accepted means stored in MongoDB. ``"broker"``, for telemetry at a high
            rate: accepted means confirmed by NATS, and a worker stores it a moment later. What NATS
            confirmed and then loses (a power loss, a wiped disk) before that is lost.

    Raises:
        InvalidEventType: the name, version, key, durability or class cannot be used.

    Example:
        >>> @event("User.nameUpdated", key="user_id")
        ... @attrs.frozen(kw_only=True)
        ... class UserNameUpdated:
        ...     user_id: str
    """
    name = check_event_name(name)
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= MAX_VERSION:
        raise InvalidEventType(
            f"event {name}: version is {shorten(version)}; give a whole number from 1 to {MAX_VERSION:,}",
            field="version",
            value=version,
            limit=MAX_VERSION,
        )

    if durability not in ("store", "broker"):
        raise InvalidEventType(
            f'event {name}: durability is {shorten(durability)}; give "store" (accepted means stored in '
            'MongoDB) or "broker" (accepted means confirmed by NATS, stored a moment later)',
            field="durability",
            value=durability,
        )

    def declare(cls: C) -> C:
        _check_class(cls, name)
        # A subclass inherits the fields of an attrs class, but its own fields are still to be collected.
        known = "__attrs_attrs__" in cls.__dict__
        frozen: Any = cls if known else attrs.frozen(kw_only=True)(cls)
        _check_key(frozen, name, key)
        event_type = EventType(name=name, version=version, key=key, cls=frozen, durability=durability)
        setattr(frozen, _ATTRIBUTE, event_type)
        declared[name] = event_type
        return frozen  # type: ignore[no-any-return]

    return declare


def event_type_of(value: object) -> EventType:
    """The event type of an event or event class.

    Raises:
        InvalidEventType: the class was not declared with ``@event``.
    """
    cls = value if isinstance(value, type) else type(value)
    found = cls.__dict__.get(_ATTRIBUTE)
    if not isinstance(found, EventType):
        raise InvalidEventType(
            f'{cls.__qualname__} is no event: declare the class with @event("Module.happened")',
            value=value,
        )
    return found


def check_event_name(name: object) -> str:
    """The name itself, or InvalidEventType saying which character, token or length is wrong."""
    if not isinstance(name, str) or not name:
        raise InvalidEventType(f"event type must be a non-empty string, got {shorten(name)}", field="name")
    if len(name) > MAX_NAME:
        raise InvalidEventType(
            f"event type {shorten(name)} has {len(name):,} characters, limit {MAX_NAME}",
            limit=MAX_NAME,
        )
    wrong = _FORBIDDEN.search(name)
    if wrong:
        what = "the wildcard " if wrong[0] in "*>" else ""
        raise InvalidEventType(
            f"event type {shorten(name)} contains {what}{wrong[0]!r} at position {wrong.start()}; "
            "allowed: A-Z a-z 0-9 _ - and '.' between tokens",
            position=wrong.start(),
        )
    tokens = name.split(".")
    if "" in tokens:
        raise InvalidEventType(
            f"event type {shorten(name)} has an empty token; put one '.' between tokens, none at the ends"
        )
    if tokens[0] == "_INBOX":
        raise InvalidEventType(f"event type {shorten(name)} begins with _INBOX, which NATS keeps for replies")
    if len(tokens) > MAX_TOKENS:
        raise InvalidEventType(
            f"event type {shorten(name)} has {len(tokens)} tokens, limit {MAX_TOKENS}",
            limit=MAX_TOKENS,
        )
    return str.__str__(name)  # a member of `class Name(str, Enum)` formats as something else


def _check_class(cls: object, name: str) -> None:
    if not isinstance(cls, type):
        raise InvalidEventType(f"event {name}: {shorten(cls)} is no class", value=cls)
    if "__dataclass_fields__" in cls.__dict__:
        raise InvalidEventType(
            f"event {name}: {cls.__qualname__} is a dataclass; leave @dataclass out, "
            "@event makes it an attrs class",
            value=cls,
        )


def _check_key(cls: type, name: str, key: str | None) -> None:
    if key is None:
        return
    fields = [field.name for field in attrs.fields(cls)]
    if key not in fields:
        raise InvalidEventType(
            f"event {name}: key {shorten(key)} is no field of {cls.__qualname__}; it has {', '.join(fields)}",
            field="key",
            value=key,
        )
