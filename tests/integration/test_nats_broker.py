"""The NATS broker on a real server, which is killed, paused, wiped and lied to."""

import asyncio
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest

from eventdriven_sync.broker import ConsumerSpec, Incoming, Outgoing, StreamSpec
from eventdriven_sync.brokers import bridge
from eventdriven_sync.brokers.client import NatsClient
from eventdriven_sync.brokers.nats import NatsBroker
from eventdriven_sync.brokers.pulling import Pull
from eventdriven_sync.devserver import NatsServer, ServerBinaryMissing
from eventdriven_sync.errors import (
    BrokerPermissionDenied,
    BrokerUnavailable,
    Closed,
    ConfigurationError,
    ConsumerConflict,
    StreamConflict,
    UnsafeStream,
)
from tests.polling import eventually

Connect = Callable[..., NatsBroker]


class ConfiguredServer(NatsServer):
    """A nats-server with more settings; None removes one."""

    settings: dict[str, Any] = {}

    def _command(self, binary: str) -> list[str]:
        command = super()._command(binary)
        config = self.directory / "nats.conf"
        settings = json.loads(config.read_text()) | self.settings
        config.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
        return command

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def start(server: NatsServer) -> NatsServer:
    try:
        return server.start()
    except ServerBinaryMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = start(NatsServer(tmp_path_factory.mktemp("nats")))
    yield server
    server.kill()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsServer]:
    server = start(NatsServer(tmp_path))
    yield server
    server.resume()
    server.kill()


@pytest.fixture
def connect() -> Iterator[Connect]:
    brokers: list[NatsBroker] = []

    def build(url: str, **options: Any) -> NatsBroker:
        brokers.append(NatsBroker(url, namespace="test", **options))
        return brokers[-1]

    yield build
    for broker in brokers:
        broker.close(timeout=2)


@pytest.fixture
def broker(shared_server: NatsServer, connect: Connect) -> NatsBroker:
    return connect(shared_server.url)


@pytest.fixture
def stream(namespace: str) -> StreamSpec:
    return StreamSpec(name=f"{namespace}_User", subjects=(f"{namespace}.User.>",))


@pytest.fixture
def spec(stream: StreamSpec) -> ConsumerSpec:
    return consumer(stream)


def consumer(stream: StreamSpec, **options: Any) -> ConsumerSpec:
    subject = stream.subjects[0].replace(">", "named")
    return ConsumerSpec(stream=stream, **{"name": "Blog__update", "subjects": (subject,)} | options)


def messages(spec: ConsumerSpec, *numbers: int, data: bytes = b'{"a":1}') -> list[Outgoing]:
    return [
        Outgoing(stream=spec.stream, subject=spec.subjects[0], message_id=f"id{number}", data=data)
        for number in numbers
    ]


class Reader:
    """A running consumption and what it delivered; finishes everything when told so."""

    def __init__(
        self, broker: NatsBroker, spec: ConsumerSpec, *, window: int = 500, finish: bool = True
    ) -> None:
        self.got: list[Incoming] = []
        self.most_in_hand = 0
        self._finish = finish
        self._ready = threading.Event()
        self.pull: Pull = broker.consume(spec, self._deliver, window=window)
        self._ready.set()

    def _deliver(self, batch: list[Incoming]) -> None:
        self._ready.wait(5)
        self.got += batch
        self.most_in_hand = max(self.most_in_hand, self.pull.in_hand)
        if self._finish:
            self.pull.finish(batch)

    @property
    def ids(self) -> list[str]:
        return [message.headers["Nats-Msg-Id"] for message in self.got]


def wait_for(seconds: float) -> None:
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > end, timeout=seconds + 5)


def nothing_owed(broker: NatsBroker, spec: ConsumerSpec) -> bool:
    state = broker.consumer_state(spec.stream.name, spec.name, timeout=5)
    return state is not None and (state.pending, state.ack_pending) == (0, 0)


def stored(broker: NatsBroker, spec: ConsumerSpec) -> int:
    return broker.streams(spec.stream.name, timeout=5)[0].messages


# --- the ordinary course ------------------------------------------------------------------------------


