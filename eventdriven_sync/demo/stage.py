"""The processes of the demonstration: the blog's web application, its workers, its commands."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.error
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from eventdriven_sync.demo.visitor import Visitor
from eventdriven_sync.devserver.ports import LOOPBACK, free_port
from eventdriven_sync.devserver.process import spawn
from eventdriven_sync.errors import ConfigurationError

Echo = Callable[[str], object]

WORKERS = 2
START_TIMEOUT = 30.0
COMMAND_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0
KEPT_LINES = 200

_APP = "flask_blog:create_app"


class StageFailed(ConfigurationError):
    """A process of the demonstration ended by itself, or was not ready in time."""


class Stage:
    """The blog, served on a free loopback port, and two workers; a context manager.

    Args:
        settings: the environment variables that name the servers, as ``DevServers.settings`` gives them.
        echo: gets each line that a process prints, with the process's name before it.

    Attributes:
        url: where the blog is, without a slash at its end.
        workers: the worker processes.
    """

    def __init__(self, settings: Mapping[str, str], *, echo: Echo) -> None:
        self.url = ""
        self.workers: list[Child] = []
        self._echo = echo
        self._environment = _environment(settings)
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process and wait for it."""
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.await_end(STOP_TIMEOUT)
        self._children.clear()

    def run_at_once(self, *arguments: str, times: int) -> list[str]:
        """Run one ``flask`` command of the blog in several processes at the same time; all they printed.

        Raises:
            StageFailed: one of them failed or took longer than 30 s.
        """
        running = [
            self._child(f"cron {n}", ["flask", "--app", _APP, *arguments]) for n in range(1, times + 1)
        ]
        for child in running:
            if child.wait(COMMAND_TIMEOUT) != 0:
                raise StageFailed(f"`flask {' '.join(arguments)}` failed:\n" + "\n".join(child.lines))
            self._children.remove(child)
        return [line for child in running for line in child.lines]

    def serve_dashboard(self) -> str:
        """Start the dashboard, without users, and return its URL once it answers.

        Raises:
            StageFailed: it did not start.
        """
        port = free_port()
        url = f"http://{LOOPBACK}:{port}"
        command = ["eventdriven_sync", "dashboard", "--insecure", "--port", str(port)]
        self._await_answer(self._child("dashboard", command), url, path="/api/v1/session")
        return url

    def _start(self) -> None:
        port = free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        web = self._child("web", ["waitress", f"--listen={LOOPBACK}:{port}", "--call", _APP])
        worker = ["eventdriven_sync", "--app", _APP, "worker", "--log-level", "warning"]
        self.workers = [self._child(f"worker {n}", worker) for n in range(1, WORKERS + 1)]
        self._await_answer(web, self.url)

    def _child(self, name: str, module: Sequence[str]) -> Child:
        command = [sys.executable, "-m", *module]
        child = Child(name, command, environment=self._environment, echo=self._echo)
        self._children.append(child)
        return child

    def _await_answer(self, server: Child, url: str, *, path: str = "/") -> None:
        visitor, deadline = Visitor(url), time.monotonic() + START_TIMEOUT
        while not _answers(visitor, path):
            ended = [child for child in self._children if not child.running]
            if ended or time.monotonic() > deadline:
                one = ended[0] if ended else server
                one.wait(1.0 if ended else 0.0)  # until everything it printed has been read
                what = "ended by itself" if ended else f"did not answer within {START_TIMEOUT:g} s"
                raise StageFailed(f"the process {one.name!r} {what}; it printed:\n" + "\n".join(one.lines))
            time.sleep(0.05)


class Child:
    """One process that ends with this one at the latest. Its lines are echoed and the last 200 kept."""

    def __init__(self, name: str, command: list[str], *, environment: Mapping[str, str], echo: Echo) -> None:
        self.name = name
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._echo = echo
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as log:
            self.process, self._watcher = spawn(command, log=log, environment=environment)
        self._reader = threading.Thread(
            target=self._relay, args=(os.fdopen(reading, errors="replace"),), name=f"demo-{name}", daemon=True
        )
        self._reader.start()

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.process.poll() is None

    def terminate(self) -> None:
        """Ask it to end."""
        if self.running:
            self.process.terminate()

    def wait(self, timeout: float) -> int | None:
        """Its exit code, when all it printed has been read; None if it still runs after ``timeout`` s."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        if self._watcher.poll() is None:
            self._watcher.communicate(b"\n", timeout=STOP_TIMEOUT)
        self._reader.join(STOP_TIMEOUT)
        return code

    def await_end(self, timeout: float) -> None:
        """Wait for its end, which comes after ``timeout`` s by force."""
        if self.wait(timeout) is None:
            self.process.kill()
            self.wait(STOP_TIMEOUT)

    def _relay(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self.lines.append(line.rstrip("\n"))
                self._echo(f"   {self.name} | {self.lines[-1]}")


def blog_folder() -> Path:
    """The folder from which ``flask_blog`` is imported: in the installed package, or in the clone.

    Raises:
        ConfigurationError: it is in neither.
    """
    package = Path(__file__).parents[1]
    places = (package / "examples", package.parent / "examples")
    for place in places:
        if (place / "flask_blog" / "__init__.py").is_file():
            return place
    raise ConfigurationError(
        f"the example flask_blog is neither in {places[0]} nor in {places[1]}; install the package again"
    )


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Ours without settings of other applications: the demonstration is the same wherever it runs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("EVENTDRIVEN_", "FLASK_"))}
    path = os.pathsep.join([str(blog_folder()), *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, **settings, "PYTHONPATH": path, "FLASK_SKIP_DOTENV": "1"}


def _answers(visitor: Visitor, path: str) -> bool:
    try:
        visitor.get(path)
    except urllib.error.HTTPError:
        raise
    except OSError:
        return False
    return True
