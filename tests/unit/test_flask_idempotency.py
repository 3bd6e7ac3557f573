"""The ``Idempotency-Key`` header, where bodies are forms and files and answers are streams."""

import io
from collections.abc import Iterator
from typing import Any

import flask
import pytest

from eventdriven_sync.flask import idempotency
from eventdriven_sync.testing import memory
from tests.unit.flask_site import Site
from tests.unit.rig import Renamed

ADA = Renamed(name="Ada")
KEY = {"Idempotency-Key": "k-1"}


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with memory(site.bus):
        yield site


def idempotent(site: Site, view: Any) -> list[int]:
    """Serve this view by POST; grows with every call."""
    calls: list[int] = []

    @site.app.post("/")
    @site.events.idempotent
    def write() -> Any:
        calls.append(len(calls) + 1)
        return view()

    return calls


# --- whose key it is ----------------------------------------------------------------------------------


def test_users_of_an_untracked_view_have_answers_of_their_own(site: Site) -> None:
    who = ["ada"]
    site.events.user(lambda: who[0])

    @site.app.post("/")
    @site.events.untracked
    @site.events.idempotent
    def write() -> str:
        return who[0]

    first = site.client.post("/", headers=KEY).text
    who[0] = "mary"
    assert (first, site.client.post("/", headers=KEY).text) == ("ada", "mary")


def test_users_whose_names_look_like_secrets_have_answers_of_their_own(site: Site) -> None:
    who = ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ.dozjgNryP4J3jVmNHl0w5N"]
    site.events.user(lambda: who[0])
    calls = idempotent(site, lambda: "ok")
    site.client.post("/", headers=KEY)
    who[0] = who[0].replace("dozj", "abcd")
    site.client.post("/", headers=KEY)
    assert calls == [1, 2]


def test_nobody_gets_an_answer_while_it_is_unknown_who_asks(site: Site) -> None:
    def user() -> str:
        raise OSError("no database of users")

    site.events.user(user)
    calls = idempotent(site, lambda: "ok")
    assert [site.client.post("/", headers=KEY).status_code for _ in range(2)] == [500, 500]
    assert calls == []


# --- what is the same request -------------------------------------------------------------------------


def test_a_form_that_was_read_before_the_view_is_compared(site: Site) -> None:
    @site.app.before_request
    def check_csrf() -> None:
        _ = flask.request.form

    calls = idempotent(site, lambda: flask.request.form["a"])
    answers = [site.client.post("/", data={"a": a}, headers=KEY) for a in ("1", "2", "1")]
    assert [each.status_code for each in answers] == [200, 422, 200]
    assert calls == [1]


def test_json_that_was_read_before_the_view_is_compared(site: Site) -> None:
    site.app.before_request(lambda: flask.request.get_json() and None)
    idempotent(site, lambda: flask.request.get_json())
    answers = [site.client.post("/", json={"a": a}, headers=KEY) for a in ("1", "2", "1")]
    assert [each.status_code for each in answers] == [200, 422, 200]


def test_files_are_compared_whatever_the_boundary(site: Site) -> None:
    def view() -> Any:
        return {"title": flask.request.form["title"], "text": flask.request.files["file"].read().decode()}

    idempotent(site, view)

    def post(text: bytes, boundary: str, name: str = "a.txt") -> Any:
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="title"\r\n\r\nHello\r\n--{boundary}\r\n'
            f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        ).encode()
        return site.client.post(
            "/",
            data=body + text + f"\r\n--{boundary}--\r\n".encode(),
            content_type=f"multipart/form-data; boundary={boundary}",
            headers=KEY,
        )

    first, again = post(b"one", "x1"), post(b"one", "x2")
    assert first.json == again.json == {"title": "Hello", "text": "one"}
    assert again.headers["Idempotency-Replayed"] == "true"
    assert [post(b"two", "x3").status_code, post(b"one", "x4", "b.txt").status_code] == [422, 422]


def test_a_view_can_read_the_body_as_a_stream(site: Site) -> None:
    idempotent(site, lambda: flask.request.stream.read())
    assert site.client.post("/", data=b"a file", headers=KEY).data == b"a file"


