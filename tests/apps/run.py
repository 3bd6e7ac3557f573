"""Runs one of the applications as a worker process, or publishes orders as a publisher process.

``python -m tests.apps.run worker tests.apps.orders WITNESS --threads 2``
"""

import argparse
import importlib
import logging
import sys
from pathlib import Path

from eventdriven_sync import EventBus, Worker
from tests.apps.crash_points import CrashingBroker, CrashingStore, CrashPoint
from tests.apps.orders import OrderPlaced
from tests.apps.witness import Witness


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    witness = Witness(Path(options.witness))
    bus = EventBus.from_env()
    if options.crash:
        point = CrashPoint(options.crash, options.nth)
        bus = EventBus(
            settings=bus.settings,
            broker=CrashingBroker(bus.broker, point),
            store=CrashingStore(bus.store, point),
        )
    importlib.import_module(options.app).build(bus, witness)
    if options.role == "worker":
        return Worker(bus, threads=options.threads, grace=options.grace).run()
    return publish(bus, witness, options)


def publish(bus: EventBus, witness: Witness, options: argparse.Namespace) -> int:
    for number in range(options.first, options.first + options.count):
        order = OrderPlaced(number=number)
        if options.in_transaction:
            with bus.transaction():
                bus.publish(order)
        else:
            bus.publish(order)
        witness.note("published", number=number)
    bus.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["worker", "publisher"])
    parser.add_argument("app")
    parser.add_argument("witness")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--crash", default="")
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--in-transaction", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
