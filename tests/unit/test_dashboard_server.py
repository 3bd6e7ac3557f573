"""The dashboard as an application of its own: where it listens, what it believes, and its commands."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result

from eventdriven_sync import EventBus
from eventdriven_sync.dashboard import Identity, application, need_packages, passwords
from eventdriven_sync.dashboard.accounts import Accounts
from eventdriven_sync.dashboard.server import check_address
from eventdriven_sync.errors import ConfigurationError, InvalidOption, MissingExtra
from eventdriven_sync.testing import memory
from tests.unit.dashboards import CHEAP, KEY, PASSWORD, new_bus
from tests.unit.test_cli import cli

ADMIN = Identity(name="root", role="admin")


# --- the application ------------------------------------------------------------------------------------


def test_an_application_of_its_own_makes_its_own_key() -> None:
    one, other = (application(new_bus()).extensions["eventdriven_dashboard"] for _ in range(2))
    keys = [mount.key for found in (one, other) for mount in found.values()]
    assert len(set(keys)) == 2
    with pytest.raises(ConfigurationError, match="at least 32 random bytes"):
        application(new_bus(), secret_key="changeme")


@pytest.mark.parametrize("proxies", [-1, 11, "1", True, None])
def test_a_number_of_proxies_that_cannot_be_is_refused(proxies: Any) -> None:
    with pytest.raises(InvalidOption, match="proxies is"):
        application(new_bus(), proxies=proxies)


def seen_from(proxies: int, forwarded: str) -> str:
    """The address that an application behind so many proxies takes for the client's."""
    seen: list[str] = []

    def authorize(request: Any) -> Identity:
        seen.append(request.remote_addr)
        return ADMIN

    app = application(new_bus(), authorize=authorize, secret_key=KEY, proxies=proxies)
    headers = {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"}
    answer = app.test_client().get(
        "/api/v1/session",
        base_url="https://x",
        headers=headers,
        environ_overrides={"REMOTE_ADDR": "10.0.0.1"},
    )
    assert answer.status_code == 200
    return seen[0]


def test_only_the_proxies_one_has_are_believed() -> None:
    assert seen_from(0, "203.0.113.9") == "10.0.0.1"
    assert seen_from(1, "203.0.113.9, 192.0.2.1") == "192.0.2.1"
    assert seen_from(2, "203.0.113.9, 192.0.2.1") == "203.0.113.9"


def test_behind_a_proxy_that_ends_tls_it_is_https() -> None:
    app = application(new_bus(), authorize=lambda request: ADMIN, secret_key=KEY, proxies=1)
    far = {"environ_overrides": {"REMOTE_ADDR": "10.0.0.1"}, "base_url": "http://events.example"}
    secure = app.test_client().get("/api/v1/session", headers={"X-Forwarded-Proto": "https"}, **far)
    assert secure.status_code == 200
    assert all("; Secure;" in each for each in secure.headers.getlist("Set-Cookie"))
    assert app.test_client().get("/api/v1/session", **far).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_may_be_listened_on(host: str) -> None:
    check_address(host, proxies=0, insecure=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "", "example.org", "localhost.example.org"])
def test_other_addresses_take_a_proxy_and_users(host: str) -> None:
    with pytest.raises(InvalidOption, match="clear text"):
        check_address(host, proxies=0, insecure=False)
    with pytest.raises(InvalidOption, match="this machine only"):
        check_address(host, proxies=1, insecure=True)
    check_address(host, proxies=1, insecure=False)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventdriven_sync.dashboard.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"needs flask: pip install \"eventdriven_sync\[dashboard\]\""):
        need_packages()
    with pytest.raises(MissingExtra):
        application(new_bus())


# --- the commands ---------------------------------------------------------------------------------------


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[EventBus]:
    monkeypatch.setattr(passwords, "METHOD", CHEAP)
    for name in list(os.environ):
        if name.startswith("EVENTDRIVEN_"):
            monkeypatch.delenv(name)
    module = ModuleType("cli_people")
    bus = new_bus()
    vars(module)["bus"] = bus
    monkeypatch.setitem(sys.modules, "cli_people", module)
    with memory(bus):
        yield bus


def run(*args: str, answer: str | None = None, **env: str) -> Result:
    return cli(*args, answer=answer, app="cli_people:bus", **env)


def add(name: str, role: str, *more: str) -> Result:
    return run("user", "add", name, "--role", role, "--password-env", "SECRET", *more, SECRET=PASSWORD)


