"""One run: servers, processes, faults, and the judgement at the end."""

import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import attrs
import pymongo

from eventdriven_sync import EventBus, Settings
from eventdriven_sync.audit import audit
from eventdriven_sync.errors import EventDrivenError
from tests.faults.checker import SETTLED, Verdict, check
from tests.faults.cluster import Cluster
from tests.faults.crew import PUBLISHER, ROOT, Crew
from tests.faults.journal import Journal
from tests.faults.workload import EFFECTS, Load
from tests.polling import eventually

# Leases and grace times short enough for a run of a minute, long enough for a busy machine.
SETTINGS: Mapping[str, Any] = {
    "ack_wait": 6.0,
    "lease": 6.0,
    "reconcile_after": 4.0,
    "reconcile_every": 1.0,
    "poll_every": 0.1,
}
DATABASE = "app"


class Scene:
    """Servers, a crew and a journal of one test; a context manager that ends them all.

    Attributes:
        cluster, load, seed: as given.
        chance: draws moments and victims, by the seed.
        crew: the processes, after ``begin``.
        settings: of all processes; change ``crew.environ`` for those of one role.
        database: of the application, read and written beside the library.
    """

    def __init__(
        self,
        directory: Path,
        *,
        seed: int,
        load: Load,
        cluster: Cluster,
        settings: Mapping[str, Any] | None = None,
        nats_url: str = "",
        mongo_url: str = "",
    ) -> None:
        self.cluster = cluster
        self.load = load
        self.seed = seed
        self.chance = random.Random(seed)
        self.directory = directory
        self.journal = Journal(directory / "journal.jsonl")
        self._changes = dict(settings or {})
        self._urls = (nats_url, mongo_url)
        self._began = time.monotonic()
        self._last_fault = self._began
        self._remains = False

    def __enter__(self) -> Self:
        self.cluster.start()
        client: pymongo.MongoClient[Any] = pymongo.MongoClient(self.cluster.mongo_url(DATABASE))
        self.database = client[DATABASE]
        self.database.create_collection(EFFECTS)
        self.crew = Crew(self.directory, self.journal.path, self.load, self._environ(), self.chance)
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self.crew.stop(grace=1.0)
        self.database.client.close()
        self.cluster.stop()
        self.journal.close()
        if kind is None and not self._remains:
            # Of a run that failed or lost something everything stays, to be looked at.
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def settings(self) -> Settings:
        """Of every process and of ``bus``."""
        nats_url, mongo_url = self._urls
        return Settings(
            nats=nats_url or self.cluster.nats_url,
            mongo=mongo_url or self.cluster.mongo_url(DATABASE),
            namespace="faults",
            **({**SETTINGS, "stream_replicas": len(self.cluster.nats)} | self._changes),
        )

    def begin(self, *, warm_up: int = 5) -> None:
        """Start workers, then publishers, and wait until the first events were handled."""
        self.crew.start_workers()
        self.journal.note("begin")
        self.crew.start_publishers()
        wanted = min(warm_up, self.load.events)
        eventually(lambda: self.journal.count("done") >= wanted, timeout=60, message="the first events")

    def beats(self, count: int, *, after: float, spread: float = 0.5) -> Iterator[int]:
        """So many moments for a fault, about ``after`` seconds from one to the next, drawn by the seed.

        Raises:
            AssertionError: everything was handled before the last moment: it would not have hit anything.
        """
        for beat in range(count):
            self.wait(after * (1 + spread * (2 * self.chance.random() - 1)))
            assert not self._all_done(), (
                f"nothing left to disturb at fault {beat + 1} of {count}: more events"
            )
            yield beat
            self.disturbed()

    def disturbed(self) -> None:
        """The fault is over as of now: from here on the time to drain is measured."""
        self._last_fault = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Let it run for some time."""
        until = time.monotonic() + seconds
        eventually(lambda: time.monotonic() >= until, timeout=seconds + 30)

    def finish(self, *, within: float = 120.0) -> Verdict:
        """Wait until publishers are done and everything is settled, end the crew, and judge.

        Deliveries that never settle are not an error here: the verdict shows them as lost.
        """
        deadline = time.monotonic() + within
        _until(lambda: self.crew.published, deadline)
        _until(self._settled, deadline)
        drained = time.monotonic()
        _until(self._acknowledged, time.monotonic() + 30)
        self.crew.stop()
        verdict = attrs.evolve(
            check(self.journal, self.database, self.load),
            drain=drained - self._last_fault,
            audit_exit=self._audit(),
            seconds=time.monotonic() - self._began,
        )
        self._remains = bool(verdict.lost or verdict.dup_effects or verdict.audit_exit)
        return verdict

    def bus(self) -> EventBus:
        """A bus of this process without handlers; to be closed by the caller."""
        return EventBus(settings=self.settings)

    def _environ(self) -> dict[str, str]:
        own = {f"EVENTDRIVEN_{k.upper()}": str(v) for k, v in attrs.asdict(self.settings).items()}
        return {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | own

    def _all_done(self) -> bool:
        return self.crew.published and self._settled()

    def _settled(self) -> bool:
        """Whether as many deliveries are at their end as there are events times handlers."""
        states = {"state": {"$in": SETTLED}}
        settled: int = self.database["deliveries"].count_documents(states)
        stored: int = self.database["events"].count_documents({"name": "Work.asked"})
        return settled >= stored * len(self.load.handlers)

    def _acknowledged(self) -> bool:
        bus = self.bus()
        try:
            handlers = audit(bus).handlers
        except EventDrivenError:  # a server is not back yet
            return False
        finally:
            bus.close()
        return all(handler.in_consumer == 0 and handler.missing == 0 for handler in handlers)

    def _audit(self) -> int:
        audited = subprocess.run(
            [sys.executable, "-m", "eventdriven_sync", "audit"],
            cwd=ROOT,
            env=self.crew.environ[PUBLISHER],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if audited.returncode:
            print(audited.stdout, audited.stderr)
        return audited.returncode


def _until(condition: Callable[[], bool], deadline: float) -> None:
    """Wait until it holds, or until the deadline has passed."""
    pause = threading.Event()
    while not condition() and time.monotonic() < deadline:
        pause.wait(0.2)
