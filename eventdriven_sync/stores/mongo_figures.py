"""Counts and groups in MongoDB: each one aggregation over an index, in bounded time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pymongo.collection import Collection

from eventdriven_sync.figures import (
    DURATION_BUCKETS_MS,
    MAX_GROUPS,
    HandledCount,
    LetterGroup,
    PublishedCount,
)
from eventdriven_sync.stores.collections import DELIVERIES, EVENTS, STATS, Document
from eventdriven_sync.stores.connection import Link
from eventdriven_sync.stores.mongo_errors import bounded
from eventdriven_sync.stores.mongo_events import span

T = TypeVar("T")

OPEN = ("pending", "retrying", "running")
COLUMNS = ("succeeded", "failed", "dead", "discarded")


class MongoFigures:
    """The ``Figures`` protocol on MongoDB. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def published(self, *, since: datetime, until: datetime) -> list[PublishedCount]:
        """Events published in ``[since, until)`` by minute, name and version."""

        def count(events: Collection[Document]) -> list[PublishedCount]:
            minute = {"$dateTrunc": {"date": "$published_at", "unit": "minute"}}
            stages: list[Document] = [
                {"$match": {"name": {"$in": events.distinct("name")}} | span("published_at", since, until)},
                {
                    "$group": {
                        "_id": {"minute": minute, "name": "$name", "version": "$version"},
                        "count": {"$sum": 1},
                    }
                },
            ]
            counts = [PublishedCount(count=row["count"], **row["_id"]) for row in events.aggregate(stages)]
            return sorted(counts, key=lambda count: (count.minute, count.name, count.version))

        return self._ask(EVENTS, "counts of events", count)

    def handled_by_minute(self, *, since: datetime, until: datetime) -> list[HandledCount]:
        """Attempts settled in ``[since, until)`` by minute, oldest first."""
        sums: Document = {name: {"$sum": f"${name}"} for name in COLUMNS}
        rows = self._handled(since, until, {"minute": "$minute"}, sums)
        return [HandledCount(**row.pop("_id"), **row) for row in rows]

    def handled_by_subject(self, *, since: datetime, until: datetime) -> list[HandledCount]:
        """Attempts settled in ``[since, until)`` by event name and handler."""
        sums: Document = {name: {"$sum": f"${name}"} for name in COLUMNS}
        buckets = [f"bucket{number}" for number in range(len(DURATION_BUCKETS_MS) + 1)]
        sums |= {
            name: {"$sum": {"$arrayElemAt": ["$durations", number]}} for number, name in enumerate(buckets)
        }
        rows = self._handled(since, until, {"event_name": "$event_name", "handler": "$handler"}, sums)
        return [
            HandledCount(
                **row["_id"],
                **{name: row[name] for name in COLUMNS},
                durations=tuple(row[name] for name in buckets),
            )
            for row in rows
        ]

    def _handled(self, since: datetime, until: datetime, key: Document, sums: Document) -> list[Document]:
        stages: list[Document] = [
            {"$match": span("minute", since, until)},
            {"$group": {"_id": key} | sums},
            {"$sort": {"_id": 1}},
        ]
        return self._ask(STATS, "statistics", lambda stats: list(stats.aggregate(stages)))

    def oldest_open(self) -> datetime | None:
        """``created_at`` of the oldest delivery that is pending, running or retrying."""

        def find(deliveries: Collection[Document]) -> datetime | None:
            oldest = [_oldest(deliveries, name) for name in deliveries.distinct("handler")]
            return min(filter(None, oldest), default=None)

        return self._ask(DELIVERIES, "the oldest delivery", find)

    def letter_groups(
        self,
        handlers: Sequence[str] | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[LetterGroup]:
        """Dead letters by handler and fingerprint, the largest group first."""

        def group(deliveries: Collection[Document]) -> list[LetterGroup]:
            names = deliveries.distinct("handler") if handlers is None else list(handlers)
            where = {"state": "dead", "handler": {"$in": names}} | span("created_at", since, until)
            rows = list(deliveries.aggregate(_group_stages(where), hint="dead"))
            newest = {"_id": {"$in": [row["newest"]["id"] for row in rows]}}
            shown = deliveries.find(newest, {"error_type": 1, "error_message": 1})
            examples = {document["_id"]: document for document in shown}
            return [_letter_group(row, examples.get(row["newest"]["id"], {})) for row in rows]

        return self._ask(DELIVERIES, "groups of dead letters", group)

    def _ask(self, name: str, question: str, body: Callable[[Collection[Document]], T]) -> T:
        target = self._link.now.collections[name]

        def ask() -> T:
            with bounded(question):
                return body(target)

        return self._link.now.call(f"while looking for {question}", ask)


def _oldest(deliveries: Collection[Document], handler: str) -> datetime | None:
    where = {"handler": handler, "state": {"$in": list(OPEN)}}
    order = [("created_at", 1), ("_id", 1)]
    found = next(iter(deliveries.find(where, {"created_at": 1}).sort(order).limit(1)), None)
    return found["created_at"] if found else None


def _group_stages(where: Document) -> list[Document]:
    """The stages that group dead letters; they read nothing but the index."""
    return [
        {"$match": where},
        {
            "$group": {
                "_id": {"handler": "$handler", "fingerprint": "$fingerprint"},
                "count": {"$sum": 1},
                "first_at": {"$min": "$created_at"},
                "last_at": {"$max": "$settled_at"},
                "newest": {"$max": {"at": "$created_at", "id": "$_id"}},
            }
        },
        {"$sort": {"count": -1, "_id": 1}},
        {"$limit": MAX_GROUPS},
    ]


def _letter_group(row: Mapping[str, Any], example: Mapping[str, Any]) -> LetterGroup:
    return LetterGroup(
        handler=row["_id"]["handler"],
        fingerprint=row["_id"].get("fingerprint", ""),
        error_type=example.get("error_type", ""),
        message=example.get("error_message", ""),
        count=row["count"],
        first_at=row["first_at"],
        last_at=row["last_at"],
    )