def test_dispatched_messages_arrive_once_and_finishing_them_leaves_nothing(
    broker: NatsBroker, spec: ConsumerSpec
) -> None:
    broker.declare([spec], timeout=5)
    reader = Reader(broker, spec)
    assert broker.dispatch(messages(spec, *range(1000))) == 1000
    assert broker.flush(timeout=10)
    eventually(lambda: len(reader.got) == 1000)
    assert reader.ids == [f"id{number}" for number in range(1000)]
    eventually(lambda: nothing_owed(broker, spec))
    state = broker.consumer_state(spec.stream.name, spec.name, timeout=5)
    assert state is not None
    assert (state.redelivered, state.oldest_at) == (0, None)
    status = broker.status()
    assert (status.dispatched, status.dropped, status.in_flight, status.rebuilt) == (1000, 0, 0, 0)


def test_a_message_tells_where_and_when_it_was_stored(broker: NatsBroker, spec: ConsumerSpec) -> None:
    reader = Reader(broker, spec)
    broker.dispatch(messages(spec, 7, data=b"payload"))
    (message,) = eventually(lambda: reader.got)
    assert (message.stream, message.sequence, message.delivered) == (spec.stream.name, 1, 1)
    assert (message.subject, message.data) == (spec.subjects[0], b"payload")
    assert message.headers == {"Nats-Msg-Id": "id7"}
    assert abs(datetime.now(UTC) - message.stored_at) < timedelta(seconds=30)


def test_dispatch_creates_a_missing_stream(broker: NatsBroker, spec: ConsumerSpec) -> None:
    broker.dispatch(messages(spec, 1, 2))
    assert broker.flush(timeout=10)
    assert stored(broker, spec) == 2


def test_the_same_id_is_stored_once(broker: NatsBroker, spec: ConsumerSpec) -> None:
    broker.dispatch(messages(spec, 1, 1, 1))
    assert broker.flush(timeout=10)
    assert stored(broker, spec) == 1


def test_released_messages_come_again_at_once(broker: NatsBroker, spec: ConsumerSpec) -> None:
    reader = Reader(broker, spec, finish=False)
    broker.dispatch(messages(spec, 1))
    eventually(lambda: reader.got)
    reader.pull.release(reader.got)
    eventually(lambda: len(reader.got) == 2, timeout=10)
    assert [message.delivered for message in reader.got] == [1, 2]


def test_forgotten_messages_come_again_after_ack_wait(broker: NatsBroker, stream: StreamSpec) -> None:
    spec = consumer(stream, ack_wait=1.0)
    reader = Reader(broker, spec, finish=False)
    broker.dispatch(messages(spec, 1))
    eventually(lambda: reader.got)
    began = time.monotonic()
    reader.pull.forget(reader.got)
    eventually(lambda: len(reader.got) == 2)
    assert time.monotonic() - began > 0.5


def test_a_message_in_hand_does_not_come_again_however_long_it_takes(
    broker: NatsBroker, stream: StreamSpec
) -> None:
    spec = consumer(stream, ack_wait=0.6)
    reader = Reader(broker, spec, finish=False)
    other = Reader(broker, spec, finish=False)
    broker.dispatch(messages(spec, 1))
    eventually(lambda: reader.got or other.got)
    wait_for(2.5)
    assert len(reader.got) + len(other.got) == 1
    state = broker.consumer_state(spec.stream.name, spec.name, timeout=5)
    assert state is not None
    assert (state.redelivered, state.ack_pending) == (0, 1)
    for one in (reader, other):
        one.pull.finish(one.got)
    eventually(lambda: nothing_owed(broker, spec))


def test_the_window_is_never_exceeded(broker: NatsBroker, spec: ConsumerSpec) -> None:
    reader = Reader(broker, spec, window=10, finish=False)
    broker.dispatch(messages(spec, *range(100)))
    for done in range(0, 100, 7):
        eventually(partial(has_got, reader, min(done + 10, 100)))
        assert reader.pull.in_hand <= 10
        reader.pull.finish(reader.got[done : done + 7])
    eventually(lambda: nothing_owed(broker, spec))
    assert reader.most_in_hand == 10


def has_got(reader: Reader, count: int) -> bool:
    return len(reader.got) >= count


