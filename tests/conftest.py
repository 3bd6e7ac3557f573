"""Fixtures for everybody: real servers once per test process, and names no other test uses."""

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import pymongo
import pytest

from eventdriven_sync.devserver import DevServers, ServerBinaryMissing

T = TypeVar("T")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed",
        type=int,
        default=int(os.environ["PYTEST_SEED"]) if "PYTEST_SEED" in os.environ else None,
        help="run what is drawn by chance from this seed only, as a failure printed it (or PYTEST_SEED)",
    )
    parser.addoption(
        "--results",
        default=os.environ.get("PYTEST_RESULTS"),
        help="file to which each row of the fault catalogue appends its line (or PYTEST_RESULTS)",
    )
    parser.addoption(
        "--soak-minutes", type=float, default=30.0, help="how long `tox -e soak` works and kills"
    )


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int | None:
    """The seed asked for by ``--seed``, to see a failure again."""
    found: int | None = request.config.getoption("--seed")
    return found


@pytest.fixture(scope="session")
def servers() -> Iterator[DevServers]:
    """A nats-server and a mongod for all tests of this (xdist) process.

    A test that kills, pauses or wipes servers uses ``own_servers``.
    """
    with _start_or_skip() as running:
        yield running


@pytest.fixture
def own_servers() -> Iterator[DevServers]:
    """A nats-server and a mongod for one test to kill, pause and wipe."""
    with _start_or_skip() as running:
        yield running


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def database_name() -> str:
    """A MongoDB database name that no other test uses; ``mongo_url`` also drops the database."""
    return f"test_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def nats_url(servers: DevServers) -> str:
    return servers.nats_url


@pytest.fixture(scope="session")
def mongo_client(servers: DevServers) -> Iterator[pymongo.MongoClient[Any]]:
    """A client of the test's own, to look into the database beside the library."""
    with pymongo.MongoClient[Any](servers.mongo_url(), tz_aware=True) as client:
        yield client


@pytest.fixture
def mongo_url(
    servers: DevServers, mongo_client: pymongo.MongoClient[Any], database_name: str
) -> Iterator[str]:
    """The connection string of a database of this test, dropped afterwards."""
    yield servers.mongo_url(database_name)
    mongo_client.drop_database(database_name)


def _start_or_skip() -> DevServers:
    return or_skip(lambda: DevServers().start())


def or_skip(start: Callable[[], T]) -> T:
    """What needs the servers' programs; without them tests are skipped, except in CI, where they fail."""
    try:
        return start()
    except ServerBinaryMissing as error:
        lacking(str(error))


def lacking(what: str) -> NoReturn:
    """Skip a test that cannot run without it; in CI, where nobody reads about skipped tests, it fails."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
