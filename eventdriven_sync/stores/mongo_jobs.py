"""Jobs in MongoDB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from bson import ObjectId

from eventdriven_sync.jobs import OVER, RetryJob
from eventdriven_sync.stores.collections import JOBS, Document
from eventdriven_sync.stores.connection import Link
from eventdriven_sync.stores.mongo_events import beyond, clean, stored_id

_DERIVED = ("id", "progress")


class MongoJobs:
    """The ``Jobs`` protocol on MongoDB. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def add(self, job: RetryJob) -> None:
        """Store a new job."""
        fields = {
            name: value for name, value in attrs.asdict(job, recurse=False).items() if name not in _DERIVED
        }
        document = _plain(fields) | {"over": job.over}
        target = self._link.now.collections[JOBS]
        self._link.now.call(
            "while storing a job",
            lambda: target.replace_one({"_id": ObjectId(job.id)}, document, upsert=True),
        )

    def get(self, job_id: str) -> RetryJob | None:
        """The job, or None."""
        target = self._link.now.collections[JOBS]
        found = self._link.now.call(
            "while reading a job", lambda: target.find_one({"_id": stored_id(job_id)})
        )
        return _job(found) if found else None

    def find(self, *, over: bool | None = None, after: str | None = None, limit: int) -> list[RetryJob]:
        """Jobs, newest first; only those that are over, or are not, if asked for."""
        return self._link.now.call("while reading jobs", lambda: self._find(over, after, limit))

    def _find(self, over: bool | None, after: str | None, limit: int) -> list[RetryJob]:
        if limit <= 0:
            return []
        target = self._link.now.collections[JOBS]
        where: Document = {"over": {"$in": [True, False]} if over is None else over}
        if after is not None:
            last = target.find_one({"_id": stored_id(after)}, {"created_at": 1})
            if last is None:
                return []
            beyond(where, "created_at", last, -1)
        newest = target.find(where).sort([("created_at", -1), ("_id", -1)]).limit(limit)
        return [_job(document) for document in newest]

    def change(self, job_id: str, fields: Mapping[str, Any]) -> bool:
        """Change fields of a job unless it is over. False if it is, or is unknown."""
        document = _plain(fields)
        if "state" in fields:
            document["over"] = fields["state"] in OVER
        target = self._link.now.collections[JOBS]
        where = {"_id": stored_id(job_id), "over": False}
        result = self._link.now.call(
            "while changing a job", lambda: target.update_one(where, {"$set": document})
        )
        return result.matched_count == 1


def _plain(fields: Mapping[str, Any]) -> Document:
    document = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    texts = {name: clean(value, 2000) for name, value in document.items() if isinstance(value, str)}
    return document | texts


def _job(document: Mapping[str, Any]) -> RetryJob:
    fields = {name: value for name, value in document.items() if name not in ("_id", "over", "canaries")}
    return RetryJob(id=str(document["_id"]), canaries=tuple(document["canaries"]), **fields)
