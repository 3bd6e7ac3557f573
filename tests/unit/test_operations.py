"""Operations: what is published inside belongs to them, and what became of it can be waited for."""

import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from eventdriven_sync import EventBus, Settings, continue_chain, current_chain, current_operation_id
from eventdriven_sync import operations as module
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.errors import InvalidOption, NotFound, OperationTimeout, StoreUnavailable
from eventdriven_sync.executor import failure_of
from eventdriven_sync.stores.memory import MemoryStore
from eventdriven_sync.testing import memory
from tests.unit.rig import Greeted, Renamed

ADA = Renamed(name="Ada")


@pytest.fixture
def bus() -> Iterator[EventBus]:
    settings = Settings(nats="memory://", mongo="memory://", namespace="unit")
    with EventBus(settings=settings, broker=MemoryBroker(), store=MemoryStore()) as made:
        yield made


def test_what_is_published_inside_belongs_to_the_operation(bus: EventBus) -> None:
    with bus.operation("rename", kind="http", variables={"name": "Ada"}, user="42") as operation:
        assert current_operation_id() == operation.id
        receipt = bus.publish(ADA)
    assert receipt.operation_id == operation.id
    assert current_operation_id() is None
    found = bus.operations.get(operation.id)
    assert (found.name, found.kind, found.user, found.variables) == ("rename", "http", "42", {"name": "Ada"})
    assert found.status == "succeeded"
    assert found.finished_at is not None


def test_an_operation_that_raises_is_stored_as_failed(bus: EventBus) -> None:
    with pytest.raises(ZeroDivisionError), bus.operation("rename") as operation:
        _ = 1 / 0
    found = bus.operations.get(operation.id)
    assert found.status == "failed"
    assert found.error is not None
    assert (found.error.error_type, found.error.message) == ("ZeroDivisionError", "division by zero")


def test_the_error_of_the_block_is_seen_although_it_could_not_be_stored(bus: EventBus) -> None:
    def fail() -> None:
        bus.store.unavailable = True  # type: ignore[attr-defined]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bus.operation("rename")(fail)()


def test_the_error_of_the_block_is_seen_although_the_bus_was_closed_in_it(bus: EventBus) -> None:
    def fail() -> None:
        bus.close()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bus.operation("rename")(fail)()


def test_a_success_that_could_not_be_stored_is_an_error(bus: EventBus) -> None:
    with pytest.raises(StoreUnavailable), bus.operation("rename"):
        bus.store.unavailable = True  # type: ignore[attr-defined]


def test_operations_nest(bus: EventBus) -> None:
    with bus.operation("outer") as outer:
        with bus.operation("inner") as inner:
            assert bus.publish(ADA).operation_id == inner.id
        assert bus.publish(ADA).operation_id == outer.id
    assert bus.operations.get(inner.id).parent_id == outer.id


def test_an_operation_begun_in_a_handler_knows_whose_chain_it_is_in(bus: EventBus) -> None:
    parents: list[str | None] = []

    @bus.group("Blog").handler(Renamed)
    def handle(event: Renamed) -> None:
        with bus.operation("inside") as inside:
            parents.append(bus.operations.get(inside.id).parent_id)

    with memory(bus) as run:
        receipt = bus.publish(ADA)
        run.drain()
    assert parents == [receipt.operation_id]


def test_every_call_of_a_decorated_function_is_an_operation(bus: EventBus) -> None:
    seen: list[str | None] = []

    @bus.operation("rename")
    def rename() -> None:
        seen.append(current_operation_id())

    rename()
    rename()
    assert len(set(seen)) == 2
    assert {each.id for each in bus.operations.find(name="rename")} == set(seen)


def test_a_thread_sees_the_operation_it_is_given_with_its_context(bus: EventBus) -> None:
    seen: list[str | None] = []
    with bus.operation("rename") as operation:
        copied = contextvars.copy_context()
        for target in (lambda: copied.run(lambda: seen.append(current_operation_id())),
                       lambda: seen.append(current_operation_id())):  # fmt: skip
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert seen == [operation.id, None]


