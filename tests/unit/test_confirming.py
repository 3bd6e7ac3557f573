"""Calls that wait for confirmations: what is sent for them, sent again, refused, and given up."""

import json
import threading

import pytest

from eventdriven_sync.broker import ConsumerSpec, Outgoing, StreamSpec
from eventdriven_sync.brokers import confirming
from eventdriven_sync.brokers.confirming import WINDOW, Confirming, Ticket
from eventdriven_sync.errors import (
    BrokerError,
    BrokerPermissionDenied,
    Closed,
    ConsumerConflict,
    PayloadTooLarge,
    StreamConflict,
)
from tests.unit.clocks import Clock

VIEWS = StreamSpec(name="shop_Page", subjects=("shop.Page", "shop.Page.>"))
RECORDER = ConsumerSpec(stream=VIEWS, name="recorder", subjects=VIEWS.subjects)


class Wire:
    """Calls with a connection that records what it is given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.takes_bytes = True
        self.confirming = Confirming(
            inbox="in.",
            send=self.send,
            write=self.write,
            prepare=lambda spec: self.asked.append(spec.name),
            trouble=lambda text: None,
        )

    def send(self, subject: str, data: bytes, reply: str, headers: dict[str, str] | None) -> bool:
        assert headers is not None
        self.sent.append((reply.removeprefix("in."), headers["Nats-Msg-Id"]))
        return True

    def write(self, commands: bytes) -> bool:
        if self.takes_bytes:
            for line in commands.split(b"HPUB ")[1:]:
                head, _, rest = line.partition(b"\r\nNATS/1.0\r\nNats-Msg-Id: ")
                reply = head.split()[1].decode().removeprefix("in.")
                self.sent.append((reply, rest.partition(b"\r\n")[0].decode()))
        return self.takes_bytes

    def call(self, *ids: str, data: bytes = b"{}", subject: str = "shop.Page.viewed") -> Ticket:
        messages = [Outgoing(stream=VIEWS, subject=subject, message_id=i, data=data) for i in ids]
        ticket = Ticket(messages, [RECORDER])
        self.confirming.take(ticket)
        self.confirming.pump()
        return ticket

    def answer(self, body: object, *, after: int = 0, status: str = "") -> None:
        data = json.dumps(body, separators=(",", ":")).encode() if body else b""
        for token, _ in self.sent[after:]:
            self.confirming.answered(token, data, status)

    def confirm(self, after: int = 0) -> None:
        self.answer({"stream": "shop_Page", "seq": 7}, after=after)

    @property
    def ids(self) -> list[str]:
        return [message_id for _, message_id in self.sent]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(confirming, "time", clock)
    return clock


@pytest.fixture
def wire(clock: Clock) -> Wire:
    wire = Wire()
    wire.confirming.opened(1024 * 1024)
    wire.confirming.ready(RECORDER)
    return wire


def known(ticket: Ticket) -> bool:
    return ticket.wait_for(0)


def test_a_call_is_over_when_each_of_its_messages_is_confirmed(wire: Wire) -> None:
    ticket = wire.call("a", "b")
    wire.confirming.answered(wire.sent[0][0], b'{"stream":"shop_Page", "seq":1}', "")
    assert (ticket.unanswered, wire.ids) == ({1}, ["a", "b"])
    wire.confirm()
    assert known(ticket)
    assert (ticket.errors, ticket.known_as, ticket.unknown()) == ([], {}, [])


def test_what_the_socket_does_not_take_at_once_goes_through_the_queue(wire: Wire) -> None:
    wire.takes_bytes = False
    ticket = wire.call("a", "b")
    wire.confirm()
    assert (known(ticket), wire.ids) == (True, ["a", "b"])


def test_nothing_is_sent_before_the_consumer_is_there(clock: Clock) -> None:
    wire = Wire()
    ticket = wire.call("a")
    assert (wire.asked, wire.sent) == ([], [])
    wire.confirming.opened(1024 * 1024)
    wire.confirming.pump()
    assert (wire.asked, wire.sent) == (["recorder"], [])
    wire.confirming.ready(RECORDER)
    wire.confirm()
    assert (known(ticket), wire.ids) == (True, ["a"])


def test_a_consumer_that_cannot_be_created_now_is_asked_for_again_later(clock: Clock) -> None:
    wire = Wire()
    ticket = wire.call("a")
    wire.confirming.opened(1024 * 1024)
    for _ in range(3):
        asked = len(wire.asked)
        wire.confirming.failed(RECORDER, BrokerError("busy"), for_good=False)
        clock.now += 5
        wire.confirming.tick()
        assert len(wire.asked) == asked + 1
    wire.confirming.failed(RECORDER, BrokerError("busy"), for_good=False)
    wire.confirming.tick()
    assert len(wire.asked) == 4, "not at once"
    assert not known(ticket)


def test_a_consumer_that_can_never_be_created_is_told_to_who_waits(clock: Clock) -> None:
    wire = Wire()
    ticket = wire.call("a", "b")
    wire.confirming.opened(1024 * 1024)
    wire.confirming.failed(RECORDER, ConsumerConflict("other settings"), for_good=True)
    assert known(ticket)
    assert [str(error) for error in ticket.errors] == ["other settings"] * 2


def test_after_a_reconnect_what_is_unconfirmed_goes_out_again_once_its_consumer_is_there(wire: Wire) -> None:
    ticket = wire.call("a", "b")
    wire.confirming.answered(wire.sent[0][0], b'{"stream":"shop_Page","seq":1}', "")
    wire.confirming.closed()
    later = wire.call("c")
    wire.confirming.opened(1024 * 1024)
    assert wire.ids == ["a", "b"]
    wire.confirming.ready(RECORDER)
    assert wire.ids == ["a", "b", "b", "c"]
    wire.confirm(after=2)
    assert known(ticket)
    assert known(later)


def test_an_answer_to_the_first_sending_counts_no_more_after_the_second(wire: Wire) -> None:
    ticket = wire.call("a")
    wire.confirming.closed()
    wire.confirming.opened(1024 * 1024)
    wire.confirming.ready(RECORDER)
    wire.confirming.answered(wire.sent[0][0], b'{"stream":"shop_Page","seq":1}', "")
    assert ticket.unanswered == {0}


def test_without_an_answer_a_message_is_sent_again_later_each_time(wire: Wire, clock: Clock) -> None:
    wire.call("a")
    pauses: list[float] = []
    for _ in range(3):
        count, began = len(wire.sent), clock.now
        while len(wire.sent) == count:
            clock.now += 0.5
            wire.confirming.tick()
        pauses.append(clock.now - began)
    assert pauses == [2.5, 4.5, 8.5]


def test_nothing_more_is_sent_for_a_call_that_waits_no_longer(wire: Wire, clock: Clock) -> None:
    ticket = wire.call("a", "b")
    assert not known(ticket)
    assert ticket.unknown() == ["a", "b"]
    clock.now += 60
    wire.confirming.tick()
    wire.confirming.closed()
    wire.confirming.opened(1024 * 1024)
    wire.confirming.ready(RECORDER)
    assert wire.ids == ["a", "b"]


def test_a_call_that_gave_up_before_anything_was_sent_knows_that_nothing_was(clock: Clock) -> None:
    wire = Wire()
    ticket = wire.call("a")
    assert not known(ticket)
    wire.confirming.opened(1024 * 1024)
    wire.confirming.ready(RECORDER)
    assert (ticket.unknown(), wire.sent) == ([], [])


def test_calls_that_gave_up_while_there_is_no_connection_are_forgotten(clock: Clock) -> None:
    wire = Wire()
    for _ in range(5):
        assert not known(wire.call("a"))
    wire.confirming.tick()
    assert len(wire.confirming._waiting) == 0


def test_a_duplicate_is_told_with_its_place(wire: Wire) -> None:
    ticket = wire.call("a")
    wire.answer({"stream": "shop_Page", "seq": 4, "duplicate": True})
    assert known(ticket)
    assert ticket.known_as == {0: 4}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (
            {"error": {"code": 400, "err_code": 10077, "description": "maximum messages exceeded"}},
            BrokerError,
        ),
        ({"stream": "other", "seq": 1}, StreamConflict),
    ],
)
def test_a_refusal_ends_the_call(wire: Wire, answer: object, kind: type[Exception]) -> None:
    ticket = wire.call("a")
    wire.answer(answer)
    assert known(ticket)
    assert [type(error) for error in ticket.errors] == [kind]


def test_a_stream_without_leader_is_tried_again(wire: Wire, clock: Clock) -> None:
    ticket = wire.call("a")
    wire.answer({"error": {"code": 503, "err_code": 10008, "description": "unavailable"}})
    assert not ticket.errors
    clock.now += 3
    wire.confirming.tick()
    assert wire.ids == ["a", "a"]


@pytest.mark.parametrize("garbage", ["[]", '"x"', "{", "{}"])
def test_an_answer_that_says_nothing_we_know_is_no_confirmation(wire: Wire, garbage: str) -> None:
    ticket = wire.call("a")
    wire.confirming.answered(wire.sent[0][0], garbage.encode(), "")
    wire.confirming.answered("x", b"", "")
    assert ticket.errors


def test_a_stream_that_vanished_comes_back_with_its_consumer_before_the_messages(
    wire: Wire, clock: Clock
) -> None:
    ticket = wire.call("a", "b")
    wire.answer(None, status="503")
    assert (wire.asked, wire.ids) == (["recorder"], ["a", "b"])
    wire.confirming.ready(RECORDER)
    assert sorted(wire.ids[2:]) == ["a", "b"]
    wire.confirm(after=2)
    assert known(ticket)


def test_a_stream_that_vanishes_again_and_again_is_asked_for_with_pauses(wire: Wire, clock: Clock) -> None:
    wire.call("a")
    wire.answer(None, status="503")
    wire.confirming.ready(RECORDER)
    wire.answer(None, after=1, status="503")
    assert wire.asked == ["recorder"]
    clock.now += 0.2
    wire.confirming.tick()
    assert wire.asked == ["recorder"] * 2


def test_a_message_the_server_would_cut_the_connection_for_is_not_sent(wire: Wire) -> None:
    wire.confirming.opened(2000)
    wire.confirming.ready(RECORDER)
    ticket = wire.call("a", data=b"x" * 1500)
    assert known(ticket)
    assert [type(error) for error in ticket.errors] == [PayloadTooLarge]
    assert wire.sent == []


@pytest.mark.parametrize("wrong", [{"subject": "shop.Page.a b"}, {"subject": "shop.Page.>"}])
def test_a_subject_that_is_none_is_refused(wire: Wire, wrong: dict[str, str]) -> None:
    ticket = wire.call("a", **wrong)
    assert known(ticket)
    assert (len(ticket.errors), wire.sent) == (1, [])


@pytest.mark.parametrize("wrong", ["a\r\nX: y", "é"])
def test_an_id_that_would_be_another_command_is_refused(wire: Wire, wrong: str) -> None:
    ticket = wire.call(wrong)
    assert known(ticket)
    assert (len(ticket.errors), wire.sent) == (1, [])


def test_a_subject_the_server_denies_ends_the_call(wire: Wire) -> None:
    ticket = wire.call("a")
    wire.confirming.denied("shop.page.viewed", BrokerPermissionDenied("no"))
    assert known(ticket)
    assert [str(error) for error in ticket.errors] == ["no"]


def test_when_the_connection_is_closed_nobody_waits_any_more(wire: Wire) -> None:
    sent = wire.call("a")
    wire.confirming.closed()
    unsent = wire.call("b")
    wire.confirming.end(Closed("closed"))
    late = wire.call("c")
    assert known(sent)
    assert known(unsent)
    assert known(late)
    assert (sent.unknown(), unsent.unknown(), late.unknown()) == (["a"], [], [])


def test_no_more_than_the_window_is_on_its_way(wire: Wire) -> None:
    first = wire.call(*(str(n) for n in range(WINDOW + 10)))
    second = wire.call("last")
    assert len(wire.sent) == WINDOW
    wire.confirm()
    wire.confirm(after=WINDOW)
    assert known(first)
    assert known(second)
    assert wire.ids[-1] == "last"


def test_a_thread_wakes_when_all_is_known(wire: Wire) -> None:
    ticket = wire.call("a")
    threading.Timer(0.05, wire.confirm).start()
    assert ticket.wait_for(10)
