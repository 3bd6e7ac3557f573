"""The processes of a run: kept alive, killed by chance, measured."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import attrs

from tests.faults.workload import Load
from tests.polling import eventually

ROOT = Path(__file__).parents[2]
WORKER, PUBLISHER = "worker", "publisher"


@attrs.frozen(kw_only=True)
class Sample:
    """What one process used at one moment. ``seconds`` is its age at that moment."""

    role: str
    pid: int
    seconds: float
    rss: int
    fds: int
    threads: int


@attrs.define(kw_only=True)
class Member:
    """A place in the crew and the process that has it now."""

    role: str
    index: int
    popen: subprocess.Popen[bytes]
    born: float
    lives: int = 1

    @property
    def done(self) -> bool:
        """A publisher that published all it had to."""
        return self.role == PUBLISHER and self.popen.poll() == 0


class Crew:
    """Publishers and workers. Whoever ends is started again, except a publisher that is done. Thread-safe.

    Attributes:
        environ: the environment of processes started from now on, by role.
        changes: to that of one place, by role and index.
        deaths: how often a process ended by itself, by role and exit code (killed by us: not in it).
        samples: what processes used, taken every ``sample_every`` seconds.
    """

    def __init__(
        self,
        directory: Path,
        journal: Path,
        load: Load,
        environ: Mapping[str, str],
        chance: random.Random,
        *,
        sample_every: float = 2.0,
    ) -> None:
        self.environ = {WORKER: dict(environ), PUBLISHER: dict(environ)}
        self.changes: dict[tuple[str, int], dict[str, str]] = {}
        self.deaths: Counter[tuple[str, int]] = Counter()
        self.samples: list[Sample] = []
        self._directory = directory
        self._journal = journal
        self._load = load
        self._chance = chance
        self._sample_every = sample_every
        self._members: list[Member] = []
        self._guard = threading.Lock()  # of the members and their processes
        self._stop = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="crew-supervisor", daemon=True)

    def start_workers(self, *, within: float = 60.0) -> None:
        """Start all workers and wait until they run."""
        self._begin()
        for index in range(self._load.workers):
            self._enlist(WORKER, index)
        eventually(lambda: self.log(WORKER).count(" runs ") >= self._load.workers, timeout=within)

    def start_publishers(self) -> None:
        """Start all publishers."""
        self._begin()
        for index in range(self._load.publishers):
            self._enlist(PUBLISHER, index)

    def pids(self, role: str) -> list[int]:
        """Of the processes of a role that live now, in the order of their places."""
        with self._guard:
            return [m.popen.pid for m in self._members if m.role == role and m.popen.poll() is None]

    def kill(self, role: str, *, index: int | None = None) -> int:
        """kill -9 one of them, by chance unless a place is named; it is started again. Returns its pid."""
        with self._guard:
            candidates = [m for m in self._members if m.role == role and not m.done]
            if index is not None:
                candidates = [m for m in candidates if m.index == index]
            if not candidates:
                return 0
            victim = self._chance.choice(candidates)
            victim.popen.kill()
            victim.popen.wait(30)
            pid = victim.popen.pid
            self._start_again(victim)
            return pid

    @property
    def published(self) -> bool:
        """Whether all publishers are done."""
        with self._guard:
            return all(m.done for m in self._members if m.role == PUBLISHER)

    def log(self, role: str) -> str:
        """What all processes of a role printed."""
        return "".join(path.read_text() for path in sorted(self._directory.glob(f"{role}-*.log")))

    def stop(self, *, grace: float = 15.0) -> dict[str, list[int]]:
        """End all: SIGTERM, and SIGKILL after ``grace`` seconds. Returns the exit codes by role."""
        self._stop.set()
        if self._supervisor.ident:
            self._supervisor.join(30)
        codes: dict[str, list[int]] = {WORKER: [], PUBLISHER: []}
        for member in self._members:
            if member.popen.poll() is None:
                member.popen.terminate()
        deadline = time.monotonic() + grace
        for member in self._members:
            codes[member.role].append(_end(member.popen, deadline))
        return codes

    def _begin(self) -> None:
        if not self._supervisor.ident:
            self._supervisor.start()

    def _enlist(self, role: str, index: int) -> None:
        with self._guard:
            popen = self._spawn(role, index)
            self._members.append(Member(role=role, index=index, popen=popen, born=time.monotonic()))

    def _spawn(self, role: str, index: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.faults.process", role, str(self._journal), str(index)]
        with (self._directory / f"{role}-{index}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, json.dumps(attrs.asdict(self._load))],
                cwd=ROOT,
                env=self.environ[role] | self.changes.get((role, index), {}),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _start_again(self, member: Member) -> None:
        _hang_up(member.popen)
        member.popen = self._spawn(member.role, member.index)
        member.born = time.monotonic()
        member.lives += 1

    def _supervise(self) -> None:
        next_sample = 0.0
        while not self._stop.wait(0.1):
            with self._guard:
                for member in self._members:
                    code = member.popen.poll()
                    if code is not None and not member.done:
                        self.deaths[member.role, code] += 1
                        self._start_again(member)
                if time.monotonic() >= next_sample:
                    next_sample = time.monotonic() + self._sample_every
                    self._take_samples()

    def _take_samples(self) -> None:
        now = time.monotonic()
        for member in self._members:
            used = usage(member.popen.pid)
            if used:
                rss, fds, threads = used
                self.samples.append(
                    Sample(
                        role=f"{member.role}-{member.index}",
                        pid=member.popen.pid,
                        seconds=now - member.born,
                        rss=rss,
                        fds=fds,
                        threads=threads,
                    )
                )


def usage(pid: int) -> tuple[int, int, int] | None:
    """Resident bytes, open files and threads of a process; None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return None
    facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmRSS" not in facts:
        return None
    return int(facts["VmRSS"].split()[0]) * 1024, fds, int(facts["Threads"])


def _end(popen: subprocess.Popen[bytes], deadline: float) -> int:
    try:
        popen.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        popen.send_signal(signal.SIGKILL)
        popen.wait(30)
    _hang_up(popen)
    return popen.returncode


def _hang_up(popen: subprocess.Popen[bytes]) -> None:
    if popen.stdin:
        popen.stdin.close()
