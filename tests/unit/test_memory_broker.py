"""What only the memory broker can show: delivery by hand, and the faults of a broker at a chosen moment."""

import threading

import attrs
import pytest

from eventdriven_sync.broker import Incoming
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.errors import BrokerUnavailable
from tests.contracts.stages import BrokerStage, FakeClock, Inbox
from tests.polling import eventually


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def broker(clock: FakeClock) -> MemoryBroker:
    return MemoryBroker(clock=clock, manual=True)


@pytest.fixture
def wire(broker: MemoryBroker, clock: FakeClock) -> BrokerStage:
    return BrokerStage(broker, MemoryBroker, clock, "unit")


@pytest.fixture
def inbox(wire: BrokerStage) -> Inbox:
    return wire.open_inbox(wire.consumer())


def test_by_hand_nothing_is_delivered_before_pumping(
    broker: MemoryBroker, wire: BrokerStage, inbox: Inbox
) -> None:
    wire.send(wire.message(), wire.message())
    assert inbox.messages == []
    assert [broker.pump(), broker.pump()] == [2, 0]
    assert len(inbox.messages) == 2


def test_by_hand_no_thread_is_started(wire: BrokerStage) -> None:
    before = set(threading.enumerate())
    wire.open_inbox(wire.consumer())
    assert set(threading.enumerate()) <= before


def test_its_thread_ends_with_it(wire: BrokerStage) -> None:
    broker = MemoryBroker()
    before = set(threading.enumerate())
    broker.consume(wire.consumer(), lambda messages: None, window=1)
    [thread] = set(threading.enumerate()) - before
    assert (thread.name, thread.daemon) == ("eventdriven-memory-broker", True)
    broker.close(timeout=5)
    assert not thread.is_alive()


def test_dropped_dispatches_never_arrive(broker: MemoryBroker, wire: BrokerStage, inbox: Inbox) -> None:
    broker.drop_dispatches = True
    assert broker.dispatch([wire.message(), wire.message()]) == 0
    broker.drop_dispatches = False
    wire.send(wire.message(message_id="kept"))
    broker.pump()
    assert inbox.ids == ["kept"]
    assert (broker.status().dispatched, broker.status().dropped) == (1, 2)


def test_disconnected_it_takes_and_delivers_nothing(
    broker: MemoryBroker, wire: BrokerStage, inbox: Inbox
) -> None:
    wire.send(wire.message())
    broker.disconnect()
    assert broker.dispatch([wire.message()]) == 0
    assert broker.pump() == 0
    assert (broker.status().connected, broker.status().last_error) == (False, "disconnected")
    with pytest.raises(BrokerUnavailable):
        wire.state(wire.consumer())
    broker.connect()
    assert broker.pump() == 1


def test_what_is_declared_while_disconnected_is_created_on_connecting(
    broker: MemoryBroker, wire: BrokerStage
) -> None:
    broker.disconnect()
    broker.declare_later([wire.consumer()])
    broker.connect()
    assert wire.owed(wire.consumer()) == (0, 0)


def test_an_acknowledgement_while_disconnected_is_lost(
    broker: MemoryBroker, wire: BrokerStage, inbox: Inbox, clock: FakeClock
) -> None:
    wire.send(wire.message())
    broker.pump()
    broker.disconnect()
    inbox.consumption.finish(inbox.messages)
    broker.connect()
    assert inbox.consumption.in_hand == 0
    assert broker.pump() == 0
    clock.advance(30)
    assert broker.pump() == 1
    assert inbox.messages[-1].delivered == 2


def test_wiped_it_goes_on_with_new_streams(broker: MemoryBroker, wire: BrokerStage, inbox: Inbox) -> None:
    wire.send(wire.message(message_id="gone"), wire.message())
    broker.pump()
    broker.wipe()
    assert wire.broker.streams("unit", timeout=1) == []
    wire.send(wire.message(message_id="gone"))
    broker.pump()
    assert (inbox.ids[-1], inbox.messages[-1].sequence) == ("gone", 1)
    inbox.consumption.finish(inbox.messages[:2])
    assert wire.owed(wire.consumer()) == (0, 1), "an acknowledgement from before the wipe counted"


