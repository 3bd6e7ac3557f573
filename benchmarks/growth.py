"""What does an event cost when many are stored already? 10,000, 100,000 and 1,000,000 of them.

Each size has servers of its own, filled by ``seed_store`` with events, deliveries, operations, dead letters.
A worker process runs while this process publishes by ``publish_many``: from the first call to the end of the
last handling. What is published stays, so the smallest store grows by half with each run of 5,000.
``--largest 5000000`` adds five million, which take long to be stored.

Each mongod may cache 2 GB, or ``--cache-mb``, as a server of a production system does at least: the
development servers' 256 MB are less than the indexes of a million events, and every write then waits for a
page to be thrown out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from pymongo import MongoClient

from benchmarks import harness
from benchmarks.crew import Crew
from benchmarks.seed_store import seed
from benchmarks.shop import Ordered, cpu_seconds, publish_backlog
from eventdriven_sync import EventBus
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.stores.collections import HANDLERS

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
NAME = "grown"


def filled(stored: int, cache_mb: int) -> DevServers:
    """Servers with so many events. Their handlers are forgotten: no reconciler looks after them."""
    servers = DevServers(start_timeout=60).start()
    try:
        with MongoClient[dict[str, Any]](servers.mongo_url(NAME)) as client:
            cache = f"cache_size={cache_mb}M"
            client.admin.command("setParameter", 1, wiredTigerEngineRuntimeConfig=cache)
        began = time.perf_counter()
        sizes = argparse.Namespace(
            events=stored, operations=stored // 5, dead_letters=stored // 100, days=stored / 500_000, seed=7
        )
        seed(servers.mongo_url(NAME), sizes)
        with _bus(servers) as bus:
            bus.open()
            bus.mongo_client[NAME][HANDLERS].delete_many({})
            bus.mongo_client.admin.command("fsync")
        print(f"{stored:,} stored in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    except BaseException:
        servers.stop()
        raise
    return servers


def cost(servers: DevServers, events: int) -> Mapping[str, float]:
    assert servers.mongo.process
    mongod = servers.mongo.process.pid
    with _bus(servers) as bus, Crew(bus.settings) as crew:
        bus.publish(Ordered(number=0))
        crew.wait(1)
        before = crew.handled
        crew.reset_cpu()
        published, stored = time.process_time(), cpu_seconds(mongod)
        began = time.perf_counter()
        publish_backlog(bus, events)
        published = time.process_time() - published
        crew.wait(before + events)
        seconds = time.perf_counter() - began
        spent = {"publisher_us": published, "worker_us": crew.cpu, "mongod_us": cpu_seconds(mongod) - stored}
    return {"per_second": events / seconds} | {key: value * 1e6 / events for key, value in spent.items()}


def _bus(servers: DevServers) -> EventBus:
    return EventBus(nats=servers.nats_url, mongo=servers.mongo_url(NAME), namespace=NAME)


def main() -> None:
    options = harness.options("Growth", events=5000, largest=1_000_000, cache_mb=2048)
    with ExitStack() as stack:
        sizes = [size for size in SIZES if size <= options.largest]
        grown = {f"{size:,} stored": filled(size, options.cache_mb) for size in sizes}
        for servers in grown.values():
            stack.callback(servers.stop)
        found = harness.interleaved(
            {
                name: lambda servers=servers: cost(servers, options.events)  # type: ignore[misc]
                for name, servers in grown.items()
            },
            runs=options.runs,
        )
    harness.report("growth", found)


if __name__ == "__main__":
    main()
