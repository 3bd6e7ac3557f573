"""What people do beside retrying one letter: edit it, undo, run again, retry a group, pause a handler."""

from __future__ import annotations

from itertools import accumulate

from flask import redirect, request
from werkzeug.wrappers import Response

from eventdriven_sync.config import check_text
from eventdriven_sync.dashboard import asking
from eventdriven_sync.dashboard.editing import edited_payload
from eventdriven_sync.dashboard.mount import bus, identity, monitor, url
from eventdriven_sync.dashboard.rendering import render
from eventdriven_sync.dashboard.routing import Routes
from eventdriven_sync.dashboard.shown import json_text
from eventdriven_sync.errors import CodecError, InvalidOption, InvalidTransition, shorten
from eventdriven_sync.jobs import MAX_CANARIES
from eventdriven_sync.monitor import Monitor

action_pages = Routes()

MAX_REASON = 2000
ENDS = ("succeeded", "discarded", "running", "pending", "retrying", "dead")


def actor() -> dict[str, str]:
    """Who makes the present request, why and from where, for the audit log."""
    reason = request.form.get("reason", "").strip()
    if reason:
        check_text(reason, field="reason", most=MAX_REASON)
    return {"by": identity().name, "reason": reason, "ip": request.remote_addr or ""}


def done(notice: str) -> Response:
    """Back to where the form was, with a word on what was done."""
    return redirect(asking.noted(asking.back(), notice), 303)


# --- one delivery ------------------------------------------------------------------------------------


@action_pages.get("/deliveries/<delivery_id>/edit", role="operator")
def edit_letter(delivery_id: str) -> Response:
    """The payload of a dead delivery, to be changed before it runs again."""
    back = asking.inside(request.args.get("back", "")) or url("letter", delivery_id=delivery_id)
    return _edit_page(delivery_id, back=back)


@action_pages.post("/deliveries/<delivery_id>/edit", role="operator")
def retry_edited_letter(delivery_id: str) -> Response:
    """Run it again with another payload; what is wrong with it is said beside it."""
    text = request.form.get("payload", "")
    letter = monitor().letter(delivery_id)
    stored = Monitor(bus()).letter(delivery_id).event
    if letter.event is None or stored is None:
        return _edit_page(delivery_id, back=asking.back())
    try:
        payload = edited_payload(text, shown=letter.event.data, stored=stored.data)
        monitor().retry_edited(delivery_id, payload=payload, **actor())
    except (CodecError, InvalidOption) as error:
        return _edit_page(delivery_id, back=asking.back(), text=text, message=str(error))
    return done("retried")


def _edit_page(delivery_id: str, *, back: str, text: str | None = None, message: str = "") -> Response:
    letter = monitor().letter(delivery_id)
    if letter.state != "dead" or letter.event is None:
        raise InvalidTransition(
            f"delivery {shorten(delivery_id)} is {letter.state!r}: only a dead one with a readable event can "
            "be edited",
            id=delivery_id,
            state=letter.state,
        )
    return render(
        "edit.html",
        status=400 if message else 200,
        found=letter,
        text=json_text(letter.event.data) if text is None else text,
        message=message,
        back=back,
    )


@action_pages.post("/deliveries/<delivery_id>/undo", role="operator")
def undo_discard_letter(delivery_id: str) -> Response:
    """Bring back what a person discarded."""
    monitor().undo_discard(delivery_id, **actor())
    return done("undone")


@action_pages.post("/deliveries/<delivery_id>/again", role="admin")
def run_handler_again(delivery_id: str) -> Response:
    """Run a handler once more for an event that it has handled."""
    fresh = monitor().run_again(delivery_id, **actor())
    return redirect(asking.noted(url("letter", delivery_id=fresh), "again"), 303)


@action_pages.post("/events/<event_id>/again", role="admin")
def publish_event_again(event_id: str) -> Response:
    """Publish an event's payload once more, for all its handlers; its name confirms that it is meant."""
    name = monitor().event(event_id).envelope.name
    if request.form.get("confirm", "").strip() != name:
        raise InvalidOption(
            f"confirm is not the event's name: give {name} to publish it again", field="confirm"
        )
    receipt = monitor().publish_again(event_id, **actor())
    return redirect(asking.noted(url("chain", operation_id=receipt.operation_id), "published"), 303)


# --- a group of dead letters -------------------------------------------------------------------------


@action_pages.post("/dead/retry", role="operator")
def retry_group() -> Response:
    """Begin to send a group of dead letters back; their number confirms that they are meant."""
    given = {name: request.form.get(name, "").strip() or None for name in ("handler", "fingerprint")}
    if given["handler"] is None:
        raise InvalidOption("handler is missing: give the one whose letters are meant", field="handler")
    total = monitor().preview_retry(given["handler"], fingerprint=given["fingerprint"])
    if _number("confirm", high=10**9) != total:
        raise InvalidOption(
            f"confirm is not {total:,}, as many letters as match now: look at the group again, then give "
            "their number",
            field="confirm",
        )
    canary = _number("canary", high=MAX_CANARIES)
    who = actor()
    job = monitor().retry_group(
        given["handler"],
        fingerprint=given["fingerprint"],
        canary=canary,
        by=who["by"],
        reason=who["reason"],
        ip=who["ip"],
    )
    return redirect(url("job", job_id=job.id), 303)


@action_pages.get("/jobs", role="viewer")
def jobs() -> Response:
    """Group retries, newest first."""
    found = monitor().jobs(after=asking.text("after"))
    return render("jobs.html", found=found, kept=asking.kept("after"))


@action_pages.get("/jobs/<job_id>", role="viewer")
def job(job_id: str) -> Response:
    """How far a group retry is."""
    found = monitor().job(job_id)
    counts = [(state, found.progress[state]) for state in ENDS if found.progress.get(state)]
    starts = accumulate((count for _, count in counts), initial=0)
    bar = [(state, start, count) for (state, count), start in zip(counts, starts, strict=False)]
    stalled = found.stalled(bus().store.directory.now())
    return render("job.html", job=found, bar=bar, counts=counts, stalled=stalled)


@action_pages.post("/jobs/<job_id>/cancel", role="operator")
def cancel_job(job_id: str) -> Response:
    """Send back nothing more."""
    monitor().cancel(job_id, **actor())
    return redirect(asking.noted(url("job", job_id=job_id), "cancelled"), 303)


def _number(name: str, *, high: int) -> int:
    text = request.form.get(name, "").strip().replace(",", "")
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= high):
        raise InvalidOption(
            f"{name} is {shorten(text)}: give a whole number from 0 to {high:,}", field=name, limit=high
        )
    return int(text)


# --- handlers ----------------------------------------------------------------------------------------


@action_pages.post("/handlers/<handler>/pause", role="admin")
def pause_handler(handler: str) -> Response:
    """Begin nothing more of a handler; its events wait."""
    monitor().pause(handler, **actor())
    return done("paused")


@action_pages.post("/handlers/<handler>/resume", role="admin")
def resume_handler(handler: str) -> Response:
    """Let it run again."""
    monitor().resume(handler, **actor())
    return done("resumed")
