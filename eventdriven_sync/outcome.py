"""What an attempt came to: one small frozen value, and the signals a handler may raise to choose it."""

from __future__ import annotations

import re
import traceback
from datetime import datetime
from functools import lru_cache, partial
from types import CodeType, TracebackType
from typing import Any, Literal

import attrs

from eventdriven_sync.errors import HandlerTimeout, InvalidDelay, shorten
from eventdriven_sync.redaction import Redaction

MAX_DELAY = 365 * 86400.0
MAX_TRACEBACK = 16 * 1024  # bytes
MAX_MESSAGE = 2000
# What is looked at beyond a cut, so that a secret across it is recognized.
_TAIL = 1024
_REDACTION = Redaction()
_FRAMES = re.compile(
    r'(?:^Traceback \(most recent call last\):\n|^  File "[^\n]*\n(?:    [^\n]*\n)*|^  \[Previous [^\n]*\n)+',
    re.MULTILINE,
)

Place = tuple[tuple[CodeType, int, int], ...]
# The frames of stacks by where they stand, for what fails often; few, and short ones.
_known_frames: dict[Place, str] = {}
_FRAMES_MOST, _DEPTH_MOST = 64, 100
# Texts in which nothing looked like a secret.
_harmless: set[str] = set()
_HARMLESS_MOST, _SHORT = 256, 500

DeliveryState = Literal["pending", "running", "retrying", "succeeded", "dead", "discarded"]
FINAL_STATES: frozenset[str] = frozenset({"succeeded", "dead", "discarded"})

DeadReason = Literal[
    "attempts_exhausted",
    "rejected",
    "not_retryable",
    "undecodable",
    "invalid",
    "unknown_event",
    "unknown_version",
    "worker_lost",
    "timeout",
]

# Every move a delivery may make; None stands for "no record yet". A property test refuses all others. What a
# person discarded a person may bring back to where it was.
MOVES: dict[str | None, frozenset[str]] = {
    None: frozenset({"pending", "running", "retrying", "succeeded", "dead", "discarded"}),
    "pending": frozenset({"running"}),
    "running": frozenset({"running", "succeeded", "retrying", "dead", "discarded"}),
    "retrying": frozenset({"running", "discarded"}),
    "dead": frozenset({"retrying", "discarded"}),
    "succeeded": frozenset(),
    "discarded": frozenset({"retrying", "dead"}),
}


@attrs.frozen(kw_only=True)
class Failure:
    """One failed attempt, as it is kept with the delivery.

    Attributes:
        error_type: class name of the exception (``SMTPServerDisconnected``).
        message: its text, at most 2,000 characters.
        traceback: its stack, at most 16 KiB.
        failed_at: worker's clock, UTC.
        attempt: number of the attempt, from 1.
        generation: 0 at first, one more after each retry from the dead letters.
        worker: which process ran it.
        duration_ms: how long the handler ran.
    """

    error_type: str
    message: str
    traceback: str
    failed_at: datetime
    attempt: int
    generation: int = 0
    worker: str = ""
    duration_ms: float = 0.0


@attrs.frozen(kw_only=True)
class Done:
    """The handler returned."""


@attrs.frozen(kw_only=True)
class RetryAt:
    """The attempt failed; the next one is due ``after`` seconds from when this is recorded."""

    after: float
    failure: Failure


@attrs.frozen(kw_only=True)
class Dead:
    """No further attempt: the delivery becomes a dead letter."""

    reason: DeadReason
    failure: Failure


@attrs.frozen(kw_only=True)
class Discarded:
    """The handler decided that this event needs no handling."""

    reason: str


Outcome = Done | RetryAt | Dead | Discarded


class Signal(Exception):
    """A handler's word on its own outcome; not an error of the library."""


class Retry(Signal):
    """Raise in a handler: try again in ``after`` seconds. Counts as a failed attempt.

    Raises:
        InvalidDelay: ``after`` is negative, over 365 days or not a number.
    """

    def __init__(self, reason: str = "retry asked for", *, after: float) -> None:
        super().__init__(reason)
        self.after = check_delay(after)

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class without its keyword.
        return partial(Retry, after=self.after), self.args


