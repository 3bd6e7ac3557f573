"""Dashboards for tests: an application, and a browser that fills in forms."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from flask import Flask
from flask.testing import FlaskClient
from tenacity import stop_after_attempt, wait_none
from werkzeug.test import TestResponse

from eventdriven_sync import EventBus, RetryPolicy, event
from eventdriven_sync.dashboard import dashboard
from eventdriven_sync.dashboard.accounts import Accounts
from eventdriven_sync.testing import MemoryRun, memory

KEY = "0123456789abcdefghijklmnopqrstuvwxyz"
CHEAP = "scrypt:1024:8:1"
PASSWORD = "correct horse battery"

_TOKEN = re.compile(r'name="csrf_token" value="([0-9a-f]{64})"')


def new_bus() -> EventBus:
    return EventBus(nats="memory://", mongo="memory://")


def site(bus: EventBus | None = None, *, prefix: str = "/events", **options: Any) -> Flask:
    """An application with a dashboard."""
    app = Flask("site")
    app.config["SECRET_KEY"] = KEY
    app.register_blueprint(dashboard(bus or new_bus(), **options), url_prefix=prefix)
    return app


def accounts_of(app: Flask) -> Accounts:
    [mount] = app.extensions["eventdriven_dashboard"].values()
    found: Accounts = mount.accounts
    return found


class Browser:
    """A browser at a dashboard."""

    def __init__(self, app: Flask, *, prefix: str = "/events", base_url: str = "http://localhost") -> None:
        self.client: FlaskClient = app.test_client()
        self.prefix = prefix
        self.base_url = base_url

    def get(self, path: str, **how: Any) -> TestResponse:
        return self.client.get(self.prefix + path, base_url=self.base_url, **how)

    def token(self, path: str = "/login") -> str:
        found = _TOKEN.search(self.get(path).text)
        assert found, "the page has no form"
        return found[1]

    def post(
        self, path: str, *, token: str | None = None, form: str = "/login", **fields: str
    ) -> TestResponse:
        """Send a form, with the token of the page at ``form``."""
        fields["csrf_token"] = self.token(form) if token is None else token
        return self.client.post(self.prefix + path, base_url=self.base_url, data=fields)

    def sign_in(self, name: str, password: str = PASSWORD, **fields: str) -> TestResponse:
        return self.post("/login", name=name, password=password, **fields)

    def api_token(self) -> str:
        return str(self.get("/api/v1/session").get_json()["csrf_token"])

    def cookies(self) -> dict[str, str]:
        """What the browser keeps, by what it is for."""
        found = self.client._cookies.values() if self.client._cookies else ()
        return {cookie.key.rpartition("-")[2]: cookie.value for cookie in found}


@event("Shop.userRenamed", key="user_id")
@attrs.frozen(kw_only=True)
class UserRenamed:
    user_id: str
    name: str = ""
    password: str = ""


@event("Shop.postsUpdated")
@attrs.frozen(kw_only=True)
class PostsUpdated:
    user_id: str


@attrs.frozen(kw_only=True)
class Story:
    """A shop where an operation renamed a user: ``Blog`` published an event, ``Comment`` failed.

    Attributes:
        operation: the id of the operation.
        event: the id of the event it published.
        dead: the id of the dead letter of ``Comment``.
    """

    bus: EventBus
    run: MemoryRun
    operation: str
    event: str
    dead: str


def shop(*, error: str = "Test Error!!") -> EventBus:
    """A bus with a handler that publishes and one that fails for good."""
    bus = new_bus()
    blog, comment = bus.group("Blog"), bus.group("Comment")

    @blog.handler(UserRenamed)
    def update_posts(event: UserRenamed) -> None:
        blog.publish(PostsUpdated(user_id=event.user_id))

    @comment.handler(UserRenamed, retry=RetryPolicy(stop=stop_after_attempt(1), wait=wait_none()))
    def update_comments(event: UserRenamed) -> None:
        raise ValueError(error)

    return bus


@contextmanager
def story(bus: EventBus | None = None, **renamed: str) -> Iterator[Story]:
    """A shop with what happened in it; the bus is in memory inside the block."""
    bus = bus or shop()
    with memory(bus) as run:
        variables = {"user": "42", "password": renamed.get("password", "")}
        with bus.operation("rename", kind="http", variables=variables, user="ada") as operation:
            receipt = bus.publish(UserRenamed(**{"user_id": "42", **renamed}))
        run.drain()
        yield Story(
            bus=bus,
            run=run,
            operation=operation.id,
            event=receipt.id,
            dead=f"Comment.update_comments:{receipt.id}",
        )
