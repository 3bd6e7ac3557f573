"""How long from the call of publish to the start of the handler in another process, at a given rate?

200 a second by default; ``--rate`` for half of a peer's saturation.
"""

from __future__ import annotations

import argparse

from benchmarks import contest


def measure(servers: contest.Contest, peer: str, options: argparse.Namespace) -> contest.Figures:
    seconds = options.seconds
    worker, _ = servers.pair(peer, events=options.rate * seconds, threads=1, rate=options.rate)
    return {"p50_ms": worker["p50_ms"], "p99_ms": worker["p99_ms"]}


if __name__ == "__main__":
    contest.main("latency", measure, rate=200, seconds=20)
