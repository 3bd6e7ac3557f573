"""A worker's health over HTTP while its servers and handlers fail: exactly the right path turns red."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymongo
import pytest
from tenacity import stop_after_attempt, wait_fixed

from eventdriven_sync import EventBus, RetryPolicy, Worker
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.devserver.ports import free_port, is_free
from eventdriven_sync.endpoint import HealthEndpoint
from tests.apps.jetstream import ask_jetstream
from tests.apps.orders import OrderPlaced
from tests.apps.site import ROOT, Gate, Site, conserved
from tests.polling import eventually

STALL_AFTER = 1.0
WELL = (200, 200, 200)

# In the order of the paths /live, /ready, /progress.
NOT_READY = (200, 503, 200)
NOT_MOVING = (200, 200, 503)
NEITHER = (200, 503, 503)

WORKER_APP = """
from eventdriven_sync import EventBus
from tests.apps.orders import OrderPlaced

bus = EventBus.from_env()

@bus.group("Billing").handler(OrderPlaced)
def bill(order): pass
"""


class Probe:
    """Asks a health endpoint as a supervisor would."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def colours(self) -> tuple[int, int, int]:
        live, ready, progress = (self.get(path)[0] for path in ("/live", "/ready", "/progress"))
        return live, ready, progress

    def becomes(self, colours: tuple[int, int, int], timeout: float = 20.0) -> None:
        def is_so() -> bool:
            found = self.colours()
            assert found == colours, (self.get("/ready"), self.get("/progress"))
            return True

        eventually(is_so, timeout=timeout)

    def stays(self, colours: tuple[int, int, int], looks: int = 15) -> None:
        """Over so many looks of the endpoint."""
        seen: list[tuple[int, int, int]] = []
        eventually(lambda: seen.append(self.colours()) or len(seen) >= 2 * looks, timeout=30)
        assert set(seen) == {colours}


@contextmanager
def probed(worker: Worker) -> Iterator[Probe]:
    with HealthEndpoint(lambda: worker.health(timeout=1.0), port=0, every=0.05) as endpoint:
        yield Probe(endpoint.port)


def gated(gate: Gate, bus: EventBus, *, timeout: float | None = None) -> EventBus:
    """A bus whose handler waits at the gate for orders that say so."""
    once = RetryPolicy(stop=stop_after_attempt(1), wait=wait_fixed(0.1))

    @bus.group("Billing").handler(OrderPlaced, timeout=timeout, retry=once)
    def bill(order: OrderPlaced) -> None:
        if order.gate:
            gate.pass_through()

    return bus


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def test_a_frozen_mongod_is_not_ready_until_it_goes_on(
    own_site: Site, own_servers: DevServers, gate: Gate
) -> None:
    bus = gated(gate, own_site.bus(publish_timeout=2.0, stall_after=STALL_AFTER))
    with probed(own_site.worker(bus)) as probe:
        probe.becomes(WELL)
        own_servers.mongo.pause()
        probe.becomes(NOT_READY)
        assert "does not answer" in probe.get("/ready")[1]["parts"]["event store"]["reason"]
        probe.stays(NOT_READY)
        own_servers.mongo.resume()
        probe.becomes(WELL)
        bus.publish(OrderPlaced(number=1))
        conserved(bus)


def test_nats_that_is_down_is_not_ready_until_it_is_back(
    own_site: Site, own_servers: DevServers, gate: Gate
) -> None:
    bus = gated(gate, own_site.bus(stall_after=STALL_AFTER))
    with probed(own_site.worker(bus)) as probe:
        probe.becomes(WELL)
        own_servers.nats.kill()
        probe.becomes(NOT_READY)
        assert probe.get("/ready")[1]["parts"]["broker"]["reason"] == "it is not connected"
        probe.stays(NOT_READY)
        own_servers.nats.start()
        probe.becomes(WELL)


def test_a_frozen_nats_is_not_ready_though_the_connection_looks_alive(
    own_site: Site, own_servers: DevServers, gate: Gate
) -> None:
    bus = gated(gate, own_site.bus(stall_after=STALL_AFTER))
    with probed(own_site.worker(bus)) as probe:
        probe.becomes(WELL)
        own_servers.nats.pause()
        eventually(
            lambda: (
                "does not answer" in probe.get("/ready")[1]["parts"]["broker"]["reason"]
                and bus.broker.status().connected
            )
        )
        probe.becomes(NOT_READY)
        own_servers.nats.resume()
        probe.becomes(WELL)


