"""The worker's threads: fairness, chunks, limits, timeouts, batches, and stopping in good order."""

import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from eventdriven_sync import Reject, event, watchdog
from eventdriven_sync import pool as module
from eventdriven_sync.attempt import Attempt
from eventdriven_sync.batching import Batch
from eventdriven_sync.errors import LeaseLost
from eventdriven_sync.lanes import MAX_CHUNK, MAX_WINDOW, Job, Lane
from tests.polling import eventually
from tests.unit.rig import Gate, Greeted, Renamed, Rig

ADA = Renamed(name="Ada")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def some(count: int) -> list[Renamed]:
    return [Renamed(name=str(i), number=i) for i in range(count)]


@pytest.fixture(autouse=True)
def before() -> set[threading.Thread]:
    """The threads of others."""
    return set(threading.enumerate())


def ended(before: set[threading.Thread]) -> bool:
    return not any(t.name.startswith("eventdriven-handler") for t in set(threading.enumerate()) - before)


# --- working --------------------------------------------------------------------------------------------


def test_everything_offered_is_run_recorded_and_acknowledged(rig: Rig) -> None:
    seen: list[int] = []
    pool = rig.pool(threads=3)
    lane = pool.lane(rig.handler(lambda e: seen.append(e.number), name="keep"))
    attempts = rig.offer(pool, lane, some(300))
    pool.start()
    eventually(lambda: len(rig.hand.finished) == 300)
    assert sorted(seen) == list(range(300))
    assert {rig.state(attempt) for attempt in attempts} == {"succeeded"}
    assert (pool.waiting, pool.busy()) == (0, [])


@pytest.mark.parametrize("quiet_comes", ["first", "last"])
def test_a_busy_handler_does_not_starve_the_others(rig: Rig, quiet_comes: str) -> None:
    """One thread: after at most one chunk of the busy lane it is the other lane's turn."""
    order: list[str] = []
    pool = rig.pool(threads=1)
    busy = pool.lane(rig.handler(lambda e: order.append("busy"), name="busy"))
    quiet = pool.lane(rig.handler(lambda e: order.append("quiet"), name="quiet"))
    offers = [(quiet, some(1)), (busy, some(500))]
    for lane, payloads in offers if quiet_comes == "first" else reversed(offers):
        rig.offer(pool, lane, payloads)
    pool.start()
    eventually(lambda: len(order) == 501)
    assert order.index("quiet") <= MAX_CHUNK


def test_a_handler_runs_in_no_more_threads_than_it_asks_for(rig: Rig) -> None:
    gate, free = Gate(), threading.Event()
    pool = rig.pool(threads=4)
    limited = pool.lane(rig.handler(gate, name="limited", threads=2))
    other = pool.lane(rig.handler(lambda e: free.set(), name="other"))
    pool.start()
    for payload in some(6):
        rig.offer(pool, limited, [payload])
    for _ in range(2):
        gate.await_entry()
    rig.offer(pool, other, [ADA])
    assert free.wait(10)
    assert not gate.entered.acquire(timeout=0.2)
    assert len(pool.busy()) == 2
    gate.open()
    eventually(lambda: len(rig.hand.finished) == 7)


def test_a_slow_handler_gives_the_rest_of_its_chunk_to_other_threads(rig: Rig) -> None:
    gate, seen = Gate(), []

    def handle(event: Renamed) -> None:
        if event.number == 0:
            gate()
        seen.append(event.number)

    pool = rig.pool(threads=2)
    lane = pool.lane(rig.handler(handle))
    lane.pace = 1e-6
    rig.offer(pool, lane, some(20))
    pool.start()
    gate.await_entry()
    eventually(lambda: len(seen) == 19)
    gate.open()
    eventually(lambda: len(rig.hand.finished) == 20)


def test_chunks_are_long_for_fast_handlers_and_single_for_slow_ones(rig: Rig) -> None:
    lane = Lane(rig.handler(lambda e: None, name="keep"), slots=2)
    attempts = [rig.arrived(lane.handler, ADA) for _ in range(600)]

    def chunk(pace: float, threads: int, waiting: int) -> int:
        lane.pace, lane.backlog = pace, deque(attempts[:waiting])
        return len(lane.next_job(threads).waiting)

    assert chunk(0.0, 2, 200) == 1
    assert chunk(1.0, 2, 200) == 1
    assert chunk(1e-6, 2, 600) == MAX_CHUNK
    assert chunk(1e-6, 8, 16) == 16, "so little work is not worth another thread"
    assert chunk(6e-4, 8, 16) == 2