def test_a_body_of_unknown_length_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MAX_BODY", 100_000)
    calls = idempotent(site, lambda: str(len(flask.request.get_data())))

    def post(size: int) -> Any:
        return site.client.post(
            "/",
            input_stream=io.BytesIO(b"x" * size),
            environ_overrides={"wsgi.input_terminated": True, "CONTENT_LENGTH": ""},
            headers=KEY,
        )

    assert post(100_001).status_code == 413
    assert calls == []
    assert post(100_000).text == "100000"


# --- what is kept -------------------------------------------------------------------------------------


def test_a_streamed_answer_is_kept_whole_and_within_its_operation(site: Site) -> None:
    def parts() -> Iterator[str]:
        yield site.events.publish(ADA).operation_id
        yield "."

    idempotent(site, lambda: flask.Response(flask.stream_with_context(parts())))
    first, again = (site.client.post("/", headers=KEY) for _ in range(2))
    assert first.text == again.text == f"{site.operation.id}."


def test_a_streamed_answer_that_breaks_off_is_not_kept(site: Site) -> None:
    def parts() -> Iterator[str]:
        yield "a"
        if calls == [1]:
            raise ValueError("no paper left")
        yield "b"

    calls = idempotent(site, lambda: flask.Response(parts()))
    first, again = (site.client.post("/", headers=KEY) for _ in range(2))
    assert (first.status_code, again.status_code, again.text) == (500, 200, "ab")


@pytest.mark.parametrize("streamed", [True, False])
def test_of_an_answer_that_is_too_large_status_and_headers_are_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    monkeypatch.setattr(idempotency, "MAX_REPLY", 1000)
    closed: list[int] = []

    def parts() -> Iterator[str]:
        try:
            yield from ("x" * 600 for _ in range(5))
        finally:
            closed.append(1)

    def view() -> flask.Response:
        answer = flask.Response(parts() if streamed else "x" * 3000, 201, mimetype="text/csv")
        answer.headers["X-Count"] = "7"
        return answer

    calls = idempotent(site, view)
    first, again = (site.client.post("/", headers=KEY) for _ in range(2))
    assert (first.status_code, len(first.text), first.mimetype) == (201, 3000, "text/csv")
    assert (again.status_code, again.text, again.headers["X-Count"], calls) == (201, "", "7", [1])
    assert "Content-Type" not in again.headers
    assert closed == [1] * streamed


def test_an_answer_too_large_for_its_headers_is_given(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    idempotent(site, lambda: ("ok", 200, {"X-Long": "x" * 9_000_000}))
    assert site.client.post("/", headers=KEY).text == "ok"
    assert "was not kept" in caplog.text


def test_headers_with_secrets_are_not_kept(site: Site) -> None:
    idempotent(site, lambda: ("ok", 200, {"X-Auth-Token": "t", "Access-Control-Allow-Credentials": "true"}))
    first, again = (site.client.post("/", headers=KEY).headers for _ in range(2))
    assert (first["X-Auth-Token"], "X-Auth-Token" in again) == ("t", False)
    assert again["Access-Control-Allow-Credentials"] == "true"


def test_a_client_that_was_told_to_slow_down_may_try_again(site: Site) -> None:
    calls = idempotent(site, lambda: ("slowly", 429) if len(calls) == 1 else "ok")
    assert [site.client.post("/", headers=KEY).status_code for _ in range(2)] == [429, 200]


def test_a_replay_in_whose_request_something_was_published_has_an_operation_of_its_own(site: Site) -> None:
    site.app.before_request(lambda: site.events.publish(ADA) and None)
    idempotent(site, lambda: "ok")
    for _ in range(2):
        answer = site.client.post("/?a=1", headers=KEY)
    assert answer.headers["Idempotency-Replayed"] == "true"
    found = site.bus.operations.find()
    assert [(each.status, each.variables, each.details["status_code"]) for each in found] == [
        ("succeeded", {"a": "1"}, 200)
    ] * 2


def test_a_refused_request_says_why_in_its_operation(site: Site) -> None:
    idempotent(site, lambda: "ok")
    for body in (b"1", b"2"):
        site.client.post("/", data=body, headers=KEY)
    [refused] = site.bus.operations.find(status="failed")
    assert refused.error is not None
    assert (refused.error.error_type, "another request" in refused.error.message) == ("HTTP 422", True)
