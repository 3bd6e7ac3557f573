"""What the simulator does to the memory adapters real servers do too: answers and acknowledgements get lost.

A real server is stopped, killed and wiped. What is left of a crash depends on its moment, so a test repeats
it until the fault shows: that it can happen is what the simulator relies on.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from eventdriven_sync.broker import ConsumerSpec, Incoming
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.brokers.nats import NatsBroker
from eventdriven_sync.devserver import NatsServer
from eventdriven_sync.devserver.mongod import Mongod
from eventdriven_sync.errors import BrokerUnavailable, PublishOutcomeUnknown
from eventdriven_sync.outcome import Done
from eventdriven_sync.store import DeliveryQuery, Store
from eventdriven_sync.stores.memory import MemoryStore
from eventdriven_sync.stores.mongo import MongoStore
from tests.contracts.samples import Samples
from tests.contracts.stages import TIMEOUT, BrokerStage, FakeClock, Inbox
from tests.model.servers import FaultyStore
from tests.model.simulator import Node
from tests.polling import eventually

SHORT = 0.7
ROUNDS = 10
BURST = 150


# --- a store whose answers get lost -------------------------------------------------------------------


class Silence:
    """A store that does what it is asked inside ``falls``, and does not say so in time.

    Attributes:
        store: to look into when it answers again.
        asked: the same, for those who wait in vain.
    """

    def __init__(self, store: Store, asked: Any, falls: Callable[[], AbstractContextManager[None]]) -> None:
        self.store = store
        self.asked = asked
        self.falls = falls


@pytest.fixture(params=["memory", "mongo"])
def silence(request: pytest.FixtureRequest) -> Silence:
    found: Silence = request.getfixturevalue(f"{request.param}_silence")
    return found


@pytest.fixture
def memory_silence() -> Silence:
    """The simulator's own network, with the fault that it draws now and then."""
    store, falling = MemoryStore(), [False]
    loop = SimpleNamespace(sleep=lambda seconds: None, pause=lambda: None, now=0.0)
    world = SimpleNamespace(store=store, loop=loop, fault=lambda *what: None)
    node = SimpleNamespace(
        world=world,
        notes=None,
        staged={},
        check=lambda: None,
        pause=lambda: None,
        commit=lambda rows: None,
        draws=lambda kind: falling[0],
        draws_half=lambda: False,
    )
    node.ask_store = lambda call, read: Node.ask_store(node, call, read=read)

    @contextmanager
    def falls() -> Iterator[None]:
        falling[0] = True
        yield
        falling[0] = False

    return Silence(store, FaultyStore(world, node), falls)


@pytest.fixture(scope="module")
def own_mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    server = Mongod(tmp_path_factory.mktemp("silent")).start()
    yield server
    server.stop()


@pytest.fixture
def mongo_silence(own_mongod: Mongod, database_name: str) -> Iterator[Silence]:
    store = MongoStore(own_mongod.url_for(database_name), timeout=TIMEOUT)
    hasty = MongoStore(own_mongod.url_for(database_name), timeout=SHORT)
    for each in (store, hasty):
        each.open(timeout=TIMEOUT)

    @contextmanager
    def falls() -> Iterator[None]:
        own_mongod.pause()
        try:
            yield
        finally:
            own_mongod.resume()

    yield Silence(store, hasty, falls)
    for each in (store, hasty):
        each.close()


@pytest.fixture
def given(silence: Silence) -> Samples:
    return Samples(silence.store.directory.now())


def test_an_event_is_stored_though_nobody_said_so_and_the_second_try_is_a_duplicate(
    silence: Silence, given: Samples
) -> None:
    event = given.event()
    with silence.falls(), pytest.raises(PublishOutcomeUnknown):
        silence.asked.events.append([event], timeout=SHORT)
    eventually(lambda: silence.store.events.get([event.id]))
    assert silence.asked.events.append([event], timeout=TIMEOUT) == [True]


def test_an_outcome_is_recorded_though_nobody_said_so_and_the_second_try_counts_once(
    silence: Silence, given: Samples
) -> None:
    settlement = given.settlement(given.event(), given.outcome("retrying", after=60.0))
    with silence.falls(), pytest.raises(PublishOutcomeUnknown):
        silence.asked.deliveries.settle([settlement])
    eventually(lambda: silence.store.deliveries.states([settlement.delivery_id]))
    assert silence.asked.deliveries.settle([settlement]) == [True]
    [delivery] = silence.store.deliveries.find(DeliveryQuery(ids=(settlement.delivery_id,)))
    assert (delivery.state, delivery.attempts, delivery.failed) == ("retrying", 1, 1)


