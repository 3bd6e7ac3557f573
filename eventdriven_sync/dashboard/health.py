"""Health for load balancers and supervisors: no data, no sign-in."""

from __future__ import annotations

import logging

from werkzeug.wrappers import Response

from eventdriven_sync.dashboard.mount import bus
from eventdriven_sync.dashboard.routing import Routes
from eventdriven_sync.errors import EventDrivenError

log = logging.getLogger(__name__)

STORE_TIMEOUT = 2.0

health = Routes(kind="file")


@health.get("/health/live", role=None, background=True)
def live() -> Response:
    """This process answers."""
    return Response("ok\n", mimetype="text/plain")


@health.get("/health/ready", role=None, background=True)
def ready() -> Response:
    """The event store answers as well; 503 if it does not."""
    try:
        bus().open(timeout=STORE_TIMEOUT)
        bus().store.directory.now()
    except EventDrivenError as error:
        log.warning("Dashboard: not ready: %s", error, extra={"action": "dashboard_not_ready"})
        return Response("away\n", 503, mimetype="text/plain")
    return Response("ok\n", mimetype="text/plain")