def test_a_window_can_shrink_and_grow(broker: NatsBroker, spec: ConsumerSpec) -> None:
    reader = Reader(broker, spec, window=50, finish=False)
    eventually(lambda: waiting_pulls(broker, spec))
    reader.pull.resize(5)
    eventually(lambda: reader.pull._inbox and reader.pull._requested == 5)
    broker.dispatch(messages(spec, *range(100)))
    eventually(lambda: reader.pull.in_hand == 5)
    wait_for(0.3)
    assert reader.pull.in_hand == 5
    reader.pull.resize(30)
    eventually(lambda: reader.pull.in_hand == 30)


def waiting_pulls(broker: NatsBroker, spec: ConsumerSpec) -> int:
    state = broker.consumer_state(spec.stream.name, spec.name, timeout=5)
    return 0 if state is None else state.waiting


def test_a_stopped_consumption_takes_nothing_more_and_can_finish_what_it_has(
    broker: NatsBroker, spec: ConsumerSpec
) -> None:
    stopped = Reader(broker, spec, finish=False)
    broker.dispatch(messages(spec, 1))
    eventually(lambda: stopped.got)
    stopped.pull.stop()
    eventually(lambda: waiting_pulls(broker, spec) == 0)
    other = Reader(broker, spec)
    broker.dispatch(messages(spec, *range(2, 50)))
    eventually(lambda: len(other.got) == 48)
    assert (len(stopped.got), stopped.pull.in_hand) == (1, 1)
    stopped.pull.finish(stopped.got)
    eventually(lambda: nothing_owed(broker, spec))


def test_a_consumer_starts_where_it_is_told(broker: NatsBroker, stream: StreamSpec) -> None:
    everything = consumer(stream, name="Blog__all")
    broker.dispatch(messages(everything, 1, 2))
    assert broker.flush(timeout=5)
    late = consumer(stream, name="Blog__late", starts_at=datetime.now(UTC))
    latest = consumer(stream, name="Blog__latest", starts_at=datetime.max.replace(tzinfo=UTC))
    broker.declare([everything, late, latest], timeout=5)
    broker.dispatch(messages(everything, 3))
    readers = [Reader(broker, spec) for spec in (everything, late, latest)]
    eventually(lambda: readers[0].ids == ["id1", "id2", "id3"])
    eventually(lambda: readers[1].ids == ["id3"])
    eventually(lambda: readers[2].ids == ["id3"])


def test_a_backlog_tells_when_its_oldest_message_was_stored(broker: NatsBroker, stream: StreamSpec) -> None:
    spec = consumer(
        stream, subjects=(stream.subjects[0].replace(">", "named"), stream.subjects[0][:-1] + "x")
    )
    broker.declare([spec], timeout=5)
    assert broker.consumer_state(stream.name, "nobody", timeout=5) is None
    assert broker.consumer_state("nothing", "nobody", timeout=5) is None
    reader = Reader(broker, spec, window=1, finish=False)
    broker.dispatch(messages(spec, 1, 2, 3))
    eventually(lambda: reader.got)
    assert broker.flush(timeout=5)
    state = broker.consumer_state(stream.name, spec.name, timeout=5)
    assert state is not None
    assert (state.pending, state.ack_pending) == (2, 1)
    assert state.oldest_at == reader.got[0].stored_at
    assert state.config["max_deliver"] == -1


def test_streams_are_listed_with_their_consumers(broker: NatsBroker, stream: StreamSpec) -> None:
    specs = [consumer(stream, name=f"Blog__{number}") for number in range(3)]
    broker.declare(specs, timeout=5)
    broker.dispatch(messages(specs[0], 1))
    assert broker.flush(timeout=5)
    (found,) = broker.streams(stream.name, timeout=5)
    assert (found.subjects, found.messages, found.last_sequence) == (stream.subjects, 1, 1)
    assert found.config["storage"] == "file"
    assert sorted(state.name for state in found.consumers) == ["Blog__0", "Blog__1", "Blog__2"]
    assert all(state.oldest_at for state in found.consumers)
    assert broker.streams("nothing", timeout=5) == []


