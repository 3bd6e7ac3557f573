"""What every ``Broker`` promises, on the memory broker and on NATS."""

import time
from datetime import timedelta
from typing import Any

import attrs
import pytest

from eventdriven_sync.broker import Outgoing
from eventdriven_sync.errors import BrokerUnavailable, ConsumerConflict, StreamConflict
from tests.contracts.stages import TIMEOUT, BrokerStage
from tests.polling import eventually

# --- declaring ----------------------------------------------------------------------------------------


def test_declaring_creates_streams_and_consumers(wire: BrokerStage) -> None:
    first, second = wire.consumer(), wire.consumer("Comment__count", token="Post")
    wire.broker.declare([first, second], timeout=TIMEOUT)
    for spec in (first, second):
        state = wire.broker.consumer_state(spec.stream.name, spec.name, timeout=TIMEOUT)
        assert state is not None
        assert (state.stream, state.name, state.pending, state.ack_pending) == (
            spec.stream.name,
            spec.name,
            0,
            0,
        )


def test_declaring_again_changes_nothing(wire: BrokerStage) -> None:
    wire.broker.declare([wire.consumer()], timeout=TIMEOUT)
    wire.send(wire.message())
    wire.broker.declare([wire.consumer()], timeout=TIMEOUT)
    assert len(wire.open_inbox(wire.consumer()).wait_for(1)) == 1


@pytest.mark.parametrize("change", [{"max_age": 3600.0}, {"subjects": ("other.User.>",)}])
def test_a_stream_with_other_settings_is_a_conflict(wire: BrokerStage, change: dict[str, Any]) -> None:
    wire.broker.declare([wire.consumer()], timeout=TIMEOUT)
    other = wire.consumer("Blog__other", stream=wire.stream(**change))
    with pytest.raises(StreamConflict):
        wire.broker.declare([other], timeout=TIMEOUT)
    wire.broker.declare([wire.consumer()], timeout=TIMEOUT)


@pytest.mark.parametrize(
    "change", [{"ack_wait": 7.0}, {"max_ack_pending": 5}, {"subjects": ("{namespace}.User.other",)}]
)
def test_a_consumer_with_other_settings_is_a_conflict(wire: BrokerStage, change: dict[str, Any]) -> None:
    wire.broker.declare([wire.consumer()], timeout=TIMEOUT)
    if "subjects" in change:  # subjects outside the stream would be refused for that alone
        change = {"subjects": tuple(each.format(namespace=wire.namespace) for each in change["subjects"])}
    with pytest.raises(ConsumerConflict):
        wire.broker.declare([wire.consumer(**change)], timeout=TIMEOUT)
    wire.broker.declare([wire.consumer()], timeout=TIMEOUT)


def test_another_starting_time_is_no_conflict(wire: BrokerStage) -> None:
    wire.send(wire.message())
    stored_at = wire.open_inbox(wire.consumer("Blog__look")).wait_for(1)[0].stored_at
    wire.broker.declare([wire.consumer()], timeout=TIMEOUT)
    wire.broker.declare([wire.consumer(starts_at=stored_at + timedelta(seconds=5))], timeout=TIMEOUT)
    wire.open_inbox(wire.consumer()).wait_for(1)


def test_declaring_later_creates_without_waiting(wire: BrokerStage) -> None:
    spec = wire.consumer()
    wire.broker.declare_later([spec])
    eventually(lambda: wire.broker.consumer_state(spec.stream.name, spec.name, timeout=TIMEOUT))


def test_a_conflict_found_later_goes_to_the_status(wire: BrokerStage) -> None:
    wire.broker.declare([wire.consumer()], timeout=TIMEOUT)
    wire.broker.declare_later([wire.consumer(ack_wait=7.0)])
    eventually(lambda: "Blog__notify" in wire.broker.status().last_error)


# --- dispatching --------------------------------------------------------------------------------------


def test_a_message_arrives_as_it_was_sent(wire: BrokerStage) -> None:
    sent = wire.message()
    wire.send(sent)
    [got] = wire.open_inbox(wire.consumer()).wait_for(1)
    assert (got.stream, got.sequence, got.subject, got.data, got.delivered) == (
        sent.stream.name,
        1,
        sent.subject,
        sent.data,
        1,
    )
    assert got.headers["Nats-Msg-Id"] == sent.message_id
    assert got.stored_at.utcoffset() == timedelta(0)


