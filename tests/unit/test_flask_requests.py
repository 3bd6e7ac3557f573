"""Requests as operations, where applications and clients do what nobody planned."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from flask.views import MethodView

from eventdriven_sync import EventBus, Settings, context, current_operation_id
from eventdriven_sync.errors import ConfigurationError
from eventdriven_sync.flask import EventDriven
from eventdriven_sync.testing import memory
from tests.unit.flask_site import Site
from tests.unit.rig import Renamed

ADA = Renamed(name="Ada")
CANARY = "canary-4f1c9a"


@pytest.fixture
def site() -> Iterator[Site]:
    yield Site()
    leaked = current_operation_id()
    context.origin.set(None)
    assert leaked is None, "nothing that is published after a request belongs to it"


def post_view(site: Site, view: Callable[..., Any]) -> None:
    site.app.add_url_rule("/", "write", view, methods=["POST"])


# --- nothing is left behind ---------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["teardown_request", "teardown_appcontext"])
def test_a_teardown_function_that_fails_does_not_hide_the_operation(site: Site, at: str) -> None:
    def fail(error: BaseException | None) -> None:
        raise OSError("the pool is broken")

    getattr(site.app, at)(fail)
    post_view(site, lambda: "ok")
    with pytest.raises(OSError, match="the pool"):
        site.client.post("/")
    assert site.operation.details["status_code"] == 200


def test_a_teardown_function_that_fails_is_the_operations_error(site: Site) -> None:
    @site.app.teardown_request
    def fail(error: BaseException | None) -> None:
        raise OSError("the pool is broken")

    post_view(site, lambda: "ok")
    with pytest.raises(OSError, match="the pool"):
        site.client.post("/")
    assert site.operation.error is not None
    assert site.operation.error.error_type == "OSError"


def test_a_teardown_function_publishes_into_the_operation(site: Site) -> None:
    seen: list[str] = []

    @site.app.teardown_request
    def publish(error: BaseException | None) -> None:
        seen.append(site.events.publish(ADA).operation_id)

    post_view(site, lambda: iter("ab"))
    site.app.add_url_rule("/plain", "plain", lambda: "ok", methods=["POST"])
    with memory(site.bus):
        answers = [site.client.post("/"), site.client.post("/plain")]
    assert [answer.text for answer in answers] == ["ab", "ok"]
    assert seen == [answer.headers["X-Operation-Id"] for answer in answers]


def test_a_stream_with_context_that_is_read_to_its_end_leaves_nothing_behind(site: Site) -> None:
    post_view(site, lambda: flask.Response(flask.stream_with_context(iter("abc"))))
    assert site.client.post("/").text == "abc"
    assert current_operation_id() is None


def test_a_stream_that_is_closed_elsewhere_changes_nothing_there(site: Site) -> None:
    post_view(site, lambda: iter("abc"))
    with site.bus.operation("outer"):
        answer = site.client.post("/")
    with site.bus.operation("another") as another:
        answer.close()
        assert current_operation_id() == another.id


@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_an_answer_without_a_body_ends_its_operation(site: Site, method: str) -> None:
    def view() -> flask.Response:
        return flask.Response(iter("abc"), 204 if method == "POST" else 200)

    site.app.add_url_rule("/", "w", site.events.operation("w")(view), methods=["GET", "POST"])
    site.client.open("/", method=method)
    assert site.operation.status == "succeeded"


def test_an_application_that_is_called_by_a_view_does_not_end_its_operation(site: Site) -> None:
    inner = Site()
    inner.app.add_url_rule("/", "inner", inner.events.untracked(lambda: "inner"), methods=["POST"])

    def view() -> Any:
        answer = flask.make_response(inner.app)
        assert current_operation_id() is not None
        return answer

    post_view(site, view)
    answer = site.client.post("/")
    assert (answer.text, answer.headers["X-Operation-Id"]) == ("inner", site.operation.id)
    assert (site.operation.name, inner.bus.operations.find()) == ("write", [])


def test_a_stream_without_a_context_publishes_for_the_known_user(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.events.user(lambda: flask.request.args["user"])
    post_view(site, lambda: (site.bus.publish(ADA).operation_id for _ in "a"))
    with memory(site.bus):
        answer = site.client.post("/?user=ada")
        assert answer.text == site.operation.id
        assert site.operation.user == "ada"
    assert "failed" not in caplog.text


# --- which requests are operations --------------------------------------------------------------------


def test_what_stands_before_the_extension_is_seen_as_well() -> None:
    app, events = flask.Flask("late"), EventDriven()
    app.config["TESTING"] = True
    app.before_request(lambda: flask.abort(401))
    events.init_app(app)
    app.add_url_rule("/", "write", lambda: "ok", methods=["POST"])
    answer = app.test_client().post("/")
    [found] = events.bus_of(app).operations.find()
    assert (found.id, found.details["status_code"]) == (answer.headers["X-Operation-Id"], 401)


def test_methods_of_a_view_class_are_decorated_one_by_one(site: Site) -> None:
    class Post(MethodView):
        @site.events.operation("writePost", variables=["a"])
        def post(self) -> str:
            return "written"

        @site.events.operation("readPost")
        def get(self) -> str:
            return "read"

        @site.events.untracked
        def put(self) -> str:
            return "pinged"

        def delete(self) -> str:
            return "gone"

    site.app.add_url_rule("/", view_func=Post.as_view("posts"))
    for method in ("POST", "GET", "HEAD", "PUT", "DELETE"):
        site.client.open("/?a=1&b=2", method=method)
    found = [(each.details["method"], each.name) for each in site.bus.operations.find()]
    assert sorted(found) == [
        ("DELETE", "posts"), ("GET", "readPost"), ("HEAD", "readPost"), ("POST", "writePost"),
    ]  # fmt: skip
    assert {"a": "1"} in [each.variables for each in site.bus.operations.find()]


def test_a_decorator_of_a_view_class_is_for_all_its_methods(site: Site) -> None:
    class Post(MethodView):
        decorators = [site.events.operation("posts")]

        def get(self) -> str:
            return "read"

    site.app.add_url_rule("/", view_func=Post.as_view("view"))
    site.client.get("/")
    assert site.operation.name == "posts"


def test_an_answer_of_flask_about_the_methods_is_no_operation(site: Site) -> None:
    site.app.add_url_rule("/", "w", site.events.operation("w")(lambda: "ok"), methods=["POST"])
    assert "POST" in site.client.options("/").headers["Allow"]
    assert site.bus.operations.find() == []


def test_a_bus_belongs_to_its_application_from_the_start() -> None:
    bus = EventBus(settings=Settings(nats="memory://", mongo="memory://"))
    EventDriven(flask.Flask("own"), bus=bus)
    with pytest.raises(ConfigurationError, match="another application"):
        EventDriven(flask.Flask("other"), bus=bus)


# --- what is stored of them ---------------------------------------------------------------------------


def test_a_body_nested_too_deeply_does_not_cost_the_answer(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    post_view(site, lambda: "the card was charged")
    answer = site.client.post("/?a=1", data="[" * 10_000 + "]" * 10_000, content_type="application/json")
    assert (answer.status_code, answer.text) == (200, "the card was charged")
    assert site.operation.variables == {"a": "1"}
    assert "RecursionError" in caplog.text


def test_a_large_body_is_stored_if_the_view_read_it(site: Site) -> None:
    def view() -> str:
        flask.request.get_json()
        return "ok"

    post_view(site, view)
    site.client.post("/", json={"title": "Hello", "text": "x" * 70_000})
    assert site.operation.variables["title"] == "Hello"


@pytest.mark.parametrize("mimetype", ["text/plain", "application/json"])
def test_an_answer_that_is_no_utf_8_is_given(site: Site, mimetype: str) -> None:
    post_view(site, lambda: flask.Response(b"\xff no", 400, mimetype=mimetype))
    assert site.client.post("/").status_code == 400
    assert site.operation.error is not None
    assert site.operation.error.message == "\ufffd no"


def test_what_an_abort_answers_is_the_error(site: Site) -> None:
    post_view(site, lambda: flask.abort(flask.make_response({"error": "no paper"}, 409)))
    site.client.post("/")
    assert site.operation.error is not None
    assert (site.operation.error.error_type, "no paper" in site.operation.error.message) == ("HTTP 409", True)


def test_an_error_after_the_view_is_stored_with_its_status(site: Site) -> None:
    @site.app.after_request
    def fail(response: flask.Response) -> flask.Response:
        raise OSError("no template")

    post_view(site, lambda: iter("ab"))
    assert site.client.post("/").status_code == 500
    assert site.operation.error is not None
    assert (site.operation.details["status_code"], site.operation.error.error_type) == (500, "OSError")


def test_a_session_that_cannot_be_saved_is_the_error(site: Site) -> None:
    class Broken(flask.sessions.SecureCookieSessionInterface):
        def save_session(self, *_: Any) -> None:
            raise OSError("no redis")

    site.app.session_interface = Broken()
    post_view(site, lambda: iter("ab"))
    assert site.client.post("/").status_code == 500
    assert site.operation.error is not None
    assert (site.operation.details["status_code"], site.operation.error.error_type) == (500, "OSError")


def test_without_an_answer_no_status_is_stored(site: Site) -> None:
    post_view(site, lambda: "ok")
    with site.app.test_request_context("/", method="POST"):
        site.app.preprocess_request()
    assert "status_code" not in site.operation.details


CLAIMS = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ"


class Silent:
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("user", "stored"),
    [
        ("\ud800", "?"),
        (Silent(), None),
        (f"{CLAIMS}.dozjgNryP4J3jVmNHl0w5N", "***"),
    ],
)
def test_whatever_the_user_is_the_answer_is_given(site: Site, user: Any, stored: str | None) -> None:
    site.events.user(lambda: user)
    post_view(site, lambda: "ok")
    assert site.client.post("/").status_code == 200
    assert site.operation.user == stored


# --- secrets ------------------------------------------------------------------------------------------


def by_json() -> Any:
    return flask.request.get_json()["password"]


def by_force() -> Any:
    return flask.request.get_json(force=True)["password"]


def by_data() -> Any:
    return json.loads(flask.request.get_data())["password"]


LARGE = {"password": CANARY, "text": "x" * 70_000}
SENT: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "header": (lambda: flask.request.headers["X-Api-Key"], {"headers": {"X-Api-Key": CANARY}}),
    "authorization": (lambda: flask.request.headers["Authorization"], {"headers": {"Authorization": CANARY}}),
    "basic": (lambda: flask.request.authorization.password, {"auth": ("ada", CANARY)}),  # type: ignore[union-attr]
    "digest": (
        lambda: flask.request.authorization.token,  # type: ignore[union-attr]
        {"headers": {"Authorization": f"Apikey {CANARY}"}},
    ),
    "cookie": (lambda: flask.request.cookies["visit"], {"headers": {"Cookie": f"visit={CANARY}"}}),
    "query hidden by the body": (
        lambda: flask.request.args["token"],
        {"query_string": {"token": CANARY}, "json": {"token": "other"}},
    ),
    "large": (by_json, {"json": LARGE}),
    "large, read as bytes": (by_data, {"json": LARGE}),
    "chunked": (
        by_json,
        {
            "input_stream": io.BytesIO(json.dumps({"password": CANARY}).encode()),
            "content_type": "application/json",
            "environ_overrides": {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""},
        },
    ),
    "without a type": (by_data, {"data": json.dumps({"password": CANARY})}),
    "forced": (by_force, {"data": json.dumps({"password": CANARY})}),
    "form": (lambda: flask.request.form["password"], {"data": {"password": CANARY}}),
}  # fmt: skip


@pytest.mark.parametrize("sent", SENT)
def test_an_error_that_quotes_a_secret_of_the_request_is_stored_without(site: Site, sent: str) -> None:
    read, options = SENT[sent]

    def fail() -> str:
        try:
            raise KeyError(read())
        except KeyError as error:
            raise ValueError(f"nobody has {read()}") from error

    post_view(site, fail)
    client = site.app.test_client(use_cookies=False)
    assert client.post("/", **options).status_code == 500
    assert site.operation.error is not None
    assert CANARY not in repr(site.operation)
    assert "nobody has ***" in site.operation.error.message


# --- async views --------------------------------------------------------------------------------------


def test_a_view_may_be_async(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(view: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **named: asyncio.run(view(*arguments, **named))

    monkeypatch.setattr(site.app, "async_to_sync", run)

    @site.app.post("/")
    @site.events.idempotent
    async def write() -> str:
        return str(current_operation_id())

    first, again = (site.client.post("/", headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert first.text == again.text == first.headers["X-Operation-Id"]
