"""A publisher whose threads are greenlets: some publish, and one notes how time goes by meanwhile.

``python -m tests.apps.greenlets WITNESS``, which says ``frozen`` and waits for ``resumed``.
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import threading  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402

from eventdriven_sync import EventBus  # noqa: E402
from eventdriven_sync.errors import PublishOutcomeUnknown, StoreUnavailable  # noqa: E402
from tests.apps.orders import OrderPlaced  # noqa: E402
from tests.apps.witness import Witness  # noqa: E402

GREENLETS, EACH = 20, 10
PAUSE = 0.01


class Clock:
    """Counts as long as greenlets get their turns."""

    def __init__(self) -> None:
        self.ticks = 0
        gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            gevent.sleep(PAUSE)
            self.ticks += 1


def publish_while_frozen(bus: EventBus, witness: Witness, clock: Clock) -> None:
    """The database does not answer: the call waits for its deadline, and the others do not wait for it."""
    witness.note("ready")
    witness.await_note("frozen")
    before = clock.ticks
    try:
        bus.publish(OrderPlaced(number=-1), event_id="frozen", timeout=1.5)
        error = ""
    except (StoreUnavailable, PublishOutcomeUnknown) as raised:
        error = type(raised).__name__
    witness.note("waited", ticks=clock.ticks - before, error=error)
    witness.await_note("resumed")


def publish_all(bus: EventBus, witness: Witness, first: int) -> None:
    for number in range(first, first + EACH):
        bus.publish(OrderPlaced(number=number))
        witness.note("published", number=number)


def main(path: str) -> None:
    warnings.simplefilter("error", RuntimeWarning)
    witness, bus, clock = Witness(Path(path)), EventBus.from_env(), Clock()
    bus.publish(OrderPlaced(number=-1), event_id="frozen")
    publish_while_frozen(bus, witness, clock)
    threads = [threading.Thread(target=publish_all, args=(bus, witness, n * EACH)) for n in range(GREENLETS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    witness.note("done", flushed=bus.flush(timeout=10), error=bus.broker.status().last_error)


if __name__ == "__main__":
    main(sys.argv[1])
