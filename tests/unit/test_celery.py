"""Celery tasks in this process: the chain they are sent in, the operation they are, ids that stay."""

import logging
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from celery import Celery, chain, group, signals
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject

from eventdriven_sync import EventBus, Settings, context, current_chain, current_operation_id
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.celery import HEADER, connect
from eventdriven_sync.errors import ConfigurationError, InvalidOption, StoreUnavailable
from eventdriven_sync.records import Operation
from eventdriven_sync.redaction import Redaction
from eventdriven_sync.stores.memory import MemoryStore
from eventdriven_sync.testing import memory
from tests.unit.rig import Greeted, Renamed

ADA = Renamed(name="Ada")


@pytest.fixture
def bus() -> Iterator[EventBus]:
    settings = Settings(nats="memory://", mongo="memory://", namespace="unit")
    with EventBus(settings=settings, broker=MemoryBroker(), store=MemoryStore()) as made:
        yield made


@pytest.fixture
def app() -> Iterator[Celery]:
    """Its messages go through a queue in this process that no other test uses."""
    made = Celery("unit", broker="memory://", backend="cache+memory://", set_as_current=False)
    made.conf.task_default_queue = uuid.uuid4().hex
    made.task = partial(made.task, shared=False)  # tasks of other tests have the same names
    yield made
    made.close()


@pytest.fixture
def connected(app: Celery, bus: EventBus) -> Celery:
    connect(app, bus)
    return app


def run_sent(app: Celery) -> list[str]:
    """Run what was sent, and what that sends, as a worker does; the ids of the tasks that ran."""
    ran = []
    while (message := take(app)) is not None:
        args, kwargs, embed = message.payload
        request = {**message.headers, **embed, "delivery_info": message.delivery_info}
        run(app.tasks[message.headers["task"]], message.headers["id"], args, kwargs, request)
        ran.append(message.headers["id"])
    return ran


def take(app: Celery) -> Any:
    with (
        app.connection_for_read() as connection,
        connection.SimpleQueue(app.conf.task_default_queue) as queue,
    ):
        try:
            message = queue.get(block=False)
        except queue.Empty:
            return None
        message.ack()
        return message


def run(task: Any, task_id: str, args: Any = (), kwargs: Any = None, request: Any = None) -> Any:
    """One run of a task in a worker, with the headers it came with."""
    came_with = {"id": task_id, "delivery_info": {"routing_key": "mail"}} | (request or {})
    return build_tracer(task.name, task, app=task.app)(task_id, list(args), kwargs or {}, came_with)


def only(bus: EventBus, **query: Any) -> Operation:
    [found] = bus.operations.find(**query)
    return found


# --- the chain travels -----------------------------------------------------------------------------------


def test_what_a_task_publishes_belongs_to_the_operation_it_was_sent_in(
    connected: Celery, bus: EventBus
) -> None:
    receipts = []

    @connected.task(name="rename")
    def rename(name: str) -> None:
        receipts.append((bus.publish(Renamed(name=name)), current_operation_id()))

    with bus.operation("request", kind="http") as operation:
        rename.delay("Ada")
        rename.apply_async(args=["Mary"], headers={"own": "header"})
        connected.send_task("rename", ["Grace"])
    assert len(run_sent(connected)) == 3
    assert [(receipt.operation_id, seen) for receipt, seen in receipts] == [(operation.id, operation.id)] * 3
    assert len({receipt.id for receipt, _ in receipts}) == 3
    assert only(bus).id == operation.id


def test_what_a_task_of_a_handler_publishes_hangs_below_its_delivery(
    connected: Celery, bus: EventBus
) -> None:
    @connected.task
    def greet(name: str) -> None:
        bus.publish(Greeted(name=name))

    bus.group("Blog").handler(Renamed, name="send")(lambda event: greet.delay(event.name))
    with memory(bus) as events:
        receipt = bus.publish(ADA)
        events.drain()
        run_sent(connected)
        [root] = bus.operations.chain(receipt.operation_id).events
        [below] = root.deliveries[0].events
    assert (below.event.name, below.event.source, below.event.depth) == ("RigUser.greeted", "Blog.send", 1)


