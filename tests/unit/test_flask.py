"""The Flask extension: one operation per request that changes state, without any server."""

import io
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
from click.testing import CliRunner
from flask.cli import FlaskGroup, ScriptInfo

from eventdriven_sync import EventBus, Settings, Worker, current_operation_id
from eventdriven_sync.cli.loading import load_bus
from eventdriven_sync.errors import ConfigurationError, DuplicateHandler, InvalidOption, StoreUnavailable
from eventdriven_sync.flask import EventDriven
from eventdriven_sync.flask.commands import events_command
from eventdriven_sync.testing import memory
from tests.polling import eventually
from tests.unit.flask_site import Site
from tests.unit.rig import Greeted, Renamed

ADA = Renamed(name="Ada")


@pytest.fixture
def site() -> Site:
    return Site()


# --- which requests are operations -------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_request_that_changes_state_is_an_operation(site: Site, method: str) -> None:
    @site.app.route("/users/<user_id>", methods=[method])
    def change(user_id: str) -> flask.typing.ResponseReturnValue:
        return {"id": current_operation_id()}, 201

    answer = site.client.open("/users/42?dry=1", method=method)
    found = site.operation
    assert answer.json == {"id": found.id}
    assert answer.headers["X-Operation-Id"] == found.id
    assert (found.name, found.kind, found.status, found.error) == ("change", "http", "succeeded", None)
    assert found.variables == {"user_id": "42", "dry": "1"}
    assert found.details == {
        "method": method,
        "path": "/users/<user_id>",
        "endpoint": "change",
        "client": "127.0.0.1",
        "status_code": 201,
    }
    assert found.duration_ms is not None
    assert current_operation_id() is None


def test_a_request_that_only_reads_is_none(site: Site) -> None:
    site.app.add_url_rule("/", view_func=lambda: "hello")
    answer = site.client.get("/")
    assert "X-Operation-Id" not in answer.headers
    assert site.bus.operations.find() == []


def test_a_decorated_view_is_an_operation_whatever_its_method(site: Site) -> None:
    @site.app.get("/export/<what>")
    @site.events.operation("exportUsers", variables=["what", "missing"])
    def export(what: str) -> str:
        return "done"

    site.client.get("/export/all?format=csv")
    assert (site.operation.name, site.operation.variables) == ("exportUsers", {"what": "all"})


def test_an_untracked_view_is_none(site: Site) -> None:
    @site.app.post("/ping")
    @site.events.untracked
    def ping() -> str:
        return str(current_operation_id())

    assert site.client.post("/ping").text == "None"
    assert site.bus.operations.find() == []


@pytest.mark.parametrize("skip", [["posts"], "health, posts", ["posts.write"]])
def test_endpoints_and_blueprints_can_be_left_out(skip: Any) -> None:
    site = Site(EVENTDRIVEN_HTTP_SKIP=skip)
    posts = flask.Blueprint("posts", __name__)
    posts.add_url_rule("/posts", "write", lambda: "ok", methods=["POST"])
    site.app.register_blueprint(posts)
    site.client.post("/posts")
    assert site.bus.operations.find() == []


def test_the_methods_are_configurable() -> None:
    site = Site(EVENTDRIVEN_HTTP_METHODS=["get"])
    site.app.add_url_rule("/", "index", lambda: "hello", methods=["GET", "POST"])
    site.client.get("/")
    site.client.post("/")
    assert [each.details["method"] for each in site.bus.operations.find()] == ["GET"]


def test_wrong_urls_and_methods_fill_no_database(site: Site) -> None:
    site.app.add_url_rule("/", view_func=lambda: "hello")
    assert [site.client.post("/nowhere").status_code, site.client.post("/").status_code] == [404, 405]
    assert site.bus.operations.find() == []


# --- what is stored of them --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_options", "expected"),
    [
        ({"json": {"title": "Hello", "tags": ["a", "b"]}}, {"title": "Hello", "tags": ["a", "b"]}),
        ({"json": [1, 2]}, {"json": [1, 2]}),
        ({"data": {"title": "Hello", "tag": ["a", "b"]}}, {"title": "Hello", "tag": ["a", "b"]}),
        (
            {"data": {"title": "x", "file": (io.BytesIO(b"123"), "a.txt")}},
            {"title": "x", "file": "file a.txt"},
        ),
        ({"data": b"{no json", "content_type": "application/json"}, {}),
        ({"data": b"\xff\xfe", "content_type": "application/octet-stream"}, {}),
        ({"json": {"title": "x" * 70_000}}, {}),
    ],
)
def test_the_body_is_stored(site: Site, request_options: dict[str, Any], expected: dict[str, Any]) -> None:
    site.app.add_url_rule("/", "write", lambda: "ok", methods=["POST"])
    assert site.client.post("/", **request_options).status_code == 200
    assert site.operation.variables == expected