def test_dispatching_creates_a_missing_stream(wire: BrokerStage) -> None:
    wire.send(wire.message("Post.published"))
    [stream] = wire.broker.streams(wire.stream("Post").name, timeout=TIMEOUT)
    assert stream.messages == 1


def test_dispatching_nothing_takes_nothing(wire: BrokerStage) -> None:
    assert wire.broker.dispatch([]) == 0


def test_a_message_id_is_stored_once_per_stream(wire: BrokerStage) -> None:
    wire.send(
        wire.message(message_id="same"),
        wire.message(message_id="same"),
        wire.message("Post.published", message_id="same"),
    )
    wire.send(wire.message(message_id="same"))
    counts = [state.messages for state in wire.broker.streams(wire.namespace, timeout=TIMEOUT)]
    assert counts == [1, 1]


# --- publishing ---------------------------------------------------------------------------------------


def publish(wire: BrokerStage, *messages: Outgoing, timeout: float = TIMEOUT) -> list[bytes | None]:
    """Publish, with a reader of the stream that is there before the first message."""
    readers = {each.stream.name: wire.consumer("recorder", stream=each.stream) for each in messages}
    return wire.broker.publish(messages, consumers=list(readers.values()), timeout=timeout)


def test_what_is_published_is_in_its_stream_when_the_call_returns(wire: BrokerStage) -> None:
    messages = [wire.message(), wire.message("Post.published"), wire.message()]
    assert publish(wire, *messages) == [None] * 3
    counts = [state.messages for state in wire.broker.streams(wire.namespace, timeout=TIMEOUT)]
    assert sorted(counts) == [1, 2]
    [got] = wire.open_inbox(wire.consumer(token="Post")).wait_for(1)
    assert (got.data, got.headers["Nats-Msg-Id"]) == (messages[1].data, messages[1].message_id)


def test_publishing_creates_what_reads_the_stream_before_it_sends(wire: BrokerStage) -> None:
    publish(wire, wire.message())
    state = wire.state(wire.consumer("recorder"))
    assert (state.pending, state.acknowledged) == (1, 0)
    inbox = wire.open_inbox(wire.consumer("recorder"))
    inbox.consumption.finish(inbox.wait_for(1))
    eventually(lambda: wire.state(wire.consumer("recorder")).acknowledged == 1)


def test_publishing_under_a_known_id_stores_nothing_and_tells_what_is_there(wire: BrokerStage) -> None:
    first = wire.message(message_id="same")
    other = attrs.evolve(first, data=b'{"user_id": "other"}')
    assert publish(wire, first) == [None]
    assert publish(wire, wire.message(), other) == [None, first.data]
    [stream] = wire.broker.streams(wire.namespace, timeout=TIMEOUT)
    assert stream.messages == 2


def test_publishing_an_id_twice_in_one_call_is_one_message(wire: BrokerStage) -> None:
    first = wire.message(message_id="same")
    other = attrs.evolve(first, data=b'{"user_id": "other"}')
    assert publish(wire, first, other) == [None, first.data]


def test_publishing_nothing_is_harmless(wire: BrokerStage) -> None:
    assert wire.broker.publish([], consumers=[], timeout=TIMEOUT) == []


def test_publishing_without_a_server_is_unavailable_within_the_deadline(wire: BrokerStage) -> None:
    broker, began = wire.unreachable(), time.monotonic()
    with pytest.raises(BrokerUnavailable):
        broker.publish([wire.message()], consumers=[wire.consumer("recorder")], timeout=0.5)
    assert time.monotonic() - began < 2.0
    broker.close(timeout=TIMEOUT)


def test_publishing_to_a_reader_of_other_settings_is_a_conflict(wire: BrokerStage) -> None:
    wire.broker.declare([wire.consumer("recorder", ack_wait=7.0)], timeout=TIMEOUT)
    with pytest.raises(ConsumerConflict):
        publish(wire, wire.message())


def test_the_status_counts_dispatches(wire: BrokerStage) -> None:
    wire.send(wire.message(), wire.message())
    status = wire.broker.status()
    assert (status.connected, status.dispatched, status.dropped, status.in_flight) == (True, 2, 0, 0)
    assert status.server["version"]


def test_flushing_without_dispatches_is_done_at_once(wire: BrokerStage) -> None:
    wire.broker.declare([wire.consumer()], timeout=TIMEOUT)
    assert wire.broker.flush(timeout=TIMEOUT)