def test_canvas_carries_the_chain_through_every_task(connected: Celery, bus: EventBus) -> None:
    @connected.task
    def step(number: int) -> int:
        bus.publish(Renamed(name="step", number=number))
        return number + 1

    @connected.task
    def fan_out() -> None:
        group(step.s(10), step.s(20) | step.s()).delay()

    with bus.operation("request") as operation:
        chain(step.s(1), step.s(), fan_out.si()).delay()
    assert len(run_sent(connected)) == 6
    published = [each.event for each in bus.operations.chain(operation.id).walk()]
    assert sorted(event.data["number"] for event in published) == [1, 2, 10, 20, 21]
    assert only(bus).id == operation.id


def test_a_task_sent_outside_of_any_chain_carries_nothing(connected: Celery) -> None:
    @connected.task
    def tick() -> None: ...

    tick.delay()
    assert HEADER not in take(connected).headers


def test_a_chain_that_the_sender_chose_is_kept(connected: Celery, bus: EventBus) -> None:
    @connected.task
    def rename() -> None:
        bus.publish(ADA)

    with bus.operation("first") as first:
        kept = current_chain()
    with bus.operation("second"):
        rename.apply_async(headers={HEADER: kept})
    run_sent(connected)
    assert len(bus.operations.chain(first.id).events) == 1


def test_a_task_of_an_operation_that_publishes_nothing_writes_nothing(
    connected: Celery, bus: EventBus
) -> None:
    @connected.task
    def fail() -> None:
        raise ZeroDivisionError

    with bus.operation("request") as operation:
        fail.delay()
    run_sent(connected)
    assert (only(bus).id, only(bus).status) == (operation.id, "succeeded")


# --- the task is an operation ----------------------------------------------------------------------------


def test_a_task_without_a_chain_is_an_operation_of_its_own(connected: Celery, bus: EventBus) -> None:
    @connected.task(name="shop.register", bind=True)
    def register(self: Any, user: str, password: str, *rest: int, size: int = 1, **more: Any) -> None:
        bus.publish(Renamed(name=user))

    run(register, "task-1", ["ada", "hunter2-x", 3], {"size": 2, "api_key": "k-123456"})
    found = only(bus)
    assert (found.kind, found.name, found.status, found.user) == (
        "celery",
        "shop.register",
        "succeeded",
        None,
    )
    assert found.variables == {
        "user": "ada",
        "password": "***",
        "rest": [3],
        "size": 2,
        "more": {"api_key": "***"},
    }
    assert found.details == {"task_id": "task-1", "queue": "mail", "retries": 0}
    assert [each.event.name for each in bus.operations.chain(found.id).events] == ["RigUser.renamed"]


def test_a_task_that_published_nothing_is_stored_only_if_it_fails(connected: Celery, bus: EventBus) -> None:
    @connected.task
    def tick(error: Any = None) -> None:
        if error:
            raise ValueError(error)

    run(tick, "task-1")
    assert bus.operations.find() == []
    run(tick, "task-2", ["disk full"])
    found = only(bus)
    assert (found.status, found.details["task_id"]) == ("failed", "task-2")


def test_a_task_that_only_sends_others_is_stored_for_what_they_publish(
    connected: Celery, bus: EventBus
) -> None:
    @connected.task(name="one")
    def one() -> None:
        bus.publish(ADA)

    @connected.task(name="all")
    def fan_out() -> None:
        group(one.s(), one.s()).delay()

    @connected.task(name="joined")
    def call() -> None:
        fan_out.apply()

    for task in (fan_out, call):
        task.delay()
        assert len(run_sent(connected)) == 3
        found = only(bus, name=task.name)
        assert (found.kind, found.status) == ("celery", "succeeded")
        assert len(list(bus.operations.chain(found.id).walk())) == 2
    assert len(bus.operations.find()) == 2


def test_what_is_sent_in_an_operation_inside_a_task_needs_only_that(connected: Celery, bus: EventBus) -> None:
    @connected.task(name="one")
    def one() -> None:
        bus.publish(ADA)

    @connected.task(name="all")
    def fan_out() -> None:
        with bus.operation("inner"):
            one.delay()

    fan_out.delay()
    run_sent(connected)
    assert only(bus).name == "inner"


def test_a_failure_is_stored_with_its_stack_and_without_secrets(connected: Celery, bus: EventBus) -> None:
    @connected.task
    def sign_in(user: str, password: str) -> None:
        raise ConnectionError(f"{user} with {password} refused, token=abcdefgh")

    run(sign_in, "task-1", ["ada", "hunter2-x"])
    error = only(bus).error
    assert error is not None
    assert (error.error_type, error.message) == ("ConnectionError", "ada with *** refused, token=***")
    assert "in sign_in" in error.traceback
    assert "celery/app/trace.py" not in error.traceback
    assert "hunter2-x" not in error.traceback


