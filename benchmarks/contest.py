"""Runs the contenders beside each other: all servers, a process for each publisher and worker.

What each server computed meanwhile belongs to the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.rabbit import Rabbit
from benchmarks.shop import cpu_seconds
from eventdriven_sync.devserver import DevServers

OURS = ("ours, stored", "ours, broker")
PEERS = (
    "naive bridge",
    "Celery, Redis",
    "Celery, RabbitMQ confirmed",
    "Dramatiq, Redis",
    "Dramatiq, RabbitMQ confirmed",
    "FastStream, JetStream",
)
Figures = dict[str, float]
Measure = Callable[["Contest", str, argparse.Namespace], Figures]


class Contest:
    """All servers, running. A peer whose server is not installed is left out."""

    def __init__(self, servers: DevServers, redis: Any, rabbit: Any) -> None:
        self._servers = servers
        self._pids = {"nats": servers.nats.process, "mongod": servers.mongo.process}
        self._urls = {"NATS": servers.nats_url}
        if redis:
            self._urls["REDIS"], self._pids["redis"] = redis.url, redis.process
        if rabbit:
            self._urls["RABBIT"] = rabbit.url
        self._rabbit = rabbit

    def present(self, contenders: Iterable[str]) -> list[str]:
        """Those whose servers run."""
        needs = {"Redis": "REDIS", "RabbitMQ": "RABBIT"}
        missing = [server for server, key in needs.items() if key not in self._urls]
        return [each for each in contenders if not any(server in each for server in missing)]

    def environ(self) -> dict[str, str]:
        """For the processes of one run: a namespace of their own."""
        name = f"b{uuid.uuid4().hex[:10]}"
        urls = self._urls | {"MONGO": self._servers.mongo_url(name), "NAME": name}
        return os.environ | {f"BENCH_{key}": value for key, value in urls.items()}

    def start(
        self, peer: str, role: str, environ: Mapping[str, str], **numbers: int
    ) -> subprocess.Popen[str]:
        """A process of a peer; ``answer`` gives its figures."""
        options = [f"--{key}={value}" for key, value in numbers.items()]
        command = [sys.executable, "-m", "benchmarks.contender", peer, role, *options]
        return subprocess.Popen(
            command, env=dict(environ), cwd=harness.ROOT, stdout=subprocess.PIPE, text=True
        )

    def run(self, peer: str, role: str, environ: Mapping[str, str], **numbers: int) -> Figures:
        """Run one and wait; its figures, and what the servers spent per event."""
        before = self.cpu()
        found = answer(self.start(peer, role, environ, **numbers))
        events = max(numbers["events"], 1)
        spent = {f"{key}_us": (at - before[key]) * 1e6 / events for key, at in self.cpu().items()}
        return found | {key: value for key, value in spent.items() if value >= 1.0}

    def pair(self, peer: str, *, events: int, **numbers: int) -> tuple[Figures, Figures]:
        """A worker and, once it is there, a publisher; the figures of both."""
        environ = self.environ()
        worker = self.start(peer, "work", environ, events=events)
        try:
            self.run(peer, "publish", environ, events=0)
            assert worker.stdout is not None
            if not any('"warm"' in line for line in worker.stdout):
                raise RuntimeError(f"the worker of {peer} ended before it handled anything")
            publisher = self.run(peer, "publish", environ, events=events, **numbers)
            return answer(worker), publisher
        finally:
            worker.kill()

    def cpu(self) -> Figures:
        """Seconds that each server has computed."""
        found = {key: cpu_seconds(process.pid) for key, process in self._pids.items() if process}
        if self._rabbit:
            found["rabbit"] = sum(cpu_seconds(process.pid) for process in self._rabbit.processes())
        return found


def answer(process: subprocess.Popen[str]) -> Figures:
    """The last line that it prints."""
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with {process.returncode}")
    found: Figures = json.loads(output.strip().splitlines()[-1])
    return found


@contextmanager
def contest() -> Iterator[Contest]:
    """The servers that are installed, for as long as the block runs."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = rabbit = None
        if shutil.which("redis-server"):
            from tests.apps.redis_server import start

            redis = start(directory)
            stack.callback(redis.stop)
        if shutil.which("rabbitmq-server"):
            rabbit = stack.enter_context(Rabbit(directory))
        yield Contest(stack.enter_context(DevServers()), redis, rabbit)


def share(contender: str, events: int) -> int:
    """How many of the events a contender gets: slow ones a quarter, or everything would take hours."""
    slow = ("naive", "Celery", "Dramatiq")
    return events // 4 if contender.startswith(slow) else events


def main(question: str, measure: Measure, *, raw: Sequence[str] = (), **numbers: int | str) -> None:
    """A benchmark of one question: every contender, interleaved, then the table and the JSON.

    Args:
        raw: the raw limits that take part.
        numbers: options with their defaults; ``--only`` takes parts of contenders' names, with commas.
    """
    options = harness.options(question, only="", **numbers)
    with contest() as servers:
        contenders = {
            each: (lambda each=each: measure(servers, each, options))
            for each in servers.present((*OURS, *PEERS, *raw))
            if any(part in each for part in options.only.split(","))
        }
        found = harness.interleaved(contenders, runs=options.runs)
    harness.report(question, found)
