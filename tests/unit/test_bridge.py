import asyncio
import gc
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest

from eventdriven_sync.brokers import bridge as module
from eventdriven_sync.brokers import link as link_module
from eventdriven_sync.brokers.bridge import THREAD_NAME, Bridge, join
from eventdriven_sync.brokers.link import Link
from eventdriven_sync.brokers.wire import Message
from eventdriven_sync.errors import Closed, ConfigurationError
from tests.polling import eventually


class User:
    """Somebody who uses the bridge and remembers that it was closed at exit."""

    def __init__(self) -> None:
        self.closed_with: float | None = None

    def close(self, *, timeout: float) -> None:
        self.closed_with = timeout


@pytest.fixture
def user() -> User:
    return User()


@pytest.fixture
def bridge(user: User) -> Iterator[Bridge]:
    running = join(user)
    yield running
    for other in running.users():
        running.leave(other, timeout=5)


async def answer(value: object) -> object:
    return value


def test_a_call_returns_the_result_of_its_coroutine(bridge: Bridge) -> None:
    assert bridge.call(answer(42), timeout=5) == 42


def test_a_call_raises_what_its_coroutine_raises(bridge: Bridge) -> None:
    async def fail() -> None:
        raise LookupError("nothing here")

    with pytest.raises(LookupError, match="nothing here"):
        bridge.call(fail(), timeout=5)


def test_a_call_that_times_out_leaves_no_coroutine_running(bridge: Bridge) -> None:
    ended = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        bridge.call(endless(), timeout=0.1)
    assert time.monotonic() - began < 2
    assert ended.wait(5)
    eventually(lambda: bridge.call(count_tasks(), timeout=5) == 0)


async def count_tasks() -> int:
    own = {"_answer", "count_tasks"}
    return sum(task.get_coro().__name__ not in own for task in asyncio.all_tasks())  # type: ignore[union-attr]


def test_a_coroutine_that_swallows_cancellations_is_cancelled_again(bridge: Bridge) -> None:
    ended = threading.Event()

    async def stubborn() -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue
        ended.set()

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        bridge.call(stubborn(), timeout=0.1)
    assert time.monotonic() - began < 2
    assert ended.wait(5)


def test_a_call_ends_in_time_although_the_loop_is_busy(bridge: Bridge) -> None:
    release = threading.Event()
    bridge.post(partial(release.wait, 10))
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that was never awaited
        with pytest.raises(TimeoutError):
            bridge.call(answer(1), timeout=0.1)
        assert time.monotonic() - began < 2
        release.set()
        assert bridge.call(answer(2), timeout=5) == 2
        gc.collect()


def test_a_blocking_call_on_the_loops_own_thread_is_refused(bridge: Bridge) -> None:
    errors: list[BaseException] = []

    def call() -> None:
        try:
            bridge.call(answer(1), timeout=1)
        except ConfigurationError as error:
            errors.append(error)

    bridge.post(call)
    eventually(lambda: errors)
    assert "would wait for itself" in str(errors[0])


