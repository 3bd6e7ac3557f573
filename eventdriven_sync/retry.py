"""When to try again: tenacity's ``stop``, ``wait`` and ``retry`` objects, asked for a decision.

Nothing sleeps: the policy answers "in how many seconds", the event store keeps the time.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import attrs
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_all,
    wait_exponential_jitter,
)

from eventdriven_sync.errors import InvalidDelay, InvalidOption, shorten
from eventdriven_sync.outcome import MAX_DELAY, DeadReason

log = logging.getLogger(__name__)


def _callable(instance: RetryPolicy, attribute: attrs.Attribute[Any], value: object) -> None:
    if not callable(value):
        raise InvalidOption(
            f"RetryPolicy {attribute.name} is {shorten(value)}: give an object of tenacity, such as "
            "stop_after_attempt(5), wait_random_exponential(max=600) or retry_if_exception_type(OSError)",
            field=attribute.name,
            value=value,
        )


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often and when a failed handler runs again; safe to share between threads.

    The default is 5 attempts in all, waiting about 1, 2, 4 and 8 seconds (exponential with jitter), then
    the delivery is a dead letter.

    Args:
        stop: tenacity ``stop`` object, asked with the number of failures so far.
        wait: tenacity ``wait`` object; the answer is cut to 365 days.
        on: tenacity ``retry`` object: which exceptions deserve another attempt.

    Raises:
        InvalidOption: an argument is not callable.
    """

    stop: Callable[[RetryCallState], bool] = attrs.field(
        factory=lambda: stop_after_attempt(5), validator=_callable
    )
    wait: Callable[[RetryCallState], float] = attrs.field(
        factory=lambda: wait_exponential_jitter(initial=1, max=600, jitter=0.5),
        validator=_callable,
    )
    on: Callable[[RetryCallState], bool] = attrs.field(
        factory=lambda: retry_if_exception_type(Exception), validator=_callable
    )

    def decide(self, error: BaseException, *, failures: int, elapsed: float = 0.0) -> float | DeadReason:
        """What follows failure number ``failures``.

        Args:
            error: what the handler raised.
            failures: failed attempts so far, this one included.
            elapsed: seconds since the first attempt of this generation.

        Returns:
            Seconds to wait, or the reason why the delivery is dead. If the policy itself raises, or answers
            with no number, that is logged and the default policy decides.
        """
        state = _call_state(error, failures=failures, elapsed=max(elapsed, 0.0))
        try:
            return self._ask(state)
        except Exception:  # a policy may be a user's function
            log.exception(
                "retry policy failed, the default policy decides", extra={"action": "retry_policy_failed"}
            )
            return RetryPolicy()._ask(state)

    def _ask(self, state: RetryCallState) -> float | DeadReason:
        if not self.on(state):
            return "not_retryable"
        wait = float(self.wait(state))
        if math.isnan(wait):
            raise InvalidDelay("RetryPolicy wait answered nan: give seconds", field="wait", value=wait)
        state.upcoming_sleep = min(max(wait, 0.0), MAX_DELAY)
        return "attempts_exhausted" if self.stop(state) else state.upcoming_sleep

    def describe(self) -> str:
        """The policy in words, for the handler catalogue."""
        return f"{_words(self.stop)}, {_words(self.wait)}"


def _words(asked: Any) -> str:
    limit = getattr(asked, "max_attempt_number", None)
    if limit:
        return f"{limit} attempts"
    stops = getattr(asked, "stops", ())
    joint = " and " if isinstance(asked, stop_all) else " or "
    return joint.join(map(_words, stops)) or getattr(asked, "__name__", type(asked).__name__).strip("_")


# What tenacity's objects could ask for besides the state of the call. Nobody runs it, so it never changes.
_ASKING = Retrying()


def _call_state(error: BaseException, *, failures: int, elapsed: float) -> RetryCallState:
    """A fresh state as tenacity would have made it: its objects keep nothing between calls."""
    state = RetryCallState(_ASKING, None, (), {})
    state.start_time = time.monotonic() - elapsed
    state.attempt_number = failures
    state.set_exception((type(error), error, error.__traceback__))
    return state
