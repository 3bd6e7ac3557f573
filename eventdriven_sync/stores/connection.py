"""One process's connection to MongoDB: deadlines, errors and shared writes.

Group commit is flat combining: a caller that finds nobody writing becomes the writer. It writes its own
items and everything queued by then, and hands the role to the first caller that queued meanwhile. A lone
caller pays one round trip and 32 callers share it. Callers that a write has just let go come back at once;
the next writer waits for them, or they would fall into halves that take turns.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import pymongo
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.errors import PyMongoError, WriteConcernError

from eventdriven_sync.errors import Closed
from eventdriven_sync.stores.client import SentWrites, mongo_client
from eventdriven_sync.stores.collections import DURABLE, INDEXES, Document, collection
from eventdriven_sync.stores.mongo_errors import Unanswered, after_close, passing, translated

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
T = TypeVar("T")

MAX_ITEMS = 1000
CLOSE_TIMEOUT = 0.3
MAX_BYTES = 8 * 1024 * 1024
# The server takes 48 MB in one message.
MAX_MESSAGE = 16 * 1024 * 1024

# A writer this far past its deadline will never hand over: a second interrupt met it while it was leaving.
_OVERDUE = 5.0
# Between two tries of a write, where the driver itself did not wait for a server.
_PAUSE = 0.05
# A writer waits for the callers of the last write no longer than that took, and never longer than this.
_GATHERING = 0.005
# Who has no more left than this gives up with the writer: a try of its own would end late.
_HOPELESS = 0.5
# The driver looks at its deadline every 0.5 s while it waits for a server: it gets a little less time.
_MARGIN = 0.25


class Ticket(Generic[Item]):
    """What one caller wants written, and what came of it."""

    __slots__ = ("deadline", "items", "results", "sent", "signal", "size")

    def __init__(self, items: Sequence[Item], *, size: int, deadline: float) -> None:
        self.items = items
        self.size = size
        self.deadline = deadline
        self.sent = False  # an earlier write that included it may have reached the server
        self.results: Sequence[Any] | BaseException | None = None  # None until it is over
        self.signal = threading.Lock()  # a wake-up call, guards nothing: released by whoever has news
        self.signal.acquire()

    def wake(self) -> None:
        """Let its thread go on; twice is as good as once."""
        with contextlib.suppress(RuntimeError):
            self.signal.release()


class GroupCommit(Generic[Item, Result]):
    """Combines the writes of concurrent callers. Thread-safe; a forked child builds a new one.

    Args:
        write: writes items by a point of ``time.monotonic``; gives per item its result, or the exception to
            raise to its caller. It must be safe to repeat. ``Unanswered`` means that callers with time left
            may try again; any other exception goes to every caller of the batch.
        max_items: of one batch, unless one caller brings more.
        max_bytes: of one batch, unless one caller brings more.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item], float], Sequence[Result | BaseException]],
        *,
        max_items: int = MAX_ITEMS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._write = write
        self._max_items = max_items
        self._max_bytes = max_bytes
        # Guards all that follows but _took and _ended, which the writer sets; never held during a write.
        self._mutex = threading.Lock()
        self._queue: deque[Ticket[Item]] = deque()  # bounded: one ticket per waiting thread
        self._writer: Ticket[Item] | None = None
        self._batch: list[Ticket[Item]] = []
        self._gathering = False  # the writer waits until ``_callers`` are there
        self._callers = 1  # who shared the last write, or waited for its end
        self._took = 0.0  # seconds the last write took
        self._ended = 0.0  # when

    def submit(self, items: Sequence[Item], *, size: int, timeout: float) -> list[Result]:
        """Write the items, together with those of other callers; what ``write`` gave for each.

        Raises:
            Unanswered: the time is over.
        """
        ticket = Ticket(items, size=size, deadline=time.monotonic() + timeout)
        try:
            with self._mutex:
                if self._writer is not None and self._writer.deadline + _OVERDUE < time.monotonic():
                    self._dismiss()
                if self._writer is None:
                    self._writer = ticket
                else:
                    self._queue.append(ticket)
                    if self._gathering and len(self._queue) + 1 >= self._callers:
                        self._gathering = False
                        self._writer.wake()
            if self._writer is not ticket:
                ticket.signal.acquire(timeout=timeout)
            if self._writer is ticket:
                self._lead(ticket)
        finally:
            # Also when interrupted: whoever waits for this thread is handed on.
            self._leave(ticket)
        if isinstance(ticket.results, BaseException):
            raise ticket.results
        return list(ticket.results or ())

    def _lead(self, ticket: Ticket[Item]) -> None:
        """Write a batch. Who has time left when the writer's is over stays without results."""
        self._gather(ticket)
        batch = self._take(ticket)
        begun = time.monotonic()
        try:
            items = [item for member in batch for item in member.items]
            results = iter(self._write(items, ticket.deadline))
            for member in batch:
                mine = [next(results) for _ in member.items]
                member.results = next((each for each in mine if isinstance(each, BaseException)), mine)
        except Unanswered as error:
            for member in batch:
                member.sent = member.sent or error.sent
                if member is ticket or member.deadline <= time.monotonic() + _HOPELESS:
                    member.results = Unanswered(sent=member.sent, cause=error.cause)
        except Exception as error:
            for member in batch:
                member.results = error
        self._ended = time.monotonic()
        self._took = min(self._ended - begun, _GATHERING)

    def _gather(self, ticket: Ticket[Item]) -> None:
        """Let those come whom the last write has just let go.

        A write takes about as long for one item as for thirty. So one more caller is worth waiting for as
        long as it comes sooner than what a write takes for each of those who are there already.
        """
        while True:
            with self._mutex:
                here = len(self._queue) + 1
                over = time.monotonic() > self._ended + self._took
                self._gathering = not over and here < self._callers
                if not self._gathering:
                    return
            ticket.signal.acquire(timeout=self._took / here)
            with self._mutex:
                nobody_came = self._gathering and len(self._queue) < here
                self._gathering = False
                if nobody_came:
                    return

    def _take(self, ticket: Ticket[Item]) -> list[Ticket[Item]]:
        """This ticket and what is queued behind it, as much as one write should carry."""
        with self._mutex:
            batch, count, size = [ticket], len(ticket.items), ticket.size
            while self._queue:
                count += len(self._queue[0].items)
                size += self._queue[0].size
                if count > self._max_items or size > self._max_bytes:
                    break
                batch.append(self._queue.popleft())
            self._batch = batch
            return batch

    def _leave(self, ticket: Ticket[Item]) -> None:
        """Hand the role over, or stop waiting."""
        news: list[Ticket[Item]] = []
        with self._mutex:
            if self._writer is ticket:
                news = [member for member in self._batch if member.results is not None]
                self._gathering = False  # it may have been interrupted while it did
                self._callers = len(self._batch) + len(self._queue)
                self._return_batch(interrupted=ticket.results is None)
                self._writer = self._queue.popleft() if self._queue else None
                if self._writer is not None:
                    news.insert(0, self._writer)  # first, so that the server has work while the others wake
            elif ticket in self._queue:
                self._queue.remove(ticket)
            if ticket.results is None:
                ticket.results = Unanswered(sent=ticket.sent or ticket in self._batch)
        for member in news:
            member.wake()

    def _return_batch(self, *, interrupted: bool) -> None:
        """Queue what the writer took and did not finish, in its order. The caller holds the mutex."""
        for member in reversed(self._batch):
            if member.results is None and member is not self._writer:
                member.sent = member.sent or interrupted  # nobody knows how far that write came
                self._queue.appendleft(member)
        self._batch = []

    def _dismiss(self) -> None:
        """Put an end to a writer that did not hand over. The caller holds the mutex."""
        log.warning("A writer did not hand over; its work is taken on")
        self._return_batch(interrupted=True)
        self._writer = None