def test_facts_for_the_doctor_are_told_within_the_timeout(wire: BrokerStage) -> None:
    info = wire.broker.info(timeout=TIMEOUT)
    assert info == {"version": "memory"} or int(str(info["api_level"])) >= 1


# --- delivering ---------------------------------------------------------------------------------------


def test_messages_arrive_in_the_order_of_their_dispatch(wire: BrokerStage) -> None:
    messages = [wire.message() for _ in range(50)]
    wire.send(*messages)
    inbox = wire.open_inbox(wire.consumer())
    inbox.wait_for(50)
    assert inbox.ids == [message.message_id for message in messages]


def test_messages_dispatched_while_consuming_arrive(wire: BrokerStage) -> None:
    inbox = wire.open_inbox(wire.consumer())
    for count in (1, 2, 3):
        wire.send(wire.message())
        inbox.wait_for(count)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["User.>"], ["User.created", "User.name.updated", "User.name.deep.updated"]),
        (["User.*"], ["User.created"]),
        (["User.*.updated"], ["User.name.updated"]),
        (["User.created", "User.name.>"], ["User.created", "User.name.updated", "User.name.deep.updated"]),
        (["User.creat"], []),
    ],
)
def test_a_consumer_gets_only_its_subjects(
    wire: BrokerStage, filters: list[str], expected: list[str]
) -> None:
    names = ["User.created", "User.name.updated", "User.name.deep.updated"]
    wire.send(*[wire.message(name, message_id=name) for name in names])
    subjects = tuple(f"{wire.namespace}.{each}" for each in filters)
    spec = wire.consumer(subjects=subjects)
    wire.broker.declare([spec], timeout=TIMEOUT)
    state = wire.broker.consumer_state(spec.stream.name, spec.name, timeout=TIMEOUT)
    assert state is not None
    assert state.pending == len(expected)
    inbox = wire.open_inbox(spec)
    inbox.wait_for(len(expected))
    assert inbox.ids == expected


def test_every_consumer_gets_every_message(wire: BrokerStage) -> None:
    wire.send(wire.message(), wire.message())
    inboxes = [wire.open_inbox(wire.consumer(name)) for name in ("Blog__notify", "Comment__count")]
    for inbox in inboxes:
        inbox.wait_for(2)


def test_consumptions_of_one_consumer_share_its_messages(wire: BrokerStage) -> None:
    left, right = (wire.open_inbox(wire.consumer(), window=10) for _ in range(2))
    wire.send(*[wire.message() for _ in range(20)])
    eventually(lambda: len(left.messages) + len(right.messages) == 20)
    assert len(set(left.ids) | set(right.ids)) == 20
    assert len(left.messages) == len(right.messages) == 10


def test_a_consumer_without_start_gets_everything_stored_before(wire: BrokerStage) -> None:
    wire.send(wire.message(), wire.message())
    wire.open_inbox(wire.consumer()).wait_for(2)


def test_a_consumer_with_a_start_gets_only_what_was_stored_from_then_on(wire: BrokerStage) -> None:
    wire.send(wire.message(message_id="before"))
    stored_at = wire.open_inbox(wire.consumer("Blog__look")).wait_for(1)[0].stored_at
    wire.pass_time(0.05)
    wire.send(wire.message(message_id="after"))
    inbox = wire.open_inbox(wire.consumer(starts_at=stored_at + timedelta(seconds=0.02)))
    inbox.wait_for(1)
    assert inbox.ids == ["after"]


# --- looking ------------------------------------------------------------------------------------------


def test_a_missing_consumer_or_stream_has_no_state(wire: BrokerStage) -> None:
    wire.broker.declare([wire.consumer()], timeout=TIMEOUT)
    name = wire.stream().name
    assert wire.broker.consumer_state(name, "Blog__missing", timeout=TIMEOUT) is None
    assert wire.broker.consumer_state(f"{name}_missing", "Blog__notify", timeout=TIMEOUT) is None


def test_the_state_tells_what_is_owed(wire: BrokerStage) -> None:
    spec = wire.consumer()
    inbox = wire.open_inbox(spec, window=2)
    wire.send(*[wire.message() for _ in range(5)])
    inbox.wait_for(2)
    eventually(lambda: wire.owed(spec) == (3, 2))
    inbox.consumption.stop()
    inbox.consumption.finish(inbox.messages[:1])
    eventually(lambda: wire.owed(spec) == (3, 1))


