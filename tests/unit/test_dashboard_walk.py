"""A walk along every route of the dashboard: who gets in, what a change takes, and looking changes nothing.

Routes that are added later are walked as well.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from eventdriven_sync.dashboard import Identity, Role, passwords
from eventdriven_sync.dashboard.access import ROLES, Access, access_of
from eventdriven_sync.errors import ConfigurationError
from tests.unit.dashboards import CHEAP, PASSWORD, Browser, Story, accounts_of, shop, site, story

OPEN = {"/login", "/register", "/static/<version>/<path:name>", "/health/live", "/health/ready"}
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "METHOD", CHEAP)


@pytest.fixture(scope="module")
def rules() -> list[Rule]:
    """Every route below the prefix."""
    return [rule for rule in site().url_map.iter_rules() if rule.rule.startswith("/events")]


@pytest.fixture
def told() -> Iterator[Story]:
    with story() as found:
        yield found


@pytest.fixture
def app(told: Story) -> Flask:
    """An application whose dashboard has a user of each role."""
    app = site(told.bus, registration=True)
    for role in reversed(ROLES):
        accounts_of(app).add(role, PASSWORD, role=role, by="test")
    return app


def signed_in(app: Flask, role: Role | None) -> Browser:
    browser = Browser(app)
    if role is not None:
        assert browser.sign_in(role).status_code == 303
    return browser


def access(app: Flask, rule: Rule) -> Access:
    return access_of(app.view_functions[rule.endpoint])


def path_of(rule: Rule, told: Story) -> str:
    """The route's path with ids that exist, so far as one can guess from their names."""
    known = {"delivery_id": told.dead, "letter_id": told.dead, "event_id": told.event}
    known |= {"operation_id": told.operation, "name": "viewer", "version": "0" * 16}

    def value(found: re.Match[str]) -> str:
        return known.get(found[1], told.operation)

    return re.sub(r"<(?:\w+:)?(\w+)>", value, rule.rule)


def changes(rule: Rule) -> list[str]:
    return sorted((rule.methods or set()) - {"GET", "HEAD", "OPTIONS"})


def send(
    browser: Browser, rule: Rule, told: Story, *, method: str, token: str = "", **how: Any
) -> TestResponse:
    """A request that would succeed if it were let in, so far as one can know."""
    is_api = "/api/" in rule.rule
    headers = {"X-CSRF-Token": token} if token else {}
    headers |= how.pop("headers", {})
    content = {"json": {}} if is_api else {"data": {"x": "y"}}
    return browser.client.open(path_of(rule, told), method=method, headers=headers, **(content | how))


def broke(answer: TestResponse, access: Access) -> bool:
    """Whether the view failed. Streams are refused to a client with one thread, such as a test's."""
    refused = access.kind == "stream" and answer.status_code == 503
    return answer.status_code >= 500 and not refused


# --- who gets in ----------------------------------------------------------------------------------------


def test_every_route_says_who_may(app: Flask, rules: list[Rule]) -> None:
    assert len(rules) > 20
    for rule in rules:
        assert (access(app, rule).role is None) == (rule.rule.removeprefix("/events") in OPEN), rule.rule


def test_a_view_that_does_not_say_who_may_see_it_is_never_run(told: Story) -> None:
    from eventdriven_sync.dashboard import dashboard

    app = Flask("site")
    blueprint = dashboard(told.bus, insecure=True)
    blueprint.add_url_rule("/forgotten", view_func=lambda: "let in")
    app.register_blueprint(blueprint, url_prefix="/events")
    answer = app.test_client().get("/events/forgotten")
    assert answer.status_code == 500
    assert "let in" not in answer.text
    with pytest.raises(ConfigurationError, match="does not say who may see it"):
        access_of(lambda: "let in")


def test_a_stranger_gets_nowhere_but_to_the_door(app: Flask, rules: list[Rule], told: Story) -> None:
    browser = signed_in(app, None)
    before = state(told)
    for rule in rules:
        if rule.rule.removeprefix("/events") in OPEN:
            continue
        for method in sorted((rule.methods or set()) - {"HEAD"}):
            answer = send(browser, rule, told, method=method)
            sent_to_the_door = answer.status_code == 303 and answer.headers["Location"].startswith(
                "/events/login?next="
            )
            assert answer.status_code == 401 or (method == "GET" and sent_to_the_door), (rule.rule, method)
    assert state(told) == before


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reaches_what_it_may_and_no_more(
    app: Flask, rules: list[Rule], told: Story, role: Role
) -> None:
    browser = signed_in(app, role)
    who = Identity(name=role, role=role)
    for rule in rules:
        needed = access(app, rule).role
        if needed is None:
            continue
        for method in sorted((rule.methods or set()) - {"HEAD"}):
            # Without a token, so that nothing happens: who may not is told so before the token is asked for.
            answer = send(browser, rule, told, method=method)
            refused = answer.status_code == 403 and "This needs the role" in answer.text
            assert refused == (not who.may(needed)), (rule.rule, method, answer.status_code)
            assert not broke(answer, access(app, rule)), (rule.rule, answer.text)


def test_a_viewer_cannot_change_anything(app: Flask, rules: list[Rule], told: Story) -> None:
    browser = signed_in(app, "viewer")
    token = browser.api_token()
    before = state(told)
    tried = 0
    for rule in rules:
        if access(app, rule).role in (None, "viewer"):
            continue
        for method in changes(rule):
            tried += 1
            assert send(browser, rule, told, method=method, token=token).status_code == 403, rule.rule
    assert tried >= 5
    assert state(told) == before


