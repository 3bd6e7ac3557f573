"""A real Celery worker on a real Redis: chains go through tasks, a task run again publishes nothing twice."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery, chain, chord, group

from eventdriven_sync import EventBus
from eventdriven_sync.chain import Chain
from eventdriven_sync.devserver import ServerBinaryMissing
from eventdriven_sync.store import EventQuery
from tests.apps import mailing, redis_server
from tests.apps.orders import QUICK, OrderPlaced
from tests.apps.redis_server import RedisServer
from tests.apps.site import ROOT, Site, conserved
from tests.polling import eventually

POOLS = pytest.mark.parametrize("pool", ["prefork", "threads"])


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    try:
        server = redis_server.start(tmp_path_factory.mktemp("redis"))
    except ServerBinaryMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield server
    server.stop()


class CeleryWorker:
    """A worker process with its pool, in a process group of its own."""

    def __init__(self, site: Site, pool: str, environ: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.apps.mailing", "--pool", pool, "--concurrency", "2"],
                cwd=ROOT,
                env=site.environ() | environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def await_ready(self) -> None:
        def ready() -> bool:
            assert self._popen.poll() is None, self.log
            return " ready." in self.log

        eventually(ready, timeout=60)

    def kill(self) -> None:
        if self._popen.poll() is None:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait(30)


Start = Callable[[str], CeleryWorker]


@pytest.fixture
def start(site: Site, redis: RedisServer, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a worker that takes the tasks of this test."""
    workers: list[CeleryWorker] = []
    environ = {
        "MAILING_WITNESS": str(site.witness.path),
        "MAILING_REDIS": redis.url,
        "MAILING_QUEUE": namespace,
    }

    def begin(pool: str) -> CeleryWorker:
        workers.append(CeleryWorker(site, pool, environ, tmp_path / f"celery-{len(workers)}.log"))
        workers[-1].await_ready()
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()
        print(f"--- {worker.pid}\n{worker.log}")


@pytest.fixture
def bus(site: Site) -> EventBus:
    return site.bus()


@pytest.fixture
def app(bus: EventBus, site: Site, redis: RedisServer, namespace: str) -> Iterator[Celery]:
    made = mailing.build(bus, site.witness, redis=redis.url, queue=namespace)
    yield made
    made.close()


def published(chain: Chain) -> Counter[tuple[str, int]]:
    return Counter((each.event.name, each.event.data["number"]) for each in chain.walk())


def in_store(bus: EventBus, number: int) -> Counter[str]:
    """How often each event of this number is in the store, whatever chain it belongs to."""
    found = bus.store.events.find(EventQuery(limit=1000))
    return Counter(event.name for event in found if event.data["number"] == number)


@POOLS
def test_the_chain_of_an_operation_and_of_a_handler_goes_on_in_tasks(
    pool: str, start: Start, app: Celery, bus: EventBus, site: Site
) -> None:
    shop = bus.group("Shop")

    @shop.handler(OrderPlaced, retry=QUICK)
    def order_mail(order: OrderPlaced) -> None:
        app.tasks["mail"].delay(order.number)

    worker = start(pool)
    site.worker(bus)
    mail, pack, total = (app.tasks[name] for name in ("mail", "pack", "total"))
    with bus.operation("checkout", kind="http") as operation:
        mail.delay(1)
        chain(mail.s(2), mail.si(3)).delay()
        group(mail.s(4), mail.s(5)).delay()
        chord([mail.s(10), mail.s(20)])(total.s())
        pack.delay([6, 7])
        bus.publish(OrderPlaced(number=8))
    alone = mail.delay(9)
    numbers = [*range(1, 10), 10, 20, 30]
    eventually(lambda: site.witness.counts("mailed") == dict.fromkeys(numbers, 1), timeout=60)
    tree = bus.operations.chain(operation.id)
    expected = [("Order.placed", 8), *(("Bill.sent", number) for number in numbers if number != 9)]
    assert published(tree) == dict.fromkeys(expected, 1)
    [order] = [each for each in tree.events if each.event.name == "Order.placed"]
    [below] = order.deliveries[0].events
    assert (below.event.data["number"], below.event.source, below.event.depth) == (8, "Shop.order_mail", 1)
    assert below.event.parent_ids == (order.event.id,)
    # The task nobody's chain led to is an operation of its own.
    [own] = eventually(lambda: bus.operations.find(kind="celery", status="succeeded"), timeout=20)
    assert (own.name, own.variables, own.details["task_id"]) == ("mail", {"number": 9}, alone.id)
    assert published(bus.operations.chain(own.id)) == {("Bill.sent", 9): 1}
    notes = site.witness.notes("mailed")
    assert all(note["flushed"] for note in notes), "NATS has them: no reconciler was needed"
    assert [note["flushed"] for note in site.witness.notes("started")] == [True]
    in_parent = {note["pid"] for note in notes} == {worker.pid}
    assert in_parent == (pool == "threads"), "children published whose parent had published before the fork"
    conserved(bus, timeout=60)


