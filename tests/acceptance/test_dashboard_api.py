"""The JSON API is what its description says, whatever is sent, for a stranger and for each role."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from eventdriven_sync.dashboard import Identity
from eventdriven_sync.dashboard.access import ROLES
from eventdriven_sync.dashboard.api import DESCRIPTION
from eventdriven_sync.monitor import Monitor
from tests.unit.dashboards import Story, shop, site, story

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 12
URL = "https://localhost"

schema = schemathesis.openapi.from_dict(json.loads(DESCRIPTION.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def app() -> Iterator[Flask]:
    """A shop whose dashboard believes a header that names the role."""

    def authorize(request: Any) -> Identity | None:
        role = request.headers.get("X-Role")
        return Identity(name=role, role=role) if role in ROLES else None

    bus = shop()
    with story(bus) as told:
        app = site(bus, prefix="/", authorize=authorize)
        app.extensions["told"] = told
        monitor = Monitor(bus)
        app.extensions["job"] = monitor.retry_group("Comment.update_comments", canary=0, by="ada")
        yield app


@pytest.fixture
def calling(app: Flask, role: str | None) -> dict[str, Any]:
    """What somebody of this role sends with every call."""
    if role is None:
        return {"base_url": URL}
    client = app.test_client()
    headers = {"X-Role": role}
    token = client.get("/api/v1/session", base_url=URL, headers=headers).get_json()["csrf_token"]
    cookies = {cookie.key: cookie.value for cookie in client._cookies.values()}
    return {"base_url": URL, "headers": headers | {"X-CSRF-Token": token}, "cookies": cookies}


@pytest.mark.parametrize("role", [None, *ROLES])
@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_every_answer_is_described(
    case: schemathesis.Case, app: Flask, role: str | None, calling: dict[str, Any]
) -> None:
    case.operation.app = app
    response = case.call(**calling)
    case.validate_response(response, checks=CHECKS)
    if role is None:
        assert response.status_code == 401


@pytest.mark.parametrize("role", ["admin"])
@pytest.mark.parametrize("path", [path for path, item in schema.raw_schema["paths"].items() if "get" in item])
def test_what_is_found_is_described(app: Flask, role: str, calling: dict[str, Any], path: str) -> None:
    """Chance finds no ids: these exist."""
    told: Story = app.extensions["told"]
    job = app.extensions["job"]
    known = {"operation_id": told.operation, "event_id": told.event, "delivery_id": told.dead}
    known |= {"name": "Shop.userRenamed", "job_id": job.id}
    operation = schema[path]["GET"]
    operation.app = app
    case = operation.Case(path_parameters={key: id_ for key, id_ in known.items() if f"{{{key}}}" in path})
    if path.endswith("/count"):
        case.query = {"handler": "Comment.update_comments"}
    response = case.call(**calling)
    case.validate_response(response, checks=CHECKS)
    # The application signs people in: there are no users of the dashboard's own.
    assert response.status_code == (404 if path.endswith("/users") else 200)


@pytest.mark.parametrize("role", ["operator"])
@pytest.mark.parametrize("action", ["retry", "discard"])
def test_what_is_done_is_described(app: Flask, role: str, calling: dict[str, Any], action: str) -> None:
    bus = app.extensions["told"].bus
    with story(bus) as told:
        operation = schema[f"/api/v1/letters/{{delivery_id}}/{action}"]["POST"]
        operation.app = app
        for status in (200, 409):
            case = operation.Case(
                path_parameters={"delivery_id": told.dead},
                body={"reason": "a test"},
                media_type="application/json",
            )
            response = case.call(**calling)
            case.validate_response(response, checks=CHECKS)
            assert response.status_code == status
