"""One group that writes bills for orders; the order itself says how its handler behaves."""

import threading

import attrs
from tenacity import stop_after_attempt, wait_fixed

from eventdriven_sync import EventBus, RetryPolicy, event
from tests.apps.witness import Witness


@event("Order.placed", key="customer")
@attrs.frozen(kw_only=True)
class OrderPlaced:
    """An order.

    Attributes:
        seconds: how long its handler works.
        gate: a name; the handler waits until a test notes ``open`` with it.
        urgent: the bill is stored and sent at once, whatever becomes of the attempt.
    """

    number: int
    customer: str = "ada"
    seconds: float = 0.0
    gate: str = ""
    urgent: bool = False


@event("Bill.sent")
@attrs.frozen(kw_only=True)
class BillSent:
    number: int


QUICK = RetryPolicy(stop=stop_after_attempt(5), wait=wait_fixed(0.1))


def build(bus: EventBus, witness: Witness) -> None:
    billing = bus.group("Billing")

    @billing.handler(OrderPlaced, retry=QUICK)
    def bill(order: OrderPlaced) -> None:
        witness.note("start", number=order.number, handler="Billing.bill")
        if order.gate:
            witness.await_note("open", gate=order.gate)
        threading.Event().wait(order.seconds)
        billing.publish(BillSent(number=order.number), immediate=order.urgent)
        witness.note("end", number=order.number, handler="Billing.bill")
