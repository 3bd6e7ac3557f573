"""NATS JetStream behind blocking calls: the broker of production.

``Live`` is what one process has open: it lives on the bridge's loop thread and owns the connection, the
dispatches on their way and the running pulls. A forked child gets its own. Threads see ``NatsBroker``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, TypeVar
from urllib.parse import urlsplit

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from eventdriven_sync.broker import ConsumerSpec, StreamSpec
from eventdriven_sync.brokers import administration, jetstream
from eventdriven_sync.brokers.administration import Conversation
from eventdriven_sync.brokers.blocking import BlockingBroker
from eventdriven_sync.brokers.bridge import Bridge
from eventdriven_sync.brokers.client import NatsClient
from eventdriven_sync.brokers.jetstream import ApiError
from eventdriven_sync.brokers.link import Link
from eventdriven_sync.brokers.outbound import Outbound
from eventdriven_sync.brokers.pulling import Pull
from eventdriven_sync.brokers.trouble import DENIED, REFUSED, Trouble
from eventdriven_sync.config import login, redact
from eventdriven_sync.errors import BrokerUnavailable, Closed, ConfigurationError, EventDrivenError

logger = logging.getLogger(__name__)
_CONNECT_WAIT = _REQUEST_WAIT = _HOPELESS = 2
_TICK = _RETRY_PAUSE = 0.1
# Of pulls that only wait one in so many is looked at in each tick.
_CALM = 10
_SERVERS_MOST = 30
_SHOWN = ("version", "server_name", "jetstream", "max_payload", "auth_required", "tls_required")

T = TypeVar("T")


class Live:
    """What one process has open. Loop thread only, except where threads are named."""

    def __init__(self, url: str, *, shown: str, name: str, connect_limit: float) -> None:
        self.bridge: Bridge | None = None
        self.ended = False
        self.server: dict[str, object] = {}
        self.pulls: dict[Pull, Subscription | None] = {}
        self.link: Link[NatsClient] = Link(
            self._connect, on_up=self._up, on_down=self._down, on_error=self._failed
        )
        self.trouble = Trouble(shown)
        self._servers = [part.strip() for part in url.split(",")]
        self._shown, self._name, self._connect_limit = shown, name, connect_limit
        self._inbox = f"_INBOX.{uuid.uuid4().hex}"
        self.outbound = Outbound(
            inbox=f"{self._inbox}.a.",
            send=self.link.send,
            write=self.link.write,
            later=lambda seconds, step: asyncio.get_running_loop().call_later(seconds, step),
            ensure=lambda stream, consumer: self.spawn(self._ensure(stream, consumer)),
            trouble=self.trouble,
        )
        self._declared: dict[tuple[str, str], ConsumerSpec] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refusal: BaseException | None = None
        self._denials: dict[str, asyncio.Future[None]] = {}

    def begin(self) -> None:
        """Connect; only the first call counts."""
        if not self._tasks and not self.ended:
            self.spawn(self.link.run())
            self.spawn(self._tick())

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run something beside everything else; how it fails goes to ``trouble``."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.trouble(str(error) if isinstance(error, EventDrivenError) else repr(error))

    # --- the connection

    async def _connect(self) -> NatsClient:
        client = NatsClient(secure_only=any(urlsplit(server).scheme == "tls" for server in self._servers))
        connecting = client.connect(
            servers=self._servers,
            name=self._name,
            # Given here too, because servers that were discovered have no user in their URL.
            **login(self._servers),
            # Once each, and then Link decides when to try again.
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_WAIT,
            ping_interval=5,
            max_outstanding_pings=2,
            error_cb=self._on_error,
            skip_subject_validation=True,
        )
        try:
            await asyncio.wait_for(connecting, self._connect_limit)
        except BaseException:
            await client.discard()
            raise
        return client

    async def _up(self, client: NatsClient) -> None:
        await client.listen(f"{self._inbox}.a.*", self._on_answer)
        await client.flush(_REQUEST_WAIT)  # until then ``write`` takes nothing
        self.server = {key: value for key, value in client.info.items() if key in _SHOWN}
        self._refusal = None
        if not client.secure_only:
            found = {f"nats://{server.netloc}" for server in client.discovered_servers}
            self._servers = [*self._servers, *found.difference(self._servers)][:_SERVERS_MOST]
        logger.info("connected to NATS at %s", self._shown, extra={"action": "nats_connected"})
        # The link takes messages once this coroutine is over.
        asyncio.get_running_loop().call_soon(self.outbound.opened, client.max_payload)

    def _on_answer(self, subject: str, data: bytes, headers: Mapping[str, str], reply: str) -> None:
        self.outbound.answered(subject[len(self._inbox) + 3 :], data, headers.get("Status", ""))

    def _down(self) -> None:
        self.outbound.closed()
        for pull in self.pulls:
            self.pulls[pull] = None
            pull.lost()
        if not self.ended:
            logger.warning("connection to NATS at %s lost", self._shown, extra={"action": "nats_lost"})

    def _failed(self, error: BaseException) -> None:
        self._refusal = error if REFUSED.search(str(error)) else None
        if not isinstance(error, nats.errors.NoServersError):  # the reasons were told to _on_error
            self.trouble(f"{type(error).__name__}: {error}")
        if self._refusal is not None:
            self.outbound.confirming.give_up(self.trouble.refused())

    async def _on_error(self, error: Exception) -> None:
        """nats-py's error callback; it must never raise."""
        text = str(error) or repr(error)
        denied = DENIED.search(text)
        self.trouble(f"no permission: {denied[1]} to {denied[2]}" if denied else text)
        if denied:
            self.outbound.denied(denied[2])
            waiting = self._denials.get(denied[2].lower())
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    async def _tick(self) -> None:
        for turn in count():
            await asyncio.sleep(_TICK)
            try:
                self.outbound.tick()
                for place, pull in enumerate(list(self.pulls)):
                    if (place + turn) % _CALM == 0 or not pull.only_waits:
                        self._tick_pull(pull)
            except Exception:
                logger.exception("a tick failed", extra={"action": "tick_failed"})

    def _tick_pull(self, pull: Pull) -> None:
        pull.tick()
        if pull.stopped and not pull.in_hand:
            del self.pulls[pull]
        elif self.link.session is not None and pull.wants_opening:
            pull.opening = True
            self.spawn(self._open(pull))
        elif self.link.session is not None and pull.wants_look:
            pull.looking = True
            self.spawn(self._look(pull))

    # --- requests

    async def attempt(self, begin: Callable[[], Conversation[T]]) -> T:
        """Have a conversation with JetStream, again until it works; whoever calls sets the deadline."""
        while not self.ended:
            if self.link.session is not None:
                try:
                    return await self._converse(begin())
                except (nats.errors.Error, BrokerUnavailable) as error:
                    self.trouble(str(error))
            elif self._refusal is not None:
                raise self.trouble.refused() from self._refusal
            await asyncio.sleep(_RETRY_PAUSE)
        raise Closed("the connection to NATS was closed; build a new bus")

    async def _converse(self, conversation: Conversation[T]) -> T:
        try:
            question = next(conversation)
            while True:
                try:
                    answer = await self._request(*question)
                except ApiError as error:
                    question = conversation.throw(error)
                else:
                    question = conversation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        except ApiError as error:
            raise jetstream.translate(error, self._shown) from error

    async def _request(self, path: str, body: object) -> dict[str, Any]:
        subject = f"$JS.API.{path}"
        client = self.link.session
        if not jetstream.is_subject(subject):
            raise ConfigurationError(f"{path!r} contains a name that NATS does not accept", field="name")
        if client is None:
            raise BrokerUnavailable(f"NATS at {self._shown} is not connected", url=self._shown)
        payload = b"" if body is None else json.dumps(body).encode()
        try:
            answer: dict[str, Any] = json.loads((await self._ask(client, subject, payload)).data)
        except nats.errors.NoRespondersError as error:
            if not self.server.get("jetstream"):
                raise jetstream.no_jetstream(self._shown) from error
            raise BrokerUnavailable(f"JetStream at {self._shown} is not ready", url=self._shown) from error
        if "error" in answer:
            raise ApiError(path, answer["error"])
        return answer

    async def _ask(self, client: NatsClient, subject: str, payload: bytes) -> Msg:
        """The server reports a missing permission beside the request, which would only time out."""
        denial = self._denials.setdefault(subject.lower(), asyncio.get_running_loop().create_future())
        asking: asyncio.Future[Msg] = asyncio.ensure_future(
            client.request(subject, payload, timeout=_REQUEST_WAIT)
        )
        try:
            await asyncio.wait([asking, denial], return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
            if asking.done():
                return asking.result()
            raise self.trouble.forbidden(subject)
        finally:
            asking.cancel()
            self._denials.pop(subject.lower(), None)

    # --- streams, consumers, pulls

    async def declare(self, consumers: Sequence[ConsumerSpec]) -> None:
        """Create what is missing, verify the rest, and remember it."""
        for spec in consumers:
            await self.attempt(partial(administration.ensure_consumer, spec))
            self._declared[spec.stream.name, spec.name] = spec

    def declare_later(self, consumers: Sequence[ConsumerSpec]) -> None:
        """Each by itself, so that one that is refused does not stop the others."""
        for spec in consumers:
            self.spawn(self.declare([spec]))

    async def _ensure(self, stream: StreamSpec, consumer: ConsumerSpec | None) -> None:
        """A wiped server lost its consumers too: those we declared come back before the first message."""
        wanted = [spec for spec in self._declared.values() if spec.stream.name == stream.name]
        try:
            await self._converse(administration.ensure_stream(stream))
            for spec in [*wanted, *([consumer] if consumer else [])]:
                await self._converse(administration.ensure_consumer(spec))
        except (nats.errors.Error, EventDrivenError) as error:
            self.outbound.failed(stream, consumer, error)
        else:
            if consumer is not None:
                self._declared[stream.name, consumer.name] = consumer
            self.outbound.ready(stream, consumer)

    async def _open(self, pull: Pull) -> None:
        client = self.link.session
        try:
            await self._converse(administration.ensure_consumer(pull.spec))
            if client is None or client is not self.link.session or pull.stopped:
                return
            old, inbox = self.pulls[pull], f"{self._inbox}.p.{uuid.uuid4().hex}"
            self.pulls[pull] = await client.listen(inbox, pull.arrived)
            pull.opened(inbox)
            if old is not None:
                self.spawn(_unsubscribe(old))
        except (nats.errors.Error, EventDrivenError) as error:
            self.trouble(f"consumer {pull.spec.name}: {error}")
            pull.failed()
        finally:
            pull.opening = False

    async def _look(self, pull: Pull) -> None:
        try:
            info = await self._converse(administration.consumer_info(pull.spec.stream.name, pull.spec.name))
            pull.looked_at(stalled=info is None or jetstream.is_stalled(info))
        finally:
            pull.looking = False

    def retire(self, pull: Pull) -> None:
        """Unsubscribe a stopped pull; what is in hand can still be finished."""
        subscription = self.pulls.get(pull)
        if subscription is None:
            pull.retired()
        else:
            self.pulls[pull] = None
            self.spawn(_unsubscribe(subscription, pull.retired))

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """See ``Broker.delete_consumer``; it is not created again."""
        self._declared.pop((stream, name), None)
        return await self.attempt(partial(administration.delete_consumer, stream, name))

    # --- the end

    async def flush(self) -> None:
        """Wait until everything dispatched before is settled, and what stopped pulls held is given back."""
        mark = self.outbound.dispatcher.mark()
        while any(pull.retiring for pull in self.pulls) or not self.outbound.dispatcher.settled_below(mark):
            if self.ended and self.link.down_for > _HOPELESS:
                raise TimeoutError
            await asyncio.sleep(0.005)

    async def end(self, patience: float) -> None:
        """Send what is dispatched, stop pulling, disconnect; waits ``patience`` seconds for the server."""
        self.ended = True
        self.outbound.confirming.end(Closed("the connection to NATS was closed; build a new bus"))
        for pull in self.pulls:
            pull.stop_now()
        try:
            async with asyncio.timeout(patience):
                await self.flush()
                await self.link.drain()
        except (TimeoutError, nats.errors.Error) as error:
            self.trouble(f"closed before everything was confirmed: {error!r}")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.5)


async def _unsubscribe(subscription: Subscription, then: Callable[[], None] = lambda: None) -> None:
    """What the server sent before it hears of it still arrives."""
    try:
        await asyncio.wait_for(subscription.drain(), 2.0)  # type: ignore[no-untyped-call]
    except (nats.errors.Error, TimeoutError) as error:
        logger.debug("unsubscribing: %r", error, extra={"action": "unsubscribe_failed"})
    finally:
        then()


class NatsBroker(BlockingBroker):
    """The ``Broker`` on a NATS server with JetStream. Thread-safe, fork-safe; opens nothing until used.

    Args:
        url: ``nats://`` or ``tls://``, with user and password or token; several separated by commas.
        namespace: of the bus; the connection's name unless ``name`` is given.
        timeout: until one attempt to connect is given up, seconds.
        name: of this process, shown by the server.
    """

    def __init__(self, url: str, *, namespace: str, timeout: float = 5.0, name: str = "") -> None:
        shown = redact(url)
        build = partial(
            Live, url, shown=shown, name=name or namespace, connect_limit=max(timeout, _CONNECT_WAIT)
        )
        super().__init__(shown, build)
