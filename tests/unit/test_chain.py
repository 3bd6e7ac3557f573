"""The chain of an operation: a tree, whatever order, parents and gaps its records have."""

from datetime import timedelta

import attrs

from eventdriven_sync.chain import Chain, build_chain
from eventdriven_sync.envelope import Envelope, utcnow
from eventdriven_sync.records import Delivery, HandlerRecord, Operation, delivery_id

NOW = utcnow()
OPERATION = Operation(id="op", name="rename", kind="http", status="succeeded", started_at=NOW)


def make_event(key: str, *, parents: tuple[str, ...] = (), source: str = "", depth: int = 0) -> Envelope:
    return Envelope(
        id=key, name="User.renamed", version=1, data={}, published_at=NOW, operation_id="op",
        parent_ids=parents, source=source, depth=depth,
    )  # fmt: skip


def make_delivery(event: str, handler: str = "Blog.a", state: str = "succeeded") -> Delivery:
    return Delivery(
        id=delivery_id(handler, event), handler=handler, event_id=event, event_name="User.renamed",
        operation_id="op", state=state, created_at=NOW,  # type: ignore[arg-type]
    )  # fmt: skip


def make_record(name: str = "Blog.a", **changes: object) -> HandlerRecord:
    made = HandlerRecord(name=name, events=("User.renamed",), starts_at=None, registered_at=NOW, seen_at=NOW)
    return attrs.evolve(made, **changes)  # type: ignore[arg-type]


def shape(chain: Chain) -> list[tuple[str, list[str]]]:
    return [
        (event.event.id, [child.event.id for d in event.deliveries for child in d.events])
        for event in chain.walk()
    ]


def test_an_event_hangs_below_the_delivery_that_published_it() -> None:
    events = [
        make_event("1"),
        make_event("2", parents=("1",), source="Blog.a", depth=1),
        make_event("3", parents=("1",), source="Blog.b", depth=1),
    ]
    found = build_chain(
        OPERATION, events, [make_delivery("1"), make_delivery("1", "Blog.b"), make_delivery("2")], []
    )
    assert shape(found) == [("1", ["2", "3"]), ("2", []), ("3", [])]
    first = found.events[0].deliveries
    assert [(d.delivery.handler, [e.event.id for e in d.events]) for d in first] == [
        ("Blog.a", ["2"]),
        ("Blog.b", ["3"]),
    ]
    assert (found.settled, found.succeeded, found.open) == (True, True, 0)


def test_what_a_batch_published_hangs_below_its_first_known_parent_only() -> None:
    events = [
        make_event("2"),
        make_event("3"),
        make_event("4", parents=("1", "2", "3"), source="Blog.a", depth=1),
    ]
    found = build_chain(OPERATION, events, [make_delivery("2"), make_delivery("3")], [])
    assert shape(found) == [("2", ["4"]), ("4", []), ("3", [])]


def test_a_handler_that_has_not_begun_appears_as_pending() -> None:
    found = build_chain(OPERATION, [make_event("1")], [], [make_record(), make_record("Blog.b")])
    assert [(d.handler, d.state) for d in found.deliveries] == [("Blog.a", "pending"), ("Blog.b", "pending")]
    assert (found.settled, found.open) == (False, 2)


def test_nothing_is_expected_of_a_handler_that_began_later_or_listens_to_something_else() -> None:
    records = [make_record(starts_at=NOW + timedelta(seconds=1)), make_record("Blog.b", events=("Other",))]
    assert build_chain(OPERATION, [make_event("1")], [], records).deliveries == []


def test_a_running_operation_is_not_settled() -> None:
    running = attrs.evolve(OPERATION, status="running")
    assert not build_chain(running, [], [], []).settled


def test_a_dead_delivery_is_settled_and_not_succeeded() -> None:
    found = build_chain(OPERATION, [make_event("1")], [make_delivery("1", state="dead")], [])
    assert (found.settled, found.succeeded) == (True, False)


def test_events_of_foreign_publishers_without_depth_stay_in_the_tree() -> None:
    events = [make_event("1"), make_event("2", parents=("1",), source="Blog.a")]
    deliveries = [make_delivery("1")]
    assert shape(build_chain(OPERATION, events, deliveries, [])) == [("1", ["2"]), ("2", [])]
    assert shape(build_chain(OPERATION, events[::-1], deliveries, [])) == [("1", ["2"]), ("2", [])]


def test_events_that_name_each_other_as_parents_are_all_shown() -> None:
    events = [
        make_event("1", parents=("2",), source="Blog.a"),
        make_event("2", parents=("1",), source="Blog.a"),
        make_event("3", parents=("2",), source="Blog.a"),
    ]
    found = build_chain(OPERATION, events, [make_delivery(e.id) for e in events], [])
    assert sorted(each.event.id for each in found.walk()) == ["1", "2", "3"]


def test_a_parent_that_is_not_shown_leaves_its_child_at_the_top() -> None:
    events = [make_event("9", parents=("1",), source="Blog.a", depth=7)]
    assert shape(build_chain(OPERATION, events, [], [], truncated=True)) == [("9", [])]


def test_a_deep_chain_is_no_problem() -> None:
    size = 5000
    events = [
        make_event(str(i), parents=(str(i - 1),) if i else (), source="Blog.a" if i else "", depth=i)
        for i in range(size)
    ]
    found = build_chain(OPERATION, events, [make_delivery(str(i)) for i in range(size)], [])
    assert sum(1 for _ in found.walk()) == size
    assert len(found.events) == 1


def test_a_wide_chain_keeps_the_order_of_publishing() -> None:
    events = [make_event("root")] + [
        attrs.evolve(
            make_event(f"{i:05}", parents=("root",), source="Blog.a", depth=1),
            published_at=NOW + timedelta(milliseconds=i),
        )
        for i in range(5000)
    ]
    found = build_chain(OPERATION, events, [make_delivery("root")], [])
    ids = [each.event.id for each in found.events[0].deliveries[0].events]
    assert ids == [f"{i:05}" for i in range(5000)]
