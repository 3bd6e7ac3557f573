"""Whether threads are threads: gevent and eventlet turn them into greenlets when they patch a process."""

from __future__ import annotations

import sys

from eventdriven_sync.errors import ConfigurationError


def patched_by() -> str:
    """``gevent`` or ``eventlet`` if it has replaced this process's threads or sockets, else nothing."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and any(map(monkey.is_module_patched, ("threading", "socket", "select"))):
        return "gevent"
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and any(map(patcher.is_monkey_patched, ("thread", "socket", "select"))):
        return "eventlet"
    return ""


def refuse_eventlet() -> None:
    """ConfigurationError under eventlet, where asyncio is known not to work."""
    if patched_by() == "eventlet":
        raise ConfigurationError(
            "this process is patched by eventlet, under which NATS cannot be reached: use threads or gevent"
        )


def refuse_greenlets() -> None:
    """ConfigurationError where handlers would run in greenlets."""
    library = patched_by()
    if library:
        raise ConfigurationError(
            f"a worker does not run in a process that {library} has patched: its handlers would be "
            "greenlets, and while one computes no lease is kept and no timeout noticed. Publish here, and "
            "run the handlers in another process: eventdriven --app MODULE:BUS worker"
        )