def test_posts_run_in_order_with_few_wake_ups(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    wake_ups: list[object] = []
    wake = bridge._loop.call_soon_threadsafe
    monkeypatch.setattr(bridge._loop, "call_soon_threadsafe", lambda *a: (wake_ups.append(a), wake(*a))[1])
    release = threading.Event()
    ran: list[int] = []
    bridge.post(partial(release.wait, 10))
    for number in range(1000):
        bridge.post(partial(ran.append, number))
    release.set()
    eventually(lambda: len(ran) == 1000)
    assert ran == list(range(1000))
    assert len(wake_ups) < 10


def test_an_action_that_fails_does_not_stop_the_others(bridge: Bridge) -> None:
    ran: list[str] = []

    def fail() -> None:
        raise RuntimeError("boom")

    bridge.post(fail)
    bridge.post(partial(ran.append, "next"))
    assert eventually(lambda: ran) == ["next"]


def test_a_system_exit_on_the_loop_does_not_end_it(bridge: Bridge) -> None:
    def leave() -> None:
        raise SystemExit(3)

    bridge.post(leave)
    assert eventually(lambda: bridge.call(answer("here"), timeout=5)) == "here"


def test_users_share_one_thread_which_ends_with_the_last_of_them(bridge: Bridge, user: User) -> None:
    other = User()
    assert join(other) is bridge
    assert loop_threads() == 1
    bridge.leave(user, timeout=5)
    assert bridge.call(answer(1), timeout=5) == 1
    bridge.leave(other, timeout=5)
    assert loop_threads() == 0


def loop_threads() -> int:
    return sum(thread.name == THREAD_NAME for thread in threading.enumerate())


def test_a_closed_bridge_refuses_calls_and_drops_posts(bridge: Bridge, user: User) -> None:
    bridge.leave(user, timeout=5)
    bridge.post(lambda: pytest.fail("ran"))
    with pytest.raises(Closed):
        bridge.call(answer(1), timeout=1)


def test_after_the_last_user_left_the_next_gets_a_new_bridge(bridge: Bridge, user: User) -> None:
    bridge.leave(user, timeout=5)
    fresh = join(user)
    try:
        assert fresh is not bridge
        assert fresh.call(answer(1), timeout=5) == 1
    finally:
        fresh.leave(user, timeout=5)


def test_threads_that_join_at_once_get_the_same_bridge() -> None:
    users = [User() for _ in range(16)]
    found: list[Bridge] = []
    threads = [threading.Thread(target=lambda u=u: found.append(join(u))) for u in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(set(map(id, found))) == 1
    assert loop_threads() == 1
    for joined in users:
        found[0].leave(joined, timeout=5)


def test_users_are_closed_when_the_process_exits(bridge: Bridge, user: User) -> None:
    module._at_exit()
    assert user.closed_with is not None
    assert user.closed_with <= module.EXIT_TIMEOUT


def test_a_forked_child_gets_its_own_loop_and_leaves_the_parents_alone(bridge: Bridge, user: User) -> None:
    def child() -> bool:
        bridge.post(lambda: None)
        if bridge._posted or bridge not in module._graveyard or module._shared:
            return False
        try:
            bridge.call(answer(1), timeout=1)
        except Closed:
            own = join(user)
            return own is not bridge and own.call(answer("child"), timeout=5) == "child"
        return False

    for _ in range(3):
        assert in_a_forked_child(child) == 0
    assert bridge.call(answer("parent"), timeout=5) == "parent"


def test_a_fork_that_python_does_not_know_of_is_noticed_by_its_process_id(
    bridge: Bridge, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child() -> bool:
        # As if the hook had not run.
        module._shared["bridge"] = bridge
        return join(user) is not bridge

    assert in_a_forked_child(child) == 0
    assert bridge.call(answer("parent"), timeout=5) == "parent"


def in_a_forked_child(check: Callable[[], bool]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, on purpose
        pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Session:
    """A connection that lives until told otherwise."""

    def __init__(self) -> None:
        self.alive = True
        self.answers = True
        self.takes_at_once = False
        self.pieces: list[list[bytes]] = []
        self.sent: list[bytes] = []
        self.discarded = False

    def hand_over_now(self, messages: Sequence[Message]) -> bool:
        payloads = [payload for _, payload, _, _ in messages]
        if b"bad" in payloads:
            raise ValueError("cannot be sent")
        if self.takes_at_once:
            self.pieces.append(payloads)
            self.sent += payloads
        return self.takes_at_once

    async def hand_over(self, messages: Sequence[Message]) -> None:
        payloads = [payload for _, payload, _, _ in messages]
        if b"bad" in payloads:
            raise ValueError("cannot be sent")
        self.sent += payloads

    async def ended(self, timeout: float) -> None:
        while self.alive:
            await asyncio.sleep(0.01)

    async def rtt(self, timeout: int) -> float:
        if not self.answers:
            raise TimeoutError
        return 0.0

    async def discard(self) -> None:
        self.discarded = True


class Server:
    """Builds sessions for a link, and records what the link reports."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.errors: list[str] = []
        self.refuse = 0
        self.downs = 0

    async def connect(self) -> Session:
        if self.refuse:
            self.refuse -= 1
            raise OSError("refused")
        self.sessions.append(Session())
        return self.sessions[-1]

    async def up(self, session: Session) -> None:
        pass

    def down(self) -> None:
        self.downs += 1


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def link(bridge: Bridge, server: Server, monkeypatch: pytest.MonkeyPatch) -> Link[Session]:
    monkeypatch.setattr(link_module, "_PROBE_EVERY", 0.05)
    monkeypatch.setattr(link_module, "_WATCH_EVERY", 60.0)  # a session tells by itself that it ended
    made: Link[Session] = Link(
        server.connect,
        on_up=server.up,
        on_down=server.down,
        on_error=lambda error: server.errors.append(str(error)),
    )
    bridge.post(lambda: bridge._loop.create_task(made.run()))
    return made


def test_a_link_tries_until_it_is_connected(server: Server, link: Link[Session]) -> None:
    server.refuse = 3
    eventually(lambda: link.session)
    eventually(lambda: link.down_for == 0.0)
    assert link.rebuilt == 0


def send_all(link: Link[Session], *payloads: bytes) -> None:
    for payload in payloads:
        link.send("s", payload)


def await_sent(session: Session, *payloads: bytes) -> None:
    """All of these have been sent, in this order."""
    eventually(lambda: len(session.sent) == len(payloads))
    assert session.sent == list(payloads)


def test_what_is_sent_in_one_turn_goes_out_in_one_piece(
    bridge: Bridge, server: Server, link: Link[Session]
) -> None:
    session = eventually(lambda: link.session)
    session.takes_at_once = True
    bridge.post(partial(send_all, link, b"a", b"b", b"c"))
    await_sent(session, b"a", b"b", b"c")
    bridge.post(partial(send_all, link, b"d"))
    await_sent(session, b"a", b"b", b"c", b"d")
    assert session.pieces == [[b"a", b"b", b"c"], [b"d"]]


def test_what_the_socket_takes_only_later_overtakes_nothing(
    bridge: Bridge, server: Server, link: Link[Session]
) -> None:
    session = eventually(lambda: link.session)

    def send_and_open() -> None:
        send_all(link, b"a", b"b")
        bridge.soon(lambda: setattr(session, "takes_at_once", True))
        bridge.soon(partial(send_all, link, b"c"))

    bridge.post(send_and_open)
    await_sent(session, b"a", b"b", b"c")


def test_one_message_that_cannot_be_sent_stops_no_other_of_its_piece(
    bridge: Bridge, server: Server, link: Link[Session]
) -> None:
    session = eventually(lambda: link.session)
    session.takes_at_once = True
    bridge.post(partial(send_all, link, b"a", b"bad", b"b"))
    await_sent(session, b"a", b"b")
    assert server.errors == ["cannot be sent"]


def test_a_session_that_dies_is_replaced(bridge: Bridge, server: Server, link: Link[Session]) -> None:
    first = eventually(lambda: link.session)
    first.alive = False
    eventually(lambda: link.session not in (None, first))
    assert first.discarded
    assert (link.rebuilt, server.downs) == (1, 1)
    bridge.post(lambda: link.send("s", b"after", ""))
    eventually(lambda: server.sessions[-1].sent == [b"after"])
    assert first.sent == []


def test_a_session_that_does_not_answer_is_replaced(server: Server, link: Link[Session]) -> None:
    first = eventually(lambda: link.session)
    first.answers = False
    eventually(lambda: link.session not in (None, first))
    assert first.discarded


def test_a_message_that_cannot_be_sent_does_not_stop_the_others(
    bridge: Bridge, server: Server, link: Link[Session]
) -> None:
    session = eventually(lambda: link.session)
    for payload in (b"1", b"bad", b"2"):
        bridge.post(partial(link.send, "s", payload, ""))
    eventually(lambda: session.sent == [b"1", b"2"])
    assert server.errors == ["cannot be sent"]
    assert link.session is session


def test_nothing_is_queued_without_a_connection(server: Server) -> None:
    link: Link[Session] = Link(
        server.connect, on_up=server.up, on_down=server.down, on_error=lambda error: None
    )
    assert link.send("s", b"x") is False
    assert link.down_for > 0