class Connection:
    """The client of one process. Thread-safe; nothing is sent before the first call."""

    def __init__(self, url: str, *, database: str | None, timeout: float, max_pool_size: int) -> None:
        self.pid = os.getpid()
        self.opened = False
        self.timeout = timeout
        self._sent = SentWrites()
        self.client: MongoClient[dict[str, Any]] = mongo_client(
            url, timeout=timeout, max_pool_size=max_pool_size, listener=self._sent
        )
        self.database = (
            self.client.get_database(database)
            if database
            else self.client.get_default_database("eventdriven")
        )
        self.collections = {name: collection(self.database, name) for name in INDEXES}
        self._lanes: dict[str, GroupCommit[Any, Any]] = {}
        self._appended: dict[int, list[str]] = {}

    def in_transaction(self, session: Any) -> list[str]:
        """The ids of events stored in this transaction, to name them when its commit is not answered."""
        return self._appended.setdefault(id(session), [])

    def forget_transaction(self, session: Any) -> None:
        """The transaction is over."""
        self._appended.pop(id(session), None)

    def attempt(self, body: Callable[[], T], *, deadline: float) -> T:
        """Call ``body`` until it is answered or the time is over. It must be safe to repeat.

        Raises:
            Unanswered: the time is over, or the client was closed meanwhile.
            PyMongoError: the server answered with an error.
        """
        self._sent.here.any = False
        until = deadline - min(_MARGIN, (deadline - time.monotonic()) / 4)
        while True:
            try:
                # The driver takes 0 as "no limit".
                with pymongo.timeout(max(until - time.monotonic(), 0.001)):
                    return body()
            except PyMongoError as error:
                closed = after_close(error)
                if not (closed or passing(error)):
                    raise
                if closed or until - time.monotonic() <= _PAUSE:
                    raise Unanswered(sent=self._sent.here.any, cause=error) from error
            time.sleep(_PAUSE)

    def call(
        self,
        action: str,
        body: Callable[[], T],
        *,
        timeout: float | None = None,
        event_ids: Sequence[str] = (),
    ) -> T:
        """``attempt``, with the library's errors, in which ``action`` tells what was being done."""
        seconds = self.timeout if timeout is None else timeout
        try:
            return self.attempt(body, deadline=time.monotonic() + seconds)
        except (Unanswered, PyMongoError) as error:
            raise translated(error, action, timeout=seconds, event_ids=event_ids) from (
                getattr(error, "cause", None) or error
            )

    def concern_of(self, write: Callable[[], object]) -> Any:
        """The write concern that this write carried when it was sent; None if it named none."""
        self._sent.here.concern = None
        write()
        return self._sent.here.concern

    def insert(self, name: str, documents: Sequence[RawBSONDocument]) -> list[Document]:
        """Insert documents into a collection; what the server says of those it refused.

        A refused document stops no other; each has its ``index``, ``code`` and ``errmsg``. One command and
        not ``insert_many``, which numbers its writes so that the driver may repeat them: the server keeps a
        record of that beside the documents, a quarter of what a lone insert costs. Repeating is ours
        (``attempt``), and safe, since an id is taken once.

        Raises:
            PyMongoError: what was sent may have been written.
        """
        return self.write({"insert": name}, "documents", documents)[1]

    def write(
        self, command: Document, field: str, documents: Sequence[RawBSONDocument]
    ) -> tuple[int, list[Document]]:
        """A command that writes, ``insert`` or ``update``, as ``insert`` says; also how many were written."""
        met, refused = 0, list[Document]()
        for first, portion in _portions(documents):
            answer = self.database.command(
                command | {"ordered": False, field: portion, "writeConcern": DURABLE.document}
            )
            if unmet := answer.get("writeConcernError"):
                raise WriteConcernError(unmet.get("errmsg", "not replicated"), unmet.get("code"), answer)
            met += answer["n"]
            refused += [each | {"index": first + each["index"]} for each in answer.get("writeErrors", ())]
        return met, refused

    def share(
        self,
        name: str,
        write: Callable[[Connection, Sequence[Item]], Sequence[Any]],
        items: Sequence[Item],
        action: str,
        *,
        size: int,
        timeout: float,
        event_ids: Sequence[str] = (),
    ) -> list[Any]:
        """Write items together with those of other threads under this name, with the library's errors."""
        lane = self._lanes.get(name) or self._lanes.setdefault(
            name,
            GroupCommit(lambda batch, by: self.attempt(lambda: write(self, batch), deadline=by)),
        )
        try:
            return lane.submit(items, size=size, timeout=timeout)
        except (Unanswered, PyMongoError) as error:
            raise translated(error, action, timeout=timeout, event_ids=event_ids) from (
                getattr(error, "cause", None) or error
            )


