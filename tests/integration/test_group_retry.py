"""Sending a group of dead letters back on real servers: the worker that leads takes the steps."""

from eventdriven_sync import Reject
from eventdriven_sync.monitor import Monitor
from tests.apps.orders import OrderPlaced
from tests.apps.site import Site, conserved
from tests.polling import eventually


def test_a_group_is_sent_back_by_whichever_worker_leads(site: Site) -> None:
    bus = site.bus()
    broken, billed = [True], []

    @bus.group("Billing").handler(OrderPlaced)
    def bill(event: OrderPlaced) -> None:
        if broken[0]:
            raise Reject(f"no account {event.number}")
        billed.append(event.number)

    first = site.worker(bus)
    site.worker(bus)
    bus.publish_many([OrderPlaced(number=n) for n in range(40)])
    monitor = Monitor(bus)
    eventually(lambda: monitor.overview().dead == 40)
    [group] = monitor.letter_groups()
    assert group.count == 40
    broken[0] = False
    job = monitor.retry_group(group.handler, fingerprint=group.fingerprint, canary=3, by="ada")
    # Whoever led so far is gone; the other one takes the lead and goes on.
    first.stop(grace=5)
    eventually(lambda: monitor.job(job.id).over, timeout=30)
    eventually(lambda: monitor.job(job.id).progress == {"succeeded": 40})
    done = monitor.job(job.id)
    assert (done.state, done.moved, done.note, len(done.canaries)) == ("done", 40, "", 3)
    assert sorted(billed) == list(range(40))
    assert monitor.letter_groups() == []
    conserved(bus)


def test_a_group_that_fails_again_stops_with_its_canaries(site: Site) -> None:
    bus = site.bus()

    @bus.group("Billing").handler(OrderPlaced)
    def bill(event: OrderPlaced) -> None:
        raise Reject(f"no account {event.number}")

    site.worker(bus)
    bus.publish_many([OrderPlaced(number=n) for n in range(10)])
    monitor = Monitor(bus)
    eventually(lambda: monitor.overview().dead == 10)
    job = monitor.retry_group("Billing.bill", canary=2, by="ada")
    eventually(lambda: monitor.job(job.id).over, timeout=30)
    assert monitor.job(job.id).state == "stopped"
    assert monitor.job(job.id).moved == 2
    eventually(lambda: monitor.overview().dead == 10)
    generations = [letter.generation for letter in monitor.letters().items]
    assert sorted(generations) == [0] * 8 + [1] * 2
