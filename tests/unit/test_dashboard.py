"""The frame of the dashboard: who gets in, from where, and with which headers."""

import re
from typing import Any

import pytest
from flask import Flask, Request
from flask.testing import FlaskClient

from eventdriven_sync.dashboard import Identity, dashboard
from eventdriven_sync.dashboard.headers import HEADERS
from eventdriven_sync.errors import ConfigurationError, InvalidOption
from tests.unit.dashboards import KEY, new_bus, site

OUTSIDE = {"base_url": "https://events.example", "environ_overrides": {"REMOTE_ADDR": "192.0.2.7"}}


def by_header(request: Request) -> Identity | None:
    role: Any = request.headers.get("X-Role")
    return Identity(name="ada", role=role) if role else None


@pytest.fixture
def client() -> FlaskClient:
    return site(authorize=by_header).test_client()


@pytest.fixture
def insecure() -> FlaskClient:
    return site(insecure=True).test_client()


GOOD = "0123456789abcdefghijklmnopqrstuvwxyz"
KNOWN = "changeme-secret-password-default-dev"


# --- mounting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [None, "", "dev", "changeme" * 8, "a" * 64, "short", 5, b"x" * 31, GOOD[:31], KNOWN]
)
def test_without_a_good_secret_key_it_is_not_mounted(key: Any) -> None:
    app = Flask("site")
    app.config["SECRET_KEY"] = key
    with pytest.raises(ConfigurationError, match="at least 32 random bytes") as raised:
        app.register_blueprint(dashboard(new_bus(), authorize=by_header), url_prefix="/events")
    assert not key or str(key) not in str(raised.value).replace("secret_key", "").split("; make one")[0]