def test_a_start_is_counted_though_nobody_said_so_and_the_second_try_owns_it(
    silence: Silence, given: Samples
) -> None:
    delivery = given.delivery(given.event(), attempts=1, token="mine")
    with silence.falls(), pytest.raises(PublishOutcomeUnknown):
        silence.asked.deliveries.start([delivery], lease=30.0)
    eventually(lambda: silence.store.deliveries.states([delivery.id]) == {delivery.id: "running"})
    assert silence.asked.deliveries.start([delivery], lease=30.0) == [True]
    found = silence.store.deliveries.get(delivery.id)
    assert found is not None
    assert found.attempts == 1


def test_a_transaction_is_committed_though_nobody_said_so(silence: Silence, given: Samples) -> None:
    event, settlement = given.event(), given.settlement(given.event(), Done())
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(PublishOutcomeUnknown))
        with silence.asked.transaction(timeout=SHORT) as session:
            silence.asked.events.append([event], timeout=SHORT, session=session)
            assert silence.asked.deliveries.settle_in(session, settlement)
            stack.enter_context(silence.falls())
    eventually(lambda: silence.store.events.get([event.id]))
    known = silence.store.deliveries.states([settlement.delivery_id])
    assert known == {settlement.delivery_id: "succeeded"}


# --- a broker that crashes ----------------------------------------------------------------------------


class Fragile(BrokerStage):
    """A broker under test that goes away, crashes and loses its disk."""

    def go_away(self) -> None:
        """Nobody reaches it, and everybody knows."""

    def come_back(self) -> None:
        """It answers again, as it was."""

    def crash(self) -> None:
        """It is killed in this moment, and started again."""

    def wipe(self) -> None:
        """It loses everything, and goes on."""

    def open_elsewhere(self, spec: ConsumerSpec) -> Inbox:
        """A consumption of another process."""
        return self.open_inbox(spec)

    def come_again(self, inbox: Inbox) -> list[Incoming]:
        """What arrives a while after a crash; maybe nothing."""
        self.pass_time(2 * self.ack_wait)
        with suppress(AssertionError):
            eventually(lambda: inbox.messages, timeout=1)
        return list(inbox.messages)


class FragileMemory(Fragile):
    def __init__(self, namespace: str) -> None:
        clock = FakeClock()
        self._memory = MemoryBroker(clock=clock)
        super().__init__(self._memory, lambda: self._memory, clock, namespace)

    def go_away(self) -> None:
        self._memory.disconnect()

    def come_back(self) -> None:
        self._memory.connect()

    def crash(self) -> None:
        self._memory.forget_acks()
        self._memory.forget_counts()
        self._memory.redeliver()

    def wipe(self) -> None:
        self._memory.wipe()


class FragileNats(Fragile):
    def __init__(self, server: NatsServer, namespace: str) -> None:
        self._server = server
        broker = NatsBroker(server.url, namespace=namespace, timeout=5.0)
        super().__init__(broker, lambda: broker, None, namespace)
        self._others: list[NatsBroker] = []

    def open_elsewhere(self, spec: ConsumerSpec) -> Inbox:
        self._others.append(NatsBroker(self._server.url, namespace=self.namespace, timeout=5.0))
        return Inbox(self._others[-1], spec, BURST)

    def close(self) -> None:
        super().close()
        for broker in self._others:
            broker.close(timeout=TIMEOUT)

    def go_away(self) -> None:
        self._server.kill()
        eventually(lambda: not self.broker.status().connected)
        self.pass_time(1.2)  # for so long a dispatch is kept for a server that may be back at once

    def come_back(self) -> None:
        self._server.start()
        eventually(lambda: self.broker.status().connected)

    def crash(self) -> None:
        self._server.kill()
        self.come_back()

    def wipe(self) -> None:
        self._server.kill()
        self._server.wipe()
        self.come_back()


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("fragile")).start()
    yield server
    server.stop()


@pytest.fixture
def own_nats(nats_server: NatsServer) -> NatsServer:
    """It runs, whatever the test before has done to it."""
    if not nats_server.running:
        nats_server.start()
    return nats_server


@pytest.fixture(params=["memory", "nats"])
def fragile(request: pytest.FixtureRequest, namespace: str) -> Iterator[Fragile]:
    if request.param == "memory":
        stage: Fragile = FragileMemory(namespace)
    else:
        stage = FragileNats(request.getfixturevalue("own_nats"), namespace)
    yield stage
    stage.close()


