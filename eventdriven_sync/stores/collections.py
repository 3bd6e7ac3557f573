"""Which collections there are, with their indexes, and how they are read and written: one table.

Indexes are few, since each costs every write of its collection; each says what it is for. Queries that
name no event or handler enumerate them first (a distinct scan of the leading field, one seek each), so
that one index per collection serves the lists of one, of some and of all, in order and without a sort.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any

import attrs
from bson.codec_options import CodecOptions
from pymongo import ASCENDING, DESCENDING, IndexModel, ReadPreference
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from eventdriven_sync.errors import ConfigurationError

Document = dict[str, Any]

EVENTS = "events"
OPERATIONS = "operations"
DELIVERIES = "deliveries"
HANDLERS = "handlers"
WORKERS = "workers"
LEASES = "leases"
STATS = "stats"
PUBLISHED = "published"
HOURS = "hours"
JOBS = "jobs"
AUDIT = "audit"
# An application may well have users and sessions of its own in this database.
USERS = "dashboard_users"
SESSIONS = "dashboard_sessions"
STRIKES = "dashboard_strikes"
IDEMPOTENCY = "idempotency"

# What the connection string says about these is ignored: an accepted event must survive the loss of the
# primary, and what decides (states, claims) must not be rolled back after it was read.
DURABLE = WriteConcern(w="majority", j=True)
COMMITTED = ReadConcern("majority")
SNAPSHOT = ReadConcern("snapshot")
CODEC: CodecOptions[Document] = CodecOptions(tz_aware=True, tzinfo=UTC)

DAY = 86400
STATS_KEPT = 30 * DAY
HOURS_KEPT = 400 * DAY
WORKERS_KEPT = DAY


@attrs.frozen(kw_only=True)
class Index:
    """An index: its fields in order, and what makes it special."""

    name: str
    keys: tuple[tuple[str, int], ...]
    partial: Mapping[str, Any] = attrs.field(factory=dict)
    expire_after: int | None = None

    def options(self) -> Document:
        """What MongoDB shows of it besides name and keys."""
        options: Document = {}
        if self.partial:
            options["partialFilterExpression"] = dict(self.partial)
        if self.expire_after is not None:
            options["expireAfterSeconds"] = self.expire_after
        return options

    def model(self) -> IndexModel:
        """As pymongo creates it."""
        return IndexModel(list(self.keys), name=self.name, **self.options())


INDEXES: Mapping[str, tuple[Index, ...]] = {
    EVENTS: (
        # The reconciler's comparison and counts per event name and version (covered), lists and pages by
        # time.
        Index(
            name="name_published",
            keys=(
                ("name", ASCENDING),
                ("published_at", DESCENDING),
                ("_id", DESCENDING),
                ("version", ASCENDING),
            ),
        ),
        # Everything that happened to one thing. Only events that have a key.
        Index(
            name="key_published",
            keys=(("key", ASCENDING), ("published_at", DESCENDING), ("_id", DESCENDING)),
            partial={"key": {"$gte": ""}},
        ),
        # The chain of an operation.
        Index(name="operation", keys=(("operation_id", ASCENDING),)),
    ),
    OPERATIONS: (
        # Lists and pages of all, of some and of one kind.
        Index(
            name="kind_started",
            keys=(("kind", ASCENDING), ("started_at", DESCENDING), ("_id", DESCENDING)),
        ),
        Index(
            name="name_started",
            keys=(("name", ASCENDING), ("started_at", DESCENDING), ("_id", DESCENDING)),
        ),
        Index(
            name="user_started",
            keys=(("user", ASCENDING), ("started_at", DESCENDING), ("_id", DESCENDING)),
            partial={"user": {"$gte": ""}},
        ),
        # Failed ones and running ones, which are few. (A partial index knows no "not equal".)
        Index(
            name="status_started",
            keys=(("status", ASCENDING), ("started_at", DESCENDING), ("_id", DESCENDING)),
            partial={"status": {"$lt": "succeeded"}},
        ),
    ),
    DELIVERIES: (
        # The recovery lane. Only deliveries that are pending, retrying or running have ``due_at``, so a
        # success at the first attempt never touches it. Handler first: what is due for handlers that
        # run elsewhere, or nowhere, is not looked at.
        Index(
            name="due",
            keys=(("handler", ASCENDING), ("due_at", ASCENDING)),
            partial={"due_at": {"$exists": True}},
        ),
        # Dead letters and other lists by handler and state, newest first; counts by state (covered).
        # A delivery of one event is found by ``_id``, which is made of handler and event id.
        Index(
            name="handler_state_created",
            keys=(
                ("handler", ASCENDING),
                ("state", ASCENDING),
                ("created_at", DESCENDING),
                ("_id", DESCENDING),
            ),
        ),
        # Dead letters by error, newest first, and their groups (covered, hence the state).
        Index(
            name="dead",
            keys=(
                ("state", ASCENDING),
                ("handler", ASCENDING),
                ("fingerprint", ASCENDING),
                ("created_at", DESCENDING),
                ("_id", DESCENDING),
                ("settled_at", ASCENDING),
            ),
            partial={"state": "dead"},
        ),
        # The progress of a group retry (covered), and lists of what it sent back.
        Index(
            name="job",
            keys=(
                ("job", ASCENDING),
                ("state", ASCENDING),
                ("created_at", DESCENDING),
                ("_id", DESCENDING),
            ),
            partial={"job": {"$gte": ""}},
        ),
        # The chain of an operation; with the state, so that waiting for a chain reads the index only.
        Index(name="operation_state", keys=(("operation_id", ASCENDING), ("state", ASCENDING))),
    ),
    HANDLERS: (),
    WORKERS: (
        # Live workers; those that died without a word disappear.
        Index(name="seen", keys=(("seen_at", ASCENDING),), expire_after=WORKERS_KEPT),
    ),
    LEASES: (),
    STATS: (
        # Statistics of a time span; bounded by their age.
        Index(name="minute", keys=(("minute", ASCENDING),), expire_after=STATS_KEPT),
    ),
    # Counts; ``_id`` is the begin in seconds since 1970. The index is for their end alone.
    PUBLISHED: (Index(name="minute", keys=(("minute", ASCENDING),), expire_after=STATS_KEPT),),
    HOURS: (Index(name="hour", keys=(("hour", ASCENDING),), expire_after=HOURS_KEPT),),
    JOBS: (
        # Lists and pages, and those that are not over.
        Index(
            name="over_created",
            keys=(("over", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)),
        ),
    ),
    AUDIT: (
        # Lists and pages; of one person, of one action, of what was done to one record.
        Index(name="at", keys=(("at", DESCENDING), ("_id", DESCENDING))),
        Index(name="who_at", keys=(("who", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING))),
        Index(name="action_at", keys=(("action", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING))),
        Index(name="touched_at", keys=(("ids", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING))),
    ),
    USERS: (
        # Those in a state by name; how many there are (covered).
        Index(name="state_name_role", keys=(("state", ASCENDING), ("_id", ASCENDING), ("role", ASCENDING))),
    ),
    SESSIONS: (
        # Ending all sessions of a user.
        Index(
            name="user_started", keys=(("user", ASCENDING), ("started_at", DESCENDING), ("_id", ASCENDING))
        ),
        # Those that have ended disappear.
        Index(name="idle_until", keys=(("idle_until", ASCENDING),), expire_after=0),
    ),
    STRIKES: (
        # Those that count no longer disappear.
        Index(name="until", keys=(("until", ASCENDING),), expire_after=0),
    ),
    IDEMPOTENCY: (
        # Removes what is absent already; nothing is found by it.
        Index(name="expires", keys=(("expires_at", ASCENDING),), expire_after=0),
    ),
}


def collection(database: Database[Any], name: str) -> Collection[Document]:
    """A collection of ours: primary, majority, journaled, aware datetimes, whatever the URI says."""
    return database.get_collection(
        name,
        codec_options=CODEC,
        read_preference=ReadPreference.PRIMARY,
        read_concern=COMMITTED,
        write_concern=DURABLE,
    )


def create_indexes(database: Database[Any]) -> None:
    """Create the indexes that are missing and verify those that exist.

    Raises:
        ConfigurationError: an index exists under our name with other settings; it is never changed.
    """
    for name, problems in compare_indexes(database).items():
        for index, difference in problems.items():
            if difference is not None:
                raise ConfigurationError(
                    f"index {index!r} of collection {database.name}.{name} is not ours: {difference}; drop "
                    f"it with db.{name}.dropIndex({index!r}), and it is created anew",
                    collection=name,
                    index=index,
                )
        missing = [index.model() for index in INDEXES[name] if index.name in problems]
        if missing:
            collection(database, name).create_indexes(missing)


def compare_indexes(database: Database[Any]) -> dict[str, dict[str, str | None]]:
    """Per collection the indexes that are not as they should be: how they differ, or None if missing."""
    return {name: _compare(collection(database, name), wanted) for name, wanted in INDEXES.items() if wanted}


def foreign_ttl(database: Database[Any]) -> list[str]:
    """Indexes on our collections that are not ours and delete documents by their age."""
    return [
        f"{name}.{index['name']}"
        for name, wanted in INDEXES.items()
        for index in collection(database, name).list_indexes()
        if "expireAfterSeconds" in index and index["name"] not in {each.name for each in wanted}
    ]


def _compare(target: Collection[Document], wanted: tuple[Index, ...]) -> dict[str, str | None]:
    found = {index["name"]: dict(index) for index in target.list_indexes()}
    return {
        index.name: _difference(index, found[index.name]) if index.name in found else None
        for index in wanted
        if index.name not in found or _difference(index, found[index.name])
    }


def _difference(wanted: Index, found: Document) -> str:
    ours: Document = {"key": dict(wanted.keys)} | wanted.options()
    theirs = {name: value for name, value in found.items() if name not in ("v", "name", "ns", "background")}
    theirs["key"] = dict(theirs["key"])
    fields = [name for name in (*ours, *theirs) if _items(ours.get(name)) != _items(theirs.get(name))]
    return ", ".join(
        f"{name} is {theirs.get(name)!r} and should be {ours.get(name)!r}" for name in dict.fromkeys(fields)
    )


def _items(value: Any) -> Any:
    # The order of an index's fields matters, and dicts compare without it.
    return list(value.items()) if isinstance(value, Mapping) else value
