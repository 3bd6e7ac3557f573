"""The chain of an operation as a graph: which nodes are shown, what they say, and what stands for many.

Pure functions from a ``Chain`` to a tree of ``Node``; ``layout`` gives each its place. Everything is built
without recursion: a chain may be deeper than Python's stack.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

import attrs

from eventdriven_sync.chain import Chain, ChainDelivery, ChainEvent
from eventdriven_sync.cli.render import FOLD_FROM, MARKS, last_error
from eventdriven_sync.cli.words import clean, duration, first_line, many
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.records import Delivery, Operation

NodeKind = Literal["operation", "event", "delivery", "events", "deliveries", "more"]

WORST_FIRST = ("dead", "retrying", "running", "pending", "discarded", "succeeded")
TROUBLE = ("dead", "retrying")

VISIBLE = 400
"""Nodes drawn before branches are closed; what a person opens is drawn beyond it."""

SINGLE_TROUBLES = 3
OPENED_SIBLINGS = 100
BRANCHES = 150
MAX_VISIBLE = 3000


@attrs.define(eq=False, kw_only=True)
class Node:
    """One box of the graph.

    Attributes:
        id: of the operation, event or delivery; of a node that stands for many one made from its parent's.
        kind: ``events`` and ``deliveries`` stand for many of one name; ``more`` for what is left out.
        state: how it is coloured; empty for what has no state.
        note: its second line.
        edge: the time on the line that leads to it; ``edge_title`` says what it measures.
        count: how many it stands for.
        states: states of the deliveries that a node for many, or a closed branch, stands for.
        opens: ``open`` or ``close`` where it can be opened or closed; empty otherwise.
        hidden: number of nodes behind a closed one.
        due_at: when its next attempt is due.
        error: the last error, in one line.
        ran: how long the handler took (the mean, for many).
    """

    id: str
    kind: NodeKind
    label: str
    state: str = ""
    note: str = ""
    edge: str = ""
    edge_title: str = ""
    count: int = 1
    states: Counter[str] = attrs.field(factory=Counter)
    opens: str = ""
    hidden: int = 0
    due_at: datetime | None = None
    error: str = ""
    ran: str = ""
    children: list[Node] = attrs.field(factory=list)

    def walk(self) -> Iterator[Node]:
        """The node and everything below it, each before its children."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    @property
    def mark(self) -> str:
        """The sign of its state: colour is never the only difference."""
        return MARKS.get(self.state, "")

    @property
    def description(self) -> str:
        """What a screen reader says."""
        error = f", {self.error}" if self.error else ""
        closed = f", {many(self.hidden, 'node')} behind it" if self.hidden else ""
        return f"{self.kind} {self.label}: {self.note or self.state}{error}{closed}"


@attrs.frozen(kw_only=True)
class View:
    """What a person chose to open and to close, by node id."""

    opened: frozenset[str] = frozenset()
    closed: frozenset[str] = frozenset()
    visible: int = VISIBLE


def chain_graph(chain: Chain, view: View | None = None) -> Node:
    """The operation with everything below it that is to be drawn.

    Twenty or more sibling events of one name become one node, of which the first few in trouble are shown
    singly; below it handlers and events are summed up by name. Where more than ``view.visible`` nodes are
    left, the branches of handlers are closed, farthest first; those in trouble stay open longest.
    """
    view = view or View()
    root = operation_node(chain.operation)
    waiting: list[_Branch] = [_Branch(root, chain.events)]
    while waiting:
        branch = waiting.pop()
        for name, siblings in _by_name(branch.events).items():
            waiting += _add_siblings(branch, name, siblings, chain, view)
    if chain.truncated:
        root.children.append(_more(root.id, "the chain has more events than are shown"))
    _close(root, view)
    return root


def operation_node(operation: Operation) -> Node:
    """The command itself."""
    state = {"failed": "dead"}.get(operation.status, operation.status)
    error = operation.error
    return Node(
        id=operation.id,
        kind="operation",
        label=clean(operation.name),
        state=state,
        note=_joined(clean(operation.kind), operation.status, duration(operation.duration_ms)),
        error=first_line(f"{error.error_type}: {error.message}") if error else "",
    )


def worst(states: Mapping[str, int]) -> str:
    """The state that deserves attention first."""
    return next((state for state in WORST_FIRST if states.get(state)), "")


def counted(states: Mapping[str, int]) -> str:
    """``2 dead, 98 succeeded``, worst first."""
    return ", ".join(f"{states[state]:,} {state}" for state in WORST_FIRST if states.get(state))


