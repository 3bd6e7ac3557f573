"""Group commit: who writes what, who waits for whom, and what an interrupted or late caller leaves behind."""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from eventdriven_sync.stores.connection import GroupCommit
from eventdriven_sync.stores.mongo_errors import Unanswered
from tests.polling import eventually

PLENTY = 10.0


class Server:
    """Stands for the database: notes each write, holds it until it is let go, answers as it is told."""

    def __init__(self) -> None:
        self.writes: list[list[str]] = []
        self.threads: list[int] = []
        self.answers: dict[int, Callable[[Sequence[str]], Any]] = {}
        self._gates: dict[int, threading.Event] = {}

    def hold(self, number: int) -> threading.Event:
        """The write of this number waits until the event is set."""
        return self._gates.setdefault(number, threading.Event())

    def __call__(self, items: Sequence[str], deadline: float) -> list[Any]:
        number = len(self.writes)
        self.writes.append(list(items))
        self.threads.append(threading.get_ident())
        if number in self._gates:
            assert self._gates[number].wait(PLENTY)
        if number in self.answers:
            return list(self.answers[number](items))
        return [f"stored {item}" for item in items]


class Callers:
    """Threads that submit, one each."""

    def __init__(self, commit: GroupCommit[str, Any], server: Server) -> None:
        self.commit = commit
        self.server = server
        self.pool = ThreadPoolExecutor(40)
        self.begun = 0

    def writing(self, *items: str, timeout: float = PLENTY) -> Future[Any]:
        """A caller that is writing when this returns."""
        before = len(self.server.writes)
        future = self.pool.submit(self.commit.submit, items, size=len(items), timeout=timeout)
        eventually(lambda: len(self.server.writes) > before)
        return future

    def queued(self, *items: str, timeout: float = PLENTY, size: int = 1) -> Future[Any]:
        """A caller that is queued when this returns."""
        before = len(self.commit._queue)
        future = self.pool.submit(self.commit.submit, items, size=size, timeout=timeout)
        eventually(lambda: len(self.commit._queue) > before)
        return future


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def commit(server: Server) -> GroupCommit[str, Any]:
    return GroupCommit(server, max_items=10, max_bytes=100)


@pytest.fixture
def callers(commit: GroupCommit[str, Any], server: Server) -> Any:
    crowd = Callers(commit, server)
    yield crowd
    crowd.pool.shutdown()


def idle(commit: GroupCommit[str, Any]) -> bool:
    return commit._writer is None and not commit._queue and not commit._batch


def interrupted(batch: object) -> Any:
    raise KeyboardInterrupt


def test_a_lone_caller_writes_in_its_own_thread(commit: GroupCommit[str, Any], server: Server) -> None:
    assert commit.submit(["a", "b"], size=2, timeout=PLENTY) == ["stored a", "stored b"]
    assert server.writes == [["a", "b"]]
    assert server.threads == [threading.get_ident()]
    assert idle(commit)


def test_callers_that_came_during_a_write_share_the_next(callers: Callers, server: Server) -> None:
    go = server.hold(0)
    first = callers.writing("a")
    others = [callers.queued(item) for item in "bcd"]
    go.set()
    assert [each.result(PLENTY) for each in (first, *others)] == [[f"stored {item}"] for item in "abcd"]
    assert server.writes == [["a"], ["b", "c", "d"]]
    assert len(set(server.threads)) == 2
    eventually(lambda: idle(callers.commit))


def test_a_writer_waits_for_the_callers_of_the_last_write(callers: Callers, server: Server) -> None:
    go = server.hold(0)
    futures = [callers.writing("a"), callers.queued("b"), callers.queued("c")]
    go.set()
    assert all(each.result(PLENTY) for each in futures)
    eventually(lambda: idle(callers.commit))
    callers.commit._took, callers.commit._ended = PLENTY, time.monotonic()
    first = callers.pool.submit(callers.commit.submit, ["d"], size=1, timeout=PLENTY)
    eventually(lambda: callers.commit._gathering)
    second = callers.pool.submit(callers.commit.submit, ["e"], size=1, timeout=PLENTY)
    assert [first.result(PLENTY / 2), second.result(PLENTY / 2)] == [["stored d"], ["stored e"]]
    assert server.writes == [["a"], ["b", "c"], ["d", "e"]]


