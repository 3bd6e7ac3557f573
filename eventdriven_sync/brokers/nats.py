"""NATS JetStream behind blocking calls: the broker of production.

``NatsBroker`` is what threads see. ``_Live`` is what one process has open: it lives on the bridge's loop
thread and owns the connection, the dispatches on their way and the running pulls. A forked child
gets its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from eventdriven_sync.broker import (
    BrokerStatus,
    ConsumerSpec,
    ConsumerState,
    Incoming,
    Outgoing,
    StreamSpec,
    StreamState,
)
from eventdriven_sync.brokers import jetstream
from eventdriven_sync.brokers.bridge import Bridge, Link, join
from eventdriven_sync.brokers.dispatching import Dispatcher
from eventdriven_sync.brokers.pulling import Pull
from eventdriven_sync.errors import (
    BrokerPermissionDenied,
    BrokerUnavailable,
    Closed,
    ConfigurationError,
    EventDrivenError,
)

logger = logging.getLogger(__name__)

_CONNECT_WAIT = 2
_REQUEST_WAIT = 2.0
_TICK = 0.1
_RETRY_PAUSE = 0.1
_SAY_AGAIN = 30.0
_SHOWN_INFO = (
    *("version", "server_name", "cluster", "domain", "jetstream"),
    *("max_payload", "auth_required", "tls_required"),
)

T = TypeVar("T")
Body = Mapping[str, object]
Operation = Callable[[], Coroutine[Any, Any, T]]


class _Client(Client):
    """nats-py's client, which one strange message cannot kill, and which can be dropped in any state."""

    secure_only = False

    @property
    def alive(self) -> bool:
        tasks = (self._reading_task, self._flusher_task)
        return self.is_connected and not any(task is None or task.done() for task in tasks)

    @property
    def info(self) -> dict[str, Any]:
        return dict(self._server_info)

    async def discard(self) -> None:
        """Drop the socket first: a peer that does not read would keep ``close`` waiting."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        try:
            await asyncio.wait_for(self.close(), 1.0)
        except Exception as error:
            logger.debug("closing a lost connection: %r", error, extra={"action": "nats_discarded"})

    # An exception in these three ends nats-py's reader without a word, and the message comes again.

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return self.msg_class(
            subject=subject.decode(errors="backslashreplace"),
            reply=reply.decode(errors="backslashreplace"),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except Exception as error:
            logger.warning("headers cannot be read: %r", error, extra={"action": "headers_unreadable"})
            return None

    def _connect_command(self) -> bytes:
        """The last moment before the password leaves: nats-py accepts plain TCP for tls://."""
        if self.secure_only and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnRequiredError
        return super()._connect_command()