def test_forgotten_acknowledgements_bring_everything_again(
    broker: MemoryBroker, wire: BrokerStage, inbox: Inbox
) -> None:
    wire.send(*[wire.message() for _ in range(3)])
    broker.pump()
    inbox.consumption.finish(inbox.messages[:2])
    broker.forget_acks()
    assert broker.pump() == 2
    assert inbox.ids[3:] == inbox.ids[:2]
    assert [message.delivered for message in inbox.messages[3:]] == [1, 1]


def test_redelivered_messages_come_while_they_are_in_hand(
    broker: MemoryBroker, wire: BrokerStage, inbox: Inbox
) -> None:
    wire.send(wire.message(), wire.message())
    broker.pump()
    inbox.consumption.finish(inbox.messages[:1])
    broker.redeliver()
    assert broker.pump() == 1
    assert (inbox.ids[2], inbox.messages[2].delivered) == (inbox.ids[1], 2)
    inbox.consumption.finish(inbox.messages[1:2])
    assert wire.owed(wire.consumer()) == (0, 0), "the earlier of two deliveries acknowledges the message"


def test_forgotten_counts_begin_at_one(broker: MemoryBroker, wire: BrokerStage, inbox: Inbox) -> None:
    wire.send(wire.message())
    broker.pump()
    inbox.consumption.release(inbox.messages)
    broker.forget_counts()
    assert broker.pump() == 1
    assert [message.delivered for message in inbox.messages] == [1, 1]


def test_messages_a_callback_could_not_take_come_again_after_the_wait(
    broker: MemoryBroker, wire: BrokerStage, clock: FakeClock
) -> None:
    calls: list[list[Incoming]] = []

    def deliver(messages: list[Incoming]) -> None:
        calls.append(messages)
        if len(calls) == 1:
            raise RuntimeError("full")

    consumption = broker.consume(wire.consumer(), deliver, window=5)
    wire.send(wire.message())
    broker.pump()
    assert (consumption.in_hand, broker.pump()) == (0, 0)
    clock.advance(30)
    broker.pump()
    assert [len(messages) for messages in calls] == [1, 1]


def test_the_thread_outlives_a_callback_that_raises(wire: BrokerStage) -> None:
    broker = MemoryBroker()
    broker.consume(wire.consumer("Blog__faulty"), lambda messages: 1 / 0, window=5)
    inbox = Inbox(broker, wire.consumer("Blog__good"), 5)
    broker.dispatch([wire.message()])
    inbox.wait_for(1)
    broker.dispatch([wire.message()])
    inbox.wait_for(2)
    broker.close(timeout=5)


def test_messages_older_than_the_stream_keeps_are_gone(
    broker: MemoryBroker, wire: BrokerStage, inbox: Inbox, clock: FakeClock
) -> None:
    wire.send(wire.message(message_id="old"))
    clock.advance(7 * 86400 + 1)
    wire.send(wire.message(message_id="young"))
    broker.pump()
    assert inbox.ids == ["young"]


def test_a_message_outside_the_streams_subjects_is_dropped(broker: MemoryBroker, wire: BrokerStage) -> None:
    stray = wire.message("User.created")
    assert broker.dispatch([attrs.evolve(stray, stream=wire.stream("Post"))]) == 0
    assert "does not take" in broker.status().last_error


def test_closing_gives_back_what_is_in_hand(broker: MemoryBroker, wire: BrokerStage, inbox: Inbox) -> None:
    wire.send(wire.message())
    broker.pump()
    broker.close(timeout=1)
    assert inbox.consumption.in_hand == 0
    with pytest.raises(BrokerUnavailable):
        broker.declare([wire.consumer()], timeout=1)


def test_the_thread_looks_at_the_clock_while_something_is_owed(clock: FakeClock) -> None:
    broker = MemoryBroker(clock=clock)
    wire = BrokerStage(broker, MemoryBroker, clock, "unit")
    inbox = wire.open_inbox(wire.consumer())
    wire.send(wire.message())
    inbox.consumption.forget(inbox.wait_for(1))
    clock.advance(30)
    eventually(lambda: len(inbox.messages) == 2)
    wire.close()
