"""The page of an operation's chain: drawn, over time or as text, with the detail of a node beside it."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import attrs
from werkzeug.wrappers import Response

from eventdriven_sync.chain import Chain
from eventdriven_sync.cli.render import plain_chain
from eventdriven_sync.dashboard import asking
from eventdriven_sync.dashboard.exports import mermaid
from eventdriven_sync.dashboard.graph import WORST_FIRST, Node, View, chain_graph, worst
from eventdriven_sync.dashboard.layout import lay_out
from eventdriven_sync.dashboard.mount import identity, monitor, url
from eventdriven_sync.dashboard.rendering import render
from eventdriven_sync.dashboard.routing import Routes
from eventdriven_sync.dashboard.waterfall import waterfall
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import NotFound, shorten
from eventdriven_sync.monitor import Monitor
from eventdriven_sync.records import Delivery, Operation

SHAPES = ("graph", "waterfall", "text")
BRANCHES = ("delivery", "deliveries")

chain_pages = Routes()


@chain_pages.get("/operations/<operation_id>", role="viewer")
def chain(operation_id: str) -> Response:
    """The chain of an operation."""
    asked = monitor()
    found = asked.chain(operation_id)
    shape = asking.one_of("view", SHAPES) or "graph"
    selected = asking.text("node") or ""
    links = Links.asked(operation_id, shape, selected)
    return render(
        "chain.html",
        chain=found,
        summary=Summary.of(found),
        shape=shape,
        selected=selected,
        links=links,
        drawn=lay_out(chain_graph(found, links.view)) if shape == "graph" else None,
        fall=waterfall(found, now=datetime.now(UTC)) if shape == "waterfall" else None,
        tree=plain_chain(found) if shape == "text" else "",
        detail=detail_of(asked, found, selected) if selected else None,
        back=links.here,
    )


@chain_pages.get("/operations/<operation_id>/chain.svg", role="viewer")
def chain_svg(operation_id: str) -> Response:
    """The drawing as a file."""
    drawn = lay_out(chain_graph(monitor().chain(operation_id), Links.asked(operation_id, "graph", "").view))
    response = render("chain.svg", drawn=drawn)
    return _file(response, f"chain-{operation_id}.svg", "image/svg+xml")


@chain_pages.get("/operations/<operation_id>/chain.mmd", role="viewer")
def chain_mermaid(operation_id: str) -> Response:
    """The drawing as a Mermaid flowchart."""
    view = Links.asked(operation_id, "graph", "").view
    text = mermaid(chain_graph(monitor().chain(operation_id), view))
    return _file(Response(text), f"chain-{operation_id}.mmd", "text/plain")


def _file(response: Response, name: str, mimetype: str) -> Response:
    response.mimetype = mimetype
    safe = "".join(each if each.isascii() and (each.isalnum() or each in "-._") else "_" for each in name)
    response.headers["Content-Disposition"] = f'attachment; filename="{safe}"'
    return response


@attrs.frozen(kw_only=True)
class Summary:
    """A chain in a line.

    Attributes:
        state: the worst of the operation's status and its deliveries' states.
        states: their counts, worst first.
        done: whether nothing more happens by itself.
    """

    state: str
    states: tuple[tuple[str, int], ...]
    events: int
    deliveries: int
    done: bool

    @classmethod
    def of(cls, chain: Chain) -> Summary:
        """That of a chain."""
        deliveries = chain.deliveries
        counts: Counter[str] = Counter(delivery.state for delivery in deliveries)
        status = chain.operation.status
        found = Counter([*counts, {"failed": "dead"}.get(status, status)])
        return cls(
            state="failed" if status == "failed" else worst(found),
            states=tuple((state, counts[state]) for state in WORST_FIRST if counts[state]),
            events=sum(1 for _ in chain.walk()),
            deliveries=len(deliveries),
            # A dead letter that somebody retries elsewhere should be seen here: only a good end is an end.
            done=chain.settled and not counts["dead"],
        )


@attrs.frozen(kw_only=True)
class Links:
    """Addresses of the same chain, differently looked at."""

    operation_id: str
    shape: str
    selected: str
    view: View

    @classmethod
    def asked(cls, operation_id: str, shape: str, selected: str) -> Links:
        """Those of the present request."""
        view = View(opened=asking.ids("open"), closed=asking.ids("close"))
        return cls(operation_id=operation_id, shape=shape, selected=selected, view=view)

    @property
    def here(self) -> str:
        """The present address."""
        return self._url()

    def detail(self, node: Node) -> str:
        """Where a node's detail is shown; a node for many is opened instead."""
        if node.kind in ("operation", "event", "delivery"):
            return self._url(selected=node.id)
        return self.toggle(node) if node.opens else ""

    def detail_of(self, node_id: str, kind: str) -> str:
        """The same by id."""
        return self._url(selected=node_id)

    def closed(self) -> str:
        """Without a detail."""
        return self._url(selected="")

    def shaped(self, shape: str) -> str:
        """As graph, waterfall or text."""
        return self._url(shape=shape)

    def toggle(self, node: Node) -> str:
        """With this node opened or closed."""
        one = frozenset([node.id])
        if node.opens == "open":
            view = attrs.evolve(self.view, opened=self.view.opened | one, closed=self.view.closed - one)
        else:
            closed = self.view.closed | one if node.kind in BRANCHES else self.view.closed
            view = attrs.evolve(self.view, opened=self.view.opened - one, closed=closed)
        return self._url(view=view)

    def _url(self, *, shape: str | None = None, selected: str | None = None, view: View | None = None) -> str:
        shape = self.shape if shape is None else shape
        selected = self.selected if selected is None else selected
        view = view or self.view
        return url(
            "chain",
            operation_id=self.operation_id,
            view=shape if shape != "graph" else None,
            node=selected or None,
            open=sorted(view.opened) or None,
            close=sorted(view.closed) or None,
        )


@attrs.frozen(kw_only=True)
class Detail:
    """What stands beside the chain.

    Attributes:
        kind: ``operation``, ``event`` or ``delivery``.
        recorded: whether the store has the delivery; one that no worker has begun may have no record.
    """

    kind: str
    id: str
    title: str
    operation: Operation | None = None
    event: Envelope | None = None
    deliveries: tuple[Delivery, ...] = ()
    delivery: Delivery | None = None
    recorded: bool = True


def detail_of(asked: Monitor, chain: Chain, node_id: str) -> Detail:
    """The detail of a node of this chain.

    Raises:
        NotFound: it has no such node, or one that belongs to a group the person does not see.
    """
    if node_id == chain.operation.id:
        return Detail(kind="operation", id=node_id, title=chain.operation.name, operation=chain.operation)
    for item in chain.walk():
        deliveries = tuple(child.delivery for child in item.deliveries)
        if item.event.id == node_id:
            seen = tuple(each for each in deliveries if identity().reaches(each.group))
            return Detail(kind="event", id=node_id, title=item.event.name, event=item.event, deliveries=seen)
        for delivery in deliveries:
            if delivery.id == node_id and identity().reaches(delivery.group):
                return _delivery_detail(asked, delivery, item.event)
    raise NotFound(f"the chain has no node {shorten(node_id)} that you may see", id=node_id)


def _delivery_detail(asked: Monitor, delivery: Delivery, event: Envelope) -> Detail:
    """With its stacks, which the chain leaves out; as the chain has it if the store has no record of it."""
    try:
        full, recorded = asked.letter(delivery.id), True
    except NotFound:
        full, recorded = delivery, False
    return Detail(
        kind="delivery", id=full.id, title=full.handler, event=event, delivery=full, recorded=recorded
    )
