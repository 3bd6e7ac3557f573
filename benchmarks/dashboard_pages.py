"""How fast does the dashboard's own process answer its pages on a large store, and how much memory has it?

    python -m benchmarks.dashboard_pages --events 1000000 --operations 200000 --dead-letters 100000

``eventdriven dashboard`` runs as a process of its own, without users, and is asked for page after page.
Without ``--url`` a mongod is started and filled with ``seed_store``.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from benchmarks.harness import ROOT, machine
from benchmarks.monitor_queries import Samples
from benchmarks.seed_store import LARGE, arguments, seed
from eventdriven_sync import EventBus
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.monitor import Monitor


class Dashboard:
    """The process, and a connection to it."""

    def __init__(self, url: str, *, nats: str) -> None:
        environment = {"EVENTDRIVEN_MONGO": url, "EVENTDRIVEN_NATS": nats, "EVENTDRIVEN_NAMESPACE": "seeded"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "eventdriven_sync", "dashboard", "--port", "0", "--insecure"],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        lines = iter(self._process.stdout.readline, "")
        address = next(
            (found for line in lines if (found := re.search(r"http://[^:]+:(\d+)(/\S*)?", line))), None
        )
        if address is None:
            raise RuntimeError("the dashboard did not say where it listens")
        self._port, self._prefix = int(address[1]), (address[2] or "").rstrip("/.")

    def ask(self, path: str) -> float:
        """Milliseconds until the page is there as a whole."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        with contextlib.closing(connection):
            began = time.perf_counter()
            connection.request("GET", self._prefix + path, headers={"Accept": "text/html"})
            answer = connection.getresponse()
            body = answer.read()
            took = (time.perf_counter() - began) * 1000
        if answer.status != 200:
            raise RuntimeError(f"{path} was answered with {answer.status}: {body[:200]!r}")
        return took

    def memory_mb(self) -> int:
        """Its largest resident memory so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) // 1024

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def pages(monitor: Monitor, times: int) -> dict[str, list[str]]:
    """The paths of each kind of page, several where they differ."""
    begin = monitor.events(limit=1).items[0].published_at
    samples = Samples(monitor, times, begin)
    groups = [f"/dead/letters?handler={quote(g.handler)}&fingerprint={g.fingerprint}" for g in samples.groups]
    return {
        "overview": ["/"],
        "operations": ["/operations"],
        "operations, deep page": [f"/operations?after={o.id}" for o in samples.operations],
        "operations, failed": ["/operations?status=failed"],
        "chain": [f"/operations/{o.id}" for o in samples.operations],
        "chain of 1,000 events": [f"/operations/{o.id}" for o in monitor.operations(name=LARGE).items],
        "events": ["/events"],
        "events by name": ["/events?name=Order.placed"],
        "events, deep page": [f"/events?after={e.id}" for e in samples.events],
        "event": [f"/events/{e.id}" for e in samples.events],
        "subjects": ["/subjects"],
        "subject": ["/subjects/Order.placed", "/subjects/User.registered"],
        "dead letters": ["/dead"],
        "letters": ["/dead/letters", *groups],
        "letter": [f"/deliveries/{quote(letter.id)}" for letter in samples.letters],
        "workers": ["/workers"],
        "audit log": ["/audit"],
    }


def measure(
    dashboard: Dashboard, asked: dict[str, list[str]], *, times: int
) -> Iterator[tuple[str, dict[str, float]]]:
    for name, paths in asked.items():
        if not paths:  # a small store has no large chains
            continue
        dashboard.ask(paths[0])
        took = [dashboard.ask(paths[number % len(paths)]) for number in range(times)]
        yield (
            name,
            {
                "p50_ms": round(statistics.median(took), 1),
                "p95_ms": round(statistics.quantiles(took, n=20)[-1], 1),
                "max_ms": round(max(took), 1),
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", help="of a MongoDB filled by seed_store")
    parser.add_argument("--times", type=int, default=60, help="each page is asked for so often")
    arguments(parser)
    given = parser.parse_args()
    found = {}
    with DevServers(start_timeout=60) as servers:
        url = given.url or servers.mongo_url("seeded")
        if not given.url:
            print(f"seeded {seed(url, given)}", file=sys.stderr)
        with EventBus(nats="memory://", mongo=url, namespace="seeded") as bus:
            bus.open()
            asked = pages(Monitor(bus), given.times)
        dashboard = Dashboard(url, nats=servers.nats_url)
        try:
            for name, figures in measure(dashboard, asked, times=given.times):
                found[name] = figures
                print(f"{name:24}" + "  ".join(f"{k} {v:8.1f}" for k, v in figures.items()), file=sys.stderr)
            memory = dashboard.memory_mb()
        finally:
            dashboard.stop()
    print(f"memory at most {memory} MB", file=sys.stderr)
    print(json.dumps({"machine": machine(), "memory_mb": memory, "pages": found}))


if __name__ == "__main__":
    main()
