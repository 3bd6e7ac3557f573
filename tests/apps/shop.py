"""Two groups that both handle every order, and one that handles what the first of them publishes."""

import threading

from eventdriven_sync import EventBus
from tests.apps.orders import QUICK, BillSent, OrderPlaced
from tests.apps.witness import Witness


def build(bus: EventBus, witness: Witness) -> None:
    billing, shipping, archive = bus.group("Billing"), bus.group("Shipping"), bus.group("Archive")

    @billing.handler(OrderPlaced, retry=QUICK)
    def bill(order: OrderPlaced) -> None:
        threading.Event().wait(order.seconds)
        billing.publish(BillSent(number=order.number))
        witness.note("billed", number=order.number)

    @shipping.handler(OrderPlaced, retry=QUICK)
    def ship(order: OrderPlaced) -> None:
        threading.Event().wait(order.seconds)
        witness.note("shipped", number=order.number)

    @archive.handler(BillSent, retry=QUICK)
    def file(bill: BillSent) -> None:
        witness.note("filed", number=bill.number)
