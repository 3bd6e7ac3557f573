"""A Flask application under test, with its bus in memory."""

from typing import Any

import flask

from eventdriven_sync import EventBus
from eventdriven_sync.flask import EventDriven
from eventdriven_sync.records import Operation


class Site:
    """An application under test, its client and its bus in memory."""

    def __init__(self, **config: Any) -> None:
        self.events = EventDriven()
        self.app = flask.Flask("site")
        self.app.config |= {"TESTING": True, "PROPAGATE_EXCEPTIONS": False, "SECRET_KEY": "x"} | config
        self.events.init_app(self.app)
        self.client = self.app.test_client()

    @property
    def bus(self) -> EventBus:
        return self.events.bus_of(self.app)

    @property
    def operation(self) -> Operation:
        """The only one there is."""
        [found] = self.bus.operations.find()
        return found