class _Live:
    """What one process has open. Loop thread only, except where threads are named."""

    def __init__(self, url: str, shown: str, name: str) -> None:
        self.bridge: Bridge
        self.last_error = ""
        self.server: dict[str, object] = {}
        self.declared: dict[str, ConsumerSpec] = {}
        self.link: Link[_Client] = Link(
            self._connect, on_up=self._up, on_down=self._down, on_error=self._failed
        )
        self._url, self._shown, self._name = url, shown, name
        self._inbox = f"_INBOX.{uuid.uuid4().hex}"
        self.dispatcher = Dispatcher(
            inbox=f"{self._inbox}.a.",
            send=self.link.send,
            ensure=lambda stream: self.spawn(self._ensure_for_dispatch(stream)),
            trouble=self.trouble,
        )
        self.pulls: dict[Pull, Subscription | None] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._begun = False
        self._refusal: EventDrivenError | None = None
        self._denials: dict[str, asyncio.Future[None]] = {}
        self._said: dict[str, float] = {}

    def begin(self) -> None:
        """Connect, once."""
        if not self._begun:
            self._begun = True
            self.spawn(self.link.run())
            self.spawn(self._tick())

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run something beside everything else; its failure is logged."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.trouble(f"a background task failed: {error!r}")

    def trouble(self, text: str) -> None:
        """Remember what went wrong, and log it, each kind twice a minute at most."""
        self.last_error = text
        kind, now = re.sub(r"\d+", "#", text)[:80], time.monotonic()
        if now - self._said.get(kind, -_SAY_AGAIN) < _SAY_AGAIN:
            return
        if len(self._said) > 200:
            self._said.clear()
        self._said[kind] = now
        logger.warning("NATS at %s: %s", self._shown, text, extra={"action": "nats_trouble"})

    # --- the connection

    async def _connect(self) -> _Client:
        parts = [urlsplit(part.strip()) for part in self._url.split(",")]
        user, password = next(((p.username, p.password) for p in parts if p.username), (None, None))
        client = _Client()
        client.secure_only = any(part.scheme == "tls" for part in parts)
        try:
            await asyncio.wait_for(
                client.connect(
                    servers=[part.geturl() for part in parts],
                    name=self._name or None,
                    allow_reconnect=False,
                    connect_timeout=_CONNECT_WAIT,
                    # Once each, and then Link decides when to try again.
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    error_cb=self._on_error,
                    closed_cb=_on_closed,
                    disconnected_cb=_on_closed,
                    skip_subject_validation=True,
                    user=unquote(user) if user and password else None,
                    password=unquote(password) if password else None,
                    token=unquote(user) if user and not password else None,
                ),
                timeout=_CONNECT_WAIT * (len(parts) + 1),
            )
        except BaseException:
            await client.discard()
            raise
        return client

    async def _up(self, client: _Client) -> None:
        await client.subscribe(
            f"{self._inbox}.a.*", cb=self._on_answer, pending_msgs_limit=0, pending_bytes_limit=0
        )
        info = client.info
        self.server = {key: info[key] for key in _SHOWN_INFO if key in info}
        self._refusal = None
        logger.info("connected to NATS at %s", self._shown, extra={"action": "nats_connected"})
        # The link accepts messages once this coroutine is over.
        asyncio.get_running_loop().call_soon(self.dispatcher.opened, client.max_payload)

    def _down(self) -> None:
        self.dispatcher.closed()
        for pull in self.pulls:
            self.pulls[pull] = None
            pull.lost()
        self.trouble(self.last_error or "connection lost")

    def _failed(self, error: BaseException) -> None:
        text = f"{error}" or repr(error)
        self._refusal = None
        if "authorization" in text.lower() or isinstance(error, nats.errors.AuthorizationError):
            self._refusal = BrokerPermissionDenied(
                f"NATS at {self._shown} refuses the credentials: check user, password or token in the URL",
                url=self._shown,
            )
            self._refusal.__cause__ = error
        self.trouble(text)

    async def _on_error(self, error: Exception) -> None:
        """nats-py's error callback: must never raise."""
        text = str(error)
        denied = re.search(r'permissions violation for (publish|subscription) to "([^"]*)"', text, re.I)
        if denied:
            text = f"no permission: {denied[1]} to {denied[2]}"
            self.dispatcher.denied(denied[2].lower())
            waiting = self._denials.get(denied[2].lower())
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        self.trouble(text or repr(error))

    async def _on_answer(self, message: Msg) -> None:
        status = message.headers.get("Status", "") if message.headers else ""
        self.dispatcher.answered(message.subject[len(self._inbox) + 3 :], message.data, status)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            try:
                self._tick_once()
            except Exception:
                logger.exception("a tick failed", extra={"action": "tick_failed"})

    def _tick_once(self) -> None:
        self.dispatcher.tick()
        for pull in list(self.pulls):
            pull.tick()
            if self.link.session is None:
                continue
            if pull.wants_opening:
                pull.opening = True
                self.spawn(self._open(pull))
            elif pull.wants_look:
                pull.looking = True
                self.spawn(self._look(pull))

    # --- requests

    async def attempt(self, operation: Operation[T]) -> T:
        """Try until it works; whoever calls sets the deadline."""
        while True:
            if self.link.session is not None:
                try:
                    return await operation()
                except (nats.errors.Error, BrokerUnavailable) as error:
                    self.trouble(str(error))
            elif self._refusal is not None:
                raise self._refusal
            await asyncio.sleep(_RETRY_PAUSE)

    async def request(self, path: str, body: Body | None = None) -> dict[str, Any]:
        """One request to the JetStream API.

        Raises:
            ApiError: it answered with an error.
            BrokerPermissionDenied, BrokerUnavailable, ConfigurationError: it did not answer.
        """
        subject = f"$JS.API.{path}"
        client = self.link.session
        if client is None or not jetstream.is_subject(subject):
            raise BrokerUnavailable(f"NATS at {self._shown} is not connected", url=self._shown)
        payload = json.dumps(body).encode() if body is not None else b""
        try:
            answer: dict[str, Any] = json.loads((await self._ask(client, subject, payload)).data)
        except nats.errors.NoRespondersError as error:
            if self.server.get("jetstream"):
                raise BrokerUnavailable(
                    f"JetStream at {self._shown} is not ready", url=self._shown
                ) from error
            raise jetstream.no_jetstream(self._shown) from error
        if "error" in answer:
            raise jetstream.ApiError(answer["error"])
        return answer

    async def _ask(self, client: _Client, subject: str, payload: bytes) -> Msg:
        """The server reports a missing permission beside the request, which would only time out."""
        denial = self._denials.setdefault(subject.lower(), asyncio.get_running_loop().create_future())
        asking: asyncio.Future[Any] = asyncio.ensure_future(
            client.request(subject, payload, timeout=_REQUEST_WAIT)
        )
        try:
            await asyncio.wait({asking, denial}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise BrokerPermissionDenied(
                    f"NATS at {self._shown} does not allow this user to publish to {subject}: grant it",
                    url=self._shown,
                    subject=subject,
                )
            message: Msg = asking.result()
            return message
        finally:
            asking.cancel()
            self._denials.pop(subject.lower(), None)

    # --- streams and consumers

    async def declare(self, consumers: Sequence[ConsumerSpec]) -> None:
        """Create what is missing, verify the rest, and remember it."""
        for spec in consumers:
            await self.ensure_consumer(spec)
            self.declared[spec.name] = spec

    async def ensure_stream(self, spec: StreamSpec) -> dict[str, Any]:
        """The stream's INFO, after creating it if it is missing.

        Raises:
            StreamConflict, UnsafeStream: it exists otherwise than we want it.
        """
        try:
            info = await self.request(f"STREAM.INFO.{spec.name}")
        except jetstream.ApiError as error:
            if error.err_code != jetstream.STREAM_NOT_FOUND:
                raise self._translate(error, f"reading stream {spec.name}") from error
            info = await self._create_stream(spec)
        jetstream.check_stream(spec, info["config"])
        return info

    async def _create_stream(self, spec: StreamSpec) -> dict[str, Any]:
        try:
            info = await self.request(f"STREAM.CREATE.{spec.name}", jetstream.stream_config(spec))
        except jetstream.ApiError as error:
            if error.err_code == jetstream.STREAM_NAME_IN_USE:
                return await self.request(f"STREAM.INFO.{spec.name}")
            raise self._translate(error, f"creating stream {spec.name}") from error
        logger.info("stream %s created", spec.name, extra={"action": "stream_created"})
        return info

    async def ensure_consumer(self, spec: ConsumerSpec) -> dict[str, Any]:
        """The consumer's INFO, after creating it and its stream if they are missing.

        Raises:
            StreamConflict, UnsafeStream, ConsumerConflict: something exists otherwise than we want it.
        """
        # First the consumer: what it delivered meanwhile is then never ahead of what the stream has.
        info = await self.consumer_info(spec.stream.name, spec.name)
        stream = await self.ensure_stream(spec.stream)
        if info is not None and jetstream.is_ahead(info, stream):
            self.trouble(f"consumer {spec.name} is ahead of its stream, which lost messages; created anew")
            await self.request(f"CONSUMER.DELETE.{spec.stream.name}.{spec.name}")
            info = None
        if info is None:
            info = await self._create_consumer(spec)
        jetstream.check_consumer(spec, info["config"])
        return info

    async def _create_consumer(self, spec: ConsumerSpec) -> dict[str, Any]:
        stream = spec.stream.name
        body = {"stream_name": stream, "config": jetstream.consumer_config(spec), "action": "create"}
        try:
            info = await self.request(f"CONSUMER.CREATE.{stream}.{spec.name}", body)
        except jetstream.ApiError as error:
            found = await self.consumer_info(stream, spec.name)
            if error.err_code in jetstream.CONSUMER_IN_USE and found is not None:
                return found
            raise self._translate(error, f"creating consumer {spec.name}") from error
        logger.info("consumer %s created", spec.name, extra={"action": "consumer_created"})
        return info

    async def consumer_info(self, stream: str, name: str) -> dict[str, Any] | None:
        """The consumer's INFO, or None if it or its stream does not exist."""
        try:
            return await self.request(f"CONSUMER.INFO.{stream}.{name}")
        except jetstream.ApiError as error:
            if error.err_code in (jetstream.CONSUMER_NOT_FOUND, jetstream.STREAM_NOT_FOUND):
                return None
            raise self._translate(error, f"reading consumer {name}") from error

    async def consumer_state(self, stream: str, name: str) -> ConsumerState | None:
        """See ``Broker.consumer_state``."""
        info = await self.consumer_info(stream, name)
        return None if info is None else await self._state(info)

    async def _state(self, info: Mapping[str, Any]) -> ConsumerState:
        oldest = await self._oldest(info) if jetstream.has_backlog(info) else None
        return jetstream.consumer_state(info, oldest)

    async def _oldest(self, info: Mapping[str, Any]) -> datetime | None:
        """When the first message after the acknowledged ones was stored: none that can come is older."""
        config = info["config"]
        subjects = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
        first = info.get("ack_floor", {}).get("stream_seq", 0) + 1
        times = []
        for subject in subjects:
            try:
                answer = await self.request(
                    f"STREAM.MSG.GET.{info['stream_name']}", {"seq": first, "next_by_subj": subject}
                )
            except jetstream.ApiError as error:
                if error.err_code != jetstream.NO_MESSAGE:
                    raise self._translate(error, f"reading stream {info['stream_name']}") from error
            else:
                times.append(jetstream.parse_time(answer["message"]["time"]))
        return min(times, default=None)

    async def streams(self, prefix: str) -> list[StreamState]:
        """See ``Broker.streams``."""
        found = []
        for stream in await self._pages("STREAM.LIST", "streams"):
            name = stream["config"]["name"]
            if name.startswith(prefix):
                consumers = await self._pages(f"CONSUMER.LIST.{name}", "consumers")
                states = [await self._state(consumer) for consumer in consumers]
                found.append(jetstream.stream_state(stream, tuple(states)))
        return found

    async def _pages(self, path: str, field: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        while True:
            answer = await self.request(path, {"offset": len(items)})
            page = answer.get(field) or []
            items += page
            if not page or len(items) >= answer.get("total", 0):
                return items

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """See ``Broker.delete_consumer``."""
        self.declared.pop(name, None)
        if await self.consumer_info(stream, name) is None:
            return False
        await self.request(f"CONSUMER.DELETE.{stream}.{name}")
        return True

    def _translate(self, error: jetstream.ApiError, doing: str) -> EventDrivenError:
        return jetstream.translate(error, doing=doing, url=self._shown)

    # --- dispatching and pulling

    async def _ensure_for_dispatch(self, stream: StreamSpec) -> None:
        """A wiped server loses its consumers too: those we declared come back before the first message."""
        try:
            await self.ensure_stream(stream)
            for spec in list(self.declared.values()):
                if spec.stream.name == stream.name:
                    await self.ensure_consumer(spec)
        except ConfigurationError as error:
            self.trouble(str(error))
            self.dispatcher.stream_failed(stream.name, str(error), for_good=True)
        except (nats.errors.Error, EventDrivenError, jetstream.ApiError) as error:
            self.trouble(f"stream {stream.name}: {error}")
            self.dispatcher.stream_failed(stream.name, str(error), for_good=False)
        else:
            self.dispatcher.stream_ready(stream.name)

    async def _open(self, pull: Pull) -> None:
        client = self.link.session
        try:
            await self.ensure_consumer(pull.spec)
            if client is None or client is not self.link.session or pull.stopped:
                return
            old, inbox = self.pulls[pull], f"{self._inbox}.p.{uuid.uuid4().hex}"
            self.pulls[pull] = await client.subscribe(
                inbox, cb=partial(_hand_to, pull), pending_msgs_limit=0, pending_bytes_limit=0
            )
            pull.opened(inbox)
            if old is not None:
                await _unsubscribe(old)
        except (nats.errors.Error, EventDrivenError, jetstream.ApiError) as error:
            self.trouble(f"consumer {pull.spec.name}: {error}")
            pull.failed()
        finally:
            pull.opening = False

    async def _look(self, pull: Pull) -> None:
        try:
            info = await self.consumer_info(pull.spec.stream.name, pull.spec.name)
            pull.looked_at(stalled=info is None or jetstream.is_stalled(info))
        except (nats.errors.Error, EventDrivenError) as error:
            self.trouble(f"consumer {pull.spec.name}: {error}")
        finally:
            pull.looking = False

    def retire(self, pull: Pull) -> None:
        """Unsubscribe a stopped pull; what is still in hand can be finished."""
        subscription = self.pulls.get(pull)
        if subscription is not None:
            self.pulls[pull] = None
            self.spawn(_unsubscribe(subscription))

    # --- the end

    async def flush(self) -> None:
        """Wait until everything dispatched before is settled."""
        mark = self.dispatcher.mark()
        while not self.dispatcher.settled_below(mark):
            await asyncio.sleep(0.005)

    async def end(self, patience: float) -> None:
        """Send what is dispatched, stop pulling, disconnect; waits ``patience`` seconds for the server."""
        for pull in list(self.pulls):
            pull._stop()
        try:
            async with asyncio.timeout(patience):
                await self.flush()
                await self.link.drain()
        except (TimeoutError, nats.errors.Error) as error:
            self.trouble(f"closed before everything was confirmed: {error!r}")
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.5)


async def _hand_to(pull: Pull, message: Msg) -> None:
    pull.arrived(message.subject, message.data, message.headers or {}, message.reply)


async def _unsubscribe(subscription: Subscription) -> None:
    """What the server sent before it hears of it still arrives."""
    try:
        await asyncio.wait_for(subscription.drain(), 2.0)  # type: ignore[no-untyped-call]
    except (nats.errors.Error, TimeoutError) as error:
        logger.debug("unsubscribing: %r", error, extra={"action": "unsubscribe_failed"})


async def _on_closed() -> None:
    """``Link`` watches the connection; nats-py reports to the log unless it has callbacks."""


class NatsBroker:
    """The ``Broker`` on a NATS server with JetStream. Thread-safe, fork-safe; opens nothing until used.

    Args:
        url: ``nats://`` or ``tls://``, with user and password or token; several separated by commas.
        namespace: of the bus, for the connection's name.
        timeout: of background work and of ``close`` at exit, seconds.
        name: of this process, shown by the server.
    """

    def __init__(self, url: str, *, namespace: str, timeout: float = 5.0, name: str = "") -> None:
        self._url = url
        self._shown = re.sub(r"//[^/@]*@", "//", url)
        self._name = name or namespace
        self._timeout = timeout
        self._closed = False
        # By process id: what a child inherits stays untouched under its parent's id.
        self._lives: dict[int, _Live] = {}

    def declare(self, consumers: Sequence[ConsumerSpec], *, timeout: float) -> None:
        """Create what is missing of these consumers and their streams, verify the rest."""
        live = self._live()
        self._call(live, partial(live.declare, consumers), timeout)

    def declare_later(self, consumers: Sequence[ConsumerSpec]) -> None:
        """The same without waiting; failures go to ``status()``."""
        live = self._live()
        live.bridge.post(lambda: live.spawn(live.attempt(partial(live.declare, consumers))))

    def dispatch(self, messages: Sequence[Outgoing]) -> int:
        """Send without waiting; return how many were taken."""
        try:
            live = self._live()
        except (Closed, RuntimeError) as error:  # RuntimeError: no new thread while the interpreter ends
            logger.debug("dispatch refused: %r", error, extra={"action": "dispatch_refused"})
            return 0
        taken = live.dispatcher.take(messages, down_for=live.link.down_for)
        if taken:
            live.bridge.post(live.dispatcher.pump)
        return taken

    def flush(self, *, timeout: float) -> bool:
        """Wait until everything dispatched is confirmed or given up; False on timeout."""
        live = self._lives.get(os.getpid())
        if live is None or self._closed:
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
        live = self._live()
        pull = Pull(
            consumer,
            deliver,
            window=window,
            post=live.bridge.post,
            soon=lambda action: asyncio.get_running_loop().call_soon(action),
            send=live.link.send,
            retire=live.retire,
            trouble=live.trouble,
        )
        live.bridge.post(lambda: live.pulls.setdefault(pull))
        return pull

    def consumer_state(self, stream: str, name: str, *, timeout: float) -> ConsumerState | None:
        """The consumer's backlog, or None if it does not exist."""
        live = self._live()
        return self._call(live, partial(live.consumer_state, stream, name), timeout)

    def streams(self, prefix: str, *, timeout: float) -> list[StreamState]:
        """Streams whose name begins with ``prefix``, with their consumers."""
        live = self._live()
        return self._call(live, partial(live.streams, prefix), timeout)

    def delete_consumer(self, stream: str, name: str, *, timeout: float) -> bool:
        """Delete a consumer; False if there was none."""
        live = self._live()
        return self._call(live, partial(live.delete_consumer, stream, name), timeout)

    def status(self) -> BrokerStatus:
        """What is known right now; never blocks and opens nothing."""
        live = self._lives.get(os.getpid())
        if live is None:
            return BrokerStatus(
                connected=False, last_error="", dispatched=0, dropped=0, in_flight=0, rebuilt=0, server={}
            )
        dispatched, dropped, in_flight = live.dispatcher.counts()
        return BrokerStatus(
            connected=live.link.session is not None,
            last_error=live.last_error,
            dispatched=dispatched,
            dropped=dropped,
            in_flight=in_flight,
            rebuilt=live.link.rebuilt,
            server=dict(live.server),
        )

    def close(self, *, timeout: float) -> None:
        """Send what is dispatched, stop pulling, disconnect; done within ``timeout``."""
        self._closed = True
        live = self._lives.get(os.getpid())
        if live is None:
            return
        deadline = time.monotonic() + timeout
        try:
            live.bridge.call(live.end(timeout * 0.7), timeout=timeout)
        except (TimeoutError, Closed) as error:
            logger.warning("NATS was not closed in time: %r", error, extra={"action": "nats_close_late"})
        live.bridge.leave(self, timeout=max(0.0, deadline - time.monotonic()))

    def _live(self) -> _Live:
        """What this process has open; opens it on first use."""
        if self._closed:
            raise Closed("this bus was closed; build a new one")
        pid = os.getpid()
        live = self._lives.get(pid) or self._lives.setdefault(pid, _Live(self._url, self._shown, self._name))
        if not hasattr(live, "bridge"):
            live.bridge = join(self)
            live.bridge.post(live.begin)
        return live

    def _call(self, live: _Live, operation: Operation[T], timeout: float) -> T:
        try:
            return live.bridge.call(live.attempt(operation), timeout=timeout)
        except TimeoutError as error:
            raise BrokerUnavailable(
                f"NATS at {self._shown} did not answer within {timeout:g} s"
                + (f" ({live.last_error})" if live.last_error else "")
                + ": check that it runs and that the URL is right",
                url=self._shown,
                timeout=timeout,
            ) from error
        except jetstream.ApiError as error:
            raise jetstream.translate(error, doing="asking JetStream", url=self._shown) from error