def test_a_paused_consumer_is_a_stall_until_it_goes_on(site: Site, gate: Gate) -> None:
    bus = gated(gate, site.bus(stall_after=STALL_AFTER))
    with probed(site.worker(bus)) as probe:
        probe.becomes(WELL)
        pause(site, datetime.now(UTC) + timedelta(minutes=5))
        bus.publish_many([OrderPlaced(number=n) for n in range(3)])
        probe.becomes(NOT_MOVING)
        (reason,) = probe.get("/progress")[1]["reasons"]
        assert reason.startswith("Billing.bill: 3 messages wait and nothing was settled for ")
        assert reason.endswith("; its consumer is paused")
        pause(site, datetime.now(UTC) - timedelta(minutes=5))
        probe.becomes(WELL)
        conserved(bus)


def pause(site: Site, until: datetime) -> None:
    ask_jetstream(
        site.settings.nats,
        f"CONSUMER.PAUSE.{site.settings.namespace}_Order.Billing__bill",
        {"pause_until": until.isoformat().replace("+00:00", "Z")},
    )


def test_a_mongod_that_answers_and_takes_no_writes_is_a_stall(
    own_site: Site, own_servers: DevServers, gate: Gate
) -> None:
    """Every connection is alive, every ping is answered, and not one outcome can be recorded."""
    bus = gated(gate, own_site.bus(publish_timeout=2.0, stall_after=STALL_AFTER))
    with (
        probed(own_site.worker(bus)) as probe,
        pymongo.MongoClient[Any](own_servers.mongo_url()) as administrator,
    ):
        bus.publish(OrderPlaced(number=1, gate="g"))
        gate.await_entry()
        administrator.admin.command("fsync", lock=True)
        try:
            gate.open()
            probe.becomes(NEITHER)
            assert "1 messages wait" in probe.get("/progress")[1]["reasons"][0]
            parts = probe.get("/ready")[1]["parts"]
            assert parts["event store"] == {"state": "ok", "reason": "it answers"}
            assert "its rounds fail" in parts["reconciler"]["reason"]
        finally:
            administrator.admin.command("fsyncUnlock")
        probe.becomes(WELL)
        conserved(bus)


def test_a_hung_handler_is_red_until_it_returns(site: Site, gate: Gate) -> None:
    bus = gated(gate, site.bus(stall_after=STALL_AFTER), timeout=0.5)
    with probed(site.worker(bus)) as probe:
        probe.becomes(WELL)
        bus.publish(OrderPlaced(number=1, gate="g"))
        gate.await_entry()
        probe.becomes(NOT_MOVING)
        document = probe.get("/progress")[1]
        assert "a thread hangs in it" in document["reasons"][0]
        assert [(each["handler"], each["hung"]) for each in document["running"]] == [("Billing.bill", True)]
        gate.open()
        probe.becomes(WELL)


def test_a_handler_that_takes_long_within_its_timeout_is_well_and_named(site: Site, gate: Gate) -> None:
    bus = gated(gate, site.bus(stall_after=STALL_AFTER), timeout=60)
    with probed(site.worker(bus, threads=1)) as probe:
        bus.publish_many([OrderPlaced(number=n, gate="g") for n in range(20)])
        gate.await_entry()

        def runs_long() -> bool:
            running = probe.get("/progress")[1]["running"]
            return bool(running) and running[0]["seconds"] > 3 * STALL_AFTER

        eventually(runs_long)
        assert probe.colours() == WELL
        gate.open()
        conserved(bus)
        assert probe.colours() == WELL


def test_every_process_of_a_supervisor_answers_at_its_own_port(site: Site, tmp_path: Path) -> None:
    (tmp_path / "billing.py").write_text(WORKER_APP)
    first = next(port for port in iter(free_port, None) if port < 65535 and is_free(port + 1))
    command = ["worker", "--processes", "2", "--threads", "1", "--health-port", str(first)]
    process = subprocess.Popen(
        [sys.executable, "-m", "eventdriven_sync", "--app", "billing:bus", *command],
        cwd=tmp_path,
        env=site.environ() | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        stdin=subprocess.DEVNULL,
        stderr=(tmp_path / "log").open("wb"),
    )
    try:
        for port in (first, first + 1):
            eventually(lambda at=port: answers(at), timeout=30, message=(tmp_path / "log").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    try:
        return Probe(port).colours() == WELL
    except ConnectionRefusedError:
        return False
