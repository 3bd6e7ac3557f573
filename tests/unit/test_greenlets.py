"""Processes patched by gevent or eventlet: publishing works under gevent, the rest is refused by name."""

import subprocess
import sys
import types

import pytest

from eventdriven_sync import EventBus, Worker
from eventdriven_sync.brokers.nats import NatsBroker
from eventdriven_sync.errors import ConfigurationError
from eventdriven_sync.greenlets import patched_by
from tests.unit.rig import Renamed


def bus_with_handler() -> EventBus:
    bus = EventBus(nats="memory://", mongo="memory://", namespace="unit")
    bus.group("Blog").handler(Renamed, name="keep")(print)
    return bus


def test_an_ordinary_process_is_not_patched() -> None:
    assert patched_by() == ""


def test_a_worker_refuses_to_run_where_gevent_has_patched_the_process() -> None:
    script = """
from gevent import monkey
monkey.patch_all()
from tests.unit.test_greenlets import bus_with_handler
from eventdriven_sync import Worker
Worker(bus_with_handler()).start()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "ConfigurationError: a worker does not run in a process that gevent has patched" in ended.stderr


@pytest.fixture
def eventlet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if eventlet had patched this process."""
    patcher = types.SimpleNamespace(is_monkey_patched=lambda module: True)
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)


@pytest.mark.usefixtures("eventlet")
def test_under_eventlet_neither_a_worker_nor_a_connection_to_nats_is_begun() -> None:
    with pytest.raises(ConfigurationError, match="eventlet has patched"):
        Worker(bus_with_handler()).start()
    broker = NatsBroker("nats://127.0.0.1:1", namespace="unit")
    with pytest.raises(ConfigurationError, match="patched by eventlet"):
        broker.declare_later([])
