"""Batches for batch handlers: collecting per key, and the object the handler gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import attrs

from eventdriven_sync.errors import InvalidOption, shorten
from eventdriven_sync.handlers import BatchOptions

E = TypeVar("E")
T = TypeVar("T")


class Batch(Generic[E]):
    """What a batch handler gets: events of one key, in the order of their arrival.

    Attributes:
        key: what ``group_by`` said of every event in it; None without ``group_by``.
        events: the events.
        failed: the errors given to ``fail`` so far.
    """

    def __init__(self, key: Any, events: Sequence[E]) -> None:
        self.key = key
        self.events = tuple(events)
        self.failed: dict[int, BaseException] = {}
        self._ids = {id(event) for event in self.events}

    def __len__(self) -> int:
        return len(self.events)

    def fail(self, event: E, error: BaseException) -> None:
        """Only this event of the batch failed: it is retried or dead-lettered, the others succeed.

        Args:
            event: one of ``events``, the object itself.
            error: why; ``Retry``, ``Reject`` and ``Discard`` mean what they mean when raised.

        Raises:
            InvalidOption: the event is not in this batch, or ``error`` is no exception.
        """
        if id(event) not in self._ids:
            raise InvalidOption(
                f"batch.fail: {shorten(event)} is not one of batch.events; pass that very object",
                field="event",
            )
        if not isinstance(error, BaseException):
            raise InvalidOption(
                f"batch.fail: error is {shorten(error)}; pass an exception", field="error", value=error
            )
        self.failed[id(event)] = error


@attrs.define(eq=False)
class _Bucket(Generic[T]):
    key: Hashable
    since: float
    items: list[T] = attrs.field(factory=list)


class Collector(Generic[T]):
    """Collects items per key until a batch is full or its first item has waited long enough.

    Not thread-safe: its lane's lock guards it.
    """

    def __init__(self, options: BatchOptions, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._buckets: dict[Hashable, _Bucket[T]] = {}

    def add(self, key: Hashable, item: T) -> list[T] | None:
        """Add an item; the full batch it completes, if it does."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(key, self._clock())
        bucket.items.append(item)
        if len(bucket.items) < self._options.max_size:
            return None
        return self._buckets.pop(key).items

    def due(self) -> list[list[T]]:
        """The batches whose first item has waited ``max_wait`` seconds."""
        limit = self._clock() - self._options.max_wait
        # Buckets stand in the order of their first item, so the first one that is not due ends the search.
        ready: list[list[T]] = []
        for bucket in list(self._buckets.values()):
            if bucket.since > limit:
                break
            ready.append(self._buckets.pop(bucket.key).items)
        return ready

    @property
    def holds(self) -> bool:
        """Whether something waits for its batch."""
        return bool(self._buckets)

    def drain(self) -> list[T]:
        """Everything collected so far, which is no longer held."""
        items = [item for bucket in self._buckets.values() for item in bucket.items]
        self._buckets.clear()
        return items
