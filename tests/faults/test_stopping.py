"""A worker is told to stop while eight handlers run, and while a server is away: F38 and F39."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventdriven_sync import EventBus, Settings
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.devserver.process import LocalServer
from tests.apps import orders
from tests.apps.orders import OrderPlaced
from tests.apps.site import Process, Site, conserved
from tests.faults.conftest import RowFactory
from tests.faults.scene import SETTINGS
from tests.polling import eventually

GRACE = 2.0
# What a stopping worker may take beyond its grace; the quick rows run beside other tests.
MORE, QUICK_MORE = 2.0, 5.0
THREADS = 8
EVENTS = 12
# What is not given back stays away for longer than the five seconds in which others must have it.
LONG = {"ack_wait": 60.0, "lease": 60.0}


@pytest.fixture
def stopping(own_servers: DevServers, namespace: str, tmp_path: Path) -> Iterator[Site]:
    """An application on servers of its own."""
    mongo = own_servers.mongo_url("app")
    site = Site(
        tmp_path, Settings(nats=own_servers.nats_url, mongo=mongo, namespace=namespace, **dict(SETTINGS))
    )
    yield site
    site.close()


def busy_worker(site: Site, bus: EventBus, **changes: float) -> Process:
    """A worker all of whose threads run a handler that waits for the gate."""
    worker = site.worker_process("orders", "--threads", THREADS, "--grace", GRACE, **changes).ready()
    bus.publish_many([OrderPlaced(number=n, gate="even" if n % 2 == 0 else "odd") for n in range(EVENTS)])
    eventually(lambda: len(site.witness.notes("start")) == THREADS, timeout=30)
    return worker


def stop(worker: Process) -> tuple[int, float]:
    """Its exit code, and how long it took to end."""
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    code = worker.wait(60)
    return code, time.monotonic() - began


def picked_up_by(site: Site, worker: Process, numbers: set[int]) -> dict[int, float]:
    """When it began each of these; empty unless it has begun all of them."""
    notes = site.witness.notes("start", pid=worker.pid)
    found = {note["number"]: note["at"] for note in notes if note["number"] in numbers}
    return found if found.keys() == numbers else {}


def test_handlers_that_end_in_time_are_recorded_and_the_others_are_run_by_another_worker_soon(
    stopping: Site, row: RowFactory
) -> None:
    bus = stopping.bus(orders.build, **LONG)
    old = busy_worker(stopping, bus, **LONG)
    new = stopping.worker_process("orders", "--threads", THREADS, **LONG).ready()
    running = {note["number"] for note in stopping.witness.notes("start", pid=old.pid)}
    stopping.witness.note("open", gate="even")
    code, took = stop(old)
    ended_at = time.time()
    unfinished = {number for number in running if number % 2}
    again = eventually(lambda: picked_up_by(stopping, new, unfinished), timeout=30)
    picked_up = max(again.values()) - ended_at
    stopping.witness.note("open", gate="odd")
    audited = conserved(bus, timeout=60)
    starts, ends = stopping.witness.counts("start"), stopping.witness.counts("end")
    row("F38", "SIGTERM with 8 running handlers, half of which end in time").keep(
        {"events": EVENTS, "lost": EVENTS - audited.handlers[0].succeeded, "exit_code": code},
        exit_seconds=(took, GRACE + QUICK_MORE),
        picked_up_seconds=(picked_up, 5.0),
        finished_and_run_again=(sum(starts[n] > 1 for n in running - unfinished), 0),
        ended_twice=(sum(count > 1 for count in ends.values()), 0),
    )
    assert code == 0
    assert set(ends) == set(range(EVENTS))


@pytest.mark.parametrize(
    ("which", "how", "more"),
    [
        pytest.param("mongo", "kill", QUICK_MORE, id="mongo-quick"),
        *(
            pytest.param(which, how, MORE, id=f"{which}-{how}", marks=pytest.mark.faults)
            for which in ("nats", "mongo")
            for how in ("kill", "pause")
        ),
    ],
)
def test_a_worker_that_is_told_to_stop_while_a_server_is_away_ends_in_time(
    stopping: Site, own_servers: DevServers, row: RowFactory, which: str, how: str, more: float
) -> None:
    bus = stopping.bus(orders.build)
    worker = busy_worker(stopping, bus)
    server: LocalServer = getattr(own_servers, which)
    {"kill": server.kill, "pause": server.pause}[how]()
    # Half of the handlers end; what they came to cannot be recorded, or not be acknowledged.
    stopping.witness.note("open", gate="even")
    eventually(lambda: len(stopping.witness.notes("end")) >= THREADS // 2, timeout=30)
    code, took = stop(worker)
    server.resume()
    server.start()
    stopping.witness.note("open", gate="odd")
    stopping.worker_process("orders", "--threads", THREADS)
    audited = conserved(bus, timeout=90)
    done = audited.handlers[0].succeeded
    row("F39", f"SIGTERM while {which} is away ({how})").keep(
        {"events": EVENTS, "lost": EVENTS - done, "exit_code": code}, exit_seconds=(took, GRACE + more)
    )
    assert (code, done) == (0, EVENTS)
