"""A parent that has used the bus and then forks its worker, as gunicorn --preload and Celery do."""

import os
import signal
import sys

from eventdriven_sync import EventBus
from tests.apps import orders
from tests.apps.witness import Witness


def build(bus: EventBus, witness: Witness) -> None:
    """Builds in the child only: the parent waits for it, passes signals on and ends with its code."""
    orders.build(bus, witness)
    bus.open()
    bus.broker.flush(timeout=5)
    child = os.fork()
    if child:
        signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
