"""Facts about the MongoDB server, for the doctor."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pymongo import ReadPreference
from pymongo.database import Database
from pymongo.errors import OperationFailure

from eventdriven_sync.envelope import utcnow
from eventdriven_sync.stores.collections import INDEXES, compare_indexes, foreign_ttl
from eventdriven_sync.stores.mongo_errors import text_of

Facts = dict[str, Any]


def gather(database: Database[Any], *, write_concern: Callable[[], Any]) -> Facts:
    """Everything the doctor asks. A fact this user may not read is None and named in ``unreadable``.

    Args:
        write_concern: writes something of no consequence and tells the concern that this really carried.
    """
    unreadable: dict[str, str] = {}

    def read(name: str, source: Callable[[], Any]) -> Any:
        try:
            return source()
        except OperationFailure as error:
            unreadable[name] = text_of(error)
            return None

    # The URI may prefer secondaries, and there may be none.
    database = database.with_options(read_preference=ReadPreference.PRIMARY)
    admin = database.client.admin
    before = utcnow()
    hello: Facts = admin.command("hello")
    status = read("storage_engine", lambda: admin.command("serverStatus", metrics=0, wiredTiger=0)) or {}
    config = read("replica_set", lambda: admin.command("replSetGetConfig")["config"])
    return {
        "version": read("version", lambda: admin.command("buildInfo")["version"]),
        "feature_version": read("feature_version", lambda: _feature_version(admin)),
        "database": database.name,
        "sharded": hello.get("msg") == "isdbgrid",
        "replica_set": hello.get("setName"),
        "primary": hello.get("primary"),
        "hosts": [*hello.get("hosts", ()), *hello.get("passives", ())],
        "arbiters": list(hello.get("arbiters", ())),
        "journaled_majority": (config or {}).get("writeConcernMajorityJournalDefault"),
        "default_write_concern": read("default_write_concern", lambda: _default_concern(admin)),
        "write_concern": read("write_concern", write_concern),
        "storage_engine": status.get("storageEngine", {}).get("name"),
        "server_time": _aware(hello["localTime"]),
        "clock_skew": _skew(_aware(hello["localTime"]), before, utcnow()),
        "oplog_hours": read("oplog_hours", lambda: _oplog_hours(database)),
        "indexes": read("indexes", lambda: compare_indexes(database)),
        "foreign_ttl": read("indexes", lambda: foreign_ttl(database)),
        "collections": {name: read(f"size of {name}", partial(_size, database, name)) for name in INDEXES},
        "unreadable": unreadable,
    }


def _feature_version(admin: Database[Any]) -> str:
    answer = admin.command("getParameter", featureCompatibilityVersion=1)
    version: str = answer["featureCompatibilityVersion"]["version"]
    return version


def _default_concern(admin: Database[Any]) -> Any:
    return admin.command("getDefaultRWConcern").get("defaultWriteConcern", {}).get("w", 1)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _skew(server: datetime, before: datetime, after: datetime) -> float:
    """Seconds the server is ahead of us; 0 if its time lies within the question."""
    if server > after:
        return (server - after).total_seconds()
    return min(0.0, (server - before).total_seconds())


def _oplog_hours(database: Database[Any]) -> float | None:
    local = database.client.get_database("local", read_preference=ReadPreference.PRIMARY)
    oplog = local["oplog.rs"]
    ends = [next(iter(oplog.find({}, {"ts": 1}).sort("$natural", way).limit(1)), None) for way in (1, -1)]
    first, last = ends
    if first is None or last is None:
        return None
    return float(last["ts"].time - first["ts"].time) / 3600


def _size(database: Database[Any], name: str) -> Facts | None:
    stages: list[Facts] = [{"$collStats": {"storageStats": {}}}]
    try:
        found = list(database[name].aggregate(stages))
    except OperationFailure as error:
        if error.code == 26:  # NamespaceNotFound: nothing was written yet
            return None
        raise
    stats = found[0]["storageStats"]
    return {
        "documents": stats["count"],
        "bytes": stats["size"],
        "storage_bytes": stats["storageSize"],
        "index_bytes": stats["totalIndexSize"],
    }
