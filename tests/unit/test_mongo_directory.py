"""The estimate of the server's clock, on a link that needs no server."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from eventdriven_sync.errors import StoreUnavailable
from eventdriven_sync.stores import mongo_directory
from eventdriven_sync.stores.mongo_directory import READ_EVERY, MongoDirectory

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Server:
    """Answers with its own time, which passes as ours does; its answers take a while."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.ahead = timedelta()
        self.asked = 0
        self.down = False
        admin = SimpleNamespace(command=self._command)
        self.now = SimpleNamespace(call=self._call, client=SimpleNamespace(admin=admin))

    @property
    def time(self) -> datetime:
        return NOON + self.ahead + timedelta(seconds=self.seconds)

    def _command(self, name: str) -> dict[str, Any]:
        assert name == "hello"
        self.seconds += 0.25
        return {"localTime": self.time}

    def _call(self, action: str, run: Callable[[], Any], *, timeout: float | None) -> Any:
        self.asked += 1
        if self.down:
            raise StoreUnavailable("gone")
        return run()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(mongo_directory, "time", SimpleNamespace(monotonic=lambda: server.seconds))
    return server


@pytest.fixture
def directory(server: Server) -> MongoDirectory:
    return MongoDirectory(server)  # type: ignore[arg-type]


def test_the_clock_is_asked_once_and_carried_on(server: Server, directory: MongoDirectory) -> None:
    for _ in range(10):
        server.seconds += 7
        assert timedelta(0) <= directory.estimated_now() - server.time <= timedelta(seconds=0.25)
    assert server.asked == 1


def test_whoever_reads_the_clock_spares_the_next_question(server: Server, directory: MongoDirectory) -> None:
    directory.now()
    directory.estimated_now()
    assert server.asked == 1


def test_the_clock_is_read_again_after_some_minutes(server: Server, directory: MongoDirectory) -> None:
    directory.estimated_now()
    server.ahead = timedelta(seconds=90)
    server.seconds += READ_EVERY + 1
    assert timedelta(0) <= directory.estimated_now() - server.time <= timedelta(seconds=0.25)
    assert server.asked == 2


def test_a_clock_that_cannot_be_read_is_carried_on_and_not_asked_at_every_event(
    server: Server, directory: MongoDirectory
) -> None:
    directory.estimated_now()
    server.down = True
    server.seconds += READ_EVERY + 1
    for _ in range(3):
        assert timedelta(0) <= directory.estimated_now() - server.time <= timedelta(seconds=0.25)
    assert server.asked == 2


def test_without_any_reading_the_store_is_needed(server: Server, directory: MongoDirectory) -> None:
    server.down = True
    with pytest.raises(StoreUnavailable):
        directory.estimated_now()
