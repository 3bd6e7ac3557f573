import json
from collections.abc import Callable
from typing import Any

import pytest

from eventdriven_sync.broker import ConsumerSpec, Incoming, StreamSpec
from eventdriven_sync.brokers import pulling
from eventdriven_sync.brokers.pulling import ACK, IN_PROGRESS, NAK, Pull
from tests.unit.clocks import Clock

SPEC = ConsumerSpec(
    stream=StreamSpec(name="blog_User", subjects=("blog.User.>",)),
    name="Blog__update",
    subjects=("blog.User.named",),
    ack_wait=30,
)


class Desk:
    """A pull with a connection that records; what is posted runs at once."""

    def __init__(self, *, window: int = 10) -> None:
        self.connected = True
        self.sent: list[tuple[str, bytes]] = []
        self.delivered: list[Incoming] = []
        self.retired = 0
        self.soon: list[Callable[[], object]] = []
        self.troubles: list[str] = []
        self.pull = Pull(
            SPEC,
            self.delivered.extend,
            window=window,
            post=lambda action: action(),
            soon=self.soon.append,
            send=self.send,
            retire=self.retire,
            trouble=self.troubles.append,
        )

    def send(self, subject: str, data: bytes, reply: str) -> bool:
        if self.connected:
            self.sent.append((subject, data))
        return self.connected

    def retire(self, pull: Pull) -> None:
        self.retired += 1

    def arrive(self, sequence: int, *, stamp: int = 0, delivered: int = 1, headers: Any = None) -> str:
        reply = f"$JS.ACK.blog_User.Blog__update.{delivered}.{sequence}.{sequence}.{10**18 + stamp}.0"
        self.pull.arrived("blog.User.named", b"{}", headers or {}, reply)
        self.run_soon()
        return reply

    def say(self, status: str, description: str = "", **headers: str) -> None:
        self.pull.arrived("inbox", b"", {"Status": status, "Description": description, **headers}, "")

    def run_soon(self) -> None:
        while self.soon:
            self.soon.pop(0)()

    def requests(self) -> list[int]:
        return [json.loads(data)["batch"] for subject, data in self.sent if "MSG.NEXT" in subject]

    def acks(self, kind: bytes = ACK) -> list[str]:
        return [subject for subject, data in self.sent if data == kind]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pulling, "time", clock)
    return clock


@pytest.fixture
def desk(clock: Clock) -> Desk:
    desk = Desk()
    desk.pull.opened("inbox")
    return desk


def test_it_asks_for_the_whole_window_at_first_and_again_when_half_of_it_is_free(desk: Desk) -> None:
    for sequence in range(1, 11):
        desk.arrive(sequence)
    assert desk.requests() == [10]
    desk.pull.finish(desk.delivered[:4])  # nothing is asked for any more: ask at once
    desk.pull.finish(desk.delivered[4:8])
    assert desk.requests() == [10, 4]
    desk.pull.finish(desk.delivered[8:9])
    assert desk.requests() == [10, 4, 5]


def test_a_window_of_one_asks_for_one_at_a_time(clock: Clock) -> None:
    desk = Desk(window=1)
    desk.pull.opened("inbox")
    desk.arrive(1)
    assert desk.requests() == [1]
    desk.pull.finish(desk.delivered)
    assert desk.requests() == [1, 1]


def test_it_never_has_more_in_hand_and_asked_for_than_the_window(desk: Desk) -> None:
    for sequence in range(1, 200):
        desk.arrive(sequence)
        if desk.pull.in_hand > 5:
            desk.pull.finish(desk.delivered[-3:])
        assert desk.pull.in_hand <= 10


def test_finished_messages_are_acknowledged_and_leave_the_hand(desk: Desk) -> None:
    reply = desk.arrive(1)
    desk.pull.finish(desk.delivered)
    assert desk.acks() == [reply]
    assert desk.pull.in_hand == 0


def test_released_messages_are_given_back(desk: Desk) -> None:
    reply = desk.arrive(1)
    desk.pull.release(desk.delivered)
    assert desk.acks(NAK) == [reply]
    assert desk.pull.in_hand == 0


def test_forgotten_messages_get_no_signals_any_more(desk: Desk, clock: Clock) -> None:
    desk.arrive(1)
    desk.pull.forget(desk.delivered)
    clock.now += 11
    desk.pull.tick()
    assert desk.acks(IN_PROGRESS) == []
    assert desk.acks(NAK) == []


