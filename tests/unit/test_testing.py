"""Testing an application in memory: what drain runs, and how its asserts speak."""

from typing import Any

import pytest

from eventdriven_sync import Discard, EventBus, Reject, RetryPolicy
from eventdriven_sync.testing import memory
from tests.unit.rig import Greeted, Renamed

ADA = Renamed(name="Ada")


@pytest.fixture
def bus() -> EventBus:
    return EventBus(nats="memory://", mongo="memory://", namespace="unit")


def test_retries_take_no_time(bus: EventBus) -> None:
    @bus.group("Blog").handler(Renamed, retry=RetryPolicy(wait=lambda state: 86400.0))
    def fail(event: Renamed) -> None:
        raise ValueError("no")

    with memory(bus) as run:
        bus.publish(ADA)
        assert run.drain(retries=False) == 1
        assert [each.state for each in run.deliveries()] == ["retrying"]
        assert run.drain() == 4
        assert [(each.state, each.failed) for each in run.deliveries()] == [("dead", 5)]


def test_a_secret_in_an_error_is_neither_stored_with_the_delivery_nor_logged(
    bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "kX9-canary-7Qz"
    raising = iter([ValueError(f"password={canary}"), Reject(f"token: {canary}"), Discard(f"pin={canary}")])

    @bus.group("Blog").handler(Renamed)
    def fail(event: Renamed) -> None:
        raise next(raising)

    with memory(bus) as run, caplog.at_level("DEBUG"):
        bus.publish_many([ADA, ADA])
        run.drain()
        assert {each.state for each in run.deliveries()} == {"dead", "discarded"}
        assert sum(len(each.failures) for each in run.deliveries()) == 2
        shown = repr(run.deliveries()) + caplog.text
    assert "password=***" in shown
    assert canary not in shown


def test_an_endless_chain_is_reported(bus: EventBus) -> None:
    group = bus.group("Blog")

    @group.handler(Renamed)
    def again(event: Renamed) -> None:
        group.publish(event)

    with memory(bus) as run:
        bus.publish(ADA)
        with pytest.raises(AssertionError, match="circle"):
            run.drain(limit=20)


def test_asserts_say_what_was_published_instead(bus: EventBus) -> None:
    with memory(bus) as run:
        bus.publish(ADA)
        assert run.assert_published(Renamed, name="Ada", times=1) == [ADA]
        run.assert_not_published(Greeted)
        with pytest.raises(AssertionError, match="Ada"):
            run.assert_published(Renamed, name="Eve")
        with pytest.raises(AssertionError, match="expected 2"):
            run.assert_published(Renamed, times=2)
        with pytest.raises(AssertionError, match=r"RigUser\.renamed"):
            run.assert_published(Greeted)
        with pytest.raises(AssertionError, match="expected no Renamed"):
            run.assert_not_published(Renamed)


@pytest.mark.parametrize("key", [lambda e: [], lambda e: 1 / 0], ids=["unhashable", "raises"])
def test_a_failing_group_by_ends_as_it_does_in_a_worker(bus: EventBus, key: Any) -> None:
    @bus.group("Blog").batch_handler(Renamed, group_by=key)
    def count(batch: Any) -> None: ...

    with memory(bus) as run:
        bus.publish(ADA)
        run.drain()
        assert [each.state for each in run.deliveries()] == ["dead"]


def test_batches_are_formed_by_key_and_size(bus: EventBus) -> None:
    found: list[tuple[Any, int]] = []

    @bus.group("Blog").batch_handler(Renamed, max_size=2, group_by=lambda e: e.number % 2)
    def count(batch: Any) -> None:
        found.append((batch.key, len(batch)))

    with memory(bus) as run:
        bus.publish_many([Renamed(name=str(i), number=i) for i in range(6)])
        run.drain()
    assert sorted(found) == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_the_bus_is_as_before_after_the_block(bus: EventBus) -> None:
    with memory(bus) as run:
        bus.publish(ADA)
    assert bus.store is not run.store
    assert bus.store.events.count(["RigUser.renamed"], since=None) == 0
