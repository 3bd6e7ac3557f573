"""A transactional handler: a booking, the event of it and the success of its delivery are one commit."""

from typing import Any

from pymongo.uri_parser import parse_uri

from eventdriven_sync import EventBus
from tests.apps.orders import QUICK, BillSent, OrderPlaced
from tests.apps.witness import Witness


def build(bus: EventBus, witness: Witness) -> None:
    billing = bus.group("Billing")
    database = parse_uri(bus.settings.mongo)["database"]

    @billing.handler(OrderPlaced, transactional=True, retry=QUICK)
    def book(order: OrderPlaced, session: Any) -> None:
        witness.note("start", number=order.number)
        session.client[database].balances.update_one(
            {"_id": order.customer}, {"$inc": {"orders": 1}}, upsert=True, session=session
        )
        billing.publish(BillSent(number=order.number))
        if order.gate:
            witness.await_note("open", gate=order.gate)
