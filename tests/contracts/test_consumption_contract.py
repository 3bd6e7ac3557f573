"""What every ``Consumption`` promises of messages in hand, on the memory broker and on NATS."""

from tests.contracts.stages import TIMEOUT, BrokerStage
from tests.polling import eventually


def test_what_is_in_hand_is_counted(wire: BrokerStage) -> None:
    inbox = wire.open_inbox(wire.consumer())
    wire.send(*[wire.message() for _ in range(4)])
    messages = inbox.wait_for(4)
    assert inbox.consumption.in_hand == 4
    inbox.consumption.finish(messages[:1])
    inbox.consumption.forget(messages[1:2])
    eventually(lambda: inbox.consumption.in_hand == 2)


def test_a_finished_message_is_owed_no_more(wire: BrokerStage) -> None:
    spec = wire.consumer(ack_wait=wire.ack_wait)
    inbox = wire.open_inbox(spec)
    wire.send(wire.message())
    inbox.consumption.finish(inbox.wait_for(1))
    eventually(lambda: wire.owed(spec) == (0, 0))
    wire.pass_time(1.5 * wire.ack_wait)
    wire.send(wire.message(message_id="next"))
    assert inbox.wait_for(2)[-1].headers["Nats-Msg-Id"] == "next"


def test_finishing_twice_or_nothing_is_harmless(wire: BrokerStage) -> None:
    spec = wire.consumer()
    inbox = wire.open_inbox(spec)
    wire.send(wire.message())
    messages = inbox.wait_for(1)
    for _ in range(2):
        inbox.consumption.finish(messages)
        inbox.consumption.finish([])
    eventually(lambda: wire.owed(spec) == (0, 0))
    assert inbox.consumption.in_hand == 0


def test_a_released_message_comes_again_at_once(wire: BrokerStage) -> None:
    inbox = wire.open_inbox(wire.consumer(ack_wait=30.0))
    wire.send(wire.message())
    for delivered in (1, 2, 3):
        message = inbox.wait_for(delivered)[-1]
        assert message.delivered == delivered
        inbox.consumption.release([message])
    assert len(set(inbox.ids)) == 1


def test_a_released_message_may_go_to_somebody_else(wire: BrokerStage) -> None:
    spec = wire.consumer(ack_wait=wire.ack_wait)
    first = wire.open_inbox(spec)
    wire.send(wire.message(message_id="passed on"))
    messages = first.wait_for(1)
    first.consumption.stop()
    second = wire.open_inbox(spec)
    first.consumption.release(messages)
    [message] = second.wait_for(1)
    assert message.headers["Nats-Msg-Id"] == "passed on"
    assert message.delivered >= 2


def test_a_forgotten_message_comes_again_after_the_acknowledgement_wait(wire: BrokerStage) -> None:
    spec = wire.consumer(ack_wait=wire.ack_wait)
    inbox = wire.open_inbox(spec)
    wire.send(wire.message(message_id="forgotten"))
    inbox.consumption.forget(inbox.wait_for(1))
    wire.send(wire.message(message_id="fresh"))
    inbox.wait_for(2)
    assert inbox.ids == ["forgotten", "fresh"]
    wire.pass_time(wire.ack_wait)
    again = inbox.wait_for(3)[-1]
    assert (again.headers["Nats-Msg-Id"], again.delivered) == ("forgotten", 2)


def test_a_message_in_hand_does_not_come_again_however_long_it_takes(wire: BrokerStage) -> None:
    inbox = wire.open_inbox(wire.consumer(ack_wait=wire.ack_wait))
    wire.send(wire.message(message_id="slow"))
    inbox.wait_for(1)
    wire.pass_time(2.5 * wire.ack_wait)
    wire.send(wire.message(message_id="next"))
    inbox.wait_for(2)
    assert inbox.ids == ["slow", "next"]
    assert inbox.consumption.in_hand == 2


def test_the_window_bounds_what_is_in_hand(wire: BrokerStage) -> None:
    inbox = wire.open_inbox(wire.consumer(), window=3)
    wire.send(*[wire.message() for _ in range(10)])
    received = 0
    while received < 10:
        messages = inbox.wait_for(min(received + 3, 10))
        assert inbox.consumption.in_hand <= 3
        inbox.consumption.finish(messages[received:])
        received = len(messages)
    assert len(set(inbox.ids)) == 10


def test_a_larger_window_brings_more_at_once(wire: BrokerStage) -> None:
    inbox = wire.open_inbox(wire.consumer(), window=2)
    wire.send(*[wire.message() for _ in range(10)])
    inbox.wait_for(2)
    inbox.consumption.resize(7)
    inbox.wait_for(7)
    assert inbox.consumption.in_hand == 7


def test_a_smaller_window_is_kept_from_then_on(wire: BrokerStage) -> None:
    inbox = wire.open_inbox(wire.consumer(ack_wait=wire.ack_wait), window=4)
    wire.send(*[wire.message() for _ in range(4)])
    first = inbox.wait_for(4)
    inbox.consumption.resize(2)
    wire.send(*[wire.message() for _ in range(4)])
    inbox.consumption.finish(first)
    inbox.wait_for(6)
    assert inbox.consumption.in_hand <= 2
    inbox.consumption.finish(inbox.messages[4:6])
    inbox.wait_for(8)


def test_the_broker_owes_no_more_than_max_ack_pending(wire: BrokerStage) -> None:
    spec = wire.consumer(max_ack_pending=3)
    inbox = wire.open_inbox(spec, window=10)
    wire.send(*[wire.message() for _ in range(6)])
    inbox.wait_for(3)
    assert wire.owed(spec) == (3, 3)
    state = wire.broker.consumer_state(spec.stream.name, spec.name, timeout=TIMEOUT)
    assert state is not None
    assert (state.delivered, state.paused) == (3, False)
    inbox.consumption.finish(inbox.messages[:3])
    inbox.wait_for(6)


def test_a_stopped_consumption_pulls_no_more(wire: BrokerStage) -> None:
    # What a server sent to the stopped one before it heard of the stop comes again after the wait.
    spec = wire.consumer(ack_wait=wire.ack_wait)
    stopped = wire.open_inbox(spec)
    wire.send(wire.message())
    stopped.wait_for(1)
    stopped.consumption.stop()
    running = wire.open_inbox(spec)
    wire.send(*[wire.message() for _ in range(5)])
    running.wait_for(5)
    assert len(stopped.messages) == 1


def test_what_a_stopped_consumption_holds_can_still_be_finished(wire: BrokerStage) -> None:
    spec = wire.consumer()
    inbox = wire.open_inbox(spec)
    wire.send(wire.message())
    messages = inbox.wait_for(1)
    inbox.consumption.stop()
    assert inbox.consumption.in_hand == 1
    inbox.consumption.finish(messages)
    eventually(lambda: wire.owed(spec) == (0, 0))
    assert inbox.consumption.in_hand == 0
