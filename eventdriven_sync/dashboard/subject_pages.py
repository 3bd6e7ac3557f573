"""Subjects: a row for each event name, and for each what its events set off."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from werkzeug.wrappers import Response

from eventdriven_sync.dashboard import asking
from eventdriven_sync.dashboard.graph import Node
from eventdriven_sync.dashboard.layout import lay_out
from eventdriven_sync.dashboard.mount import monitor, url
from eventdriven_sync.dashboard.rendering import render
from eventdriven_sync.dashboard.routing import Routes
from eventdriven_sync.dashboard.summary_graph import summary_graph

subject_pages = Routes()

SPANS = ("1h", "24h", "7d", "30d")
USUAL = "24h"


@subject_pages.get("/subjects", role="viewer")
def subjects() -> Response:
    """What was published of each name, and how its handlers did."""
    span = asking.one_of("span", SPANS) or USUAL
    found = monitor().subjects(since=asking.ago(span))
    return render("subjects.html", rows=found, span=span, spans=SPANS)


@subject_pages.get("/subjects/<name>", role="viewer")
def subject(name: str) -> Response:
    """What the events of a name set off."""
    span = asking.one_of("span", SPANS) or USUAL
    asked, since = monitor(), asking.ago(span)
    summary = asked.chain_summary(name, since=since)
    row = next((each for each in asked.subjects(since=since) if each.name == name), None)
    drawn = summary_graph(summary)
    return render(
        "subject.html",
        name=name,
        row=row,
        summary=summary,
        drawn=lay_out(drawn.root),
        links=SummaryLinks(names=drawn.names, span=span),
        span=span,
        spans=SPANS,
    )


@attrs.frozen(kw_only=True)
class SummaryLinks:
    """Where the nodes of a chain summary lead: to other subjects, and to what is dead."""

    names: Mapping[str, str]
    span: str

    def detail(self, node: Node) -> str:
        """The address, empty if there is none."""
        name = self.names[node.id]
        if node.kind == "events":
            return url("subject", name=name, span=self.span)
        return url("letters", handler=name) if node.states.get("dead") else ""