@pytest.mark.parametrize(
    "options",
    [
        {"authorize": by_header, "insecure": True},
        {"authorize": "ada"},
        {"insecure": "no"},
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        dashboard(new_bus(), **options)


def test_what_is_no_bus_is_refused() -> None:
    with pytest.raises(InvalidOption, match="bus is 'nats://x'"):
        dashboard("nats://x")  # type: ignore[arg-type]


def test_debug_mode_is_refused_when_mounted_and_afterwards() -> None:
    app = Flask("site")
    app.config["SECRET_KEY"] = KEY
    app.debug = True
    with pytest.raises(ConfigurationError, match="debug mode"):
        app.register_blueprint(dashboard(new_bus(), authorize=by_header), url_prefix="/events")
    late = site(authorize=by_header)
    late.debug = True
    answer = late.test_client().get("/events/", headers={"X-Role": "admin"})
    assert answer.status_code == 403
    assert "debug mode" in answer.text


def test_a_prefix_with_variables_is_refused() -> None:
    with pytest.raises(InvalidOption, match="variable parts"):
        site(prefix="/<tenant>/events", authorize=by_header)


def test_two_dashboards_live_in_one_application() -> None:
    app = site(authorize=by_header)
    other = dashboard(new_bus(), insecure=True, name="other")
    app.register_blueprint(other, url_prefix="/other")
    client = app.test_client()
    assert client.get("/events/").status_code == 401
    assert client.get("/other/").status_code == 200


# --- who ----------------------------------------------------------------------------------------------


def test_a_stranger_gets_in_nowhere(client: FlaskClient) -> None:
    for path in ("/events/", "/events/api/v1/session", "/events/no-such-page", "/events/api/v1/nothing"):
        assert client.get(path).status_code == 401


def test_whom_the_application_knows_gets_in(client: FlaskClient) -> None:
    answer = client.get("/events/", headers={"X-Role": "viewer"})
    assert answer.status_code == 200
    assert "ada, viewer" in answer.text


@pytest.mark.parametrize("answer", ["ada", True, 1, {"name": "ada"}])
def test_only_an_identity_is_an_identity(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = site(authorize=lambda request: answer).test_client()
    assert client.get("/events/").status_code == 500
    assert "it must return an Identity" in caplog.text


def test_a_role_that_does_not_exist_is_nobody() -> None:
    with pytest.raises(InvalidOption, match="viewer, operator, admin"):
        Identity(name="ada", role="root")  # type: ignore[arg-type]


def test_an_unknown_path_is_not_found_only_for_who_may_look(client: FlaskClient) -> None:
    page = client.get("/events/no-such-page", headers={"X-Role": "viewer"})
    assert (page.status_code, page.mimetype) == (404, "text/html")
    api = client.get("/events/api/v1/nothing", headers={"X-Role": "viewer"})
    assert (api.status_code, api.mimetype) == (404, "application/problem+json")
    wrong = client.delete("/events/", headers={"X-Role": "viewer"})
    assert wrong.status_code == 405
    assert "GET" in wrong.headers["Allow"]


def test_the_applications_own_pages_are_left_alone(client: FlaskClient) -> None:
    answer = client.get("/elsewhere")
    assert answer.status_code == 404
    assert "Content-Security-Policy" not in answer.headers


# --- from where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "http://evil.example"},
        {"environ_overrides": {"REMOTE_ADDR": "192.0.2.7"}},
        {"environ_overrides": {"REMOTE_ADDR": ""}},
        {"headers": {"X-Forwarded-For": "127.0.0.1"}},
        {"headers": {"Forwarded": "for=127.0.0.1"}},
    ],
)
def test_insecure_serves_this_machine_only(insecure: FlaskClient, change: dict[str, Any]) -> None:
    assert insecure.get("/events/").status_code == 200
    answer = insecure.get("/events/", **change)
    assert answer.status_code == 403
    assert "this machine only" in answer.text


@pytest.mark.parametrize("host", ["localhost:5000", "127.0.0.1", "[::1]:8080", "app.localhost"])
def test_the_names_of_this_machine_are_known(insecure: FlaskClient, host: str) -> None:
    assert insecure.get("/events/", base_url=f"http://{host}").status_code == 200


def test_plain_http_from_elsewhere_is_refused(client: FlaskClient) -> None:
    who = {"X-Role": "admin"}
    plain = client.get("/events/", headers=who, **{**OUTSIDE, "base_url": "http://events.example"})
    assert plain.status_code == 403
    assert client.get("/events/", headers=who, **OUTSIDE).status_code == 200


def test_health_has_no_data_and_no_door(client: FlaskClient) -> None:
    far = {**OUTSIDE, "base_url": "http://10.0.0.1"}
    for path in ("live", "ready"):
        answer = client.get(f"/events/health/{path}", **far)
        assert (answer.status_code, answer.text) == (200, "ok\n")


# --- headers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/events/", "/events", "/events/nothing", "/events/api/v1/session", "/events/health/live"],
)
def test_every_response_has_the_headers(client: FlaskClient, path: str) -> None:
    for headers in ({}, {"X-Role": "viewer"}):
        answer = client.get(path, headers=headers)
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        assert "Strict-Transport-Security" not in answer.headers
    assert "Strict-Transport-Security" in client.get(path, **OUTSIDE).headers


def test_nothing_opens_it_to_other_sites() -> None:
    """Whether an extension of the application was there before or came later."""

    def open_everything(response: Any) -> Any:
        response.headers["Access-Control-Allow-Origin"] = "*"
        response.headers["Content-Security-Policy"] = "default-src *"
        return response

    app = Flask("site")
    app.config["SECRET_KEY"] = KEY
    app.after_request(open_everything)
    app.register_blueprint(dashboard(new_bus(), authorize=by_header), url_prefix="/events")
    app.after_request(open_everything)
    answer = app.test_client().get("/events/", headers={"X-Role": "viewer"})
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]


def test_files_are_kept_by_browsers_and_change_their_url_with_their_content(insecure: FlaskClient) -> None:
    found = re.search(r'href="(/events/static/[0-9a-f]{16}/app.css)"', insecure.get("/events/").text)
    assert found
    answer = insecure.get(found[1])
    assert (answer.status_code, answer.headers["Cache-Control"]) == (
        200,
        "public, max-age=31536000, immutable",
    )
    assert insecure.get("/events/static/0000000000000000/app.css").status_code == 404
    assert insecure.get(f"{found[1]}/../../../../setup.py").status_code == 404
