"""The dead-letter queue: found, retried for the handler that failed only, discarded for good."""

from collections.abc import Iterator
from typing import Any

import pytest

from eventdriven_sync import EventBus, Reject
from eventdriven_sync.errors import InvalidOption, InvalidTransition, NotFound
from eventdriven_sync.testing import MemoryRun, memory
from tests.unit.rig import Renamed

ADA = Renamed(name="Ada")


class Switch:
    broken = True


@pytest.fixture
def run() -> Iterator[MemoryRun]:
    bus = EventBus(nats="memory://", mongo="memory://", namespace="unit")
    with memory(bus) as made:
        yield made


@pytest.fixture
def bus(run: MemoryRun) -> EventBus:
    return run._bus


@pytest.fixture
def dead(bus: EventBus, run: MemoryRun) -> str:
    """One dead letter of Blog.fail; Blog.fine has handled the same event. Its id."""
    bus.group("Blog").handler(Renamed, name="fine")(lambda e: None)

    def fail(event: Renamed) -> None:
        if Switch.broken:
            raise Reject("no")

    bus.group("Blog").handler(Renamed)(fail)
    Switch.broken = True
    receipt = bus.publish(ADA)
    run.drain()
    return f"Blog.fail:{receipt.id}"


def test_a_dead_letter_is_found_by_what_is_known_of_it(bus: EventBus, dead: str) -> None:
    assert [each.id for each in bus.dead_letters.find()] == [dead]
    for matching in (
        {"handler": "Blog.fail"}, {"group": "Blog"}, {"event": "RigUser.renamed"},
        {"error": "Reject"}, {"reason": "rejected"},
    ):  # fmt: skip
        assert [each.id for each in bus.dead_letters.find(**matching)] == [dead]  # type: ignore[arg-type]
    assert bus.dead_letters.find(handler="Blog.fine") == []
    assert (bus.dead_letters.count(), bus.dead_letters.count(group="Other")) == (1, 0)


def test_a_retry_reaches_only_the_handler_that_failed(bus: EventBus, run: MemoryRun, dead: str) -> None:
    Switch.broken = False
    bus.dead_letters.retry(dead, by="ada")
    assert run.drain() == 1
    found = bus.dead_letters.get(dead)
    assert (found.state, found.generation, len(found.failures)) == ("succeeded", 1, 1)


def test_a_retry_that_fails_again_is_dead_again_with_its_history(
    bus: EventBus, run: MemoryRun, dead: str
) -> None:
    assert bus.dead_letters.retry_all(error="Reject") == 1
    run.drain()
    found = bus.dead_letters.get(dead)
    assert (found.state, [each.generation for each in found.failures]) == ("dead", [0, 1])


def test_only_what_is_dead_can_be_retried(bus: EventBus, dead: str) -> None:
    fine = dead.replace("fail", "fine")
    with pytest.raises(InvalidTransition, match="'succeeded'; only 'dead' can be retried") as caught:
        bus.dead_letters.retry(fine)
    assert (caught.value.id, caught.value.state) == (fine, "succeeded")


def test_a_discarded_letter_stays_on_record_and_has_no_way_back(bus: EventBus, dead: str) -> None:
    bus.dead_letters.discard(dead, reason="a test account", by="ada")
    found = bus.dead_letters.get(dead)
    assert (found.state, found.reason) == ("discarded", "a test account")
    with pytest.raises(InvalidTransition, match="'discarded'"):
        bus.dead_letters.discard(dead, reason="again")
    with pytest.raises(InvalidTransition, match="'discarded'"):
        bus.dead_letters.retry(dead)


@pytest.mark.parametrize("reason", ["", "   ", None, 5])
def test_discarding_needs_a_reason(bus: EventBus, dead: str, reason: Any) -> None:
    with pytest.raises(InvalidOption) as caught:
        bus.dead_letters.discard(dead, reason=reason)
    assert caught.value.field == "reason"


@pytest.mark.parametrize("action", ["get", "retry"])
def test_an_unknown_letter_is_not_found(bus: EventBus, action: str) -> None:
    with pytest.raises(NotFound) as caught:
        getattr(bus.dead_letters, action)("Blog.fail:nothing")
    assert caught.value.id == "Blog.fail:nothing"


@pytest.mark.parametrize("limit", [0, -1, 10_001, True, "5"])
def test_a_page_has_bounds(bus: EventBus, limit: Any) -> None:
    with pytest.raises(InvalidOption) as caught:
        bus.dead_letters.find(limit=limit)
    assert caught.value.field == "limit"
