"""The page of the dashboard's own users: who sees it, and what an admin does there."""

import pytest
from flask import Flask

from eventdriven_sync.dashboard import Identity, passwords
from eventdriven_sync.dashboard.accounts import Accounts
from tests.unit.dashboards import CHEAP, PASSWORD, Browser, accounts_of, new_bus, site


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "METHOD", CHEAP)


@pytest.fixture
def app() -> Flask:
    return site(registration=True)


@pytest.fixture
def accounts(app: Flask) -> Accounts:
    found = accounts_of(app)
    found.add("rita", PASSWORD, role="admin", by="test")
    found.add("olga", PASSWORD, role="operator", by="test")
    found.register("wendy", PASSWORD, address="10.0.0.1")
    return found


@pytest.fixture
def rita(app: Flask, accounts: Accounts) -> Browser:
    browser = Browser(app)
    assert browser.sign_in("rita").status_code == 303
    return browser


def test_who_waits_stands_first_and_nobody_changes_themselves_by_mistake(rita: Browser) -> None:
    page = rita.get("/users").text
    assert page.index(">wendy<") < page.index(">olga<")
    assert 'action="/events/users/wendy/approve"' in page
    assert 'action="/events/users/olga/role"' in page
    assert 'action="/events/users/olga/disable"' in page
    assert 'action="/events/users/rita/disable"' not in page
    assert "olga" not in rita.get("/users?state=waiting").text
    assert rita.get("/users?state=odd").status_code == 400


def test_an_admin_lets_in_who_asked(app: Flask, accounts: Accounts, rita: Browser) -> None:
    answer = rita.post("/users/wendy/approve", form="/users", role="operator")
    assert answer.headers["Location"] == "/events/users?notice=approved"
    assert accounts.get("wendy").role == "operator"
    assert "may sign in now" in rita.get("/users?notice=approved").text
    assert Browser(app).sign_in("wendy").status_code == 303
    assert "wendy" in rita.get("/audit").text


def test_an_admin_changes_a_role_and_shuts_somebody_out(
    app: Flask, accounts: Accounts, rita: Browser
) -> None:
    olga = Browser(app)
    olga.sign_in("olga")
    assert rita.post("/users/olga/role", form="/users", role="viewer").status_code == 303
    assert olga.get("/").status_code == 303
    assert rita.post("/users/olga/role", form="/users", role="emperor").status_code == 400
    assert rita.post("/users/olga/disable", form="/users").status_code == 303
    assert olga.sign_in("olga").status_code == 401
    assert "Let in again" in rita.get("/users").text
    assert rita.post("/users/nobody/disable", form="/users").status_code == 404


def test_only_admins_see_users_and_their_link(app: Flask, accounts: Accounts) -> None:
    olga = Browser(app)
    olga.sign_in("olga")
    assert olga.get("/users").status_code == 403
    assert "/events/users" not in olga.get("/").text
    assert "/events/audit" not in olga.get("/").text
    assert olga.post("/users/wendy/approve", form="/", role="admin").status_code == 403
    assert accounts.get("wendy").state == "waiting"


def test_where_the_application_signs_people_in_there_is_no_such_page() -> None:
    browser = Browser(site(new_bus(), authorize=lambda request: Identity(name="ada", role="admin")))
    assert browser.get("/users").status_code == 404
    assert "/events/users" not in browser.get("/").text
