"""The blocking face of a broker that lives on the bridge: what threads call, in whichever process."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from eventdriven_sync.broker import (
    BrokerStatus,
    ConsumerSpec,
    ConsumerState,
    Incoming,
    Outgoing,
    StreamState,
)
from eventdriven_sync.brokers import administration
from eventdriven_sync.brokers.bridge import Bridge, join
from eventdriven_sync.brokers.confirming import Ticket
from eventdriven_sync.brokers.pulling import Pull
from eventdriven_sync.errors import BrokerUnavailable, Closed, EventDrivenError, PublishOutcomeUnknown
from eventdriven_sync.greenlets import refuse_eventlet

if TYPE_CHECKING:
    from eventdriven_sync.brokers.nats import Live

logger = logging.getLogger(__name__)

T = TypeVar("T")


class BlockingBroker:
    """Every method of the ``Broker`` protocol, for any thread. Opens nothing until it is used.

    Args:
        shown: the server's URL without credentials, for messages.
        build: makes what one process has open; it connects when the bridge runs it.
    """

    def __init__(self, shown: str, build: Callable[[], Live]) -> None:
        self._shown = shown
        self._build = build
        self._closed = False
        # By process id: what a child inherits stays untouched under its parent's id.
        self._lives: dict[int, Live] = {}

    def declare(self, consumers: Sequence[ConsumerSpec], *, timeout: float) -> None:
        """Create what is missing of these consumers and their streams, verify the rest."""
        self._call(lambda live: live.declare(consumers), timeout)

    def declare_later(self, consumers: Sequence[ConsumerSpec]) -> None:
        """The same without waiting; failures go to ``status()``."""
        live, bridge = self._open()
        bridge.post(partial(live.declare_later, consumers))

    def dispatch(self, messages: Sequence[Outgoing]) -> int:
        """Send without waiting; return how many were taken."""
        try:
            live, bridge = self._open()
        except EventDrivenError as error:
            logger.debug("dispatch refused: %s", error, extra={"action": "dispatch_refused"})
            return 0
        dispatcher = live.outbound.dispatcher
        taken = dispatcher.take(messages, down_for=live.link.down_for)
        if taken and dispatcher.wake():
            bridge.post(dispatcher.run)
        return taken

    def publish(
        self, messages: Sequence[Outgoing], *, consumers: Sequence[ConsumerSpec], timeout: float
    ) -> list[bytes | None]:
        """Send and wait until each is confirmed: per message None, or what the stream had under its id."""
        deadline = time.monotonic() + timeout
        live, bridge = self._open()
        ticket = Ticket(messages, consumers)
        if messages:
            live.outbound.confirming.take(ticket)
            bridge.post(live.outbound.confirming.pump)
            ticket.wait_for(timeout)
        if ticket.unanswered:
            raise self._unanswered(live, ticket, timeout)
        if ticket.errors:
            raise ticket.errors[0]
        known: list[bytes | None] = [None] * len(messages)
        return self._look_up(ticket, known, deadline) if ticket.known_as else known

    def flush(self, *, timeout: float) -> bool:
        """Wait until everything dispatched is confirmed or given up; False on timeout."""
        live = self._lives.get(os.getpid())
        if live is None or live.bridge is None or self._closed:
            return True
        try:
            live.bridge.call(live.flush(), timeout=timeout)
        except TimeoutError:
            return False
        return True

    def consume(
        self, consumer: ConsumerSpec, deliver: Callable[[list[Incoming]], None], *, window: int
    ) -> Pull:
        """Pull continuously; ``deliver`` is called on the loop thread and must not block."""
        live, bridge = self._open()
        pull = Pull(
            consumer,
            deliver,
            window=window,
            post=bridge.post,
            soon=bridge.soon,
            send=live.link.send,
            retire=live.retire,
            trouble=live.trouble,
        )
        bridge.post(lambda: live.pulls.setdefault(pull))
        return pull

    def consumer_state(self, stream: str, name: str, *, timeout: float) -> ConsumerState | None:
        """The consumer's backlog, or None if it does not exist."""
        begin = partial(administration.consumer_state, stream, name)
        return self._call(lambda live: live.attempt(begin), timeout)

    def streams(self, prefix: str, *, timeout: float) -> list[StreamState]:
        """Streams whose name begins with ``prefix``, with their consumers."""
        begin = partial(administration.streams, prefix)
        return self._call(lambda live: live.attempt(begin), timeout)

    def delete_consumer(self, stream: str, name: str, *, timeout: float) -> bool:
        """Delete a consumer; False if there was none."""
        return self._call(lambda live: live.delete_consumer(stream, name), timeout)

    def info(self, *, timeout: float) -> Mapping[str, object]:
        """Facts about JetStream for the doctor."""
        return self._call(lambda live: live.attempt(administration.account), timeout)

    def status(self) -> BrokerStatus:
        """What is known right now; never blocks and opens nothing."""
        live = self._lives.get(os.getpid()) or self._build()
        dispatched, dropped, in_flight = live.outbound.dispatcher.counts()
        return BrokerStatus(
            connected=live.link.session is not None,
            last_error=live.trouble.last,
            dispatched=dispatched,
            dropped=dropped,
            in_flight=in_flight,
            rebuilt=live.link.rebuilt,
            server=dict(live.server),
        )

    def close(self, *, timeout: float) -> None:
        """Send what is dispatched, stop pulling, disconnect; done within ``timeout``."""
        live = self._lives.get(os.getpid())
        if self._closed or live is None or live.bridge is None:
            self._closed = True
            return
        self._closed = True
        deadline = time.monotonic() + timeout
        try:
            live.bridge.call(live.end(timeout * 0.7), timeout=timeout)
        except (TimeoutError, Closed) as error:
            logger.warning("NATS was not closed in time: %r", error, extra={"action": "nats_close_late"})
        live.bridge.leave(self, timeout=max(0.0, deadline - time.monotonic()))

    def _unanswered(self, live: Live, ticket: Ticket, timeout: float) -> EventDrivenError:
        ids = ticket.unknown()
        reason = f" ({live.trouble.last})" if live.trouble.last else ""
        if ids:
            return PublishOutcomeUnknown(
                f"NATS at {self._shown} did not confirm {len(ids):,} of {len(ticket.messages):,} messages "
                f"within {timeout:g} s{reason}: they may or may not be accepted; publishing again with the "
                "same ids is safe",
                timeout=timeout,
                event_ids=tuple(ids),
            )
        if ticket.errors:
            return ticket.errors[-1]
        return BrokerUnavailable(
            f"NATS at {self._shown} could not be reached within {timeout:g} s{reason}, nothing was sent: "
            "check that it runs and that the URL is right",
            url=self._shown,
            timeout=timeout,
        )

    def _look_up(self, ticket: Ticket, known: list[bytes | None], deadline: float) -> list[bytes | None]:
        """What the stream had: of what was only sent twice it is the very same, and no news."""
        by_stream: dict[str, list[int]] = {}
        for index in ticket.known_as:
            by_stream.setdefault(ticket.messages[index].stream.name, []).append(index)
        for stream, indexes in by_stream.items():
            begin = partial(administration.messages, stream, [ticket.known_as[i] for i in indexes])
            try:
                found = self._call(
                    lambda live, begin=begin: live.attempt(begin),  # type: ignore[misc]
                    max(deadline - time.monotonic(), 0.05),
                )
            except BrokerUnavailable as error:
                ids = tuple(ticket.messages[index].message_id for index in indexes)
                raise PublishOutcomeUnknown(
                    f"the stream {stream} had messages with these ids, and which could not be read: {error}",
                    event_ids=ids,
                ) from error
            for index, data in zip(indexes, found, strict=True):
                known[index] = None if data == ticket.messages[index].data else data
        return known

    def _open(self) -> tuple[Live, Bridge]:
        """What this process has open; opened on first use.

        Raises:
            Closed, BrokerUnavailable: no thread can be started any more.
            ConfigurationError: eventlet has patched this process.
        """
        if self._closed:
            raise Closed("this bus was closed; build a new one")
        pid = os.getpid()
        live = self._lives.get(pid) or self._lives.setdefault(pid, self._build())
        if live.bridge is None:
            refuse_eventlet()
            try:
                live.bridge = join(self)
            except RuntimeError as error:
                raise BrokerUnavailable("the interpreter ends: NATS cannot be reached any more") from error
            live.bridge.post(live.begin)
        return live, live.bridge

    def _call(self, begin: Callable[[Live], Coroutine[Any, Any, T]], timeout: float) -> T:
        live, bridge = self._open()
        try:
            return bridge.call(begin(live), timeout=timeout)
        except TimeoutError as error:
            reason = f" ({live.trouble.last})" if live.trouble.last else ""
            raise BrokerUnavailable(
                f"NATS at {self._shown} did not answer within {timeout:g} s{reason}: check that it runs and "
                "that the URL is right",
                url=self._shown,
                timeout=timeout,
            ) from error
