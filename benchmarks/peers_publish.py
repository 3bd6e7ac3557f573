"""How many events a second does a process publish, call by call, from 1, 8 and 32 threads, and 1,000 a call?

Beside this library its peers and what the drivers alone reach: what "published" stands for differs, see the
README.
"""

from __future__ import annotations

import argparse

from benchmarks import contest

MANY = 1000
CALL_BY_CALL = (1, 8, 32)
# What is not call by call, or has no threads but tasks.
WAYS: dict[str, tuple[int, ...]] = {
    "ours, stored": (*CALL_BY_CALL, MANY),
    "ours, broker": (*CALL_BY_CALL, MANY),
    "raw: js.publish": (1, 8),
    "raw: js.publish, 1,000 in flight": (MANY,),
    "raw: insert_many of 1,000": (MANY,),
}
RAW = ("raw: js.publish", "raw: js.publish, 1,000 in flight", "raw: insert_one", "raw: insert_many of 1,000")


def measure(servers: contest.Contest, peer: str, options: argparse.Namespace) -> contest.Figures:
    found: contest.Figures = {}
    events = contest.share(peer, options.events)
    for way in WAYS.get(peer, CALL_BY_CALL):
        numbers = {"events": events, "threads": way}
        if way == MANY:  # in whole calls, and more of them: they are fast
            numbers = {"events": max(events * 5 // MANY, 1) * MANY, "many": MANY}
        figures = servers.run(peer, "publish", servers.environ(), **numbers)
        label = "many" if way == MANY else way
        found |= {f"{key}@{label}": value for key, value in figures.items()}
    return found


if __name__ == "__main__":
    contest.main("peers_publish", measure, raw=RAW, events=9600)
