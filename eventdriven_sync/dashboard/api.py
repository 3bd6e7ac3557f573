"""The JSON API below ``api/v1``; ``openapi.json`` describes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import request
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from eventdriven_sync.chain import Chain
from eventdriven_sync.dashboard.accounts import Accounts
from eventdriven_sync.dashboard.mount import identity, monitor, visit
from eventdriven_sync.dashboard.parameters import (
    arguments,
    body,
    choice,
    moment,
    number,
    page_size,
    payload_fields,
    reason,
    required,
    role,
    text,
)
from eventdriven_sync.dashboard.routing import Routes
from eventdriven_sync.documents import Document, delivery_summary, document, user_document
from eventdriven_sync.envelope import check_id
from eventdriven_sync.monitoring.records import EventDetail, Page
from eventdriven_sync.people import USER_STATES, UserChange

api = Routes(kind="api")

DESCRIPTION = Path(__file__).parent / "openapi.json"
SPAN = {"since": moment, "until": moment}
PAGE = {"after": text, "limit": page_size}


def answer(found: Document) -> Response:
    """A JSON response."""
    return Response(json.dumps(found), 200, mimetype="application/json")


def page_document(page: Page[Any], as_document: Callable[[Any], Document] = document) -> Document:
    """A page of a list: its items, and what to ask for the next one with."""
    return {"items": [as_document(item) for item in page.items], "after": page.after}


# --- about the API and its user ---------------------------------------------------------------------------


@api.get("/api/v1/openapi.json", role="viewer")
def api_description() -> Response:
    """The description of this API: OpenAPI 3.1."""
    arguments()
    return Response(DESCRIPTION.read_bytes(), 200, mimetype="application/json")


@api.get("/api/v1/session", role="viewer")
def api_session() -> Response:
    """Who is signed in, and the token that every change must carry."""
    arguments()
    who = identity()
    return answer(
        {
            "name": who.name,
            "role": who.role,
            "payloads": who.sees_payloads,
            "groups": list(who.groups),
            "csrf_token": visit().csrf_token(),
        }
    )


# --- how everything is ------------------------------------------------------------------------------------


@api.get("/api/v1/overview", role="viewer", background=True)
def api_overview() -> Response:
    """Rates per minute, what waits, who works, and what is wrong."""
    found = monitor().overview(**arguments(minutes=number(1, 1440)))
    return answer(document(found) | {"healthy": found.healthy})


@api.get("/api/v1/handlers", role="viewer")
def api_handlers() -> Response:
    """The handlers, with the workers that run them."""
    arguments()
    return answer({"items": [document(each) for each in monitor().handlers()]})


@api.get("/api/v1/workers", role="viewer")
def api_workers() -> Response:
    """Workers heard of within the last minute."""
    arguments()
    return answer({"items": [document(each) for each in monitor().workers()]})


@api.get("/api/v1/streams", role="viewer")
def api_streams() -> Response:
    """The streams with their consumers."""
    arguments()
    return answer({"items": [document(each) for each in monitor().streams()]})


# --- operations and events --------------------------------------------------------------------------------


@api.get("/api/v1/operations", role="viewer")
def api_operations() -> Response:
    """Operations, newest first."""
    status = choice("running", "succeeded", "failed")
    asked = arguments(kind=text, name=text, user=text, status=status, **SPAN, **PAGE)
    return answer(page_document(monitor().operations(**asked)))


@api.get("/api/v1/operations/<operation_id>", role="viewer")
def api_operation(operation_id: str) -> Response:
    """An operation."""
    arguments()
    return answer(document(monitor().operation(check_id(operation_id, field="operation_id"))))


@api.get("/api/v1/operations/<operation_id>/chain", role="viewer")
def api_chain(operation_id: str) -> Response:
    """What an operation set off: its events in the order of the tree, each with what published it."""
    arguments()
    return answer(chain_list(monitor().chain(check_id(operation_id, field="operation_id"))))


@api.get("/api/v1/events", role="viewer")
def api_events() -> Response:
    """Events, newest first."""
    asked = arguments(name=text, group=text, key=text, payload=payload_fields, **SPAN, **PAGE)
    return answer(page_document(monitor().events(**asked)))


@api.get("/api/v1/events/<event_id>", role="viewer")
def api_event(event_id: str) -> Response:
    """An event with its deliveries and its operation."""
    arguments()
    return answer(_event_document(monitor().event(check_id(event_id, field="event_id"))))


@api.get("/api/v1/subjects", role="viewer")
def api_subjects() -> Response:
    """A row for each event name: what was published, and how its handlers did."""
    found = monitor().subjects(**arguments(**SPAN))
    return answer({"items": [document(each) for each in found]})


@api.get("/api/v1/subjects/<name>/chain", role="viewer")
def api_chain_summary(name: str) -> Response:
    """What the events of a name set off, added up over the newest of them."""
    return answer(document(monitor().chain_summary(name, **arguments(sample=number(1, 1000), **SPAN))))


def chain_list(chain: Chain) -> Document:
    """A chain as a list: nested it could be deeper than JSON parsers go."""
    published_by = {
        below.event.id: child.delivery.id
        for node in chain.walk()
        for child in node.deliveries
        for below in child.events
    }
    return {
        "operation": document(chain.operation),
        "settled": chain.settled,
        "succeeded": chain.succeeded,
        "truncated": chain.truncated,
        "events": [
            document(node.event)
            | {
                "published_by": published_by.get(node.event.id),
                "deliveries": [delivery_summary(child.delivery) for child in node.deliveries],
            }
            for node in chain.walk()
        ],
    }


def _event_document(detail: EventDetail) -> Document:
    return {
        "event": document(detail.envelope),
        "deliveries": [delivery_summary(delivery) for delivery in detail.deliveries],
        "operation": document(detail.operation) if detail.operation else None,
    }


# --- dead letters -----------------------------------------------------------------------------------------


@api.get("/api/v1/letter-groups", role="viewer")
def api_letter_groups() -> Response:
    """Dead letters by handler and cause, the largest group first."""
    found = monitor().letter_groups(**arguments(handler=text, group=text, **SPAN))
    return answer({"items": [document(each) for each in found]})


@api.get("/api/v1/letters", role="viewer")
def api_letters() -> Response:
    """Dead letters, newest first, without events and stacks."""
    asked = arguments(handler=text, group=text, fingerprint=text, **SPAN, **PAGE)
    return answer(page_document(monitor().letters(**asked), delivery_summary))


@api.get("/api/v1/letters/<delivery_id>", role="viewer")
def api_letter(delivery_id: str) -> Response:
    """A delivery, dead or not, with its event and every recorded failure."""
    arguments()
    return answer(document(monitor().letter(delivery_id)))


@api.post("/api/v1/letters/<delivery_id>/retry", role="operator")
def api_retry(delivery_id: str) -> Response:
    """Run a dead letter again with fresh attempts."""
    arguments()
    monitor().retry(delivery_id, **body(reason=reason), **actor())
    return answer({"id": delivery_id, "state": "retrying"})


@api.post("/api/v1/letters/<delivery_id>/discard", role="operator")
def api_discard(delivery_id: str) -> Response:
    """Give up on a dead or retrying delivery; the reason stays on record."""
    arguments()
    why = required(body(reason=reason), "reason")
    monitor().discard(delivery_id, reason=why, **actor())
    return answer({"id": delivery_id, "state": "discarded"})


# --- people -----------------------------------------------------------------------------------------------


@api.get("/api/v1/audit", role="admin")
def api_audit() -> Response:
    """Who did what, newest first."""
    found = monitor().audit_log(**arguments(who=text, action=text, touched=text, **SPAN, **PAGE))
    return answer(page_document(found))


@api.get("/api/v1/users", role="admin")
def api_users() -> Response:
    """The users of this dashboard, by name."""
    asked = arguments(state=choice(*USER_STATES), limit=page_size)
    return answer({"items": [user_document(user) for user in _accounts().find(**asked)]})


@api.post("/api/v1/users/<name>/approve", role="admin")
def api_approve_user(name: str) -> Response:
    """Let in somebody who asked for an account, or was disabled; as a viewer unless a role is given."""
    arguments()
    fields = body(role=role)
    return answer(user_document(_accounts().approve(name, **fields, **actor())))


@api.post("/api/v1/users/<name>/role", role="admin")
def api_change_role(name: str) -> Response:
    """Give a user another role; they have to sign in anew."""
    return _change_user(name, UserChange(role=required(body(role=role), "role")))


@api.post("/api/v1/users/<name>/disable", role="admin")
def api_disable_user(name: str) -> Response:
    """Let a user in no more; their sessions end."""
    body()
    return _change_user(name, UserChange(state="disabled"))


def _change_user(name: str, change: UserChange) -> Response:
    arguments()
    return answer(user_document(_accounts().change(name, change, **actor())))


def _accounts() -> Accounts:
    mount = visit().mount
    if not mount.signs_in:
        raise NotFound("Here the application signs people in: the dashboard has no users of its own.")
    return mount.accounts


def actor() -> dict[str, str]:
    """Who makes the request and from where, for the audit log."""
    return {"by": identity().name, "ip": request.remote_addr or ""}