def test_the_oldest_message_owed_is_known(wire: BrokerStage) -> None:
    spec = wire.consumer()
    inbox = wire.open_inbox(spec)
    wire.send(wire.message())
    wire.pass_time(0.05)
    wire.send(wire.message())
    first, second = inbox.wait_for(2)
    assert wire.oldest(spec) == first.stored_at
    inbox.consumption.finish([first])
    eventually(lambda: wire.oldest(spec) == second.stored_at)
    inbox.consumption.finish([second])
    eventually(lambda: wire.oldest(spec) is None)


def test_the_oldest_message_not_delivered_yet_is_known(wire: BrokerStage) -> None:
    spec = wire.consumer()
    wire.broker.declare([spec], timeout=TIMEOUT)
    assert wire.oldest(spec) is None
    wire.send(wire.message())
    stored_at = wire.open_inbox(wire.consumer("Blog__look")).wait_for(1)[0].stored_at
    assert wire.oldest(spec) == stored_at


def test_streams_are_listed_by_prefix_with_their_consumers(wire: BrokerStage) -> None:
    specs = [wire.consumer(), wire.consumer("Comment__count"), wire.consumer(token="Post")]
    wire.broker.declare(specs, timeout=TIMEOUT)
    wire.send(wire.message(), wire.message())
    states = {state.name: state for state in wire.broker.streams(f"{wire.namespace}_", timeout=TIMEOUT)}
    assert set(states) == {wire.stream().name, wire.stream("Post").name}
    users = states[wire.stream().name]
    assert (users.messages, users.first_sequence, users.last_sequence) == (2, 1, 2)
    assert users.subjects == wire.stream().subjects
    assert users.size_bytes > 0
    assert {(each.name, each.pending) for each in users.consumers} == {
        ("Blog__notify", 2),
        ("Comment__count", 2),
    }
    assert wire.broker.streams("nobody_", timeout=TIMEOUT) == []


def test_a_consumer_is_deleted_once(wire: BrokerStage) -> None:
    spec = wire.consumer()
    wire.broker.declare([spec], timeout=TIMEOUT)
    answers = [wire.broker.delete_consumer(spec.stream.name, spec.name, timeout=TIMEOUT) for _ in range(2)]
    assert answers == [True, False]
    assert wire.broker.consumer_state(spec.stream.name, spec.name, timeout=TIMEOUT) is None


def test_a_consumer_that_vanishes_while_consuming_is_created_again(wire: BrokerStage) -> None:
    spec = wire.consumer()
    inbox = wire.open_inbox(spec)
    wire.send(wire.message())
    inbox.consumption.finish(inbox.wait_for(1))
    assert wire.broker.delete_consumer(spec.stream.name, spec.name, timeout=TIMEOUT)
    wire.send(wire.message(message_id="after"))
    eventually(lambda: "after" in inbox.ids, timeout=20)


# --- without a server ---------------------------------------------------------------------------------


def test_without_a_server_blocking_calls_end_in_time(wire: BrokerStage) -> None:
    broker = wire.unreachable()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        broker.declare([wire.consumer()], timeout=0.3)
    with pytest.raises(BrokerUnavailable):
        broker.consumer_state(wire.stream().name, "Blog__notify", timeout=0.3)
    with pytest.raises(BrokerUnavailable):
        broker.streams(wire.namespace, timeout=0.3)
    with pytest.raises(BrokerUnavailable):
        broker.delete_consumer(wire.stream().name, "Blog__notify", timeout=0.3)
    broker.close(timeout=1.0)
    assert time.monotonic() - began < 5.0


def test_without_a_server_dispatching_and_consuming_never_raise(wire: BrokerStage) -> None:
    broker = wire.unreachable()
    taken = broker.dispatch([wire.message(), wire.message()])
    assert 0 <= taken <= 2
    broker.declare_later([wire.consumer()])
    consumption = broker.consume(wire.consumer(), lambda messages: None, window=10)
    status = broker.status()
    assert (status.connected, status.dispatched) == (False, taken)
    assert status.dropped == 2 - taken
    consumption.stop()
    broker.close(timeout=1.0)


def test_closing_twice_is_harmless_and_nothing_is_taken_afterwards(wire: BrokerStage) -> None:
    wire.open_inbox(wire.consumer())
    wire.send(wire.message())
    for _ in range(2):
        wire.broker.close(timeout=TIMEOUT)
    assert wire.broker.dispatch([wire.message()]) == 0
    assert not wire.broker.status().connected


def test_closing_a_broker_that_was_never_used_is_harmless(wire: BrokerStage) -> None:
    wire.broker.close(timeout=TIMEOUT)