@POOLS
def test_a_task_whose_process_is_killed_runs_again_and_publishes_each_event_once(
    pool: str, start: Start, app: Celery, bus: EventBus, site: Site
) -> None:
    worker = start(pool)
    fragile = app.tasks["fragile"]
    with bus.operation("checkout") as operation:
        fragile.delay(1)
    fragile.delay(2)
    [first] = eventually(lambda: site.witness.notes("kill me", number=1), timeout=30)
    [other] = eventually(lambda: site.witness.notes("kill me", number=2), timeout=30)
    assert first["operation"] == operation.id
    for number in (1, 2):
        assert in_store(bus, number) == {"Order.placed": 1}
    if pool == "prefork":
        assert len({first["pid"], other["pid"], worker.pid}) == 3
        os.kill(first["pid"], signal.SIGKILL)
        os.kill(other["pid"], signal.SIGKILL)
    else:
        worker.kill()
        delivered = other["at"]
        eventually(lambda: time.time() > delivered + mailing.VISIBILITY_TIMEOUT + 0.5)
        start(pool)
    for number, operation_id in ((1, operation.id), (2, other["operation"])):
        eventually(lambda n=number: site.witness.notes("survived", number=n), timeout=90)  # type: ignore[misc]
        assert {note["operation"] for note in site.witness.notes("again", number=number)} == {operation_id}
        assert in_store(bus, number) == {"Order.placed": 1, "Bill.sent": 1}
        tree = bus.operations.chain(operation_id)
        assert published(tree) == {("Order.placed", number): 1, ("Bill.sent", number): 1}
    eventually(lambda: bus.operations.get(other["operation"]).status == "succeeded", timeout=30)
    assert len(bus.operations.find()) == 2
    conserved(bus, timeout=60)


@POOLS
def test_a_task_that_is_retried_publishes_each_event_once(
    pool: str, start: Start, app: Celery, bus: EventBus, site: Site
) -> None:
    start(pool)
    with bus.operation("checkout") as operation:
        app.tasks["flaky"].delay(1)
    app.tasks["flaky"].delay(2)
    eventually(lambda: site.witness.counts("retried") == {1: 1, 2: 1}, timeout=60)
    [own] = eventually(lambda: bus.operations.find(kind="celery", status="succeeded"), timeout=20)
    for number, operation_id in ((1, operation.id), (2, own.id)):
        tried = [note["operation"] for note in site.witness.notes("tried", number=number)]
        assert tried == [operation_id] * 2
        assert in_store(bus, number) == {"Bill.sent": 1, "Order.placed": 1}
        tree = bus.operations.chain(operation_id)
        assert published(tree) == {("Bill.sent", number): 1, ("Order.placed", number): 1}
    assert own.error is None
    assert len(bus.operations.find()) == 2
    conserved(bus, timeout=60)
