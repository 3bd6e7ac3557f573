import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from eventdriven_sync.brokers import nats
from eventdriven_sync.brokers.client import NatsClient
from eventdriven_sync.brokers.nats import Live


class Waiting:
    """A pull as ``Live`` sees it, which counts how often it is looked at."""

    stopped = wants_opening = wants_look = False

    def __init__(self, *, only_waits: bool) -> None:
        self.only_waits = only_waits
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1


def within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, seconds))


def test_pulls_that_only_wait_are_looked_at_less_often_and_not_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nats, "_TICK", 0)
    live = Live("nats://nowhere:4222", shown="nowhere", name="test", connect_limit=1)
    busy = Waiting(only_waits=False)
    calm = [Waiting(only_waits=True) for _ in range(20)]
    live.pulls = dict.fromkeys([busy, *calm])  # type: ignore[list-item]

    async def tick_until(turns: int) -> None:
        ticking = asyncio.create_task(live._tick())
        while busy.ticks < turns:
            await asyncio.sleep(0)
        ticking.cancel()

    within(5, tick_until(1))
    assert sum(pull.ticks for pull in calm) == 2
    busy.ticks = 0
    within(5, tick_until(10))
    assert sum(pull.ticks for pull in calm) == 2 + 20
    assert {pull.ticks for pull in calm} == {1, 2}


@pytest.mark.parametrize("which", ["_reading_task", "_flusher_task"])
def test_a_client_is_known_to_have_ended_when_its_reader_or_its_writer_ends(which: str) -> None:
    async def end_one() -> None:
        client = NatsClient(secure_only=False)
        client._reading_task = asyncio.create_task(asyncio.sleep(60))
        client._flusher_task = asyncio.create_task(asyncio.sleep(60))
        waiting = asyncio.create_task(client.ended(60))
        await asyncio.sleep(0)
        assert not waiting.done()
        getattr(client, which).cancel()
        await waiting

    within(5, end_one())


def test_waiting_for_the_end_of_a_client_ends_with_the_time() -> None:
    async def wait() -> None:
        client = NatsClient(secure_only=False)
        client._reading_task = asyncio.create_task(asyncio.sleep(60))
        client._flusher_task = asyncio.create_task(asyncio.sleep(60))
        await client.ended(0.01)
        assert not client._reading_task.done()

    within(5, wait())
