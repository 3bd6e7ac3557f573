"""Consumer groups: where handlers are declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload

from eventdriven_sync.batching import Batch
from eventdriven_sync.config import check_name
from eventdriven_sync.handlers import DEFAULT_TIMEOUT, Start, make_batch_options, make_handler
from eventdriven_sync.retry import RetryPolicy

if TYPE_CHECKING:
    from eventdriven_sync.bus import Receipt
    from eventdriven_sync.topology import Topology

E = TypeVar("E")
E2 = TypeVar("E2")
E3 = TypeVar("E3")
F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")


class HandlerOptions(TypedDict, total=False):
    """The options of ``Group.handler``, for the type checker: it tells apart one, two and three events."""

    name: str | None
    retry: RetryPolicy | None
    timeout: float | None
    threads: int | None
    transactional: bool
    start: Start


class Owner(Protocol):
    """What a group belongs to: a bus, or an extension that has one bus for each application."""

    @property
    def topology(self) -> Topology:
        """Where its handlers are registered."""

    def publish(
        self,
        event: object,
        *,
        event_id: str | None = None,
        idempotency_key: str | None = None,
        immediate: bool = False,
        timeout: float | None = None,
        source: str = "",
    ) -> Receipt:
        """``EventBus.publish``."""

    def publish_many(
        self,
        events: Sequence[object],
        *,
        event_ids: Sequence[str] | None = None,
        immediate: bool = False,
        timeout: float | None = None,
        source: str = "",
    ) -> list[Receipt]:
        """``EventBus.publish_many``."""


class Group:
    """A consumer group (module): every process that runs it shares its work. Made by ``bus.group``."""

    def __init__(self, bus: Owner, name: str) -> None:
        self.name = check_name(name, what="group")
        self._bus = bus

    @overload
    def handler(
        self, event: type[E], /, **options: Unpack[HandlerOptions]
    ) -> Callable[[Callable[Concatenate[E, P], R]], Callable[Concatenate[E, P], R]]: ...

    @overload
    def handler(
        self, event: type[E], second: type[E2], /, **options: Unpack[HandlerOptions]
    ) -> Callable[[Callable[Concatenate[E | E2, P], R]], Callable[Concatenate[E | E2, P], R]]: ...

    @overload
    def handler(
        self, event: type[E], second: type[E2], third: type[E3], /, **options: Unpack[HandlerOptions]
    ) -> Callable[[Callable[Concatenate[E | E2 | E3, P], R]], Callable[Concatenate[E | E2 | E3, P], R]]: ...

    @overload
    def handler(self, *events: type[Any], **options: Unpack[HandlerOptions]) -> Callable[[F], F]: ...

    def handler(
        self,
        *events: type[Any],
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        threads: int | None = None,
        transactional: bool = False,
        start: Start = "new",
    ) -> Callable[[F], F]:
        """Subscribe a function to events. The function itself stays as it is: a test just calls it.

        It runs at least once per event, in a thread of a worker, and never again after its success was
        recorded. What it publishes is stored when it returns. It may raise ``Retry(after=…)``, ``Reject``
        and ``Discard``; any other exception is a failed attempt for the retry policy.

        Args:
            events: one or more event classes.
            name: stable name, the function's name by default; renaming makes it a new subscriber.
            retry: which exceptions are retried, how often and when; 5 attempts by default.
            timeout: seconds an attempt may run, 600 by default, None for no limit. After it the attempt has
                failed, with the thread's stack in its record, and another thread takes the slot. Python
                cannot stop the thread itself: it runs on, but its result and its publishes are dropped.
            threads: at most so many attempts at once in one worker process.
            transactional: call ``function(event, session)`` in a MongoDB transaction: writes made with the
                session, published events and the success commit together or not at all.
            start: ``"new"``: events from the registration on; ``"all"``; or an aware datetime.

        Raises:
            InvalidHandler, InvalidOption, InvalidGroupName, InvalidEventType, DuplicateHandler.
        """

        def register(function: F) -> F:
            self._bus.topology.add(
                make_handler(
                    group=self.name,
                    function=function,
                    events=events,
                    name=name,
                    retry=retry,
                    timeout=timeout,
                    threads=threads,
                    transactional=transactional,
                    start=start,
                )
            )
            return function

        return register

    def batch_handler(
        self,
        *events: type[E],
        max_size: int = 100,
        max_wait: float = 1.0,
        group_by: Callable[[E], Any] | None = None,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        threads: int | None = None,
        transactional: bool = False,
        start: Start = "new",
    ) -> Callable[[Callable[Concatenate[Batch[E], P], R]], Callable[Concatenate[Batch[E], P], R]]:
        """Subscribe a function to batches: ``batch.events``, ``batch.key``, ``batch.fail(event, error)``.

        When it returns, all events of the batch have succeeded but those given to ``batch.fail``; when it
        raises, all have failed, each counted for itself. What it publishes gets new ids when the batch runs
        again in another composition.

        Args:
            max_size: at most so many events, 1 to 10,000.
            max_wait: seconds the first event waits for others.
            group_by: of an event: only events with equal keys share a batch.

        Other arguments and errors: see ``handler``.
        """
        options = make_batch_options(max_size=max_size, max_wait=max_wait, group_by=group_by)

        def register(
            function: Callable[Concatenate[Batch[E], P], R],
        ) -> Callable[Concatenate[Batch[E], P], R]:
            self._bus.topology.add(
                make_handler(
                    group=self.name,
                    function=function,
                    events=events,
                    name=name,
                    retry=retry,
                    timeout=timeout,
                    threads=threads,
                    transactional=transactional,
                    start=start,
                    batch=options,
                )
            )
            return function

        return register

    def publish(
        self,
        event: object,
        *,
        event_id: str | None = None,
        idempotency_key: str | None = None,
        immediate: bool = False,
        timeout: float | None = None,
    ) -> Receipt:
        """``bus.publish`` with this group as the source."""
        return self._bus.publish(
            event,
            event_id=event_id,
            idempotency_key=idempotency_key,
            immediate=immediate,
            timeout=timeout,
            source=self.name,
        )

    def publish_many(
        self,
        events: Sequence[object],
        *,
        event_ids: Sequence[str] | None = None,
        immediate: bool = False,
        timeout: float | None = None,
    ) -> list[Receipt]:
        """``bus.publish_many`` with this group as the source."""
        return self._bus.publish_many(
            events, event_ids=event_ids, immediate=immediate, timeout=timeout, source=self.name
        )