def started_first(delivery: Delivery, published_at: datetime) -> datetime | None:
    """When its first recorded attempt began; None if it has not begun."""
    if delivery.failures:
        failure = delivery.failures[0]
        return max(failure.failed_at - timedelta(milliseconds=failure.duration_ms), published_at)
    return delivery.started_at


def _by_name(events: Sequence[ChainEvent]) -> dict[str, list[ChainEvent]]:
    found: dict[str, list[ChainEvent]] = defaultdict(list)
    for item in events:
        found[item.event.name].append(item)
    return found


@attrs.frozen
class _Branch:
    """Events that are still to be added below a node; ``summed`` if the node stands for many itself."""

    parent: Node
    events: Sequence[ChainEvent]
    summed: bool = False


def _add_siblings(
    branch: _Branch, name: str, siblings: list[ChainEvent], chain: Chain, view: View
) -> list[_Branch]:
    """Events of one name below one node, singly or as one; what is still to be added below them."""
    parent = branch.parent
    if branch.summed:
        return _add_events(parent, name, siblings)
    if len(siblings) < FOLD_FROM:
        return [more for item in siblings for more in _add_event(parent, item, chain)]
    if f"{parent.id}/{name}" in view.opened:
        return _add_opened(parent, name, siblings, chain)
    single = [item for item in siblings if _troubled(item)][:SINGLE_TROUBLES]
    shown = {item.event.id for item in single}
    rest = [item for item in siblings if item.event.id not in shown]
    found = [more for item in single for more in _add_event(parent, item, chain)]
    found += _add_events(parent, name, rest, opens="open")
    return found


def _troubled(item: ChainEvent) -> bool:
    return any(child.delivery.state in TROUBLE for child in item.deliveries)


def _add_event(parent: Node, item: ChainEvent, chain: Chain) -> list[_Branch]:
    """One event with its handlers."""
    event = item.event
    node = Node(id=event.id, kind="event", label=clean(event.name), note=_event_note(item))
    if parent.kind == "operation":
        node.edge = f"+{_milliseconds(chain.operation.started_at, event.published_at)}"
        node.edge_title = "published so long after the operation began"
    _tell_run(parent, node)
    parent.children.append(node)
    branches = []
    for child in item.deliveries:
        leaf = _delivery_node(child, event)
        node.children.append(leaf)
        branches.append(_Branch(leaf, child.events))
    return branches


def _tell_run(parent: Node, node: Node) -> None:
    if parent.ran:
        node.edge = f"ran {parent.ran}"
        node.edge_title = "time in the handler that published it"


def _event_note(item: ChainEvent) -> str:
    event = item.event
    return _joined(
        f"v{event.version}" if event.version > 1 else "",
        f"key {clean(event.key)}" if event.key is not None else "",
        "" if item.deliveries else "no handler",
    )


def _delivery_node(child: ChainDelivery, event: Envelope) -> Node:
    delivery = child.delivery
    begun = started_first(delivery, event.published_at)
    known = delivery.reason in ("", "attempts_exhausted")
    state = delivery.state if known else f"{delivery.state} ({clean(delivery.reason)})"
    tried = many(delivery.attempts, "attempt") if delivery.attempts > 1 else ""
    ran = duration(delivery.duration_ms)
    return Node(
        id=delivery.id,
        kind="delivery",
        label=clean(delivery.handler),
        state=delivery.state,
        note=_joined(state, tried, _retried(delivery.generation), ran if not child.events else ""),
        edge=f"waited {_milliseconds(event.published_at, begun)}" if begun else "",
        edge_title="from publishing to the start of the handler",
        due_at=delivery.due_at if delivery.state == "retrying" else None,
        error=last_error(delivery) if delivery.state != "succeeded" else "",
        ran=ran,
    )


def _retried(generation: int) -> str:
    return f"retried {generation}×" if generation else ""


def _add_opened(parent: Node, name: str, items: list[ChainEvent], chain: Chain) -> list[_Branch]:
    """A node for many that a person opened: they hang below it, those in trouble first."""
    node = _events_node(parent, name, len(items))
    node.opens = "close"
    items = sorted(items, key=lambda item: not _troubled(item))
    found = [more for item in items[:OPENED_SIBLINGS] for more in _add_event(node, item, chain)]
    if len(items) > OPENED_SIBLINGS:
        node.children.append(_more(node.id, f"… and {len(items) - OPENED_SIBLINGS:,} more"))
    return found


def _events_node(parent: Node, name: str, count: int) -> Node:
    node = Node(id=f"{parent.id}/{name}", kind="events", label=clean(name), count=count)
    node.note = many(count, "event")
    _tell_run(parent, node)
    parent.children.append(node)
    return node