def test_a_writer_waits_no_longer_than_one_more_caller_is_worth(
    commit: GroupCommit[str, Any], server: Server
) -> None:
    commit._callers, commit._took, commit._ended = 8, 0.05, time.monotonic()
    began = time.monotonic()
    assert commit.submit(["a"], size=1, timeout=PLENTY) == ["stored a"]
    assert time.monotonic() - began >= 0.05
    assert commit._callers == 1  # and the next lone caller does not wait


def test_long_after_a_write_nobody_waits_for_its_callers(
    commit: GroupCommit[str, Any], server: Server
) -> None:
    commit._callers, commit._took, commit._ended = 8, PLENTY, time.monotonic() - PLENTY - 1
    began = time.monotonic()
    assert commit.submit(["a"], size=1, timeout=PLENTY) == ["stored a"]
    assert time.monotonic() - began < PLENTY / 8, "what one more caller would have been worth"


def test_a_batch_is_bounded_by_items(callers: Callers, server: Server) -> None:
    go = server.hold(0)
    futures = [callers.writing("a")]
    futures += [callers.queued(*(f"{i}.{j}" for j in range(4))) for i in range(3)]
    go.set()
    assert all(each.result(PLENTY) for each in futures)
    assert [len(write) for write in server.writes] == [1, 8, 4]


def test_a_batch_is_bounded_by_bytes_and_one_large_caller_is_written_alone(
    callers: Callers, server: Server
) -> None:
    go = server.hold(0)
    futures = [callers.writing("a")]
    futures += [
        callers.queued(item, size=size) for item, size in (("b", 60), ("c", 60), ("d", 1000), ("e", 1))
    ]
    go.set()
    assert all(each.result(PLENTY) for each in futures)
    assert server.writes == [["a"], ["b"], ["c"], ["d"], ["e"]]


def test_each_caller_gets_its_own_error(callers: Callers, server: Server) -> None:
    go = server.hold(0)
    callers.writing("a")
    bad, good = callers.queued("b"), callers.queued("c")
    server.answers[1] = lambda batch: [ValueError("b is bad"), "fine"]
    go.set()
    assert good.result(PLENTY) == ["fine"]
    with pytest.raises(ValueError, match="b is bad"):
        bad.result(PLENTY)


def test_an_error_of_the_whole_write_goes_to_every_caller(callers: Callers, server: Server) -> None:
    go = server.hold(0)
    callers.writing("a")
    others = [callers.queued("b"), callers.queued("c")]
    server.answers[1] = lambda batch: 1 / 0
    go.set()
    for each in others:
        with pytest.raises(ZeroDivisionError):
            each.result(PLENTY)
    eventually(lambda: idle(callers.commit))


def test_a_caller_whose_time_ends_in_the_queue_is_withdrawn(callers: Callers, server: Server) -> None:
    go = server.hold(0)
    first = callers.writing("a")
    late, patient = callers.queued("b", timeout=0.5), callers.queued("c")
    with pytest.raises(Unanswered) as error:
        late.result(PLENTY)
    assert not error.value.sent
    go.set()
    assert first.result(PLENTY)
    assert patient.result(PLENTY)
    assert server.writes == [["a"], ["c"]]


def test_a_caller_whose_time_ends_while_it_is_written_does_not_know(callers: Callers, server: Server) -> None:
    go, later = server.hold(0), server.hold(1)
    callers.writing("a")
    patient = callers.queued("b")
    late = callers.queued("c", timeout=0.5)
    go.set()
    with pytest.raises(Unanswered) as error:
        late.result(PLENTY)
    assert server.writes == [["a"], ["b", "c"]]
    assert error.value.sent
    later.set()
    assert patient.result(PLENTY) == ["stored b"]
    eventually(lambda: idle(callers.commit))


