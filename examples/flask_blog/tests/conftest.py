"""The application in memory: no server, no waiting."""

from collections.abc import Iterator

import mongomock
import pytest
from flask import Flask
from flask.testing import FlaskClient

from eventdriven_sync.testing import MemoryRun, memory
from flask_blog import create_app
from flask_blog.extensions import events

mongomock.ignore_feature("session")  # transactional handlers get one

ADA = {"first_name": "Ada", "last_name": "Byron", "email": "ada@example.org", "password": "Analytical1"}


@pytest.fixture
def app() -> Flask:
    return create_app({"TESTING": True, "BLOG_MONGO_CLIENT": mongomock.MongoClient()})


@pytest.fixture
def run(app: Flask) -> Iterator[MemoryRun]:
    with memory(events.bus_of(app)) as running:
        yield running


@pytest.fixture
def visitor(app: Flask) -> FlaskClient:
    """Nobody yet, and talks JSON."""
    client = app.test_client()
    client.environ_base["HTTP_ACCEPT"] = "application/json"
    return client


@pytest.fixture
def ada(visitor: FlaskClient, run: MemoryRun) -> FlaskClient:
    """Registered, signed in, and known to all modules."""
    assert visitor.post("/register", json=ADA).status_code == 201
    run.drain()
    return visitor


@pytest.fixture
def post_id(ada: FlaskClient, run: MemoryRun) -> str:
    """A post of hers, with a comment of hers."""
    post = ada.post("/posts", json={"title": "Notes", "text": "On the Engine"}).json
    run.drain()
    assert ada.post(f"/posts/{post['id']}/comments", json={"text": "Note G"}).status_code == 201
    run.drain()
    return post["id"]