def test_the_path_wins_over_the_body_and_that_over_the_query(site: Site) -> None:
    site.app.add_url_rule("/<a>", "write", lambda a: "ok", methods=["POST"])
    site.client.post("/path?a=query&b=query&c=query", json={"a": "body", "b": "body"})
    assert site.operation.variables == {"a": "path", "b": "body", "c": "query"}


def test_a_view_can_read_the_body_as_a_stream(site: Site) -> None:
    @site.app.post("/")
    def upload() -> bytes:
        site.events.publish(ADA)
        return flask.request.stream.read()

    answer = site.client.post("/", data=b'{"a": 1}', content_type="application/json")
    assert answer.data == b'{"a": 1}'


@pytest.mark.parametrize(("kept", "expected"), [("path", {"a": "1"}), ("none", {})])
def test_less_of_a_request_may_be_stored(kept: str, expected: dict[str, str]) -> None:
    site = Site(EVENTDRIVEN_HTTP_VARIABLES=kept)
    site.app.add_url_rule("/<a>", "write", lambda a: "ok", methods=["POST"])
    site.client.post("/1?b=2", json={"c": 3})
    assert site.operation.variables == expected


def test_secrets_are_never_stored(site: Site) -> None:
    canary = "canary-4f1c9a"

    @site.app.post("/login/<token>")
    def login(token: str) -> str:
        raise ValueError(f"wrong password {canary} of {flask.request.get_json()}")

    site.client.set_cookie("session", canary)
    answer = site.client.post(
        f"/login/{canary}?api_key={canary}",
        json={"user": "ada", "password": canary, "card": {"number": canary}, "nested": [{"Token": canary}]},
        headers={"Authorization": f"Bearer {canary}", "X-Csrf-Token": canary},
    )
    assert answer.status_code == 500
    assert canary not in repr(site.operation)
    assert site.operation.variables["user"] == "ada"
    assert site.operation.error is not None
    assert "wrong password" in site.operation.error.message


def test_what_is_secret_is_configurable() -> None:
    site = Site(EVENTDRIVEN_REDACT=["shoe_size"], EVENTDRIVEN_REDACT_ALLOW="token_count")
    site.app.add_url_rule("/", "write", lambda: "ok", methods=["POST"])
    site.client.post("/", json={"shoeSize": 41, "token_count": 7})
    assert site.operation.variables == {"shoeSize": "***", "token_count": 7}


@pytest.mark.parametrize(("user", "stored"), [("ada", "ada"), (42, "42"), (None, None), ("", None)])
def test_the_application_says_who_the_user_is(site: Site, user: Any, stored: str | None) -> None:
    @site.events.user
    def user_id() -> Any:
        return flask.session.get("user")

    @site.app.post("/")
    def sign_in() -> str:
        flask.session["user"] = user
        return "ok"

    site.client.post("/")
    assert site.operation.user == stored


