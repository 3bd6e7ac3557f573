"""Operations: how a command ended, waiting for its chain, nesting, and what its context reaches."""

import contextvars
import threading

import pytest

from eventdriven_sync import current_operation_id
from eventdriven_sync.errors import NotFound, OperationTimeout
from tests.apps import orders
from tests.apps.orders import BillSent, OrderPlaced
from tests.apps.site import Gate, Site, conserved
from tests.polling import eventually


def test_an_operation_that_raises_is_stored_as_failed_with_its_error(site: Site) -> None:
    bus = site.bus(orders.build)
    site.worker(bus)
    operation = bus.operation("import-orders", kind="cli", variables={"file": "orders.csv"}, user="ada")

    def break_off() -> None:
        with operation:
            bus.publish(OrderPlaced(number=1))
            raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError):
        break_off()
    stored = bus.operations.get(operation.id)
    assert (stored.name, stored.kind, stored.user) == ("import-orders", "cli", "ada")
    assert stored.variables == {"file": "orders.csv"}
    assert stored.status == "failed"
    assert stored.error is not None
    assert (stored.error.error_type, stored.error.message) == ("ZeroDivisionError", "division by zero")
    assert stored.finished_at is not None
    assert stored.started_at <= stored.finished_at
    chain = operation.wait(timeout=30)
    assert [d.state for d in chain.deliveries] == ["succeeded"], "what was published before counts"
    assert not chain.succeeded
    conserved(bus)


def test_wait_raises_operation_timeout_while_a_delivery_runs_and_the_operation_goes_on(site: Site) -> None:
    bus = site.bus()
    gate = Gate()

    @bus.group("Billing").handler(OrderPlaced)
    def bill(order: OrderPlaced) -> None:
        gate.pass_through()

    site.worker(bus)
    with bus.operation("place-order") as operation:
        bus.publish(OrderPlaced(number=1))
    gate.await_entry()
    with pytest.raises(OperationTimeout) as failure:
        operation.wait(timeout=0.3)
    assert isinstance(failure.value, TimeoutError)
    assert failure.value.chain.open == 1
    gate.open()
    assert operation.wait(timeout=30).succeeded
    conserved(bus)


def test_nested_operations_have_chains_of_their_own_and_know_their_parent(site: Site) -> None:
    bus = site.bus(orders.build)
    site.worker(bus)
    with bus.operation("outer") as outer:
        bus.publish(OrderPlaced(number=1))
        with bus.operation("inner") as inner:
            assert current_operation_id() == inner.id
            bus.publish(OrderPlaced(number=2))
        assert current_operation_id() == outer.id
        bus.publish(OrderPlaced(number=3))
    assert current_operation_id() is None
    for operation, numbers in ((outer, [1, 3]), (inner, [2])):
        chain = operation.wait(timeout=30)
        assert chain.succeeded
        assert sorted(node.event.data["number"] for node in chain.events) == numbers
        assert all(node.event.operation_id == operation.id for node in chain.walk())
        assert len(list(chain.walk())) == 2 * len(numbers), "orders and their bills"
    assert bus.operations.get(inner.id).parent_id == outer.id
    assert bus.operations.get(outer.id).parent_id is None
    conserved(bus)


def test_each_call_of_a_decorated_function_is_an_operation(site: Site) -> None:
    bus = site.bus(orders.build)
    site.worker(bus)

    @bus.operation("place-order", kind="cron")
    def place(number: int) -> str | None:
        bus.publish(OrderPlaced(number=number))
        return current_operation_id()

    ids = [place(1), place(2)]
    assert len(set(ids)) == 2
    for operation_id in ids:
        assert operation_id is not None
        chain = bus.operations.wait(operation_id, timeout=30)
        assert chain.succeeded
        assert len(chain.events) == 1
    assert {operation.id for operation in bus.operations.find(name="place-order")} == set(ids)
    conserved(bus)


def test_an_operation_reaches_threads_that_copy_the_context_and_no_others(site: Site) -> None:
    bus = site.bus()
    ids: dict[str, str] = {}

    def publish(name: str) -> None:
        ids[name] = bus.publish(OrderPlaced(number=1)).operation_id

    with bus.operation("place-orders") as operation:
        context = contextvars.copy_context()
        for target, name in ((context.run, "copied"), (lambda call, name: call(name), "bare")):
            thread = threading.Thread(target=target, args=(publish, name))
            thread.start()
            thread.join()
    assert ids["copied"] == operation.id
    assert ids["bare"] != operation.id


def test_what_a_handler_publishes_belongs_to_the_operation_of_its_event(site: Site) -> None:
    bus = site.bus()
    seen: list[str | None] = []
    billing, archive = bus.group("Billing"), bus.group("Archive")

    @billing.handler(OrderPlaced)
    def bill(order: OrderPlaced) -> None:
        billing.publish(BillSent(number=order.number))

    @archive.handler(BillSent)
    def file(bill: BillSent) -> None:
        seen.append(current_operation_id())

    site.worker(bus)
    with bus.operation("place-order") as operation:
        first = bus.publish(OrderPlaced(number=1))
    chain = operation.wait(timeout=30)
    assert seen == [operation.id]
    (root,) = chain.events
    (delivery,) = root.deliveries
    (second,) = delivery.events
    assert root.event.id == first.id
    assert (delivery.delivery.handler, second.event.source) == ("Billing.bill", "Billing.bill")
    assert second.event.parent_ids == (first.id,)
    assert [d.delivery.handler for d in second.deliveries] == ["Archive.file"]
    conserved(bus)


def test_an_event_published_outside_any_operation_is_a_chain_of_its_own(site: Site) -> None:
    bus = site.bus(orders.build)
    site.worker(bus)
    receipt = bus.publish(OrderPlaced(number=1))
    assert receipt.operation_id == receipt.id
    chain = bus.operations.wait(receipt.id, timeout=30)
    assert chain.succeeded
    assert (chain.operation.kind, chain.operation.name) == ("publish", "Order.placed")
    with pytest.raises(NotFound, match="no operation has the id"):
        bus.operations.chain("0" * 24)


def test_an_operation_whose_process_still_runs_is_not_settled(site: Site) -> None:
    bus = site.bus()
    with bus.operation("long-import") as operation:
        with pytest.raises(OperationTimeout):
            bus.operations.wait(operation.id, timeout=0.1)
        assert bus.operations.get(operation.id).status == "running"
    eventually(lambda: operation.wait(timeout=5).succeeded)