def test_users_are_added_and_listed(bus: EventBus) -> None:
    assert add("Root", "admin").stdout == "User root added as admin.\n"
    assert add("ada", "viewer", "--payloads", "--group", "Blog", "--group", "Comment").exit_code == 0
    listed = run("user", "list")
    assert "root" in listed.stdout
    assert "Blog, Comment" in listed.stdout
    found = [json.loads(line) for line in run("user", "list", "--json").stdout.splitlines()]
    assert [(each["name"], each["role"], each["payloads"]) for each in found] == [
        ("ada", "viewer", True),
        ("root", "admin", False),
    ]
    assert "password" not in found[0]
    assert Accounts(bus).sign_in("root", PASSWORD, address="").name == "root"


def test_the_first_user_is_an_admin(bus: EventBus) -> None:
    refused = add("ada", "viewer")
    assert refused.exit_code == 2
    assert "--role admin" in refused.stderr


def test_a_password_is_asked_for_twice_and_not_shown(bus: EventBus) -> None:
    done = run("user", "add", "root", "--role", "admin", answer=f"{PASSWORD}\n{PASSWORD}\n")
    assert done.exit_code == 0, done.output
    assert PASSWORD not in done.output
    assert Accounts(bus).sign_in("root", PASSWORD, address="").name == "root"


def test_a_password_comes_from_a_file(bus: EventBus, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\nsecond line\n", encoding="utf-8")
    added = run("user", "add", "root", "--role", "admin", "--password-file", str(file))
    assert added.exit_code == 0, added.output
    changed = run("user", "password", "root", "--password-file", "-", answer="another horse battery\n")
    assert changed.exit_code == 0, changed.output
    assert Accounts(bus).sign_in("root", "another horse battery", address="").name == "root"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--password-env", "NOWHERE"), "no environment variable 'NOWHERE'"),
        (("--password-env", "SHORT"), "at least 12 characters"),
        (("--password-env", "SHORT", "--password-file", "-"), "not both"),
        (("--password", "correct horse battery"), "No such option"),
    ],
)
def test_a_password_that_cannot_be_had_is_an_error(bus: EventBus, args: tuple[str, ...], said: str) -> None:
    refused = run("user", "add", "root", "--role", "admin", *args, SHORT="hunter2")
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert "hunter2" not in refused.output


def test_users_are_changed_disabled_and_approved(bus: EventBus) -> None:
    add("root", "admin")
    add("ada", "viewer")
    accounts = Accounts(bus)
    assert run("user", "role", "ada", "operator", "--group", "Blog", "--payloads").exit_code == 0
    ada = accounts.get("ada")
    assert (ada.role, ada.groups, ada.payloads) == ("operator", ("Blog",), True)
    run("user", "role", "ada", "viewer", "--all-groups", "--no-payloads")
    ada = accounts.get("ada")
    assert (ada.role, ada.groups, ada.payloads) == ("viewer", (), False)
    assert "is disabled" in run("user", "disable", "ada").stdout
    assert accounts.get("ada").state == "disabled"
    assert run("user", "approve", "ada", "--role", "operator").stdout == "User ada may sign in as operator.\n"
    again = run("user", "approve", "ada")
    assert again.exit_code == 2
    assert "active already" in again.stderr
    assert run("user", "disable", "nobody").exit_code == 2


def test_the_only_admin_stays_one(bus: EventBus) -> None:
    add("root", "admin")
    for args in (("disable", "root"), ("role", "root", "viewer")):
        refused = run("user", *args)
        assert refused.exit_code == 2
        assert "the only admin" in refused.stderr
    add("other", "admin")
    assert run("user", "disable", "root").exit_code == 0


def test_who_did_it_stands_in_the_audit_log(bus: EventBus) -> None:
    add("root", "admin")
    from eventdriven_sync.monitor import Monitor

    [entry] = Monitor(bus).audit_log(touched="root").items
    assert entry.action == "user_added"
    assert entry.who.startswith("cli:")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--host", "0.0.0.0"), "--behind-proxy"),
        (("--host", "0.0.0.0", "--insecure", "--behind-proxy"), "this machine only"),
        ((), "eventdriven user add NAME --role admin"),
        (("--port", "99999"), "99999"),
        (("--behind-proxy", "0"), "0"),
    ],
)
def test_a_dashboard_that_would_be_open_is_not_started(
    bus: EventBus, args: tuple[str, ...], said: str
) -> None:
    refused = run("dashboard", *args)
    assert refused.exit_code == 2
    assert said in refused.stderr


def test_a_weak_key_is_refused(bus: EventBus, tmp_path: Path) -> None:
    add("root", "admin")
    refused = run("dashboard", EVENTDRIVEN_DASHBOARD_SECRET_KEY="changeme")
    assert refused.exit_code == 2
    assert "at least 32 random bytes" in refused.stderr
    file = tmp_path / "key"
    file.write_text("dev")
    assert run("dashboard", "--secret-key-file", str(file)).exit_code == 2