def test_a_user_function_that_fails_costs_the_user_only(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.events.user(lambda: 1 // 0)
    site.app.add_url_rule("/", "write", lambda: "ok", methods=["POST"])
    assert site.client.post("/").status_code == 200
    assert (site.operation.user, site.operation.status) == (None, "succeeded")
    assert "ZeroDivisionError" in caplog.text


# --- what went wrong ---------------------------------------------------------------------------------


class OutOfStock(Exception):
    pass


def refuse() -> flask.typing.ResponseReturnValue:
    return {"error": "the title is missing, password=hunter22"}, 422


def crash() -> str:
    raise OutOfStock("no paper left")


@pytest.mark.parametrize(
    ("view", "status", "error_type", "message"),
    [
        (crash, 500, "OutOfStock", "no paper left"),
        (lambda: flask.abort(404), 404, "NotFound", "404 Not Found"),
        (refuse, 422, "HTTP 422", "the title is missing"),
        (lambda: ("<h1>no</h1>", 400), 400, "HTTP 400", ""),
    ],
)
def test_a_request_that_fails_is_stored_as_failed(
    site: Site, view: Callable[[], Any], status: int, error_type: str, message: str
) -> None:
    site.app.add_url_rule("/", "write", view, methods=["POST"])
    assert site.client.post("/").status_code == status
    found = site.operation
    assert (found.status, found.details["status_code"]) == ("failed", status)
    assert found.error is not None
    assert found.error.error_type == error_type
    assert message in found.error.message
    assert "hunter22" not in found.error.message


def test_the_stack_of_a_view_begins_at_the_view(site: Site) -> None:
    site.app.add_url_rule("/", "write", crash, methods=["POST"])
    site.client.post("/")
    assert site.operation.error is not None
    frames = [line for line in site.operation.error.traceback.splitlines() if line.startswith("  File")]
    assert len(frames) == 1
    assert "in crash" in frames[0]


def test_an_exception_that_an_error_handler_answers_is_seen(site: Site) -> None:
    site.app.register_error_handler(OutOfStock, lambda error: ("sorry", 409))
    site.app.add_url_rule("/", "write", crash, methods=["POST"])
    answer = site.client.post("/")
    assert (answer.status_code, answer.text) == (409, "sorry")
    assert answer.headers["X-Operation-Id"] == site.operation.id
    assert site.operation.error is not None
    assert (site.operation.error.error_type, site.operation.details["status_code"]) == ("OutOfStock", 409)


def test_a_redirect_that_is_raised_is_no_failure(site: Site) -> None:
    site.app.add_url_rule("/", "write", lambda: flask.abort(flask.redirect("/there")), methods=["POST"])
    assert site.client.post("/").status_code == 302
    assert site.operation.status == "succeeded"


def test_what_fails_before_the_view_is_stored_as_well(site: Site) -> None:
    site.app.before_request(lambda: flask.abort(401))
    site.app.add_url_rule("/", "write", lambda: "ok", methods=["POST"])
    site.client.post("/")
    assert (site.operation.status, site.operation.details["status_code"]) == ("failed", 401)


def test_an_exception_that_the_test_sees_is_stored_as_well() -> None:
    site = Site(PROPAGATE_EXCEPTIONS=True)
    site.app.add_url_rule("/", "write", crash, methods=["POST"])
    with pytest.raises(OutOfStock):
        site.client.post("/")
    assert site.operation.error is not None
    assert current_operation_id() is None


def test_an_answer_is_given_although_its_operation_cannot_be_stored(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    @site.app.post("/")
    def write() -> str:
        site.bus.store.unavailable = True  # type: ignore[attr-defined]
        return "the card was charged"

    answer = site.client.post("/")
    assert (answer.status_code, answer.text) == (200, "the card was charged")
    assert answer.headers["X-Operation-Id"] in caplog.text
    assert current_operation_id() is None


def test_a_request_whose_event_cannot_be_stored_fails(site: Site) -> None:
    @site.app.post("/")
    def write() -> str:
        site.bus.store.unavailable = True  # type: ignore[attr-defined]
        site.events.publish(ADA)
        return "published"

    assert site.client.post("/").status_code == 500


# --- publishing and handling -------------------------------------------------------------------------


def test_what_a_view_publishes_joins_its_operation(site: Site) -> None:
    seen: list[list[str]] = []

    @site.app.post("/rename/<name>")
    def rename(name: str) -> str:
        receipt = site.events.publish(Renamed(name=name))
        seen.append([each.status for each in site.bus.operations.find()])
        with site.events.transaction():
            site.events.publish_many([Greeted(name=name)])
        return receipt.operation_id

    with memory(site.bus):
        answer = site.client.post("/rename/Ada", json={"note": "x"})
        chain = site.bus.operations.chain(answer.text)
    assert {each.event.name for each in chain.events} == {"RigUser.renamed", "RigUser.greeted"}
    assert seen == [["running"]]
    assert chain.operation.variables == {"name": "Ada", "note": "x"}


def stream_from(site: Site, parts: Callable[[], Iterator[str]]) -> Any:
    def view() -> flask.Response:
        return flask.Response(flask.stream_with_context(parts()))

    site.app.add_url_rule("/", "stream", view, methods=["POST"])
    return site.client.post("/")


def test_a_streamed_answer_belongs_to_the_operation_until_its_end(site: Site) -> None:
    def parts() -> Iterator[str]:
        yield site.events.publish(ADA).operation_id
        yield f" {site.operation.status}"

    answer = stream_from(site, parts)
    assert current_operation_id() is None
    assert answer.text == f"{answer.headers['X-Operation-Id']} running"
    assert site.operation.status == "succeeded"


def test_a_streamed_answer_that_breaks_off_is_a_failed_operation(site: Site) -> None:
    def parts() -> Iterator[str]:
        yield "a"
        raise OutOfStock("no paper left")

    with pytest.raises(OutOfStock):
        _ = stream_from(site, parts).text
    assert site.operation.error is not None
    assert (site.operation.error.message, current_operation_id()) == ("no paper left", None)


def test_a_streamed_answer_that_nobody_reads_ends_its_operation(site: Site) -> None:
    stream_from(site, lambda: iter("abc")).close()
    assert site.operation.status == "succeeded"


def test_handlers_run_in_the_application_context(site: Site) -> None:
    group = site.events.group("Blog")
    seen: list[str] = []

    @group.handler(Renamed)
    def greet(event: Renamed) -> None:
        seen.append(flask.current_app.name)
        group.publish(Greeted(name=event.name))

    with memory(site.bus) as run:
        site.bus.publish(ADA)
        run.drain()
        assert [each.source for each in run.envelopes("RigUser.greeted")] == ["Blog.greet"]
    assert seen == ["site"]


def test_several_applications_share_the_handlers_and_nothing_else() -> None:
    events, seen = EventDriven(), []
    group = events.group("Blog")

    @group.handler(Renamed)
    def before(event: Renamed) -> None:
        seen.append(("before", flask.current_app.name))

    apps = []
    for name in ("one", "two"):
        app = flask.Flask(name)
        app.config["TESTING"] = True
        events.init_app(app)
        apps.append(app)
    first, second = (events.bus_of(app) for app in apps)
    assert first is not second

    @group.handler(Renamed)
    def after(event: Renamed) -> None:
        seen.append(("after", flask.current_app.name))

    with memory(first) as one, memory(second) as two:
        with apps[1].app_context():
            events.publish(ADA)
        assert (one.drain(), two.drain()) == (0, 2)
    assert sorted(seen) == [("after", "two"), ("before", "two")]
    with pytest.raises(DuplicateHandler):
        group.handler(Renamed, name="after")(lambda event: None)


def test_a_bus_of_ones_own_is_used() -> None:
    bus = EventBus(settings=Settings(nats="memory://", mongo="memory://"))
    app = flask.Flask("own")
    events = EventDriven(app, bus=bus)
    with app.app_context():
        assert events.bus is bus
    with pytest.raises(ConfigurationError, match="another application"):
        EventDriven(flask.Flask("other"), bus=bus)


# --- configuration -----------------------------------------------------------------------------------


def test_settings_come_from_the_config_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTDRIVEN_MONGO", "mongodb://production/blog")
    monkeypatch.setenv("EVENTDRIVEN_LEASE", "12")
    site = Site(TESTING=False, EVENTDRIVEN_MONGO="mongodb://test/blog", EVENTDRIVEN_NAMESPACE="blog")
    settings = site.bus.settings
    assert (settings.mongo, settings.namespace, settings.lease) == ("mongodb://test/blog", "blog", 12.0)


def test_testing_never_reaches_the_servers_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTDRIVEN_MONGO", "mongodb://production/blog")
    site = Site(TESTING=False)
    site.app.config["TESTING"] = True  # after init_app, as Flask's own tutorial does
    assert (site.bus.settings.nats, site.bus.settings.mongo) == ("memory://", "memory://")


@pytest.mark.parametrize("named", ["nats", "mongo"])
def test_a_test_that_names_one_server_reaches_no_other(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("EVENTDRIVEN_NATS", "nats://production:4222")
    monkeypatch.setenv("EVENTDRIVEN_MONGO", "mongodb://production/blog")
    own = {"nats": "nats://test:4222", "mongo": "mongodb://test/blog"}[named]
    settings = Site(**{f"EVENTDRIVEN_{named.upper()}": own}).bus.settings
    assert {settings.nats, settings.mongo} == {own, "memory://"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"EVENTDRIVEN_MONGOO": "x"}, "did you mean EVENTDRIVEN_MONGO"),
        ({"EVENTDRIVEN_HTTP_METHOD": ["POST"]}, "did you mean EVENTDRIVEN_HTTP_METHODS"),
        ({"EVENTDRIVEN_HTTP_METHODS": 7}, "give a list of names"),
        ({"EVENTDRIVEN_HTTP_VARIABLES": "some"}, "all, path, none"),
        ({"EVENTDRIVEN_HTTP_TIMEOUT": "2"}, "http_timeout is '2': give a number"),
        ({"EVENTDRIVEN_EMBEDDED": "yes"}, "give True or False"),
        ({"EVENTDRIVEN_REDACT": [7]}, "give a list of names"),
        ({"EVENTDRIVEN_REDACT": ["!!"]}, "each with 1 to 8 words"),
        ({"EVENTDRIVEN_HTTP_METHODS": "POST PUT"}, "'POST PUT': give a list of methods"),
    ],
)
def test_wrong_settings_are_refused_at_once(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Site(**config)
    assert words in str(caught.value)


def test_settings_of_other_owners_are_left_alone() -> None:
    assert Site(EVENTDRIVEN_PORT="tcp://10.0.0.7:80").bus.settings.namespace == "eventdriven"


def test_initialising_twice_is_refused(site: Site) -> None:
    with pytest.raises(ConfigurationError, match="once"):
        EventDriven().init_app(site.app)


def test_there_is_no_bus_without_an_application(site: Site) -> None:
    with pytest.raises(ConfigurationError, match="bus_of"):
        _ = site.events.bus
    with pytest.raises(ConfigurationError, match="init_app"):
        site.events.bus_of(flask.Flask("bare"))


@pytest.mark.parametrize("variables", ["title", [7]])
def test_variables_of_a_view_must_be_names(site: Site, variables: Any) -> None:
    with pytest.raises(InvalidOption) as caught:
        site.events.operation("x", variables=variables)
    assert caught.value.field == "variables"


def test_a_decorator_on_no_function_is_refused(site: Site) -> None:
    with pytest.raises(InvalidOption, match="no view function"):
        site.events.untracked("view")  # type: ignore[type-var]


# --- Idempotency-Key ---------------------------------------------------------------------------------


@pytest.fixture
def shop(site: Site) -> Iterator[Site]:
    """A view that counts its calls."""
    site.calls = []  # type: ignore[attr-defined]

    @site.app.post("/orders")
    @site.events.idempotent
    def order() -> flask.typing.ResponseReturnValue:
        data = flask.request.get_json()
        site.calls.append(data)  # type: ignore[attr-defined]
        site.events.publish(Renamed(name=data["name"]))
        answer = flask.jsonify(number=len(site.calls))  # type: ignore[attr-defined]
        answer.headers["X-Extra"] = "kept"
        answer.set_cookie("visit", "secret")
        return answer, data.get("status", 201)

    @site.app.post("/strict")
    @site.events.idempotent(required=True)
    def strict() -> str:
        return "ok"

    @site.app.post("/aborting")
    @site.events.idempotent
    def aborting() -> str:
        site.calls.append(1)  # type: ignore[attr-defined]
        flask.abort(404, "no such thing")

    @site.app.post("/crashing")
    @site.events.idempotent
    def crashing() -> str:
        site.calls.append(1)  # type: ignore[attr-defined]
        site.events.publish(ADA)
        if len(site.calls) == 1:  # type: ignore[attr-defined]
            raise OutOfStock
        return "ok"

    with memory(site.bus) as run:
        site.run = run  # type: ignore[attr-defined]
        yield site


KEY = {"Idempotency-Key": "k-1"}


def test_the_same_request_is_answered_once(shop: Any) -> None:
    first, again = (shop.client.post("/orders", json={"name": "Ada"}, headers=KEY) for _ in range(2))
    assert shop.calls == [{"name": "Ada"}]
    assert (first.status_code, first.json) == (again.status_code, again.json) == (201, {"number": 1})
    assert again.headers["X-Extra"] == "kept"
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert "Set-Cookie" not in again.headers
    assert again.headers["X-Operation-Id"] == first.headers["X-Operation-Id"] == shop.operation.id


def test_another_request_under_the_key_is_refused(shop: Any) -> None:
    shop.client.post("/orders", json={"name": "Ada"}, headers=KEY)
    for path, body in (("/orders", {"name": "Mary"}), ("/orders?x=1", {"name": "Ada"})):
        answer = shop.client.post(path, json=body, headers=KEY)
        assert answer.status_code == 422
        assert "another request" in answer.json["error"]
    assert len(shop.calls) == 1


def test_without_a_key_every_request_runs(shop: Any) -> None:
    for _ in range(2):
        shop.client.post("/orders", json={"name": "Ada"})
    assert len(shop.calls) == 2


def test_other_keys_views_and_users_have_answers_of_their_own(shop: Any) -> None:
    who = ["ada"]
    shop.events.user(lambda: who[0])
    shop.client.post("/orders", json={"name": "Ada"}, headers=KEY)
    shop.client.post("/orders", json={"name": "Ada"}, headers={"Idempotency-Key": "k-2"})
    who[0] = "mary"
    shop.client.post("/orders", json={"name": "Ada"}, headers=KEY)
    assert len(shop.calls) == 3
    assert shop.client.post("/strict", headers=KEY).text == "ok"


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
def test_a_key_that_cannot_be_used_is_refused(shop: Any, key: str) -> None:
    answer = shop.client.post("/orders", json={"name": "Ada"}, headers={"Idempotency-Key": key})
    assert (answer.status_code, shop.calls) == (400, [])
    assert "Idempotency-Key" in answer.json["error"]


def test_a_view_may_demand_a_key(shop: Any) -> None:
    answer = shop.client.post("/strict")
    assert (answer.status_code, "UUID" in answer.json["error"]) == (400, True)


def test_while_the_first_request_runs_the_second_is_told_to_wait(shop: Any) -> None:
    seen: list[Any] = []
    shop.events.user(lambda: None)

    @shop.app.post("/slow")
    @shop.events.idempotent
    def slow() -> str:
        if not seen:
            seen.append("first")
            seen.append(shop.app.test_client().post("/slow", headers=KEY))
        return "ok"

    assert shop.client.post("/slow", headers=KEY).text == "ok"
    assert (seen[1].status_code, seen[1].headers["Retry-After"]) == (409, "1")


def test_an_answer_that_is_aborted_with_is_kept_as_well(shop: Any) -> None:
    first, again = (shop.client.post("/aborting", headers=KEY) for _ in range(2))
    assert (first.status_code, again.status_code, len(shop.calls)) == (404, 404, 1)
    assert again.text == first.text
    assert shop.operation.error.error_type == "NotFound"


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_error_is_not_kept(shop: Any, status: int) -> None:
    for _ in range(2):
        shop.client.post("/orders", json={"name": "Ada", "status": status}, headers=KEY)
    assert len(shop.calls) == 2


def test_a_second_try_after_a_crash_publishes_the_same_event(shop: Any) -> None:
    statuses = [shop.client.post("/crashing", headers=KEY).status_code for _ in range(3)]
    assert statuses == [500, 200, 200]
    assert len(shop.calls) == 2
    assert len(shop.run.envelopes("RigUser.renamed")) == 1


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(
    shop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @shop.app.post("/last")
    @shop.events.idempotent
    def last() -> str:
        shop.run.store.unavailable = True
        return "the card was charged"

    assert shop.client.post("/last", headers=KEY).text == "the card was charged"
    assert "was not kept" in caplog.text


def test_a_stored_answer_is_forgotten_in_time(shop: Any) -> None:
    shop.client.post("/orders", json={"name": "Ada"}, headers=KEY)
    shop.run.clock.advance(86_401)
    shop.client.post("/orders", json={"name": "Mary"}, headers=KEY)
    assert len(shop.calls) == 2


# --- embedded ----------------------------------------------------------------------------------------


def test_an_embedded_worker_does_not_run_under_test() -> None:
    site = Site(EVENTDRIVEN_EMBEDDED=True)
    site.app.add_url_rule("/", view_func=lambda: "hello")
    site.client.get("/")
    assert site.bus.store.directory.workers() == []


# --- flask events ------------------------------------------------------------------------------------


def test_the_commands_work_with_the_applications_bus(site: Site) -> None:
    site.events.group("Blog").handler(Renamed, name="greet")(lambda event: None)
    runner = site.app.test_cli_runner()
    published = runner.invoke(args=["events", "publish", "RigUser.renamed", '{"name": "Ada"}', "--json"])
    assert published.exit_code == 0, published.output
    listed = runner.invoke(args=["events", "events", "list", "--json"])
    assert '"RigUser.renamed"' in listed.output
    assert "Blog.greet" in runner.invoke(args=["events", "handlers", "list"]).output
    assert site.bus.publish(ADA).id, "the application's bus is still open"


def test_the_commands_report_errors_in_a_line(site: Site) -> None:
    result = site.app.test_cli_runner().invoke(args=["events", "chain", "nothing"])
    assert (result.exit_code, "no operation has the id 'nothing'" in result.output) == (2, True)
    assert "MODULE:BUS" not in site.app.test_cli_runner().invoke(args=["events", "publish", "--help"]).output


APPLICATION = """
import flask
from eventdriven_sync.flask import EventDriven
from tests.unit.rig import Renamed

events = EventDriven()
events.group("Blog").handler(Renamed, name="greet")(lambda event: None)

def create_app():
    app = flask.Flask("blog")
    app.config["TESTING"] = True
    events.init_app(app)
    return app

def broken():
    raise RuntimeError("no secret key")

def bare():
    return flask.Flask("bare")

def with_arguments(name):
    return name

app = create_app()
"""


@pytest.fixture
def application_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"application_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(APPLICATION)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize("target", ["app", "create_app", "create_app()"])
def test_the_command_line_takes_an_application_or_its_factory(application_module: str, target: str) -> None:
    bus = load_bus(f"{application_module}:{target}")
    assert list(bus.handlers) == ["Blog.greet"]
    with memory(bus) as run:
        bus.publish(ADA)
        assert run.drain() == 1


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("broken", "calling .* failed with RuntimeError: no secret key"),
        ("bare", "is a Flask, not an EventBus"),
        ("with_arguments", "calling .* failed with TypeError"),
        ("events", "is an EventDriven, not an EventBus"),
    ],
)
def test_what_is_no_application_is_refused(application_module: str, target: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_bus(f"{application_module}:{target}")


def test_several_worker_processes_are_started_by_the_same_program(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.events.group("Blog").handler(Renamed, name="greet")(lambda event: None)
    seen: dict[str, Any] = {}

    def run_processes(argv: Callable[[int], list[str]], **options: Any) -> int:
        seen.update(argv=argv(1), **options)
        return 7

    monkeypatch.setattr("eventdriven_sync.processes.run_processes", run_processes)
    info = ScriptInfo(app_import_path="blog:create_app", create_app=lambda: site.app)
    cli = FlaskGroup(add_default_commands=False)
    cli.add_command(events_command())
    result = CliRunner().invoke(cli, ["events", "worker", "--processes", "2"], obj=info)
    assert result.exit_code == 7, result.output
    assert seen["argv"][0] == "worker"
    assert list(seen["command"]) == [sys.executable, "-m", "flask", "--app", "blog:create_app", "events"]


def test_an_embedded_worker_waits_for_its_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    site, tries = Site(TESTING=False, EVENTDRIVEN_EMBEDDED=True, EVENTDRIVEN_NATS="memory://",
                       EVENTDRIVEN_MONGO="memory://", EVENTDRIVEN_POLL_EVERY=0.02), []  # fmt: skip
    handled = threading.Event()
    site.events.group("Blog").handler(Renamed, name="greet")(lambda event: handled.set())
    start = Worker.start

    def failing(worker: Worker) -> Worker:
        tries.append(1)
        if len(tries) == 1:
            raise StoreUnavailable("not yet")
        return start(worker)

    monkeypatch.setattr(Worker, "start", failing)
    site.app.add_url_rule("/", view_func=lambda: "hello")
    try:
        assert [site.client.get("/").text for _ in range(3)] == ["hello"] * 3
        site.bus.publish(ADA)
        assert handled.wait(30)
        assert len(tries) == 2
        eventually(lambda: len(site.bus.store.directory.workers()) == 1)
    finally:
        site.app.extensions["eventdriven"].embedded.stop()
    assert site.bus.store.directory.workers() == []


def test_an_embedded_worker_without_handlers_says_so(caplog: pytest.LogCaptureFixture) -> None:
    site = Site(TESTING=False, EVENTDRIVEN_EMBEDDED=True, EVENTDRIVEN_NATS="memory://",
                EVENTDRIVEN_MONGO="memory://")  # fmt: skip
    site.app.add_url_rule("/", view_func=lambda: "hello")
    site.client.get("/")
    eventually(lambda: "this worker has no handlers" in caplog.text)
    site.app.extensions["eventdriven"].embedded.stop()
