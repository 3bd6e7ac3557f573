"""A handler that one order kills together with its whole process, every time."""

import os
import signal

from eventdriven_sync import EventBus
from tests.apps.orders import QUICK, OrderPlaced
from tests.apps.witness import Witness

POISONED = "poison"


def build(bus: EventBus, witness: Witness) -> None:
    @bus.group("Billing").handler(OrderPlaced, retry=QUICK)
    def bill(order: OrderPlaced) -> None:
        witness.note("start", number=order.number)
        if order.customer == POISONED:
            os.kill(os.getpid(), signal.SIGKILL)
        witness.note("end", number=order.number)