def test_own_rules_of_redaction_are_kept(app: Celery, bus: EventBus) -> None:
    connect(app, bus, redaction=Redaction(names=("iban_code",), max_bytes=300))

    @app.task
    def pay(iban_code: str, text: str) -> None:
        bus.publish(ADA)

    run(pay, "task-1", ["DE02", "word " * 1000])
    assert only(bus).variables["iban_code"] == "***"
    assert 10 < len(only(bus).variables["text"]) < 300


def test_arguments_larger_than_what_may_be_stored_are_shortened(app: Celery) -> None:
    settings = Settings(nats="memory://", mongo="memory://", namespace="unit", max_payload_bytes=2048)
    with EventBus(settings=settings) as small:
        connect(app, small)

        @app.task
        def load(rows: list[str]) -> None:
            small.publish(ADA)

        run(load, "task-1", [["word " * 50] * 1000])
        assert only(small).status == "succeeded"
        assert only(small).variables["rows"]


def test_arguments_that_do_not_fit_are_not_shown_without_their_names(
    connected: Celery, bus: EventBus
) -> None:
    @connected.task
    def tick() -> None: ...

    run(tick, "task-1", ["hunter2-x"], {"extra": 1})
    assert only(bus).variables == {"args": "1 arguments that do not fit the task", "extra": 1}
    assert only(bus).status == "failed"


def test_everything_is_stored_if_that_is_wished(app: Celery, bus: EventBus) -> None:
    connect(app, bus, store_all=True)
    seen = []

    @app.task
    def tick() -> None:
        seen.append(only(bus).status)

    run(tick, "task-1")
    assert [*seen, only(bus).status] == ["running", "succeeded"]


def test_an_operation_whose_beginning_could_not_be_stored_is_stored_at_its_end(
    app: Celery, bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    connect(app, bus, store_all=True)

    @app.task(name="tick")
    def tick() -> None:
        bus.store.unavailable = False  # type: ignore[attr-defined]

    bus.store.unavailable = True  # type: ignore[attr-defined]
    run(tick, "task-1")
    found = only(bus)
    assert found.status == "succeeded"
    assert f"Operation {found.id} of task tick[task-1] began, which was not stored" in caplog.text


def test_a_task_that_ends_its_process_has_failed(connected: Celery, bus: EventBus) -> None:
    @connected.task
    def leave() -> None:
        sys.exit(3)

    with pytest.raises(SystemExit):
        run(leave, "task-1")
    assert (only(bus).status, current_operation_id()) == ("failed", None)
    assert only(bus).error.error_type == "SystemExit"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (Reject(ValueError("bad"), requeue=False), "failed"),
        (Reject(ValueError("later"), requeue=True), "running"),
        (Ignore(), "succeeded"),
    ],
)
def test_an_operation_ends_as_its_task_says(
    connected: Celery, bus: EventBus, raised: Exception, status: str
) -> None:
    @connected.task
    def decide() -> None:
        bus.publish(ADA)
        raise raised

    run(decide, "task-1")
    found = only(bus)
    assert found.status == status
    assert (found.error.error_type if found.error else None) == (
        None if status == "succeeded" else "ValueError"
    )


# --- run again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_operation", [True, False])
def test_a_task_that_runs_again_publishes_each_event_once(
    connected: Celery, bus: EventBus, in_operation: bool
) -> None:
    receipts = []

    @connected.task
    def rename() -> None:
        receipts.append([bus.publish(each) for each in (ADA, ADA, Greeted(name="Ada"))])

    with bus.operation("request") as operation:
        came_with = {HEADER: current_chain()} if in_operation else {}
    for task_id in ("task-1", "task-1", "task-2"):
        run(rename, task_id, request=came_with)
    first, again, other = ([receipt.id for receipt in each] for each in receipts)
    assert first == again
    assert [receipt.duplicate for receipt in receipts[1]] == [True] * 3
    assert len({*first, *other}) == 6
    operations = {receipt.operation_id for each in receipts for receipt in each}
    assert len(operations) == (1 if in_operation else 2)
    assert (operation.id in operations) is in_operation