# --- what a change takes --------------------------------------------------------------------------------


def test_a_viewer_may_post_to_sign_out_only(app: Flask, rules: list[Rule]) -> None:
    found = {rule.rule for rule in rules if changes(rule) and access(app, rule).role == "viewer"}
    assert found == {"/events/logout"}


@pytest.mark.parametrize(
    ("token", "headers"),
    [
        ("", {}),
        ("0" * 64, {}),
        ("ü", {}),
        ("right", {"Origin": "https://evil.example"}),
        ("right", {"Origin": "http://localhost:81"}),
        ("right", {"Origin": "https://localhost"}),
        ("right", {"Origin": "null"}),
        ("right", {"Sec-Fetch-Site": "cross-site"}),
        ("right", {"Sec-Fetch-Site": "same-site"}),
        ("right", {"Sec-Fetch-Site": "none"}),
        ("right", {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"}),
    ],
)
def test_a_change_takes_a_token_and_comes_from_here(
    app: Flask, rules: list[Rule], told: Story, token: str, headers: dict[str, str]
) -> None:
    browser = signed_in(app, "admin")
    given = browser.api_token() if token == "right" else token
    before = state(told)
    tried = 0
    for rule in rules:
        for method in changes(rule):
            tried += 1
            answer = send(browser, rule, told, method=method, token=given, headers=headers)
            assert answer.status_code == 403, (rule.rule, method)
            assert "This needs the role" not in answer.text
    assert tried >= 7
    assert state(told) == before


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_a_change_from_a_page_of_ours_is_made(app: Flask, told: Story, headers: dict[str, str]) -> None:
    browser = signed_in(app, "operator")
    headers["X-CSRF-Token"] = browser.api_token()
    answer = browser.client.post(f"/events/api/v1/letters/{told.dead}/retry", json={}, headers=headers)
    assert answer.status_code == 200


def test_the_token_of_another_session_is_none(app: Flask, told: Story) -> None:
    one, other = signed_in(app, "admin"), signed_in(app, "admin")
    headers = {"X-CSRF-Token": other.api_token()}
    answer = one.client.post(f"/events/api/v1/letters/{told.dead}/retry", json={}, headers=headers)
    assert answer.status_code == 403


def test_without_the_cookie_for_this_site_only_nothing_is_changed(app: Flask, told: Story) -> None:
    browser = signed_in(app, "admin")
    headers = {"X-CSRF-Token": browser.api_token()}
    browser.client.delete_cookie("eventdriven-eventdriven-strict", path="/events")
    answer = browser.client.post(f"/events/api/v1/letters/{told.dead}/retry", json={}, headers=headers)
    assert answer.status_code == 403
    # A page of ours gives it again, to the same session.
    assert browser.api_token() == headers["X-CSRF-Token"]
    answer = browser.client.post(f"/events/api/v1/letters/{told.dead}/retry", json={}, headers=headers)
    assert answer.status_code == 200


def test_a_token_in_the_address_is_none(app: Flask, told: Story) -> None:
    browser = signed_in(app, "admin")
    token = browser.api_token()
    answer = browser.client.post(f"/events/logout?csrf_token={token}", data={"x": "y"})
    assert answer.status_code == 403


@pytest.mark.parametrize("type_", ["application/json", "text/plain", "multipart/form-data"])
def test_forms_are_forms(app: Flask, rules: list[Rule], told: Story, type_: str) -> None:
    browser = signed_in(app, "admin")
    token = browser.api_token()
    for rule in rules:
        if "/api/" in rule.rule:
            continue
        for method in changes(rule):
            how = {"data": b"{}", "content_type": type_}
            assert send(browser, rule, told, method=method, token=token, **how).status_code == 415


# --- looking --------------------------------------------------------------------------------------------


def test_looking_changes_nothing(app: Flask, rules: list[Rule], told: Story) -> None:
    browser = signed_in(app, "admin")
    before = state(told)
    seen = 0
    for rule in rules:
        if "GET" in (rule.methods or set()):
            for method in ("GET", "HEAD"):
                answer = send(browser, rule, told, method=method)
                seen += answer.status_code == 200
                answer.close()
                assert not broke(answer, access(app, rule)), rule.rule
    assert seen > 20
    assert state(told) == before


def test_every_route_has_the_headers_in_every_mood(app: Flask, rules: list[Rule], told: Story) -> None:
    from eventdriven_sync.dashboard.headers import HEADERS

    for role in (None, *ROLES):
        browser = signed_in(app, role)
        for rule in rules:
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
                answer = send(browser, rule, told, method=method)
                found = {name: answer.headers.get(name) for name in HEADERS}
                assert found == HEADERS, (rule.rule, method)
                assert not broke(answer, access(app, rule)), rule.rule
                answer.close()


def state(told: Story) -> Any:
    """Everything the store holds, except when a session was used last."""
    tables = told.run.store._state._tables
    return copy.deepcopy({name: getattr(tables, name) for name in tables.__slots__ if name != "strikes"})


def test_the_state_that_is_compared_is_all_there_is(told: Story) -> None:
    assert {"events", "deliveries", "audit", "users", "sessions", "operations"} <= set(state(told))
    before = state(told)
    told.bus.dead_letters.retry(told.dead)
    assert state(told) != before
    assert shop().handlers
