"""How fast the monitor answers on a large store: p50 and p95 of every list, chain and figure.

    python -m benchmarks.monitor_queries --events 1000000 --operations 200000 --dead-letters 100000

Without ``--url`` it starts a mongod of its own, fills it with ``seed_store`` and removes it afterwards. With
``--url`` it reads what is there. Tables go to the error output, one line of JSON to the output.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from benchmarks.harness import machine
from benchmarks.seed_store import HANDLERS, LARGE, LARGE_CHAIN, arguments, seed
from eventdriven_sync import EventBus
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.errors import QueryTooSlow
from eventdriven_sync.monitor import Monitor

Question = Callable[[], object]


class Samples:
    """Ids and values that exist, spread over everything stored."""

    def __init__(self, monitor: Monitor, count: int, begin: datetime) -> None:
        self.monitor = monitor
        self.operations = self._spread(lambda after: monitor.operations(limit=200, after=after), count)
        self.letters = self._spread(lambda after: monitor.letters(limit=200, after=after), count)
        self.events = self._spread(lambda after: monitor.events(limit=200, after=after), count)
        self.groups = monitor.letter_groups()
        self.begin = begin

    def _spread(self, page: Callable[[str | None], Any], count: int) -> list[Any]:
        """Some of the newest, and some from 50 pages further on."""
        found, after = [], None
        for _ in range(50):
            part = page(after)
            found += part.items
            after = part.after
            if after is None:
                break
        return found[:: max(1, len(found) // count)]


def questions(monitor: Monitor, samples: Samples) -> dict[str, list[Question]]:
    """For each kind of question several, so that none is answered from a warm page alone."""
    newest = samples.events[0].published_at
    hour, day = newest - timedelta(hours=1), newest - timedelta(days=1)
    operations, letters, events, groups = samples.operations, samples.letters, samples.events, samples.groups
    users = [operation.user for operation in operations if operation.user]
    return {
        "overview": [lambda: monitor.overview()],
        "overview of 24 hours": [lambda: monitor.overview(minutes=1440)],
        "operations": [lambda: monitor.operations(limit=50)],
        "operations, deep page": [lambda o=o: monitor.operations(after=o.id) for o in operations],
        "operations of a rare kind": [lambda: monitor.operations(kind="cron")],
        "operations by name": [lambda: monitor.operations(name="user.create")],
        "operations by user": [lambda u=u: monitor.operations(user=u) for u in users],
        "operations, failed": [lambda: monitor.operations(status="failed")],
        "operations, failed, of nobody": [lambda: monitor.operations(status="failed", user="nobody")],
        "operations, failed, of a rare kind": [lambda: monitor.operations(status="failed", kind="cron")],
        "operations by user, deep page": [
            lambda o=o: monitor.operations(user="user-7", after=o.id) for o in operations
        ],
        f"chain of {LARGE_CHAIN:,} events": [
            lambda o=o: monitor.chain(o.id) for o in monitor.operations(name=LARGE).items
        ],
        "chain": [lambda o=o: monitor.chain(o.id) for o in operations],
        "events": [lambda: monitor.events()],
        "events, deep page": [lambda e=e: monitor.events(after=e.id) for e in events],
        "events by name": [lambda: monitor.events(name="Order.placed")],
        "events by name and time": [
            lambda e=e: monitor.events(name="Order.placed", until=e.published_at) for e in events
        ],
        "events by group": [lambda: monitor.events(group="Mail")],
        "events by key": [lambda e=e: monitor.events(key=e.key) for e in events],
        "events by name and key": [lambda e=e: monitor.events(name=e.name, key=e.key) for e in events],
        "events by payload, 1 hour": [
            lambda e=e: monitor.events(name="Order.placed", since=hour, payload={"user_id": e.key})
            for e in events
        ],
        "events by payload, 24 hours": [
            lambda: monitor.events(name="Order.placed", since=day, payload={"user_id": "none"})
        ],
        "event": [lambda e=e: monitor.event(e.id) for e in events],
        "subjects of 24 hours": [lambda: monitor.subjects()],
        "subjects of everything": [lambda: monitor.subjects(since=samples.begin)],
        "chain summary": [lambda n=n: monitor.chain_summary(n, since=samples.begin) for n in HANDLERS],
        "letter groups": [lambda: monitor.letter_groups()],
        "letter groups of a handler": [lambda: monitor.letter_groups(handler="Mail.send")],
        "letter groups of 24 hours": [lambda: monitor.letter_groups(since=day)],
        "letters": [lambda: monitor.letters()],
        "letters of a group": [
            lambda g=g: monitor.letters(handler=g.handler, fingerprint=g.fingerprint) for g in groups
        ],
        "letters of a fingerprint": [lambda g=g: monitor.letters(fingerprint=g.fingerprint) for g in groups],
        "letters, deep page": [lambda d=d: monitor.letters(after=d.id) for d in letters],
        "letter": [lambda d=d: monitor.letter(d.id) for d in letters],
        "handlers": [lambda: monitor.handlers()],
        "audit log": [lambda: monitor.audit_log()],
    }


def measure(asked: dict[str, list[Question]], *, times: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each question, after one that is not counted."""
    found: dict[str, dict[str, float]] = {}
    for name, variants in asked.items():
        if not variants:  # a small store has no large chains
            continue
        with contextlib.suppress(QueryTooSlow):
            variants[0]()
        took = []
        for number in range(times):
            began = time.perf_counter()
            with contextlib.suppress(QueryTooSlow):
                variants[number % len(variants)]()
            took.append((time.perf_counter() - began) * 1000)
        found[name] = {
            "p50_ms": round(statistics.median(took), 1),
            "p95_ms": round(statistics.quantiles(took, n=20)[-1], 1),
            "max_ms": round(max(took), 1),
        }
        print(f"{name:40} " + "  ".join(f"{k} {v:8.1f}" for k, v in found[name].items()), file=sys.stderr)
    return found


@contextlib.contextmanager
def database(given: argparse.Namespace) -> Iterator[str]:
    """The URL of a filled database."""
    if given.url:
        yield given.url
        return
    with DevServers(start_timeout=60) as servers:
        began = time.perf_counter()
        counts = seed(servers.mongo_url("seeded"), given)
        print(f"seeded {counts} in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        yield servers.mongo_url("seeded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", help="of a MongoDB filled by seed_store")
    parser.add_argument("--times", type=int, default=60, help="each question is asked so often")
    arguments(parser)
    given = parser.parse_args()
    with database(given) as url, EventBus(nats="memory://", mongo=url, namespace="seeded") as bus:
        bus.open()
        monitor = Monitor(bus)
        begin = bus.store.figures.oldest_published()
        assert begin, "the database has no events"
        found = measure(questions(monitor, Samples(monitor, given.times, begin)), times=given.times)
        sizes = {name: facts["documents"] for name, facts in bus.store.info()["collections"].items() if facts}
    memory = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps({"machine": machine(), "documents": sizes, "memory_mb": memory, "answers": found}))


if __name__ == "__main__":
    main()