def _add_events(parent: Node, name: str, items: Sequence[ChainEvent], *, opens: str = "") -> list[_Branch]:
    """One node for many events of a name, below it one for each handler."""
    node = _events_node(parent, name, len(items))
    node.opens = opens
    by_handler: dict[str, list[tuple[ChainDelivery, Envelope]]] = defaultdict(list)
    for item in items:
        for child in item.deliveries:
            by_handler[child.delivery.handler].append((child, item.event))
    branches = []
    for handler, pairs in sorted(by_handler.items()):
        leaf = _deliveries_node(node.id, handler, pairs)
        node.children.append(leaf)
        node.states += leaf.states
        below = [event for child, _ in pairs for event in child.events]
        branches.append(_Branch(leaf, below, summed=True))
    node.state = worst(node.states)
    return branches


def _deliveries_node(parent_id: str, handler: str, pairs: Sequence[tuple[ChainDelivery, Envelope]]) -> Node:
    deliveries = [child.delivery for child, _ in pairs]
    states: Counter[str] = Counter(delivery.state for delivery in deliveries)
    begun = [
        (event.published_at, started_first(child.delivery, event.published_at)) for child, event in pairs
    ]
    waited = [(start - published).total_seconds() * 1000 for published, start in begun if start]
    return Node(
        id=f"{parent_id}/{handler}",
        kind="deliveries",
        label=clean(handler),
        state=worst(states),
        note=counted(states),
        edge=f"waited ø {_mean(waited)}" if waited else "",
        edge_title="mean time from publishing to the start of the handler",
        count=len(pairs),
        states=states,
        ran=_mean([delivery.duration_ms for delivery in deliveries if delivery.duration_ms is not None]),
    )


def _mean(milliseconds: Sequence[float]) -> str:
    return duration(max(sum(milliseconds) / len(milliseconds), 0.0)) if milliseconds else ""


def _more(parent_id: str, text: str) -> Node:
    return Node(id=f"{parent_id}/more", kind="more", label=text)


def _milliseconds(begin: datetime, end: datetime) -> str:
    return duration(max((end - begin).total_seconds() * 1000, 0.0))


def _joined(*parts: str) -> str:
    return " · ".join(filter(None, parts))


# --- closing branches --------------------------------------------------------------------------------


def _close(root: Node, view: View) -> None:
    """Take away what lies behind closed nodes and say on them what it is."""
    kept = _kept(root, view)
    for node in list(root.walk()):
        if not node.children:
            continue
        if node.id not in kept:
            _shut(node)
        elif _closable(node):
            node.opens = "close"
        if len(node.children) > BRANCHES:
            rest = node.children[BRANCHES:]
            node.children[BRANCHES:] = [_more(node.id, f"… and {len(rest):,} more")]


def _kept(root: Node, view: View) -> set[str]:
    """Ids of the nodes whose children are drawn: trouble first, then the nearest to the operation."""
    troubled = _leading_to_trouble(root)
    kept: set[str] = set()
    drawn, order = 1, 0
    queue: list[tuple[bool, bool, int, int, Node]] = [(False, False, 0, 0, root)]
    while queue:
        _, _, depth, _, node = heapq.heappop(queue)
        wanted = node.id in view.opened and drawn < MAX_VISIBLE
        cost = _cost(node)
        if node.id in view.closed or (_closable(node) and not wanted and drawn + cost > view.visible):
            continue
        kept.add(node.id)
        drawn += cost
        for child in node.children:
            order += 1
            rank = (child.id not in view.opened, child.id not in troubled, depth + 1, order, child)
            heapq.heappush(queue, rank)
    return kept


def _closable(node: Node) -> bool:
    return node.kind in ("delivery", "deliveries")


def _cost(node: Node) -> int:
    """How many nodes appear when it is opened: those down to the next that can be closed themselves."""
    if not (_closable(node) or node.kind == "operation"):
        return 0
    cost, waiting = 0, list(node.children)
    while waiting:
        below = waiting.pop()
        cost += 1
        if not _closable(below):
            waiting += below.children
    return cost


def _leading_to_trouble(root: Node) -> set[str]:
    found: set[str] = set()
    for node in reversed(list(root.walk())):
        if node.state in TROUBLE or any(child.id in found for child in node.children):
            found.add(node.id)
    return found


def _shut(node: Node) -> None:
    behind = [each for child in node.children for each in child.walk()]
    node.hidden = len(behind)
    node.opens = "open"
    for each in behind:
        if each.kind == "delivery":
            node.states[each.state] += 1
        elif each.kind == "deliveries":
            node.states += each.states
    node.children = []
