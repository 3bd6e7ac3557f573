"""A Celery application whose tasks publish: run as its worker, and built by the tests that send the tasks.

``python -m tests.apps.mailing --pool threads --concurrency 2``
"""

import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery

from eventdriven_sync import EventBus, current_operation_id
from eventdriven_sync.celery import connect
from tests.apps.orders import BillSent, OrderPlaced
from tests.apps.witness import Witness

VISIBILITY_TIMEOUT = 1


def build(bus: EventBus, witness: Witness, *, redis: str, queue: str) -> Celery:
    """The application; its tasks are ``mail``, ``pack``, ``total``, ``fragile`` and ``flaky``."""
    app = Celery("mailing", broker=redis, backend=redis, set_as_current=False)
    task = partial(app.task, shared=False)  # a process of tests builds the application many times
    app.conf.update(
        task_default_queue=queue,
        worker_prefetch_multiplier=1,
        # What a killed worker did not acknowledge is delivered again when another one starts.
        broker_transport_options={"visibility_timeout": VISIBILITY_TIMEOUT},
    )
    connect(app, bus)

    @task(name="mail")
    def mail(number: int) -> int:
        receipt = bus.publish(BillSent(number=number))
        witness.note("mailed", number=number, operation=receipt.operation_id, flushed=bus.flush(timeout=10))
        return number

    @task(name="pack")
    def pack(numbers: list[int]) -> None:
        """Sends on what it was asked for: from inside a task, which has nothing but its headers."""
        for number in numbers:
            mail.delay(number)

    @task(name="total")
    def total(numbers: list[int]) -> None:
        mail(sum(numbers))

    @task(name="fragile", bind=True, acks_late=True, reject_on_worker_lost=True)
    def fragile(self: Any, number: int) -> None:
        first = bus.publish(OrderPlaced(number=number))
        killed = witness.notes("kill me", number=number)
        witness.note("kill me" if not killed else "again", number=number, operation=first.operation_id)
        if not killed:
            threading.Event().wait(60)
        bus.publish(BillSent(number=number))
        witness.note("survived", number=number)

    @task(name="flaky", bind=True, autoretry_for=(ConnectionError,), default_retry_delay=0)
    def flaky(self: Any, number: int) -> None:
        bus.publish(BillSent(number=number))
        witness.note("tried", number=number, operation=current_operation_id())
        if self.request.retries == 0:
            raise ConnectionError("the mail server is down")
        bus.publish(OrderPlaced(number=number))
        witness.note("retried", number=number)

    return app


def end_with(parent: int) -> None:
    """A killed test passes no signal on: the worker and its children must not outlive it."""
    pause = threading.Event()
    while os.getppid() == parent:
        pause.wait(0.2)
    os.killpg(0, signal.SIGKILL)


def main(arguments: list[str]) -> None:
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    bus = EventBus.from_env()
    witness = Witness(Path(os.environ["MAILING_WITNESS"]))
    app = build(bus, witness, redis=os.environ["MAILING_REDIS"], queue=os.environ["MAILING_QUEUE"])
    # Used before the pool forks, as an application does that publishes when it starts.
    bus.publish(OrderPlaced(number=-1))
    witness.note("started", flushed=bus.flush(timeout=10))
    app.worker_main(["worker", "--loglevel", "INFO", "--without-gossip", "--without-mingle", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