@pytest.mark.parametrize(
    ("options", "field"), [({"name": ""}, "name"), ({"name": None}, "name"), ({"kind": "x" * 201}, "kind")]
)
def test_a_wrong_name_is_refused(bus: EventBus, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        bus.operation(**({"name": "rename"} | options))
    assert caught.value.field == field


def test_waiting_ends_when_the_whole_chain_is_settled(bus: EventBus) -> None:
    group = bus.group("Blog")

    @group.handler(Renamed)
    def greet(event: Renamed) -> None:
        group.publish(Greeted(name=event.name))

    @group.handler(Greeted)
    def end(event: Greeted) -> None: ...

    with memory(bus) as run:
        with bus.operation("rename") as operation:
            bus.publish(ADA)
        with pytest.raises(OperationTimeout, match="1 open deliveries") as caught:
            operation.wait(timeout=0)
        assert caught.value.chain.open == 1
        run.drain()
        chain = operation.wait(timeout=5)
    assert chain.succeeded
    assert [event.event.name for event in chain.walk()] == ["RigUser.renamed", "RigUser.greeted"]


def test_a_chain_is_not_settled_while_events_that_its_handlers_published_meanwhile_wait(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = bus.group("Blog")

    @group.handler(Renamed)
    def greet(event: Renamed) -> None:
        group.publish(Greeted(name=event.name))

    @group.handler(Greeted)
    def note(event: Greeted) -> None: ...

    with memory(bus) as run:
        with bus.operation("rename") as operation:
            bus.publish(ADA)

        def meanwhile(found: list[Any]) -> list[Any]:
            monkeypatch.undo()
            run.drain()
            return found

        events, deliveries = run.store.events.find, run.store.deliveries.find
        monkeypatch.setattr(run.store.events, "find", lambda query: meanwhile(events(query)))
        monkeypatch.setattr(run.store.deliveries, "find", lambda query: meanwhile(deliveries(query)))
        chain = bus.operations.chain(operation.id)
        assert len(list(chain.walk())) == 2
        assert not chain.settled
        assert bus.operations.chain(operation.id).settled


def test_an_event_outside_any_operation_is_a_chain_of_its_own(bus: EventBus) -> None:
    receipt = bus.publish(ADA)
    found = bus.operations.get(receipt.operation_id)
    assert (found.id, found.kind, found.name) == (receipt.id, "publish", "RigUser.renamed")
    assert bus.operations.wait(receipt.operation_id, timeout=1).settled


def test_a_chain_whose_operation_was_never_stored_can_be_looked_at(bus: EventBus) -> None:
    operation = bus.operation("rename", kind="http")
    operation.begin()
    chain = current_chain()
    operation.forget()
    with continue_chain(chain):
        bus.publish(ADA)
    found = bus.operations.chain(operation.id)
    assert (found.operation.id, found.operation.name) == (operation.id, "RigUser.renamed")
    assert [each.event.name for each in found.events] == ["RigUser.renamed"]


def test_an_unknown_operation_is_not_found(bus: EventBus) -> None:
    with pytest.raises(NotFound) as caught:
        bus.operations.chain("nothing")
    assert caught.value.id == "nothing"


@pytest.mark.parametrize("limit", [0, -1, 10_001, 1.5, True, "5"])
def test_a_page_has_bounds(bus: EventBus, limit: Any) -> None:
    with pytest.raises(InvalidOption) as caught:
        bus.operations.find(limit=limit)
    assert caught.value.field == "limit"


def test_a_chain_that_is_cut_says_so(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHAIN", 3)
    with bus.operation("rename") as operation:
        bus.publish_many([ADA] * 5)
    chain = bus.operations.chain(operation.id)
    assert (chain.truncated, len(list(chain.walk()))) == (True, 3)


def test_waiting_inside_the_own_block_is_refused_instead_of_waiting_for_ever(bus: EventBus) -> None:
    with bus.operation("import") as operation, pytest.raises(InvalidOption, match="after its `with` block"):
        operation.wait(timeout=1)


def test_what_a_handler_publishes_in_an_operation_of_its_own_belongs_to_that(bus: EventBus) -> None:
    begun = []

    @bus.group("Blog").handler(Renamed)
    def begin(event: Renamed) -> None:
        with bus.operation("greet", kind="script") as operation:
            bus.publish(Greeted(name=event.name))
        begun.append(operation.id)

    with memory(bus) as run:
        receipt = bus.publish(Renamed(name="Ada"))
        run.drain()
        assert [e.event.name for e in bus.operations.chain(begun[0]).walk()] == ["RigUser.greeted"]
        assert bus.operations.get(begun[0]).parent_id == receipt.operation_id
        assert [e.event.name for e in bus.operations.chain(receipt.operation_id).walk()] == [
            "RigUser.renamed"
        ]


def test_a_run_with_the_same_key_is_the_same_operation_with_the_same_events(bus: EventBus) -> None:
    for host in ("one", "two"):
        with bus.operation(
            "nightly", kind="cron", details={"host": host}, idempotency_key="2026-11-26"
        ) as operation:
            receipts = [bus.publish(Renamed(name=name)) for name in ("Ada", "Ada", "Mary")]
        assert [receipt.duplicate for receipt in receipts] == [host == "two"] * 3
        assert len({receipt.id for receipt in receipts}) == 3
    assert [each.id for each in bus.operations.find(name="nightly")] == [operation.id]
    assert len(list(bus.operations.chain(operation.id).walk())) == 3
    with bus.operation("nightly", kind="cron", idempotency_key="2026-11-27") as other:
        assert not bus.publish(ADA).duplicate
    assert other.id != operation.id


def test_a_second_run_that_takes_another_way_loses_no_event(bus: EventBus) -> None:
    def run(*names: str) -> list[bool]:
        with bus.operation("import", idempotency_key="file-7"):
            return [bus.publish(Renamed(name=name)).duplicate for name in names]

    assert run("Ada", "Mary") == [False, False]
    assert run("Grace", "Mary", "Ada") == [False, True, True]


def test_a_key_of_the_event_itself_wins_over_that_of_the_operation(bus: EventBus) -> None:
    ids = []
    for key in ("a", "b"):
        with bus.operation("import", idempotency_key=key):
            ids.append((bus.publish(ADA, idempotency_key="x").id, bus.publish(ADA, event_id=f"own-{key}").id))
    assert ids[0][0] == ids[1][0]
    assert [own for _, own in ids] == ["own-a", "own-b"]


def test_an_operation_that_is_only_begun_is_stored_by_its_first_event(bus: EventBus) -> None:
    operation = bus.operation("rename", kind="http", details={"method": "POST"})
    operation.begin()
    assert bus.operations.find() == []
    bus.publish(ADA)
    assert [each.status for each in bus.operations.find()] == ["running"]
    operation.describe(variables={"name": "Ada"}, details={"status_code": 200}, user="ada")
    operation.end()
    [found] = bus.operations.find()
    assert (found.id, found.status, found.user) == (operation.id, "succeeded", "ada")
    assert found.variables == {"name": "Ada"}
    assert found.details == {"method": "POST", "status_code": 200}
    assert current_operation_id() is None


def test_a_forgotten_operation_leaves_no_record_unless_it_published(bus: EventBus) -> None:
    for publishes in (False, True):
        operation = bus.operation("replayed")
        operation.begin()
        if publishes:
            bus.publish(ADA)
        operation.forget()
        assert current_operation_id() is None
        assert [each.status for each in bus.operations.find()] == ["succeeded"] * publishes


def test_a_suspended_operation_is_running_until_it_is_begun_again_and_ends(bus: EventBus) -> None:
    for last in (False, True):
        operation = bus.operation("import", idempotency_key="file-7")
        operation.begin()
        assert bus.publish(ADA).duplicate is last
        if last:
            operation.end()
        else:
            operation.suspend(failure_of(ConnectionError("down")))
            assert current_operation_id() == operation.id
            operation.leave()
        assert current_operation_id() is None
        [found] = bus.operations.find()
        assert (found.status, found.finished_at is None) == (
            ("succeeded", False) if last else ("running", True)
        )
        assert (found.error.message if found.error else None) == (None if last else "down")


def test_an_operation_that_could_not_be_stored_is_left_as_well(bus: EventBus) -> None:
    bus.store.unavailable = True  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable), bus.operation("rename"):
        pass
    assert current_operation_id() is None
    operation = bus.operation("rename")
    operation.begin()
    with pytest.raises(StoreUnavailable):
        operation.end()
    assert current_operation_id() is None


def test_what_has_not_begun_cannot_end(bus: EventBus) -> None:
    operation = bus.operation("rename")
    for call in (operation.end, operation.store, operation.describe):
        with pytest.raises(InvalidOption, match="has not begun"):
            call()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"variables": ["a"]}, "variables"),
        ({"details": "text"}, "details"),
        ({"idempotency_key": 7}, "idempotency_key"),
        ({"idempotency_key": "x" * 1001}, "idempotency_key"),
    ],
)
def test_what_cannot_be_stored_with_an_operation_is_refused(
    bus: EventBus, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidOption) as caught:
        bus.operation("rename", **options)
    assert caught.value.field == field
