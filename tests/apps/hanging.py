"""A handler that hangs the first time, and comes back to publish something long after its timeout."""

from tenacity import stop_after_attempt, wait_fixed

from eventdriven_sync import EventBus, RetryPolicy
from eventdriven_sync.errors import LeaseLost
from tests.apps.orders import BillSent, OrderPlaced
from tests.apps.witness import Witness

TIMEOUT = 1.0


def build(bus: EventBus, witness: Witness) -> None:
    billing = bus.group("Billing")

    @billing.handler(
        OrderPlaced, timeout=TIMEOUT, retry=RetryPolicy(stop=stop_after_attempt(3), wait=wait_fixed(0.1))
    )
    def bill(order: OrderPlaced) -> None:
        again = bool(witness.notes("start", number=order.number))
        witness.note("start", number=order.number)
        if again:
            billing.publish(BillSent(number=order.number))
            return
        hang_in_here(order)

    def hang_in_here(order: OrderPlaced) -> None:
        witness.await_note("open", gate=order.gate)
        for immediate in (False, True):
            try:
                billing.publish(BillSent(number=-order.number), immediate=immediate)
                witness.note("late publish", number=order.number, immediate=immediate, error="")
            except LeaseLost as error:
                witness.note("late publish", number=order.number, immediate=immediate, error=str(error))
        witness.note("late end", number=order.number)
