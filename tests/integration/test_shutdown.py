"""Stopping a worker: running handlers end within the grace period, everything else goes to others at once."""

import signal

from tests.apps import orders
from tests.apps.orders import OrderPlaced
from tests.apps.site import Site, conserved
from tests.polling import eventually

# What is not given back stays away for longer than any of these tests may take.
LONG = {"ack_wait": 100.0, "lease": 100.0}


def started(site: Site, number: int, pid: int) -> bool:
    return bool(site.witness.notes("start", number=number, pid=pid))


def test_sigterm_lets_running_handlers_end_while_others_take_what_had_not_begun(site: Site) -> None:
    bus = site.bus(orders.build, **LONG)
    bus.publish_many([OrderPlaced(number=n, gate="g" if n < 2 else "") for n in range(4)])
    old = site.worker_process("orders", "--threads", 2, "--grace", 60, **LONG)
    eventually(lambda: started(site, 0, old.pid) and started(site, 1, old.pid), timeout=30)
    new = site.worker_process("orders", "--threads", 2, **LONG).ready()

    old.signal(signal.SIGTERM)
    # 2 and 3 were in the old worker's hands: they do not wait for its slow handlers.
    eventually(lambda: started(site, 2, new.pid) and started(site, 3, new.pid), timeout=30)
    assert not old.ended
    site.witness.note("open", gate="g")
    assert old.wait() == 0
    conserved(bus, timeout=30)
    assert site.witness.counts("start") == dict.fromkeys(range(4), 1)
    assert {note["pid"] for n in (0, 1) for note in site.witness.notes("end", number=n)} == {old.pid}


def test_what_does_not_end_within_the_grace_is_run_by_another_worker_at_once(site: Site) -> None:
    bus = site.bus(orders.build, **LONG)
    event_id = bus.publish(OrderPlaced(number=1, gate="g")).id
    old = site.worker_process("orders", "--threads", 1, "--grace", 0.5, **LONG)
    eventually(lambda: started(site, 1, old.pid), timeout=30)
    new = site.worker_process("orders", "--threads", 1, **LONG).ready()
    old.signal(signal.SIGTERM)
    assert old.wait() == 0
    eventually(lambda: started(site, 1, new.pid), timeout=30)
    site.witness.note("open", gate="g")
    conserved(bus, timeout=30)
    assert site.witness.counts("end") == {1: 1}
    delivery = bus.dead_letters.get(f"Billing.bill:{event_id}")
    assert (delivery.state, delivery.failed) == ("succeeded", 0), "being stopped is no failure"


def test_an_idle_worker_stops_at_once_on_sigterm_and_on_sigint(site: Site) -> None:
    workers = [site.worker_process("orders", "--grace", 60).ready() for _ in range(2)]
    for worker, number in zip(workers, (signal.SIGTERM, signal.SIGINT), strict=True):
        worker.signal(number)
        assert worker.wait(timeout=15) == 0
        assert "stopped" in worker.log
    bus = site.bus()
    assert bus.store.directory.workers() == []


def test_a_second_signal_ends_the_worker_at_once_and_its_work_is_done_by_another(site: Site) -> None:
    bus = site.bus(orders.build)
    bus.publish(OrderPlaced(number=1, gate="g"))
    old = site.worker_process("orders", "--threads", 1, "--grace", 60)
    eventually(lambda: started(site, 1, old.pid), timeout=30)

    def ended_by_another_signal() -> bool:
        # Two that arrive at the same moment are one to the system.
        old.signal(signal.SIGTERM)
        return old.ended

    eventually(ended_by_another_signal, timeout=15)
    assert old.wait() == 130
    site.witness.note("open", gate="g")
    site.worker_process("orders", "--threads", 1)
    conserved(bus)
    assert site.witness.counts("start") == {1: 2}
    assert site.witness.counts("end") == {1: 1}


def test_a_claimed_retry_that_was_not_begun_is_given_back_when_the_worker_stops(site: Site) -> None:
    bus = site.bus(**LONG)
    failed: list[int] = []

    @bus.group("Billing").handler(OrderPlaced, retry=orders.QUICK, threads=1)
    def bill(order: OrderPlaced) -> None:
        if order.number not in failed:
            failed.append(order.number)
            raise ValueError("the first time")
        site.witness.note("start", number=order.number)
        site.witness.await_note("open", gate="g")
        site.witness.note("end", number=order.number)

    first = site.worker(bus, threads=1)
    bus.publish_many([OrderPlaced(number=n) for n in range(4)])
    # One retry runs; the others become due and are claimed behind it.
    eventually(lambda: len(failed) >= 1 and site.witness.notes("start"), timeout=30)
    first.stop(grace=0.2)
    assert site.witness.counts("start").total() == 1
    site.witness.note("open", gate="g")
    site.worker(bus, threads=2)
    audited = conserved(bus, timeout=30)
    assert [h.succeeded for h in audited.handlers] == [4]


def test_a_worker_runs_once_and_stops_twice(site: Site) -> None:
    bus = site.bus(orders.build)
    worker = site.worker(bus)
    bus.publish(OrderPlaced(number=1))
    conserved(bus)
    worker.stop()
    worker.stop()
    bus.publish(OrderPlaced(number=2))
    site.worker(bus)
    conserved(bus)
    assert site.witness.counts("end") == {1: 1, 2: 1}
