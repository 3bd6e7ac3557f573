"""Live pages: one thread per process looks what changed, and tells the open pages by server-sent events.

A stream says only *that* something changed; the page then fetches itself again. So nothing is shown that
the page itself would not show, and a page without a stream does the same by polling.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

import attrs
from flask import current_app, request
from werkzeug.exceptions import ServiceUnavailable
from werkzeug.wrappers import Response

from eventdriven_sync.bus import EventBus
from eventdriven_sync.dashboard import asking
from eventdriven_sync.dashboard.mount import bus, identity, monitor
from eventdriven_sync.dashboard.routing import Routes
from eventdriven_sync.envelope import new_id
from eventdriven_sync.errors import EventDrivenError, InvalidOption
from eventdriven_sync.monitor import Monitor
from eventdriven_sync.store import DeliveryQuery

log = logging.getLogger(__name__)

SETTING = "EVENTDRIVEN_DASHBOARD_STREAMS"
STREAMS = 2
STREAM_SECONDS = 20.0
PING_EVERY = 5.0
LOOK_EVERY = 1.0
SHARE = 10.0
OPEN_STATES = ("pending", "running", "retrying", "dead")

streams = Routes(kind="stream")


@streams.get("/stream", role="viewer", background=True)
def stream() -> Response:
    """Server-sent events: ``changed`` whenever what a page shows has changed.

    503 where there is no thread to spare: the page polls then. ``EVENTDRIVEN_DASHBOARD_STREAMS`` in the
    application's configuration says how many a process keeps open, by default 2, fit for servers with 4
    threads; give about half the number of the server's threads.
    """
    look = _look(bus())
    if not request.environ.get("wsgi.multithread"):
        raise ServiceUnavailable("This server has one thread per process: pages poll.")
    found = watcher(bus())
    found.end(_page_name("ends"))
    subscription = found.subscribe(
        _topic_name(),
        look,
        page=_page_name("page"),
        most=current_app.config.get(SETTING, STREAMS),
    )
    if subscription is None:
        raise ServiceUnavailable("As many streams are open as this process may have: the page polls.")
    seen = request.headers.get("Last-Event-ID", "")
    response = Response(_sent(subscription, seen), mimetype="text/event-stream")
    response.call_on_close(subscription.close)
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _topic_name() -> str:
    return f"{asking.text('topic')} {asking.text('id') or ''}"


def _page_name(field: str) -> str:
    """A page of the same person: nobody ends the streams of others."""
    return f"{identity().name} {asking.text(field) or new_id()}"


def _look(on: EventBus) -> Callable[[], object]:
    topic = asking.one_of("topic", ("all", "chain", "job"))
    if topic in (None, "all"):
        return lambda: _state(on)
    record_id = asking.text("id")
    if record_id is None:
        raise InvalidOption(f"topic {topic} is about one record: give its id", field="id")
    if topic == "job":
        monitor().job(record_id)
        return lambda: Monitor(on).job(record_id)
    monitor().operation(record_id)
    return lambda: _chain_state(on, record_id)


def _state(on: EventBus) -> object:
    """What lists depend on, cheaply: the newest event and operation, and how many deliveries are open."""
    asked = Monitor(on)
    newest = [event.id for event in asked.events(limit=1).items]
    last = [(operation.id, operation.status) for operation in asked.operations(limit=1).items]
    counts = on.store.deliveries.count(DeliveryQuery(states=OPEN_STATES))
    return newest, last, sorted(counts.items())


def _chain_state(on: EventBus, operation_id: str) -> object:
    chain = Monitor(on).chain(operation_id)
    deliveries = [
        (each.id, each.state, each.attempts, each.generation, each.started_at) for each in chain.deliveries
    ]
    return chain.operation.status, [item.event.id for item in chain.walk()], deliveries


def _sent(subscription: Subscription, seen: str) -> Iterator[bytes]:
    """The text of the stream; it ends after a while, and the browser comes again."""
    until = time.monotonic() + STREAM_SECONDS
    yield b"retry: 500\n\n"
    while (left := until - time.monotonic()) > 0:
        version = subscription.wait(min(PING_EVERY, left))
        if version == "":
            return
        if version and version != seen:
            yield f"id: {version}\nevent: changed\ndata: \n\n".encode()
            seen = version
        else:
            yield b": ping\n\n"


@attrs.define(eq=False)
class Subscription:
    """One page that wants to know. ``close`` it."""

    topic: str
    page: str
    _watcher: Watcher
    _news: threading.Condition = attrs.field(factory=threading.Condition)
    _version: str | None = None

    def wait(self, seconds: float) -> str | None:
        """The newest version once there is a new one, empty if it was ended; None in vain."""
        with self._news:
            self._news.wait_for(lambda: self._version is not None, seconds)
            version, self._version = self._version, None
            return version

    def tell(self, version: str) -> None:
        """There is a new version; only the newest is kept."""
        with self._news:
            if self._version != "":
                self._version = version
            self._news.notify()

    def close(self) -> None:
        """Nothing more is wanted. Safe to call again."""
        self._watcher.forget(self)

    def end(self) -> None:
        """Close it, and let who waits for it know."""
        self.close()
        self.tell("")


@attrs.define(eq=False, kw_only=True)
class _Topic:
    look: Callable[[], object]
    subscriptions: list[Subscription] = attrs.field(factory=list)
    version: str = ""
    due: float = 0.0


class Watcher:
    """Looks at what pages show while there are any, in one thread that ends with the last of them.

    Thread-safe. A look that takes long is taken rarely: at most a tenth of the time is spent on it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below and what they hold
        self._topics: dict[str, _Topic] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def subscribe(
        self, topic: str, look: Callable[[], object], *, page: str, most: int
    ) -> Subscription | None:
        """A subscription, or None if there are ``most`` already."""
        with self._lock:
            if sum(len(each.subscriptions) for each in self._topics.values()) >= most:
                return None
            place = self._topics.setdefault(topic, _Topic(look=look))
            subscription = Subscription(topic, page, self)
            place.subscriptions.append(subscription)
            if place.version:
                subscription.tell(place.version)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="eventdriven-watch", daemon=True)
                self._thread.start()
        self._wake.set()
        return subscription

    def end(self, page: str) -> None:
        """End the subscription of a page that its tab shows no more."""
        for subscription in self._every():
            if subscription.page == page:
                subscription.end()

    def end_all(self) -> None:
        """End every subscription, so that a server that stops need not wait for its streams."""
        for subscription in self._every():
            subscription.end()

    def _every(self) -> list[Subscription]:
        with self._lock:
            return [each for place in self._topics.values() for each in place.subscriptions]

    def forget(self, subscription: Subscription) -> None:
        """Take a subscription out."""
        with self._lock:
            place = self._topics.get(subscription.topic)
            if place and subscription in place.subscriptions:
                place.subscriptions.remove(subscription)
                if not place.subscriptions:
                    del self._topics[subscription.topic]
        self._wake.set()

    def _run(self) -> None:
        while (wait := self._next()) is not None:
            self._wake.wait(wait)
            self._wake.clear()
            for place in self._due():
                self._look(place)

    def _next(self) -> float | None:
        """Seconds until something is due; None when nobody wants anything, and the thread ends."""
        with self._lock:
            if not self._topics:
                self._thread = None
                return None
            due = min(place.due for place in self._topics.values())
        return max(due - time.monotonic(), 0.0)

    def _due(self) -> list[_Topic]:
        now = time.monotonic()
        with self._lock:
            return [place for place in self._topics.values() if place.due <= now]

    def _look(self, place: _Topic) -> None:
        begun = time.monotonic()
        try:
            version = hashlib.sha256(repr(place.look()).encode("utf-8", "backslashreplace")).hexdigest()[:16]
        except EventDrivenError as error:
            log.info("Dashboard: cannot look for changes: %s", error, extra={"action": "watch_failed"})
            version = place.version
        took = time.monotonic() - begun
        with self._lock:
            place.due = time.monotonic() + max(LOOK_EVERY, SHARE * took)
            if version != place.version:
                place.version = version
                for subscription in place.subscriptions:
                    subscription.tell(version)


_watchers: WeakKeyDictionary[EventBus, tuple[int, Watcher]] = WeakKeyDictionary()
_watchers_lock = threading.Lock()  # guards _watchers


def watcher(on: EventBus) -> Watcher:
    """The watcher of a bus in this process; a forked child has its own."""
    with _watchers_lock:
        owner, found = _watchers.get(on, (0, None))
        if found is None or owner != os.getpid():
            found = Watcher()
            _watchers[on] = (os.getpid(), found)
        return found