def test_a_consumer_can_be_deleted_once(broker: NatsBroker, spec: ConsumerSpec) -> None:
    broker.declare([spec], timeout=5)
    assert broker.delete_consumer(spec.stream.name, spec.name, timeout=5) is True
    assert broker.delete_consumer(spec.stream.name, spec.name, timeout=5) is False


# --- conflicts --------------------------------------------------------------------------------------------


def test_a_stream_with_other_settings_is_refused_and_not_changed(
    broker: NatsBroker, stream: StreamSpec, spec: ConsumerSpec
) -> None:
    broker.declare([spec], timeout=5)
    other = StreamSpec(name=stream.name, subjects=stream.subjects, max_age=3600.0)
    with pytest.raises(
        StreamConflict, match=r"max_age is 604800 s, we need 3600 s.*nats stream edit"
    ) as caught:
        broker.declare([consumer(other)], timeout=5)
    assert (caught.value.field, caught.value.want) == ("max_age", "3600 s")
    assert broker.streams(stream.name, timeout=5)[0].config["max_age"] == 604_800 * 10**9


def test_a_consumer_with_other_settings_is_refused_and_not_changed(
    broker: NatsBroker, spec: ConsumerSpec
) -> None:
    broker.declare([spec], timeout=5)
    with pytest.raises(ConsumerConflict, match=r"ack_wait is 30 s, we need 5 s.*nats consumer edit"):
        broker.declare([consumer(spec.stream, ack_wait=5.0)], timeout=5)
    state = broker.consumer_state(spec.stream.name, spec.name, timeout=5)
    assert state is not None
    assert state.config["ack_wait"] == 30 * 10**9


def test_a_stream_that_can_lose_events_is_refused(
    broker: NatsBroker, spec: ConsumerSpec, shared_server: NatsServer
) -> None:
    create_stream(shared_server, spec.stream, storage="memory")
    with pytest.raises(UnsafeStream, match=r"storage is memory, we need file.*can be lost"):
        broker.declare([spec], timeout=5)


def test_a_stream_that_throws_away_unhandled_events_is_refused(
    broker: NatsBroker, spec: ConsumerSpec, shared_server: NatsServer
) -> None:
    create_stream(shared_server, spec.stream, max_msgs=2)
    with pytest.raises(UnsafeStream, match=r"discard is old, with max_msgs 2"):
        broker.declare([spec], timeout=5)


def test_subjects_that_another_stream_takes_are_a_conflict(
    broker: NatsBroker, spec: ConsumerSpec, shared_server: NatsServer
) -> None:
    other = StreamSpec(name=f"{spec.stream.name}-foreign", subjects=spec.stream.subjects)
    create_stream(shared_server, other)
    with pytest.raises(StreamConflict, match=f"already taken by {other.name}"):
        broker.declare([spec], timeout=5)
    broker.dispatch(messages(spec, 1))
    assert broker.flush(timeout=5)
    status = broker.status()
    assert (status.dropped, status.in_flight) == (1, 0)
    assert f"taken by stream '{other.name}'" in status.last_error


def create_stream(server: NatsServer, spec: StreamSpec, **options: Any) -> None:
    async def create() -> None:
        client = await nats.connect(server.url)
        await client.jetstream().add_stream(name=spec.name, subjects=list(spec.subjects), **options)
        await client.close()

    asyncio.run(create())


def test_a_failure_of_declare_later_is_told_by_the_status(broker: NatsBroker, spec: ConsumerSpec) -> None:
    broker.declare_later([spec])
    eventually(lambda: broker.consumer_state(spec.stream.name, spec.name, timeout=5))
    broker.declare_later([consumer(spec.stream, ack_wait=5.0), consumer(spec.stream, name="Blog__other")])
    eventually(lambda: "ack_wait is 30 s, we need 5 s" in broker.status().last_error)
    eventually(lambda: broker.consumer_state(spec.stream.name, "Blog__other", timeout=5))


# --- strange messages -------------------------------------------------------------------------------------