def test_everything_in_hand_gets_a_signal_every_third_of_ack_wait(desk: Desk, clock: Clock) -> None:
    replies = [desk.arrive(1), desk.arrive(2)]
    for _ in range(3):
        clock.now += 10.1
        desk.pull.tick()
        desk.pull.tick()
    assert desk.acks(IN_PROGRESS) == replies * 3


def test_a_message_redelivered_while_in_hand_runs_once_and_is_acknowledged_by_its_newest_reply(
    desk: Desk,
) -> None:
    desk.arrive(1)
    newest = desk.arrive(1, delivered=2)
    assert len(desk.delivered) == 1
    desk.pull.finish(desk.delivered)
    assert desk.acks() == [newest]


def test_a_message_that_was_finished_is_acknowledged_again_without_running(desk: Desk) -> None:
    desk.arrive(1)
    desk.pull.finish(desk.delivered)
    again = desk.arrive(1)
    assert len(desk.delivered) == 1
    assert desk.acks()[-1] == again
    assert desk.pull.in_hand == 0


def test_a_message_of_a_stream_that_was_created_anew_is_no_redelivery(desk: Desk) -> None:
    desk.arrive(1)
    desk.arrive(2)
    desk.pull.finish(desk.delivered[:1])
    desk.arrive(1, stamp=5_000_000)  # finished before, in the old stream
    desk.arrive(2, stamp=5_000_000)  # its namesake is still in hand
    assert len(desk.delivered) == 4
    before = len(desk.acks())
    desk.pull.finish([desk.delivered[1]])  # the one of the old stream: nobody wants it any more
    assert len(desk.acks()) == before
    assert desk.pull.in_hand == 2


def test_what_was_finished_is_remembered_longer_than_ack_wait_and_not_for_ever(
    desk: Desk, clock: Clock
) -> None:
    desk.arrive(1)
    desk.pull.finish(desk.delivered)
    clock.now += 50
    desk.pull.tick()
    desk.arrive(1)
    assert len(desk.delivered) == 1
    for _ in range(3):
        clock.now += 61
        desk.pull.tick()
    desk.arrive(1)
    assert len(desk.delivered) == 2


def test_a_message_with_a_header_named_status_is_data(desk: Desk) -> None:
    desk.arrive(1, headers={"Status": "404", "Description": "paid"})
    assert desk.delivered[0].headers == {"Status": "404", "Description": "paid"}
    assert desk.troubles == []


def test_data_with_domain_and_account_in_the_reply_is_understood(desk: Desk) -> None:
    reply = f"$JS.ACK.hub.ACCHASH.blog_User.Blog__update.3.17.5.{10**18}.2.random"
    desk.pull.arrived("blog.User.named", b"{}", {}, reply)
    desk.run_soon()
    (message,) = desk.delivered
    assert (message.stream, message.sequence, message.delivered) == ("blog_User", 17, 3)
    assert message.stored_at.isoformat() == "2001-09-09T01:46:40+00:00"


def test_an_expired_request_is_replaced_at_once(desk: Desk) -> None:
    desk.say("408", "Request Timeout", **{"Nats-Pending-Messages": "10"})
    assert desk.requests() == [10, 10]


@pytest.mark.parametrize(
    ("status", "description"), [("409", "Consumer Deleted"), ("503", "garbled"), ("400", "Bad Request")]
)
def test_a_refused_request_waits_longer_each_time(
    desk: Desk, clock: Clock, status: str, description: str
) -> None:
    pauses = []
    for _ in range(7):
        desk.say(status, description)
        desk.say(status, description)  # one answer for each request that was open
        assert not desk.pull.wants_opening
        began = clock.now
        while not desk.pull.wants_opening:
            clock.now += 0.05
        pauses.append(clock.now - began)
        desk.pull.opened("inbox")
    assert pauses[0] == pytest.approx(0.1, abs=0.06)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(2.0, abs=0.06)


def test_missed_heartbeats_start_again_from_zero(desk: Desk, clock: Clock) -> None:
    clock.now += 12
    desk.pull.tick()
    assert not desk.pull.wants_opening
    clock.now += 1
    desk.pull.tick()
    assert desk.pull.wants_opening
    desk.pull.opened("inbox2")
    assert desk.requests() == [10, 10]


def test_heartbeats_keep_the_request(desk: Desk, clock: Clock) -> None:
    for _ in range(10):
        clock.now += 5
        desk.say("100", "Idle Heartbeat")
        desk.pull.tick()
    assert desk.requests() == [10]


