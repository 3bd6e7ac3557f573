"""The JSON API of the dashboard, on a shop in memory."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from eventdriven_sync.dashboard import Identity, parameters
from eventdriven_sync.dashboard.api import DESCRIPTION
from eventdriven_sync.envelope import Envelope, new_id
from eventdriven_sync.figures import AuditEntry, LetterGroup
from eventdriven_sync.monitor import Monitor
from eventdriven_sync.monitoring.records import ConsumerRow, HandlerRow, MinuteRow, Overview, StreamRow
from eventdriven_sync.monitoring.subjects import SubjectRow
from eventdriven_sync.monitoring.summary import ChainSummary, SummaryEvent, SummaryHandler
from eventdriven_sync.outcome import Failure
from eventdriven_sync.records import Delivery, HandlerRecord, Operation, RawMessage, WorkerRecord
from tests.unit.dashboards import Story, site, story

API = "/events/api/v1"


class Caller:
    """A script that calls the API as somebody."""

    def __init__(self, app: Flask) -> None:
        self.client: FlaskClient = app.test_client()
        self.who = Identity(name="root", role="admin")

    def get(self, path: str, **query: Any) -> TestResponse:
        return self.client.get(API + path, query_string=query)

    def found(self, path: str, **query: Any) -> Any:
        answer = self.get(path, **query)
        assert (answer.status_code, answer.mimetype) == (200, "application/json"), answer.text
        return answer.get_json()

    def post(self, path: str, fields: Any = None, **how: Any) -> TestResponse:
        headers = {"X-CSRF-Token": self.found("/session")["csrf_token"]}
        return self.client.post(API + path, json=fields or {}, headers=headers, **how)


@pytest.fixture
def told() -> Iterator[Story]:
    with story(name="Ada", password="hunter2hunter2") as found:
        yield found


@pytest.fixture
def caller(told: Story) -> Caller:
    callers: list[Caller] = []
    app = site(told.bus, authorize=lambda request: callers[0].who)
    callers.append(Caller(app))
    return callers[0]


# --- reading --------------------------------------------------------------------------------------------


def test_the_overview_counts_what_is_dead(caller: Caller) -> None:
    found = caller.found("/overview", minutes=5)
    assert (found["dead"], len(found["minutes"])) == (1, 5)
    assert {each["record"]["name"] for each in found["handlers"]} == {
        "Blog.update_posts",
        "Comment.update_comments",
    }
    assert isinstance(found["healthy"], bool)


def test_operations_are_listed_and_filtered(caller: Caller, told: Story) -> None:
    [found] = caller.found("/operations", kind="http", name="rename", user="ada", since="1h")["items"]
    assert (found["id"], found["status"]) == (told.operation, "succeeded")
    assert caller.found("/operations", user="eve") == {"items": [], "after": None}
    assert caller.found(f"/operations/{told.operation}") == found


def test_a_chain_is_a_list_with_parents(caller: Caller, told: Story) -> None:
    found = caller.found(f"/operations/{told.operation}/chain")
    assert (found["settled"], found["succeeded"], found["truncated"]) == (True, False, False)
    first, second = found["events"]
    assert (first["id"], first["published_by"]) == (told.event, None)
    assert {each["handler"]: each["state"] for each in first["deliveries"]} == {
        "Blog.update_posts": "succeeded",
        "Comment.update_comments": "dead",
    }
    assert (second["name"], second["published_by"]) == (
        "Shop.postsUpdated",
        f"Blog.update_posts:{told.event}",
    )


def test_events_are_listed_and_filtered(caller: Caller, told: Story) -> None:
    assert len(caller.found("/events")["items"]) == 2
    payload = json.dumps({"user_id": "42"})
    asked = {"name": "Shop.userRenamed", "since": "1h", "group": "Comment", "key": "42", "payload": payload}
    [found] = caller.found("/events", **asked)["items"]
    assert found["id"] == told.event
    assert caller.found("/events", **asked | {"payload": '{"user_id": "43"}'})["items"] == []
    detail = caller.found(f"/events/{told.event}")
    assert detail["event"] == found
    assert detail["operation"]["id"] == told.operation
    assert len(detail["deliveries"]) == 2


def test_subjects_are_counted_and_their_chains_added_up(caller: Caller) -> None:
    rows = {row["name"]: row for row in caller.found("/subjects", since="1h")["items"]}
    assert rows["Shop.userRenamed"]["published"] == 1
    found = caller.found("/subjects/Shop.userRenamed/chain", sample=10)
    assert (found["total"], found["sampled"]) == (1, 1)
    handlers = {each["name"]: each for each in found["root"]["handlers"]}
    assert handlers["Comment.update_comments"]["dead"] == 1
    assert [each["name"] for each in handlers["Blog.update_posts"]["events"]] == ["Shop.postsUpdated"]
    assert caller.get("/subjects", since="400d").status_code == 400


def test_pages_follow_each_other(caller: Caller) -> None:
    first = caller.found("/events", limit=1)
    second = caller.found("/events", limit=1, after=first["after"])
    assert second["after"] is None
    assert len({each["id"] for page in (first, second) for each in page["items"]}) == 2


def test_dead_letters_are_grouped_and_listed(caller: Caller, told: Story) -> None:
    [group] = caller.found("/letter-groups", handler="Comment.update_comments")["items"]
    assert (group["count"], group["error_type"], group["message"]) == (1, "ValueError", "Test Error!!")
    [letter] = caller.found("/letters", fingerprint=group["fingerprint"], group="Comment")["items"]
    assert (letter["id"], letter["error"], letter["fingerprint"]) == (
        told.dead,
        "Test Error!!",
        group["fingerprint"],
    )
    full = caller.found(f"/letters/{told.dead}")
    assert "Test Error!!" in full["failures"][0]["traceback"]
    assert full["event"]["data"]["name"] == "Ada"


def test_streams_workers_and_handlers_are_listed(caller: Caller) -> None:
    assert len(caller.found("/handlers")["items"]) == 2
    assert caller.found("/workers") == {"items": []}
    [stream] = caller.found("/streams")["items"]
    assert {each["handler"] for each in stream["consumers"]} == {
        "Blog.update_posts",
        "Comment.update_comments",
    }


@pytest.mark.parametrize(
    "path", ["/operations/{}", "/operations/{}/chain", "/events/{}", "/letters/Blog.update_posts:{}"]
)
def test_what_does_not_exist_is_not_found(caller: Caller, path: str) -> None:
    answer = caller.get(path.format(new_id()))
    assert answer.status_code == 404
    assert answer.mimetype == "application/problem+json"
    assert answer.get_json()["title"] == "Not Found"


# --- acting ---------------------------------------------------------------------------------------------


def test_a_dead_letter_is_retried_on_record(caller: Caller, told: Story) -> None:
    answer = caller.post(f"/letters/{told.dead}/retry", {"reason": "mended"})
    assert (answer.status_code, answer.get_json()) == (200, {"id": told.dead, "state": "retrying"})
    assert told.bus.dead_letters.get(told.dead).state == "retrying"
    [entry] = caller.found("/audit", touched=told.dead, action="retry")["items"]
    assert (entry["who"], entry["ip"], entry["reason"]) == ("root", "127.0.0.1", "mended")
    again = caller.post(f"/letters/{told.dead}/retry")
    assert again.status_code == 409
    assert "only 'dead' can be retried" in again.get_json()["detail"]


def test_a_dead_letter_is_discarded_with_a_reason(caller: Caller, told: Story) -> None:
    for wrong in ({}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 2001}, {"reason": 5}):
        assert caller.post(f"/letters/{told.dead}/discard", wrong).status_code == 400
    answer = caller.post(f"/letters/{told.dead}/discard", {"reason": "a test"})
    assert answer.status_code == 200
    assert told.bus.dead_letters.get(told.dead).state == "discarded"


def test_a_viewer_changes_nothing(caller: Caller, told: Story) -> None:
    caller.who = Identity(name="ada", role="viewer")
    answer = caller.post(f"/letters/{told.dead}/retry")
    assert answer.status_code == 403
    assert "needs the role operator" in answer.get_json()["detail"]
    assert told.bus.dead_letters.get(told.dead).state == "dead"


@pytest.mark.parametrize(
    ("content", "type_", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"x"', "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"reason": "x", "extra": "y"}', "application/json", 400),
        (b'{"reason": {"$ne": ""}}', "application/json", 400),
        (b'{"reason": "\\ud800"}', "application/json", 400),
        (b'{"reason": "x"}', "text/plain", 415),
        (b'{"reason": "x"}', "application/x-www-form-urlencoded", 415),
        (b'{"reason": "x"}', "multipart/form-data", 415),
        (b'{"reason": "x"}', "", 415),
        (b'{"reason": "' + b"x" * 1_100_000 + b'"}', "application/json", 413),
    ],
)
def test_a_body_that_cannot_be_meant_changes_nothing(
    caller: Caller, told: Story, content: bytes, type_: str, status: int
) -> None:
    headers = {"X-CSRF-Token": caller.found("/session")["csrf_token"]}
    answer = caller.client.post(
        f"{API}/letters/{told.dead}/discard", data=content, content_type=type_, headers=headers
    )
    assert answer.status_code == status
    assert answer.mimetype == "application/problem+json"
    assert told.bus.dead_letters.get(told.dead).state == "dead"


def test_a_dead_letter_is_retried_with_another_payload(caller: Caller, told: Story) -> None:
    path = f"/letters/{told.dead}/retry-edited"
    shown = caller.found(f"/letters/{told.dead}")["event"]["data"]
    for wrong in ({}, {"payload": "x"}, {"payload": []}, {"payload": shown | {"user_id": shown["password"]}}):
        assert caller.post(path, wrong).status_code == 400
    assert caller.post(path, {"payload": shown | {"name": "Grace"}, "reason": "typo"}).status_code == 200
    stored = told.bus.dead_letters.get(told.dead)
    assert stored.state == "retrying"
    assert stored.event is not None
    # What was hidden and left alone is as it was.
    assert (stored.event.data["name"], stored.event.data["password"]) == ("Grace", "hunter2hunter2")
    assert caller.post(path, {"payload": shown}).status_code == 409


def test_a_discard_is_undone(caller: Caller, told: Story) -> None:
    caller.post(f"/letters/{told.dead}/discard", {"reason": "a test"})
    answer = caller.post(f"/letters/{told.dead}/undo-discard")
    assert (answer.status_code, answer.get_json()["state"]) == (200, "dead")
    assert caller.post(f"/letters/{told.dead}/undo-discard").status_code == 409


def test_a_handler_runs_again_for_an_event_that_it_has_handled(caller: Caller, told: Story) -> None:
    done = f"Blog.update_posts:{told.event}"
    answer = caller.post(f"/letters/{done}/run-again", {"reason": "once more"})
    assert answer.status_code == 200
    assert answer.get_json()["id"] != done
    told.run.drain()
    assert told.bus.dead_letters.get(answer.get_json()["id"]).state == "succeeded"


def test_an_event_is_published_again_if_its_name_confirms_it(caller: Caller, told: Story) -> None:
    path = f"/events/{told.event}/publish-again"
    for wrong in ({}, {"confirm": "Shop.other"}, {"confirm": True}):
        assert caller.post(path, wrong).status_code == 400
    answer = caller.post(path, {"confirm": "Shop.userRenamed"})
    assert answer.status_code == 200
    found = caller.found(f"/events/{answer.get_json()['id']}")
    assert found["event"]["operation_id"] == answer.get_json()["operation_id"]
    assert caller.post(f"/events/{new_id()}/publish-again", {"confirm": "x"}).status_code == 404


def test_a_group_is_retried_if_its_number_confirms_it(caller: Caller, told: Story) -> None:
    handler = "Comment.update_comments"
    assert caller.found("/letter-groups/count", handler=handler) == {"count": 1}
    for wrong in ({}, {"confirm": 1}, {"handler": handler}, {"handler": handler, "confirm": 2}):
        assert caller.post("/jobs", wrong).status_code == 400
    for confirm in ("1", True, 1.0, -1, 10**12):
        assert caller.post("/jobs", {"handler": handler, "confirm": confirm}).status_code == 400
    begun = caller.post("/jobs", {"handler": handler, "confirm": 1, "canary": 0, "reason": "mended"})
    assert begun.status_code == 200
    job = begun.get_json()
    assert (job["total"], job["by"], job["state"]) == (1, "root", "running")
    assert [each["id"] for each in caller.found("/jobs", over="false")["items"]] == [job["id"]]
    assert caller.post("/jobs", {"handler": handler, "confirm": 1}).status_code == 409
    assert caller.found(f"/jobs/{job['id']}")["handler"] == handler
    cancelled = caller.post(f"/jobs/{job['id']}/cancel")
    assert (cancelled.status_code, cancelled.get_json()["state"]) == (200, "cancelled")
    assert caller.post(f"/jobs/{job['id']}/cancel").status_code == 409
    assert caller.get(f"/jobs/{new_id()}").status_code == 404


def test_a_handler_is_paused_for_a_reason_and_resumed(caller: Caller, told: Story) -> None:
    assert caller.post("/handlers/Blog.update_posts/pause").status_code == 400
    assert caller.post("/handlers/Blog.nothing/pause", {"reason": "x"}).status_code == 404
    assert caller.post("/handlers/Blog.update_posts/pause", {"reason": "x"}).status_code == 200
    paused = {row["record"]["name"]: row["record"]["paused"] for row in caller.found("/handlers")["items"]}
    assert paused["Blog.update_posts"]["reason"] == "x"
    assert caller.post("/handlers/Blog.update_posts/resume").status_code == 200


def test_what_sets_much_in_motion_is_done_so_often_only(caller: Caller, told: Story) -> None:
    path, body = f"/events/{told.event}/publish-again", {"confirm": "Shop.userRenamed"}
    codes = [caller.post(path, body).status_code for _ in range(11)]
    assert codes == [200] * 10 + [429]
    again = caller.post(path, body)
    assert 0 < int(again.headers["Retry-After"]) <= 60
    caller.who = Identity(name="other", role="admin")
    assert caller.post(path, body).status_code == 200


def test_who_is_bound_to_groups_acts_on_handlers_and_jobs_of_theirs_only(caller: Caller, told: Story) -> None:
    theirs, other = "Comment.update_comments", "Blog.update_posts"
    job = caller.post("/jobs", {"handler": theirs, "confirm": 1, "canary": 0}).get_json()["id"]
    caller.who = Identity(name="eve", role="admin", groups=("Blog",))
    refused = [
        caller.get("/letter-groups/count", handler=theirs),
        caller.get(f"/jobs/{job}"),
        caller.post("/jobs", {"handler": theirs, "confirm": 1}),
        caller.post(f"/jobs/{job}/cancel"),
        caller.post(f"/handlers/{theirs}/pause", {"reason": "x"}),
        caller.post(f"/letters/{told.dead}/undo-discard"),
        caller.post(f"/letters/{told.dead}/run-again"),
    ]
    assert [answer.status_code for answer in refused] == [404] * 7
    assert caller.found("/jobs")["items"] == []
    assert caller.post(f"/handlers/{other}/pause", {"reason": "x"}).status_code == 200
    publish = caller.post(f"/events/{told.event}/publish-again", {"confirm": "Shop.userRenamed"})
    assert publish.status_code == 403


# --- users ----------------------------------------------------------------------------------------------


def test_where_the_application_signs_in_there_are_no_users(caller: Caller) -> None:
    assert caller.get("/users").status_code == 404
    assert caller.post("/users/ada/disable").status_code == 404


# --- parameters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=-1",
        "limit=1e2",
        "limit=٣",
        "limit=" + "9" * 400,
        "limit[$gt]=1",
        "limit=1&limit=2",
        "since=yesterday",
        "since=2026-01-31T12:00:00",
        "since=0001-01-01T00:00:00%2B23:00",
        "since=99999999d",
        "kind=" + "x" * 1001,
        "status=done",
        "status[$ne]=failed",
        "name[$regex]=.*",
        "$where=1",
        "nothing=1",
    ],
)
def test_a_wrong_parameter_is_refused(caller: Caller, query: str) -> None:
    answer = caller.client.get(f"{API}/operations?{query}")
    assert answer.status_code == 400
    assert len(answer.get_json()["detail"]) < 400


@pytest.mark.parametrize(
    "payload",
    [
        "{",
        "[]",
        "5",
        '{"a": {"$ne": 1}}',
        '{"$where": "1"}',
        '{"a": []}',
        '{"a": null}',
        '{"a.$b": 1}',
        "[" * 100_000,
        json.dumps({str(n): n for n in range(6)}),
    ],
)
def test_a_payload_filter_is_fields_and_scalars(caller: Caller, payload: str) -> None:
    answer = caller.get("/events", name="Shop.userRenamed", since="1h", payload=payload)
    assert answer.status_code == 400


def test_an_empty_parameter_counts_as_not_given(caller: Caller) -> None:
    assert len(caller.found("/operations", kind="", since="", limit="")["items"]) == 1


@pytest.mark.parametrize("name", ["name", "user", "kind", "after"])
@pytest.mark.parametrize("text", ['{"$ne": null}', "$where", "\x00", "'; drop", "‮", "💥", "%00"])
def test_text_is_only_ever_text(caller: Caller, name: str, text: str) -> None:
    assert caller.found("/operations", **{name: text})["items"] == []


@pytest.mark.parametrize(
    "given", ["2026-01-31T12:00:00Z", "2026-01-31T13:00:00+01:00", "2026-01-31T13:00:00 01:00"]
)
def test_moments_are_read_with_their_offset(given: str) -> None:
    assert parameters.moment("since", given) == datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_moments_are_read_as_how_long_ago() -> None:
    ago = datetime.now(UTC) - parameters.moment("since", "2h")
    assert abs(ago - timedelta(hours=2)) < timedelta(seconds=5)


# --- what is not shown ----------------------------------------------------------------------------------


def test_secrets_are_not_shown_to_anybody(caller: Caller, told: Story) -> None:
    for path in (
        "/events",
        f"/events/{told.event}",
        "/operations",
        f"/operations/{told.operation}/chain",
        f"/letters/{told.dead}",
    ):
        answer = caller.get(path)
        assert answer.status_code == 200
        assert "hunter2" not in answer.text


def test_a_viewer_sees_no_payloads_unless_allowed(caller: Caller, told: Story) -> None:
    paths = (
        "/events",
        f"/events/{told.event}",
        f"/operations/{told.operation}/chain",
        f"/letters/{told.dead}",
    )
    caller.who = Identity(name="ada", role="viewer")
    assert not any("Ada" in caller.get(path).text for path in paths)
    assert "user_id" not in caller.get("/events").text
    assert "Test Error!!" in caller.get(f"/letters/{told.dead}").text
    caller.who = Identity(name="ada", role="viewer", payloads=True)
    assert all('"Ada"' in caller.get(path).text for path in paths)


def test_of_other_groups_one_learns_nothing(caller: Caller, told: Story) -> None:
    caller.who = Identity(name="eve", role="operator", groups=("Blog",))
    assert caller.found("/letters")["items"] == []
    assert caller.found("/letter-groups")["items"] == []
    refused = [
        caller.get(f"/letters/{told.dead}"),
        caller.post(f"/letters/{told.dead}/retry"),
        caller.post(f"/letters/{told.dead}/discard", {"reason": "x"}),
    ]
    unknown = caller.post(f"/letters/Blog.nothing:{new_id()}/retry")
    assert [answer.status_code for answer in [*refused, unknown]] == [404] * 4
    chain = caller.get(f"/operations/{told.operation}/chain")
    assert '"dead"' in chain.text
    assert "Test Error!!" not in chain.text
    assert caller.found(f"/letters/Blog.update_posts:{told.event}")["state"] == "succeeded"
    assert told.bus.dead_letters.get(told.dead).state == "dead"


def test_every_method_of_the_monitor_is_a_question_or_an_action() -> None:
    """One that nobody thought of is refused to who is bound to groups; whoever adds a question says so."""
    from eventdriven_sync.dashboard.screening import _QUESTIONS, _TOUCHED

    methods = {name for name in dir(Monitor) if not name.startswith("_")}
    assert methods - _QUESTIONS - set(_TOUCHED) == {"publish_again"}


# --- errors ---------------------------------------------------------------------------------------------


def test_what_went_wrong_inside_is_told_to_the_log_only(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(self: Monitor) -> None:
        raise ZeroDivisionError("the secret plan")

    monkeypatch.setattr(Monitor, "handlers", explode)
    answer = caller.get("/handlers")
    assert answer.status_code == 500
    assert "secret plan" not in answer.text
    [record] = [each for each in caplog.records if getattr(each, "error_id", "")]
    assert answer.get_json()["error_id"] == vars(record)["error_id"]
    assert "secret plan" in str(record.exc_info)


def test_a_store_that_is_away_is_told_without_details(caller: Caller, told: Story) -> None:
    told.run.store.unavailable = True
    answer = caller.get("/operations")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "memory store" not in answer.text
    assert caller.client.get("/events/health/ready").status_code == 503
    assert caller.client.get("/events/health/live").status_code == 200


# --- the description ------------------------------------------------------------------------------------


def described() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
    return found


def test_the_description_names_every_route_and_no_other(caller: Caller) -> None:
    routes = {
        (rule.rule.removeprefix("/events").replace("<", "{").replace(">", "}"), method.lower())
        for rule in caller.client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
        if rule.rule.startswith(API)
    }
    assert {(path, method) for path, item in described()["paths"].items() for method in item} == routes
    assert caller.found("/openapi.json") == described()


@pytest.mark.parametrize(
    "record",
    [
        AuditEntry,
        ChainSummary,
        ConsumerRow,
        Delivery,
        Envelope,
        Failure,
        HandlerRecord,
        HandlerRow,
        LetterGroup,
        MinuteRow,
        Operation,
        Overview,
        RawMessage,
        StreamRow,
        SubjectRow,
        SummaryEvent,
        SummaryHandler,
        WorkerRecord,
    ],
)
def test_the_description_names_every_field(record: type[Any]) -> None:
    fields = {field.name for field in attrs.fields(record)} - {"token"}
    extra = {"healthy"} if record is Overview else set()
    schema = described()["components"]["schemas"][record.__name__]
    assert set(schema["properties"]) == set(schema["required"]) == fields | extra