def publish_raw(server: NatsServer, subject: bytes, *, header: bytes = b"", data: bytes = b"x") -> None:
    """What a foreign publisher may send; the server takes it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
        sizes = b"%d %d" % (len(header), len(header) + len(data)) if header else b"%d" % len(data)
        verb = b"HPUB" if header else b"PUB"
        connection.sendall(verb + b" " + subject + b" " + sizes + b"\r\n" + header + data + b"\r\nPING\r\n")
        with connection.makefile("rb") as lines:
            while lines.readline() != b"PONG\r\n":
                pass


def test_a_subject_that_is_no_utf8_arrives_readable_and_stops_nothing(
    broker: NatsBroker, stream: StreamSpec, shared_server: NatsServer
) -> None:
    spec = consumer(stream, subjects=stream.subjects)
    reader = Reader(broker, spec)
    broker.declare([spec], timeout=5)
    prefix = stream.subjects[0][:-1].encode()
    publish_raw(shared_server, prefix + b"\xff\xfe", data=b"bad")
    publish_raw(shared_server, prefix + b"named", data=b"good")
    eventually(lambda: [message.data for message in reader.got] == [b"bad", b"good"])
    assert reader.got[0].subject == prefix.decode() + "\\xff\\xfe"
    eventually(lambda: nothing_owed(broker, spec))
    assert broker.status().rebuilt == 0


@pytest.mark.parametrize("status", ["404", "503", "100", "paid"])
def test_a_message_with_a_header_named_status_is_delivered(
    broker: NatsBroker, spec: ConsumerSpec, shared_server: NatsServer, status: str
) -> None:
    reader = Reader(broker, spec)
    broker.declare([spec], timeout=5)
    header = b"NATS/1.0\r\nStatus: " + status.encode() + b"\r\n\r\n"
    publish_raw(shared_server, spec.subjects[0].encode(), header=header, data=b"")
    eventually(lambda: reader.got)
    assert reader.got[0].headers["Status"] == status
    eventually(lambda: nothing_owed(broker, spec))


@pytest.mark.parametrize(
    "header", [b"X", b"NATS/1.0\r\n\xff\xfe: \xff\r\n\r\n", b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0"]
)
def test_headers_that_cannot_be_read_stop_nothing(
    broker: NatsBroker, spec: ConsumerSpec, shared_server: NatsServer, header: bytes
) -> None:
    reader = Reader(broker, spec)
    broker.declare([spec], timeout=5)
    publish_raw(shared_server, spec.subjects[0].encode(), header=header, data=b"bad")
    broker.dispatch(messages(spec, 1, data=b"good"))
    eventually(lambda: [message.data for message in reader.got] == [b"bad", b"good"])
    assert broker.status().rebuilt == 0


def test_a_message_that_fits_only_without_its_headers_does_not_cost_the_connection(
    broker: NatsBroker, spec: ConsumerSpec
) -> None:
    broker.dispatch(messages(spec, 1, data=b"x" * (1024 * 1024 - 10)) + messages(spec, 2))
    assert broker.flush(timeout=10)
    status = broker.status()
    assert (status.dropped, status.rebuilt, status.connected) == (1, 0, True)
    assert "max_payload" in status.last_error
    assert stored(broker, spec) == 1


# --- a server in trouble -----------------------------------------------------------------------------------


def test_a_server_killed_while_messages_are_dispatched_gets_each_of_them_once(
    own_server: NatsServer, connect: Connect, spec: ConsumerSpec
) -> None:
    broker = connect(own_server.url)
    broker.declare([spec], timeout=5)
    for number in range(0, 3000, 100):
        if number in (500, 1500):
            eventually(lambda: broker.status().connected)
            own_server.kill()
        batch = messages(spec, *range(number, number + 100))
        assert broker.dispatch(batch[:50]) == 50  # the pause is shorter than the breaker's patience
        if number in (500, 1500):
            own_server.start()
        assert broker.dispatch(batch[50:]) == 50
    assert broker.flush(timeout=20)
    assert stored(broker, spec) == 3000
    reader = Reader(broker, spec)
    eventually(lambda: len(set(reader.ids)) == 3000)
    status = broker.status()
    assert status.rebuilt >= 2
    assert (status.dropped, status.in_flight) == (0, 0)


def test_a_server_killed_while_messages_are_consumed_delivers_all_of_them(
    own_server: NatsServer, connect: Connect, stream: StreamSpec
) -> None:
    spec = consumer(stream, ack_wait=2.0)
    broker = connect(own_server.url)
    broker.declare([spec], timeout=5)
    broker.dispatch(messages(spec, *range(3000)))
    assert broker.flush(timeout=10)
    reader = Reader(broker, spec, window=50)
    for _ in range(2):
        eventually(partial(has_got, reader, min(len(reader.got) + 100, 3000)))
        own_server.kill()
        own_server.start()
    eventually(lambda: len(set(reader.ids)) == 3000, timeout=20)
    eventually(lambda: nothing_owed(broker, spec), timeout=20)
    # What was finished a moment before a kill comes again and is not delivered twice.
    assert len(reader.ids) == 3000


def test_a_wiped_server_gets_its_stream_and_consumers_back(
    own_server: NatsServer, connect: Connect, spec: ConsumerSpec
) -> None:
    broker = connect(own_server.url)
    broker.declare([spec], timeout=5)
    reader = Reader(broker, spec)
    broker.dispatch(messages(spec, 1))
    eventually(lambda: reader.ids == ["id1"])
    own_server.kill()
    own_server.wipe()
    own_server.start()
    eventually(lambda: broker.dispatch(messages(spec, 2)))
    eventually(lambda: reader.ids == ["id1", "id2"])


def test_consumers_that_nobody_pulls_come_back_with_the_stream_that_dispatch_needs(
    own_server: NatsServer, connect: Connect, spec: ConsumerSpec
) -> None:
    broker = connect(own_server.url)
    broker.declare([spec], timeout=5)
    own_server.kill()
    own_server.wipe()
    own_server.start()
    eventually(lambda: broker.dispatch(messages(spec, 1)))
    assert broker.flush(timeout=10)
    state = broker.consumer_state(spec.stream.name, spec.name, timeout=5)
    assert state is not None
    assert state.pending == 1


def test_a_consumer_deleted_by_somebody_is_created_again(
    shared_server: NatsServer, connect: Connect, spec: ConsumerSpec
) -> None:
    broker, somebody = connect(shared_server.url), connect(shared_server.url)
    reader = Reader(broker, spec)
    broker.dispatch(messages(spec, 1))
    eventually(lambda: reader.ids == ["id1"])
    assert somebody.delete_consumer(spec.stream.name, spec.name, timeout=5)
    broker.dispatch(messages(spec, 2))
    eventually(lambda: reader.ids == ["id1", "id2"])
    eventually(lambda: nothing_owed(broker, spec))


def test_without_a_server_dispatch_returns_at_once_and_calls_keep_their_deadline(
    own_server: NatsServer, connect: Connect, spec: ConsumerSpec
) -> None:
    broker = connect(own_server.url)
    broker.declare([spec], timeout=5)
    own_server.kill()
    eventually(lambda: not broker.status().connected)
    longest = 0.0

    def refused() -> bool:
        nonlocal longest
        began = time.monotonic()
        taken = broker.dispatch(messages(spec, 1))
        longest = max(longest, time.monotonic() - began)
        return taken == 0

    eventually(refused)
    assert longest < 0.5
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=rf"{own_server.url} did not answer within 0\.5 s") as caught:
        broker.declare([spec], timeout=0.5)
    assert time.monotonic() - began < 2
    assert caught.value.__cause__ is not None
    assert not broker.flush(timeout=0.2)


def test_close_keeps_its_deadline_while_the_server_is_down(
    own_server: NatsServer, connect: Connect, spec: ConsumerSpec
) -> None:
    broker = connect(own_server.url)
    broker.declare([spec], timeout=5)
    Reader(broker, spec)
    own_server.kill()
    broker.dispatch(messages(spec, *range(100)))
    began = time.monotonic()
    broker.close(timeout=2)
    assert time.monotonic() - began < 3.5
    assert not [thread for thread in threading.enumerate() if thread.name == bridge.THREAD_NAME]
    assert broker.dispatch(messages(spec, 1)) == 0
    with pytest.raises(Closed):
        broker.declare([spec], timeout=1)


def test_a_frozen_server_is_noticed_and_everything_arrives_when_it_goes_on(
    own_server: NatsServer, connect: Connect, spec: ConsumerSpec
) -> None:
    broker = connect(own_server.url)
    reader = Reader(broker, spec)
    broker.declare([spec], timeout=5)
    own_server.pause()
    began = time.monotonic()
    assert broker.dispatch(messages(spec, *range(500))) == 500
    assert time.monotonic() - began < 1
    with pytest.raises(BrokerUnavailable):
        broker.streams("x", timeout=0.3)
    eventually(lambda: not broker.status().connected, timeout=15)
    own_server.resume()
    eventually(lambda: broker.status().rebuilt == 1, timeout=15)
    eventually(lambda: len(reader.got) == 500)
    assert stored(broker, spec) == 500


def test_a_reader_that_died_silently_is_replaced(broker: NatsBroker, spec: ConsumerSpec) -> None:
    reader = Reader(broker, spec)
    broker.declare([spec], timeout=5)
    live = broker._lives[os.getpid()]
    client = live.link.session
    assert client is not None
    assert live.bridge is not None
    live.bridge.post(client._reading_task.cancel)
    eventually(lambda: broker.status().rebuilt == 1, timeout=4)  # the probe would take longer
    eventually(lambda: broker.dispatch(messages(spec, 1)))
    eventually(lambda: reader.ids == ["id1"])


def test_a_client_closed_for_good_is_replaced(
    broker: NatsBroker, spec: ConsumerSpec, shared_server: NatsServer
) -> None:
    reader = Reader(broker, spec)
    broker.declare([spec], timeout=5)
    live = broker._lives[os.getpid()]
    assert live.bridge is not None
    live.bridge.post(lambda: live.link.send("x", b"x" * 1_048_570, "", {"a": "over the limit"}))
    eventually(lambda: broker.status().rebuilt == 1, timeout=15)
    broker.dispatch(messages(spec, 1))
    eventually(lambda: reader.ids == ["id1"])


def test_many_lost_connections_leave_no_sockets_and_no_threads(
    broker: NatsBroker, spec: ConsumerSpec
) -> None:
    broker.declare([spec], timeout=5)
    live = broker._lives[os.getpid()]
    assert live.bridge is not None
    before = open_files(), threading.active_count()
    for number in range(1, 6):
        live.bridge.post(lambda: live.link.session._transport._io_writer.transport.abort())  # type: ignore[union-attr]
        eventually(partial(is_rebuilt, broker, number))
    eventually(lambda: open_files() <= before[0])
    assert threading.active_count() == before[1]


def is_rebuilt(broker: NatsBroker, times: int) -> bool:
    status = broker.status()
    return status.connected and status.rebuilt == times


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- servers that refuse ----------------------------------------------------------------------------------


@pytest.fixture
def guarded_server(tmp_path: Path) -> Iterator[ConfiguredServer]:
    deny = {"publish": {"deny": ["secret.>", "$JS.API.STREAM.CREATE.secret_User"]}}
    server = ConfiguredServer(tmp_path)
    server.settings = {
        "authorization": {"users": [{"user": "ann", "password": "p@ss/w", "permissions": deny}]}
    }
    start(server)
    yield server
    server.kill()


def with_user(server: NatsServer, user: str) -> str:
    return server.url.replace("nats://", f"nats://{user}@")


def test_wrong_credentials_are_refused_at_once_without_showing_them(
    guarded_server: ConfiguredServer, connect: Connect, spec: ConsumerSpec
) -> None:
    broker = connect(with_user(guarded_server, "ann:wrong-secret"))
    began = time.monotonic()
    shown = re.escape(with_user(guarded_server, "ann:***"))
    with pytest.raises(BrokerPermissionDenied, match=shown) as caught:
        broker.declare([spec], timeout=20)
    assert time.monotonic() - began < 10
    assert "wrong-secret" not in f"{caught.value!r} {caught.value.facts} {broker.status()}"


def test_a_missing_permission_is_named(guarded_server: ConfiguredServer, connect: Connect) -> None:
    broker = connect(with_user(guarded_server, "ann:p%40ss%2Fw"))
    secret = consumer(StreamSpec(name="secret_User", subjects=("secret.User.>",)))
    began = time.monotonic()
    with pytest.raises(BrokerPermissionDenied, match=r"STREAM\.CREATE\.secret_User"):
        broker.declare([secret], timeout=20)
    broker.dispatch(messages(secret, 1))
    assert broker.flush(timeout=10)
    assert time.monotonic() - began < 10
    assert broker.status().dropped == 1
    assert "secret.User.named" in broker.status().last_error


def test_a_server_without_jetstream_is_a_configuration_error(
    tmp_path: Path, connect: Connect, spec: ConsumerSpec
) -> None:
    server = ConfiguredServer(tmp_path)
    server.settings = {"jetstream": None}
    start(server)
    try:
        with pytest.raises(ConfigurationError, match=rf"{server.url} runs without JetStream.*-js"):
            connect(server.url).declare([spec], timeout=5)
    finally:
        server.kill()


def test_tls_is_never_given_up_for_a_server_without_it(
    guarded_server: ConfiguredServer, connect: Connect, spec: ConsumerSpec
) -> None:
    broker = connect(with_user(guarded_server, "ann:p%40ss%2Fw").replace("nats://", "tls://"))
    with pytest.raises(BrokerUnavailable, match="secure connection required"):
        broker.declare([spec], timeout=1)


# --- processes ---------------------------------------------------------------------------------------------


def test_a_forked_child_dispatches_through_its_own_connection(broker: NatsBroker, spec: ConsumerSpec) -> None:
    broker.declare([spec], timeout=5)
    reader = Reader(broker, spec)
    broker.dispatch(messages(spec, 1))
    for number in (2, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, on purpose
            pid = os.fork()
        if pid == 0:
            taken = broker.dispatch(messages(spec, number))
            os._exit(0 if taken == 1 and broker.flush(timeout=10) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    broker.dispatch(messages(spec, 4))
    eventually(lambda: sorted(reader.ids) == ["id1", "id2", "id3", "id4"])
    assert broker.status().rebuilt == 0


def test_what_a_process_dispatched_is_sent_before_it_exits(broker: NatsBroker, spec: ConsumerSpec) -> None:
    broker.declare([spec], timeout=5)
    script = f"""
