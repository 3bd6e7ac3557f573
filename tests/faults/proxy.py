"""A TCP proxy that does to connections what networks do: it delays, throttles, splits, resets, goes silent.

Faults are set while connections run, for one direction or both, and hold for the connections there are and
for those to come. Each connection has a thread a direction; what is not passed on stays in the kernel's
buffers, so a peer that sends on is slowed down as it would be by a network.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

import attrs

from eventdriven_sync.devserver.ports import LOOPBACK

_CHUNK = 65536
_TICK = 0.02
# A close with this option sends RST and no FIN.
_RESET = struct.pack("ii", 1, 0)
# A blocked send looks so often whether it was cut meanwhile.
_SEND_WAIT = struct.pack("ll", 0, 100_000)


@attrs.frozen(kw_only=True)
class Faults:
    """What happens to the bytes of one direction.

    Attributes:
        delay: seconds from 0 to this, drawn for each piece that is passed on.
        bytes_per_second: at most so many pass; 0 is no limit.
        piece: bytes written at once; 0 is as many as were read.
        held: nothing passes until this is over: a partition that TCP outlives.
        silent: bytes are thrown away and never arrive: to both peers the connection looks alive (half-open).
        reset_after: the connection is reset in the middle of what it sends, when so many bytes have passed.
    """

    delay: float = 0.0
    bytes_per_second: float = 0.0
    piece: int = 0
    held: bool = False
    silent: bool = False
    reset_after: int | None = None

    @property
    def cut_off(self) -> bool:
        """Whether nothing passes, also not the news that a peer has gone."""
        return self.held or self.silent


NONE = Faults()


class Proxy:
    """Listens on a loopback port of its own and passes everything on to a server, faults included.

    Thread-safe; a context manager.

    Args:
        target: tells the port of the server, which may change at a restart.
        tap: hears every piece that is passed on, as ``tap(to_server, data)``, on the proxy's threads.
        seed: of the delays.

    Attributes:
        accepted: connections so far.
    """

    def __init__(
        self,
        target: Callable[[], int],
        *,
        tap: Callable[[bool, bytes], None] | None = None,
        seed: int = 0,
    ) -> None:
        self.target = target
        self.tap = tap
        self.chance = random.Random(seed)
        self.accepted = 0
        self._faults = {True: NONE, False: NONE}
        self._refusing = False
        self._guard = threading.Lock()  # guards _connections, _refusing and _faults
        self._connections: set[_Connection] = set()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    def faults(self, to_server: bool) -> Faults:
        """Those of one direction."""
        return self._faults[to_server]

    def set(self, faults: Faults, *, to_server: bool | None = None) -> None:
        """The faults of one direction or both from now on."""
        with self._guard:
            for way in (True, False):
                if to_server in (way, None):
                    self._faults[way] = faults

    def heal(self) -> None:
        """No faults any more. Connections in which bytes are missing are reset."""
        with self._guard:
            self._refusing = False
        self.set(NONE)
        for connection in self.connections():
            if connection.lossy:
                connection.reset()

    def refuse(self) -> None:
        """Reset all connections and every new one until ``heal``."""
        with self._guard:
            self._refusing = True
        self.reset()

    def reset(self) -> int:
        """Reset the connections of now; how many there were."""
        connections = self.connections()
        for connection in connections:
            connection.reset()
        return len(connections)

    def passes(self, to_server: bool, size: int) -> int:
        """How many of so many bytes may pass before the reset that is due; counts them."""
        with self._guard:
            left = self._faults[to_server].reset_after
            if left is None:
                return size
            # The next connection gets a reset of its own only when somebody asks for it.
            rest = None if left <= size else left - size
            self._faults[to_server] = attrs.evolve(self._faults[to_server], reset_after=rest)
            return left if left <= size else size

    def connections(self) -> list[_Connection]:
        """Those that are open now."""
        with self._guard:
            return list(self._connections)

    @staticmethod
    def given_up(connections: list[_Connection]) -> bool:
        """Whether the clients of all of these have closed them."""
        return all(connection.left for connection in connections)

    def close(self) -> None:
        """Reset everything and listen no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()
        for connection in self.connections():
            connection.reset()
            connection.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def forget(self, connection: _Connection) -> None:
        """It has ended."""
        with self._guard:
            self._connections.discard(connection)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.accepted += 1
            try:
                connection = _Connection(self, client, socket.create_connection((LOOPBACK, self.target()), 5))
            except OSError:  # the server is not there, which its client hears at once
                _close(client, reset=True)
                continue
            with self._guard:
                self._connections.add(connection)
                refused = self._refusing
            connection.start()
            if refused:
                connection.reset()