def test_it_only_waits_while_it_has_asked_and_has_nothing_in_hand(desk: Desk) -> None:
    assert desk.pull.only_waits
    desk.arrive(1)
    assert not desk.pull.only_waits
    desk.pull.finish(desk.delivered)
    assert desk.pull.only_waits
    desk.pull.resize(5)
    assert not desk.pull.only_waits, "it asked for more than it may hold now"
    desk.pull.resize(10)
    assert desk.pull.only_waits
    desk.pull.lost()
    assert not desk.pull.only_waits
    desk.pull.opened("inbox2")
    assert desk.pull.only_waits
    desk.pull.stop_now()
    assert not desk.pull.only_waits


def test_a_silent_consumer_is_looked_at_twice_before_it_is_pulled_anew(desk: Desk, clock: Clock) -> None:
    clock.now += 16
    desk.say("100")
    assert desk.pull.wants_look
    desk.pull.looked_at(stalled=True)
    assert not desk.pull.wants_look
    clock.now += 3
    assert desk.pull.wants_look
    desk.pull.looked_at(stalled=True)
    assert desk.pull.wants_opening
    assert desk.troubles


def test_acknowledgements_made_without_connection_are_sent_with_the_next_one(desk: Desk) -> None:
    reply = desk.arrive(1)
    desk.connected = False
    desk.pull.lost()
    desk.pull.finish(desk.delivered)
    assert desk.acks() == []
    desk.connected = True
    desk.pull.opened("inbox2")
    assert desk.acks() == [reply]


def test_a_release_without_connection_is_not_made_up_for(desk: Desk) -> None:
    desk.arrive(1)
    desk.connected = False
    desk.pull.lost()
    desk.pull.release(desk.delivered)
    desk.connected = True
    desk.pull.opened("inbox2")
    assert desk.acks(NAK) == []
    assert desk.pull.in_hand == 0


def test_after_stop_nothing_is_asked_for_and_what_still_comes_is_given_back(desk: Desk) -> None:
    desk.arrive(1)
    desk.pull.stop()
    late = desk.arrive(2)
    desk.pull.retired()
    assert desk.acks(NAK) == [late]
    assert len(desk.delivered) == 1
    assert desk.retired == 1
    desk.pull.finish(desk.delivered)
    assert len(desk.acks()) == 1
    assert desk.requests() == [10]
    assert not desk.pull.wants_opening


def test_nothing_is_given_back_before_the_old_inbox_is_unsubscribed(desk: Desk) -> None:
    first = desk.arrive(1)
    desk.pull.stop()
    late = desk.arrive(2)
    desk.pull.release(desk.delivered)
    assert (desk.acks(NAK), desk.pull.retiring) == ([], True)
    desk.pull.retired()
    assert sorted(desk.acks(NAK)) == sorted([first, late])
    assert not desk.pull.retiring


def test_a_smaller_window_takes_the_requests_back_when_nothing_comes(desk: Desk, clock: Clock) -> None:
    desk.arrive(1)
    desk.pull.resize(4)
    desk.pull.tick()
    assert desk.retired == 0, "what is on its way to the inbox would be late"
    clock.now += 0.3
    desk.pull.tick()
    assert desk.retired == 1
    assert desk.pull.wants_opening
    desk.pull.opened("inbox2")
    assert desk.requests() == [10, 3]
    clock.now += 0.3
    desk.pull.tick()
    assert desk.retired == 1


def test_a_smaller_window_is_used_up_while_messages_come(desk: Desk, clock: Clock) -> None:
    desk.pull.resize(4)
    for sequence in range(1, 8):
        desk.arrive(sequence)
        clock.now += 0.1
        desk.pull.tick()
    assert (desk.retired, desk.requests()) == (0, [10])


def test_without_a_window_the_requests_are_taken_back_at_once(desk: Desk) -> None:
    desk.pull.resize(0)
    assert desk.retired == 1


def test_a_larger_window_asks_for_more(desk: Desk) -> None:
    desk.pull.resize(30)
    assert desk.requests() == [10, 20]


def test_messages_that_cannot_be_handed_over_are_forgotten(clock: Clock) -> None:
    desk = Desk()

    def refuse(messages: list[Incoming]) -> None:
        raise RuntimeError("full")

    desk.pull._deliver = refuse
    desk.pull.opened("inbox")
    desk.arrive(1)
    assert desk.pull.in_hand == 0
    assert desk.acks() == []
