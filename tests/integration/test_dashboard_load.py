"""Many tabs at a server with few threads: its pages still answer."""

import http.client
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from eventdriven_sync.dashboard import dashboard
from eventdriven_sync.dashboard.live import watcher
from tests.apps.serving import Served
from tests.apps.site import Site

THREADS = 8
TABS = 50
STREAMS = 4


@pytest.fixture
def port(site: Site) -> Iterator[int]:
    bus = site.bus()
    with bus.operation("something"):
        pass
    app = Flask("tabs")
    app.config["EVENTDRIVEN_DASHBOARD_STREAMS"] = STREAMS
    app.register_blueprint(dashboard(bus, insecure=True), url_prefix="/events")
    served = Served(app, threads=THREADS)
    yield served.port
    watcher(bus).end_all()
    served.stop()


def ask(port: int, path: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("localhost", port, timeout=20)
    connection.request("GET", path)
    return connection, connection.getresponse()


def test_fifty_tabs_at_a_server_with_eight_threads_leave_room_for_pages(port: int) -> None:
    with ThreadPoolExecutor(TABS) as pool:
        opened = list(pool.map(lambda n: ask(port, f"/events/stream?topic=all&page=p{n}"), range(TABS)))
        for connection, response in opened:
            if response.status != 200:
                connection.close()
        assert Counter(response.status for _, response in opened) == {200: STREAMS, 503: TABS - STREAMS}
        begun = time.monotonic()
        pages = list(pool.map(lambda _: ask(port, "/events/operations"), range(TABS)))
        took = time.monotonic() - begun
    assert {response.status for _, response in pages} == {200}
    assert all(b"something" in response.read() for _, response in pages)
    assert took < 10, f"{TABS} pages took {took:.1f} s"
    for connection, _ in (*opened, *pages):
        connection.close()