def test_an_interrupted_writer_hands_on_what_it_took(callers: Callers, server: Server) -> None:
    go = server.hold(0)
    callers.writing("a")
    writer, *others = [callers.queued(item) for item in "bcd"]
    server.answers[1] = interrupted
    go.set()
    with pytest.raises(KeyboardInterrupt):
        writer.result(PLENTY)
    assert [each.result(PLENTY) for each in others] == [["stored c"], ["stored d"]]
    assert server.writes == [["a"], ["b", "c", "d"], ["c", "d"]]
    eventually(lambda: idle(callers.commit))


def test_after_an_interrupted_write_nobody_says_that_nothing_was_sent(
    callers: Callers, server: Server
) -> None:
    go = server.hold(0)
    callers.writing("a")
    writer, follower = callers.queued("b"), callers.queued("c")
    server.answers[1] = interrupted

    def nothing_sent(batch: object) -> Any:
        raise Unanswered(sent=False)

    server.answers[2] = nothing_sent
    go.set()
    with pytest.raises(KeyboardInterrupt):
        writer.result(PLENTY)
    with pytest.raises(Unanswered) as error:
        follower.result(PLENTY)
    assert error.value.sent


def test_an_interrupted_caller_leaves_the_queue(callers: Callers, server: Server) -> None:
    go = server.hold(0)
    first = callers.writing("a")

    def interrupt() -> None:
        eventually(lambda: callers.commit._queue)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    callers.pool.submit(interrupt)
    with pytest.raises(KeyboardInterrupt):
        callers.commit.submit(["mine"], size=1, timeout=PLENTY)
    go.set()
    assert first.result(PLENTY)
    assert callers.commit.submit(["next"], size=1, timeout=PLENTY)
    assert server.writes == [["a"], ["next"]]


def test_when_the_writers_time_is_over_those_with_time_left_go_on(callers: Callers, server: Server) -> None:
    go = server.hold(0)
    callers.writing("a")
    writer, patient = callers.queued("b"), callers.queued("c")

    def unanswered(batch: object) -> Any:
        raise Unanswered(sent=True, cause=OSError("gone"))

    server.answers[1] = unanswered
    go.set()
    with pytest.raises(Unanswered) as error:
        writer.result(PLENTY)
    assert error.value.sent
    assert isinstance(error.value.cause, OSError)
    assert patient.result(PLENTY) == ["stored c"]
    assert server.writes == [["a"], ["b", "c"], ["c"]]


def test_who_has_hardly_time_left_when_a_writer_gives_up_does_not_try_by_itself(
    callers: Callers, server: Server
) -> None:
    go = server.hold(0)
    callers.writing("a")
    writer, hurried = callers.queued("b"), callers.queued("c", timeout=0.4)

    def unanswered(batch: object) -> Any:
        raise Unanswered(sent=True)

    server.answers[1] = server.answers[2] = unanswered
    go.set()
    for each in (writer, hurried):
        with pytest.raises(Unanswered):
            each.result(PLENTY)
    assert server.writes == [["a"], ["b", "c"]]


def test_a_writer_that_never_hands_over_is_replaced(
    callers: Callers, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventdriven_sync.stores.connection._OVERDUE", 0.0)
    stuck = server.hold(0)
    first = callers.writing("a", timeout=0.05)
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 0.1)
    assert callers.commit.submit(["b"], size=1, timeout=PLENTY) == ["stored b"]
    stuck.set()
    assert first.result(PLENTY) == ["stored a"]
    assert callers.commit.submit(["c"], size=1, timeout=PLENTY) == ["stored c"]
    eventually(lambda: idle(callers.commit))


def test_nothing_is_lost_or_mixed_up_while_writers_are_interrupted_all_the_time(
    callers: Callers, server: Server
) -> None:
    for number in range(7, 3000, 7):
        server.answers[number] = interrupted

    def work(name: int) -> int:
        done = 0
        for turn in range(60):
            item = f"{name}.{turn}"
            try:
                assert callers.commit.submit([item], size=1, timeout=PLENTY) == [f"stored {item}"]
                done += 1
            except KeyboardInterrupt:
                continue
        return done

    finished = sum(future.result(30) for future in [callers.pool.submit(work, i) for i in range(16)])
    assert 16 * 60 > finished > 16 * 40
    assert idle(callers.commit)
