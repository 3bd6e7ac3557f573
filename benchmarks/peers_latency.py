"""How long from the call of publish to the start of the handler in another process, at a given rate?

``--rate`` is the same for all, from one thread, 200 a second by default. With ``--live``, a file with the
answer of ``peers_live``, each has half the rate that it reached there, from 8 threads as there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import contest, harness


def measure(servers: contest.Contest, peer: str, options: argparse.Namespace) -> contest.Figures:
    threads, rate = (8, half(options.live, peer)) if options.live else (1, options.rate)
    each = max(rate * options.seconds // threads, 1)
    worker, _ = servers.pair(peer, events=each * threads, threads=threads, rate=rate)
    return {"rate": rate, "p50_ms": worker["p50_ms"], "p99_ms": worker["p99_ms"]}


def half(path: str, peer: str) -> int:
    """Half of the rate that a contender reached in ``peers_live``."""
    reached = harness.last_result(Path(path))["medians"][peer]["per_second"]
    return max(int(reached / 2), 1)


if __name__ == "__main__":
    contest.main("peers_latency", measure, rate=200, seconds=10, live="")
