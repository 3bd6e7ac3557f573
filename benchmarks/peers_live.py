"""How many events a second go through when one process publishes from 8 threads and another handles?

From the first publishing to the end of the last handling.
"""

from __future__ import annotations

import argparse

from benchmarks import contest


def measure(servers: contest.Contest, peer: str, options: argparse.Namespace) -> contest.Figures:
    worker, publisher = servers.pair(peer, events=contest.share(peer, options.events), threads=8)
    return {
        "per_second": worker["live_per_second"],
        "publisher_us": publisher["publisher_us"],
        "worker_us": worker["worker_us"],
    }


if __name__ == "__main__":
    contest.main("peers_live", measure, events=8000)