@pytest.mark.parametrize("in_operation", [True, False])
def test_a_retry_belongs_to_the_same_operation_and_repeats_no_event(
    connected: Celery, bus: EventBus, in_operation: bool
) -> None:
    """Also when the task opens an operation of its own around what is retried."""
    states: list[Any] = []

    @connected.task(autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=0)
    def rename(user: str) -> None:
        attempt = len(states)
        bus.publish(Renamed(name=user))
        states.append([(each.status, each.error and each.error.message) for each in bus.operations.find()])
        if attempt < 2:
            raise ConnectionError(f"down {attempt}")
        bus.publish(Greeted(name=user))

    operation = bus.operation("request")
    if in_operation:
        with operation:
            rename.delay("Ada")
    else:
        rename.delay("Ada")
    assert len(set(run_sent(connected))) == 1
    assert len(states) == 3
    found = only(bus)
    assert (found.status, found.error) == ("succeeded", None)
    assert (found.id == operation.id) is in_operation
    published = [each.event.name for each in bus.operations.chain(found.id).walk()]
    assert published == ["RigUser.renamed", "RigUser.greeted"]


def test_a_retry_that_ends_before_the_run_it_came_from_has_the_last_word(
    connected: Celery, bus: EventBus
) -> None:
    attempts: list[int] = []

    @connected.task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=0)
    def call(self: Any) -> None:
        attempts.append(self.request.retries)
        bus.publish(Renamed(name="Ada"))
        if len(attempts) == 1:
            raise ConnectionError("down")

    def run_elsewhere(**_: Any) -> None:
        """As another process of the pool does, which takes the message the moment it was sent."""
        if attempts == [0]:
            other = threading.Thread(target=run_sent, args=(connected,))
            other.start()
            other.join(30)

    call.delay()
    signals.after_task_publish.connect(run_elsewhere, weak=False, dispatch_uid="elsewhere")
    try:
        run_sent(connected)
    finally:
        signals.after_task_publish.disconnect(dispatch_uid="elsewhere")
    assert attempts == [0, 1]
    found = only(bus)
    assert (found.status, found.error) == ("succeeded", None)


def test_an_operation_is_running_until_its_last_retry_failed(connected: Celery, bus: EventBus) -> None:
    seen: list[tuple[str, str]] = []

    @connected.task(bind=True, max_retries=2, default_retry_delay=0)
    def call(self: Any) -> None:
        seen.extend((each.status, each.error.message) for each in bus.operations.find() if each.error)
        try:
            raise ConnectionError(f"attempt {self.request.retries}")
        except ConnectionError as error:
            raise self.retry(exc=error) from error

    call.delay()
    assert len(run_sent(connected)) == 3
    assert seen == [("running", "attempt 0"), ("running", "attempt 1")]
    found = only(bus)
    assert found.error is not None
    assert (found.status, found.error.message, found.details["retries"]) == ("failed", "attempt 2", 2)


def test_a_retry_from_inside_another_operation_keeps_its_chain(connected: Celery, bus: EventBus) -> None:
    operations = []

    @connected.task(bind=True, default_retry_delay=0)
    def rename(self: Any) -> None:
        operations.append(current_operation_id())
        with bus.operation("inner"):
            if self.request.retries == 0:
                self.retry()

    with bus.operation("request") as operation:
        rename.delay()
    run_sent(connected)
    rename.delay()
    run_sent(connected)
    assert operations[:2] == [operation.id] * 2
    assert operations[2] == operations[3] != operation.id


def test_a_task_that_replaced_itself_is_another_task(connected: Celery, bus: EventBus) -> None:
    @connected.task(bind=True)
    def page(self: Any, number: int) -> None:
        bus.publish(ADA)
        if number < 3:
            raise self.replace(page.s(number + 1))

    page.delay(1)
    assert len(set(run_sent(connected))) == 1
    assert only(bus).status == "succeeded"
    assert len(list(bus.operations.chain(only(bus).id).walk())) == 3


@pytest.mark.parametrize("task_id", ["x" * 5000, "\ud800", "\0"])
def test_any_task_id_will_do(connected: Celery, bus: EventBus, task_id: str) -> None:
    @connected.task(ignore_result=True)
    def rename() -> None:
        bus.publish(ADA)

    run(rename, task_id)
    run(rename, task_id)
    assert len(list(bus.operations.chain(only(bus).id).walk())) == 1


# --- in one process --------------------------------------------------------------------------------------


