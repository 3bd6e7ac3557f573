"""The errors of the library: one root, five branches, facts as attributes.

Every message names the field, the value (shortened), the limit and the cure. Errors of nats-py and
pymongo are translated by the adapters and stay reachable as ``__cause__``.
"""

from __future__ import annotations

from typing import Any

_SHOWN = 80


def shorten(value: object, *, limit: int = _SHOWN) -> str:
    """The ``repr`` of a value, cut to ``limit`` characters, as error messages show it."""
    if isinstance(value, (str, bytes)):
        value = value[: limit + 1]  # a repr of megabytes would be made only to be cut
    try:
        text = repr(value)
    except Exception:  # a user's own __repr__, an int of 5,000 digits, a cycle
        text = f"<{type(value).__name__} without repr>"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class EventDrivenError(Exception):
    """Root of everything this library raises on purpose.

    Args:
        message: what went wrong, with field, value, limit and cure.
        facts: the same as values; each can be read as an attribute (``error.limit``).
    """

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        facts: dict[str, Any] = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(f"{type(self).__name__} has no fact {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.facts)


def _rebuild(kind: type[EventDrivenError], message: str, facts: dict[str, Any]) -> EventDrivenError:
    return kind(message, **facts)


# --- configuration and wrong calls -----------------------------------------------------------------


class ConfigurationError(EventDrivenError):
    """A setting, a name or a call is wrong; nothing was stored or sent."""


class InvalidEventType(ConfigurationError):
    """An event name, version or class that cannot be used."""


class DuplicateEvent(ConfigurationError):
    """Two different classes claim the same event name and version in one bus."""


class InvalidGroupName(ConfigurationError):
    """A group or handler name that cannot become a consumer name."""


class DuplicateHandler(ConfigurationError):
    """Two handlers of one group share a name."""


class InvalidHandler(ConfigurationError):
    """A function that cannot serve as handler (``async def``, wrong parameters)."""


class InvalidOption(ConfigurationError):
    """An option outside its range."""


class InvalidDelay(InvalidOption):
    """A delay that is negative, too long or not a number."""


class InvalidEventId(ConfigurationError):
    """An event id or idempotency key that cannot be used."""


class StreamConflict(ConfigurationError):
    """A stream exists with other settings than ours; it is never changed silently."""


class UnsafeStream(StreamConflict):
    """A stream exists whose settings can lose accepted events."""


class ConsumerConflict(ConfigurationError):
    """A consumer exists with other settings than ours; it is never changed silently."""


class MissingExtra(ConfigurationError):
    """An optional dependency is not installed; the message names the extra."""


class Closed(ConfigurationError):
    """The bus was closed; build a new one."""


# --- payloads -----------------------------------------------------------------------------------------


class CodecError(EventDrivenError):
    """A payload or message cannot be encoded or decoded."""


class PayloadInvalid(CodecError):
    """A field has the wrong type or value; ``problems`` lists each as ``path: reason``."""


class PayloadNotSerializable(CodecError):
    """A value has no place in JSON or MongoDB; the path is given."""


class PayloadTooLarge(CodecError):
    """The encoded event, or a reply that is to be kept, exceeds the limit."""


class PayloadTooDeep(CodecError):
    """The payload is nested deeper than the limit."""


class Undecodable(CodecError):
    """Bytes from the broker are no event envelope."""


class InvalidEnvelope(CodecError):
    """JSON from the broker lacks or contradicts envelope fields."""


class UnknownVersion(CodecError):
    """The event is newer than the class this process knows."""


# --- broker -------------------------------------------------------------------------------------------


class BrokerError(EventDrivenError):
    """NATS answered with an error."""


class BrokerUnavailable(BrokerError):
    """NATS cannot be reached or did not answer within the deadline."""


class BrokerPermissionDenied(BrokerError):
    """NATS refuses the account this action."""


# --- store --------------------------------------------------------------------------------------------


class StoreError(EventDrivenError):
    """MongoDB answered with an error."""


class StoreUnavailable(StoreError):
    """MongoDB cannot be reached within the deadline; nothing was written."""


class QueryTooSlow(StoreError):
    """A question of a person took longer than it may; nothing is wrong with the store. Ask for less."""


class StorePermissionDenied(StoreError):
    """MongoDB refuses the user this action."""


class PublishOutcomeUnknown(StoreError):
    """The write was sent and not answered in time: it may or may not be stored.

    Publishing again with the same ``event_id`` is safe; ``event_ids`` lists the ids in question.
    """


class EventIdReused(StoreError):
    """The event id exists with other content."""


class NotFound(StoreError):
    """No operation, event, delivery or handler has this id."""


class InvalidTransition(StoreError):
    """The delivery's state does not allow this action."""


class LeaseLost(StoreError):
    """This attempt no longer owns its delivery: its result and publishes are dropped."""


# --- handling -----------------------------------------------------------------------------------------


class HandlerError(EventDrivenError):
    """Something about running handlers."""


class HandlerTimeout(HandlerError):
    """A handler ran longer than its timeout; the stack at that moment is recorded."""


class WorkerLost(HandlerError):
    """Workers died while running this delivery, too often to try again."""


class ChainTooDeep(HandlerError):
    """An event would be further from its operation than allowed: most likely a loop of events."""


class TooManyEvents(HandlerError):
    """An attempt publishes more events than can be stored with its outcome."""


class OperationTimeout(HandlerError, TimeoutError):
    """``operation.wait`` ended before the chain was settled; the operation goes on."""
