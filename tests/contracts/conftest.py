"""Every contract test runs on the memory adapter and on the real one."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.store import Store
from eventdriven_sync.stores.memory import MemoryStore
from tests.contracts.lane import Lane
from tests.contracts.samples import Samples
from tests.contracts.stages import TIMEOUT, BrokerStage, FakeClock, StoreStage

NOBODY_LISTENS = "127.0.0.1:1"


@pytest.fixture(scope="session")
def mongo_store(servers: DevServers) -> Iterator[Store]:
    """The real store, one for all tests: creating indexes takes its time."""
    from eventdriven_sync.stores.mongo import MongoStore

    database = f"test_{uuid.uuid4().hex[:12]}"
    store = MongoStore(servers.mongo_url(database), database=database, timeout=TIMEOUT)
    store.open(timeout=TIMEOUT)
    yield store
    store.close()


@pytest.fixture(params=["memory", "mongo"])
def stage(request: pytest.FixtureRequest) -> StoreStage:
    """A store under test."""
    if request.param == "mongo":
        return StoreStage(request.getfixturevalue("mongo_store"), _mongo_without_server, None)
    clock = FakeClock()
    return StoreStage(MemoryStore(clock=clock), _memory_store_switched_off, clock)


@pytest.fixture
def given(stage: StoreStage) -> Samples:
    """Builders of this test's records; ``given.now`` is the store's time."""
    return Samples(stage.store.directory.now())


@pytest.fixture
def lane(stage: StoreStage, given: Samples) -> Lane:
    """One delivery of this test."""
    return Lane(stage, given)


@pytest.fixture(params=["memory", "nats"])
def wire(request: pytest.FixtureRequest, namespace: str) -> Iterator[BrokerStage]:
    """A broker under test."""
    stage = _memory_broker(namespace) if request.param == "memory" else _nats_broker(request, namespace)
    yield stage
    stage.close()


def _mongo_without_server() -> Any:
    from eventdriven_sync.stores.mongo import MongoStore

    return MongoStore(f"mongodb://{NOBODY_LISTENS}/?directConnection=true", database="none", timeout=0.2)


def _memory_store_switched_off() -> MemoryStore:
    store = MemoryStore()
    store.unavailable = True
    return store


def _memory_broker(namespace: str) -> BrokerStage:
    clock = FakeClock()
    return BrokerStage(MemoryBroker(clock=clock), _memory_broker_cut_off, clock, namespace)


def _memory_broker_cut_off() -> MemoryBroker:
    broker = MemoryBroker()
    broker.disconnect()
    return broker


def _nats_broker(request: pytest.FixtureRequest, namespace: str) -> BrokerStage:
    from eventdriven_sync.brokers.nats import NatsBroker

    servers = request.getfixturevalue("servers")
    broker = NatsBroker(servers.nats_url, namespace=namespace, timeout=5.0)

    def unreachable() -> Any:
        return NatsBroker(f"nats://{NOBODY_LISTENS}", namespace=namespace, timeout=0.3)

    return BrokerStage(broker, unreachable, None, namespace)
