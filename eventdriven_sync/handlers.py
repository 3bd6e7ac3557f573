"""Handlers: named functions of a group, subscribed to event names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import attrs

from eventdriven_sync.config import check_name, check_number
from eventdriven_sync.errors import InvalidHandler, InvalidOption, shorten
from eventdriven_sync.events import EventType, event_type_of
from eventdriven_sync.retry import RetryPolicy
from eventdriven_sync.store import NEW

Start = Literal["new", "all"] | datetime

DEFAULT_TIMEOUT = 600.0
MAX_TIMEOUT = 7 * 86400.0


@attrs.frozen(kw_only=True)
class BatchOptions:
    """How a batch handler collects: up to ``max_size`` events, at most ``max_wait`` seconds, per key."""

    max_size: int
    max_wait: float
    group_by: Callable[[Any], Any] | None


@attrs.frozen(kw_only=True, eq=False)
class Handler:
    """A function subscribed to events, with its policy. One durable consumer per stream it listens to.

    Attributes:
        name: ``Group.handler``.
        starts_at: where a new handler begins: ``store.NEW``, None for all events, or a time.
        timeout: seconds an attempt may run, None for no limit.
        threads: how many attempts may run at once in one worker process, None for no limit of its own.
    """

    name: str
    function: Callable[..., Any]
    event_types: tuple[EventType, ...]
    retry: RetryPolicy
    timeout: float | None
    threads: int | None
    transactional: bool
    starts_at: datetime | None
    batch: BatchOptions | None

    @property
    def group(self) -> str:
        """The consumer group."""
        return self.name.partition(".")[0]

    @property
    def consumer(self) -> str:
        """The name of its durable consumers."""
        return self.name.replace(".", "__")

    @property
    def location(self) -> str:
        """``module:function:line`` of the handler's code."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        line = f":{code.co_firstlineno}" if code else ""
        return f"{self.function.__module__}:{getattr(self.function, '__qualname__', '?')}{line}"

    def event_type(self, name: str) -> EventType | None:
        """The event class this handler expects under a name."""
        return next((kind for kind in self.event_types if kind.name == name), None)


def make_handler(
    *,
    group: str,
    function: Callable[..., Any],
    events: Sequence[type],
    name: str | None,
    retry: RetryPolicy | None,
    timeout: float | None,
    threads: int | None,
    transactional: bool,
    start: Start,
    batch: BatchOptions | None = None,
) -> Handler:
    """Check everything and build the handler.

    Raises:
        InvalidGroupName, InvalidHandler, InvalidOption, InvalidEventType: naming what is wrong.
    """
    given = getattr(function, "__name__", "") if name is None else name
    label = f"{group}.{check_name(given, what='handler')}"
    if not events:
        raise InvalidHandler(f"handler {label} names no event class: @group.handler(UserNameUpdated)")
    _check_function(function, label, transactional)
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise InvalidOption(f"handler {label}: retry is {shorten(retry)}; give a RetryPolicy(...)")
    if timeout is not None:
        check_number(timeout, field=f"handler {label}: timeout", low=0.01, high=MAX_TIMEOUT)
    if threads is not None:
        check_count(threads, field=f"handler {label}: threads", high=1024)
    return Handler(
        name=label,
        function=function,
        event_types=tuple(event_type_of(cls) for cls in events),
        retry=retry or RetryPolicy(),
        timeout=timeout,
        threads=threads,
        transactional=transactional,
        starts_at=_starts_at(start, label),
        batch=batch,
    )


def make_batch_options(
    *, max_size: int, max_wait: float, group_by: Callable[[Any], Any] | None
) -> BatchOptions:
    """Check the options of a batch handler; InvalidOption names the one out of range."""
    check_count(max_size, field="max_size", high=10_000)
    check_number(max_wait, field="max_wait", low=0.001, high=3600)
    if group_by is not None and not callable(group_by):
        raise InvalidOption(
            f"group_by is {shorten(group_by)}; give a function of the event", field="group_by"
        )
    return BatchOptions(max_size=max_size, max_wait=max_wait, group_by=group_by)


def check_count(value: Any, *, field: str, high: int) -> None:
    """InvalidOption if the value is no whole number from 1 to ``high``."""
    check_number(value, field=field, low=1, high=high)
    if not isinstance(value, int):
        raise InvalidOption(f"{field} is {shorten(value)}: give a whole number from 1 to {high}", field=field)


def _starts_at(start: Start, label: str) -> datetime | None:
    if isinstance(start, datetime) and start.tzinfo is not None:
        return start
    if start in ("new", "all"):
        return NEW if start == "new" else None
    raise InvalidOption(
        f'handler {label}: start is {shorten(start)}; give "new", "all" or an aware datetime', field="start"
    )


def _check_function(function: Callable[..., Any], label: str, transactional: bool) -> None:
    if not callable(function):
        raise InvalidHandler(f"handler {label} is {shorten(function)}: decorate a function")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidHandler(
            f"handler {label} is `async def`: handlers run in threads, write it as plain `def`"
        )
    wanted = 2 if transactional else 1
    shape = "(event, session)" if transactional else "(event)"
    try:
        inspect.signature(function).bind(*range(wanted))
    except ValueError:
        return  # a builtin that does not tell its parameters
    except TypeError as error:
        raise InvalidHandler(
            f"handler {label} must be callable as {shape}"
            f"{'' if transactional else '; a session needs transactional=True'}: {error}"
        ) from error
