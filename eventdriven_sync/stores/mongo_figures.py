"""Counts and groups in MongoDB: each one aggregation over an index, in bounded time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pymongo.collection import Collection

from eventdriven_sync.figures import (
    DURATION_BUCKETS_MS,
    MAX_GROUPS,
    MAX_LINKS,
    DeliveryLink,
    EventLink,
    HandledCount,
    LetterGroup,
    Links,
    PublishedCount,
)
from eventdriven_sync.stores.collections import DELIVERIES, EVENTS, STATS, Document
from eventdriven_sync.stores.mongo_counts import MongoCounts
from eventdriven_sync.stores.mongo_events import span

OPEN = ("pending", "retrying", "running")
COLUMNS = ("succeeded", "failed", "dead", "discarded")

# Groups dead letters of a handler; reads nothing but the index.
_GROUP: Document = {
    "$group": {
        "_id": "$fingerprint",
        "count": {"$sum": 1},
        "first_at": {"$min": "$created_at"},
        "last_at": {"$max": "$settled_at"},
    }
}
_ERROR = {"error_type": 1, "error_message": 1}
_EVENT_LINK = {"name": 1, "parent_ids": 1, "source": 1, "operation_id": 1}
_DELIVERY_LINK = {"_id": 0, "event_id": 1, "handler": 1, "state": 1, "failed": 1, "duration_ms": 1}


class MongoFigures(MongoCounts):
    """The ``Figures`` protocol on MongoDB. Thread-safe."""

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

        return self.ask(EVENTS, "counts of events", count)

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
        return self.ask(STATS, "statistics", lambda stats: list(stats.aggregate(stages)))

    def oldest_open(self) -> datetime | None:
        """``created_at`` of the oldest delivery that is pending, running or retrying."""

        def find(deliveries: Collection[Document]) -> datetime | None:
            oldest = [_oldest(deliveries, name) for name in deliveries.distinct("handler")]
            return min(filter(None, oldest), default=None)

        return self.ask(DELIVERIES, "the oldest delivery", find)

    def letter_groups(
        self,
        handlers: Sequence[str] | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[LetterGroup]:
        """Dead letters by handler and fingerprint, the largest group first."""

        def group(deliveries: Collection[Document]) -> list[LetterGroup]:
            # One handler at a time: naming several would cost more than reading all of the index.
            rows: list[Document] = []
            for name in deliveries.distinct("handler") if handlers is None else sorted(set(handlers)):
                where = {"state": "dead", "handler": name} | span("created_at", since, until)
                found = deliveries.aggregate([{"$match": where}, _GROUP], hint="dead")
                rows += [{"handler": name} | row for row in found]
            rows.sort(key=lambda row: (-row["count"], row["handler"], row["_id"] or ""))
            return [_letter_group(row, _newest(deliveries, row)) for row in rows[:MAX_GROUPS]]

        return self.ask(DELIVERIES, "groups of dead letters", group)

    def links(self, name: str, *, since: datetime, until: datetime, limit: int) -> Links:
        """The newest events of a name published in ``[since, until)``, with their chains."""
        collections = self._link.now.collections

        def read(events: Collection[Document]) -> Links:
            where = {"name": name} | span("published_at", since, until)
            newest = [("published_at", -1), ("_id", -1)]
            roots = list(events.find(where, _EVENT_LINK).sort(newest).limit(limit))
            chains = {"operation_id": {"$in": list({root["operation_id"] for root in roots})}}
            inside = list(events.find(chains, _EVENT_LINK).limit(MAX_LINKS + 1))
            found = list(collections[DELIVERIES].find(chains, _DELIVERY_LINK).limit(MAX_LINKS + 1))
            return Links(
                roots=tuple(map(_event_link, roots)),
                events=tuple(map(_event_link, inside[:MAX_LINKS])),
                deliveries=tuple(map(_delivery_link, found[:MAX_LINKS])),
                truncated=max(len(inside), len(found)) > MAX_LINKS,
            )

        return self.ask(EVENTS, "chains of events", read)


def _event_link(document: Mapping[str, Any]) -> EventLink:
    return EventLink(
        id=str(document["_id"]),
        name=document["name"],
        parent_ids=tuple(map(str, document["parent_ids"])),
        source=document["source"],
    )


def _delivery_link(document: Mapping[str, Any]) -> DeliveryLink:
    return DeliveryLink(
        event_id=str(document["event_id"]),
        handler=document["handler"],
        state=document["state"],
        failed=document["failed"],
        duration_ms=document.get("duration_ms"),
    )


def _oldest(deliveries: Collection[Document], handler: str) -> datetime | None:
    where = {"handler": handler, "state": {"$in": list(OPEN)}}
    order = [("created_at", 1), ("_id", 1)]
    found = next(iter(deliveries.find(where, {"created_at": 1}).sort(order).limit(1)), None)
    return found["created_at"] if found else None


def _newest(deliveries: Collection[Document], row: Mapping[str, Any]) -> Document:
    """The newest letter of a group, as its example."""
    where = {"state": "dead", "handler": row["handler"], "fingerprint": row["_id"]}
    newest = [("created_at", -1), ("_id", -1)]
    return deliveries.find_one(where, _ERROR, sort=newest, hint="dead") or {}


def _letter_group(row: Mapping[str, Any], example: Mapping[str, Any]) -> LetterGroup:
    return LetterGroup(
        handler=row["handler"],
        fingerprint=row["_id"] or "",
        error_type=example.get("error_type", ""),
        message=example.get("error_message", ""),
        count=row["count"],
        first_at=row["first_at"],
        last_at=row["last_at"],
    )
