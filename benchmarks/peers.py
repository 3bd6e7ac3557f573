"""This library and its peers on the same work: how each publishes, and how its worker is started.

``benchmarks.contender`` runs one of them in a process of its own. The environment has ``BENCH_NATS``,
``BENCH_MONGO``, ``BENCH_REDIS``, ``BENCH_RABBIT`` and ``BENCH_NAME``.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

Payload = dict[str, Any]
Publish = Callable[[Payload], object]
AsyncPublish = Callable[[Payload], Awaitable[object]]
THREADS = 8


def payload(number: int, *, warm_up: bool = False) -> Payload:
    """About 200 bytes of JSON; ``sent`` is the system's monotonic clock, or 0 of what is not counted."""
    sent = 0.0 if warm_up else time.monotonic()
    return {"number": number, "customer": "c" * 40, "text": "x" * 110, "sent": sent}


def url(server: str) -> str:
    return os.environ[f"BENCH_{server}"]


def name() -> str:
    return os.environ["BENCH_NAME"]


# --- each peer: a publish function, and a worker that runs until the process ends -----------------------


class Ours:
    """This library; ``durability`` says who holds an event when publish returns."""

    def __init__(self, durability: Any) -> None:
        from eventdriven_sync import EventBus, event

        self.bus = EventBus(nats=url("NATS"), mongo=url("MONGO"), namespace=name())

        class Ordered:
            number: int
            customer: str
            text: str
            sent: float

        self.event = event("Bench.ordered", durability=durability)(Ordered)

    def publisher(self) -> Publish:
        return lambda each: self.bus.publish(self.event(**each))

    def many(self, events: list[Payload]) -> None:
        self.bus.publish_many([self.event(**each) for each in events])

    def finish(self) -> None:
        self.bus.flush(timeout=60)
        self.bus.close()

    def work(self, handlers: list[Callable[[Payload], None]]) -> None:
        from eventdriven_sync import Worker
        from eventdriven_sync.heap import calm_collector

        for number, handler in enumerate(handlers):
            self._subscribe(number, handler)
        self.calm = calm_collector()  # as in ``Worker.run``, which needs the main thread
        self.calm.__enter__()
        Worker(self.bus, threads=THREADS).start()

    def _subscribe(self, number: int, handler: Callable[[Payload], None]) -> None:
        @self.bus.group(f"Group{number}").handler(self.event, name="count", start="all")
        def count(ordered: Any) -> None:
            handler({"sent": ordered.sent})


