"""What does the extension cost a POST that publishes nothing, in CPU of the web process?

Three applications with the same view, called through WSGI without a network: plain Flask, the extension with
the operation stored in a real MongoDB (majority, journaled), and the extension with a view that is untracked.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable

import flask
from werkzeug.test import create_environ, run_wsgi_app

from benchmarks import harness
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.flask import EventDriven

BODY = json.dumps({"title": "Hello", "text": "x" * 150, "tags": ["a", "b"], "draft": False}).encode()


def application(servers: DevServers | None, *, tracked: bool = True) -> flask.Flask:
    app = flask.Flask("bench")
    events = EventDriven()
    if servers is not None:
        app.config["EVENTDRIVEN_NATS"] = servers.nats_url
        app.config["EVENTDRIVEN_MONGO"] = servers.mongo_url("bench")
        events.init_app(app)
        events.user(lambda: "42")

    def write(post_id: str) -> flask.typing.ResponseReturnValue:
        return {"id": post_id, "title": flask.request.get_json()["title"]}, 201

    app.add_url_rule(
        "/posts/<post_id>", "write", write if tracked else events.untracked(write), methods=["POST"]
    )
    return app


def caller(app: flask.Flask) -> Callable[[], None]:
    environ = create_environ("/posts/7?draft=1", method="POST", content_type="application/json")
    environ["CONTENT_LENGTH"] = str(len(BODY))

    def call() -> None:
        _, status, _ = run_wsgi_app(app, environ | {"wsgi.input": io.BytesIO(BODY)})
        if not status.startswith("201"):
            raise RuntimeError(f"the application answered {status}")

    call()
    return call


def cpu_us(body: Callable[[], object], *, times: int) -> dict[str, float]:
    """CPU and wall microseconds of this process for one call of ``body``, over so many."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        body()
    return {
        "cpu_us": (time.process_time() - cpu) * 1e6 / times,
        "wall_us": (time.perf_counter() - wall) * 1e6 / times,
    }


def main() -> None:
    options = harness.options("CPU of the extension per request", requests=2000)
    with DevServers() as servers:
        calls = {
            "flask": caller(application(None)),
            "untracked": caller(application(servers, tracked=False)),
            "operation": caller(application(servers)),
        }
        found = harness.interleaved(
            {
                name: lambda call=call: cpu_us(call, times=options.requests)  # type: ignore[misc]
                for name, call in calls.items()
            },
            runs=options.runs,
        )
    middle = harness.medians(found)
    overhead = {
        name: middle[name]["cpu_us"] - middle["flask"]["cpu_us"] for name in ("untracked", "operation")
    }
    harness.report("flask_overhead", found, overhead_cpu_us=overhead)


if __name__ == "__main__":
    main()
