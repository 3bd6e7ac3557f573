"""The chain summary of an event name as a graph: what such events set off, added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import attrs

from eventdriven_sync.cli.words import clean, duration, many
from eventdriven_sync.dashboard.graph import Node, worst
from eventdriven_sync.monitoring.summary import ChainSummary, SummaryEvent, SummaryHandler


@attrs.frozen(kw_only=True)
class SummaryGraph:
    """The drawn summary.

    Attributes:
        names: the event or handler that a node stands for, by the node's id.
    """

    root: Node
    names: Mapping[str, str]


def summary_graph(summary: ChainSummary) -> SummaryGraph:
    """Events and handlers from left to right; how often each was reached stands on the lines."""
    names: dict[str, str] = {}
    root = _event_node("", summary.root, names)
    waiting = [(root, summary.root)]
    while waiting:
        node, event = waiting.pop()
        for handler in event.handlers:
            leaf = _handler_node(node.id, handler, names)
            node.children.append(leaf)
            for below in handler.events:
                child = _event_node(leaf.id, below, names)
                child.edge, child.edge_title = _answers(below, handler), "events for each delivery"
                leaf.children.append(child)
                waiting.append((child, below))
    return SummaryGraph(root=root, names=names)


def _event_node(above: str, event: SummaryEvent, names: dict[str, str]) -> Node:
    node = Node(id=f"{above}/{event.name}", kind="events", label=clean(event.name), count=event.count)
    node.note = many(event.count, "event") + ("" if event.handlers else ", no handler")
    names[node.id] = event.name
    return node


def _handler_node(above: str, handler: SummaryHandler, names: dict[str, str]) -> Node:
    states = {"dead": handler.dead, "pending": handler.open, "succeeded": handler.succeeded}
    node = Node(
        id=f"{above}/{handler.name}",
        kind="deliveries",
        label=clean(handler.name),
        state=worst(states),
        note=_note(handler),
        edge=many(handler.count, "delivery", "deliveries"),
        count=handler.count,
        states=Counter({state: count for state, count in states.items() if count}),
    )
    names[node.id] = handler.name
    return node


def _note(handler: SummaryHandler) -> str:
    failed = f"{_percent(handler.failure_ratio)} failed" if handler.failed else ""
    times = [duration(each) for each in (handler.p50_ms, handler.p95_ms) if each is not None]
    return " · ".join(filter(None, (failed, " / ".join(times))))


def _percent(ratio: float) -> str:
    """``0.3 %``, ``12 %``: what happened at all is never shown as nothing."""
    percent = ratio * 100
    return f"{percent:.0f} %" if percent >= 10 else f"{max(percent, 0.1):.1f} %"


def _answers(event: SummaryEvent, handler: SummaryHandler) -> str:
    each = event.count / handler.count if handler.count else 0.0
    return f"×{each:.0f}" if each == int(each) else f"×{each:.2g}"
