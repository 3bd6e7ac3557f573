"""How many events a second does a process publish, from 1, 8 and 32 threads and 1,000 a call?

Beside it in the same run: pymongo's own insert_one and insert_many of the same document with the same write
concern (majority, journaled). That is the floor of "accepted means stored".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pymongo import WriteConcern

from benchmarks import harness
from benchmarks.shop import Ordered, bus_on, in_threads
from eventdriven_sync import EventBus
from eventdriven_sync.devserver import DevServers

DURABLE = WriteConcern(w="majority", j=True)


def document(number: int) -> dict[str, object]:
    return {"number": number, "customer": "c" * 40, "text": "x" * 110}


def rate(count: int, run: Callable[[], float]) -> Callable[[], Mapping[str, float]]:
    def measured() -> Mapping[str, float]:
        cpu = time.process_time()
        seconds = run()
        return {"per_second": count / seconds, "cpu_us": (time.process_time() - cpu) * 1e6 / count}

    return measured


def contenders(bus: EventBus, events: int) -> dict[str, Callable[[], Mapping[str, float]]]:
    raw = bus.mongo_client[f"{bus.settings.namespace}_raw"].get_collection("events", write_concern=DURABLE)
    found: dict[str, Callable[[], Mapping[str, float]]] = {}
    for threads in (1, 8, 32):
        each = max(events // threads, 1)
        found[f"insert_one, {threads} threads"] = rate(
            each * threads, lambda t=threads, e=each: in_threads(t, e, lambda n: raw.insert_one(document(n)))
        )  # type: ignore[misc]
        found[f"publish, {threads} threads"] = rate(
            each * threads,
            lambda t=threads, e=each: in_threads(t, e, lambda n: bus.publish(Ordered(number=n))),
        )  # type: ignore[misc]
    many = range(0, events * 5, 1000)
    found["insert_many of 1,000"] = rate(
        len(many) * 1000,
        lambda: in_threads(1, len(many), lambda n: raw.insert_many([document(k) for k in range(1000)])),
    )
    found["publish_many of 1,000"] = rate(
        len(many) * 1000,
        lambda: in_threads(
            1, len(many), lambda n: bus.publish_many([Ordered(number=k) for k in range(1000)])
        ),
    )
    return found


def main() -> None:
    options = harness.options("Publishing", events=4000)
    writes = harness.watch_writes()
    with DevServers() as servers, bus_on(servers) as bus:
        bus.publish(Ordered(number=0))
        found = harness.interleaved(contenders(bus, options.events), runs=options.runs)
        bus.flush(timeout=30)
    harness.report("publisher", found, writes=dict(writes))


if __name__ == "__main__":
    main()
