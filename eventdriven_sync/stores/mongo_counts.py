"""Counts kept in MongoDB: a document for each minute, and one for each hour that is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import attrs
from pymongo import ReplaceOne
from pymongo.collection import Collection

from eventdriven_sync.figures import HandledCount, HourCount, PublishedCount
from eventdriven_sync.stores.collections import EVENTS, HOURS, PUBLISHED, Document
from eventdriven_sync.stores.connection import Link
from eventdriven_sync.stores.mongo_errors import bounded

T = TypeVar("T")

MINUTE = timedelta(minutes=1)


class MongoCounts:
    """The counts that ``MongoFigures`` keeps. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def oldest_published(self) -> datetime | None:
        """When the oldest stored event was published."""

        def find(events: Collection[Document]) -> datetime | None:
            oldest = [_oldest(events, name) for name in events.distinct("name")]
            return min(filter(None, oldest), default=None)

        return self.ask(EVENTS, "the oldest event", find)

    def save_published(self, counts: Sequence[PublishedCount], *, since: datetime, until: datetime) -> None:
        """Keep the counts of every minute of ``[since, until)``, also of those without events."""
        minutes = [since + number * MINUTE for number in range((until - since) // MINUTE)]
        rows: dict[datetime, list[list[Any]]] = {minute: [] for minute in minutes}
        for each in counts:
            rows[each.minute].append([each.name, each.version, each.count])
        writes = [
            ReplaceOne({"_id": int(minute.timestamp())}, {"minute": minute, "names": names}, upsert=True)
            for minute, names in rows.items()
        ]
        target = self._link.now.collections[PUBLISHED]
        if writes:
            self._link.now.call("while keeping counts", lambda: target.bulk_write(writes, ordered=False))

    def saved_published(self, *, since: datetime, until: datetime) -> list[PublishedCount]:
        """Counts kept, of minutes in ``[since, until)``, oldest first."""
        rows = self._kept(PUBLISHED, since, until)
        return [
            PublishedCount(minute=row["minute"], name=name, version=version, count=count)
            for row in rows
            for name, version, count in row["names"]
        ]

    def counted_until(self) -> datetime | None:
        """The end of the last minute kept."""
        last = self._last(PUBLISHED)
        return last["minute"] + MINUTE if last else None

    def save_hour(self, hour: HourCount) -> None:
        """Keep an hour, or replace it."""
        target = self._link.now.collections[HOURS]
        document = _hour_document(hour)
        self._link.now.call(
            "while keeping counts",
            lambda: target.replace_one({"_id": int(hour.hour.timestamp())}, document, upsert=True),
        )

    def hours(self, *, since: datetime, until: datetime) -> list[HourCount]:
        """Hours kept that begin in ``[since, until)``, oldest first."""
        return [_hour(row) for row in self._kept(HOURS, since, until)]

    def last_hour(self) -> datetime | None:
        """The begin of the last hour kept."""
        last = self._last(HOURS)
        return last["hour"] if last else None

    def _kept(self, name: str, since: datetime, until: datetime) -> list[Document]:
        where = {"_id": {"$gte": since.timestamp(), "$lt": until.timestamp()}}
        return self.ask(name, "counts", lambda kept: list(kept.find(where).sort("_id", 1)))

    def _last(self, name: str) -> Document | None:
        return self.ask(name, "counts", lambda kept: kept.find_one({}, sort=[("_id", -1)]))

    def ask(self, name: str, question: str, body: Callable[[Collection[Document]], T]) -> T:
        """What ``body`` reads from a collection, in bounded time."""
        target = self._link.now.collections[name]

        def ask() -> T:
            with bounded(question):
                return body(target)

        return self._link.now.call(f"while looking for {question}", ask)


def _oldest(events: Collection[Document], name: str) -> datetime | None:
    oldest = [("published_at", 1), ("_id", 1)]
    found = events.find_one({"name": name}, {"published_at": 1}, sort=oldest)
    return found["published_at"] if found else None


def _hour_document(hour: HourCount) -> Document:
    return {
        "hour": hour.hour,
        "published": list(hour.published),
        "attempts": [
            [(each.minute or hour.hour), each.succeeded, each.failed, each.dead, each.discarded]
            for each in hour.attempts
        ],
        "names": [[each.name, each.version, each.count] for each in hour.names],
        "subjects": [
            {name: value for name, value in attrs.asdict(each).items() if name != "minute"}
            for each in hour.subjects
        ],
    }


def _hour(row: Mapping[str, Any]) -> HourCount:
    return HourCount(
        hour=row["hour"],
        published=tuple(row["published"]),
        attempts=tuple(
            HandledCount(minute=minute, succeeded=succeeded, failed=failed, dead=dead, discarded=discarded)
            for minute, succeeded, failed, dead, discarded in row["attempts"]
        ),
        names=tuple(
            PublishedCount(minute=row["hour"], name=name, version=version, count=count)
            for name, version, count in row["names"]
        ),
        subjects=tuple(
            HandledCount(**{**each, "durations": tuple(each["durations"])}) for each in row["subjects"]
        ),
    )