def test_a_task_called_in_an_operation_or_handler_joins_it(connected: Celery, bus: EventBus) -> None:
    connected.conf.task_always_eager = True

    @connected.task
    def greet() -> None:
        bus.publish(Greeted(name="Ada"))

    bus.group("Blog").handler(Renamed, name="call")(lambda event: greet.delay())
    with memory(bus) as events:
        with bus.operation("request") as operation:
            greet.apply()
            bus.publish(ADA)
        events.drain()
        assert only(bus).id == operation.id
        by_name = {each.event.name: each for each in bus.operations.chain(operation.id).events}
    assert set(by_name) == {"RigUser.greeted", "RigUser.renamed"}
    [delivery] = by_name["RigUser.renamed"].deliveries
    assert [each.event.source for each in delivery.events] == ["Blog.call"]


def test_a_task_called_alone_is_an_operation_as_it_would_be_in_a_worker(
    connected: Celery, bus: EventBus
) -> None:
    @connected.task(bind=True, autoretry_for=(ConnectionError,))
    def greet(self: Any) -> None:
        bus.publish(Greeted(name="Ada"))
        if self.request.retries == 0:
            raise ConnectionError("down")

    assert greet.apply(task_id="task-1").successful()
    assert (only(bus).kind, only(bus).status) == ("celery", "succeeded")
    assert len(list(bus.operations.chain(only(bus).id).walk())) == 1
    assert current_operation_id() is None


def test_a_task_called_in_a_task_belongs_to_the_outer_one(connected: Celery, bus: EventBus) -> None:
    @connected.task
    def inner() -> None:
        bus.publish(ADA)

    @connected.task
    def outer() -> None:
        inner.apply()
        assert bus.publish(Greeted(name="Ada")).operation_id == current_operation_id()

    run(outer, "task-1")
    assert only(bus).name.endswith("outer")
    assert len(list(bus.operations.chain(only(bus).id).walk())) == 2


