"""The event store on MongoDB: opening, transactions, facts for the doctor."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import pymongo
from pymongo import MongoClient, ReadPreference, ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import PyMongoError

from eventdriven_sync.errors import (
    ConfigurationError,
    EventDrivenError,
    PublishOutcomeUnknown,
    StoreError,
)
from eventdriven_sync.records import delivery_id
from eventdriven_sync.stores.collections import (
    DELIVERIES,
    DURABLE,
    EVENTS,
    HANDLERS,
    LEASES,
    SNAPSHOT,
    STATS,
    create_indexes,
)
from eventdriven_sync.stores.connection import MAX_ITEMS, Connection, Link
from eventdriven_sync.stores.mongo_deliveries import MongoDeliveries
from eventdriven_sync.stores.mongo_directory import MongoDirectory
from eventdriven_sync.stores.mongo_errors import DUPLICATE_KEY, error_code, translated
from eventdriven_sync.stores.mongo_events import MongoEvents, stored_id
from eventdriven_sync.stores.mongo_figures import MongoFigures
from eventdriven_sync.stores.mongo_idempotency import MongoIdempotency
from eventdriven_sync.stores.mongo_info import gather
from eventdriven_sync.stores.mongo_jobs import MongoJobs
from eventdriven_sync.stores.mongo_people import MongoPeople
from eventdriven_sync.stores.mongo_trail import MongoTrail

log = logging.getLogger(__name__)

T = TypeVar("T")

# MongoDB 5.0, which is the first with update pipelines, ``$$NOW`` and dotted keys as we use them.
_MIN_WIRE_VERSION = 13
# For ending a transaction after its own time is over, so that it holds its documents no longer.
_ABORT_TIMEOUT = 0.3
_REPLICA_SET_CURE = (
    "transactions and majority-committed writes need a replica set, one of a single member will do: start "
    "mongod with --replSet rs0 and run rs.initiate() once"
)


class MongoStore:
    """The ``Store`` protocol on MongoDB. Thread-safe; a forked child connects anew by itself.

    Nothing is connected before the first use.

    Args:
        url: a MongoDB URI. What it says about write concern, retries and journaling is overruled.
        database: its name; the path of the URI if not given, ``eventdriven`` if that has none.
        namespace: the only one that may use this database; None does not ask.
        timeout: seconds for every call that takes no timeout of its own.
        max_pool_size: connections at most; more than the threads that use the store.

    Raises:
        ConfigurationError: on first use, if the URI cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        database: str | None = None,
        namespace: str | None = None,
        timeout: float = 15.0,
        max_pool_size: int = 120,
    ) -> None:
        self._namespace = namespace
        self._link = Link(
            partial(Connection, url, database=database, timeout=timeout, max_pool_size=max_pool_size)
        )
        # Plain attributes: publishing and settling go through them all the time.
        self.events = MongoEvents(self._link)
        self.deliveries = MongoDeliveries(self._link)
        self.directory = MongoDirectory(self._link)
        self.figures = MongoFigures(self._link)
        self.trail = MongoTrail(self._link)
        self.jobs = MongoJobs(self._link)
        self.people = MongoPeople(self._link)
        self.idempotency = MongoIdempotency(self._link)

    @property
    def database(self) -> Database[dict[str, Any]]:
        """The database, by the client that sessions of ``transaction`` belong to."""
        return self._link.now.database

    @property
    def client(self) -> MongoClient[dict[str, Any]]:
        """The client of this process; sessions of ``transaction`` belong to it."""
        return self._link.now.client

    def open(self, *, timeout: float) -> None:
        """Connect, create and verify the indexes. Safe to call again: done once per process.

        Raises:
            StoreUnavailable, StorePermissionDenied, ConfigurationError (not a replica set, too old, an index
            of ours with other settings, a database of another namespace).
        """
        connection = self._link.now
        if connection.opened:
            return
        deadline = time.monotonic() + timeout
        hello = connection.call(
            "while connecting", lambda: connection.client.admin.command("hello"), timeout=timeout
        )
        _check_server(hello)
        connection.call(
            "while creating indexes",
            lambda: create_indexes(connection.database),
            timeout=max(deadline - time.monotonic(), 0.001),
        )
        if self._namespace is not None:
            connection.call("while opening", lambda: self._own(connection), timeout=timeout)
        connection.opened = True

    def _own(self, connection: Connection) -> None:
        """One database, one namespace: records carry none, and the handlers of two would mix."""
        found = connection.collections[LEASES].find_one_and_update(
            {"_id": "namespace"},
            {"$setOnInsert": {"holder": self._namespace}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        assert found is not None
        if found["holder"] != self._namespace:
            raise ConfigurationError(
                f"database {connection.database.name!r} belongs to the namespace {found['holder']!r}, not to "
                f"{self._namespace!r}: give each namespace a database of its own",
                field="namespace",
                value=self._namespace,
            )

    @contextmanager
    def transaction(self, *, timeout: float) -> Iterator[ClientSession]:
        """A transaction (majority, journaled, snapshot): commits when the block ends, aborts if it raises.

        The deadline also ends what the block does with pymongo. The block is not run again: a conflict with
        another transaction is the caller's to repeat, ``run_transaction`` does.

        Raises:
            PublishOutcomeUnknown: the commit was sent and not answered in time.
            StoreUnavailable: it was not committed.
        """
        connection = self._link.now
        deadline = time.monotonic() + timeout
        with _session(connection, timeout) as session:
            with pymongo.timeout(timeout):
                yield session
            connection.call(
                "while committing a transaction",
                session.commit_transaction,
                timeout=max(deadline - time.monotonic(), 0.001),
                event_ids=connection.in_transaction(session),
            )

    def run_transaction(self, body: Callable[[Any], T], *, timeout: float) -> T:
        """Run ``body(session)`` in a transaction; run it again on transient errors within ``timeout``.

        Raises:
            PublishOutcomeUnknown, StoreUnavailable, and whatever ``body`` raises.
        """
        deadline = time.monotonic() + timeout
        pause = 0.005
        while True:
            try:
                with self.transaction(timeout=max(deadline - time.monotonic(), 0.001)) as session:
                    return body(session)
            except (PyMongoError, EventDrivenError) as error:
                if not _transient(error) or time.monotonic() + pause >= deadline:
                    raise
                log.debug("A transaction runs again: %s", error)
            # Without chance two that met would meet again.
            time.sleep(random.uniform(0, pause))
            pause = min(pause * 1.5, 0.5)

    def erase(self, handler: str, event_ids: Sequence[str]) -> None:
        """Remove what a probe left: a handler, events, their deliveries, its statistics of the last hour."""
        connection = self._link.now
        ids = list(event_ids)[:MAX_ITEMS]
        lately = self.directory.now() - timedelta(hours=1)
        doomed: dict[str, dict[str, Any]] = {
            HANDLERS: {"_id": handler},
            DELIVERIES: {"_id": {"$in": [delivery_id(handler, each) for each in ids]}},
            EVENTS: {"_id": {"$in": [stored_id(each) for each in ids]}},
            STATS: {"minute": {"$gte": lately}, "handler": handler},
        }
        for name, where in doomed.items():
            target = connection.collections[name]
            connection.call("while tidying up after a probe", partial(target.delete_many, where))

    def info(self) -> dict[str, Any]:
        """Facts about the server for the doctor: version, replica set, indexes, journaling, clock."""
        connection = self._link.now
        probe = partial(connection.collections[LEASES].delete_one, {"_id": "nobody"})
        return connection.call(
            "while reading facts about the server",
            lambda: gather(connection.database, write_concern=lambda: connection.concern_of(probe)),
        )

    def close(self) -> None:
        """Disconnect for good."""
        self._link.close()


def _check_server(hello: dict[str, Any]) -> None:
    if hello.get("maxWireVersion", 0) < _MIN_WIRE_VERSION:
        raise ConfigurationError(
            f"MongoDB is too old (wire version {hello.get('maxWireVersion')}): use 5.0 or newer",
            field="mongo",
        )
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise ConfigurationError(
            f"MongoDB at this URL is a standalone server: {_REPLICA_SET_CURE}", field="mongo"
        )


@contextmanager
def _session(connection: Connection, timeout: float) -> Iterator[ClientSession]:
    """A session with a transaction, aborted on the way out if it was not committed."""
    try:
        session = connection.client.start_session(causal_consistency=True)
        session.start_transaction(
            read_concern=SNAPSHOT, write_concern=DURABLE, read_preference=ReadPreference.PRIMARY
        )
    except PyMongoError as error:
        raise translated(error, "while beginning a transaction", timeout=timeout) from error
    try:
        yield session
    finally:
        connection.forget_transaction(session)
        with pymongo.timeout(_ABORT_TIMEOUT):
            # Aborts if it is still open, and never raises for a server that is gone.
            session.end_session()


def _transient(error: BaseException | None) -> bool:
    """Whether the transaction may be run again: it was not committed, and another try may go through."""
    if isinstance(error, PublishOutcomeUnknown):
        return False
    ours = isinstance(error, StoreError)
    while error is not None:
        if isinstance(error, PyMongoError):
            # An event of ours that somebody else stored after the snapshot: the next one shows it.
            seen = ours and error_code(error) == DUPLICATE_KEY
            return seen or error.has_error_label("TransientTransactionError")
        error = error.__cause__
    return False
