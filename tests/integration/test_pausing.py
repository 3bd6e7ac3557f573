"""Pausing a handler on real servers: its events wait, those of others do not, and nothing is lost."""

import pytest

from eventdriven_sync import worker as module
from eventdriven_sync.monitor import Monitor
from tests.apps.orders import OrderPlaced
from tests.apps.site import Site, conserved
from tests.polling import eventually


def test_a_paused_handler_is_left_alone_until_it_is_resumed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OBEYING", 0.1)
    bus = site.bus()
    billed: list[int] = []
    shipped: list[int] = []
    bus.group("Billing").handler(OrderPlaced, name="bill")(lambda e: billed.append(e.number))
    bus.group("Shipping").handler(OrderPlaced, name="ship")(lambda e: shipped.append(e.number))
    site.worker(bus)
    bus.publish_many([OrderPlaced(number=n) for n in range(20)])
    eventually(lambda: len(billed) == len(shipped) == 20)
    monitor = Monitor(bus)
    monitor.pause("Billing.bill", by="ada", reason="the bank is closed")
    # It takes the workers a moment to obey; the consumer shows when they have.
    eventually(lambda: _waiting_pulls(monitor) == 0)
    bus.publish_many([OrderPlaced(number=n) for n in range(20, 220)])
    eventually(lambda: len(shipped) == 220)
    assert len(billed) == 20
    [consumer] = [c for s in monitor.streams() for c in s.consumers if c.handler == "Billing.bill"]
    assert (consumer.paused, consumer.pending + consumer.ack_pending) == (True, 200)
    assert any("Billing.bill is paused by ada" in problem for problem in monitor.overview().problems)
    monitor.resume("Billing.bill", by="eve")
    eventually(lambda: len(billed) == 220)
    conserved(bus)
    assert sorted(billed) == sorted(shipped) == list(range(220))


def _waiting_pulls(monitor: Monitor) -> int:
    [waiting] = [c.waiting for s in monitor.streams() for c in s.consumers if c.handler == "Billing.bill"]
    return waiting
