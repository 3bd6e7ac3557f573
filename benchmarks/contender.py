"""One contender in one role, as a process of its own: ``python -m benchmarks.contender NAME publish|work``.

It prints one line of JSON; ``benchmarks.contest`` starts it. Give numbers of events that 8 and 32 divide:
threads share them evenly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import threading
import time
import warnings
from typing import Any

import psutil

from benchmarks.peers import PEERS, AsyncPeer, Payload, payload
from benchmarks.raw import RAW
from benchmarks.shop import in_threads, percentile

LIMIT = 120.0
WARM_UP = 20
# Of its own: contenders print as well, and a pipe that nobody reads while they work would stop them.
ANSWERS = os.dup(1)


class Seen:
    """Counts what a worker handled, and how long each event was under way, until all were."""

    def __init__(self, wanted: int) -> None:
        self.done = threading.Event()
        self.latencies: list[float] = []
        self.began = self.ended = self.cpu = 0.0
        self.first_sent = math.inf
        self._lock = threading.Lock()  # guards everything but done
        self._wanted = wanted
        self._warmed = False

    def __call__(self, event: Payload) -> None:
        now = time.monotonic()
        if not event["sent"]:
            return self._warm()
        with self._lock:
            if not self.began:
                self.began, self.cpu = now, time.process_time()
            self.first_sent = min(self.first_sent, event["sent"])
            self.latencies.append((now - event["sent"]) * 1000)
            if len(self.latencies) == self._wanted:
                self.ended = now
                self.done.set()
        return None

    def _warm(self) -> None:
        """Tells whoever started this worker that it works."""
        with self._lock:
            first, self._warmed = not self._warmed, True
        if first:
            tell({"warm": True})


def tell(facts: dict[str, Any]) -> None:
    """A line for whoever started this process."""
    os.write(ANSWERS, f"{json.dumps(facts)}\n".encode())


def publish(peer: Any, options: argparse.Namespace) -> dict[str, float]:
    """So many events from so many threads, or in calls of ``many``, or at a rate."""
    took: list[float] = []
    if isinstance(peer, AsyncPeer):
        seconds, cpu = asyncio.run(_from_tasks(peer, options, took))
    else:
        seconds, cpu = _from_threads(peer, options, took)
    found = {"per_second": options.events / seconds, "publisher_us": cpu * 1e6 / max(options.events, 1)}
    return found | ({"p50_ms": percentile(took, 0.5), "p99_ms": percentile(took, 0.99)} if took else {})


def _from_threads(peer: Any, options: argparse.Namespace, took: list[float]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    send = peer.publisher()
    for n in range(WARM_UP):
        send(payload(n, warm_up=True))
    each = options.events // options.threads
    began, cpu = time.perf_counter(), time.process_time()

    def one(number: int) -> None:
        if options.rate:
            time.sleep(max(0.0, began + _turn(number, each, options) - time.perf_counter()))
        begun = time.perf_counter()
        send(payload(number))
        took.append((time.perf_counter() - begun) * 1000)

    def many(number: int) -> None:
        peer.many([payload(number * options.many + n) for n in range(options.many)])

    if options.many:
        seconds = in_threads(1, max(options.events // options.many, 1), many)
    else:
        seconds = in_threads(options.threads, each, one)
    cpu = time.process_time() - cpu
    peer.finish()
    return seconds, cpu


async def _from_tasks(peer: AsyncPeer, options: argparse.Namespace, took: list[float]) -> tuple[float, float]:
    """Wall and CPU seconds. With ``many`` only the end is waited for, and no call is timed."""
    send = await peer.connect()
    for n in range(WARM_UP):
        await send(payload(n, warm_up=True))
    await peer.confirmed()
    each = options.events // options.threads
    began, cpu = time.perf_counter(), time.process_time()

    async def one(task: int) -> None:
        for number in range(task * each, (task + 1) * each):
            if options.rate:
                await asyncio.sleep(began + _turn(number, each, options) - time.perf_counter())
            begun = time.perf_counter()
            await send(payload(number))
            if not options.many:
                took.append((time.perf_counter() - begun) * 1000)

    await asyncio.gather(*(one(task) for task in range(options.threads)))
    await peer.confirmed()
    spent = time.perf_counter() - began, time.process_time() - cpu
    await peer.close()
    return spent


def _turn(number: int, each: int, options: argparse.Namespace) -> float:
    """After how many seconds an event is published at the rate: threads take turns."""
    thread, nth = divmod(number, each)
    return float((nth * options.threads + thread) / options.rate)


def work(peer: Any, options: argparse.Namespace) -> dict[str, float]:
    """Handle so many; the time runs from the first of them, ``live`` from when the first was published."""
    seen = Seen(options.events * options.handlers)
    peer.work([seen] * options.handlers)
    if not seen.done.wait(LIMIT):
        raise SystemExit(f"only {len(seen.latencies)} of {options.events} handled within {LIMIT:g} s")
    handled = options.events * options.handlers
    return {
        "per_second": handled / (seen.ended - seen.began),
        "live_per_second": handled / (seen.ended - seen.first_sent),
        "worker_us": (time.process_time() - seen.cpu) * 1e6 / handled,
        "worker_mb": psutil.Process().memory_info().rss / 2**20,
        "p50_ms": percentile(seen.latencies, 0.5),
        "p99_ms": percentile(seen.latencies, 0.99),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="One peer in one role")
    parser.add_argument("peer", choices=[*PEERS, *RAW])
    parser.add_argument("role", choices=["publish", "work"])
    for option in ("--events", "--threads", "--many", "--rate", "--handlers"):
        parser.add_argument(option, type=int, default=0 if option in ("--many", "--rate") else 1)
    options = parser.parse_args()
    os.dup2(2, 1)
    logging.basicConfig(level=logging.CRITICAL)
    warnings.simplefilter("ignore")  # Celery's, of working as root
    role = publish if options.role == "publish" else work
    tell(role((PEERS | RAW)[options.peer](), options))
    os._exit(0)  # whatever threads a peer leaves behind


if __name__ == "__main__":
    main()
