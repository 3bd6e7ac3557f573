"""``EventDriven``: the extension object, and what it keeps for each application."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

import flask

from eventdriven_sync.bus import EventBus, Receipt
from eventdriven_sync.config import Settings
from eventdriven_sync.errors import ConfigurationError
from eventdriven_sync.flask import views
from eventdriven_sync.flask.commands import events_command
from eventdriven_sync.flask.embedded import Embedded
from eventdriven_sync.flask.idempotency import answer_once
from eventdriven_sync.flask.options import HttpOptions, bus_settings, check_names, http_options
from eventdriven_sync.flask.requests import Requests
from eventdriven_sync.group import Group
from eventdriven_sync.handlers import Handler
from eventdriven_sync.redaction import Redaction
from eventdriven_sync.topology import Topology

F = TypeVar("F", bound=Callable[..., Any])
U = TypeVar("U", bound=Callable[[], object])

FindUser = Callable[[], Callable[[], object] | None]

NAME = "eventdriven"


class EventDriven:
    """The Flask extension: a bus for each application, and an operation for each request that changes state.

    Handlers and groups are declared with the extension itself, before any application exists; every
    application it is initialised with gets them. Thread-safe. Nothing is connected before the first use.

    Args:
        app: an application to initialise at once; or call ``init_app``.
        bus: a bus of your own for this application, instead of one made of ``app.config``.

    Raises:
        ConfigurationError: see ``init_app``.

    Example:
        >>> events = EventDriven()
        >>> blog = events.group("Blog")
        >>> def create_app() -> flask.Flask:
        ...     app = flask.Flask("blog")
        ...     events.init_app(app)
        ...     return app
    """

    def __init__(self, app: flask.Flask | None = None, *, bus: EventBus | None = None) -> None:
        self.topology = _Declared()
        self._user: Callable[[], object] | None = None
        if app is not None:
            self.init_app(app, bus=bus)

    def init_app(self, app: flask.Flask, *, bus: EventBus | None = None) -> None:
        """Make requests of this application operations, and add ``flask events``.

        Settings are read from ``app.config`` when the bus is first used: see ``docs/flask.md``.

        Raises:
            ConfigurationError: the application has this extension already, the bus belongs to another
                application, or a setting is misspelt or outside its range.
        """
        if NAME in app.extensions:
            raise ConfigurationError(
                f"application {app.name!r} was initialised with eventdriven_sync already: call init_app once"
            )
        if bus is not None and bus.handler_context is not nullcontext:
            raise ConfigurationError("this bus belongs to another application: build one for each")
        check_names(app.config)
        http_options(app.config).make_redaction()
        state = app.extensions[NAME] = AppState(app, self.topology, bus, lambda: self._user)
        state.requests.install()
        app.cli.add_command(events_command())

    # --- the bus of an application --------------------------------------------------------------------

    @property
    def bus(self) -> EventBus:
        """The current application's bus.

        Raises:
            ConfigurationError: there is no application context, or its application lacks this extension.
        """
        if not flask.has_app_context():
            raise ConfigurationError(
                "there is no current application: use events.bus_of(app), or `with app.app_context():`"
            )
        return self.bus_of(flask.current_app._get_current_object())  # type: ignore[attr-defined]

    def bus_of(self, app: flask.Flask) -> EventBus:
        """An application's bus, without a context.

        Raises:
            ConfigurationError: the application lacks this extension.
        """
        return state_of(app).bus

    @property
    def mongo_client(self) -> Any:
        """``bus.mongo_client`` of the current application: sessions of transactions belong to it."""
        return self.bus.mongo_client

    def group(self, name: str) -> Group:
        """A consumer group, as ``bus.group``; it publishes with the current application's bus.

        Raises:
            InvalidGroupName: the name cannot be used.
        """
        return Group(self, name)

    def publish(
        self,
        event: object,
        *,
        event_id: str | None = None,
        idempotency_key: str | None = None,
        immediate: bool = False,
        timeout: float | None = None,
        source: str = "",
    ) -> Receipt:
        """``bus.publish`` of the current application's bus; in a request it joins its operation."""
        return self.bus.publish(
            event,
            event_id=event_id,
            idempotency_key=idempotency_key,
            immediate=immediate,
            timeout=timeout,
            source=source,
        )

    def publish_many(
        self,
        events: Sequence[object],
        *,
        event_ids: Sequence[str] | None = None,
        immediate: bool = False,
        timeout: float | None = None,
        source: str = "",
    ) -> list[Receipt]:
        """``bus.publish_many`` of the current application's bus; in a request they join its operation."""
        return self.bus.publish_many(
            events, event_ids=event_ids, immediate=immediate, timeout=timeout, source=source
        )

    def transaction(self, *, timeout: float | None = None) -> AbstractContextManager[Any]:
        """``bus.transaction`` of the current application's bus."""
        return self.bus.transaction(timeout=timeout)

    # --- what requests are ----------------------------------------------------------------------------

    def user(self, function: U) -> U:
        """Decorator: this function says who makes the current request: text, a number, or None.

        It is called in the request's context, when its operation is stored. What it raises is logged, and
        the operation has no user; a request with an ``Idempotency-Key`` fails with it.
        """
        self._user = function
        return function

    def operation(
        self, name: str | None = None, *, variables: Sequence[str] | None = None
    ) -> Callable[[F], F]:
        """Decorator of a view: its requests are operations, whatever their method.

        Args:
            name: of the operation, 1 to 200 characters; the endpoint by default.
            variables: names of what is stored of path, query, form and JSON, redacted; all by default.

        Raises:
            InvalidOption: the name cannot be used, or ``variables`` is no list of names.
        """
        return views.operation(name, variables)

    def untracked(self, view: F) -> F:
        """Decorator of a view: its requests are no operations."""
        return views.untracked(view)

    def idempotent(self, view: F | None = None, *, required: bool = False) -> Any:
        """Decorator of a view: requests with the same ``Idempotency-Key`` header are answered once.

        The same key and request get the first answer again (header ``Idempotency-Replayed: true``), without
        running the view; the same key with another request gets 422, while the first one still runs 409. An
        answer of 429 or from 500 on, and an exception, is not kept: the client may try again, and what the
        view publishes then has the same ids, if its requests are operations. Keys belong to a view and a
        user (see ``user``).

        Args:
            required: answer 400 to requests without the header.
        """
        return views.wrap(view, lambda inner: answer_once(inner, state_of, required=required))


