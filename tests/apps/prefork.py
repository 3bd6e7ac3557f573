"""A parent that has used the bus and then forks its worker, as gunicorn --preload and Celery do."""

import os
import signal
import sys
import threading

from eventdriven_sync import EventBus
from tests.apps import orders
from tests.apps.witness import Witness


def end_with(parent: int) -> None:
    """A killed parent passes no signal on: its child must not outlive the test."""
    pause = threading.Event()
    while os.getppid() == parent:
        pause.wait(0.2)
    os._exit(1)


def build(bus: EventBus, witness: Witness) -> None:
    """Builds in the child only: the parent waits for it, passes signals on and ends with its code."""
    orders.build(bus, witness)
    bus.open()
    bus.broker.flush(timeout=5)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
