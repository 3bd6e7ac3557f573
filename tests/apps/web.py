"""A Flask application for real web servers: takes orders by POST, bills them in a handler."""

import os
import threading
from pathlib import Path

import flask

from eventdriven_sync.flask import EventDriven
from tests.apps.orders import OrderPlaced
from tests.apps.witness import Witness

events = EventDriven()
billing = events.group("Billing")


@billing.handler(OrderPlaced)
def bill(order: OrderPlaced) -> None:
    hold("handler")
    witness().note("billed", number=order.number, app=flask.current_app.name)


def witness() -> Witness:
    return Witness(Path(os.environ["WITNESS"]))


def hold(where: str) -> None:
    """Say so and wait, as long as the test wants it: HOLD names the file that must be gone."""
    held = Path(os.environ.get("HOLD", "/nowhere"))
    if held.exists() and held.read_text() == where:
        witness().note("held")
        while held.exists():
            threading.Event().wait(0.05)


def create_app() -> flask.Flask:
    app = flask.Flask("web")
    app.config["EVENTDRIVEN_IDEMPOTENCY_LEASE"] = float(os.environ.get("IDEMPOTENCY_LEASE", "60"))
    app.config["EVENTDRIVEN_EMBEDDED"] = os.environ.get("EMBEDDED") == "yes"
    events.init_app(app)
    if os.environ.get("OPEN_BEFORE_FORK") == "yes":
        # What a module that publishes while it is imported does to `gunicorn --preload`.
        events.bus_of(app).open()
        events.bus_of(app).broker.flush(timeout=5)

    @app.post("/orders/<int:number>")
    @events.idempotent
    def place(number: int) -> flask.typing.ResponseReturnValue:
        receipt = events.publish(OrderPlaced(number=number))
        hold("view")
        return {"operation": receipt.operation_id, "pid": os.getpid()}, 201

    @app.get("/pid")
    def pid() -> str:
        return str(os.getpid())

    return app
