"""The driver's client as this library uses it: how it watches its servers, and what it has sent."""

from __future__ import annotations

import threading
from typing import Any

from pymongo import MongoClient, monitoring
from pymongo.errors import PyMongoError

from eventdriven_sync.config import redact
from eventdriven_sync.errors import ConfigurationError
from eventdriven_sync.stores.mongo_errors import text_of

# A server that has gone silent is noticed within ten seconds, not thirty. Asking it each time, instead of
# listening to what it says by itself, also finds a network that carries only one way.
WATCHING: dict[str, Any] = {
    "heartbeatFrequencyMS": 5000,
    "connectTimeoutMS": 5000,
    "serverMonitoringMode": "poll",
}
_WRITES = frozenset({"insert", "update", "delete", "findAndModify", "commitTransaction"})


class SentWrites(monitoring.CommandListener):
    """Knows whether this thread handed a write to a socket: what decides between "not" and "unknown".

    Attributes:
        here: per thread; ``here.any`` is set when a write is sent, ``here.concern`` is what it asked for.
    """

    def __init__(self) -> None:
        self.here = threading.local()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Note a write that is about to be sent."""
        if event.command_name in _WRITES:
            self.here.any = True
            self.here.concern = event.command.get("writeConcern")

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Not needed."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Not needed."""


def mongo_client(
    url: str, *, timeout: float, max_pool_size: int, listener: monitoring.CommandListener
) -> MongoClient[dict[str, Any]]:
    """A client that writes durably; it opens nothing before its first use.

    Raises:
        ConfigurationError: the URL cannot be used.
    """
    try:
        return MongoClient(
            url,
            w="majority",
            journal=True,
            retryWrites=True,
            retryReads=True,
            timeoutMS=int(timeout * 1000),
            maxPoolSize=max_pool_size,
            appname="eventdriven_sync",
            event_listeners=[listener],
            **{name: value for name, value in WATCHING.items() if name.lower() not in url.lower()},
        )
    except (PyMongoError, ValueError, TypeError) as error:
        # The driver quotes parts of the URL, among them of an unescaped password: say nothing of it then.
        secret = "@" in url
        said = "" if secret else f": {text_of(error)}"
        raise ConfigurationError(
            f"mongo URL {redact(url)} cannot be used ({type(error).__name__}){said}; a URL looks like "
            "mongodb://host:27017/database?replicaSet=rs0, special characters of user and password %-escaped",
            field="mongo",
        ) from (None if secret else error)
