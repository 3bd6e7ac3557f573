"""What has ended is settled in batches, by one thread at a time, and nobody waits for another's batch."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from eventdriven_sync import settling as module
from eventdriven_sync.attempt import Attempt
from eventdriven_sync.settling import Settled, Unsettled
from tests.polling import eventually
from tests.unit.rig import Renamed, Rig


class Desk:
    """Settles when it is let, and notes the sizes of what it was given."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.entered = threading.Semaphore(0)
        self.going = threading.Event()
        self.error: BaseException | None = None
        self.given_up: list[tuple[int, BaseException]] = []
        self.empty = 0
        self.unsettled = Unsettled(self._settle, give_up=self._give_up, on_empty=self._on_empty)

    def _settle(self, settled: Sequence[Settled]) -> None:
        self.entered.release()
        assert self.going.wait(10)
        if self.error is not None:
            raise self.error
        self.batches.append(len(settled))

    def _give_up(self, attempts: Sequence[Attempt], error: BaseException) -> None:
        self.given_up.append((len(attempts), error))

    def _on_empty(self) -> None:
        self.empty += 1


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def ended() -> Iterator[Callable[[int], list[Settled]]]:
    rig = Rig()
    handler = rig.handler(lambda e: None, name="keep")

    def some(count: int) -> list[Settled]:
        attempts = [rig.arrived(handler, Renamed(name="Ada")) for _ in range(count)]
        for attempt in attempts:
            rig.executor.read(attempt)
        return [(attempt, rig.executor.settlement(attempt, None)) for attempt in attempts]

    yield some
    rig.close()


def run(step: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    return thread


def test_what_is_left_while_somebody_settles_is_the_next_batch(desk: Desk, ended: Any) -> None:
    desk.unsettled.leave(ended(1))
    settling = run(desk.unsettled.work_off)
    assert desk.entered.acquire(timeout=10)
    for _ in range(3):
        desk.unsettled.leave(ended(2))
        desk.unsettled.work_off()  # returns at once: there is one that does it
    assert not desk.unsettled.empty
    desk.going.set()
    settling.join(10)
    assert (desk.batches, desk.unsettled.empty, desk.empty) == ([1, 6], True, 1)


def test_a_batch_is_bounded_and_what_one_thread_left_stays_together(
    desk: Desk, ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BATCH", 4)
    desk.going.set()
    for count in (3, 2, 6, 1):
        desk.unsettled.leave(ended(count))
    desk.unsettled.work_off()
    assert desk.batches == [3, 2, 6, 1]


def test_much_is_encoded_by_a_second_thread_and_never_by_a_third(
    desk: Desk, ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WORTH_ANOTHER", 3)
    threads = []
    for count in (1, 3):
        desk.unsettled.leave(ended(count))
        threads.append(run(desk.unsettled.work_off))
        assert desk.entered.acquire(timeout=10)
    desk.unsettled.leave(ended(5))
    desk.unsettled.work_off()  # returns at once: two are at it
    assert not desk.entered.acquire(timeout=0.1)
    desk.going.set()
    for thread in threads:
        thread.join(10)
    assert sorted(desk.batches) == [1, 3, 5]


def test_what_cannot_be_settled_is_given_up_and_the_rest_goes_on(desk: Desk, ended: Any) -> None:
    desk.error = SystemExit("no")
    desk.going.set()
    desk.unsettled.leave(ended(2))
    desk.unsettled.work_off()
    assert desk.given_up == [(2, desk.error)]
    assert desk.unsettled.empty
    desk.error = None
    desk.unsettled.leave(ended(1))
    desk.unsettled.work_off()
    assert desk.batches == [1]


def test_threads_wait_while_too_much_is_unsettled(
    desk: Desk, ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    desk.unsettled.leave(ended(2))
    settling = run(desk.unsettled.work_off)
    assert desk.entered.acquire(timeout=10)
    leaving = run(lambda: desk.unsettled.leave(ended(1)))
    leaving.join(0.2)
    assert leaving.is_alive()
    desk.going.set()
    leaving.join(10)
    settling.join(10)
    desk.unsettled.work_off()
    assert sum(desk.batches) == 3


def test_nothing_is_nothing_to_settle(desk: Desk) -> None:
    desk.unsettled.leave([])
    desk.unsettled.work_off()
    assert (desk.batches, desk.unsettled.empty, desk.empty) == ([], True, 0)


def test_many_threads_settle_everything_once(desk: Desk, ended: Any) -> None:
    desk.going.set()

    def work() -> None:
        for _ in range(50):
            desk.unsettled.leave(ended(1))
            desk.unsettled.work_off()

    threads = [run(work) for _ in range(8)]
    for thread in threads:
        thread.join(20)
    eventually(lambda: desk.unsettled.empty)
    assert sum(desk.batches) == 400