import sys
from eventdriven_sync.broker import Outgoing, StreamSpec
from eventdriven_sync.brokers.nats import NatsBroker
stream = StreamSpec(name={spec.stream.name!r}, subjects={spec.stream.subjects!r})
broker = NatsBroker({broker._shown!r}, namespace="test")
for number in range(2000):
    message_id = f"id{{number}}"
    broker.dispatch(
        [Outgoing(stream=stream, subject={spec.subjects[0]!r}, message_id=message_id, data=b"x")]
    )
sys.exit(3)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 3
    assert stored(broker, spec) == 2000


def test_what_a_child_of_multiprocessing_dispatched_is_sent_before_it_exits(
    broker: NatsBroker, spec: ConsumerSpec
) -> None:
    broker.declare([spec], timeout=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = multiprocessing.get_context("fork").Process(
            target=broker.dispatch, args=(messages(spec, *range(500)),)
        )
        child.start()
    child.join(30)
    assert child.exitcode == 0
    assert stored(broker, spec) == 500


def test_nothing_is_opened_at_construction(connect: Connect) -> None:
    before = threading.active_count()
    broker = connect("nats://user:password@nowhere.invalid:4222")
    status = broker.status()
    assert (status.connected, status.last_error, status.rebuilt) == (False, "", 0)
    assert broker.flush(timeout=1)
    assert threading.active_count() == before


def test_what_is_written_at_once_does_not_overtake_what_the_client_has_buffered(nats_url: str) -> None:
    """A request that reaches the server before the subscription of its inbox is answered to nobody."""
    heard: list[bytes] = []

    async def talk() -> list[bool]:
        client = NatsClient(secure_only=False)
        await client.connect(servers=[nats_url], allow_reconnect=False)
        await client.flush()
        await client.listen("inbox.of.a.test", lambda subject, data, headers, reply: heard.append(data))
        early = client.hand_over_now([("inbox.of.a.test", b"early", "", None)])
        await client.flush()
        later = client.hand_over_now([("inbox.of.a.test", b"later", "", None)])
        await client.flush()
        await client.discard()
        gone = client.hand_over_now([("inbox.of.a.test", b"gone", "", None)])
        return [early, later, gone]

    assert asyncio.run(talk()) == [False, True, False]
    assert heard == [b"later"]
