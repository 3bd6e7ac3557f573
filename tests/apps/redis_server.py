"""A redis-server for tests: Debian's, on a free loopback port, gone with the process that started it."""

from pathlib import Path

from eventdriven_sync.devserver.ports import LOOPBACK, connect
from eventdriven_sync.devserver.process import LocalServer, ServerBinaryMissing


class RedisServer(LocalServer):
    """One redis-server that keeps everything in memory."""

    program = "redis-server"

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def find_binary(self) -> str:
        try:
            return super().find_binary()
        except ServerBinaryMissing as error:
            raise ServerBinaryMissing(
                "redis-server is not on PATH: apt-get install -y redis-server", program=self.program
            ) from error

    def _command(self, binary: str) -> list[str]:
        listen = ["--bind", LOOPBACK, "--port", str(self.port)]
        return [binary, *listen, "--save", "", "--appendonly", "no", "--dir", str(self.data_dir)]

    def _answers(self) -> bool:
        try:
            with connect(self.port) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def _binary_in_wheel(self) -> str | None:
        return None


def start(directory: Path) -> RedisServer:
    """A running server.

    Raises:
        ServerBinaryMissing: it is not installed; the message says how to.
    """
    return RedisServer(directory).start()
