"""The JSON API's actions on single deliveries, events, groups of dead letters and handlers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response

from eventdriven_sync.dashboard.api import PAGE, SPAN, actor, answer, api, page_document
from eventdriven_sync.dashboard.editing import edited_payload
from eventdriven_sync.dashboard.mount import bus, monitor
from eventdriven_sync.dashboard.parameters import (
    an_object,
    arguments,
    body,
    choice,
    moment,
    reason,
    required,
    text,
    whole,
)
from eventdriven_sync.documents import document
from eventdriven_sync.envelope import check_id
from eventdriven_sync.errors import InvalidOption
from eventdriven_sync.jobs import MAX_CANARIES
from eventdriven_sync.monitor import Monitor

_MAX_COUNT = 10**9


@api.post("/api/v1/letters/<delivery_id>/retry-edited", role="operator")
def api_retry_edited(delivery_id: str) -> Response:
    """Run a dead letter again with another payload; hidden values that stay where they were are kept."""
    arguments()
    fields = body(payload=an_object, reason=reason)
    payload = required(fields, "payload")
    shown, stored = monitor().letter(delivery_id).event, Monitor(bus()).letter(delivery_id).event
    if shown is not None and stored is not None:
        payload = edited_payload(json.dumps(payload), shown=shown.data, stored=stored.data)
    monitor().retry_edited(delivery_id, payload, reason=fields.get("reason", ""), **actor())
    return answer({"id": delivery_id, "state": "retrying"})


@api.post("/api/v1/letters/<delivery_id>/undo-discard", role="operator")
def api_undo_discard(delivery_id: str) -> Response:
    """Bring a delivery that a person discarded back to where it was."""
    arguments()
    monitor().undo_discard(delivery_id, **body(reason=reason), **actor())
    return answer({"id": delivery_id, "state": monitor().letter(delivery_id).state})


@api.post("/api/v1/letters/<delivery_id>/run-again", role="admin")
def api_run_again(delivery_id: str) -> Response:
    """Run a handler once more for an event, whatever became of it; the delivery that runs."""
    arguments()
    fresh = monitor().run_again(delivery_id, **body(reason=reason), **actor())
    return answer({"id": fresh, "state": monitor().letter(fresh).state})


@api.post("/api/v1/events/<event_id>/publish-again", role="admin")
def api_publish_again(event_id: str) -> Response:
    """Publish an event's payload once more, for all its handlers; its name confirms that it is meant."""
    arguments()
    known = check_id(event_id, field="event_id")
    fields = body(confirm=text, reason=reason)
    name = monitor().event(known).envelope.name
    if required(fields, "confirm") != name:
        raise InvalidOption(f"confirm is not the event's name: give {name}", field="confirm")
    receipt = monitor().publish_again(known, reason=fields.get("reason", ""), **actor())
    return answer({"id": receipt.id, "operation_id": receipt.operation_id})


@api.get("/api/v1/letter-groups/count", role="viewer")
def api_count_group() -> Response:
    """How many dead letters of a handler and cause there are: what a group retry has to confirm."""
    asked = arguments(handler=text, fingerprint=text, **SPAN)
    if "handler" not in asked:
        raise BadRequest("handler is missing.")
    return answer({"count": monitor().preview_retry(asked.pop("handler"), **asked)})


@api.get("/api/v1/jobs", role="viewer")
def api_jobs() -> Response:
    """Group retries, newest first."""
    asked = arguments(over=choice("true", "false"), **PAGE)
    if "over" in asked:
        asked["over"] = asked["over"] == "true"
    return answer(page_document(monitor().jobs(**asked)))


@api.get("/api/v1/jobs/<job_id>", role="viewer")
def api_job(job_id: str) -> Response:
    """A group retry, with what became of the letters it sent back."""
    arguments()
    return answer(document(monitor().job(job_id)))


@api.post("/api/v1/jobs", role="operator")
def api_retry_group() -> Response:
    """Begin to send a group of dead letters back; their number confirms that they are meant."""
    arguments()
    fields = body(
        handler=text,
        fingerprint=text,
        since=moment,
        until=moment,
        confirm=whole(0, _MAX_COUNT),
        canary=whole(0, MAX_CANARIES),
        reason=reason,
    )
    handler, confirm = required(fields, "handler"), required(fields, "confirm")
    which = _those(fields, "fingerprint", "since", "until")
    total = monitor().preview_retry(handler, **which)
    if confirm != total:
        raise InvalidOption(f"confirm is {confirm:,}, and {total:,} dead letters match now", field="confirm")
    how = _those(fields, "canary", "reason") | actor()
    return answer(document(monitor().retry_group(handler, **which, **how)))


def _those(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


@api.post("/api/v1/jobs/<job_id>/cancel", role="operator")
def api_cancel_job(job_id: str) -> Response:
    """Send back nothing more; what was sent back goes on."""
    arguments()
    monitor().cancel(job_id, **body(reason=reason), **actor())
    return answer(document(monitor().job(job_id)))


@api.post("/api/v1/handlers/<handler>/pause", role="admin")
def api_pause(handler: str) -> Response:
    """Begin nothing more of a handler; its events wait."""
    arguments()
    monitor().pause(handler, reason=required(body(reason=reason), "reason"), **actor())
    return answer({"id": handler, "state": "paused"})


@api.post("/api/v1/handlers/<handler>/resume", role="admin")
def api_resume(handler: str) -> Response:
    """Let a paused handler run again."""
    arguments()
    monitor().resume(handler, **body(reason=reason), **actor())
    return answer({"id": handler, "state": "running"})


__all__ = ["api"]