def test_of_a_fast_handler_one_chunk_at_a_time_is_asked_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What arrives meanwhile is the next chunk, and not one of its own for each thread."""
    asked: list[int] = []
    going, admit = threading.Event(), rig.settler.admit

    def slowly(attempts: Any) -> Any:
        asked.append(len(attempts))
        assert going.wait(10)
        return admit(attempts)

    rig.settler.admit = slowly  # type: ignore[method-assign]
    pool = rig.pool(threads=4)
    lane = pool.lane(rig.handler(lambda e: None, name="keep"))
    lane.pace = 1e-6
    monkeypatch.setattr(pool, "_learn", lambda lane, seconds: None)  # on a busy machine it is not fast
    pool.start()
    rig.offer(pool, lane, [ADA])
    eventually(lambda: asked == [1])
    for payload in some(30):
        rig.offer(pool, lane, [payload])
    going.set()
    eventually(lambda: len(rig.hand.finished) == 31)
    assert asked == [1, 30]


def test_chunks_of_a_slow_handler_are_asked_for_side_by_side(rig: Rig) -> None:
    asked = threading.Semaphore(0)
    going, admit = threading.Event(), rig.settler.admit

    def slowly(attempts: Any) -> Any:
        asked.release()
        assert going.wait(10)
        return admit(attempts)

    rig.settler.admit = slowly  # type: ignore[method-assign]
    pool = rig.pool(threads=4)
    lane = pool.lane(rig.handler(lambda e: None, name="keep"))
    lane.pace = 0.02
    pool.start()
    rig.offer(pool, lane, some(4))
    assert all(asked.acquire(timeout=10) for _ in range(4))
    going.set()
    eventually(lambda: len(rig.hand.finished) == 4)


def test_the_window_follows_the_pace_between_its_bounds(rig: Rig) -> None:
    lane = Lane(rig.handler(lambda e: None, name="keep"), slots=4)
    windows = []
    for lane.pace in (0.0, 60.0, 0.01, 1e-9):
        windows.append(lane.window())
    assert windows == [8, 8, 200, MAX_WINDOW]


def test_the_broker_is_asked_for_more_when_a_handler_proves_fast(rig: Rig) -> None:
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(lambda e: None, name="keep"))
    lane.consumptions.append(rig.hand)
    rig.offer(pool, lane, some(200))
    pool.start()
    eventually(lambda: rig.hand.windows)
    assert rig.hand.windows[-1] > 2


# --- what must not cost a thread ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), MemoryError()])
def test_no_exception_of_a_handler_ends_its_thread(rig: Rig, error: BaseException) -> None:
    seen: list[int] = []

    def handle(event: Renamed) -> None:
        if event.number < 3:
            raise error
        seen.append(event.number)

    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(handle))
    pool.start()
    rig.offer(pool, lane, some(4))
    eventually(lambda: seen == [3])


@pytest.mark.parametrize("error", [RuntimeError("a bug of ours"), SystemExit(1)])
def test_an_unexpected_error_costs_its_messages_nothing_but_time(rig: Rig, error: BaseException) -> None:
    """They are neither acknowledged nor kept alive, their leases end, and the thread goes on."""
    seen: list[int] = []
    pool = rig.pool(threads=1)
    handler = rig.handler(lambda e: seen.append(e.number), name="keep")
    lane = pool.lane(handler)
    settle = rig.settler.settle

    def fail_once(settled: Any) -> None:
        rig.settler.settle = settle  # type: ignore[method-assign]
        raise error

    rig.settler.settle = fail_once  # type: ignore[method-assign]
    claimed = rig.claimed(handler, ADA)
    pool.offer(lane, [rig.arrived(handler, ADA), claimed])
    lane.pace = 1e-9
    pool.start()
    eventually(lambda: len(rig.hand.forgotten) + len(rig.hand.finished) == 1)
    rig.offer(pool, lane, some(1))
    eventually(lambda: rig.hand.finished)
    eventually(lambda: len(rig.leases) == 0)


def test_the_watchdog_outlives_an_error_of_its_own(rig: Rig) -> None:
    seen: list[int] = []
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.batch_handler(_noting(seen), max_size=10, max_wait=0.05))
    assert lane.collector is not None
    due = lane.collector.due

    def fail_once() -> Any:
        assert lane.collector is not None
        lane.collector.due = due  # type: ignore[method-assign]
        raise RuntimeError("a bug of ours")

    lane.collector.due = fail_once  # type: ignore[method-assign]
    pool.start()
    rig.offer(pool, lane, [ADA])
    eventually(lambda: seen == [1])


def _noting(seen: list[int]) -> Any:
    def count(batch: Batch[Renamed]) -> None:
        seen.append(len(batch))

    return count


_built: list[Callable[["Touchy"], None]] = []


@event("RigUser.touched")
@attrs.frozen(kw_only=True)
class Touchy:
    """A class whose instances do something when they are built, as a validator may."""

    name: str

    def __attrs_post_init__(self) -> None:
        for note in _built:
            note(self)


def test_the_start_is_counted_before_the_users_class_is_built(rig: Rig) -> None:
    """It too may kill the process, again and again."""
    found: list[str | None] = []
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(lambda e: None, Touchy, name="touch"))
    again = rig.arrived(lane.handler, Touchy(name="Ada"), delivered=2)
    _built[:] = [lambda _: found.append(rig.state(again))]
    pool.offer(lane, [again])
    pool.start()
    eventually(lambda: len(rig.hand.finished) == 1 or rig.state(again) == "succeeded")
    _built.clear()
    assert found == ["running"]


@pytest.mark.parametrize("batch", [False, True])
def test_what_killed_too_many_workers_is_neither_built_nor_run(rig: Rig, batch: bool) -> None:
    ran: list[object] = []
    pool = rig.pool(threads=1)
    if batch:
        lane = pool.lane(rig.batch_handler(ran.append, Touchy, name="touch", max_wait=0.01))
    else:
        lane = pool.lane(rig.handler(ran.append, Touchy, name="touch"))
    claimed = rig.claimed(lane.handler, Touchy(name="Ada"), lost=3)
    _built[:] = [ran.append]
    pool.offer(lane, [claimed])
    pool.start()
    eventually(lambda: rig.state(claimed) != "running")
    _built.clear()
    found = rig.store.deliveries.get(claimed.delivery_id)
    assert found is not None
    assert (found.state, found.reason, ran) == ("dead", "worker_lost", [])


# --- timeouts -------------------------------------------------------------------------------------------


def test_the_timeout_of_a_suspect_runs_from_the_start_of_its_handler(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew, told, go = rig.store.deliveries.renew, threading.Event(), threading.Event()

    def slow(*arguments: Any, begun: bool = False, **options: Any) -> set[str]:
        if begun:
            told.set()
            assert go.wait(10)
        return renew(*arguments, begun=begun, **options)

    monkeypatch.setattr(rig.store.deliveries, "renew", slow)
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(lambda e: None, name="keep", timeout=0.1))
    suspect = rig.claimed(lane.handler, Renamed(name="Ada"), lost=1, begun=False)
    pool.start()
    pool.offer(lane, [suspect])
    assert told.wait(10)
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 0.4)  # the store is away for a while
    go.set()
    eventually(lambda: rig.state(suspect) != "running")
    assert rig.state(suspect) == "succeeded"


def test_a_timeout_is_recorded_with_the_stack_and_the_slot_is_replaced(rig: Rig) -> None:
    gate, seen = Gate(), []

    def handle(event: Renamed) -> None:
        if event.number == 0:
            gate()
        seen.append(event.number)

    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(handle, timeout=0.1))
    pool.start()
    hung, *_ = rig.offer(pool, lane, some(3))
    eventually(lambda: len(rig.hand.finished) == 3)
    found = rig.store.deliveries.get(hung.delivery_id)
    assert found is not None
    assert found.state == "retrying"
    assert found.failures[0].error_type == "HandlerTimeout"
    assert "in handle" in found.failures[0].traceback
    assert seen == [1, 2]
    gate.open()


def test_the_late_result_of_a_hung_handler_is_dropped(rig: Rig) -> None:
    gate, late = Gate(), []

    def handle(event: Renamed) -> None:
        gate()
        try:
            rig.group.publish(Greeted(name="late"), immediate=True)
        except LeaseLost as error:
            late.append(error)

    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(handle, timeout=0.1))
    pool.start()
    (hung,) = rig.offer(pool, lane, [ADA])
    eventually(lambda: rig.state(hung) == "retrying")
    gate.open()
    eventually(lambda: late)
    eventually(lambda: not pool._hung)
    assert rig.state(hung) == "retrying"
    assert rig.hand.finished == [1]


def test_the_next_attempt_of_a_chunk_does_not_pay_for_the_one_before(rig: Rig) -> None:
    """The watchdog saw an overdue attempt; before it acts that one ends and the next begins."""
    handler = rig.handler(lambda e: None, name="keep", timeout=1.0)
    lane = Lane(handler, slots=1)
    attempts = [rig.arrived(handler, ADA) for _ in range(2)]
    job = Job(lane=lane, thread=threading.current_thread(), waiting=deque(attempts))
    job.next()
    job.since -= 5
    seen_at = time.monotonic()
    assert job.overdue(seen_at)
    job.end([])
    job.next()
    assert job.take_over(overdue_at=seen_at) is None
    assert job.end([])


def test_a_job_that_was_taken_over_takes_no_result_of_its_thread(rig: Rig) -> None:
    """Somebody else is settling it: a late result must not slip in among the others."""
    lane = Lane(rig.handler(lambda e: None, name="keep"), slots=1)
    attempt = rig.arrived(lane.handler, ADA)
    job = Job(lane=lane, thread=threading.current_thread(), waiting=deque([attempt]))
    job.next()
    assert job.take_over() == [attempt]
    rig.executor.read(attempt)
    assert not job.end([(attempt, rig.executor.run(attempt))])
    assert (job.settled, job.next(), job.take_over()) == ([], None, None)


def test_too_many_hung_threads_ask_for_a_new_process(rig: Rig) -> None:
    gate, asked = Gate(), threading.Event()
    pool = rig.pool(threads=1, on_surplus=asked.set)
    lane = pool.lane(rig.handler(gate, name="hang", timeout=0.01))
    pool.start()
    rig.offer(pool, lane, some(12))
    assert asked.wait(15)
    gate.open()


def test_threads_that_come_back_are_not_counted_as_hung(rig: Rig) -> None:
    gates: list[Gate] = []
    asked = threading.Event()

    def handle(event: Renamed) -> None:
        gates.append(Gate())
        gates[-1]()

    pool = rig.pool(threads=1, on_surplus=asked.set)
    lane = pool.lane(rig.handler(handle, timeout=0.01))
    pool.start()
    for number in range(12):
        rig.offer(pool, lane, [Renamed(name=str(number))])
        eventually(lambda n=number: len(rig.hand.finished) == len(gates) == n + 1)  # type: ignore[misc]
        gates[-1].open()
        eventually(lambda: not pool._hung)
    assert not asked.is_set()


def test_a_thread_that_cannot_settle_for_the_one_it_replaces_works_on(rig: Rig) -> None:
    gate, seen = Gate(), []

    def handle(event: Renamed) -> None:
        if event.number == 0:
            gate()
        seen.append(event.number)

    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(handle, timeout=0.1))
    settle = rig.settler.settle

    def fail_once(settled: Any) -> None:
        rig.settler.settle = settle  # type: ignore[method-assign]
        raise RuntimeError("a bug of ours")

    rig.settler.settle = fail_once  # type: ignore[method-assign]
    pool.start()
    rig.offer(pool, lane, some(3))
    eventually(lambda: seen == [1, 2])
    assert rig.hand.forgotten == [1]
    gate.open()


# --- batches --------------------------------------------------------------------------------------------


def test_a_batch_is_full_at_its_size(rig: Rig) -> None:
    sizes: list[int] = []
    pool = rig.pool()
    lane = pool.lane(rig.batch_handler(_noting(sizes), max_size=10, max_wait=60))
    pool.start()
    rig.offer(pool, lane, some(35))
    eventually(lambda: len(rig.hand.finished) == 30)
    assert sizes == [10, 10, 10]


def test_a_batch_that_is_not_full_goes_after_its_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    pool = rig.pool()
    # Longer than the watchdog looks on when it sees nothing to look after.
    monkeypatch.setattr(watchdog, "LINGERS", 1)
    lane = pool.lane(rig.batch_handler(_noting(sizes), max_size=10, max_wait=4 * watchdog.TICK))
    pool.start()
    rig.offer(pool, lane, some(3))
    eventually(lambda: len(rig.hand.finished) == 3)
    assert sum(sizes) == 3


def test_only_events_of_one_key_share_a_batch(rig: Rig) -> None:
    found: dict[Any, list[int]] = {}

    def count(batch: Batch[Renamed]) -> None:
        found.setdefault(batch.key, []).extend(event.number for event in batch.events)

    pool = rig.pool(threads=1)
    lane = pool.lane(rig.batch_handler(count, max_size=5, max_wait=0.05, group_by=lambda e: e.number % 3))
    pool.start()
    rig.offer(pool, lane, some(15))
    eventually(lambda: len(rig.hand.finished) == 15)
    assert found == {key: list(range(key, 15, 3)) for key in range(3)}


def test_group_by_is_asked_once_per_event(rig: Rig) -> None:
    asked: list[int] = []
    pool = rig.pool(threads=1)

    def group_by(event: Renamed) -> int:
        asked.append(event.number)
        return len(asked)

    lane = pool.lane(rig.batch_handler(_noting([]), max_size=1, max_wait=0.05, group_by=group_by))
    pool.start()
    rig.offer(pool, lane, some(3))
    eventually(lambda: len(rig.hand.finished) == 3)
    assert sorted(asked) == [0, 1, 2]


@pytest.mark.parametrize("key", [lambda e: [], lambda e: 1 / 0], ids=["unhashable", "raises"])
def test_what_cannot_be_grouped_fails_alone(rig: Rig, key: Any) -> None:
    sizes: list[int] = []
    pool = rig.pool(threads=1)
    lane = pool.lane(
        rig.batch_handler(
            _noting(sizes), max_size=2, max_wait=0.05, group_by=lambda e: key(e) if e.number == 1 else 0
        )
    )
    attempts = rig.offer(pool, lane, some(3))
    pool.start()
    eventually(lambda: len(rig.hand.finished) == 3)
    assert [rig.state(attempt) for attempt in attempts] == ["succeeded", "retrying", "succeeded"]


def test_unreadable_messages_do_not_enter_a_batch(rig: Rig) -> None:
    sizes: list[int] = []
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.batch_handler(_noting(sizes), max_size=2, max_wait=0.05))
    bad = rig.arrived(lane.handler, b"no json")
    pool.offer(lane, [rig.arrived(lane.handler, ADA), bad, rig.arrived(lane.handler, ADA)])
    pool.start()
    eventually(lambda: len(rig.hand.finished) == 3)
    assert (rig.state(bad), sizes) == ("dead", [2])


def test_only_the_failed_items_of_a_batch_are_not_succeeded(rig: Rig) -> None:
    def count(batch: Batch[Renamed]) -> None:
        rig.group.publish(Greeted(name="counted"))
        batch.fail(batch.events[0], Reject("bad"))
        batch.fail(batch.events[1], ValueError("later"))

    pool = rig.pool(threads=1)
    lane = pool.lane(rig.batch_handler(count, max_size=3, max_wait=60))
    attempts = rig.offer(pool, lane, some(3))
    pool.start()
    eventually(lambda: len(rig.hand.finished) == 3)
    assert [rig.state(attempt) for attempt in attempts] == ["dead", "retrying", "succeeded"]
    assert [event.name for event in rig.dispatched] == ["RigUser.greeted"]


def test_a_batch_that_hangs_fails_with_all_its_items(rig: Rig) -> None:
    gate = Gate()
    pool = rig.pool(threads=1)

    def count(batch: Batch[Renamed]) -> None:
        gate()

    lane = pool.lane(rig.batch_handler(count, max_size=3, max_wait=60, timeout=0.1))
    attempts = rig.offer(pool, lane, some(3))
    pool.start()
    eventually(lambda: [rig.state(attempt) for attempt in attempts] == ["retrying"] * 3)
    gate.open()


# --- stopping -------------------------------------------------------------------------------------------


def test_a_drain_gives_back_what_has_not_run_and_lets_the_rest_end(rig: Rig, before: Any) -> None:
    gate = Gate()
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(gate, name="wait"))
    running, *waiting = rig.offer(pool, lane, some(5))
    pool.start()
    gate.await_entry()
    threading.Timer(0.1, gate.open).start()
    unrun = pool.drain(grace=10)
    assert {id(attempt) for attempt in unrun} == {id(attempt) for attempt in waiting}
    assert rig.state(running) == "succeeded"
    assert rig.hand.finished == [1]
    assert sorted(rig.hand.released) == [2, 3, 4, 5]
    eventually(lambda: ended(before))


def test_what_waits_is_given_back_before_the_grace_begins(rig: Rig) -> None:
    gate = Gate()
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(gate, name="wait"))
    rig.offer(pool, lane, some(5))
    pool.start()
    gate.await_entry()
    drain = threading.Thread(target=pool.drain, kwargs={"grace": 30})
    drain.start()
    eventually(lambda: sorted(rig.hand.released) == [2, 3, 4, 5])
    assert drain.is_alive()
    gate.open()
    drain.join(10)


def test_when_the_grace_is_over_a_handler_is_left_behind_without_a_say(rig: Rig, before: Any) -> None:
    gate = Gate()
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(gate, name="wait"))
    (running,) = rig.offer(pool, lane, [ADA])
    pool.start()
    gate.await_entry()
    assert pool.drain(grace=0.05) == [running]
    assert running.handling is not None
    assert running.handling.abandoned
    gate.open()
    eventually(lambda: ended(before))
    assert (rig.state(running), rig.hand.finished) == (None, [])


def test_a_drain_records_what_a_chunk_had_finished_before_it_hung(rig: Rig) -> None:
    gate, seen = Gate(), []

    def handle(event: Renamed) -> None:
        if event.number == 2:
            gate()
        seen.append(event.number)

    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(handle))
    lane.pace = 1e-9
    attempts = rig.offer(pool, lane, some(5))
    pool.start()
    gate.await_entry()
    unrun = pool.drain(grace=0.05)
    assert [rig.state(attempt) for attempt in attempts] == ["succeeded", "succeeded", None, None, None]
    assert {id(each) for each in unrun} == {id(each) for each in attempts[2:]}
    assert rig.hand.finished == [1, 2]
    gate.open()


def test_what_a_thread_is_just_admitting_when_the_drain_begins_is_not_run_as_well(rig: Rig) -> None:
    gate, seen = Gate(), []
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(lambda e: seen.append(e.number), name="keep"))
    admit = rig.settler.admit

    def slowly(attempts: Any) -> list[Attempt]:
        gate()
        return admit(attempts)

    rig.settler.admit = slowly  # type: ignore[method-assign]
    attempts = rig.offer(pool, lane, some(3))
    pool.start()
    gate.await_entry()
    threading.Timer(0.2, gate.open).start()
    unrun = pool.drain(grace=10)
    assert {id(each) for each in unrun} == {id(each) for each in attempts}
    assert (seen, sorted(rig.hand.released), rig.hand.finished) == ([], [1, 2, 3], [])


def test_what_a_batch_had_collected_is_given_back(rig: Rig) -> None:
    sizes: list[int] = []
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.batch_handler(_noting(sizes), max_size=10, max_wait=60))
    rig.offer(pool, lane, some(3))
    pool.start()
    assert lane.collector is not None
    eventually(lambda: lane.collector and lane.collector._buckets and not pool._jobs)
    assert len(pool.drain(grace=5)) == 3
    assert (sorted(rig.hand.released), sizes) == ([1, 2, 3], [])


def test_what_arrives_after_the_drain_goes_back_at_once(rig: Rig) -> None:
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(lambda e: None, name="keep"))
    pool.start()
    pool.drain(grace=1)
    late = rig.offer(pool, lane, [ADA])
    claimed = rig.claimed(lane.handler, ADA)
    pool.offer(lane, [claimed])
    assert rig.hand.released == [1]
    assert pool.leftovers() == [*late, claimed]
    assert pool.leftovers() == []


def test_a_drain_while_the_store_is_away_ends_and_acknowledges_nothing(rig: Rig, before: Any) -> None:
    pool = rig.pool(threads=1)

    def handle(event: Renamed) -> None:
        rig.store.unavailable = True

    lane = pool.lane(rig.handler(handle))
    pool.start()
    rig.offer(pool, lane, [ADA])
    eventually(lambda: rig.store.unavailable)
    pool.drain(grace=0.1)
    eventually(lambda: ended(before))
    assert (rig.hand.finished, rig.hand.forgotten) == ([], [1])


def test_a_pool_that_was_never_started_can_be_drained(rig: Rig) -> None:
    pool = rig.pool()
    lane = pool.lane(rig.handler(lambda e: None, name="keep"))
    rig.offer(pool, lane, some(2))
    assert len(pool.drain(grace=5)) == 2


def test_nothing_is_lost_or_run_twice_when_many_threads_are_stopped_at_any_moment(rig: Rig) -> None:
    for _ in range(15):
        rig = Rig()
        seen: list[int] = []
        pool = rig.pool(threads=4)
        lane = pool.lane(rig.handler(lambda e, seen=seen: seen.append(e.number), name="keep"))
        pool.start()
        attempts = rig.offer(pool, lane, some(400))
        eventually(lambda seen=seen: len(seen) > 20)  # type: ignore[misc]
        unrun = pool.drain(grace=10)
        assert len(seen) == len(set(seen))
        assert len(unrun) + len(seen) == len(attempts)
        assert sorted([*rig.hand.finished, *rig.hand.released]) == list(range(1, 401))


def test_taking_a_stack_leaves_the_collector_as_it_was(rig: Rig) -> None:
    thread = threading.current_thread()
    try:
        assert "test_taking_a_stack" in module._stack_of(thread)
        assert gc.isenabled()
        gc.disable()
        assert module._stack_of(thread)
        assert not gc.isenabled()
    finally:
        gc.enable()


# --- pausing --------------------------------------------------------------------------------------------


def test_a_paused_lane_begins_nothing_and_returns_what_waits(rig: Rig) -> None:
    gate = Gate()
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(gate, name="slow"))
    other: list[str] = []
    free = pool.lane(rig.handler(lambda e: other.append(e.name), name="other"))
    lane.consumptions.append(rig.hand)
    lane.pace = 1e-6  # one thread takes all of them at once
    attempts = rig.offer(pool, lane, some(5))
    pool.start()
    gate.await_entry()
    waiting = pool.pause(lane)
    assert {attempt.event_id for attempt in waiting} == {attempt.event_id for attempt in attempts[1:]}
    assert rig.hand.windows == [0]
    gate.open()
    rig.offer(pool, free, [ADA])
    eventually(lambda: other == ["Ada"])
    eventually(lambda: rig.state(attempts[0]) == "succeeded")
    assert [rig.state(attempt) for attempt in attempts[1:]] == [None] * 4
    assert pool.waiting == 0


def test_a_lane_that_stands_in_the_queue_can_be_paused(rig: Rig) -> None:
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(lambda e: None, name="keep"))
    rig.offer(pool, lane, some(3))
    assert len(pool.pause(lane)) == 3
    assert pool.pause(lane) == []
    pool.start()
    assert pool.busy() == []


def test_what_arrives_at_a_paused_lane_goes_back_to_the_broker_and_claimed_ones_stay(rig: Rig) -> None:
    seen: list[str] = []
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(lambda e: seen.append(e.name), name="keep"))
    lane.consumptions.append(rig.hand)
    pool.start()
    pool.pause(lane)
    [arrived] = rig.offer(pool, lane, [ADA])
    pool.offer(lane, [rig.claimed(lane.handler, Renamed(name="Eve"))])
    assert arrived.message is not None
    assert rig.hand.released == [arrived.message.sequence]
    other: list[str] = []
    rig.offer(pool, pool.lane(rig.handler(lambda e: other.append(e.name), name="other")), [ADA])
    eventually(lambda: other == ["Ada"])
    assert (pool.waiting, seen) == (1, [])
    pool.resume(lane)
    eventually(lambda: seen == ["Eve"])
    assert rig.hand.windows[:2] == [0, 2]
    rig.offer(pool, lane, [ADA])
    eventually(lambda: seen == ["Eve", "Ada"])


def test_a_paused_batch_handler_returns_what_it_has_collected(rig: Rig) -> None:
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.batch_handler(lambda b: None, name="collect", max_size=10, max_wait=60.0))
    rig.offer(pool, lane, some(3))
    pool.start()
    assert lane.collector is not None
    eventually(lambda: not pool.waiting and not pool.busy())
    collected: list[Attempt] = []
    eventually(lambda: collected.extend(pool.pause(lane)) or len(collected) == 3)


def test_the_pace_of_a_paused_lane_asks_the_broker_for_nothing(rig: Rig) -> None:
    gate = Gate()
    pool = rig.pool(threads=1)
    lane = pool.lane(rig.handler(gate, name="slow"))
    lane.consumptions.append(rig.hand)
    [attempt] = rig.offer(pool, lane, [ADA])
    pool.start()
    gate.await_entry()
    pool.pause(lane)
    gate.open()
    eventually(lambda: rig.state(attempt) == "succeeded")
    assert set(rig.hand.windows) == {0}
