"""Questions to JetStream beside the library: what an administrator does to streams and consumers."""

import asyncio
import json
from typing import Any

import nats


def ask_jetstream(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of ``$JS.API.<path>``; an error fails the test."""

    async def ask() -> dict[str, Any]:
        client = await nats.connect(url)
        try:
            answer: dict[str, Any] = json.loads(
                (await client.request(f"$JS.API.{path}", json.dumps(body).encode())).data
            )
        finally:
            await client.close()
        assert "error" not in answer, answer
        return answer

    return asyncio.run(ask())


def message_ids(url: str, stream: str) -> list[str]:
    """The ``Nats-Msg-Id`` of every message in a stream, in order."""

    async def read() -> list[str]:
        client = await nats.connect(url)
        try:
            jetstream = client.jetstream(timeout=30)
            total = (await jetstream.stream_info(stream)).state.messages
            messages = await jetstream.subscribe(">", stream=stream, ordered_consumer=True)
            found = [await messages.next_msg(timeout=30) for _ in range(total)]
        finally:
            await client.close()
        return [(message.headers or {}).get("Nats-Msg-Id", "") for message in found]

    return asyncio.run(read())
