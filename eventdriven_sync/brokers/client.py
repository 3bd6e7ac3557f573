"""nats-py's client as this library uses it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from eventdriven_sync.brokers.wire import Hear, Listeners, Message, only_id, published, text_of

logger = logging.getLogger(__name__)

# In the socket's buffer: more would only wait there.
_ENOUGH = 1024 * 1024


class NatsClient(Client):
    """nats-py's client, which one strange message cannot kill, and which can be dropped in any state."""

    def __init__(self, *, secure_only: bool) -> None:
        super().__init__()
        self.secure_only = secure_only
        self._listeners = Listeners()

    @property
    def alive(self) -> bool:
        """Whether it is connected and its reader and writer run."""
        tasks = (self._reading_task, self._flusher_task)
        return self.is_connected and not any(task is None or task.done() for task in tasks)

    async def ended(self, timeout: float) -> None:
        """Wait until its reader or writer ends, or so many seconds."""
        tasks = [task for task in (self._reading_task, self._flusher_task) if task is not None]
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    @property
    def info(self) -> dict[str, Any]:
        """What the server said of itself."""
        return self._server_info

    async def listen(self, subject: str, hear: Hear) -> Subscription:
        """Subscribe; ``hear`` is called by the reader, without limits and a queue and a task between."""
        self._listeners.add(self._sid + 1, hear)  # the number that nats-py gives to the next one
        return await self.subscribe(subject)

    async def hand_over(self, messages: Sequence[Message]) -> None:
        """Hand all messages to the socket in one go, or raise before the first."""
        if not self.is_connected:
            raise nats.errors.ConnectionClosedError
        await self._send_command(b"".join(map(published, messages)))
        await self._flush_pending()

    def hand_over_now(self, messages: Sequence[Message]) -> bool:
        """Hand all messages to the socket, False if it does not take them, or raise before the first."""
        return self.write(b"".join(map(published, messages)))

    def write(self, commands: bytes) -> bool:
        """Past nats-py's buffer and its task, which would cost a lone publisher two turns of the loop.

        Not past what is in that buffer: a request must not reach the server before its inbox.
        """
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None or self._pending_data_size or not self.is_connected:
            return False
        if writer.transport.get_write_buffer_size() > _ENOUGH:
            return False
        writer.write(commands)
        return True

    async def discard(self) -> None:
        """End it without ``close``, which waits for a peer that does not read and stops at an error."""
        self._status = Client.CLOSED
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        tasks = [self._reading_task, self._ping_interval_task, self._flusher_task]
        tasks += [subscription._wait_for_msgs_task for subscription in self._subs.values()]
        left = [task for task in tasks if task is not None and not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1.0)

    # An exception in the next three ends nats-py's reader without a word, and the message comes again.

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg | None:
        if self._listeners.tell(sid, subject, data, headers or {}, reply):
            return None
        return self.msg_class(self, text_of(subject), text_of(reply), data, headers, _sid=sid)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        self._listeners.remove(sid)

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return only_id(headers or b"") or await super()._process_headers(headers)
        except Exception as error:
            logger.warning("headers cannot be read: %r", error, extra={"action": "headers_unreadable"})
            return None

    async def _process_pong(self) -> None:
        """The answer to a ping that nobody waits for any more."""
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pings_outstanding = 0
        else:
            await super()._process_pong()

    def _connect_command(self) -> bytes:
        """The last moment before the password leaves: nats-py accepts plain TCP for tls://."""
        if self.secure_only and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnRequiredError
        return super()._connect_command()
