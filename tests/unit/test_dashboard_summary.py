"""The chain summary of an event name, drawn."""

from typing import Any

from eventdriven_sync.dashboard.graph import Node
from eventdriven_sync.dashboard.summary_graph import summary_graph
from eventdriven_sync.monitoring.summary import ChainSummary, SummaryEvent, SummaryHandler
from tests.unit.chains import NOW


def handler(*events: SummaryEvent, name: str = "Blog.rename", **changes: Any) -> SummaryHandler:
    given: dict[str, Any] = {
        "name": name,
        "count": 100,
        "succeeded": 100,
        "failed": 0,
        "dead": 0,
        "open": 0,
        "p50_ms": 4.0,
        "p95_ms": 12.0,
        "events": events,
    }
    return SummaryHandler(**given | changes)


def of(*handlers: SummaryHandler) -> ChainSummary:
    root = SummaryEvent(name="User.renamed", count=100, handlers=handlers)
    return ChainSummary(
        name="User.renamed", since=NOW, until=NOW, total=100, sampled=100, root=root, truncated=False
    )


def lines(root: Node) -> list[str]:
    return [" | ".join(filter(None, (node.label, node.edge, node.note, node.state))) for node in root.walk()]


def test_handlers_say_how_many_failed_and_how_long_they_take() -> None:
    below = SummaryEvent(name="Blog.changed", count=50, handlers=())
    drawn = summary_graph(
        of(handler(below), handler(name="Comment.rename", failed=25, dead=3, succeeded=90, open=7))
    )
    assert lines(drawn.root) == [
        "User.renamed | 100 events",
        "Blog.rename | 100 deliveries | 4 ms / 12 ms | succeeded",
        "Blog.changed | ×0.5 | 50 events, no handler",
        "Comment.rename | 100 deliveries | 25 % failed · 4 ms / 12 ms | dead",
    ]


def test_what_failed_once_in_many_times_is_not_shown_as_nothing() -> None:
    drawn = summary_graph(of(handler(count=100_000, failed=1, p50_ms=None, p95_ms=None)))
    assert drawn.root.children[0].note == "0.1 % failed"


def test_every_node_leads_to_the_event_or_handler_it_stands_for() -> None:
    below = SummaryEvent(name="Blog.changed", count=1, handlers=(handler(name="Blog.rename"),))
    drawn = summary_graph(of(handler(below)))
    assert {drawn.names[node.id] for node in drawn.root.walk()} == {
        "User.renamed",
        "Blog.rename",
        "Blog.changed",
    }
    assert len({node.id for node in drawn.root.walk()}) == 4
