"""Waiting in tests: poll a condition, never sleep a guessed time."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_STEP = 0.02


def eventually(predicate: Callable[[], T], timeout: float = 10, *, message: str = "") -> T:
    """Call ``predicate`` until it returns something true, and return that.

    An ``AssertionError`` of the predicate counts as "not yet", so it may contain asserts.

    Raises:
        AssertionError: it was not true within ``timeout`` seconds; its last assertion is the cause.
    """
    deadline = time.monotonic() + timeout
    while True:
        failure: AssertionError | None = None
        try:
            if value := predicate():
                return value
        except AssertionError as error:
            failure = error
        if time.monotonic() > deadline:
            what = message or getattr(predicate, "__name__", "condition")
            raise AssertionError(f"not within {timeout:g} s: {what}") from failure
        threading.Event().wait(_STEP)