def test_what_was_acknowledged_a_moment_before_a_crash_comes_again_and_counts_from_one(
    fragile: Fragile,
) -> None:
    for number in range(ROUNDS):
        token = f"Burst{number}"
        spec = fragile.consumer(f"Blog__{token}", token=token, ack_wait=fragile.ack_wait)
        fragile.broker.declare([spec], timeout=TIMEOUT)
        inbox = fragile.open_inbox(spec, window=BURST)
        fragile.send(*[fragile.message(f"{token}.made") for _ in range(BURST)])
        came = inbox.wait_for(BURST)
        inbox.consumption.finish(came)
        while fragile.owed(spec) != (0, 0):  # without a pause, in which it would be written down
            pass
        inbox.consumption.stop()
        fragile.crash()
        # Whoever finished them remembers that for a while; another process does not.
        again = fragile.come_again(fragile.open_elsewhere(spec))
        assert {message.sequence for message in again} <= {message.sequence for message in came}
        if any(message.delivered == 1 for message in again):
            return
    pytest.fail("no acknowledgement was lost, however often it crashed")


def test_how_often_a_message_was_delivered_gets_lost_in_a_crash(fragile: Fragile) -> None:
    for number in range(ROUNDS):
        spec = fragile.consumer(f"Blog__count{number}", token=f"Count{number}", ack_wait=fragile.ack_wait)
        fragile.broker.declare([spec], timeout=TIMEOUT)
        inbox = fragile.open_inbox(spec)
        fragile.send(fragile.message(f"Count{number}.made"))
        for times in range(1, 4):
            [*_, last] = inbox.wait_for(times)
            if times < 3:
                inbox.consumption.release([last])
        assert last.delivered == 3
        fragile.crash()
        inbox.consumption.forget([last])
        fragile.pass_time(fragile.ack_wait)
        if inbox.wait_for(4)[-1].delivered < 3:
            return
        inbox.consumption.finish(inbox.messages)
    pytest.fail("no count was lost, however often it crashed")


def test_while_it_is_away_dispatches_are_dropped_and_questions_refused(fragile: Fragile) -> None:
    spec = fragile.consumer(ack_wait=fragile.ack_wait)
    fragile.broker.declare([spec], timeout=TIMEOUT)
    inbox = fragile.open_inbox(spec)
    fragile.send(fragile.message(message_id="before"))
    inbox.consumption.finish(inbox.wait_for(1))
    fragile.go_away()
    dropped = fragile.broker.status().dropped
    assert fragile.broker.dispatch([fragile.message(message_id="dropped")]) == 0
    assert fragile.broker.status().dropped == dropped + 1
    with pytest.raises(BrokerUnavailable):
        fragile.broker.consumer_state(spec.stream.name, spec.name, timeout=0.3)
    fragile.come_back()
    fragile.send(fragile.message(message_id="after"))
    inbox.wait_for(2)
    assert inbox.ids == ["before", "after"]


def test_when_its_disk_is_gone_a_running_consumption_goes_on_with_what_comes_then(fragile: Fragile) -> None:
    spec = fragile.consumer(ack_wait=fragile.ack_wait)
    fragile.broker.declare([spec], timeout=TIMEOUT)
    inbox = fragile.open_inbox(spec)
    fragile.send(fragile.message(message_id="gone"))
    inbox.wait_for(1)
    fragile.wipe()
    # The same id is new to a stream that has forgotten everything: what came before may come twice.
    fragile.send(fragile.message(message_id="gone"), fragile.message(message_id="new"))
    inbox.wait_for(3)
    assert inbox.ids == ["gone", "gone", "new"]
    assert [message.sequence for message in inbox.messages] == [1, 1, 2]


def test_an_older_message_may_come_after_a_younger_one(fragile: Fragile) -> None:
    spec = fragile.consumer(ack_wait=fragile.ack_wait)
    fragile.broker.declare([spec], timeout=TIMEOUT)
    inbox = fragile.open_inbox(spec, window=1)
    fragile.send(fragile.message(message_id="old"), fragile.message(message_id="young"))
    inbox.consumption.forget(inbox.wait_for(1))
    inbox.consumption.finish(inbox.wait_for(2)[1:])
    fragile.pass_time(fragile.ack_wait)
    inbox.wait_for(3)
    assert inbox.ids == ["old", "young", "old"]