# --- what must not leak or be lost -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "text",
        7,
        [],
        {"operation_id": ""},
        {"operation_id": "op", "depth": "1"},
        {"operation_id": "op", "parent_ids": ["x"] * 51},
        {"operation_id": {"$ne": None}},
        {"parent_ids": []},
        {"operation_id": "op", "source": "x" * 100_000},
    ],
)
def test_a_header_that_is_no_chain_is_logged_once_and_the_task_runs(
    connected: Celery, bus: EventBus, header: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @connected.task(name="rename")
    def rename() -> None:
        bus.publish(ADA)

    run(rename, "task-1", request={HEADER: header})
    [warning] = [record for record in caplog.records if record.name == "eventdriven_sync.celery"]
    assert warning.levelno == logging.WARNING
    assert "Task rename[task-1] was sent with a header eventdriven_chain that is ignored" in warning.message
    assert len(warning.message) < 500
    assert (only(bus).kind, only(bus).status) == ("celery", "succeeded")


@pytest.mark.parametrize("header", [None, {}])
def test_no_chain_is_nothing_to_warn_of(
    connected: Celery, bus: EventBus, header: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @connected.task
    def rename() -> None:
        bus.publish(ADA)

    run(rename, "task-1", request={HEADER: header})
    assert only(bus).kind == "celery"
    assert not [record for record in caplog.records if record.name == "eventdriven_sync.celery"]


def test_what_a_task_left_behind_does_not_reach_the_next_one(connected: Celery, bus: EventBus) -> None:
    seen: list[str | None] = []

    @connected.task
    def leave_open() -> None:
        bus.operation("left open").begin()
        context.transaction.set(context.Transaction(session=None))

    @connected.task
    def look() -> None:
        seen.extend([current_operation_id(), context.transaction.get()])  # type: ignore[list-item]

    run(leave_open, "task-1")
    assert (current_operation_id(), context.transaction.get()) == (None, None)
    foreign = bus.operation("of nobody")
    foreign.begin()
    context.transaction.set(context.Transaction(session=None))
    run(look, "task-2")
    assert context.transaction.get() is not None
    context.transaction.set(None)
    assert seen[0] not in (None, foreign.id)
    assert seen[1] is None
    assert current_operation_id() == foreign.id, "the context is as it was before the task"
    foreign.forget()


def test_an_outcome_that_cannot_be_stored_is_logged_and_leaks_nothing(
    connected: Celery, bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    @connected.task(name="rename")
    def rename() -> None:
        bus.publish(ADA)
        seen.append(current_operation_id())
        bus.store.unavailable = True  # type: ignore[attr-defined]

    run(rename, "task-1")
    assert current_operation_id() is None
    [record] = [each for each in caplog.records if each.name == "eventdriven_sync.celery"]
    assert (
        f"Operation {seen[0]} of task rename[task-1] ended (SUCCESS), which was not stored" in record.message
    )
    assert record.levelno == logging.ERROR
    assert not record.exc_info


def test_what_cannot_be_stored_fails_in_the_task(app: Celery, bus: EventBus) -> None:
    connect(app, bus, store_all=True)
    caught = []

    @app.task
    def rename() -> None:
        with pytest.raises(StoreUnavailable) as error:
            bus.publish(ADA)
        caught.append(error.value)

    bus.store.unavailable = True  # type: ignore[attr-defined]
    run(rename, "task-1")
    assert len(caught) == 1
    assert current_operation_id() is None


def test_without_a_bus_tasks_run_but_publish_nothing_outside_their_operation(
    app: Celery, bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    def no_bus() -> EventBus:
        raise RuntimeError("no application")

    connect(app, no_bus)

    @app.task(name="rename")
    def rename(publishes: bool) -> str:
        rename.delay(False)
        if publishes:
            bus.publish(ADA)
        return "done"

    assert run(rename, "task-1", [False]).retval == "done"
    assert HEADER not in take(app).headers, "there is no operation to go on with"
    assert "Task rename[task-1] cannot begin an operation" in caplog.text
    failed = run(rename, "task-2", [True])
    assert isinstance(failed.retval.exception, ConfigurationError)
    assert "task rename[task-2] has no operation to publish in: no application" in str(
        failed.retval.exception
    )
    assert current_operation_id() is None
    assert bus.operations.find() == []


def test_tasks_in_threads_have_operations_of_their_own(connected: Celery, bus: EventBus) -> None:
    meeting = threading.Barrier(4, timeout=20)

    @connected.task(bind=True)
    def rename(self: Any) -> None:
        meeting.wait()
        bus.publish(Renamed(name=self.request.id))
        meeting.wait()
        bus.publish(Greeted(name=self.request.id))

    threads = [threading.Thread(target=run, args=(rename, f"task-{n}")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    found = bus.operations.find()
    assert len(found) == 4
    for each in found:
        names = {child.event.data["name"] for child in bus.operations.chain(each.id).walk()}
        assert names == {each.details["task_id"]}


# --- connecting ------------------------------------------------------------------------------------------


def test_connecting_opens_nothing_and_twice_is_once_with_the_last_bus(app: Celery, bus: EventBus) -> None:
    connect(app, lambda: pytest.fail("it was replaced"))
    receivers = [len(signal.receivers) for signal in (signals.task_prerun, signals.before_task_publish)]
    connect(app, lambda: bus)
    again = [len(signal.receivers) for signal in (signals.task_prerun, signals.before_task_publish)]
    assert receivers == again

    @app.task
    def rename() -> None:
        bus.publish(ADA)

    run(rename, "task-1")
    assert only(bus).kind == "celery"


def test_tasks_of_other_applications_are_left_alone(connected: Celery, bus: EventBus) -> None:
    other = Celery("other", broker="memory://", set_as_current=False)

    @other.task
    def rename() -> None:
        bus.publish(ADA)

    run(rename, "task-1")
    assert bus.operations.find() == []
    other.close()


def test_the_current_application_can_be_given_as_what_stands_for_it(app: Celery, bus: EventBus) -> None:
    from celery import current_app

    app.set_current()
    connect(current_app, bus)

    @app.task
    def rename() -> None:
        bus.publish(ADA)

    run(rename, "task-1")
    assert only(bus).kind == "celery"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"celery_app": "shop"}, "celery_app"),
        ({"bus": "shop"}, "bus"),
        ({"redaction": ["iban"]}, "redaction"),
    ],
)
def test_what_cannot_be_connected_is_refused(
    app: Celery, bus: EventBus, wrong: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidOption) as caught:
        connect(**({"celery_app": app, "bus": bus} | wrong))
    assert caught.value.field == field


def test_what_gives_no_bus_is_named(app: Celery, bus: EventBus) -> None:
    connect(app, lambda: "no bus")  # type: ignore[arg-type, return-value]

    @app.task
    def rename() -> None:
        bus.publish(ADA)

    error = run(rename, "task-1").retval.exception
    assert "the bus given to connect() is 'no bus': return an EventBus" in str(error)


def test_without_celery_the_error_names_the_extra() -> None:
    code = """
        import sys
        sys.modules["celery"] = None
        from eventdriven_sync.errors import MissingExtra
        try:
            import eventdriven_sync.celery
        except MissingExtra as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == 'this needs: pip install "eventdriven_sync[celery]"'
