"""Health of a bus and of a worker on memory adapters: each fault turns its own part red, and no other."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from tenacity import stop_after_attempt, wait_none

from eventdriven_sync import EventBus, RetryPolicy, Settings, Worker
from eventdriven_sync import worker as worker_module
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.errors import (
    BrokerPermissionDenied,
    BrokerUnavailable,
    InvalidOption,
    StoreError,
    StoreUnavailable,
)
from eventdriven_sync.health import HandlerProgress, Health, Part, Progress, Running
from eventdriven_sync.pulse import Pulse
from eventdriven_sync.records import Delivery, delivery_id
from eventdriven_sync.stores.memory import MemoryStore
from eventdriven_sync.vitals import Stalls
from tests.polling import eventually
from tests.unit.rig import Gate, Greeted, Renamed, Rig

ADA = Renamed(name="Ada")
PARTS = ["event store", "broker", "worker threads", "recovery lane", "recorder", "reconciler", "heartbeat"]


@pytest.fixture
def bus() -> Iterator[EventBus]:
    settings = Settings(
        nats="memory://",
        mongo="memory://",
        namespace="unit",
        poll_every=0.02,
        stall_after=0.2,
        reconcile_every=0.05,
        publish_timeout=0.3,
    )
    with EventBus(settings=settings, broker=MemoryBroker(), store=MemoryStore()) as made:
        yield made


@pytest.fixture
def seen(bus: EventBus) -> list[str]:
    names: list[str] = []
    bus.group("Blog").handler(Renamed, name="keep")(lambda e: names.append(e.name))
    return names


@pytest.fixture
def start(bus: EventBus) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def begin(**options: Any) -> Worker:
        workers.append(Worker(bus, **{"threads": 2, "grace": 1.0} | options))
        return workers[-1].start()

    yield begin
    for worker in workers:
        worker.stop(grace=0.2)


def part(health: Health, name: str) -> Part:
    return next(each for each in health.parts if each.name == name)


def colours(health: Health) -> tuple[bool, bool, bool]:
    return health.live, health.ready, health.moving


def silence(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker delivers nothing, though it is connected."""
    monkeypatch.setattr(bus.broker, "pump", lambda: 0)


def due(bus: EventBus, handler: str) -> None:
    """A delivery that is due now."""
    receipt = bus.publish(ADA)
    event = bus.store.events.get([receipt.id])[receipt.id]
    now = bus.store.directory.now()
    bus.store.deliveries.insert_pending(
        [
            Delivery(
                id=delivery_id(handler, event.id),
                handler=handler,
                event_id=event.id,
                event_name=event.name,
                operation_id=event.operation_id,
                state="pending",
                created_at=now,
                due_at=now,
                event=event,
            )
        ]
    )


# --- a worker ---------------------------------------------------------------------------------------------


def test_a_worker_that_is_well_says_so_of_every_part(
    bus: EventBus, seen: list[str], start: Callable[..., Worker]
) -> None:
    worker = start()
    bus.publish(ADA)
    eventually(lambda: seen)
    health = eventually(lambda: worker.health().progress.settled_ago is not None and worker.health())
    assert (health.ok, health.reasons) == (True, ())
    assert [each.name for each in health.parts] == PARTS
    assert {each.state for each in health.parts} == {"ok"}
    assert (health.progress.pending, health.progress.overdue) == (0, 0.0)


def test_a_worker_that_has_not_started_is_live_and_not_ready(bus: EventBus, seen: list[str]) -> None:
    health = Worker(bus).health()
    assert colours(health) == (True, False, True)
    assert health.reasons == ("worker threads: the worker has not started",)


def test_a_worker_that_stops_is_live_and_not_ready(
    bus: EventBus, seen: list[str], start: Callable[..., Worker]
) -> None:
    worker = start()
    worker.stop()
    assert colours(worker.health()) == (True, False, True)
    assert worker.health().reasons == ("worker threads: it stops",)


def test_a_store_that_is_away_makes_it_not_ready_and_ready_again(
    bus: EventBus, seen: list[str], start: Callable[..., Worker]
) -> None:
    worker = start()
    bus.store.unavailable = True  # type: ignore[attr-defined]
    health = worker.health()
    assert colours(health) == (True, False, True)
    assert part(health, "event store").reason == "it does not answer within 1 s"
    bus.store.unavailable = False  # type: ignore[attr-defined]
    eventually(lambda: worker.health().ok)


