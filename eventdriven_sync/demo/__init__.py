"""The demonstration: the blog of ``examples/flask_blog`` with a visitor, a failing handler and its retry.

Everything is real: nats-server and mongod, the web application and two workers are started for it, on free
ports, with their data in a temporary directory that is removed at the end.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from eventdriven_sync.bus import EventBus
from eventdriven_sync.demo.stage import Echo, Stage
from eventdriven_sync.demo.story import ADA, Story, Unexpected
from eventdriven_sync.devserver import DevServers, ServerBinaryMissing
from eventdriven_sync.errors import EventDrivenError

DATABASE = "blog_events"
NAMESPACE = "blog"


def run(*, once: bool = True, echo: Echo = print) -> int:
    """Run the demonstration. In the main thread SIGTERM ends it in order, as Ctrl-C does.

    Args:
        once: end when it is done; otherwise the blog stays up until Ctrl-C, to look around.
        echo: prints a line; may be called from several threads, one at a time.

    Returns:
        0 if everything came as promised; 1 if not, after a line with what was expected and what was found.

    Raises:
        ServerBinaryMissing: nats-server or mongod is not installed.
    """
    say = _one_at_a_time(echo)
    try:
        with _terminable():
            _perform(once=once, say=say)
    except ServerBinaryMissing:
        raise
    except (Unexpected, EventDrivenError) as error:
        say(f"The demonstration failed. {error}")
        return 1
    except KeyboardInterrupt:
        say("Stopped: all processes have ended, their data is removed.")
        return 0 if not once else 1
    say("Done: all processes have ended, their data is removed.")
    return 0


def _perform(*, once: bool, say: Echo) -> None:
    say("1. Starting nats-server (JetStream), mongod (replica set of one), the blog and two workers ...")
    with DevServers() as servers:
        settings = servers.settings(namespace=NAMESPACE, database=DATABASE)
        with Stage(settings, echo=say) as stage, _bus(settings) as bus:
            say(f"   the blog: {stage.url}")
            Story(stage, bus, say).tell()
            if not once:
                _look_around(stage, settings, say)


def _bus(settings: dict[str, str]) -> EventBus:
    return EventBus(
        nats=settings["EVENTDRIVEN_NATS"],
        mongo=settings["EVENTDRIVEN_MONGO"],
        namespace=settings["EVENTDRIVEN_NAMESPACE"],
    )


def _look_around(stage: Stage, settings: dict[str, str], say: Echo) -> None:
    say(f"Everything stays up until Ctrl-C. The blog: {stage.url}")
    say(f"  sign in as {ADA['email']} with the password {ADA['password']}, or register")
    say(f"The dashboard, with every chain and dead letter: {stage.serve_dashboard()}")
    say("In another terminal:")
    for name, value in settings.items():
        say(f"  export {name}='{value}'")
    say("  eventdriven operations list")
    threading.Event().wait()


def _one_at_a_time(echo: Echo) -> Callable[[str], None]:
    lock = threading.Lock()  # guards the output, which the story and the readers of all processes share

    def say(line: str) -> None:
        with lock:
            echo(line)

    return say


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the program as an exception does, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
