"""The Flask extension under real web servers: gunicorn's workers, forks after a preload, the reloader."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eventdriven_sync import EventBus
from eventdriven_sync.devserver.ports import free_port
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.store import EventQuery
from tests.apps.site import ROOT, Site, conserved
from tests.polling import eventually


class WebServer:
    """A web server process that serves ``tests.apps.web``."""

    def __init__(self, site: Site, log: Path, command: list[str], **environ: str) -> None:
        self.port = free_port()
        self._log = log
        self._output = log.open("wb")
        self._popen = subprocess.Popen(
            [sys.executable, "-m", *(word.format(port=self.port) for word in command)],
            cwd=ROOT,
            env=site.environ() | {"WITNESS": str(site.witness.path)} | environ,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ready(self) -> "WebServer":
        def answers() -> bool:
            assert self._popen.poll() is None, self.log
            try:
                return self.get("/pid").isdigit()
            except OSError:
                return False

        eventually(answers, timeout=30)
        return self

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def client(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def stop(self) -> int:
        """Ask it to end, as a deployment does; its exit code."""
        if self._popen.poll() is None:
            self._popen.terminate()
        try:
            return self._popen.wait(30)
        finally:
            self._output.close()

    def kill(self) -> None:
        """Everything it has started ends with it."""
        if self._popen.poll() is None:
            os.killpg(self._popen.pid, 9)
            self._popen.wait(30)
        self._output.close()
        print(f"--- {self._log.name}\n{self.log}")


@pytest.fixture
def serve(site: Site, tmp_path: Path) -> Iterator[Any]:
    running: list[WebServer] = []

    def start(*command: str, **environ: str) -> WebServer:
        running.append(WebServer(site, tmp_path / f"web-{len(running)}.log", list(command), **environ))
        return running[-1].ready()

    yield start
    for server in running:
        server.kill()


def gunicorn(*options: str) -> list[str]:
    return ["gunicorn", "--bind", "127.0.0.1:{port}", *options, "tests.apps.web:create_app()"]


def ask(connection: http.client.HTTPConnection, number: int, key: str = "") -> tuple[int, bytes, str]:
    """Status, body and operation id of the answer."""
    connection.request("POST", f"/orders/{number}", headers={"Idempotency-Key": key} if key else {})
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers["X-Operation-Id"]


def post(connection: http.client.HTTPConnection, number: int, key: str = "") -> dict[str, Any]:
    status, body, header = ask(connection, number, key)
    assert status == 201, (status, body)
    return {**json.loads(body), "header": header}


def post_all(server: WebServer, numbers: range, *, clients: int) -> list[dict[str, Any]]:
    """Post these orders by so many clients at once; what was answered."""
    answers: list[dict[str, Any]] = []

    def work(mine: range) -> None:
        # A connection stays with the process that took it: new ones now and then go to the other.
        for start in range(0, len(mine), 10):
            connection = server.client()
            answers.extend(post(connection, number) for number in mine[start : start + 10])
            connection.close()

    threads = [threading.Thread(target=work, args=(numbers[n::clients],)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return answers


def test_two_preloaded_gunicorn_workers_lose_and_repeat_nothing(site: Site, serve: Any) -> None:
    server = serve(*gunicorn("--workers", "2", "--threads", "4", "--preload"), OPEN_BEFORE_FORK="yes")
    workers = [flask_events(site, "worker") for _ in range(2)]
    try:
        answers = post_all(server, range(2000), clients=8)
        assert len(answers) == 2000
        assert len({answer["pid"] for answer in answers}) == 2, "both workers of gunicorn answered"
        assert all(answer["header"] == answer["operation"] for answer in answers)
        bus = site.bus()
        audited = conserved(bus, timeout=60)
        assert [(h.name, h.succeeded) for h in audited.handlers] == [("Billing.bill", 2000)]
        assert site.witness.counts("billed") == dict.fromkeys(range(2000), 1)
        assert site.witness.counts("billed", by="app") == {"web": 2000}
        assert operations_of(bus) == {answer["operation"]: "succeeded" for answer in answers}
        assert flask_events(site, "audit").wait(60) == 0
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            assert worker.wait(40) == 0
    assert server.stop() == 0


def flask_events(site: Site, *command: str) -> subprocess.Popen[bytes]:
    """A command of the application, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "tests.apps.web:create_app()", "events", *command],
        cwd=ROOT,
        env=site.environ() | {"WITNESS": str(site.witness.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def events_of(bus: EventBus) -> list[Envelope]:
    """Every event there is."""
    bus.open()
    return bus.store.events.find(EventQuery())


def operations_of(bus: EventBus) -> dict[str, str]:
    """Every operation of kind http with its status."""
    found: dict[str, str] = {}
    after = None
    while page := bus.operations.find(kind="http", after=after, limit=1000):
        found |= {operation.id: operation.status for operation in page}
        after = page[-1].id
    return found


@pytest.mark.parametrize(
    "options", [("--workers", "2"), ("--workers", "1", "--threads", "4")], ids=["sync", "gthread"]
)
def test_an_embedded_worker_runs_in_the_web_process(site: Site, serve: Any, options: tuple[str, ...]) -> None:
    server = serve(*gunicorn(*options), EMBEDDED="yes")
    answers = post_all(server, range(20), clients=2)
    conserved(site.bus(), timeout=60)
    assert site.witness.counts("billed") == dict.fromkeys(range(20), 1)
    billers = set(site.witness.counts("billed", by="pid"))
    assert billers <= {answer["pid"] for answer in answers} | {int(server.get("/pid"))}
    assert server.stop() == 0
    assert site.bus().store.directory.workers() == [], "it signed off"


def test_the_reloader_runs_one_embedded_worker_and_restarts_it(
    site: Site, serve: Any, tmp_path: Path
) -> None:
    watched = tmp_path / "watched.py"
    watched.write_text("")
    flask_run = ["--app", "tests.apps.web:create_app()", "run", "--port", "{port}", "--reload"]
    server = serve("flask", *flask_run, "--extra-files", str(watched), EMBEDDED="yes")
    first = int(server.get("/pid"))
    post(server.client(), 1)
    eventually(lambda: site.witness.counts("billed") == {1: 1}, timeout=30)
    assert set(site.witness.counts("billed", by="pid")) == {first}, "not in the process that watches files"
    watched.write_text("changed = True")

    def reloaded() -> bool:
        try:
            return int(server.get("/pid")) != first
        except OSError:
            return False

    eventually(reloaded, timeout=30)
    post(server.client(), 2)
    eventually(lambda: site.witness.counts("billed") == {1: 1, 2: 1}, timeout=30)
    conserved(site.bus(), timeout=60)


def test_a_repeated_key_is_answered_once_by_several_processes(site: Site, serve: Any) -> None:
    server = serve(*gunicorn("--workers", "2", "--threads", "4"))
    site.bus()
    answers = [post(server.client(), 7, key="order-7") for _ in range(6)]
    assert len({(answer["operation"], answer["header"], answer["pid"]) for answer in answers}) == 1
    assert len(site.bus().operations.find(kind="http")) == 1


def test_of_requests_with_the_same_key_at_once_one_runs(site: Site, serve: Any, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.write_text("view")
    server = serve(*gunicorn("--workers", "2", "--threads", "4"), HOLD=str(held))
    with ThreadPoolExecutor(max_workers=20) as pool:
        waiting = [pool.submit(ask, server.client(), 7, "order-7") for _ in range(20)]
        eventually(lambda: [each.done() for each in waiting].count(True) == 19, timeout=30)
        held.unlink()
        statuses = sorted(each.result(30)[0] for each in waiting)
    assert statuses == [201] + [409] * 19
    assert len(events_of(site.bus())) == 1


def test_a_killed_request_publishes_the_same_event_when_it_is_repeated(
    site: Site, serve: Any, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.write_text("view")
    server = serve(*gunicorn("--workers", "1"), HOLD=str(held), IDEMPOTENCY_LEASE="1")
    with ThreadPoolExecutor(max_workers=1) as pool:
        first = pool.submit(ask, server.client(), 7, "order-7")
        [pid] = eventually(lambda: site.witness.counts("held", by="pid"), timeout=30)
        os.kill(int(pid), signal.SIGKILL)
        with pytest.raises(http.client.RemoteDisconnected):
            first.result(30)
    held.unlink()
    eventually(lambda: ask(server.client(), 7, "order-7")[0] == 201, timeout=30)
    assert len(events_of(site.bus())) == 1


def test_an_event_whose_embedded_worker_ended_is_handled_by_another(
    site: Site, serve: Any, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.write_text("handler")
    first = serve(*gunicorn("--workers", "1"), EMBEDDED="yes", HOLD=str(held))
    assert ask(first.client(), 7)[0] == 201
    eventually(lambda: site.witness.counts("held"), timeout=30)
    assert first.stop() == 0
    assert site.witness.counts("billed") == {}
    held.unlink()
    serve(*gunicorn("--workers", "1"), EMBEDDED="yes")
    eventually(lambda: site.witness.counts("billed") == {7: 1}, timeout=60)
    conserved(site.bus(), timeout=60)


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_gevent_workers_of_gunicorn_lose_and_repeat_nothing(
    site: Site, serve: Any, preload: tuple[str, ...]
) -> None:
    options = ("--worker-class", "gevent", "--workers", "2", "--graceful-timeout", "3", *preload)
    server = serve(*gunicorn(*options), OPEN_BEFORE_FORK="yes" if preload else "no")
    worker = flask_events(site, "worker")
    try:
        answers = post_all(server, range(80), clients=4)
        assert len({answer["pid"] for answer in answers}) == 2, "both workers of gunicorn answered"
        conserved(site.bus(), timeout=60)
        assert site.witness.counts("billed") == dict.fromkeys(range(80), 1)
    finally:
        worker.terminate()
        worker.wait(40)
    assert server.stop() == 0
    assert "RuntimeWarning" not in server.log


def test_an_embedded_worker_is_refused_by_name_in_a_gevent_worker_of_gunicorn(site: Site, serve: Any) -> None:
    server = serve(*gunicorn("--worker-class", "gevent", "--workers", "1"), EMBEDDED="yes")
    assert ask(server.client(), 7)[0] == 201
    eventually(lambda: "does not run in a process that gevent has patched" in server.log, timeout=30)
    assert len(events_of(site.bus())) == 1
