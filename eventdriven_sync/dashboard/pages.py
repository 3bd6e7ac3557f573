"""The pages with lists: how everything is, operations, events, streams, workers and the audit log."""

from __future__ import annotations

from werkzeug.wrappers import Response

from eventdriven_sync.dashboard import asking, chart
from eventdriven_sync.dashboard.mount import identity, monitor
from eventdriven_sync.dashboard.rendering import render
from eventdriven_sync.dashboard.routing import Routes
from eventdriven_sync.errors import BrokerError, InvalidOption

pages = Routes()

STATUSES = ("running", "succeeded", "failed")


@pages.get("/", role="viewer")
def overview() -> Response:
    """How things are."""
    now = monitor().overview()
    return render("overview.html", now=now, chart=chart.draw(now.minutes))


@pages.get("/operations", role="viewer")
def operations() -> Response:
    """The commands that started chains."""
    found = monitor().operations(
        kind=asking.text("kind"),
        name=asking.text("name"),
        user=asking.text("user"),
        status=asking.one_of("status", STATUSES),
        since=asking.moment("since"),
        until=asking.moment("until"),
        after=asking.text("after"),
    )
    kept = asking.kept("kind", "name", "user", "status", "since", "until", "after")
    return render("operations.html", found=found, kept=kept)


@pages.get("/events", role="viewer")
def events() -> Response:
    """All events of all names."""
    payload = asking.payload("payload")
    if payload and not identity().sees_payloads:
        raise InvalidOption("your role does not show payloads, so they cannot be searched", field="payload")
    found = monitor().events(
        name=asking.text("name"),
        group=asking.text("group"),
        key=asking.text("key"),
        payload=payload,
        since=asking.moment("since"),
        until=asking.moment("until"),
        after=asking.text("after"),
    )
    kept = asking.kept("name", "group", "key", "payload", "since", "until", "after")
    return render("events.html", found=found, kept=kept)


@pages.get("/events/<event_id>", role="viewer")
def event(event_id: str) -> Response:
    """An event with its payload and its deliveries."""
    return render("event.html", found=monitor().event(event_id))


@pages.get("/streams", role="viewer")
def streams() -> Response:
    """JetStream's streams and consumers; a broker that is away is said on the page."""
    try:
        found, problem = monitor().streams(), ""
    except BrokerError as error:
        found, problem = [], str(error)
    return render("streams.html", streams=found, problem=problem)


@pages.get("/workers", role="viewer")
def workers() -> Response:
    """Worker processes, and the handlers with what is known of them."""
    asked = monitor()
    return render("workers.html", workers=asked.workers(), handlers=asked.handlers())


@pages.get("/audit", role="admin")
def audit_log() -> Response:
    """Who did what."""
    found = monitor().audit_log(
        who=asking.text("who"),
        action=asking.text("action"),
        touched=asking.text("touched"),
        since=asking.moment("since"),
        until=asking.moment("until"),
        after=asking.text("after"),
    )
    kept = asking.kept("who", "action", "touched", "since", "until", "after")
    return render("audit.html", found=found, kept=kept)