def test_a_broker_that_is_away_makes_it_not_ready_and_ready_again(
    bus: EventBus, seen: list[str], start: Callable[..., Worker]
) -> None:
    worker = start()
    bus.broker.disconnect()  # type: ignore[attr-defined]
    health = worker.health()
    assert colours(health) == (True, False, True)
    assert part(health, "broker").reason == "it is not connected"
    assert [each.pending for each in health.progress.handlers] == [None]
    bus.broker.connect()  # type: ignore[attr-defined]
    eventually(lambda: worker.health().ok)


@pytest.mark.parametrize(
    ("where", "method", "error", "name"),
    [
        ("store.directory", "now", StoreError("secret"), "event store"),
        ("store.deliveries", "next_due", StoreError("secret"), "event store"),
        ("broker", "consumer_state", BrokerPermissionDenied("secret"), "broker"),
    ],
)
def test_an_error_of_a_server_is_named_by_its_kind_and_not_quoted(
    bus: EventBus,
    seen: list[str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    method: str,
    error: Exception,
    name: str,
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise error

    target: Any = bus
    for step in where.split("."):
        target = getattr(target, step)
    bus.open()
    monkeypatch.setattr(target, method, refuse)
    found = part(bus.health(), name)
    assert found.reason.startswith(f"it answers with an error ({type(error).__name__})")
    assert "secret" not in str(bus.health())


def test_a_broker_that_is_connected_and_does_not_answer_makes_it_not_ready(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*args: Any, **options: Any) -> Any:
        raise BrokerUnavailable("no answer")

    worker = start()
    with monkeypatch.context() as patch:
        patch.setattr(bus.broker, "consumer_state", hang)
        health = worker.health()
        assert colours(health) == (True, False, True)
        assert part(health, "broker").reason == "it does not answer within 1 s"
    eventually(lambda: worker.health().ok)


def test_messages_that_nobody_delivers_stall_it_and_settling_them_ends_that(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start()
    with monkeypatch.context() as patch:
        silence(bus, patch)
        bus.publish_many([ADA, ADA])
        assert worker.health().moving, "it has only begun to wait"
        health = eventually(lambda: not worker.health().moving and worker.health())
        assert colours(health) == (True, True, False)
        (reason,) = health.reasons
        assert reason.startswith("Blog.keep: 2 messages wait and nothing was settled for 0 s")
    bus.broker.connect()  # type: ignore[attr-defined]
    eventually(lambda: len(seen) == 2)
    eventually(lambda: worker.health().ok)


def test_a_paused_consumer_is_named(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    silence(bus, monkeypatch)
    look = bus.broker.consumer_state
    monkeypatch.setattr(
        bus.broker,
        "consumer_state",
        lambda *args, **options: attrs.evolve(look(*args, **options), paused=True),
    )
    worker = start()
    bus.publish(ADA)
    eventually(lambda: any("its consumer is paused" in each for each in worker.health().reasons))


def test_a_handler_that_a_person_paused_is_no_stall_and_is_named(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "OBEYING", 0.02)
    worker = start()
    bus.store.directory.pause("Blog.keep", by="ada", reason="the posts are moved")
    eventually(lambda: worker.health().progress.handlers[0].paused)
    bus.publish(ADA)
    watched = worker.health()
    assert (watched.progress.pending, seen) == (1, [])
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 2 * bus.settings.stall_after and worker.health().moving)
    bus.store.directory.resume("Blog.keep")
    eventually(lambda: seen)
    assert worker.health().ok


def test_outcomes_that_cannot_be_recorded_stall_it_though_the_store_answers(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*args: Any) -> Any:
        raise StoreUnavailable("writes hang")

    worker = start()
    with monkeypatch.context() as patch:
        patch.setattr(bus.store.deliveries, "settle", hang)
        bus.publish(ADA)
        health = eventually(lambda: not worker.health().moving and worker.health())
        assert colours(health) == (True, True, False)
        assert "1 messages wait" in health.reasons[0]
    eventually(lambda: worker.health().ok)


def test_due_deliveries_that_nobody_claims_stall_it(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventdriven_sync.health.DUE_SLACK", 0.05)
    worker = start()
    bus.broker.drop_dispatches = True  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(bus.store.deliveries, "claim_due", lambda *args, **options: [])
        due(bus, "Blog.keep")
        health = eventually(lambda: not worker.health().moving and worker.health())
        assert colours(health) == (True, True, False)
        assert "deliveries are due and nothing was settled" in health.reasons[0]
        assert health.progress.overdue > 0.05
    eventually(lambda: seen)
    eventually(lambda: worker.health().ok)


def test_a_handler_that_runs_long_is_no_stall_and_is_named(
    bus: EventBus, start: Callable[..., Worker]
) -> None:
    gate = Gate()
    bus.group("Blog").handler(Renamed, name="slow", timeout=60, threads=1)(gate)
    worker = start()
    bus.publish_many([ADA] * 20)
    gate.await_entry()
    assert worker.health().moving
    longer = 2 * bus.settings.stall_after
    health = eventually(lambda: worker.health().progress.running[0].seconds > longer and worker.health())
    assert health.ok, health.reasons
    (running,) = health.progress.running
    assert (running.handler, running.timeout, running.hung) == ("Blog.slow", 60, False)
    assert health.progress.settled_ago is None
    gate.open()


def test_work_that_waits_while_all_threads_are_busy_is_no_stall(
    bus: EventBus, start: Callable[..., Worker]
) -> None:
    gate = Gate()
    names: list[str] = []
    bus.group("Slow").handler(Renamed, name="wait", timeout=60)(gate)
    bus.group("Blog").handler(Greeted, name="keep")(lambda e: names.append(e.name))
    worker = start(threads=1)
    bus.publish(ADA)
    gate.await_entry()
    bus.publish(Greeted(name="Ada"))
    behind = eventually(lambda: worker.health().progress.handlers[0].in_hand and worker.health())
    assert behind.progress.handlers[0].name == "Blog.keep"
    longer = 2 * bus.settings.stall_after
    health = eventually(lambda: worker.health().progress.running[0].seconds > longer and worker.health())
    assert (health.reasons, names) == ((), [])
    gate.open()
    eventually(lambda: names)


def test_a_hung_handler_is_red_until_it_returns(bus: EventBus, start: Callable[..., Worker]) -> None:
    gate = Gate()
    once = RetryPolicy(stop=stop_after_attempt(1), wait=wait_none())
    bus.group("Blog").handler(Renamed, name="hang", timeout=0.05, retry=once)(gate)
    worker = start()
    bus.publish(ADA)
    gate.await_entry()
    health = eventually(lambda: not worker.health().moving and worker.health())
    assert colours(health) == (True, True, False)
    assert health.reasons == (
        "worker threads: 1 hang in handlers and were replaced",
        "Blog.hang: a thread hangs in it for 0 s, beyond its timeout of 0.05 s",
    )
    gate.open()
    eventually(lambda: worker.health().ok)


def test_a_worker_thread_that_ended_is_dead(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start(threads=3)
    assert worker.health().live

    # Told so, a thread believes that another one took its place.
    monkeypatch.setattr(worker._pool, "_finished", lambda job: False)
    bus.publish(ADA)
    health = eventually(lambda: not worker.health().live and worker.health())
    assert colours(health)[:2] == (False, False)
    assert part(health, "worker threads").reason == "1 of 3 have ended"


def ended() -> threading.Thread:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    return thread


def test_a_watchdog_that_ended_is_dead(bus: EventBus, seen: list[str], start: Callable[..., Worker]) -> None:
    worker = start()
    watchdog = worker._pool._watchdog
    thread, watchdog._thread = watchdog._thread, ended()
    assert "the watchdog" in part(worker.health(), "worker threads").reason
    assert not worker.health().live
    watchdog._thread = thread
    assert worker.health().live


@pytest.mark.parametrize("name", PARTS[3:])
def test_a_loop_that_ended_is_dead(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], name: str
) -> None:
    worker = start()
    pulse = {
        "recovery lane": worker._recovery.pulse,
        "recorder": worker._recorder.pulse,
        "reconciler": worker._reconciler.pulse,
        "heartbeat": worker._heartbeat,
    }[name]
    thread, pulse._thread = pulse._thread, ended()
    health = worker.health()
    assert part(health, name) == Part(name=name, state="dead", reason="its thread has ended")
    assert colours(health) == (False, False, True)
    pulse._thread = thread
    assert worker.health().ok


def test_a_loop_that_does_not_come_round_is_dead(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventdriven_sync.vitals.PATIENCE", -7.5)
    gate = Gate()
    monkeypatch.setattr(bus.store.deliveries, "claim_due", lambda *args, **options: gate())
    worker = start()
    health = eventually(lambda: not worker.health().live and worker.health())
    assert part(health, "recovery lane").reason.startswith("it did not come round for ")
    gate.open()


def test_rounds_that_fail_make_it_not_ready(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise StoreUnavailable("no writes")

    monkeypatch.setattr(worker_module, "HEARTBEAT", 0.02)
    monkeypatch.setattr(worker_module, "OBEYING", 0.02)
    worker = start()
    with monkeypatch.context() as patch:
        patch.setattr(bus.store.directory, "heartbeat", refuse)
        health = eventually(lambda: not worker.health().ready and worker.health())
        assert colours(health) == (True, False, True)
        assert part(health, "heartbeat").reason == "its rounds fail since 0 s"
    eventually(lambda: worker.health().ok)


def test_rounds_that_go_well_are_noted(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "HEARTBEAT", 0.02)
    monkeypatch.setattr(worker_module, "OBEYING", 0.02)
    worker = start()
    for pulse in (worker._recovery.pulse, worker._reconciler.pulse, worker._heartbeat):
        pulse._well_at -= 1000
    eventually(lambda: worker.health().ready)


@pytest.mark.parametrize("timeout", [0, -1, 61, "2", True])
def test_a_wrong_timeout_is_refused(bus: EventBus, seen: list[str], timeout: Any) -> None:
    for examine in (bus.health, Worker(bus).health):
        with pytest.raises(InvalidOption, match="timeout is"):
            examine(timeout=timeout)


# --- a bus ------------------------------------------------------------------------------------------------


def test_a_bus_that_is_well_says_so(bus: EventBus, seen: list[str]) -> None:
    health = bus.health()
    assert (health.ok, [each.name for each in health.parts]) == (True, ["event store", "broker"])
    assert [each.name for each in health.progress.handlers] == ["Blog.keep"]


def test_a_bus_without_handlers_is_looked_at_too(bus: EventBus) -> None:
    assert bus.health().ok
    bus.store.unavailable = True  # type: ignore[attr-defined]
    assert not bus.health().ready


def test_who_only_publishes_is_ready_without_the_broker(bus: EventBus, seen: list[str]) -> None:
    bus.open()
    bus.broker.disconnect()  # type: ignore[attr-defined]
    health = bus.health()
    assert colours(health) == (True, True, True)
    assert health.reasons == (
        "broker: it is not connected; events are accepted, and brought when it is back",
    )


def test_a_closed_bus_is_not_ready(bus: EventBus) -> None:
    bus.close()
    assert part(bus.health(), "event store").reason == "it answers with an error (Closed)"


def test_events_that_wait_for_a_handler_that_no_worker_runs_are_seen(
    bus: EventBus, seen: list[str], start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    bus.open()
    bus.publish(ADA)
    health = bus.health()
    assert colours(health) == (True, True, False)
    assert health.reasons == ("Blog.keep: events wait for it, and no worker runs it",)
    silence(bus, monkeypatch)
    start()
    health = bus.health()
    assert (health.progress.pending, health.moving) == (1, True)


def test_without_an_answer_about_workers_nobody_is_blamed(
    bus: EventBus, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> Any:
        raise StoreUnavailable("away again")

    bus.open()
    bus.publish(ADA)
    monkeypatch.setattr(bus.store.directory, "workers", refuse)
    assert bus.health().moving


# --- values and judgements --------------------------------------------------------------------------------


def test_messages_whose_outcome_was_known_count_as_settled() -> None:
    rig = Rig()
    handler = rig.handler(lambda e: None, name="keep")
    first = rig.arrived(handler, rig.envelope(ADA))
    rig.executor.read(first)
    rig.store.deliveries.settle([rig.executor.settlement(first, None)])
    again = rig.arrived(handler, rig.envelope(ADA, id=first.delivery_id.partition(":")[2]))
    rig.executor.read(again)
    assert rig.stats.settled_at() == {}
    assert rig.settler.admit([again]) == []
    assert list(rig.stats.settled_at()) == ["Blog.keep"]
    rig.close()


def waiting(**changes: Any) -> HandlerProgress:
    return HandlerProgress(**{"name": "B.h", "pending": 3, "overdue": 0.0} | changes)


RUNS = Running(handler="B.h", count=1, seconds=1.0, timeout=None)


@pytest.mark.parametrize(
    ("work", "running", "threads", "stalls"),
    [
        (waiting(), [], 1, True),
        (waiting(pending=0), [], 1, False),
        (waiting(pending=None), [], 1, False),
        (waiting(pending=None, in_hand=1), [], 1, True),
        (waiting(pending=0, overdue=5.0), [], 1, True),
        (waiting(pending=0, overdue=None), [], 1, False),
        (waiting(paused=True), [], 1, False),
        (waiting(settled_ago=0.0), [], 1, False),
        (waiting(settled_ago=90.0), [], 1, True),
        (waiting(), [RUNS], 2, False),
        (waiting(), [attrs.evolve(RUNS, hung=True)], 2, True),
        (waiting(in_hand=1), [attrs.evolve(RUNS, handler="B.other")], 2, True),
        (waiting(in_hand=1), [attrs.evolve(RUNS, handler="B.other")], 1, False),
        (waiting(overdue=9.0), [attrs.evolve(RUNS, handler="B.other")], 1, False),
        (waiting(), [attrs.evolve(RUNS, handler="B.other")], 1, True),
    ],
)
def test_what_is_a_stall(
    work: HandlerProgress,
    running: list[Running],
    threads: int,
    stalls: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("eventdriven_sync.vitals.time.monotonic", lambda: now[0])
    watch = Stalls({"B.h": 60.0})
    assert watch.judge([work], running, threads)[0].stalled == ""
    now[0] += 60.0
    assert watch.judge([work], running, threads)[0].stalled == ""
    now[0] += 1.0
    assert bool(watch.judge([work], running, threads)[0].stalled) is stalls


def test_the_time_of_a_stall_begins_anew_when_nothing_waited_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("eventdriven_sync.vitals.time.monotonic", lambda: now[0])
    watch = Stalls({"B.h": 60.0})
    watch.judge([waiting()], [], 1)
    now[0] += 50.0
    watch.judge([waiting(pending=0)], [], 1)
    now[0] += 50.0
    assert watch.judge([waiting()], [], 1)[0].stalled == ""


def test_a_batch_may_take_as_long_as_it_may_wait_to_be_full(bus: EventBus) -> None:
    bus.group("Blog").batch_handler(Renamed, name="count", max_size=10, max_wait=600)(lambda batch: None)
    worker = Worker(bus)
    assert worker._vitals._stalls._patience == {"Blog.count": 600.2}


def test_only_the_worst_state_of_a_part_counts() -> None:
    parts = tuple(Part(name=state, state=state, reason="r") for state in ("ok", "degraded"))  # type: ignore[arg-type]
    nothing = Progress(handlers=())
    assert colours(Health(parts=parts, progress=nothing)) == (True, True, True)
    failing = Part(name="x", state="failing", reason="r")
    assert colours(Health(parts=(*parts, failing), progress=nothing)) == (True, False, True)
    dead = Part(name="x", state="dead", reason="r")
    assert colours(Health(parts=(*parts, dead), progress=nothing)) == (False, False, True)


def test_a_pulse_tells_silence_from_failure() -> None:
    now = [100.0]
    go = threading.Event()
    thread = threading.Thread(target=go.wait, args=(10,), daemon=True)
    pulse = Pulse(thread, pause=1.0, clock=lambda: now[0])
    assert not pulse.read().started
    now[0] += 50
    pulse.start()
    assert (pulse.read().silent, pulse.read().unwell, pulse.read().alive) == (0, 0, True)
    now[0] += 3
    pulse.beat()
    now[0] += 4
    assert (pulse.read().silent, pulse.read().unwell) == (4, 7)
    pulse.well()
    assert (pulse.read().silent, pulse.read().unwell) == (0, 0)
    go.set()
    thread.join()
    assert (pulse.read().started, pulse.read().alive) == (True, False)
