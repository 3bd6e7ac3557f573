"""A chain that leaves the process goes on elsewhere: operation, causation and ids stay."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from eventdriven_sync import (
    EventBus,
    Settings,
    continue_chain,
    current_chain,
    current_operation_id,
)
from eventdriven_sync.errors import ChainTooDeep, ConfigurationError, InvalidOption
from eventdriven_sync.testing import memory
from tests.unit.rig import Greeted, Renamed

ADA = Renamed(name="Ada")


@pytest.fixture
def bus() -> Iterator[EventBus]:
    settings = Settings(nats="memory://", mongo="memory://", namespace="unit", max_chain_depth=3)
    with EventBus(settings=settings) as made:
        yield made


def carried(chain: dict[str, Any]) -> dict[str, Any]:
    """As a message queue would bring it."""
    return dict(json.loads(json.dumps(chain)))


def test_outside_of_any_chain_there_is_nothing_to_carry() -> None:
    assert current_chain() == {}


def test_what_is_published_elsewhere_belongs_to_the_operation(bus: EventBus) -> None:
    with bus.operation("import") as operation:
        chain = carried(current_chain())
    with continue_chain(chain):
        assert current_operation_id() == operation.id
        receipt = bus.publish(ADA, source="Importer")
        assert current_chain() == chain
    assert receipt.operation_id == operation.id
    assert current_operation_id() is None
    [event] = bus.operations.chain(operation.id).events
    assert (event.event.source, event.event.depth, event.event.parent_ids) == ("Importer", 0, ())


def test_what_a_handler_set_off_elsewhere_hangs_below_its_delivery(bus: EventBus) -> None:
    chains: list[dict[str, Any]] = []

    @bus.group("Blog").handler(Renamed)
    def send(event: Renamed) -> None:
        chains.append(carried(current_chain()))

    with memory(bus) as run:
        receipt = bus.publish(ADA)
        run.drain()
        with continue_chain(chains[0]):
            child = bus.publish(Greeted(name="Ada"), source="ignored")
        [root] = bus.operations.chain(receipt.operation_id).events
        [below] = root.deliveries[0].events
    assert (below.event.id, below.event.source, below.event.depth) == (child.id, "Blog.send", 1)
    assert below.event.parent_ids == (receipt.id,)


def test_a_run_that_is_repeated_publishes_the_same_events(bus: EventBus) -> None:
    with bus.operation("import"):
        chain = current_chain()
    seen = []
    for key in ("task-1", "task-1", "task-2"):
        with continue_chain(chain, idempotency_key=key):
            seen.append([bus.publish(ADA), bus.publish(ADA), bus.publish(Greeted(name="Ada"))])
    first, again, other = ([receipt.id for receipt in receipts] for receipts in seen)
    assert first == again
    assert len(set(first)) == 3
    assert not set(first) & set(other)
    assert [receipt.duplicate for receipt in seen[1]] == [True] * 3


def test_a_chain_that_goes_round_in_circles_through_a_queue_is_stopped(bus: EventBus) -> None:
    with continue_chain({"operation_id": "op", "depth": 4}), pytest.raises(ChainTooDeep):
        bus.publish(ADA)


@pytest.mark.parametrize(
    "chain",
    [
        None,
        {},
        {"operation_id": ""},
        {"operation_id": {"$ne": None}},
        {"operation_id": "op", "parent_ids": "abc"},
        {"operation_id": "op", "parent_ids": ["x"] * 51},
        {"operation_id": "op", "parent_ids": [None]},
        {"operation_id": "op", "source": "x" * 201},
        {"operation_id": "op", "source": 7},
        {"operation_id": "op", "depth": -1},
        {"operation_id": "op", "depth": "1"},
    ],
)
def test_what_is_no_chain_is_refused(chain: Any) -> None:
    with pytest.raises(InvalidOption), continue_chain(chain):
        pytest.fail("it was entered")
    assert current_operation_id() is None


def test_handlers_run_inside_the_context_that_the_bus_was_given(bus: EventBus) -> None:
    inside: list[str] = []

    @contextmanager
    def application() -> Iterator[None]:
        inside.append("entered")
        yield
        inside.append("left")

    bus.handler_context = application
    group = bus.group("Blog")

    @group.handler(Renamed)
    def one(event: Renamed) -> None:
        inside.append("handled")

    @group.batch_handler(Greeted)
    def many(batch: Any) -> None:
        inside.append("handled a batch")

    @group.handler(Renamed, transactional=True, name="third")
    def in_transaction(event: Renamed, session: Any) -> None:
        inside.append("handled in a transaction")

    with memory(bus) as run:
        bus.publish_many([ADA, Greeted(name="Ada")])
        run.drain()
    assert sorted(zip(inside[::3], inside[1::3], inside[2::3], strict=True)) == [
        ("entered", "handled", "left"),
        ("entered", "handled a batch", "left"),
        ("entered", "handled in a transaction", "left"),
    ]


def test_a_context_that_cannot_be_entered_is_a_failed_attempt(bus: EventBus) -> None:
    def broken() -> Any:
        raise RuntimeError("no application here")

    bus.handler_context = broken
    bus.group("Blog").handler(Renamed, name="never")(lambda event: pytest.fail("it ran"))
    with memory(bus) as run:
        bus.publish(ADA)
        run.drain(retries=False)
        [delivery] = run.deliveries()
    assert delivery.state == "retrying"
    assert delivery.failures[0].message == "no application here"


def test_a_bus_in_memory_has_no_client_of_mongo(bus: EventBus) -> None:
    with pytest.raises(ConfigurationError, match="without a MongoClient"):
        _ = bus.mongo_client