def _portions(documents: Sequence[RawBSONDocument]) -> Iterator[tuple[int, Sequence[RawBSONDocument]]]:
    """As much as one message may carry each time, with the index of its first."""
    first = size = 0
    for index, document in enumerate(documents):
        size += len(document.raw)
        if size > MAX_MESSAGE and index > first:
            yield first, documents[first:index]
            first, size = index, len(document.raw)
    yield first, documents[first:]


class Link:
    """The connection of whatever process asks: a forked child gets one of its own. Thread-safe."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()  # guards _connection and _closed; never held while connecting
        self._connection: Connection | None = None
        self._closed = False
        _links.add(self)

    @property
    def now(self) -> Connection:
        """The connection of this process."""
        connection = self._connection
        if connection is not None and connection.pid == os.getpid():
            return connection
        return self._open()

    def _open(self) -> Connection:
        if self._closed:
            raise Closed("the event store was closed; build a new one")
        fresh = self._connect()
        with self._lock:
            current = self._connection
            if current is None or current.pid != fresh.pid:
                _parked.append(current)
                self._connection = fresh
                return fresh
        fresh.client.close()
        return current

    def close(self) -> None:
        """Disconnect for good."""
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None and connection.pid == os.getpid():
            # Closing ends the sessions, for which the driver would wait 30 s for a server that is gone.
            with pymongo.timeout(CLOSE_TIMEOUT):
                connection.client.close()

    def after_fork(self) -> None:
        """In the child: the parent's client is left alone, and locks its threads held are new."""
        self._lock = threading.Lock()
        _parked.append(self._connection)
        self._connection = None


_links: weakref.WeakSet[Link] = weakref.WeakSet()
# Clients inherited by a fork: never used and never closed, since their sockets belong to the parent.
_parked: list[Connection | None] = []


def _after_fork() -> None:
    for link in list(_links):
        link.after_fork()


os.register_at_fork(after_in_child=_after_fork)
