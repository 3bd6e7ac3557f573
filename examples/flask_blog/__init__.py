"""A blog of three modules that know each other only by events. Start reading at README.md."""

import secrets
from collections.abc import Mapping
from typing import Any

from flask import Flask, session

from . import blogs, comments, users, web
from .extensions import events


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """The application; it connects to nothing before its first request.

    Settings come from ``config``, then from ``FLASK_*`` in the environment. The servers of the events are
    named by ``EVENTDRIVEN_NATS``, ``EVENTDRIVEN_MONGO`` and ``EVENTDRIVEN_NAMESPACE`` in either.
    """
    app = Flask(__name__)
    app.config.from_mapping(
        SECRET_KEY=secrets.token_hex(),  # a restart signs everybody out: set FLASK_SECRET_KEY
        SESSION_COOKIE_SAMESITE="Lax",
        MAX_CONTENT_LENGTH=128 * 1024,
        BLOG_DATABASES="blog",  # the modules' databases are blog_users, blog_blogs and blog_comments
        BLOG_MONGO_CLIENT=None,  # the event store's client, unless a test gives another one
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config or {})
    events.init_app(app)
    web.init_app(app)
    for module in (users, blogs, comments):
        app.register_blueprint(module.blueprint)
    return app


@events.user
def signed_in_user() -> str | None:
    return session.get("user_id")