class Naive:
    """What is written by hand: a loop in a thread, one MongoDB write per event and per handling."""

    def __init__(self) -> None:
        import pymongo

        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        database = pymongo.MongoClient(url("MONGO")).get_default_database()
        concern = pymongo.WriteConcern(w="majority", j=True)
        self.events = database.get_collection("naive_events", write_concern=concern)
        self.handlings = database.get_collection("naive_handlings", write_concern=concern)
        self.wait(self._connect())

    def wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    async def _connect(self) -> None:
        import nats

        client = await nats.connect(url("NATS"))
        self.js = client.jetstream()
        await self.js.add_stream(name=f"{name()}_naive", subjects=[f"{name()}.naive"])

    def publisher(self) -> Publish:
        def publish(each: Payload) -> None:
            stored = {**each}
            self.events.insert_one(stored)
            headers = {"Nats-Msg-Id": str(stored["_id"])}
            self.wait(self.js.publish(f"{name()}.naive", json.dumps(each).encode(), headers=headers))

        return publish

    def finish(self) -> None:
        """Nothing is on its way."""

    def work(self, handlers: list[Callable[[Payload], None]]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        for number, handler in enumerate(handlers):
            pool = ThreadPoolExecutor(THREADS)
            asyncio.run_coroutine_threadsafe(self._pull(f"h{number}", handler, pool), self.loop)

    async def _pull(self, durable: str, handler: Callable[[Payload], None], pool: Any) -> None:
        import nats.errors

        pull = await self.js.pull_subscribe(f"{name()}.naive", durable=durable)
        while True:
            try:
                messages = await pull.fetch(100, timeout=1)
            except nats.errors.TimeoutError:
                continue
            await asyncio.gather(
                *(self.loop.run_in_executor(pool, self._handle, durable, handler, each) for each in messages)
            )

    def _handle(self, durable: str, handler: Callable[[Payload], None], message: Any) -> None:
        handler(json.loads(message.data))
        self.handlings.insert_one({"handler": durable, "sequence": message.metadata.sequence.stream})
        self.wait(message.ack())


class CeleryPeer:
    """Celery with a pool of threads; no result backend."""

    def __init__(self, broker: str, *, confirmed: bool = False) -> None:
        import celery

        self.app = celery.Celery(name(), broker=broker)
        self.app.conf.update(
            task_default_queue=name(),
            task_ignore_result=True,
            broker_connection_retry_on_startup=True,
            worker_hijack_root_logger=False,
            worker_redirect_stdouts=False,
            broker_transport_options={"confirm_publish": True} if confirmed else {},
        )
        self.handlers: list[Callable[[Payload], None]] = []

        @self.app.task(name="bench.handle")
        def handle(event: Payload) -> None:
            for handler in self.handlers:
                handler(event)

        self.task = handle

    def publisher(self) -> Publish:
        return self.task.delay

    def finish(self) -> None:
        self.app.close()

    def work(self, handlers: list[Callable[[Payload], None]]) -> None:
        self.handlers = handlers
        arguments = ["--quiet", "worker", "--pool=threads", f"--concurrency={THREADS}", "--loglevel=ERROR"]
        arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        threading.Thread(target=lambda: self.app.worker_main(arguments), daemon=True).start()


class DramatiqPeer:
    """Dramatiq with its worker's threads; no result backend."""

    def __init__(self, broker: str, *, confirmed: bool = False) -> None:
        import dramatiq

        self.broker = self._broker(broker, confirmed)
        dramatiq.set_broker(self.broker)
        self.handlers: list[Callable[[Payload], None]] = []

        def handle(event: Payload) -> None:
            for handler in self.handlers:
                handler(event)

        self.actor = dramatiq.actor(handle, actor_name="handle", queue_name=name())

    @staticmethod
    def _broker(broker: str, confirmed: bool) -> Any:
        if broker.startswith("redis"):
            from dramatiq.brokers.redis import RedisBroker

            return RedisBroker(url=broker)
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        return RabbitmqBroker(url=broker, confirm_delivery=confirmed)

    def publisher(self) -> Publish:
        return self.actor.send

    def finish(self) -> None:
        self.broker.close()

    def work(self, handlers: list[Callable[[Payload], None]]) -> None:
        import dramatiq

        self.handlers = handlers
        dramatiq.Worker(self.broker, worker_threads=THREADS).start()


class AsyncPeer:
    """Publishes from tasks of one event loop, where others do from threads."""

    async def connect(self) -> AsyncPublish:
        """What publishes, ready to be used."""
        raise NotImplementedError

    async def confirmed(self) -> None:
        """Wait until everything is confirmed; here publishing itself waits."""

    async def close(self) -> None:
        """Disconnect."""


class FastStreamPeer(AsyncPeer):
    """FastStream on JetStream: async through and through."""

    def __init__(self) -> None:
        from faststream.nats import JStream, NatsBroker

        self.broker = NatsBroker(url("NATS"), logger=None)  # it would write two lines for each message
        self.stream = JStream(name=f"{name()}_fs", subjects=[f"{name()}.fs"])
        self.subject = f"{name()}.fs"

    async def connect(self) -> AsyncPublish:
        await self.broker.connect()
        await self.broker.config.connection_state.stream.add_stream(  # before the first confirmation
            name=self.stream.name, subjects=[self.subject]
        )
        return lambda each: self.broker.publish(each, self.subject, stream=self.stream.name)

    async def close(self) -> None:
        await self.broker.stop()

    def work(self, handlers: list[Callable[[Payload], None]]) -> None:
        from faststream.nats import PullSub

        for number, handler in enumerate(handlers):
            self.broker.subscriber(
                self.subject,
                stream=self.stream,
                durable=f"h{number}",
                pull_sub=PullSub(batch_size=100),
                max_workers=THREADS,
            )(_plain(handler))
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    async def _serve(self) -> None:
        await self.broker.start()
        await asyncio.Event().wait()


def _plain(handler: Callable[[Payload], None]) -> Any:
    """FastStream reads a handler's signature: one parameter."""

    async def handle(event: dict) -> None:  # type: ignore[type-arg]
        handler(event)

    return handle


PEERS: dict[str, Callable[[], Any]] = {
    "ours, stored": lambda: Ours("store"),
    "ours, broker": lambda: Ours("broker"),
    "naive bridge": Naive,
    "Celery, Redis": lambda: CeleryPeer(url("REDIS")),
    "Celery, RabbitMQ confirmed": lambda: CeleryPeer(url("RABBIT"), confirmed=True),
    "Dramatiq, Redis": lambda: DramatiqPeer(url("REDIS")),
    "Dramatiq, RabbitMQ confirmed": lambda: DramatiqPeer(url("RABBIT"), confirmed=True),
    "FastStream, JetStream": FastStreamPeer,
}
