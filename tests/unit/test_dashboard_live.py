"""Live pages: one thread looks for changes while somebody wants to know, and streams are few and short."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from eventdriven_sync import EventBus
from eventdriven_sync.dashboard import Identity, live
from eventdriven_sync.dashboard.live import Watcher, watcher
from eventdriven_sync.errors import StoreUnavailable
from tests.polling import eventually
from tests.unit.dashboards import new_bus, site


class Thing:
    """What is looked at."""

    def __init__(self) -> None:
        self.state: Any = 1
        self.looks = 0

    def __call__(self) -> object:
        self.looks += 1
        if isinstance(self.state, Exception):
            raise self.state
        return self.state


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(live, "PING_EVERY", 0.05)


@pytest.fixture
def found() -> Iterator[Watcher]:
    made = Watcher()
    yield made
    made.end_all()
    eventually(lambda: not watching())


def watching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "eventdriven-watch"]


def test_who_watches_is_told_the_first_version_and_every_new_one(found: Watcher) -> None:
    thing = Thing()
    subscription = found.subscribe("a", thing, page="1", most=2)
    assert subscription
    first = subscription.wait(5)
    assert first
    assert subscription.wait(0.1) is None
    thing.state = 2
    second = subscription.wait(5)
    assert second not in (None, "", first)
    thing.state = 1
    assert subscription.wait(5) == first


def test_a_second_page_at_the_same_thing_makes_no_second_look(found: Watcher) -> None:
    thing = Thing()
    one = found.subscribe("a", thing, page="1", most=2)
    assert one
    version = one.wait(5)
    other = found.subscribe("a", lambda: pytest.fail("looked twice"), page="2", most=2)
    assert other
    assert other.wait(5) == version
    assert len(watching()) == 1


def test_only_so_many_may_watch_and_who_leaves_makes_room(found: Watcher) -> None:
    first = found.subscribe("a", Thing(), page="1", most=2)
    assert first
    assert found.subscribe("b", Thing(), page="2", most=2)
    assert found.subscribe("c", Thing(), page="3", most=2) is None
    first.close()
    first.close()
    assert found.subscribe("c", Thing(), page="3", most=2)


def test_the_thread_ends_with_the_last_one_and_begins_anew(found: Watcher) -> None:
    for _ in range(3):
        subscription = found.subscribe("a", Thing(), page="1", most=1)
        assert subscription
        assert subscription.wait(5)
        subscription.close()
        eventually(lambda: not watching())


def test_the_page_that_a_tab_showed_before_is_ended(found: Watcher) -> None:
    before = found.subscribe("a", Thing(), page="ada 1", most=1)
    other = found.subscribe("a", Thing(), page="bob 1", most=2)
    assert before
    assert other
    assert before.wait(5)
    found.end("ada 1")
    assert before.wait(5) == ""
    assert other.wait(5)
    assert found.subscribe("a", Thing(), page="ada 2", most=2)


def test_a_store_that_is_away_changes_nothing_and_stops_nothing(found: Watcher) -> None:
    thing = Thing()
    subscription = found.subscribe("a", thing, page="1", most=1)
    assert subscription
    version = subscription.wait(5)
    thing.state = StoreUnavailable("away")
    looks = thing.looks
    eventually(lambda: thing.looks > looks + 2)
    assert subscription.wait(0.05) is None
    thing.state = 1
    assert subscription.wait(0.2) is None
    thing.state = 2
    assert subscription.wait(5) not in (None, version)


def test_a_look_that_takes_long_is_taken_rarely(found: Watcher) -> None:
    slow = threading.Event()
    thing = Thing()

    def look() -> object:
        slow.wait(0.1)
        return thing()

    subscription = found.subscribe("a", look, page="1", most=1)
    assert subscription
    assert subscription.wait(5)
    thing.state = 2
    assert subscription.wait(0.5) is None
    assert subscription.wait(5)


# --- the stream --------------------------------------------------------------------------------------

STREAM = "/events/stream?topic=all&page=p1"


def answer(bus: EventBus, path: str = STREAM, *, threads: bool = True, **headers: str) -> Any:
    app = site(bus, authorize=lambda request: Identity(name="ada", role="viewer"))
    return app.test_client().get(
        path,
        base_url="http://localhost",
        headers=headers,
        environ_overrides={"wsgi.multithread": threads},
        buffered=False,
    )


def lines(response: Any) -> Iterator[str]:
    for chunk in response.response:
        yield from chunk.decode().splitlines()


def test_the_stream_tells_that_something_changed_and_nothing_else() -> None:
    bus = new_bus()
    response = answer(bus)
    assert response.mimetype == "text/event-stream"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["Cache-Control"] == "no-store"
    said = lines(response)
    assert next(said) == "retry: 500"
    version = next(line for line in said if line.startswith("id: "))
    assert (next(said), next(said)) == ("event: changed", "data: ")
    with bus.operation("secret-name"):
        pass
    told = [next(said) for _ in range(12)]
    assert "event: changed" in told
    assert version not in told
    assert "secret-name" not in "".join(told)
    response.close()
    eventually(lambda: not watching())


def test_a_stream_that_was_opened_again_is_told_only_what_it_has_not_seen() -> None:
    bus = new_bus()
    first = answer(bus)
    version = next(line for line in lines(first) if line.startswith("id: ")).removeprefix("id: ")
    first.close()
    again = answer(bus, **{"Last-Event-ID": version})
    said = lines(again)
    told = [next(said) for _ in range(8)]
    assert ": ping" in told
    assert "event: changed" not in told
    again.close()
    eventually(lambda: not watching())


def test_a_stream_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STREAM_SECONDS", 0.2)
    response = answer(new_bus())
    assert list(lines(response))
    response.close()
    eventually(lambda: not watching())


def test_a_server_without_threads_and_one_that_has_streams_enough_answer_503() -> None:
    bus = new_bus()
    assert answer(bus, threads=False).status_code == 503
    opened = [answer(bus, f"/events/stream?topic=all&page=p{n}") for n in range(live.STREAMS)]
    assert [response.status_code for response in opened] == [200] * live.STREAMS
    refused = answer(bus, "/events/stream?topic=all&page=more")
    assert refused.status_code == 503
    for response in opened:
        next(iter(response.response))
        response.close()
    eventually(lambda: not watching())


def test_the_next_page_of_a_tab_takes_over_the_stream_of_the_page_before() -> None:
    bus = new_bus()
    before = [answer(bus, f"/events/stream?topic=all&page=p{n}") for n in range(live.STREAMS)]
    following = answer(bus, "/events/stream?topic=all&page=next&ends=p0")
    assert following.status_code == 200
    assert list(lines(before[0]))
    for response in (*before, following):
        response.close()
    eventually(lambda: not watching())


def test_nobody_ends_the_stream_of_another_person() -> None:
    bus = new_bus()
    opened = [answer(bus, f"/events/stream?topic=all&page=p{n}") for n in range(live.STREAMS)]
    app = site(bus, authorize=lambda request: Identity(name="eve", role="viewer"))
    refused = app.test_client().get(
        "/events/stream?topic=all&page=x&ends=p0",
        base_url="http://localhost",
        environ_overrides={"wsgi.multithread": True},
    )
    assert refused.status_code == 503
    for response in opened:
        response.close()
    eventually(lambda: not watching())


def test_a_chain_that_does_not_exist_is_not_watched() -> None:
    assert answer(new_bus(), "/events/stream?topic=chain&id=nope").status_code == 404


def test_each_bus_has_its_own_watcher() -> None:
    one, other = new_bus(), new_bus()
    assert watcher(one) is watcher(one)
    assert watcher(one) is not watcher(other)
