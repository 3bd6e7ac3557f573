"""Pages and JSON: input, sessions, forms."""

import re

import pytest
from flask import Flask
from flask.testing import FlaskClient
from pymongo.errors import OperationFailure

from eventdriven_sync.testing import MemoryRun
from flask_blog.tests.conftest import ADA
from flask_blog.users import data as users


@pytest.fixture
def browser(app: Flask, run: MemoryRun) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_ACCEPT"] = "text/html,*/*;q=0.8"
    return client


def fill(browser: FlaskClient, page: str, **values: str) -> tuple[int, str]:
    """Open a page, send its last form, follow the redirect: status and text of the page after it."""
    shown = browser.get(page).text
    action = re.findall(r'<form [^>]*action="([^"]+)"', shown)[-1]
    token = re.findall(r'name="csrf_token" value="([^"]+)"', shown)[-1]
    answer = browser.post(action, data={"csrf_token": token, **values}, follow_redirects=True)
    return answer.status_code, answer.text


def test_a_visitor_gets_along_with_the_pages_alone(browser: FlaskClient, run: MemoryRun) -> None:
    assert "Nothing has been written yet" in browser.get("/").text
    assert "Welcome, Ada!" in fill(browser, "/register", **ADA)[1]
    run.drain()
    assert "Your post is online" in fill(browser, "/posts/new", title="Notes", text="On the Engine")[1]
    run.drain()
    page = re.findall(r'href="(/posts/[0-9a-f]{24})"', browser.get("/").text)[0]
    assert "Your comment is online" in fill(browser, page, text="Note G")[1]
    assert "eventdriven chain" in fill(browser, "/me", first_name="Ada", last_name="Lovelace")[1]
    run.drain()
    assert browser.get(page).text.count("Ada Lovelace") == 3  # the header, the post, the comment
    assert "No day has been counted" in browser.get("/statistics").text
    assert "The fault is on" in fill(browser, "/demonstration", fault="on")[1]


def test_what_visitors_type_is_shown_as_text(browser: FlaskClient, run: MemoryRun) -> None:
    fill(browser, "/register", **{**ADA, "first_name": "<b>Ada"})
    run.drain()
    status, page = fill(
        browser, "/posts/new", title="<script>alert(1)</script>", text="<img src=x onerror=x>"
    )
    assert status == 200
    assert not re.search(r"<(b|script|img)\b", page)
    assert page.count("&lt;script&gt;") == 2


@pytest.mark.parametrize("token", [None, "", "wrong", "é"])
def test_forms_without_the_token_of_the_session_are_refused(browser: FlaskClient, token: str | None) -> None:
    assert browser.post("/register", data={**ADA, "csrf_token": ""}).status_code == 403  # no session yet
    browser.get("/register")
    answer = browser.post("/register", data={**ADA, **({} if token is None else {"csrf_token": token})})
    assert (answer.status_code, "expired" in answer.text) == (403, True)
    assert browser.post("/sign-out").status_code == 403


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"first_name": None}, "The first name is missing."),
        ({"last_name": "  "}, "The last name is missing."),
        ({"last_name": 7}, "The last name is missing."),
        ({"first_name": "x" * 81}, "The first name has 81 characters; at most 80 are possible."),
        ({"first_name": "a\x00b"}, "The first name contains a character that cannot be stored."),
        ({"first_name": "\ud800"}, "The first name contains a character that cannot be stored."),
        ({"email": "nobody"}, "The email is not an address such as ada@example.org."),
        ({"password": "short"}, "The password needs at least 8 characters."),
    ],
)
def test_wrong_input_is_named(
    visitor: FlaskClient, run: MemoryRun, change: dict[str, object], said: str
) -> None:
    answer = visitor.post("/register", json=ADA | change)
    assert (answer.status_code, answer.json) == (400, {"error": said})
    assert not run.envelopes()


@pytest.mark.parametrize("body", ["[1]", "{", '"text"', "null"])
def test_a_body_that_is_no_object_is_refused(visitor: FlaskClient, run: MemoryRun, body: str) -> None:
    answer = visitor.post("/register", data=body, content_type="application/json")
    assert (answer.status_code, answer.json) == (400, {"error": "Send a JSON object."})


def test_a_form_with_wrong_input_comes_back_with_what_was_typed(browser: FlaskClient) -> None:
    status, page = fill(browser, "/register", **{**ADA, "password": "short"})
    assert (status, "at least 8 characters." in page) == (400, True)
    assert 'value="ada@example.org"' in page
    assert "short" not in page


def test_an_address_registers_once_whatever_its_case(ada: FlaskClient, run: MemoryRun) -> None:
    answer = ada.post("/register", json=ADA | {"email": "ADA@example.org"})
    assert (answer.status_code, "registered already" in answer.json["error"]) == (409, True)
    assert len(run.envelopes("User.registered")) == 1


def test_only_the_right_password_signs_in(ada: FlaskClient) -> None:
    ada.post("/sign-out", json={})
    assert ada.post("/posts", json={"title": "x", "text": "x"}).status_code == 401
    for email, password in ((ADA["email"], "wrong pass"), ("else@example.org", ADA["password"])):
        assert ada.post("/sign-in", json={"email": email, "password": password}).status_code == 401
    assert (
        ada.post("/sign-in", json={"email": "Ada@example.org", "password": ADA["password"]}).status_code
        == 200
    )
    assert ada.get("/me").json["user"]["first_name"] == "Ada"


def test_pages_for_users_lead_others_to_the_sign_in_page(browser: FlaskClient) -> None:
    answer = browser.get("/posts/new")
    assert (answer.status_code, answer.location) == (303, "/sign-in")


@pytest.mark.parametrize("path", ["/posts/1", "/posts/%00", "/posts/" + "a" * 24, "/nothing", "/?before=x"])
def test_what_is_not_there_is_not_found(visitor: FlaskClient, run: MemoryRun, path: str) -> None:
    answer = visitor.get(path)
    assert (answer.status_code, list(answer.json)) == (404, ["error"])
    assert not run.envelopes()


def test_a_comment_needs_a_post(ada: FlaskClient, run: MemoryRun) -> None:
    before = len(run.envelopes())
    assert ada.post(f"/posts/{'a' * 24}/comments", json={"text": "x"}).status_code == 409
    assert len(run.envelopes()) == before


def test_the_loser_of_two_simultaneous_changes_is_asked_to_try_again(
    app: Flask, ada: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conflict(*args: object) -> None:
        raise OperationFailure("WriteConflict", 112, {"errorLabels": labels})

    monkeypatch.setattr(users, "rename", conflict)
    labels = ["TransientTransactionError"]
    answer = ada.post("/me/name", json={"first_name": "Ada", "last_name": "King"})
    assert (answer.status_code, "at the same moment" in answer.json["error"]) == (409, True)
    labels = []
    with pytest.raises(OperationFailure):
        ada.post("/me/name", json={"first_name": "Ada", "last_name": "King"})


def test_older_posts_are_on_the_next_page(ada: FlaskClient) -> None:
    for number in range(21):
        ada.post("/posts", json={"title": f"{number}", "text": "x"})
    first = ada.get("/").json
    second = ada.get(f"/?before={first['older']}").json
    assert [len(page["posts"]) for page in (first, second)] == [20, 1]
    assert (second["posts"][0]["title"], second["older"]) == ("0", None)
