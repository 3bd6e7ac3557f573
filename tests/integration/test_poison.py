"""A message that kills every worker that touches it."""

import signal

from tests.apps import poison
from tests.apps.orders import OrderPlaced
from tests.apps.poison import POISONED
from tests.apps.site import Site, conserved
from tests.polling import eventually

KILLED = -signal.SIGKILL


def test_a_poisoned_message_ends_as_a_dead_letter_after_few_starts_and_the_others_succeed(site: Site) -> None:
    bus = site.bus()
    poison.build(bus, site.witness)
    bus.publish_many([OrderPlaced(number=n, customer=POISONED if n == 7 else "ada") for n in range(20)])
    deaths = 0
    worker = site.worker_process("poison", "--threads", 2)

    def dead() -> bool:
        nonlocal worker, deaths
        if worker.ended:
            assert worker.wait() == KILLED, worker.log
            deaths += 1
            assert deaths < 10, "the message kills workers for ever"
            worker = site.worker_process("poison", "--threads", 2)
        return bool(bus.dead_letters.find(reason="worker_lost"))

    eventually(dead, timeout=60)
    audited = conserved(bus, timeout=60)
    assert [(h.succeeded, h.dead) for h in audited.handlers] == [(19, 1)]
    starts = site.witness.counts("start")
    assert 1 <= starts[7] <= 3
    assert deaths == starts[7]
    assert set(site.witness.counts("end")) == set(range(20)) - {7}
    letter = bus.dead_letters.find()[0]
    assert (letter.handler, letter.reason) == ("Billing.bill", "worker_lost")
    assert not worker.ended
