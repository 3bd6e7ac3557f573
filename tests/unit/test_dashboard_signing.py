"""Signing in to the dashboard: passwords, sessions, the throttle, and where one is sent afterwards."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from eventdriven_sync import EventBus
from eventdriven_sync.dashboard import passwords
from eventdriven_sync.dashboard.accounts import Accounts, SignInRefused, Throttled, session_id
from eventdriven_sync.dashboard.passwords import METHOD, Hasher
from eventdriven_sync.envelope import utcnow
from eventdriven_sync.errors import InvalidOption, NotFound
from eventdriven_sync.monitor import Monitor
from eventdriven_sync.people import UserChange
from eventdriven_sync.stores.memory import MemoryStore
from tests.unit.dashboards import CHEAP, PASSWORD, Browser, accounts_of, new_bus, site


class Clock:
    def __init__(self) -> None:
        self.time = utcnow()

    def __call__(self) -> Any:
        return self.time

    def advance(self, **span: float) -> None:
        self.time += timedelta(**span)


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "METHOD", CHEAP)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bus(clock: Clock) -> Iterator[EventBus]:
    bus = EventBus(nats="memory://", store=MemoryStore(clock=clock))
    accounts = Accounts(bus)
    accounts.add("root", PASSWORD, role="admin", by="test")
    accounts.add("ada", PASSWORD, role="viewer", by="test")
    yield bus
    bus.close()


@pytest.fixture
def accounts(bus: EventBus) -> Accounts:
    return Accounts(bus)


@pytest.fixture
def app(bus: EventBus) -> Flask:
    return site(bus, registration=True)


@pytest.fixture
def browser(app: Flask) -> Browser:
    return Browser(app)


# --- hashes ---------------------------------------------------------------------------------------------


def test_the_hash_is_as_dear_as_it_should_be() -> None:
    hasher = Hasher(METHOD)
    stored = hasher.hash(PASSWORD)
    assert stored.startswith("scrypt:65536:8:2$")
    assert hasher.matches(stored, PASSWORD)
    assert not hasher.matches(stored, PASSWORD + "!")
    assert not hasher.is_outdated(stored)


def test_nobody_has_no_password() -> None:
    assert not Hasher(CHEAP).matches(None, PASSWORD)


def test_an_unknown_name_costs_a_hash_as_well(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    real = passwords.check_password_hash
    monkeypatch.setattr(
        passwords,
        "check_password_hash",
        lambda stored, given: (checked.append(stored), real(stored, given))[1],
    )
    for name in ("root", "nobody"):
        with pytest.raises(SignInRefused, match="Name or password is wrong"):
            accounts.sign_in(name, "wrong horse battery", address="192.0.2.1")
    assert [stored.partition("$")[0] for stored in checked] == [CHEAP, CHEAP]


@pytest.mark.parametrize("password", ["", "eleven char", "x" * 1025, "ä" * 513, None, 5])
def test_a_password_that_is_too_short_or_too_long_is_refused(accounts: Accounts, password: Any) -> None:
    with pytest.raises(InvalidOption, match="at least 12 characters and at most 1,024 bytes") as raised:
        accounts.add("eve", password, role="admin", by="test")
    assert not password or str(password) not in str(raised.value)


def test_a_very_long_password_is_never_hashed(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "check_password_hash", lambda *given: pytest.fail("hashed"))
    with pytest.raises(SignInRefused):
        accounts.sign_in("root", "x" * 4000, address="192.0.2.1")


def test_a_password_is_hashed_again_when_the_method_has_changed(bus: EventBus, accounts: Accounts) -> None:
    dearer = Accounts(bus, hasher=Hasher("scrypt:2048:8:1"))
    dearer.sign_in("root", PASSWORD, address="192.0.2.1")
    assert accounts.get("root").password.startswith("scrypt:2048:8:1$")
    dearer.sign_in("root", PASSWORD, address="192.0.2.1")


def test_who_waits_too_long_for_their_turn_is_told_so(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "_PATIENCE", 0.01)
    with passwords._turn, pytest.raises(passwords.TooBusy):
        accounts.sign_in("root", PASSWORD, address="192.0.2.1")


# --- users ----------------------------------------------------------------------------------------------


def test_the_first_user_must_be_an_admin() -> None:
    accounts = Accounts(new_bus())
    with pytest.raises(InvalidOption, match="no admin yet"):
        accounts.add("ada", PASSWORD, role="viewer", by="test")
    accounts.add("root", PASSWORD, role="admin", by="test")
    accounts.add("ada", PASSWORD, role="viewer", by="test")


@pytest.mark.parametrize(
    "name", ["", " ada", "a b", "a" * 65, "ada\n", "<script>", "$ne", None, {"$ne": None}]
)
def test_a_name_that_cannot_be_used_is_refused(accounts: Accounts, name: Any) -> None:
    with pytest.raises(InvalidOption, match="user name"):
        accounts.add(name, PASSWORD, role="admin", by="test")


def test_names_differ_by_more_than_case(accounts: Accounts) -> None:
    with pytest.raises(InvalidOption, match="exists already"):
        accounts.add("ADA", PASSWORD, role="viewer", by="test")
    assert accounts.sign_in("Ada", PASSWORD, address="192.0.2.1").name == "ada"


def test_changing_who_is_not_there_is_an_error(accounts: Accounts) -> None:
    with pytest.raises(NotFound, match="no user is called 'eve'"):
        accounts.change("eve", UserChange(role="admin"), by="test")
    with pytest.raises(InvalidOption, match="viewer, operator, admin"):
        accounts.change("ada", UserChange(role="root"), by="test")


# --- sessions -------------------------------------------------------------------------------------------


def test_a_user_signs_in_and_out(browser: Browser) -> None:
    assert browser.get("/").headers["Location"] == "/events/login?next=/events/"
    answer = browser.sign_in("ada")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/events/")
    assert "ada, viewer" in browser.get("/").text
    assert browser.get("/login").status_code == 303
    assert browser.post("/logout", token=browser.api_token()).status_code == 303
    assert browser.get("/").status_code == 303


def test_a_wrong_password_opens_nothing(browser: Browser) -> None:
    for name in ("ada", "nobody"):
        answer = browser.sign_in(name, "wrong horse battery")
        assert answer.status_code == 401
        assert "Name or password is wrong." in answer.text
    assert browser.get("/").status_code == 303


def test_signing_in_changes_the_id_and_the_token(app: Flask, browser: Browser) -> None:
    """An id that somebody planted in the browser beforehand is no session afterwards."""
    before, token = browser.token(), browser.cookies()
    assert browser.sign_in("ada").status_code == 303
    after = browser.cookies()
    assert token["visit"] != after["visit"]
    assert browser.api_token() != before
    attacker = Browser(app)
    for key, value in token.items():
        attacker.client.set_cookie(f"eventdriven-eventdriven-{key}", value, path="/events")
    assert attacker.get("/").status_code == 303


def test_only_a_digest_of_the_id_is_stored(bus: EventBus, browser: Browser) -> None:
    browser.sign_in("ada")
    secret = browser.cookies()["visit"]
    assert len(secret) == 43
    store: Any = bus.store
    kept = store._state._tables.sessions
    assert list(kept) == [session_id(secret)]
    assert secret not in repr(kept)


def test_a_session_ends_when_it_is_not_used_for_half_an_hour(browser: Browser, clock: Clock) -> None:
    browser.sign_in("ada")
    for _ in range(3):
        clock.advance(minutes=29)
        assert browser.get("/").status_code == 200
    clock.advance(minutes=31)
    assert browser.get("/").status_code == 303


def test_a_session_ends_after_twelve_hours_however_much_it_is_used(browser: Browser, clock: Clock) -> None:
    browser.sign_in("ada")
    for _ in range(12 * 3 - 1):
        clock.advance(minutes=20)
        assert browser.get("/").status_code == 200
    clock.advance(minutes=21)
    assert browser.get("/").status_code == 303


def test_what_a_page_fetches_by_itself_keeps_no_session_alive(accounts: Accounts, clock: Clock) -> None:
    user = accounts.sign_in("ada", PASSWORD, address="192.0.2.1")
    accounts.open_session(user, "secret", address="192.0.2.1")
    clock.advance(minutes=29)
    assert accounts.who("secret", background=True)
    clock.advance(minutes=2)
    assert accounts.who("secret", background=True) is None


@pytest.mark.parametrize(
    "change", [UserChange(role="operator"), UserChange(state="disabled"), UserChange(groups=("Blog",))]
)
def test_whoever_is_changed_has_to_sign_in_anew(
    browser: Browser, accounts: Accounts, change: UserChange
) -> None:
    browser.sign_in("ada")
    accounts.change("ada", change, by="test")
    assert browser.get("/").status_code == 303


def test_a_session_of_another_role_is_none_even_if_it_was_opened_during_the_change(
    bus: EventBus, browser: Browser
) -> None:
    browser.sign_in("ada")
    bus.store.people.change_user("ada", UserChange(role="admin"))
    assert browser.get("/").status_code == 303


def test_another_password_ends_all_sessions(app: Flask, browser: Browser, accounts: Accounts) -> None:
    other = Browser(app)
    for each in (browser, other):
        each.sign_in("ada")
    accounts.set_password("ada", "another horse battery", by="test")
    assert [each.get("/").status_code for each in (browser, other)] == [303, 303]
    assert browser.sign_in("ada").status_code == 401
    assert browser.sign_in("ada", "another horse battery").status_code == 303


def test_the_id_of_a_session_that_was_ended_opens_nothing(app: Flask, browser: Browser) -> None:
    browser.sign_in("ada")
    kept = browser.cookies()
    browser.post("/logout", token=browser.api_token())
    thief = Browser(app)
    for key, value in kept.items():
        thief.client.set_cookie(f"eventdriven-eventdriven-{key}", value, path="/events")
    assert thief.get("/").status_code == 303


def test_signing_out_here_does_not_sign_out_there(app: Flask, browser: Browser) -> None:
    other = Browser(app)
    for each in (browser, other):
        each.sign_in("ada")
    browser.post("/logout", token=browser.api_token())
    assert other.get("/").status_code == 200


# --- cookies --------------------------------------------------------------------------------------------


def cookies_set(app: Flask, **how: Any) -> dict[str, list[str]]:
    answer = app.test_client().get(**how)
    parts = [header.split("; ") for header in answer.headers.getlist("Set-Cookie")]
    return {first.partition("=")[0]: sorted(rest) for first, *rest in parts}


def test_cookies_of_this_machine_need_no_tls(app: Flask) -> None:
    assert cookies_set(app, path="/events/login") == {
        "eventdriven-eventdriven-visit": ["HttpOnly", "Path=/events", "SameSite=Lax"],
        "eventdriven-eventdriven-strict": ["HttpOnly", "Path=/events", "SameSite=Strict"],
    }


def test_cookies_of_another_machine_are_secure(bus: EventBus, app: Flask) -> None:
    how = {"base_url": "https://events.example"}
    assert cookies_set(app, path="/events/login", **how) == {
        "__Secure-eventdriven-eventdriven-visit": ["HttpOnly", "Path=/events", "SameSite=Lax", "Secure"],
        "__Secure-eventdriven-eventdriven-strict": ["HttpOnly", "Path=/events", "SameSite=Strict", "Secure"],
    }
    at_the_root = cookies_set(site(bus, prefix="/"), path="/login", **how)
    assert at_the_root["__Host-eventdriven-eventdriven-visit"] == [
        "HttpOnly",
        "Path=/",
        "SameSite=Lax",
        "Secure",
    ]


def test_the_applications_own_session_is_left_alone(app: Flask, browser: Browser) -> None:
    browser.sign_in("ada")
    assert set(browser.cookies()) == {"visit", "strict"}


# --- the throttle ---------------------------------------------------------------------------------------


def test_five_failures_close_an_account_for_a_quarter_of_an_hour(browser: Browser, clock: Clock) -> None:
    for _ in range(5):
        assert browser.sign_in("ada", "wrong horse battery").status_code == 401
    answer = browser.sign_in("ada")
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "900"
    assert browser.sign_in("root").status_code == 303
    clock.advance(minutes=14)
    browser.post("/logout", token=browser.api_token())
    assert browser.sign_in("ada").headers["Retry-After"] == "60"
    clock.advance(seconds=61)
    assert browser.sign_in("ada").status_code == 303


def test_the_throttle_does_not_tell_who_exists(browser: Browser) -> None:
    codes = [browser.sign_in("nobody", "wrong horse battery").status_code for _ in range(6)]
    assert codes == [401] * 5 + [429]


def test_a_success_forgives_the_failures_before_it(browser: Browser) -> None:
    for _ in range(3):
        for _ in range(4):
            assert browser.sign_in("ada", "wrong horse battery").status_code == 401
        assert browser.sign_in("ada").status_code == 303
        browser.post("/logout", token=browser.api_token())


def test_twenty_failures_close_an_address(accounts: Accounts) -> None:
    for number in range(20):
        with pytest.raises(SignInRefused):
            accounts.sign_in(f"user{number}", "wrong horse battery", address="192.0.2.1")
    with pytest.raises(Throttled) as raised:
        accounts.sign_in("root", PASSWORD, address="192.0.2.1")
    assert 0 < raised.value.after <= 900
    assert accounts.sign_in("root", PASSWORD, address="192.0.2.2").name == "root"


def test_who_signs_in_often_closes_no_address(accounts: Accounts) -> None:
    for _ in range(25):
        accounts.sign_in("root", PASSWORD, address="192.0.2.1")


def test_an_ipv6_network_is_one_address(accounts: Accounts) -> None:
    for number in range(20):
        with pytest.raises(SignInRefused):
            accounts.sign_in(f"user{number}", "wrong horse battery", address=f"2001:db8::{number:x}")
    with pytest.raises(Throttled):
        accounts.sign_in("root", PASSWORD, address="2001:db8::ffff")
    assert accounts.sign_in("root", PASSWORD, address="2001:db8:1::1").name == "root"


def test_of_many_tries_at_once_five_are_checked(accounts: Accounts) -> None:
    def attempt(number: int) -> str:
        try:
            accounts.sign_in("ada", "wrong horse battery", address=f"192.0.2.{number}")
        except (SignInRefused, Throttled) as error:
            return type(error).__name__
        return "in"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(attempt, range(40)))
    assert found.count("SignInRefused") == 5
    assert found.count("Throttled") == 35


def test_an_address_that_a_client_claims_does_not_count(browser: Browser) -> None:
    codes = []
    for number in range(6):
        form = {"name": "ada", "password": "wrong horse battery", "csrf_token": browser.token()}
        headers = {"X-Real-IP": f"192.0.2.{number}"}
        codes.append(browser.client.post("/events/login", data=form, headers=headers).status_code)
    assert codes[-1] == 429


# --- the audit log ----------------------------------------------------------------------------------------


def test_who_signs_in_or_fails_to_stands_in_the_audit_log(
    bus: EventBus, browser: Browser, clock: Clock
) -> None:
    for name, password in (("ada", "wrong horse"), ("nobody", "wrong horse"), ("ada", PASSWORD)):
        clock.advance(seconds=1)
        browser.sign_in(name, password)
    entries = Monitor(bus).audit_log(limit=3).items
    assert [(each.action, each.who, each.ip) for each in entries] == [
        ("login", "ada", "127.0.0.1"),
        ("login_failed", "nobody", "127.0.0.1"),
        ("login_failed", "ada", "127.0.0.1"),
    ]


def test_what_is_changed_about_users_stands_in_the_audit_log(
    bus: EventBus, accounts: Accounts, clock: Clock
) -> None:
    clock.advance(seconds=1)
    accounts.change("ada", UserChange(role="operator"), by="root", ip="192.0.2.1")
    clock.advance(seconds=1)
    accounts.set_password("ada", "another horse battery", by="root")
    password, role, added = Monitor(bus).audit_log(touched="ada").items
    assert (role.who, role.ip, role.action) == ("root", "192.0.2.1", "user_changed")
    assert (role.before["role"], role.after["role"]) == ("viewer", "operator")
    assert (password.action, added.action) == ("password_changed", "user_added")
    assert CHEAP not in repr((password, role, added))


# --- where to afterwards --------------------------------------------------------------------------------

EVIL = [
    "//evil",
    "/\\evil",
    "\\\\evil",
    "https:evil",
    "https://evil.example/events/",
    "%2f%2fevil",
    "%2fevil",
    "/%2fevil",
    "/%2f%2fevil",
    "/%252fevil",
    "/%5cevil",
    "/events/%5c..%5c",
    "/events/../../evil",
    "/events/%2e%2e/evil",
    "/events/%252e%252e/evil",
    "/events/\r\nSet-Cookie: a=b",
    "/events/%0d%0aSet-Cookie:%20a=b",
    "/events/\x00",
    "/events/ä",
    "javascript:alert(1)",
    "data:text/html,x",
    "evil",
    ".evil",
    "/eventsevil",
    "/other",
    "",
    " /events/",
    "\t//evil",
    "http:///evil",
    "///evil",
    "/events/\u2028",
]


@pytest.mark.parametrize("target", EVIL)
def test_nobody_is_sent_away_after_signing_in(browser: Browser, target: str) -> None:
    answer = browser.sign_in("ada", next=target)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/events/")


@pytest.mark.parametrize("target", ["/events/operations?name=J%C3%B6rg&x=//a", "/events/a%20b", "/events/"])
def test_one_is_sent_where_one_wanted_to_go(browser: Browser, target: str) -> None:
    assert browser.sign_in("ada", next=target).headers["Location"] == target


def test_the_page_that_was_asked_for_comes_after_signing_in(browser: Browser) -> None:
    asked = browser.get("/nothing?a=1&b=2").headers["Location"]
    assert asked == "/events/login?next=/events/nothing?a%3D1%26b%3D2"
    assert 'value="/events/nothing?a=1&amp;b=2"' in browser.client.get(asked).text


# --- asking for an account ------------------------------------------------------------------------------


def ask(browser: Browser, name: str, password: str = PASSWORD, again: str = PASSWORD) -> Any:
    return browser.post("/register", form="/register", name=name, password=password, password_again=again)


def test_an_account_that_was_asked_for_opens_once_it_is_approved(
    browser: Browser, accounts: Accounts
) -> None:
    assert ask(browser, "eve").status_code == 200
    assert (accounts.get("eve").role, accounts.get("eve").state) == ("viewer", "waiting")
    refused = browser.sign_in("eve")
    assert refused.status_code == 401
    assert "approve your account" in refused.text
    assert "approve" not in browser.sign_in("eve", "wrong horse battery").text
    accounts.change("eve", UserChange(state="active"), by="test")
    assert browser.sign_in("eve").status_code == 303


def test_asking_does_not_tell_whether_a_name_is_taken(browser: Browser, accounts: Accounts) -> None:
    free = ask(browser, "eve")
    taken = ask(browser, "root")
    assert (free.status_code, free.text) == (taken.status_code, taken.text)
    assert accounts.get("root").role == "admin"


@pytest.mark.parametrize(
    ("name", "password", "again"),
    [("eve", PASSWORD, "other"), ("eve", "short", "short"), ("<b>", PASSWORD, PASSWORD)],
)
def test_asking_wrongly_is_told(browser: Browser, name: str, password: str, again: str) -> None:
    answer = ask(browser, name, password, again)
    assert answer.status_code == 400
    assert "<b>" not in answer.text
    assert PASSWORD not in answer.text


def test_asking_is_bounded(app: Flask, accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = Browser(app)
    codes = [ask(browser, f"eve{number}").status_code for number in range(21)]
    assert codes == [200] * 20 + [429]
    monkeypatch.setattr("eventdriven_sync.dashboard.accounts.MAX_WAITING", 20)
    with pytest.raises(Throttled):
        accounts.register("mallory", PASSWORD, address="192.0.2.9")


def test_nobody_asks_where_it_is_not_wanted(bus: EventBus) -> None:
    browser = Browser(site(bus))
    assert browser.get("/register").status_code == 404
    assert "Ask for an account" not in browser.get("/login").text


def test_without_users_nobody_signs_in() -> None:
    answer = Browser(site()).get("/login")
    assert answer.status_code == 503
    assert "eventdriven user add NAME --role admin" in answer.text


def test_an_application_that_signs_in_by_itself_has_no_sign_in_page() -> None:
    browser = Browser(site(insecure=True))
    assert browser.get("/login").status_code == 404
    assert accounts_of(site(insecure=True)).is_empty()
