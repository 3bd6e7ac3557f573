"""One process of a crew: ``python -m tests.faults.process worker|publisher JOURNAL INDEX LOAD``.

The settings come from the environment. It ends when its parent does, however that one ends.
"""

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from eventdriven_sync import EventBus, Worker
from eventdriven_sync.errors import EventDrivenError
from tests.faults.journal import Journal
from tests.faults.workload import Load, WorkAsked, event_id


def main(role: str, journal_path: str, index: str, load_json: str) -> int:
    threading.Thread(target=_die_with_parent, name="parent-watch", daemon=True).start()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    journal = Journal(Path(journal_path))
    settings = json.loads(load_json)
    load = Load(**settings | {"handlers": tuple(settings["handlers"])})
    bus = EventBus.from_env()
    importlib.import_module(load.app).build(bus, journal, load)
    if role == "worker":
        return Worker(bus, threads=load.worker_threads, grace=10.0).run()
    _Publisher(bus, journal, load, int(index)).run()
    return 0


class _Publisher:
    """Publishes its share of the numbers, going on where its predecessor was killed."""

    def __init__(self, bus: EventBus, journal: Journal, load: Load, index: int) -> None:
        self._bus = bus
        self._journal = journal
        self._load = load
        self._index = index
        self._done = {note["id"] for note in journal.notes("receipt")}
        if not load.repeat_doubtful:
            self._done |= {note["id"] for note in journal.notes("begun")}
        self._began = self._origin()

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        # Once, and not by every thread; with the store away each of them will try.
        with contextlib.suppress(EventDrivenError):
            self._bus.open()
        threads = [
            threading.Thread(target=self._publish_all, args=(number,), name=f"publisher-{number}")
            for number in range(self._load.publisher_threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._bus.close()

    def _origin(self) -> float:
        """When publishing began for the whole crew: a restart does not begin the schedule again."""
        first = next(self._journal.notes("begin"), None)
        return first["monotonic"] if first else time.monotonic()

    def _numbers(self, thread: int) -> Iterator[int]:
        first = self._index + thread * self._load.publishers
        step = self._load.publishers * self._load.publisher_threads
        return (n for n in range(first, self._load.events, step) if event_id(n) not in self._done)

    def _publish_all(self, thread: int) -> None:
        for number in self._numbers(thread):
            self._await_turn(number)
            while not self._publish(number):
                threading.Event().wait(0.2)

    def _await_turn(self, number: int) -> None:
        if self._load.rate:
            threading.Event().wait(max(0.0, self._began + number / self._load.rate - time.monotonic()))

    def _publish(self, number: int) -> bool:
        """Whether it was accepted; what is refused or in doubt is published again with the same id."""
        self._journal.note("begun", id=event_id(number))
        began = time.monotonic()
        try:
            receipt = self._bus.publish(WorkAsked(number=number), event_id=event_id(number))
        except EventDrivenError as error:
            seconds = time.monotonic() - began
            self._journal.note("refused", id=event_id(number), seconds=seconds, error=type(error).__name__)
            return False
        self._journal.note(
            "receipt", id=receipt.id, seconds=time.monotonic() - began, duplicate=receipt.duplicate
        )
        return True


def _die_with_parent() -> None:
    """The parent holds the other end of our standard input."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
