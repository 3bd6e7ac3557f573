"""The chain summary: what many events of one name set off, added up place by place."""

from typing import Any

import pytest

from eventdriven_sync.figures import DeliveryLink, EventLink, Links
from eventdriven_sync.monitoring.summary import MAX_DEPTH, summarise


def event(key: str, name: str, *parents: str, source: str = "") -> EventLink:
    return EventLink(id=key, name=name, parent_ids=parents, source=source)


def delivery(event_id: str, handler: str, state: str = "succeeded", **more: Any) -> DeliveryLink:
    rest = {"failed": 0, "duration_ms": 10.0}
    return DeliveryLink(event_id=event_id, handler=handler, state=state, **(rest | more))


def links(roots: list[EventLink], events: list[EventLink], deliveries: list[DeliveryLink]) -> Links:
    return Links(roots=tuple(roots), events=tuple(events), deliveries=tuple(deliveries), truncated=False)


def test_handlers_and_their_answers_are_added_up() -> None:
    roots = [event("1", "User.renamed"), event("2", "User.renamed"), event("3", "User.renamed")]
    answers = [
        event("1a", "Blog.updated", "1", source="Blog.rename"),
        event("2a", "Blog.updated", "2", source="Blog.rename"),
        event("2b", "Mail.queued", "2", source="Blog.rename"),
        event("1x", "Other.event", "1", source="Other.handler"),
    ]
    found = summarise(
        "User.renamed",
        links(
            roots,
            [*roots, *answers],
            [
                delivery("1", "Blog.rename", duration_ms=10.0),
                delivery("2", "Blog.rename", failed=1, duration_ms=30.0),
                delivery("3", "Blog.rename", "dead", failed=5, duration_ms=20.0),
                delivery("1", "Comment.rename", "retrying", failed=1),
                delivery("2", "Comment.rename", "pending", duration_ms=None),
                delivery("1a", "Search.index"),
            ],
        ),
    )
    assert (found.name, found.count) == ("User.renamed", 3)
    blog, comment = found.handlers
    assert (blog.name, blog.count, blog.succeeded, blog.failed, blog.dead, blog.open) == (
        "Blog.rename",
        3,
        2,
        2,
        1,
        0,
    )
    assert blog.failure_ratio == pytest.approx(2 / 3)
    assert blog.p50_ms == 20.0
    assert blog.p95_ms == pytest.approx(29.0)
    assert (comment.name, comment.open, comment.failed) == ("Comment.rename", 2, 1)
    assert comment.p50_ms == comment.p95_ms == 10.0
    assert [(each.name, each.count) for each in blog.events] == [("Blog.updated", 2), ("Mail.queued", 1)]
    [index] = blog.events[0].handlers
    assert (index.name, index.count) == ("Search.index", 1)
    assert comment.events == ()


def test_without_deliveries_nothing_was_measured() -> None:
    found = summarise(
        "A.a", links([event("1", "A.a")], [], [delivery("1", "G.h", "pending", duration_ms=None)])
    )
    assert found.handlers[0].p50_ms is None
    assert found.handlers[0].p95_ms is None
    assert summarise("A.a", links([], [], [])).handlers == ()


def test_events_that_follow_from_each_other_in_a_circle_end() -> None:
    roots = [event("1", "A.a", "2", source="G.h")]
    back = [event("2", "B.b", "1", source="G.h"), roots[0]]
    found = summarise("A.a", links(roots, back, [delivery("1", "G.h"), delivery("2", "G.h")]))
    [answer] = found.handlers[0].events
    assert (answer.name, answer.handlers[0].events) == ("B.b", ())


def test_an_answer_to_several_events_is_counted_once() -> None:
    roots = [event("1", "A.a"), event("2", "A.a")]
    answer = event("3", "B.b", "1", "2", source="G.batch")
    found = summarise("A.a", links(roots, [answer], [delivery("1", "G.batch"), delivery("2", "G.batch")]))
    assert [each.count for each in found.handlers[0].events] == [1]


def test_a_very_deep_chain_is_cut() -> None:
    events = [event("0", "A.a")]
    events += [event(str(n), "A.a", str(n - 1), source="G.h") for n in range(1, 50)]
    found = summarise("A.a", links(events[:1], events[1:], [delivery(str(n), "G.h") for n in range(50)]))
    depth, below = 0, found.handlers[0].events
    while below:
        depth, below = depth + 1, below[0].handlers[0].events
    assert depth == MAX_DEPTH
