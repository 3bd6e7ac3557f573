"""The proxy does what it says: every fault it can make really happens to both peers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from eventdriven_sync.devserver.ports import LOOPBACK
from tests.faults.proxy import Faults, Proxy
from tests.polling import eventually


class Peers:
    """A client and a server that talk through the proxy."""

    def __init__(self) -> None:
        self.listener = socket.create_server((LOOPBACK, 0))
        self.heard: list[tuple[bool, bytes]] = []
        self.proxy = Proxy(self.port, tap=lambda to_server, data: self.heard.append((to_server, data)))
        self.opened: list[socket.socket] = []

    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def pair(self) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection((LOOPBACK, self.proxy.port), timeout=5)
        server, _ = self.listener.accept()
        server.settimeout(5)
        self.opened += [client, server]
        return client, server

    def close(self) -> None:
        self.proxy.close()
        for each in [*self.opened, self.listener]:
            each.close()


@pytest.fixture
def peers() -> Iterator[Peers]:
    peers = Peers()
    before = threading.active_count() - 1
    yield peers
    peers.close()
    eventually(lambda: threading.active_count() <= before, message="the proxy leaves no thread behind")


def receive(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (piece := connection.recv(size - len(found))):
        found += piece
    return found


def receive_all(connection: socket.socket) -> bytes:
    """Everything until its end."""
    return receive(connection, 1_000_000_000)


def connect_and_read(peers: Peers) -> bytes:
    """The reset may come before the connection is made, to its maker."""
    with socket.create_connection((LOOPBACK, peers.proxy.port), timeout=5) as client:
        return client.recv(1)


def says_nothing(connection: socket.socket, seconds: float = 0.3) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1) is None
    except TimeoutError:
        return True
    finally:
        connection.settimeout(5)


def test_without_faults_everything_passes_both_ways_and_an_end_is_an_end(peers: Peers) -> None:
    client, server = peers.pair()
    sent = bytes(range(256)) * 4096
    threading.Thread(target=client.sendall, args=(sent,)).start()
    assert receive(server, len(sent)) == sent
    server.sendall(b"answer")
    assert receive(client, 6) == b"answer"
    client.close()
    assert server.recv(1) == b""
    assert b"".join(data for to_server, data in peers.heard if to_server) == sent
    assert [data for to_server, data in peers.heard if not to_server] == [b"answer"]
    eventually(lambda: peers.proxy.connections() == [])


def test_a_delay_comes_between_sending_and_receiving_and_differs_from_piece_to_piece(peers: Peers) -> None:
    client, server = peers.pair()
    peers.proxy.set(Faults(delay=0.2))
    took = []
    for _ in range(8):
        began = time.monotonic()
        client.sendall(b"x")
        receive(server, 1)
        took.append(time.monotonic() - began)
    assert max(took) > 0.08
    assert max(took) - min(took) > 0.05


def test_a_narrow_connection_passes_so_many_bytes_a_second_and_slows_the_sender_down(peers: Peers) -> None:
    client, server = peers.pair()
    peers.proxy.set(Faults(bytes_per_second=20_000))
    began = time.monotonic()
    client.sendall(b"x" * 10_000)
    assert receive(server, 10_000) == b"x" * 10_000
    assert 0.4 < time.monotonic() - began < 2.0


def test_single_bytes_are_written_one_by_one(peers: Peers) -> None:
    client, server = peers.pair()
    peers.proxy.set(Faults(piece=1))
    client.sendall(b"one by one")
    assert receive(server, 10) == b"one by one"
    assert [data for _, data in peers.heard] == [bytes([byte]) for byte in b"one by one"]


def test_a_reset_comes_in_the_middle_of_what_was_sent_and_both_peers_see_it(peers: Peers) -> None:
    client, server = peers.pair()
    peers.proxy.set(Faults(reset_after=7), to_server=False)
    server.sendall(b"half a frame")
    with pytest.raises(ConnectionResetError):
        receive_all(client)
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    assert b"".join(data for _, data in peers.heard) == b"half a "
    # It was one reset: the next connection works.
    client, server = peers.pair()
    server.sendall(b"half a frame")
    assert receive(client, 12) == b"half a frame"


def test_all_connections_can_be_reset_at_once(peers: Peers) -> None:
    pairs = [peers.pair(), peers.pair()]
    eventually(lambda: len(peers.proxy.connections()) == 2)
    assert peers.proxy.reset() == 2
    for each in (connection for pair in pairs for connection in pair):
        with pytest.raises(ConnectionResetError):
            each.recv(1)


def test_a_silent_connection_looks_alive_to_both_and_is_reset_when_it_heals(peers: Peers) -> None:
    client, server = peers.pair()
    peers.proxy.set(Faults(silent=True), to_server=True)
    client.sendall(b"lost")
    assert says_nothing(server)
    server.sendall(b"the other way it works")
    assert receive(client, 22) == b"the other way it works"
    peers.proxy.heal()
    for each in (client, server):
        with pytest.raises(ConnectionResetError):
            each.recv(1)


def test_the_end_of_a_peer_is_not_heard_through_a_silent_connection(peers: Peers) -> None:
    client, server = peers.pair()
    peers.proxy.set(Faults(silent=True))
    server.close()
    assert says_nothing(client)
    before = peers.proxy.connections()
    assert len(before) == 1
    assert not peers.proxy.given_up(before)
    client.close()
    eventually(lambda: peers.proxy.given_up(before))
    assert peers.proxy.connections() == before


def test_what_is_held_arrives_when_it_is_over_as_after_a_partition(peers: Peers) -> None:
    client, server = peers.pair()
    peers.proxy.set(Faults(held=True))
    client.sendall(b"late")
    late_client, late_server = peers.pair()
    late_client.sendall(b"new")
    assert says_nothing(server)
    assert says_nothing(late_server)
    peers.proxy.heal()
    assert receive(server, 4) == b"late"
    assert receive(late_server, 3) == b"new"


def test_a_refusing_proxy_resets_what_there_is_and_what_comes_until_it_heals(peers: Peers) -> None:
    client, _ = peers.pair()
    peers.proxy.refuse()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionResetError):
        connect_and_read(peers)
    peers.listener.accept()[0].close()
    peers.proxy.heal()
    client, server = peers.pair()
    client.sendall(b"x")
    assert receive(server, 1) == b"x"


def test_without_a_server_a_client_is_reset(peers: Peers) -> None:
    peers.listener.close()
    with pytest.raises(ConnectionResetError):
        connect_and_read(peers)
    assert peers.proxy.accepted == 1


def test_a_connection_whose_peer_does_not_read_can_be_reset(peers: Peers) -> None:
    client, server = peers.pair()
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        server.sendall(b"x" * 100_000_000)
    eventually(lambda: peers.proxy.connections())
    peers.proxy.reset()
    eventually(lambda: not [each for each in threading.enumerate() if each.name.endswith("-way")])
    with pytest.raises(ConnectionResetError):
        receive_all(client)
