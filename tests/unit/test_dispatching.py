import json
from collections.abc import Callable

import pytest

from eventdriven_sync.broker import Outgoing, StreamSpec
from eventdriven_sync.brokers import dispatching
from eventdriven_sync.brokers.dispatching import Dispatcher
from tests.unit.clocks import Clock

USERS = StreamSpec(name="blog_User", subjects=("blog.User.>",))
POSTS = StreamSpec(name="blog_Post", subjects=("blog.Post.>",))


class Wire:
    """A dispatcher with a connection that records what it is given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, str]] = []
        self.ensured: list[str] = []
        self.troubles: list[str] = []
        self.calls: list[tuple[float, Callable[[], None]]] = []
        self.dispatcher = Dispatcher(
            inbox="in.",
            send=self.send,
            later=lambda seconds, action: self.calls.append((seconds, action)),
            ensure=lambda stream: self.ensured.append(stream.name),
            trouble=self.troubles.append,
        )

    def send(self, subject: str, data: bytes, reply: str, headers: dict[str, str] | None) -> bool:
        assert headers is not None
        self.sent.append((subject, reply, headers["Nats-Msg-Id"]))
        return True

    def take(self, *ids: str, stream: StreamSpec = USERS, data: bytes = b"{}", down_for: float = 0) -> int:
        subject = stream.subjects[0].replace(">", "named")
        messages = [Outgoing(stream=stream, subject=subject, message_id=i, data=data) for i in ids]
        taken = self.dispatcher.take(messages, down_for=down_for)
        self.dispatcher.pump()
        return taken

    def confirm(self, *, stream: str = "blog_User", after: int = 0) -> None:
        for reply in self.replies(after):
            self.answer(reply, {"stream": stream, "seq": 1})

    def answer(self, reply: str, body: object) -> None:
        data = json.dumps(body, separators=(",", ":")).encode()
        self.dispatcher.answered(reply.removeprefix("in."), data, "")

    def nobody_there(self, after: int = 0) -> None:
        for reply in self.replies(after):
            self.dispatcher.answered(reply.removeprefix("in."), b"", "503")

    def replies(self, after: int = 0) -> list[str]:
        return [reply for _, reply, _ in self.sent[after:] if reply]

    @property
    def ids(self) -> list[str]:
        return [message_id for _, _, message_id in self.sent]

    @property
    def dropped(self) -> int:
        return self.dispatcher.counts()[1]

    @property
    def in_flight(self) -> int:
        return self.dispatcher.counts()[2]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(dispatching, "time", clock)
    return clock


@pytest.fixture
def wire(clock: Clock) -> Wire:
    wire = Wire()
    wire.dispatcher.opened(1024 * 1024)
    return wire


def test_a_confirmed_message_is_settled(wire: Wire) -> None:
    assert wire.take("a", "b") == 2
    assert wire.in_flight == 2
    wire.confirm()
    assert wire.dispatcher.counts() == (2, 0, 0)


def test_messages_taken_before_the_connection_go_out_with_it(clock: Clock) -> None:
    wire = Wire()
    wire.take("a")
    assert wire.sent == []
    wire.dispatcher.opened(1024 * 1024)
    assert wire.ids == ["a"]


def test_what_is_not_confirmed_is_sent_again_with_the_same_id_after_a_reconnect(wire: Wire) -> None:
    wire.take("a")
    wire.take("b")
    wire.answer(wire.sent[0][1], {"stream": "blog_User", "seq": 1})
    wire.dispatcher.closed()
    wire.dispatcher.opened(1024 * 1024)
    assert wire.ids == ["a", "b", "b"]
    wire.confirm(after=2)
    assert wire.in_flight == 0


def test_what_is_not_answered_is_sent_again_after_growing_pauses(wire: Wire, clock: Clock) -> None:
    wire.take("a")
    times = []
    for _ in range(280):
        clock.now += 0.1
        before = len(wire.sent)
        wire.dispatcher.tick()
        times += [round(clock.now - 1000)] * (len(wire.sent) - before)
    assert times == [2, 6, 14]


def test_what_is_not_confirmed_in_time_is_dropped_and_counted(wire: Wire, clock: Clock) -> None:
    wire.take("a")
    clock.now += 31
    wire.dispatcher.tick()
    assert wire.dispatcher.counts() == (1, 1, 0)
    assert "no confirmation within 30 s" in wire.troubles[-1]
    wire.confirm()  # late
    assert wire.dispatcher.counts() == (1, 1, 0)


def test_without_connection_messages_wait_until_the_deadline(wire: Wire, clock: Clock) -> None:
    wire.dispatcher.closed()
    wire.take("a", down_for=0.5)
    clock.now += 29
    wire.dispatcher.tick()
    assert wire.in_flight == 1
    clock.now += 2
    wire.dispatcher.tick()
    assert wire.dispatcher.counts() == (1, 1, 0)


def test_without_connection_for_longer_than_the_breaker_nothing_is_taken(wire: Wire) -> None:
    assert wire.take("a", down_for=1.5) == 0
    assert wire.dropped == 1


def test_more_than_the_limit_is_dropped_at_once(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "LIMIT", 3)
    assert wire.take("a", "b") == 2
    assert wire.take("c", "d", "e") == 1
    assert wire.take("f") == 0
    assert wire.dropped == 3
    wire.confirm()
    assert wire.take("g") == 1


def test_more_bytes_than_the_limit_are_dropped_at_once(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "LIMIT_BYTES", 100)
    assert wire.take("a", data=b"x" * 80) == 1
    assert wire.take("b", data=b"x" * 80) == 0
    wire.confirm()
    assert wire.take("c", data=b"x" * 80) == 1


def test_only_a_window_of_messages_is_on_its_way(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "WINDOW", 2)
    wire.take("a")
    wire.take("b", "c", "d")
    assert wire.ids == ["a", "b"]
    wire.answer(wire.sent[0][1], {"stream": "blog_User", "seq": 1})
    assert wire.ids == ["a", "b", "c"]
    wire.answer(wire.sent[1][1], {"stream": "blog_User", "seq": 2})
    assert wire.ids == ["a", "b", "c", "d"]


def test_a_missing_stream_is_asked_for_once_and_everything_sent_again(wire: Wire) -> None:
    wire.take("a", "b")
    wire.nobody_there()
    wire.take("c")
    assert wire.ensured == ["blog_User"]
    assert wire.ids == ["a", "b"]
    wire.dispatcher.stream_ready("blog_User")
    assert wire.ids == ["a", "b", "a", "b", "c"]


def test_a_missing_stream_does_not_hold_up_others(wire: Wire) -> None:
    wire.take("a")
    wire.nobody_there()
    wire.take("p", stream=POSTS)
    assert wire.ids == ["a", "p"]


def test_a_stream_that_responds_to_nobody_is_asked_for_less_and_less(wire: Wire, clock: Clock) -> None:
    wire.take("a")
    for _ in range(200):
        sent = len(wire.sent)
        wire.nobody_there(after=sent - 1)
        if len(wire.ensured) and wire.dispatcher._stalls["blog_User"].asking:
            wire.dispatcher.stream_ready("blog_User")
        clock.now += 0.1
        wire.dispatcher.tick()
    assert 8 <= len(wire.ensured) <= 20
    clock.now += 30
    wire.dispatcher.tick()
    assert wire.dispatcher.counts() == (1, 1, 0)


def test_a_stream_in_conflict_drops_its_messages_and_says_why(wire: Wire, clock: Clock) -> None:
    wire.take("a")
    wire.nobody_there()
    wire.dispatcher.stream_failed("blog_User", "max_age is different", for_good=True)
    wire.take("b")
    assert wire.dropped == 2
    assert "max_age is different" in wire.troubles[0]
    clock.now += 11
    wire.take("c")
    assert wire.ids == ["a", "c"]


def test_a_message_that_another_stream_took_is_dropped_and_reported(wire: Wire) -> None:
    wire.take("a")
    wire.confirm(stream="other")
    assert wire.dropped == 1
    assert "taken by stream 'other'" in wire.troubles[0]


def test_a_duplicate_is_a_confirmation(wire: Wire) -> None:
    wire.take("a")
    wire.answer(wire.sent[0][1], {"stream": "blog_User", "seq": 1, "duplicate": True})
    assert wire.dispatcher.counts() == (1, 0, 0)


def test_a_temporary_error_is_tried_again_and_a_final_one_dropped(wire: Wire, clock: Clock) -> None:
    wire.take("a")
    wire.take("b")
    busy = {"error": {"code": 503, "err_code": 10077, "description": "maximum messages exceeded"}}
    wrong = {"error": {"code": 400, "err_code": 10054, "description": "message size exceeds maximum"}}
    wire.answer(wire.sent[0][1], busy)
    wire.answer(wire.sent[1][1], wrong)
    assert wire.dropped == 1
    clock.now += 2.5
    wire.dispatcher.tick()
    assert wire.ids == ["a", "b", "a"]


def test_a_message_that_would_cut_the_connection_is_not_sent(clock: Clock) -> None:
    wire = Wire()
    wire.dispatcher.opened(4096)
    wire.take("a", data=b"x" * 4090)  # below max_payload, but not with its headers
    wire.take("b", data=b"x" * 3000)
    assert wire.ids == ["b"]
    assert "max_payload" in wire.troubles[0]
    assert "4096" in wire.troubles[0]


@pytest.mark.parametrize("subject", ["", "a b", "a.*", "a.>", "a..b", "a.\r\nPUB x 0", ".a", "a."])
def test_a_subject_that_would_break_the_protocol_is_not_sent(wire: Wire, subject: str) -> None:
    wire.dispatcher.take([Outgoing(stream=USERS, subject=subject, message_id="a", data=b"")], down_for=0)
    wire.dispatcher.pump()
    assert wire.sent == []
    assert wire.dropped == 1


def test_a_subject_without_permission_is_dropped(wire: Wire) -> None:
    wire.take("a")
    wire.take("p", stream=POSTS)
    wire.dispatcher.denied("blog.user.named")
    assert wire.dispatcher.counts() == (2, 1, 1)
    assert "no permission" in wire.troubles[0]


def test_the_mark_is_passed_when_everything_before_it_is_settled(wire: Wire) -> None:
    assert wire.dispatcher.settled_below(wire.dispatcher.mark())
    wire.take("a")
    wire.take("b", "c")
    mark = wire.dispatcher.mark()
    wire.take("d")
    wire.answer(wire.sent[2][1], {"stream": "blog_User", "seq": 1})
    assert not wire.dispatcher.settled_below(mark)
    wire.answer(wire.sent[0][1], {"stream": "blog_User", "seq": 1})
    assert wire.dispatcher.settled_below(mark)


def test_messages_that_are_sent_together_are_confirmed_by_the_last(wire: Wire) -> None:
    wire.take("a", "b", "c")
    assert [bool(reply) for _, reply, _ in wire.sent] == [False, False, True]
    wire.confirm()
    assert wire.dispatcher.counts() == (3, 0, 0)


def test_each_stream_confirms_its_own(wire: Wire) -> None:
    wire.dispatcher.closed()
    wire.take("a", "b")
    wire.take("p", stream=POSTS)
    wire.take("c")
    wire.dispatcher.opened(1024 * 1024)
    assert [(i, bool(reply)) for _, reply, i in wire.sent] == [
        ("a", False),
        ("b", True),
        ("p", True),
        ("c", True),
    ]


def test_no_flight_is_longer_than_a_run(wire: Wire) -> None:
    wire.take(*map(str, range(dispatching.RUN + 1)))
    assert [i for i, (_, reply, _) in enumerate(wire.sent) if reply] == [dispatching.RUN - 1, dispatching.RUN]


def test_a_run_that_is_not_confirmed_is_sent_again_as_a_whole(wire: Wire, clock: Clock) -> None:
    wire.take("a", "b")
    clock.now += 2.5
    wire.dispatcher.tick()
    assert wire.ids == ["a", "b", "a", "b"]


def test_what_is_wrong_with_one_message_of_a_run_is_found_out(wire: Wire) -> None:
    wire.take("a", "b", "c")
    wrong = {"error": {"code": 400, "err_code": 10054, "description": "message size exceeds maximum"}}
    wire.answer(wire.sent[2][1], wrong)
    assert wire.ids == ["a", "b", "c", "a", "b", "c"]
    assert len(set(wire.replies(after=3))) == 3
    wire.answer(wire.sent[5][1], wrong)
    assert (wire.dropped, wire.in_flight) == (1, 2)
    wire.answer(wire.sent[3][1], {"stream": "blog_User", "seq": 1})
    wire.answer(wire.sent[4][1], {"stream": "blog_User", "seq": 2})
    assert wire.dispatcher.counts() == (3, 1, 0)


def test_what_cannot_be_sent_does_not_stop_the_rest_of_its_run(clock: Clock) -> None:
    wire = Wire()
    sizes = {"a": 10, "b": 10, "c": 4090}
    subject = "blog.User.named"
    wire.dispatcher.take(
        [Outgoing(stream=USERS, subject=subject, message_id=i, data=b"x" * n) for i, n in sizes.items()],
        down_for=0,
    )
    wire.dispatcher.opened(4096)
    assert [(i, bool(reply)) for _, reply, i in wire.sent] == [("a", False), ("b", True)]
    wire.confirm()
    assert wire.dispatcher.counts() == (3, 1, 0)


def test_a_denied_subject_costs_a_run_only_its_own_messages(wire: Wire) -> None:
    wire.dispatcher.take(
        [
            Outgoing(stream=USERS, subject=f"blog.User.{name}", message_id=name, data=b"{}")
            for name in ("named", "moved")
        ],
        down_for=0,
    )
    wire.dispatcher.pump()
    wire.dispatcher.denied("blog.user.moved")
    assert (wire.dropped, wire.in_flight) == (1, 1)
    assert wire.ids == ["named", "moved", "named"]
    wire.confirm(after=2)
    assert wire.dispatcher.counts() == (2, 1, 0)


def give(wire: Wire, *names: str) -> bool:
    """As a thread dispatches: the last is told whether it must wake the loop."""
    woke = False
    for name in names:
        message = Outgoing(stream=USERS, subject="blog.User.named", message_id=name, data=b"{}")
        wire.dispatcher.take([message], down_for=0)
        woke = wire.dispatcher.wake()
    return woke


def test_the_first_message_goes_at_once_and_what_follows_soon_together(wire: Wire) -> None:
    assert give(wire, "a")
    wire.dispatcher.run()
    assert wire.ids == ["a"]
    assert [seconds for seconds, _ in wire.calls] == [dispatching.PACE]
    assert not give(wire, "b")
    assert not give(wire, "c")
    assert wire.ids == ["a"]
    wire.calls.pop()[1]()
    assert wire.ids == ["a", "b", "c"]
    wire.calls.pop()[1]()
    assert wire.calls == []
    assert give(wire, "d"), "nothing came meanwhile, so it sleeps"


def test_runs_are_further_apart_while_so_many_come_that_they_gather(wire: Wire, clock: Clock) -> None:
    def paces(*each_run: str) -> list[float]:
        """The pause after each run, when these messages come before it."""
        found = []
        for names in each_run:
            give(wire, *names)
            clock.now += wire.calls[-1][0] if wire.calls else 1.0
            wire.dispatcher.run()
            found.append(wire.calls[-1][0])
        return found

    soon, later = dispatching.PACE, dispatching.STEADY_PACE
    assert paces("a", "bc", "def", "ghi") == [soon, later, later, later]
    assert paces("jk", "l") == [soon, soon], "few a second go soon"
    clock.now += 1
    assert paces("mnop") == [soon], "a few at once after a pause are no steady stream"


def test_without_connection_nobody_stays_awake(wire: Wire) -> None:
    wire.dispatcher.closed()
    message = Outgoing(stream=USERS, subject="blog.User.named", message_id="a", data=b"{}")
    wire.dispatcher.take([message], down_for=0)
    assert wire.dispatcher.wake()
    wire.dispatcher.run()
    assert wire.calls == []
    assert wire.dispatcher.wake()
