"""``eventdriven dashboard`` and ``eventdriven user`` as processes, on real servers."""

import http.cookiejar
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "correct horse battery"
WRONG = "c4n4ry horse battery"
_TOKEN = re.compile(r'name="csrf_token" value="([0-9a-f]{64})"')


class Server:
    """A dashboard in a process of its own."""

    def __init__(self, environ: dict[str, str], log: Path, *args: str) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eventdriven_sync", "dashboard", "--json", "--port", "0", *args],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, log.read_text()
        self.url: str = json.loads(line)["url"]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


class Client:
    """A browser as simple as can be."""

    def __init__(self) -> None:
        self.jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar))

    def get(self, url: str, **headers: str) -> tuple[int, str, Any]:
        return self._send(urllib.request.Request(url, headers=headers))

    def sign_in(self, server: Server, name: str, password: str) -> tuple[int, str, Any]:
        _, page, _ = self.get(f"{server.url}login")
        found = _TOKEN.search(page)
        assert found, page
        form = {"csrf_token": found[1], "name": name, "password": password}
        data = urllib.parse.urlencode(form).encode()
        return self._send(urllib.request.Request(f"{server.url}login", data=data))

    def _send(self, request: urllib.request.Request) -> tuple[int, str, Any]:
        try:
            with self._opener.open(request, timeout=20) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), error.headers


@pytest.fixture
def environ(nats_url: str, mongo_url: str, namespace: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENTDRIVEN_")}
    return kept | {
        "EVENTDRIVEN_NATS": nats_url,
        "EVENTDRIVEN_MONGO": mongo_url,
        "EVENTDRIVEN_NAMESPACE": namespace,
        "EVENTDRIVEN_DASHBOARD_SECRET_KEY": "0123456789abcdefghijklmnopqrstuvwxyz",
        "SECRET": PASSWORD,
    }


@pytest.fixture
def serve(environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts dashboards, and stops them afterwards."""
    started: list[Server] = []

    def start(*args: str) -> Server:
        server = Server(environ, tmp_path / f"dashboard-{len(started)}.log", *args)
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(timeout=20)
        if server.process.stdout:
            server.process.stdout.close()


def program(environ: dict[str, str], *args: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "eventdriven_sync", *args]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_users_of_two_processes_are_the_same(environ: dict[str, str], serve: Callable[..., Server]) -> None:
    """Sessions, and how often somebody tried, are known to every process."""
    refused = program(environ, "dashboard", "--port", "0")
    assert (refused.returncode, "user add NAME --role admin" in refused.stderr) == (2, True)
    added = program(environ, "user", "add", "root", "--role", "admin", "--password-env", "SECRET")
    assert added.returncode == 0, added.stderr
    one, other = serve(), serve()
    client = Client()
    assert client.sign_in(one, "root", PASSWORD)[0] == 200
    for server in (one, other):
        status, text, headers = client.get(f"{server.url}api/v1/session")
        assert (status, json.loads(text)["name"]) == (200, "root")
        assert "Server" not in headers
    stranger = Client()
    codes = [stranger.sign_in(server, "root", WRONG)[0] for server in (one, other, one, other, one, other)]
    assert codes == [401] * 5 + [429]
    assert program(environ, "user", "disable", "root").returncode == 2
    assert program(environ, "user", "password", "root", "--password-env", "SECRET").returncode == 0
    assert client.get(f"{other.url}api/v1/session")[0] == 401
    assert [server.stop() for server in (one, other)] == [0, 0]
    for server in (one, other):
        log = server.log.read_text()
        assert PASSWORD not in log
        assert WRONG not in log
        assert "Traceback" not in log


def test_what_is_insecure_serves_this_machine_only(serve: Callable[..., Server]) -> None:
    server = serve("--insecure")
    client = Client()
    assert client.get(f"{server.url}api/v1/overview")[0] == 200
    # A proxy in front that nobody told the program of, and a name that leads here from elsewhere.
    assert client.get(f"{server.url}api/v1/overview", **{"X-Forwarded-For": "192.0.2.1"})[0] == 403
    assert client.get(f"{server.url}api/v1/overview", Host="rebound.example")[0] == 403
    assert client.get(f"{server.url}health/ready", Host="pod.example")[0] == 200
    assert server.stop() == 0


def test_a_port_that_is_taken_is_said(environ: dict[str, str], serve: Callable[..., Server]) -> None:
    port = urllib.parse.urlsplit(serve("--insecure").url).port
    refused = program(environ, "dashboard", "--insecure", "--port", str(port))
    assert refused.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