class AppState:
    """What the extension keeps for one application: ``app.extensions["eventdriven"]``. Thread-safe."""

    def __init__(
        self, app: flask.Flask, declared: _Declared, bus: EventBus | None, find_user: FindUser
    ) -> None:
        self._app = app
        self._declared = declared
        self._find_user = find_user
        self._made: dict[str, EventBus] = {}
        if bus is not None:
            self._made["bus"] = self._joined(bus)
        self.requests = Requests(app, self)
        self.embedded = Embedded(self)

    @cached_property
    def options(self) -> HttpOptions:
        """How requests become operations, from ``app.config`` at first use."""
        return http_options(self._app.config)

    @cached_property
    def redaction(self) -> Redaction:
        """What hides secrets in requests."""
        return self.options.make_redaction()

    @property
    def testing(self) -> bool:
        """Whether the application is under test."""
        return bool(self._app.testing)

    @property
    def bus(self) -> EventBus:
        """The application's bus, built of ``app.config`` at first use."""
        found = self._made.get("bus")
        # setdefault is atomic: of two threads that come first one builds in vain, and opens nothing.
        return found or self._made.setdefault("bus", self._make_bus())

    def user_id(self) -> str | None:
        """Who makes the current request, as the application says; what its function raises is raised."""
        find = self._find_user()
        found = find() if find else None
        return None if found is None else str(found) or None

    def _make_bus(self) -> EventBus:
        check_names(self._app.config)
        return self._joined(EventBus(settings=bus_settings(self._app.config)))

    def _joined(self, bus: EventBus) -> EventBus:
        bus.handler_context = self._app.app_context
        self._declared.adopt(bus)
        return bus


def state_of(app: flask.Flask) -> AppState:
    """What the extension keeps for an application; ConfigurationError if it has none."""
    found = app.extensions.get(NAME)
    if not isinstance(found, AppState):
        raise ConfigurationError(
            f"application {app.name!r} lacks eventdriven_sync: call events.init_app(app) in its factory"
        )
    return found


class _Declared(Topology):
    """The handlers declared with the extension, for the buses of all its applications."""

    def __init__(self) -> None:
        super().__init__(Settings())
        self._buses: weakref.WeakSet[EventBus] = weakref.WeakSet()

    def add(self, handler: Handler) -> None:
        """Add a handler, also to the buses that exist already."""
        super().add(handler)
        for bus in list(self._buses):
            bus.topology.add(handler)

    def adopt(self, bus: EventBus) -> None:
        """Give a bus every handler, those declared later as well."""
        self._buses.add(bus)
        known: Mapping[str, Handler] = bus.handlers
        for name, handler in self.handlers.items():
            if known.get(name) is not handler:
                bus.topology.add(handler)
