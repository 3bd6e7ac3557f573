"""Fill a MongoDB with linked data as an application of several modules leaves it: for measuring the monitor.

    python -m benchmarks.seed_store mongodb://127.0.0.1:27017/seeded?replicaSet=rs0 --events 1000000

Operations set off trees of events, events have deliveries, some of them dead with their failures, and there
are statistics of every minute. The same seed gives the same data. The database must be empty.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pymongo
from bson import ObjectId

from eventdriven_sync.counting import Counting
from eventdriven_sync.envelope import utcnow
from eventdriven_sync.figures import DURATION_BUCKETS_MS
from eventdriven_sync.fingerprint import fingerprint
from eventdriven_sync.records import HandlerRecord
from eventdriven_sync.stores.collections import DELIVERIES, EVENTS, OPERATIONS, STATS
from eventdriven_sync.stores.mongo import MongoStore

Document = dict[str, Any]

BATCH = 5000
LARGE_CHAINS = 10
LARGE_CHAIN = 1000
LARGE = "catalogue.import"
STACK = (
    "Traceback (most recent call last):\n" + '  File "shop/mail.py", line 12, in send\n    connect()\n' * 12
)
WORKERS = ("web-1-a1b2c3", "web-2-d4e5f6")

# Event name -> its handlers, each with the event it answers with.
HANDLERS: dict[str, dict[str, str]] = {
    "User.registered": {"Blog.greet": "Blog.userDuplicated", "Mail.welcome": "Mail.queued"},
    "User.nameUpdated": {"Blog.rename": "Blog.userUpdated", "Comment.rename": "Comment.userUpdated"},
    "Order.placed": {"Stock.reserve": "Stock.reserved", "Billing.charge": "Billing.charged"},
    "Post.published": {"Search.index": "Search.indexed", "Mail.notify": "Mail.queued"},
    "Mail.queued": {"Mail.send": ""},
    "Billing.charged": {"Order.confirm": "Order.confirmed"},
    "Order.confirmed": {"Mail.confirm": ""},
    "Stock.reserved": {},
    "Blog.userDuplicated": {},
    "Blog.userUpdated": {"Search.update": ""},
    "Comment.userUpdated": {"Search.refresh": ""},
    "Search.indexed": {},
}
ROOTS = ("User.registered", "User.nameUpdated", "Order.placed", "Post.published")
KINDS = ("http",) * 90 + ("cli",) * 5 + ("script",) * 4 + ("cron",)
ERRORS = (
    ("SMTPServerDisconnected", "Connection unexpectedly closed by {host}"),
    ("KeyError", "user {number} is unknown"),
    ("TimeoutError", "no answer from 'https://{host}/pay' within {number} ms"),
    ("IntegrityError", 'duplicate key value "{number}" of order {id}'),
    ("ConnectionRefusedError", "[Errno 111] Connection refused ({host}:{number})"),
)


class Seeder:
    """Makes operations with their chains, in order of time."""

    def __init__(self, sizes: argparse.Namespace, now: datetime) -> None:
        self.random = random.Random(sizes.seed)
        self.sizes = sizes
        self.span = timedelta(days=sizes.days)
        self.begin = now - self.span
        self.now = now
        self.events: list[Document] = []
        self.deliveries: list[Document] = []
        self.dead_left = sizes.dead_letters
        self.made_events = 0

    def id_at(self, moment: datetime) -> ObjectId:
        return ObjectId(f"{int(moment.timestamp()):08x}{self.random.getrandbits(64):016x}")

    def operations(self) -> Iterator[Document]:
        """Operations; their events and deliveries gather in the lists beside."""
        for number in range(self.sizes.operations):
            part = (number + self.random.random()) / self.sizes.operations
            moment = self.begin + self.span * part
            yield self.operation(moment, number)

    def operation(self, moment: datetime, number: int) -> Document:
        chance = self.random
        operation_id, failed = self.id_at(moment), chance.random() < 0.01
        root = ROOTS[number % len(ROOTS)]
        left = self.sizes.events - self.made_events
        share = left / max(1, self.sizes.operations - number)
        large = number < LARGE_CHAINS and left > 20 * LARGE_CHAIN
        self.chain(operation_id, root, moment, size=LARGE_CHAIN if large else round(share))
        name = f"{root.partition('.')[0].lower()}.{('create', 'update', 'import')[number % 3]}"
        return {
            "_id": operation_id,
            "name": LARGE if large else name,
            "kind": chance.choice(KINDS),
            "variables": {"page": number % 100, "form": {"title": f"No {number}"}},
            "details": {"method": "POST", "path": "/users/<id>", "status_code": 500 if failed else 200},
            "user": f"user-{chance.randrange(5000)}" if number % 4 else None,
            "parent_id": None,
            "status": "failed" if failed else "succeeded",
            "error": self.failure(moment, 1) if failed else None,
            "started_at": moment,
            "finished_at": moment + timedelta(milliseconds=chance.randrange(5, 400)),
        }

    def chain(self, operation_id: ObjectId, root: str, moment: datetime, *, size: int) -> None:
        """A tree of events: answers of handlers first, further roots where those do not suffice."""
        waiting: list[tuple[str, datetime, list[ObjectId], str, int]] = []
        for made in range(size):
            name, at, parents, source, depth = waiting.pop(0) if waiting else (root, moment, [], "", 0)
            event = self.event(operation_id, name, at + timedelta(milliseconds=made), parents, source, depth)
            for handler, answer in HANDLERS[name].items():
                delivery = self.delivery(event, handler)
                if answer and delivery["state"] == "succeeded":
                    after = event["published_at"] + timedelta(milliseconds=20)
                    waiting.append((answer, after, [event["_id"]], handler, depth + 1))

    def event(
        self,
        operation_id: ObjectId,
        name: str,
        at: datetime,
        parents: list[ObjectId],
        source: str,
        depth: int,
    ) -> Document:
        user = self.random.randrange(100_000)
        event = {
            "_id": self.id_at(at),
            "name": name,
            "version": 2 if self.random.random() < 0.2 else 1,
            "data": {
                "user_id": str(user),
                "first_name": "Ada",
                "last_name": f"Lovelace {user}",
                "address": {"city": "Ulm", "zip": "89073"},
                "amount": user / 100,
                "tags": ["new", "web"],
            },
            "published_at": at,
            "operation_id": operation_id,
            "parent_ids": parents,
            "source": source,
            "key": str(user),
            "depth": depth,
            "trace": {},
        }
        self.events.append(event)
        self.made_events += 1
        return event

    def delivery(self, event: Document, handler: str) -> Document:
        begun = event["published_at"] + timedelta(milliseconds=self.random.randrange(1, 30))
        duration = round(self.random.lognormvariate(2.5, 1.0), 3)
        delivery: Document = {
            "_id": f"{handler}:{event['_id']}",
            "handler": handler,
            "event_id": event["_id"],
            "event_name": event["name"],
            "operation_id": event["operation_id"],
            "state": "succeeded",
            "attempts": 1,
            "failed": 0,
            "generation": 0,
            "lost": 0,
            "created_at": begun,
            "started_at": begun,
            "settled_at": begun + timedelta(milliseconds=duration),
            "duration_ms": duration,
            "token": f"{self.random.getrandbits(96):024x}",
            "worker": self.random.choice(WORKERS),
        }
        if self.random.random() < 1.3 * self.dead_left / max(1, self.sizes.events - self.made_events + 1):
            self.die(delivery, event)
        self.deliveries.append(delivery)
        return delivery

    def die(self, delivery: Document, event: Document) -> None:
        if self.dead_left <= 0:
            return
        self.dead_left -= 1
        failures = [self.failure(delivery["started_at"], attempt) for attempt in (1, 2, 3)]
        last = failures[-1]
        delivery |= {
            "state": "dead",
            "attempts": 3,
            "failed": 3,
            "reason": "attempts_exhausted",
            "failures": failures,
            "error_type": last["error_type"],
            "error_message": last["message"],
            "fingerprint": fingerprint(last["error_type"], last["message"]),
            "event": event,
        }

    def failure(self, moment: datetime, attempt: int) -> Document:
        error_type, text = self.random.choice(ERRORS)
        number, host = self.random.randrange(10_000), f"10.0.0.{self.random.randrange(255)}"
        message = text.format(number=number, host=host, id=f"{self.random.getrandbits(96):024x}")
        return {
            "error_type": error_type,
            "message": message,
            "traceback": f"{STACK}{error_type}: {message}",
            "failed_at": moment + timedelta(seconds=attempt * 10),
            "attempt": attempt,
            "generation": 0,
            "worker": WORKERS[0],
            "duration_ms": 30.0,
        }

    def stats(self) -> Iterator[Document]:
        """A document for each minute, event and handler, of each worker."""
        minutes = int(self.span.total_seconds() // 60)
        first = self.begin.replace(second=0, microsecond=0)
        for number in range(minutes + 1):
            minute = first + timedelta(minutes=number)
            for event_name, handlers in HANDLERS.items():
                for handler in handlers:
                    for worker in WORKERS:
                        yield self.stat(minute, event_name, handler, worker)

    def stat(self, minute: datetime, event_name: str, handler: str, worker: str) -> Document:
        durations = [0] * (len(DURATION_BUCKETS_MS) + 1)
        count = self.random.randrange(40)
        for bucket, part in ((3, 0.5), (4, 0.3), (5, 0.15), (7, 0.05)):
            durations[bucket] = round(count * part)
        return {
            "_id": f"{int(minute.timestamp() // 60)}:{event_name}:{handler}:{worker}",
            "minute": minute,
            "event_name": event_name,
            "handler": handler,
            "succeeded": sum(durations),
            "failed": count // 10,
            "dead": count // 30,
            "discarded": 0,
            "durations": durations,
        }


def seed(url: str, sizes: argparse.Namespace) -> Document:
    """Fill the database of the URL; how many documents of each kind."""
    store = MongoStore(url)
    store.open(timeout=30)
    now = utcnow()
    with pymongo.MongoClient[Document](url) as client:
        database = client.get_default_database()
        if database[EVENTS].find_one():
            sys.exit(f"database {database.name!r} has events already: give the name of an empty one")
        seeder = Seeder(sizes, now)
        operations: list[Document] = []
        for operation in seeder.operations():
            operations.append(operation)
            if len(seeder.events) >= BATCH:
                _flush(database, seeder, operations)
        _flush(database, seeder, operations)
        stats: list[Document] = []
        for row in seeder.stats():
            stats.append(row)
            if len(stats) >= BATCH:
                _insert(database[STATS], stats)
        _insert(database[STATS], stats)
        names = (EVENTS, OPERATIONS, DELIVERIES, STATS)
        counts: Document = {name: database[name].estimated_document_count() for name in names}
        counts["dead"] = database[DELIVERIES].count_documents({"state": "dead"}, hint="dead")
    _register(store, seeder.begin)
    counting = Counting(store)
    while counting.round():
        pass
    store.close()
    return counts


def _flush(database: Any, seeder: Seeder, operations: list[Document]) -> None:
    _insert(database[OPERATIONS], operations)
    _insert(database[EVENTS], seeder.events)
    _insert(database[DELIVERIES], seeder.deliveries)


def _insert(target: Any, documents: list[Document]) -> None:
    if documents:
        target.insert_many(documents, ordered=False)
        documents.clear()


def _register(store: MongoStore, since: datetime) -> None:
    by_handler: dict[str, list[str]] = {}
    for event_name, handlers in HANDLERS.items():
        for handler in handlers:
            by_handler.setdefault(handler, []).append(event_name)
    store.directory.register(
        [
            HandlerRecord(
                name=name,
                events=tuple(sorted(events)),
                starts_at=since,
                registered_at=since,
                seen_at=utcnow(),
                location=f"{name.lower()}:1",
                policy="5 attempts",
            )
            for name, events in by_handler.items()
        ]
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes, as options."""
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--dead-letters", type=int, default=10_000)
    parser.add_argument("--days", type=float, default=2.0, help="over which the events are spread")
    parser.add_argument("--seed", type=int, default=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url", help="of MongoDB, with a database")
    arguments(parser)
    given = parser.parse_args()
    began = time.perf_counter()
    counts = seed(given.url, given)
    print(f"{counts} in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
