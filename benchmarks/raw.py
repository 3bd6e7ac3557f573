"""The raw limits: what the drivers alone reach with the same 200 bytes.

Contenders like those of ``benchmarks.peers``, but each for one part of the work only: ``benchmarks.contest``
asks them for nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

from benchmarks.peers import AsyncPeer, AsyncPublish, Payload, Publish, name, url

IN_FLIGHT = 1000
FETCH = 500


class JetStream(AsyncPeer):
    """nats-py's ``js.publish``: each call waits until JetStream has confirmed."""

    async def connect(self) -> AsyncPublish:
        await self._join()
        return lambda each: self.js.publish(self.subject, json.dumps(each).encode())

    async def close(self) -> None:
        await self.client.close()

    async def _join(self) -> None:
        import nats

        self.client = await nats.connect(url("NATS"))
        self.js = self.client.jetstream()
        self.subject = f"{name()}.raw"
        await self.js.add_stream(name=f"{name()}_raw", subjects=[self.subject])


class Pipelined(JetStream):
    """Does not wait for each confirmation: they come to an inbox of its own, up to 1,000 outstanding."""

    async def connect(self) -> AsyncPublish:
        await self._join()
        self.free = asyncio.Semaphore(IN_FLIGHT)
        self.refused: list[bytes] = []
        inbox, tokens = self.client.new_inbox(), itertools.count()
        await self.client.subscribe(f"{inbox}.*", cb=self._answered)

        async def send(each: Payload) -> None:
            await self.free.acquire()
            reply = f"{inbox}.{next(tokens)}"
            await self.client.publish(self.subject, json.dumps(each).encode(), reply=reply)

        return send

    async def confirmed(self) -> None:
        for _ in range(IN_FLIGHT):
            await self.free.acquire()
        for _ in range(IN_FLIGHT):
            self.free.release()
        if self.refused:
            raise RuntimeError(f"JetStream refused {len(self.refused)}: {self.refused[0]!r}")

    async def _answered(self, message: Any) -> None:
        if b'"seq"' not in message.data:
            self.refused.append(message.data)
        self.free.release()


class Pull(Pipelined):
    """Fetches 500 at a time and acknowledges each; handlers run in the event loop and nothing is recorded."""

    def work(self, handlers: list[Callable[[Payload], None]]) -> None:
        threading.Thread(target=lambda: asyncio.run(self._serve(handlers)), daemon=True).start()

    async def _serve(self, handlers: list[Callable[[Payload], None]]) -> None:
        await self._join()
        await asyncio.gather(*(self._pull(f"h{n}", handler) for n, handler in enumerate(handlers)))

    async def _pull(self, durable: str, handler: Callable[[Payload], None]) -> None:
        import nats.errors

        pull = await self.js.pull_subscribe(self.subject, durable=durable)
        while True:
            try:
                messages = await pull.fetch(FETCH, timeout=1)
            except nats.errors.TimeoutError:
                continue
            for message in messages:
                handler(json.loads(message.data))
                await message.ack()


class Inserts:
    """pymongo's ``insert_one`` and ``insert_many``, durable as everything that this library writes."""

    def __init__(self) -> None:
        import pymongo

        self.client: Any = pymongo.MongoClient(url("MONGO"))
        concern = pymongo.WriteConcern(w="majority", j=True)
        self.events = self.client.get_default_database().get_collection("raw", write_concern=concern)

    def publisher(self) -> Publish:
        return self.events.insert_one

    def many(self, events: list[Payload]) -> None:
        self.events.insert_many(events)

    def finish(self) -> None:
        self.client.close()


RAW: dict[str, Callable[[], Any]] = {
    "raw: js.publish": JetStream,
    "raw: js.publish, 1,000 in flight": Pipelined,
    "raw: pull + ack": Pull,
    "raw: insert_one": Inserts,
    "raw: insert_many of 1,000": Inserts,
}
