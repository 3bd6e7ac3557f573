"""The same on real servers, with the web application and two workers as processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

import flask_blog
from eventdriven_sync.audit import audit
from eventdriven_sync.devserver import DevServers, ServerBinaryMissing
from flask_blog.extensions import events
from flask_blog.tests.conftest import ADA


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, str]]:
    try:
        servers = DevServers().start()
    except ServerBinaryMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield servers.settings(namespace="blog", database="blog_events")
    servers.stop()


@pytest.fixture
def workers(settings: dict[str, str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    path = os.pathsep.join([str(Path(flask_blog.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "eventdriven_sync", "--app", "flask_blog:create_app", "worker"]
    running = [subprocess.Popen(command, env=os.environ | settings | {"PYTHONPATH": path}) for _ in range(2)]
    yield running
    for worker in running:
        worker.terminate()
    for worker in running:
        worker.wait(timeout=30)


def until(look: Callable[[], Any]) -> Any:
    """Look until there is something, for up to 30 seconds."""
    nothing = retry_if_result(lambda found: not found)
    return Retrying(retry=nothing, stop=stop_after_delay(30), wait=wait_fixed(0.05))(look)


def test_two_worker_processes_bring_a_rename_to_posts_and_comments(
    settings: dict[str, str], workers: list[subprocess.Popen[bytes]]
) -> None:
    app = flask_blog.create_app({"TESTING": True, **settings})
    visitor: FlaskClient = app.test_client()

    def post(path: str, **values: str) -> Any:
        return until(lambda: (answer := visitor.post(path, json=values)).status_code < 300 and answer)

    post("/register", **ADA)
    post_id = post("/posts", title="Notes", text="On the Engine").json["id"]
    post(f"/posts/{post_id}/comments", text="Note G")
    renamed = post("/me/name", first_name="Ada", last_name="Lovelace")
    bus = events.bus_of(app)
    chain = bus.operations.wait(renamed.headers["X-Operation-Id"], timeout=30)
    assert chain.succeeded
    assert sorted(node.event.name for node in chain.walk()) == [
        "Blog.userUpdated",
        "Comment.userUpdated",
        "User.nameUpdated",
    ]
    [comment] = visitor.get(f"/posts/{post_id}/comments").json["comments"]
    assert comment["author"]["last_name"] == "Lovelace"
    until(lambda: visitor.get("/", headers={"Accept": "application/json"}).json["posts"][0]["comments"] == 1)
    assert audit(bus).ok
    bus.close()
