"""Groups: every group gets every event, the handlers of one group each theirs."""

from typing import Any

from eventdriven_sync import EventBus
from eventdriven_sync.testing import memory
from tests.unit.rig import Greeted, Renamed


def test_two_groups_each_get_every_event_and_publish_in_its_chain() -> None:
    bus = EventBus(nats="memory://", mongo="memory://", namespace="unit")
    seen: list[tuple[str, Any]] = []
    for name in ("Blog", "Comment"):
        group = bus.group(name)

        def handle(event: Renamed, group: Any = group) -> None:
            seen.append((group.name, event.name))
            group.publish(Greeted(name=group.name))

        group.handler(Renamed)(handle)
    with memory(bus) as run:
        receipt = bus.publish(Renamed(name="Ada"))
        run.drain()
        greeted = run.envelopes("RigUser.greeted")
    assert sorted(seen) == [("Blog", "Ada"), ("Comment", "Ada")]
    assert {each.source for each in greeted} == {"Blog.handle", "Comment.handle"}
    assert {(each.operation_id, each.parent_ids) for each in greeted} == {(receipt.id, (receipt.id,))}


def test_a_group_may_be_asked_for_many_times() -> None:
    bus = EventBus(nats="memory://", mongo="memory://", namespace="unit")
    bus.group("Blog").handler(Renamed, name="one")(lambda e: None)
    bus.group("Blog").handler(Renamed, name="two")(lambda e: None)
    assert set(bus.handlers) == {"Blog.one", "Blog.two"}
