"""A publisher that forks and spawns while its connections are open; every process publishes."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

from eventdriven_sync import EventBus
from tests.apps import orders
from tests.apps.orders import OrderPlaced
from tests.apps.witness import Witness

MANY = 20


def sockets() -> set[str]:
    """The inodes of this process's TCP connections."""
    connected = {
        line.split()[9]
        for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "01"
    }
    found: set[str] = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:  # the listing's own descriptor
            continue
        found.add(target.removeprefix("socket:[").removesuffix("]"))
    return found & connected


def publish(bus: EventBus, witness: Witness, who: str, first: int) -> None:
    inherited = sockets()
    for number in range(first, first + MANY):
        began = time.monotonic()
        bus.publish(OrderPlaced(number=number))
        witness.note("published", number=number, who=who, seconds=time.monotonic() - began)
    flushed = bus.flush(timeout=20)
    witness.note("done", who=who, flushed=flushed, own=sorted(sockets() - inherited))


def publish_alone(path: str, who: str, first: int) -> None:
    """What a spawned process does: it has nothing but the environment."""
    bus = EventBus.from_env()
    publish(bus, Witness(Path(path)), who, first)
    bus.close()


def fork(bus: EventBus, witness: Witness, who: str, first: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        publish(bus, witness, who, first)
    except BaseException as error:
        witness.note("failed", who=who, error=repr(error))
        os._exit(1)
    os._exit(0)


def main(path: str) -> int:
    witness = Witness(Path(path))
    bus = EventBus.from_env()
    orders.build(bus, witness)
    before = fork(bus, witness, "forked before first use", 0)
    publish(bus, witness, "parent", 100)
    children = [before, fork(bus, witness, "forked", 200), fork(bus, witness, "forked too", 300)]
    publish(bus, witness, "parent after fork", 400)
    processes = [
        multiprocessing.get_context("fork").Process(target=publish, args=(bus, witness, "mp fork", 500)),
        multiprocessing.get_context("spawn").Process(target=publish_alone, args=(path, "mp spawn", 600)),
    ]
    for process in processes:
        process.start()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    for process in processes:
        process.join()
    publish(bus, witness, "parent at the end", 700)
    bus.close()
    return max([*codes, *(process.exitcode or 0 for process in processes)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