class Reject(Signal):
    """Raise in a handler: this event can never be handled; it becomes a dead letter at once."""


class Discard(Signal):
    """Raise in a handler: this event needs no handling; the delivery ends as ``discarded``."""


def check_delay(value: object, *, field: str = "after") -> float:
    """The delay in seconds, or InvalidDelay."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_DELAY:
        raise InvalidDelay(
            f"{field} is {shorten(value)}: give seconds from 0 to {MAX_DELAY:,.0f} (365 days)",
            field=field,
            value=value,
            limit=MAX_DELAY,
        )
    return float(value)


def text_of(error: BaseException) -> str:
    """What it says, storable: without what looks like a secret or a lone surrogate, cut to its limit."""
    try:
        text = str(error)[: MAX_MESSAGE + _TAIL]
    except BaseException as broken:  # an exception of user code may not even be printable
        text = f"<its text cannot be read: {type(broken).__name__}>"
    return _redacted(text.encode("utf-8", "backslashreplace").decode())[:MAX_MESSAGE]


def stack_of(error: BaseException, *, below: str) -> str:
    """The stack below the frames of module ``below``, without what looks like a secret.

    Of a long one the end: that is where the fault is.
    """
    stack = getattr(error, "stack", None) if isinstance(error, HandlerTimeout) else None
    if not isinstance(stack, str):
        try:
            stack = _formatted(error, _below(error, below))
        except BaseException as broken:
            stack = f"{type(error).__name__} (its traceback cannot be read: {type(broken).__name__})"
    kept = stack[-MAX_TRACEBACK:].encode("utf-8", "backslashreplace")[-MAX_TRACEBACK:]
    return _without_secrets(kept.decode("utf-8", "ignore"))


def _without_secrets(stack: str) -> str:
    parts, end = [], 0
    for frames in _FRAMES.finditer(stack):
        parts += [_redacted(stack[end : frames.start()]), _frames_without_secrets(frames[0])]
        end = frames.end()
    return "".join([*parts, _redacted(stack[end:])])


def _redacted(text: str) -> str:
    """What fails does so again and again with the same words. Only those without a secret are remembered."""
    if text in _harmless:
        return text
    found = _REDACTION.text(text)
    if found == text and len(text) <= _SHORT:
        if len(_harmless) >= _HARMLESS_MOST:
            _harmless.clear()
        _harmless.add(text)
    return found


@lru_cache(maxsize=256)
def _frames_without_secrets(frames: str) -> str:
    # A handler that fails does so at the same place again and again, and looking takes its time.
    return _REDACTION.text(frames)


def _formatted(error: BaseException, tb: TracebackType | None) -> str:
    """As Python prints it. Of what fails again and again only the last lines are made anew."""
    chained = error.__cause__ or error.__context__ or isinstance(error, BaseExceptionGroup)
    place = () if chained else _place(tb)
    end = "".join(traceback.format_exception_only(error)) if place else ""
    known = _known_frames.get(place)
    if known is not None:
        return known + end
    whole = "".join(traceback.format_exception(type(error), error, tb))
    if 0 < len(place) <= _DEPTH_MOST and whole.endswith(end):
        if len(_known_frames) >= _FRAMES_MOST:
            _known_frames.clear()
        _known_frames[place] = whole.removesuffix(end)[-MAX_TRACEBACK:]
    return whole


def _place(tb: TracebackType | None) -> Place:
    frames = []
    while tb is not None:
        frames.append((tb.tb_frame.f_code, tb.tb_lasti, tb.tb_lineno))
        tb = tb.tb_next
    return tuple(frames)


def _below(error: BaseException, module: str) -> TracebackType | None:
    """The traceback below the module's last frame: in a transaction the driver's stand between its frames."""
    found = tb = error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_globals.get("__name__") == module:
            found = tb.tb_next
        tb = tb.tb_next
    return found
