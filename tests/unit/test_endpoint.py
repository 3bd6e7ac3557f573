"""Health over HTTP: what each path answers, and what no client can do to it."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import attrs
import pytest

from eventdriven_sync import endpoint as module
from eventdriven_sync.endpoint import HealthEndpoint
from eventdriven_sync.errors import ConfigurationError, InvalidOption
from eventdriven_sync.health import HandlerProgress, Health, Part, Progress, Running
from tests.polling import eventually

WELL = Health(
    parts=(Part(name="broker", state="ok", reason="it is connected"),),
    progress=Progress(
        handlers=(HandlerProgress(name="Blog.keep", pending=3, in_hand=1, overdue=0.0, settled_ago=1.26),),
        running=(Running(handler="Blog.keep", count=1, seconds=12.34, timeout=60.0),),
    ),
)


def with_part(**changes: Any) -> Health:
    return attrs.evolve(WELL, parts=(attrs.evolve(WELL.parts[0], **changes),))


DEAD = with_part(state="dead", reason="its thread has ended")
AWAY = with_part(state="failing", reason="it is not connected")
STALLED = attrs.evolve(
    WELL, progress=Progress(handlers=(HandlerProgress(name="B.h", pending=1, overdue=0.0, stalled="waits"),))
)


class Watched:
    """A worker whose health the test decides."""

    def __init__(self) -> None:
        self.health = WELL
        self.looks = 0

    def look(self) -> Health:
        self.looks += 1
        return self.health


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def served(watched: Watched) -> Iterator[HealthEndpoint]:
    with HealthEndpoint(watched.look, port=0, every=0.02) as endpoint:
        eventually(lambda: watched.looks)
        yield endpoint


def ask(served: HealthEndpoint, path: str, method: str = "GET") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(body) if body else None
    finally:
        connection.close()


def statuses(served: HealthEndpoint) -> tuple[int, int, int]:
    live, ready, progress = (ask(served, path)[0] for path in ("/live", "/ready", "/progress"))
    return live, ready, progress


def shown(served: HealthEndpoint, watched: Watched, health: Health) -> None:
    """Wait until a look that began after the change is over."""
    watched.health = health
    before = watched.looks
    eventually(lambda: watched.looks > before + 1)


def test_what_is_well_is_200_with_its_parts_and_its_work(served: HealthEndpoint) -> None:
    assert statuses(served) == (200, 200, 200)
    assert ask(served, "/live")[1] == {"status": "ok", "reasons": []}
    assert ask(served, "/ready")[1] == {
        "status": "ok",
        "parts": {"broker": {"state": "ok", "reason": "it is connected"}},
    }
    assert ask(served, "/progress?x=1")[1] == {
        "status": "ok",
        "reasons": [],
        "settled_ago": 1.3,
        "handlers": {
            "Blog.keep": {
                "pending": 3,
                "in_hand": 1,
                "overdue": 0.0,
                "settled_ago": 1.3,
                "paused": False,
                "stalled": "",
            }
        },
        "running": [{"handler": "Blog.keep", "count": 1, "seconds": 12.3, "timeout": 60.0, "hung": False}],
    }


@pytest.mark.parametrize(
    ("health", "found", "path", "said"),
    [
        (DEAD, (503, 503, 200), "/live", "broker: its thread has ended"),
        (AWAY, (200, 503, 200), "/ready", "it is not connected"),
        (STALLED, (200, 200, 503), "/progress", "B.h: waits"),
    ],
)
def test_each_fault_turns_its_path_red_and_green_again(
    served: HealthEndpoint,
    watched: Watched,
    health: Health,
    found: tuple[int, int, int],
    path: str,
    said: str,
) -> None:
    shown(served, watched, health)
    assert statuses(served) == found
    document = ask(served, path)[1]
    assert (document["status"], said in json.dumps(document)) == ("failing", True)
    shown(served, watched, WELL)
    assert statuses(served) == (200, 200, 200)


def test_before_the_first_look_it_is_live_and_not_ready() -> None:
    gate = threading.Event()

    def look() -> Health:
        gate.wait(10)
        return WELL

    with HealthEndpoint(look, port=0) as endpoint:
        assert statuses(endpoint) == (200, 503, 200)
        gate.set()
        eventually(lambda: statuses(endpoint) == (200, 200, 200))


def test_an_old_look_is_red_everywhere(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    broken = threading.Event()

    def look() -> Health:
        if broken.is_set():
            raise RuntimeError("a bug")
        return WELL

    with HealthEndpoint(look, port=0, every=0.02) as endpoint:
        eventually(lambda: statuses(endpoint) == (200, 200, 200))
        broken.set()
        eventually(lambda: statuses(endpoint) == (503, 503, 503))
        assert "the last look is" in ask(endpoint, "/live")[1]["reasons"][0]
        broken.clear()
        eventually(lambda: statuses(endpoint) == (200, 200, 200))
    assert "Health could not be looked at" in caplog.text


def test_other_paths_and_methods_are_refused_in_the_same_form(served: HealthEndpoint) -> None:
    assert ask(served, "/metrics") == (
        404,
        {"status": "unknown path", "paths": ["/live", "/ready", "/progress"]},
    )
    assert ask(served, "/live", "HEAD") == (200, None)
    assert ask(served, "/live", "POST") == (501, {"status": "refused"})


def raw(served: HealthEndpoint, request: bytes) -> bytes:
    """What comes back; the rest of a request that is too long meets a closed connection."""
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection,
        suppress(ConnectionError),
    ):
        connection.sendall(request)
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\r\n\r\n",
        b"\x00\xff\xfe\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /live HTTP/9.9\r\n\r\n",
        b"GET /live HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /live HTTP/1.1\r\n" + b"X-Y: z\r\n" * 10_000 + b"\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET /<script> HTTP/1.1\r\n\r\n",
    ],
    ids=lambda value: str(value)[:30],
)
def test_no_request_breaks_it(served: HealthEndpoint, request_bytes: bytes) -> None:
    answer = raw(served, request_bytes)
    assert b"script" not in answer
    assert answer[:9] in (b"", b"HTTP/1.0 ", b'{"status"')
    assert statuses(served) == (200, 200, 200)


def test_a_head_request_gets_no_body(served: HealthEndpoint) -> None:
    answer = raw(served, b"HEAD /live HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 ")
    assert answer.endswith(b"\r\n\r\n")


def test_a_client_that_says_nothing_holds_it_no_longer_than_its_patience(
    served: HealthEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    with socket.create_connection(("127.0.0.1", served.port)) as slow:
        slow.sendall(b"GET /live HT")
        began = time.monotonic()
        assert ask(served, "/live")[0] == 200
        assert time.monotonic() - began < 3
        slow.settimeout(5)
        assert slow.recv(100) == b"", "it hung up"


def test_bytes_now_and_then_do_not_hold_it_either(
    served: HealthEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    hung_up = threading.Event()
    with socket.create_connection(("127.0.0.1", served.port)) as slow:

        def drip() -> None:
            try:
                while not hung_up.wait(0.05):
                    slow.sendall(b"x")
            except OSError:
                return

        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        began = time.monotonic()
        assert ask(served, "/live")[0] == 200
        assert time.monotonic() - began < 3
        hung_up.set()
        dripping.join(5)


def test_its_port_is_free_again_and_its_threads_end(watched: Watched) -> None:
    endpoint = HealthEndpoint(watched.look, port=0).start()
    port = endpoint.port
    assert ask(endpoint, "/live")[0] == 200
    endpoint.stop()
    endpoint.stop()
    assert not [each for each in threading.enumerate() if each.name.startswith("eventdriven-health")]
    with HealthEndpoint(watched.look, port=port) as again:
        assert ask(again, "/live")[0] == 200


def test_it_speaks_ipv6(watched: Watched) -> None:
    with HealthEndpoint(watched.look, port=0, host="::1") as endpoint:
        connection = http.client.HTTPConnection("::1", endpoint.port, timeout=10)
        connection.request("GET", "/live")
        assert connection.getresponse().status == 200
        connection.close()


def test_a_port_that_is_taken_is_named(served: HealthEndpoint, watched: Watched) -> None:
    with pytest.raises(ConfigurationError, match=rf"'127.0.0.1' port {served.port}: .*in use; choose"):
        HealthEndpoint(watched.look, port=served.port).start()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"port": 80.5}, "port"),
        ({"port": 0, "host": ""}, "host"),
        ({"port": 0, "host": 7}, "host"),
        ({"port": 0, "every": 0}, "every"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(watched: Watched, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOption, match=f"{field} is"):
        HealthEndpoint(watched.look, **options)


def test_nothing_is_opened_before_it_starts(watched: Watched) -> None:
    before: Callable[[], int] = threading.active_count
    count = before()
    HealthEndpoint(watched.look, port=0).stop()
    assert (before(), watched.looks) == (count, 0)
