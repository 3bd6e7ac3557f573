"""How many events a second does a worker process with 8 threads handle, with 1 and with 3 handlers for each?

The backlog was published before. This library and the naive bridge record each handling, the others none.
"""

from __future__ import annotations

import argparse

from benchmarks import contest

WANTED = ("per_second", "worker_us", "worker_mb", "nats_us", "mongod_us", "redis_us", "rabbit_us")


def measure(servers: contest.Contest, peer: str, options: argparse.Namespace) -> contest.Figures:
    found: contest.Figures = {}
    events = contest.share(peer, options.events)
    for handlers in (1, 3):
        environ = servers.environ()
        servers.run(peer, "publish", environ, events=events, threads=8)
        figures = servers.run(peer, "work", environ, events=events, handlers=handlers)
        found |= {f"{key}@{handlers}": figures[key] for key in WANTED if key in figures}
    return found


if __name__ == "__main__":
    contest.main("peers_handle", measure, raw=("raw: pull + ack",), events=16_000)
