"""Killing a process exactly at one boundary: wrappers around its broker and its store.

The library knows nothing of this: ``EventBus`` takes a ready broker and a ready store.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import attrs

BEFORE_DISPATCH = "before dispatch"
BEFORE_SETTLE = "before settle"
BEFORE_ACK = "before ack"
AFTER_CLAIM = "after claim"
BEFORE_COMMIT = "before commit"
AFTER_COMMIT = "after commit"


@attrs.define
class CrashPoint:
    """Kills this process when it reaches a named place for the nth time. Thread-safe."""

    place: str
    nth: int = 1
    reached: int = 0
    lock: threading.Lock = attrs.field(factory=threading.Lock)

    def pass_by(self, place: str) -> None:
        if place != self.place:
            return
        with self.lock:
            self.reached += 1
            if self.reached == self.nth:
                # What was sent too early, such as an acknowledgement, gets away.
                threading.Event().wait(0.2)
                os.kill(os.getpid(), signal.SIGKILL)


class _Wrapper:
    def __init__(self, inner: Any, point: CrashPoint) -> None:
        self._inner = inner
        self._point = point

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class CrashingBroker(_Wrapper):
    def dispatch(self, messages: Sequence[Any]) -> int:
        self._point.pass_by(BEFORE_DISPATCH)
        return self._inner.dispatch(messages)

    def consume(self, *arguments: Any, **options: Any) -> Any:
        return _CrashingConsumption(self._inner.consume(*arguments, **options), self._point)


class _CrashingConsumption(_Wrapper):
    def finish(self, messages: Sequence[Any]) -> None:
        self._point.pass_by(BEFORE_ACK)
        self._inner.finish(messages)


class CrashingStore(_Wrapper):
    @property
    def deliveries(self) -> Any:
        return _CrashingDeliveries(self._inner.deliveries, self._point)

    def run_transaction(self, body: Callable[[Any], Any], *, timeout: float) -> Any:
        def crashing(session: Any) -> Any:
            result = body(session)
            self._point.pass_by(BEFORE_COMMIT)
            return result

        result = self._inner.run_transaction(crashing, timeout=timeout)
        self._point.pass_by(AFTER_COMMIT)
        return result


class _CrashingDeliveries(_Wrapper):
    def settle(self, settlements: Sequence[Any]) -> list[bool]:
        self._point.pass_by(BEFORE_SETTLE)
        return self._inner.settle(settlements)

    def claim_due(self, *arguments: Any, **options: Any) -> list[Any]:
        claimed = self._inner.claim_due(*arguments, **options)
        if claimed:
            self._point.pass_by(AFTER_CLAIM)
        return claimed
