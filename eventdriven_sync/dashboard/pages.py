"""The pages of the dashboard."""

from __future__ import annotations

from werkzeug.wrappers import Response

from eventdriven_sync.dashboard.rendering import render
from eventdriven_sync.dashboard.routing import Routes

pages = Routes()


@pages.get("/", role="viewer")
def overview() -> Response:
    """How things are."""
    return render("overview.html")
