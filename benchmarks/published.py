"""How many events a second does a process publish, call by call, from 1, 8 and 32 threads?

Beside this library its peers: what "published" stands for differs, see the README.
"""

from __future__ import annotations

import argparse

from benchmarks import contest


def measure(servers: contest.Contest, peer: str, options: argparse.Namespace) -> contest.Figures:
    found: contest.Figures = {}
    for threads in (1, 8, 32):
        figures = servers.run(peer, "publish", servers.environ(), events=options.events, threads=threads)
        found |= {f"{key}@{threads}": value for key, value in figures.items()}
    if peer in contest.OURS:
        figures = servers.run(peer, "publish", servers.environ(), events=options.events * 5, many=1000)
        found |= {f"{key}@many": value for key, value in figures.items()}
    return found


if __name__ == "__main__":
    contest.main("published", measure, events=20_000)
