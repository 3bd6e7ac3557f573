"""The monitor: what it answers, in pages, and what people do through it, on record."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import attrs
import pytest

from eventdriven_sync import Discard, EventBus, Reject
from eventdriven_sync.audit import audit
from eventdriven_sync.envelope import utcnow
from eventdriven_sync.errors import (
    BrokerUnavailable,
    InvalidOption,
    InvalidTransition,
    NotFound,
    PayloadInvalid,
    PayloadNotSerializable,
    PayloadTooLarge,
    StoreUnavailable,
)
from eventdriven_sync.figures import AuditEntry
from eventdriven_sync.monitor import Monitor
from eventdriven_sync.records import Operation, WorkerRecord
from eventdriven_sync.testing import MemoryRun, memory
from tests.unit.rig import Greeted, Renamed

ADA = Renamed(name="Ada", number=1)


class Switch:
    broken = True


@pytest.fixture
def bus() -> EventBus:
    return EventBus(nats="memory://", mongo="memory://", namespace="unit")


@pytest.fixture
def run(bus: EventBus) -> Iterator[MemoryRun]:
    with memory(bus) as made:
        yield made


@pytest.fixture
def monitor(bus: EventBus, run: MemoryRun) -> Monitor:
    return Monitor(bus)


@pytest.fixture
def blog(bus: EventBus, run: MemoryRun) -> None:
    """Blog.greet answers every rename with a greeting; Blog.fail fails at it."""
    blog = bus.group("Blog")

    @blog.handler(Renamed)
    def greet(event: Renamed) -> None:
        blog.publish(Greeted(name=event.name))

    @blog.handler(Renamed)
    def fail(event: Renamed) -> None:
        if Switch.broken:
            raise Reject(f"no {event.number}")

    Switch.broken = True


@pytest.fixture
def letter(bus: EventBus, run: MemoryRun, blog: None) -> str:
    """The id of a dead letter."""
    receipt = bus.publish(ADA)
    run.drain()
    return f"Blog.fail:{receipt.id}"


def worker(run: MemoryRun, *handlers: str) -> WorkerRecord:
    now = run.clock()
    return WorkerRecord(
        id="one", host="h", pid=1, handlers=handlers, threads=2, running=(), started_at=now, seen_at=now
    )


# --- how everything is --------------------------------------------------------------------------------


def test_an_empty_bus_has_nothing_to_show_and_no_problems(monitor: Monitor) -> None:
    overview = monitor.overview(minutes=5)
    assert [row.published for row in overview.minutes] == [0] * 5
    assert (overview.pending, overview.running, overview.retrying, overview.dead) == (0, 0, 0, 0)
    assert overview.oldest_unhandled_at is None
    assert overview.problems == ()
    assert overview.healthy


def test_the_overview_counts_by_minute_without_gaps(
    monitor: Monitor, run: MemoryRun, bus: EventBus, letter: str
) -> None:
    minute = run.clock().replace(second=0, microsecond=0)
    run.store.directory.write_stats(
        [{"_id": "a", "minute": minute, "succeeded": 2, "failed": 1, "dead": 1, "discarded": 3}]
    )
    run.clock.advance(120)
    bus.publish(ADA)
    overview = monitor.overview(minutes=4)
    assert [row.minute for row in overview.minutes] == [
        minute + timedelta(minutes=number) for number in (-1, 0, 1, 2)
    ]
    # A rename with its greeting, and the rename that nobody has handled.
    assert sum(row.published for row in overview.minutes) == 3
    handled = overview.minutes[1]
    assert (handled.succeeded, handled.failed, handled.dead, handled.discarded) == (2, 1, 1, 3)
    assert overview.dead == 1


def test_an_event_that_waits_for_a_handler_without_worker_is_a_problem(
    monitor: Monitor, run: MemoryRun, bus: EventBus, blog: None
) -> None:
    bus.publish(ADA)
    [greet] = [p for p in monitor.overview().problems if "Blog.greet" in p]
    assert "no live worker runs Blog.greet: 1 messages wait" in greet
    run.store.directory.heartbeat(worker(run, "Blog.greet", "Blog.fail"))
    overview = monitor.overview()
    assert overview.problems == ()
    assert [each.id for each in overview.workers] == ["one"]
    assert overview.oldest_unhandled_at is not None


def test_what_waits_too_long_is_a_problem(
    monitor: Monitor, run: MemoryRun, bus: EventBus, blog: None
) -> None:
    published = bus.publish(ADA)
    run.clock.advance(20 * 60)
    overview = monitor.overview()
    assert any("has waited 20 minutes" in problem for problem in overview.problems)
    assert overview.oldest_unhandled_at is not None
    stored = run.store.events.get([published.id])[published.id].published_at
    assert abs((overview.oldest_unhandled_at - stored).total_seconds()) < 1


def test_a_broker_that_is_away_is_a_problem_and_the_rest_is_shown(
    monitor: Monitor, run: MemoryRun, letter: str
) -> None:
    run.broker.disconnect()
    overview = monitor.overview()
    assert any("NATS does not answer" in problem for problem in overview.problems)
    assert overview.dead == 1
    with pytest.raises(BrokerUnavailable):
        monitor.streams()


def test_streams_tell_what_each_handler_is_owed(
    monitor: Monitor, run: MemoryRun, bus: EventBus, blog: None
) -> None:
    bus.publish(ADA)
    run.store.directory.heartbeat(worker(run, "Blog.greet"))
    run.clock.advance(60)
    [stream] = monitor.streams()
    assert stream.messages == 1
    fail, greet = stream.consumers
    assert (fail.handler, fail.pending, fail.workers) == ("Blog.fail", 1, 0)
    assert (greet.handler, greet.pending, greet.workers) == ("Blog.greet", 1, 1)
    assert greet.lag == pytest.approx(60, abs=1)


def test_handlers_know_who_runs_them(monitor: Monitor, run: MemoryRun, bus: EventBus, blog: None) -> None:
    bus.open()
    run.store.directory.heartbeat(worker(run, "Blog.greet"))
    assert [(row.name, row.workers) for row in monitor.handlers()] == [
        ("Blog.fail", ()),
        ("Blog.greet", ("one",)),
    ]
    assert [each.id for each in monitor.workers()] == ["one"]


# --- operations and events ----------------------------------------------------------------------------


def test_operations_come_in_pages(monitor: Monitor, run: MemoryRun) -> None:
    for number in range(5):
        operation = Operation(
            id=f"op{number}", name="import", kind="script", started_at=run.clock() + timedelta(seconds=number)
        )
        run.store.events.save_operation(operation, timeout=1)
    first = monitor.operations(limit=2)
    second = monitor.operations(limit=2, after=first.after)
    last = monitor.operations(limit=2, after=second.after)
    ids = [[each.id for each in page.items] for page in (first, second, last)]
    assert ids == [["op4", "op3"], ["op2", "op1"], ["op0"]]
    assert last.after is None
    assert monitor.operations(limit=5).after is None
    assert monitor.operations(kind="http").items == ()
    assert monitor.operation("op3").name == "import"


def test_the_chain_of_an_operation_is_shown_without_stacks(monitor: Monitor, letter: str) -> None:
    chain = monitor.chain(letter.partition(":")[2])
    assert [node.event.name for node in chain.walk()] == ["RigUser.renamed", "RigUser.greeted"]
    [dead] = [each for each in chain.deliveries if each.state == "dead"]
    assert dead.failures[0].message == "no 1"
    assert dead.failures[0].traceback == ""
    assert not chain.truncated
    assert monitor.chain(chain.operation.id, limit=1).truncated


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 4),
        ({"name": "RigUser.renamed"}, 2),
        ({"key": "Ada"}, 2),
        ({"name": "RigUser.greeted", "key": "Ada"}, 0),
        ({"group": "Blog"}, 2),
        ({"group": "Other"}, 0),
        ({"group": "Blog", "name": "RigUser.renamed"}, 2),
        ({"group": "Blog", "name": "RigUser.greeted"}, 0),
        ({"name": "RigUser.renamed", "since": utcnow() - timedelta(days=1), "payload": {"number": 2}}, 1),
        ({"until": utcnow() - timedelta(days=1)}, 0),
    ],
)
def test_events_are_found_by(
    monitor: Monitor, bus: EventBus, run: MemoryRun, blog: None, fields: Any, count: int
) -> None:
    bus.publish_many([ADA, Renamed(name="Ada", number=2)])
    run.drain()
    assert len(monitor.events(**fields).items) == count


def test_an_event_shows_its_deliveries_and_its_operation(
    monitor: Monitor, bus: EventBus, run: MemoryRun, blog: None
) -> None:
    receipt = bus.publish(ADA)
    waiting = monitor.event(receipt.id)
    assert [(each.handler, each.state) for each in waiting.deliveries] == [
        ("Blog.fail", "pending"),
        ("Blog.greet", "pending"),
    ]
    run.drain()
    handled = monitor.event(receipt.id)
    assert [each.state for each in handled.deliveries] == ["dead", "succeeded"]
    assert handled.envelope.name == "RigUser.renamed"
    assert handled.operation is not None
    assert handled.operation.kind == "publish"
    with pytest.raises(NotFound, match="no event has the id 'nothing'"):
        monitor.event("nothing")


# --- subjects -----------------------------------------------------------------------------------------


def test_subjects_have_a_row_for_each_event_name(
    monitor: Monitor, run: MemoryRun, bus: EventBus, letter: str
) -> None:
    greeted, renamed = monitor.subjects()
    assert (greeted.name, greeted.published, greeted.handlers) == ("RigUser.greeted", 1, ())
    assert (renamed.name, renamed.published, renamed.versions) == ("RigUser.renamed", 1, (1,))
    assert renamed.handlers == ("Blog.fail", "Blog.greet")
    before = run.clock() - timedelta(hours=1)
    [renamed] = monitor.subjects(since=before - timedelta(hours=1), until=before)
    assert renamed.published == 0


def test_the_summary_of_an_event_shows_what_it_sets_off(
    monitor: Monitor, run: MemoryRun, bus: EventBus, letter: str
) -> None:
    bus.publish_many([ADA, ADA])
    run.drain()
    summary = monitor.chain_summary("RigUser.renamed", sample=2)
    assert (summary.name, summary.total, summary.sampled, summary.truncated) == (
        "RigUser.renamed",
        3,
        2,
        False,
    )
    fail, greet = summary.root.handlers
    assert (fail.name, fail.count, fail.dead, fail.failure_ratio, fail.events) == ("Blog.fail", 2, 2, 1.0, ())
    assert (greet.name, greet.succeeded, greet.failure_ratio) == ("Blog.greet", 2, 0.0)
    assert [(each.name, each.count) for each in greet.events] == [("RigUser.greeted", 2)]
    empty = monitor.chain_summary("Nobody.knows")
    assert (empty.total, empty.root.count, empty.root.handlers) == (0, 0, ())


# --- dead letters -------------------------------------------------------------------------------------


def test_dead_letters_are_grouped_and_a_group_leads_to_its_letters(
    monitor: Monitor, bus: EventBus, run: MemoryRun, letter: str
) -> None:
    bus.publish(Renamed(name="Eve", number=2))
    run.drain()
    [group] = monitor.letter_groups()
    assert (group.handler, group.error_type, group.message, group.count) == ("Blog.fail", "Reject", "no 2", 2)
    page = monitor.letters(handler=group.handler, fingerprint=group.fingerprint, limit=1)
    assert page.items[0].failures[0].message == "no 2"
    assert monitor.letters(handler=group.handler, limit=1, after=page.after).items[0].id == letter
    assert monitor.letters(fingerprint="0").items == ()
    assert monitor.letter_groups(handler="Blog.greet") == []
    assert monitor.letter_groups(group="Blog") == [group]
    assert monitor.letter_groups(group="Other") == []
    assert monitor.letter(letter).failures[0].traceback


# --- what people do -----------------------------------------------------------------------------------


def entries(monitor: Monitor, **fields: Any) -> list[AuditEntry]:
    return list(monitor.audit_log(**fields).items)


def test_a_retry_is_done_and_stands_in_the_audit_log(monitor: Monitor, run: MemoryRun, letter: str) -> None:
    Switch.broken = False
    monitor.retry(letter, by="ada", reason="mended", ip="10.0.0.1")
    run.drain()
    assert monitor.letter(letter).state == "succeeded"
    [entry] = entries(monitor, touched=letter)
    assert (entry.who, entry.ip, entry.action, entry.reason) == ("ada", "10.0.0.1", "retry", "mended")
    assert entry.before["state"] == "dead"
    assert entry.after == {"state": "retrying"}
    assert isinstance(entry.at, datetime)


def test_a_discard_needs_a_reason_and_stands_in_the_audit_log(monitor: Monitor, letter: str) -> None:
    with pytest.raises(InvalidOption, match="reason"):
        monitor.discard(letter, by="ada", reason=" ")
    assert entries(monitor) == []
    monitor.discard(letter, by="ada", reason="customer left")
    assert (monitor.letter(letter).state, monitor.letter(letter).reason) == ("discarded", "customer left")
    [entry] = entries(monitor, who="ada", action="discard")
    assert entry.ids == (letter,)


def test_what_cannot_be_done_is_not_on_record(monitor: Monitor, letter: str) -> None:
    done = letter.replace("fail", "greet")
    with pytest.raises(InvalidTransition, match="is 'succeeded'; only 'dead' can be retried"):
        monitor.retry(done, by="ada")
    with pytest.raises(InvalidTransition, match="only 'dead' and 'retrying' can be discarded"):
        monitor.discard(done, by="ada", reason="no")
    with pytest.raises(NotFound):
        monitor.retry("Blog.fail:nothing", by="ada")
    assert entries(monitor) == []


def test_what_fails_in_the_middle_is_on_record_twice(
    monitor: Monitor, run: MemoryRun, letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: Any, **options: Any) -> int:
        raise StoreUnavailable("no primary")

    monkeypatch.setattr(run.store.deliveries, "retry_dead", away)
    with pytest.raises(StoreUnavailable):
        monitor.retry(letter, by="ada")
    assert sorted(str(dict(entry.after)) for entry in entries(monitor)) == [
        "{'error': 'StoreUnavailable: no primary'}",
        "{'state': 'retrying'}",
    ]


def test_nothing_is_done_that_cannot_be_put_on_record(
    monitor: Monitor, run: MemoryRun, letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(entry: AuditEntry) -> None:
        raise StoreUnavailable("no primary")

    monkeypatch.setattr(run.store.trail, "record", away)
    with pytest.raises(StoreUnavailable):
        monitor.retry(letter, by="ada")
    assert monitor.letter(letter).state == "dead"


def test_a_letter_runs_with_another_payload_and_the_event_stays_as_it_was(
    monitor: Monitor, bus: EventBus, run: MemoryRun, letter: str
) -> None:
    Switch.broken = False
    monitor.retry_edited(letter, {"name": "Eve", "number": 7}, by="ada", reason="typo")
    waiting = monitor.letter(letter)
    assert waiting.event is not None
    assert waiting.original is not None
    assert (waiting.event.data["name"], waiting.original.data["name"]) == ("Eve", "Ada")
    run.drain()
    assert monitor.letter(letter).state == "succeeded"
    assert monitor.event(letter.partition(":")[2]).envelope.data["name"] == "Ada"
    [entry] = entries(monitor, touched=letter)
    assert (entry.action, entry.reason) == ("retry_edited", "typo")
    assert entry.before["payload"] == {"name": "Ada", "number": 1}
    assert entry.after["payload"] == {"name": "Eve", "number": 7}


@pytest.mark.parametrize(
    ("payload", "error", "match"),
    [
        ({"name": 7}, PayloadInvalid, "name"),
        ({}, PayloadInvalid, "name"),
        ({"name": "x", "number": object()}, PayloadNotSerializable, "cannot be retried.*number"),
        ({"name": "x" * 300_000}, PayloadTooLarge, "payload has"),
        ("text", InvalidOption, "payload"),
        ([1], InvalidOption, "payload"),
    ],
)
def test_a_payload_that_the_handler_could_not_read_is_refused(
    monitor: Monitor, letter: str, payload: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        monitor.retry_edited(letter, payload, by="ada")
    assert monitor.letter(letter).state == "dead"
    assert entries(monitor) == []


def test_a_payload_of_an_unknown_event_only_has_to_be_json(
    monitor: Monitor, bus: EventBus, letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(bus.topology), "event_types", {})
    monitor.retry_edited(letter, {"anything": [1, None]}, by="ada")
    found = monitor.letter(letter).event
    assert found is not None
    assert found.data == {"anything": [1, None]}


def test_a_letter_that_is_no_event_has_no_payload_to_change(
    monitor: Monitor, bus: EventBus, run: MemoryRun, letter: str
) -> None:
    run.store._state._tables.deliveries[letter] = attrs.evolve(monitor.letter(letter), event=None)
    with pytest.raises(InvalidTransition, match="no readable event"):
        monitor.retry_edited(letter, {"name": "x"}, by="ada")


def test_a_discard_is_undone(monitor: Monitor, letter: str) -> None:
    before = monitor.letter(letter)
    monitor.discard(letter, by="ada", reason="customer left")
    monitor.undo_discard(letter, by="eve", reason="came back")
    assert monitor.letter(letter) == before
    assert [entry.action for entry in entries(monitor, who="eve")] == ["undo_discard"]
    with pytest.raises(InvalidTransition, match="only 'discarded' can be brought back"):
        monitor.undo_discard(letter, by="eve")


def test_what_a_handler_discarded_is_not_brought_back(
    monitor: Monitor, bus: EventBus, run: MemoryRun
) -> None:
    @bus.group("Blog").handler(Renamed)
    def skip(event: Renamed) -> None:
        raise Discard("not ours")

    receipt = bus.publish(ADA)
    run.drain()
    with pytest.raises(InvalidTransition, match=r"by its handler .*not ours.*run it again"):
        monitor.undo_discard(f"Blog.skip:{receipt.id}", by="ada")


def test_an_event_is_published_again_as_a_new_one(
    monitor: Monitor, bus: EventBus, run: MemoryRun, letter: str
) -> None:
    Switch.broken = False
    event_id = letter.partition(":")[2]
    run.clock.advance(1)
    receipt = monitor.publish_again(event_id, by="ada", reason="mail was down", ip="10.0.0.1")
    run.drain()
    detail = monitor.event(receipt.id)
    assert detail.envelope.data == monitor.event(event_id).envelope.data
    assert [each.state for each in detail.deliveries] == ["succeeded", "succeeded"]
    assert detail.operation is not None
    assert (detail.operation.kind, detail.operation.user) == ("manual", "ada")
    assert detail.operation.details == {"published_again": event_id, "reason": "mail was down"}
    assert receipt.operation_id == detail.operation.id
    assert not receipt.duplicate
    assert monitor.letter(letter).state == "dead"
    [entry] = entries(monitor, touched=event_id)
    assert (entry.action, entry.ids, entry.ip) == ("publish_again", (event_id, receipt.id), "10.0.0.1")
    assert detail.envelope.published_at > monitor.event(event_id).envelope.published_at
    with pytest.raises(NotFound, match="no event"):
        monitor.publish_again("nothing", by="ada")


def test_an_answer_published_again_begins_a_chain_of_its_own(
    monitor: Monitor, run: MemoryRun, letter: str
) -> None:
    [answer] = monitor.events(name="RigUser.greeted").items
    assert answer.parent_ids
    fresh = monitor.event(monitor.publish_again(answer.id, by="ada").id).envelope
    assert (fresh.parent_ids, fresh.source, fresh.depth) == ((), "", 0)
    assert monitor.chain(fresh.operation_id).events[0].event == fresh


def test_a_handler_that_succeeded_runs_again_alone_in_a_chain_of_its_own(
    monitor: Monitor, bus: EventBus, run: MemoryRun, letter: str
) -> None:
    done = letter.replace("fail", "greet")
    again = monitor.run_again(done, by="ada", reason="wrong text")
    operation_id = again.partition(":")[2]
    waiting = monitor.chain(operation_id)
    assert [(each.handler, each.state) for each in waiting.deliveries] == [("Blog.greet", "pending")]
    assert not waiting.settled
    run.drain()
    chain = monitor.chain(operation_id)
    assert [node.event.name for node in chain.walk()] == ["RigUser.renamed", "RigUser.greeted"]
    assert [(each.id, each.state) for each in chain.deliveries] == [(again, "succeeded")]
    assert (chain.operation.kind, chain.operation.user, chain.settled) == ("manual", "ada", True)
    assert len(run.published(Greeted)) == 2
    assert monitor.letter(done).state == "succeeded"
    assert monitor.letter(letter).state == "dead"
    assert audit(bus).ok
    [entry] = entries(monitor, touched=done)
    assert (entry.action, entry.ids) == ("run_again", (done, again))


def test_a_dead_letter_run_again_is_retried(monitor: Monitor, run: MemoryRun, letter: str) -> None:
    Switch.broken = False
    assert monitor.run_again(letter, by="ada") == letter
    run.drain()
    assert monitor.letter(letter).state == "succeeded"
    [entry] = entries(monitor)
    assert entry.action == "retry"


def test_what_runs_by_itself_is_not_run_again(
    monitor: Monitor, bus: EventBus, run: MemoryRun, letter: str
) -> None:
    monitor.retry(letter, by="ada")
    with pytest.raises(InvalidTransition, match="'retrying'"):
        monitor.run_again(letter, by="ada")


def test_a_handler_is_paused_with_a_reason_and_resumed(monitor: Monitor, bus: EventBus, blog: None) -> None:
    bus.open()
    with pytest.raises(InvalidOption, match="reason"):
        monitor.pause("Blog.greet", by="ada", reason="")
    monitor.pause("Blog.greet", by="ada", reason="mail is down")
    [row] = [row for row in monitor.handlers() if row.name == "Blog.greet"]
    assert row.record.paused is not None
    assert (row.record.paused.by, row.record.paused.reason) == ("ada", "mail is down")
    [problem] = monitor.overview().problems
    assert "Blog.greet is paused by ada" in problem
    assert problem.endswith("mail is down")
    monitor.resume("Blog.greet", by="eve")
    assert all(row.record.paused is None for row in monitor.handlers())
    [paused] = entries(monitor, touched="Blog.greet", action="pause")
    [resumed] = entries(monitor, touched="Blog.greet", action="resume")
    assert (paused.who, resumed.who) == ("ada", "eve")
    assert resumed.before == {"paused": True, "reason": "mail is down"}
    for call in (monitor.pause, monitor.resume):
        with pytest.raises(NotFound, match="no handler has the name"):
            call("Blog.nothing", by="ada", reason="x")


def test_somebody_who_was_faster_is_told_of(
    monitor: Monitor, run: MemoryRun, letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.store.deliveries, "retry_with", lambda *a, **k: False)
    with pytest.raises(InvalidTransition, match="somebody else"):
        monitor.retry_edited(letter, {"name": "x"}, by="ada")
    assert sorted("error" in entry.after for entry in entries(monitor)) == [False, True]


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: m.overview(minutes=0), "minutes"),
        (lambda m: m.overview(minutes=1441), "minutes"),
        (lambda m: m.operations(limit=201), "limit"),
        (lambda m: m.operations(limit="5"), "limit"),
        (lambda m: m.operations(user={"$ne": None}), "user"),
        (lambda m: m.operations(since=datetime(2026, 1, 1)), "since"),
        (lambda m: m.operation(""), "operation id"),
        (lambda m: m.chain("x", limit=0), "limit"),
        (lambda m: m.events(limit=0), "limit"),
        (lambda m: m.events(name={"$ne": 1}), "names"),
        (lambda m: m.events(group=["Blog"]), "group"),
        (lambda m: m.events(key=7), "key"),
        (lambda m: m.events(payload={"a": 1}), "name and since"),
        (lambda m: m.events(name="A.b", payload={"a": 1}), "name and since"),
        (lambda m: m.event(7), "event id"),
        (lambda m: m.subjects(since="today"), "since"),
        (lambda m: m.subjects(since=utcnow() + timedelta(hours=1)), "since"),
        (lambda m: m.subjects(since=utcnow() - timedelta(days=32)), "31 days"),
        (lambda m: m.chain_summary(""), "name"),
        (lambda m: m.chain_summary("A.b", sample=0), "sample"),
        (lambda m: m.chain_summary("A.b", until=datetime(2026, 1, 1)), "until"),
        (lambda m: m.letter_groups(handler={"$gt": ""}), "handler"),
        (lambda m: m.letter_groups(group=7), "group"),
        (lambda m: m.letters(fingerprint=["x"]), "fingerprint"),
        (lambda m: m.letters(limit=1000), "limit"),
        (lambda m: m.letter({"$ne": 1}), "delivery id"),
        (lambda m: m.retry("x", by=""), "by"),
        (lambda m: m.retry("x", by="a" * 201), "by"),
        (lambda m: m.retry("x", by="ada", reason=7), "reason"),
        (lambda m: m.retry("x", by="ada", ip="\ud800"), "ip"),
        (lambda m: m.retry({"$ne": 1}, by="ada"), "delivery id"),
        (lambda m: m.undo_discard(7, by="ada"), "delivery id"),
        (lambda m: m.publish_again({"$ne": 1}, by="ada"), "event id"),
        (lambda m: m.publish_again("x", by=""), "by"),
        (lambda m: m.run_again("", by="ada"), "delivery id"),
        (lambda m: m.pause(["Blog.greet"], by="ada", reason="x"), "handler"),
        (lambda m: m.resume("", by="ada"), "handler"),
        (lambda m: m.audit_log(who={"$ne": 1}), "who"),
        (lambda m: m.audit_log(limit=0), "limit"),
    ],
)
def test_bad_input_is_refused_by_name(monitor: Monitor, call: Any, match: str) -> None:
    with pytest.raises(InvalidOption, match=match):
        call(monitor)


@pytest.mark.parametrize(
    "payload",
    [
        {"$where": "1"},
        {"a.$ne": 1},
        {"": 1},
        {"a..b": 1},
        {".a": 1},
        {"a.b.c.d.e.f": 1},
        {"a\x00": 1},
        {"a" * 101: 1},
        {7: 1},
        {"a": {"$ne": 1}},
        {"a": [1]},
        {"a": None},
        {"a": float("nan")},
        {"a": 2**63},
        {"a": "x" * 1001},
        {"a": "\ud800"},
        dict.fromkeys("abcdef", 1),
        [("a", 1)],
    ],
)
def test_only_scalars_at_plain_paths_are_looked_for_in_payloads(monitor: Monitor, payload: Any) -> None:
    with pytest.raises(InvalidOption, match="payload"):
        monitor.events(name="A.b", since=utcnow(), payload=payload)
