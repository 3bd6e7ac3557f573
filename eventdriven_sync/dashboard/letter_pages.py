"""Dead letters: by cause, one by one, and what a person does about them."""

from __future__ import annotations

from flask import redirect, request
from werkzeug.wrappers import Response

from eventdriven_sync.dashboard import asking
from eventdriven_sync.dashboard.mount import identity, monitor, url
from eventdriven_sync.dashboard.rendering import render
from eventdriven_sync.dashboard.routing import Routes
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import NotFound, shorten
from eventdriven_sync.records import Delivery

letter_pages = Routes()


@letter_pages.get("/dead", role="viewer")
def dead_letters() -> Response:
    """Dead letters by handler and cause."""
    groups = monitor().letter_groups(
        handler=asking.text("handler"),
        group=asking.text("group"),
        since=asking.moment("since"),
        until=asking.moment("until"),
    )
    seen = [each for each in groups if identity().reaches(each.handler.partition(".")[0])]
    kept = asking.kept("handler", "group", "since", "until")
    return render("dead.html", groups=seen, kept=kept, total=sum(each.count for each in seen))


@letter_pages.get("/dead/letters", role="viewer")
def letters() -> Response:
    """Dead letters one by one."""
    found = monitor().letters(
        handler=asking.text("handler"),
        group=asking.text("group"),
        fingerprint=asking.text("fingerprint"),
        since=asking.moment("since"),
        until=asking.moment("until"),
        after=asking.text("after"),
    )
    kept = asking.kept("handler", "group", "fingerprint", "since", "until", "after")
    seen = [each for each in found.items if identity().reaches(each.group)]
    theirs = identity().reaches(kept.get("handler", "").partition(".")[0])
    whole = theirs and {"since", "until", "group"}.isdisjoint(kept)
    matching = (
        monitor().preview_retry(kept["handler"], fingerprint=kept.get("fingerprint"))
        if whole and "handler" in kept
        else 0
    )
    return render(
        "letters.html",
        found=found,
        letters=seen,
        kept=kept,
        matching=matching,
        back=url("letters", **kept),
    )


@letter_pages.get("/deliveries/<delivery_id>", role="viewer")
def letter(delivery_id: str) -> Response:
    """A delivery with its event and every recorded attempt, dead or not."""
    found = _letter(delivery_id)
    event = found.event or _event(found)
    return render("letter.html", found=found, event=event, back=url("letter", delivery_id=found.id))


@letter_pages.post("/deliveries/<delivery_id>/retry", role="operator")
def retry_letter(delivery_id: str) -> Response:
    """Run a dead delivery again."""
    found = _letter(delivery_id)
    monitor().retry(found.id, by=identity().name, ip=request.remote_addr or "")
    return redirect(asking.noted(asking.back(), "retried"), 303)


@letter_pages.post("/deliveries/<delivery_id>/discard", role="operator")
def discard_letter(delivery_id: str) -> Response:
    """Give up on a delivery, for a reason."""
    found = _letter(delivery_id)
    reason = request.form.get("reason", "").strip()
    monitor().discard(found.id, by=identity().name, reason=reason, ip=request.remote_addr or "")
    return redirect(asking.noted(asking.back(), "discarded"), 303)


def _letter(delivery_id: str) -> Delivery:
    """The delivery, if it belongs to a group that the person sees."""
    found = monitor().letter(delivery_id)
    if not identity().reaches(found.group):
        raise NotFound(f"no delivery has the id {shorten(delivery_id)}", id=delivery_id)
    return found


def _event(delivery: Delivery) -> Envelope | None:
    try:
        return monitor().event(delivery.event_id).envelope
    except NotFound:  # a message that was no event
        return None