class _Connection:
    """Two sockets, and a thread for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.lossy: set[bool] = set()
        self.left = False  # whether its client has closed it
        self._proxy = proxy
        self._ended = threading.Event()
        self._sockets = (client, server)
        for each in self._sockets:
            each.settimeout(None)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_WAIT)
        self._threads = [
            threading.Thread(target=self._carry, args=way, name=f"proxy-{proxy.port}-way", daemon=True)
            for way in ((True, client, server), (False, server, client))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(5)

    def reset(self) -> None:
        """Cut it: both peers see a reset."""
        self._end(reset=True)

    def _carry(self, to_server: bool, source: socket.socket, sink: socket.socket) -> None:
        reset = False
        try:
            while data := source.recv(_CHUNK):
                self._pass(to_server, data, sink)
        except OSError:  # reset by a peer or by us
            reset = True
        self.left = self.left or to_server
        while self._cut_off(to_server) and not self._ended.wait(_TICK):
            pass
        self._end(reset=reset or bool(self.lossy))

    def _cut_off(self, to_server: bool) -> bool:
        return to_server in self.lossy or self._proxy.faults(to_server).cut_off

    def _pass(self, to_server: bool, data: bytes, sink: socket.socket) -> None:
        while data:
            while (faults := self._proxy.faults(to_server)).held:
                self._wait(_TICK)
            if faults.silent or to_server in self.lossy:
                self.lossy.add(to_server)
                return
            piece, data = _cut(data, faults)
            self._wait(_pause(self._proxy.chance, faults, len(piece)))
            allowed = self._proxy.passes(to_server, len(piece))
            if self._proxy.tap:
                self._proxy.tap(to_server, piece[:allowed])
            self._send(piece[:allowed], sink)
            if allowed < len(piece) or (faults.reset_after is not None and allowed == faults.reset_after):
                self.reset()

    def _send(self, data: bytes, sink: socket.socket) -> None:
        while data:
            self._wait(0)
            with contextlib.suppress(BlockingIOError):
                data = data[sink.send(data) :]

    def _wait(self, seconds: float) -> None:
        if self._ended.wait(seconds) if seconds else self._ended.is_set():
            raise ConnectionResetError

    def _end(self, *, reset: bool) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self.left = True
            for each in self._sockets:
                _close(each, reset=reset)
            self._proxy.forget(self)


def _cut(data: bytes, faults: Faults) -> tuple[bytes, bytes]:
    size = faults.piece or len(data)
    if faults.bytes_per_second:
        size = min(size, max(1, int(faults.bytes_per_second * _TICK)))
    return data[:size], data[size:]


def _pause(chance: random.Random, faults: Faults, size: int) -> float:
    throttled = size / faults.bytes_per_second if faults.bytes_per_second else 0.0
    return throttled + (chance.uniform(0, faults.delay) if faults.delay else 0.0)


def _close(each: socket.socket, *, reset: bool) -> None:
    with contextlib.suppress(OSError):
        if reset:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # Wakes the thread that reads from it, which closing does not; a reset must not begin with FIN.
        each.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
    each.close()
